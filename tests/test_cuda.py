"""On a CUDA device the model computes what it computes on the CPU; skipped where there is none.

float32 without TF32 is compared closely. Kernels of some libraries may sum in another order each
time, so that two runs are near and not equal.
"""

import runpy
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from worldmodel.dream import Dream
from worldmodel.encoders.rae import RAE, RAEConfig
from worldmodel.moe import FeedForward
from worldmodel.passes import Pass
from worldmodel.sequence import Document, Frame, Text, attention_mask, block_mask, pack
from worldmodel.stream import Engine, Stream
from worldmodel.text import BOI
from worldmodel.train.core import CoreTask, run
from worldmodel.train.loop import LoopConfig, fit
from worldmodel.train.optim import orthogonalise

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

HERE = Path(__file__).parent
CUDA, CPU = torch.device("cuda"), torch.device("cpu")
VARIANTS = {
    "mixture": {},
    "dense": {"ffn": "dense"},
    "convolutions": {"motion": -1, "unet": 1},
    "velocity": {"motion": -1, "prediction": "v", "positions": "2d"},
}
TOY = runpy.run_path(str(HERE / "train_toy.py"))
PLAY = runpy.run_path(str(HERE / "test_dream.py"))


@pytest.fixture(autouse=True)
def _no_tf32() -> Iterator[None]:
    """Convolutions use it by default, and in some releases of PyTorch FlexAttention."""
    kept = torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32 = kept


def difference(found: torch.Tensor, wanted: torch.Tensor) -> float:
    found, wanted = found.detach().double().cpu(), wanted.detach().double().cpu()
    return ((found - wanted).norm() / wanted.norm().clamp(min=1e-12)).item()


def task_on(device: torch.device, dtype: torch.dtype = torch.float32, **changes) -> CoreTask:
    """The toy's training on a device, with heads that say something."""
    made = TOY["core_task"](**changes)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for weight in made.module.parameters():
            if not weight.any():
                weight.copy_(0.1 * torch.randn(weight.shape, generator=generator))
    core = made.module.to(device)
    return CoreTask(core, made.sampler, made.latents.to(device), made.config, dtype)


def dream_on(device: torch.device, dtype: torch.dtype = torch.float32, **changes) -> Dream:
    checkpoint = PLAY["make_dream"](**changes).engine.checkpoint
    dream = Dream(Engine(checkpoint, device, dtype), denoise_steps=2, guidance=2.0)
    dream.reset(seed=0)
    return dream


def rollout(dream: Dream) -> torch.Tensor:
    """Latents of some frames, past where the window is full, with an instruction on the way."""
    found = []
    for number, keys in enumerate(["w", "a", "w", "w", "d", "w", "w", "w"]):
        if number == 2:
            dream.say("turn left")
        dream.step(PLAY["TABLE"].press([keys]))
        found.append(dream.latent.float().cpu())
    return torch.stack(found)


@pytest.mark.parametrize("kind", [attention_mask, block_mask])
@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS)
def test_a_forward_equals_the_cpu_with_either_mask(changes, kind):
    # FlexAttention is for long rows; below 128 tokens PyTorch has another kernel, which does not
    # take shared heads of such sizes (NoValidChoicesError).
    home, there = (task_on(device, shape=changes, length=256) for device in (CPU, CUDA))
    batch, clean = home.batch(np.random.default_rng(0))
    level = torch.linspace(0, 1, len(clean))
    stride = torch.full((len(clean),), home.module.config.strides - 1)
    here = batch.to(CUDA)
    with torch.no_grad():
        wanted, _ = run(home.module, batch, attention_mask(batch), clean, level, stride)
        parts = (x.to(CUDA) for x in (clean, level, stride))
        found, _ = run(there.module, here, kind(here), *parts)
    assert difference(found[here.doc >= 0], wanted[batch.doc >= 0]) < 1e-3


@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS)
def test_losses_and_gradients_equal_the_cpu(changes):
    tasks = task_on(CPU, shape=changes), task_on(CUDA, shape=changes)
    losses, gradients = [], []
    for task in tasks:
        loss = task.losses(0)["loss"]
        loss.backward()
        losses.append(loss.item())
        named = task.module.named_parameters()
        gradients.append({name: p.grad for name, p in named if p.grad is not None})
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
    assert gradients[0].keys() == gradients[1].keys()
    for name, wanted in gradients[0].items():
        assert difference(gradients[1][name], wanted) < 1e-2, name


def test_bfloat16_training_is_near_float32():
    losses = [task_on(CUDA, dtype).losses(0)["loss"] for dtype in (torch.float32, torch.bfloat16)]
    assert losses[1].item() == pytest.approx(losses[0].item(), rel=2e-2)


def test_experts_that_nobody_chose_get_gradients_of_zero():
    torch.manual_seed(0)
    layer = FeedForward(64, 32, 8, 2, 2).to(CUDA)
    assert layer.router is not None
    layer.router.bias[3:6] = -10.0
    with torch.autocast("cuda", torch.bfloat16):
        x = torch.randn(500, 64, device=CUDA)
        layer(x, torch.arange(500, device=CUDA) % 2).square().sum().backward()
    for weight in (layer.w_in, layer.w_out):
        assert weight.grad is not None
        assert weight.grad.isfinite().all()
        assert not weight.grad[3:6].any()
        assert weight.grad[:3].any()


@pytest.mark.parametrize("name", ["dense", "moe", "every head its own keys"])
def test_a_rollout_equals_the_cpu(name):
    changes = PLAY["VARIANTS"][name]
    wanted, found = rollout(dream_on(CPU, **changes)), rollout(dream_on(CUDA, **changes))
    assert difference(found, wanted) < 1e-2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_recorded_passes_equal_those_run_one_by_one(dtype, recwarn):
    plain, recorded = dream_on(CUDA, dtype), dream_on(CUDA, dtype)
    plain.engine.graphs = None
    graphs = recorded.engine.graphs
    assert graphs is not None
    for _ in range(3):
        plain.reset(seed=0)
        recorded.reset(seed=0)
        assert difference(rollout(recorded), rollout(plain)) < 1e-2
    assert graphs.replayed > 20
    assert not [w for w in recwarn if "CUDA graphs" in str(w.message)]


def test_incremental_equals_full_forward():
    engine = dream_on(CUDA).engine
    core, words = engine.core, [30, 31]
    generator = torch.Generator().manual_seed(0)
    frames = torch.randn(4, 16, core.config.channels, generator=generator).to(CUDA)
    streams = [Stream()]
    document: Document = []
    for number in range(3):
        noise = engine.noise(number)
        streams = engine.follow(streams, [words], noise, given=frames[number : number + 1])
        document = [*document, Text(tuple(words), "action"), Frame(number, target=False)]
        assert streams[0].shown is not None
        frames[number] = streams[0].shown
    t, stride = torch.tensor([0.3], device=CUDA), torch.tensor([3], device=CUDA)
    with torch.inference_mode():
        cached = Pass(engine, streams, [[*words, BOI]]).predict(frames[3:], t, stride)
        document = [*document, Text(tuple(words), "action"), Frame(3)]
        config = core.config
        batch = pack([document], [0], config.grid, config.window, 256, in_place=True).to(CUDA)
        level = torch.tensor([0.9, 0.9, 0.9, 0.3], device=CUDA)
        strides = torch.full((4,), 3, device=CUDA)
        hidden, seen = run(core, batch, attention_mask(batch), frames, level, strides)
        hidden = hidden.flatten(0, 1)[batch.visual[-16:]].unsqueeze(0)
        full = core.draw(hidden, seen[-1:], frames[3:], t)
    assert difference(cached, full) < 1e-3


def test_orthogonalised_matrices_have_singular_values_near_one():
    matrices = torch.randn(5, 48, 64, generator=torch.Generator().manual_seed(0))
    values = torch.linalg.svdvals(orthogonalise(matrices.to(CUDA)).float())
    assert values.min() > 0.5
    assert values.max() < 1.4


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_resumed_run_goes_on_where_it_stopped(tmp_path, checkpointing):
    loop = LoopConfig(6, lr=1e-3, warmup=2, ema=0.5, save_every=2, checkpointing=checkpointing)
    start = task_on(CUDA).module.state_dict()
    whole = fit(task_on(CUDA), loop, tmp_path / "whole").state_dict()
    fit(task_on(CUDA), replace(loop, stop_at=4), tmp_path / "parts")
    parts = fit(task_on(CUDA), loop, tmp_path / "parts").state_dict()
    for name, value in whole.items():
        moved = (value.float() - start[name].float()).norm()
        assert (parts[name].float() - value.float()).norm() <= 0.02 * moved + 1e-6, name


def test_compiled_blocks_learn_what_others_do(tmp_path):
    loop = LoopConfig(3, lr=1e-3, warmup=2, muon=False)
    start = task_on(CUDA).module.state_dict()
    wanted = fit(task_on(CUDA), loop, tmp_path / "plain").state_dict()
    found = fit(task_on(CUDA), replace(loop, compile=True), tmp_path / "compiled").state_dict()
    for name, value in wanted.items():
        moved = (value - start[name]).norm()
        assert (found[name] - value).norm() <= 0.05 * moved + 1e-6, name


def test_an_encoder_equals_the_cpu():
    torch.manual_seed(0)
    rae = RAE(RAEConfig(channels=8, width=32, heads=2, encoder_depth=1, decoder_depth=1)).eval()
    frames = torch.randint(0, 256, (3, 64, 64, 3), dtype=torch.uint8)
    wanted = rae.encode(frames)
    pictures = rae.decode(wanted)
    rae.to(CUDA)
    found = rae.encode(frames)
    assert difference(found, wanted) < 1e-3
    again = rae.decode(found).cpu()
    assert (again.int() - pictures.int()).abs().max() <= 2


def test_a_model_is_trained_on_the_device_and_played(tmp_path):
    store = TOY["write_store"](tmp_path / "toy.zarr")
    keys = [word for word in TOY["TINY"] if not word.startswith(("device=", "core_loop.steps="))]
    keys += [f"store={store}", f"out={tmp_path / 'run'}", f"checkpoint={tmp_path / 'tiny'}"]
    keys += ["device=cuda", "core_loop.steps=3", "core.shortcut_from=9"]
    command = [sys.executable, "-m", "worldmodel", "train", *keys]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr
    folder = next(tmp_path.rglob("config.json")).parent
    dream = Dream.load(str(folder), device="cuda")
    frame = dream.step(dream.spec.actions.press(["w"])).frame
    assert frame.shape == (16, 16, 3)
