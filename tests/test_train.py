"""Training learns, tells what goes wrong, and goes on after kill -9 as if nothing had happened."""

import json
import math
import runpy
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

from worldmodel.checkpoint import load
from worldmodel.cli import compose
from worldmodel.encoders.rae import RAEConfig
from worldmodel.errors import UserError
from worldmodel.text import train_tokenizer
from worldmodel.train.centring import LossCentre
from worldmodel.train.config import TrainConfig
from worldmodel.train.data import load_recordings
from worldmodel.train.encoder import (
    DecoderTask,
    EncoderTask,
    EncoderTraining,
    build_rae,
    measure_latents,
)
from worldmodel.train.loop import LoopConfig, fit
from worldmodel.train.optim import Muon, build_optimizers, learning_rate, orthogonalise
from worldmodel.train.run import main
from worldmodel.train.samples import KINDS
from worldmodel.train.task import Task
from worldmodel.train.watch import Watch, open_log

TOY = runpy.run_path(str(Path(__file__).with_name("train_toy.py")))
SPEC, NOTES, PROSE, TINY = TOY["SPEC"], TOY["NOTES"], TOY["PROSE"], TOY["TINY"]
episode, recordings, core_task = TOY["episode"], TOY["recordings"], TOY["core_task"]
RAE_SHAPE = RAEConfig(16, 4, 4, width=16, heads=2, encoder_depth=1, decoder_depth=1)


def loop(steps: int, **changes) -> LoopConfig:
    return LoopConfig(**({"steps": steps, "lr": 3e-3, "warmup": 5, "ema": 0.9} | changes))


def state_of(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "state.safetensors")


def step_of(folder: Path) -> int:
    with safe_open(folder / "state.safetensors", "pt") as file:
        return int(file.metadata()["step"])


def assert_equal_states(a: Path, b: Path) -> None:
    ours, theirs = state_of(a), state_of(b)
    assert ours.keys() == theirs.keys()
    assert [k for k in ours if not torch.equal(ours[k], theirs[k])] == []
    assert step_of(a) == step_of(b)


# --- losses ---


def test_the_core_learns_what_it_sees_again_and_again(tmp_path):
    task = core_task()

    def loss() -> dict[str, float]:
        with torch.no_grad():
            rows = [task.losses(step) for step in range(10_000, 10_008)]
        return {k: sum(float(r[k]) for r in rows) / len(rows) for k in ("loss", "flow", "text")}

    before = loss()
    task.module = fit(task, loop(60), tmp_path)
    after = loss()
    assert after["text"] < 0.6 * before["text"]
    assert after["flow"] < 0.95 * before["flow"]
    assert after["loss"] < 0.8 * before["loss"]


def test_every_kind_of_sample_has_its_losses():
    task = core_task(shortcut_from=0, own_past_from=0)
    seen: set[str] = set()
    for step in range(24):
        losses = task.losses(step)
        seen |= set(losses)
        assert all(torch.isfinite(v) for v in losses.values())
    drawn = {"imagine", "video", "action", "instructed", "commanded"}
    assert {k for k in seen if k.startswith("flow/")} == {f"flow/{k}" for k in drawn}
    assert {k for k in seen if k.startswith("text/")} == {f"text/{k}" for k in KINDS}
    assert seen >= {"loss", "flow", "text"}


@pytest.mark.parametrize("weight", [0.0, 3.0])
def test_the_loss_is_the_weighted_sum_of_its_parts(weight):
    losses = core_task(flow_weight=weight).losses(0)
    assert losses["loss"].item() == pytest.approx(
        losses["text"].item() + weight * losses["flow"].item(), rel=1e-5
    )
    (losses["loss"]).backward()


def test_loss_centring_gives_both_losses_the_same_pull():
    centre = LossCentre(share=0.25, decay=0.9, device=torch.device("cpu"))
    text = torch.tensor(8.0, requires_grad=True)
    flow = torch.tensor(2.0, requires_grad=True)
    first = 0.25 * 2 + 0.75 * 8
    centre.weigh(text, flow).backward()
    assert text.grad.item() * 8 == pytest.approx(flow.grad.item() * 2) == pytest.approx(first)
    centre.update()
    assert centre.mean.item() == pytest.approx(first)
    next_mean = 0.9 * first + 0.1 * (0.25 * 4 + 0.75 * 8)
    loss = centre.weigh(torch.tensor(8.0), torch.tensor(4.0))
    assert loss.item() == pytest.approx(2 * next_mean)
    centre.update()
    assert centre.mean.item() == pytest.approx(next_mean)


def test_a_centred_core_learns(tmp_path):
    task = core_task(centre=True)
    with torch.no_grad():
        before = task.losses(999)
    task._centre.update()
    fit(task, loop(40), tmp_path)
    with torch.no_grad():
        after = task.losses(999)
    assert after["text"] < 0.8 * before["text"]
    assert after["flow"] < before["flow"]


def test_accumulated_gradients_are_the_mean_of_the_batches(tmp_path):
    def gradients(task, batches: range) -> list[torch.Tensor]:
        task.module.zero_grad()
        for batch in batches:
            (task.losses(0, batch)["loss"] / len(batches)).backward()
        return [p.grad.clone() for p in task.module.parameters() if p.grad is not None]

    two = core_task(accumulate=2)
    one = core_task()
    both = zip(gradients(one, range(1)), gradients(one, range(1, 2)), strict=True)
    for got, want in zip(gradients(two, range(2)), both, strict=True):
        assert torch.allclose(got, sum(want) / 2, atol=1e-5)
    assert two.losses(3)["loss"].item() == one.losses(3, 6)["loss"].item()


def test_a_new_core_knows_nothing():
    """Heads start at zero: text costs log(vocabulary), frames their own power."""
    task = core_task()
    losses = task.losses(0)
    vocabulary = task.module.config.vocab
    assert losses["text"].item() == pytest.approx(math.log(vocabulary), rel=1e-4)


def test_losses_are_a_function_of_seed_and_step():
    task = core_task(shortcut_from=0, own_past_from=0)
    first, other = task.losses(3), task.losses(4)
    again = core_task(shortcut_from=0, own_past_from=0).losses(3)
    assert first["loss"].item() == again["loss"].item() != other["loss"].item()
    assert core_task(seed=1).losses(3)["loss"].item() != core_task().losses(3)["loss"].item()


def test_large_steps_and_own_past_begin_when_they_should():
    plain = core_task(shortcut_from=100, own_past_from=100).losses(5)["flow"].item()
    assert core_task(shortcut_from=5, own_past_from=100).losses(5)["flow"].item() != plain
    assert core_task(shortcut=0.0, shortcut_from=5, own_past_from=100).losses(5)["flow"] == plain
    task = core_task(shortcut_from=100, own_past_from=5, own_past=1.0)
    torch.nn.init.normal_(task.module.paint.weight, std=0.1)
    own = task.losses(5)["flow"].item()
    task.config = replace(task.config, own_past=0.0)
    assert task.losses(5)["flow"].item() != own


def test_after_a_step_the_routers_are_balanced_and_reported():
    task = core_task(balance=0.01)
    task.losses(0)
    numbers = task.after_step(0)
    assert set(numbers) == {
        f"router/{layer}/{name}"
        for layer in range(2)
        for name in ("busiest", "busiest_text", "busiest_vision")
    }
    assert all(1 <= v <= 6 for v in numbers.values())
    assert task.module.blocks[0].feed_forward.router.bias.abs().max() > 0


# --- encoder and decoder ---


def vision_task(name: str) -> EncoderTask | DecoderTask:
    data, rae = recordings(), build_rae(RAE_SHAPE, 0)
    config = EncoderTraining(batch=8)
    if name == "decoder":
        return DecoderTask(rae, data, config)
    torch.manual_seed(0)
    return EncoderTask(rae, data, train_tokenizer([n.text for n in NOTES] * 9, 300), config)


@pytest.mark.parametrize("name", ["encoder", "decoder"])
def test_encoder_and_decoder_learn(name, tmp_path):
    task = vision_task(name)
    with torch.no_grad():
        before = task.losses(999)["pixel"].item()
    fit(task, loop(60), tmp_path)
    with torch.no_grad():
        assert task.losses(999)["pixel"].item() < 0.9 * before


def test_decoder_training_leaves_the_encoder_alone(tmp_path):
    task = vision_task("decoder")
    before = {k: v.clone() for k, v in task.encoder.encoder.state_dict().items()}
    fit(task, loop(3), tmp_path)
    for name, value in task.encoder.encoder.state_dict().items():
        assert torch.equal(before[name], value)


def test_measured_latents_have_zero_mean_and_unit_variance():
    rae, data = build_rae(RAE_SHAPE, 0).eval(), recordings()
    measure_latents(rae, data.frames)
    latents = rae.encode(torch.from_numpy(data.frames))
    assert latents.mean(dim=(0, 1)).abs().max() < 1e-4
    assert (latents.std(dim=(0, 1)) - 1).abs().max() < 1e-3


def test_an_encoder_without_captions_is_refused():
    data = replace(recordings(), annotations=((), ()))
    with pytest.raises(UserError, match="no captions"):
        EncoderTask(build_rae(RAE_SHAPE, 0), data, train_tokenizer(PROSE, 300), EncoderTraining())


# --- optimisers ---


def test_every_parameter_is_trained_by_one_optimiser():
    module = core_task().module
    for muon in (True, False):
        groups = [g for o in build_optimizers(module, 1e-3, 0.1, muon) for g in o.param_groups]
        held = [p for g in groups for p in g["params"]]
        assert sorted(map(id, held)) == sorted(map(id, module.parameters()))
        assert all(p.ndim >= 2 for g in groups if g["weight_decay"] for p in g["params"])
    (matrices,) = (o for o in build_optimizers(module, 1e-3, 0.1, True) if isinstance(o, Muon))
    names = {id(p): name for name, p in module.named_parameters()}
    for p in matrices.param_groups[0]["params"]:
        assert names[id(p)].startswith("blocks.")


@pytest.mark.parametrize("shape", [(8, 8), (4, 16), (16, 4), (3, 4, 16), (3, 16, 4)])
def test_orthogonalised_matrices_have_singular_values_near_one(shape):
    torch.manual_seed(0)
    matrix = torch.randn(shape)
    values = torch.linalg.svdvals(orthogonalise(matrix).float())
    assert values.max() < 1.35
    assert values.median() > 0.6
    if len(shape) == 3:  # a stack is orthogonalised matrix by matrix
        alone = torch.stack([orthogonalise(m) for m in matrix])
        assert torch.allclose(orthogonalise(matrix).float(), alone.float(), atol=0.05)


def test_the_learning_rate_warms_up_and_falls():
    rates = [learning_rate(step, 100, 1.0, 10) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == 1.0
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert learning_rate(100, 100, 1.0, 10) == pytest.approx(0.05)


# --- the loop ---


class Straight(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(4, 4))


class Breaking(Task):
    """A task whose loss is not a number at step 3, or takes more memory than there is."""

    def __init__(self, factor: float = float("nan"), memory: int = 1) -> None:
        self.module = Straight()
        self.factor, self.memory = factor, memory

    def losses(self, step: int, batch: int | None = None) -> dict[str, torch.Tensor]:
        loss = self.module.weight.square().sum()
        if step == 3:
            loss = loss * self.factor * torch.empty(self.memory).fill_(1.0).mean()
        return {"loss": loss}

    def inputs(self, batch: int) -> dict[str, torch.Tensor]:
        return {"numbers": torch.tensor([float(batch)])}


@pytest.mark.parametrize("factor", [float("nan"), float("inf"), 1e38])
def test_a_loss_that_is_no_number_stops_with_the_step_and_keeps_the_last_good_state(
    tmp_path, factor
):
    with pytest.raises(UserError, match="not finite at step 3") as caught:
        fit(Breaking(factor), loop(6, save_every=1), tmp_path)
    assert "Lower lr (now 0.003)" in str(caught.value)
    assert step_of(tmp_path) == 3
    assert all(torch.isfinite(v).all() for v in state_of(tmp_path).values())
    (batch,) = tmp_path.glob("bad-*.safetensors")
    assert str(batch) in str(caught.value)
    assert load_file(batch)["numbers"].item() == 3
    note = json.loads(batch.with_suffix(".json").read_text())
    assert (note["step"], note["batch"], note["not_finite"]) == (3, 3, [])


def test_a_latent_that_is_no_number_never_reaches_the_weights(tmp_path):
    task = core_task()
    start = {name: value.clone() for name, value in task.module.state_dict().items()}
    task.latents[:] = float("inf")
    with pytest.raises(UserError, match="'latents' of the batch is not finite") as caught:
        fit(task, loop(6, accumulate=2), tmp_path)
    assert "not finite at step 0" in str(caught.value)
    assert [k for k, v in task.module.state_dict().items() if not torch.equal(v, start[k])] == []
    (batch,) = tmp_path.glob("bad-step-0-batch-0.safetensors")
    assert {"latents", "ids", "source"} <= load_file(batch).keys()


def test_too_little_memory_says_what_to_lower(tmp_path):
    with pytest.raises(UserError, match="Out of memory at step 3") as caught:
        fit(Breaking(memory=1 << 46), loop(6, save_every=1), tmp_path)
    for name in ("core.rows", "core.length", "core_loop.accumulate", "core_loop.checkpointing"):
        assert name in str(caught.value)
    assert step_of(tmp_path) == 3


def test_other_errors_are_not_taken_for_too_little_memory(tmp_path):
    task = core_task()
    task.latents = task.latents[:, :3]
    with pytest.raises(RuntimeError, match="shape"):
        fit(task, loop(6), tmp_path)


def test_numbers_are_logged_and_wandb_is_asked_for_by_name(tmp_path, monkeypatch):
    fit(core_task(), loop(4), tmp_path, Watch(every=2))
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    names = set(events.Tags()["scalars"])
    assert {"loss", "flow", "text", "train/lr", "train/grad_norm", "grad/blocks"} <= names
    assert {"speed/tokens_per_s", "speed/frames_per_s", "speed/tflops"} <= names
    assert "speed/mfu" not in names, "nobody knows a CPU's peak"
    assert [event.step for event in events.Scalars("loss")] == [2, 4]
    assert all(event.value > 0 for event in events.Scalars("speed/tokens_per_s"))
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match="pip install wandb"):
        open_log("wandb", tmp_path, 0, {})
    with pytest.raises(UserError, match=r"watch\.logger='tensorbord' is unknown"):
        Watch(logger="tensorbord")


@pytest.mark.parametrize("muon", [True, False])
@pytest.mark.parametrize("make", [core_task, lambda: vision_task("encoder")])
def test_a_stopped_run_goes_on_bit_for_bit(tmp_path, make, muon):
    fit(make(), loop(6, muon=muon), tmp_path / "whole")
    for stop in (2, 5, 0):
        resumed = fit(make(), loop(6, muon=muon, stop_at=stop), tmp_path / "parts")
    assert_equal_states(tmp_path / "whole", tmp_path / "parts")
    average = state_of(tmp_path / "whole")
    for name, value in resumed.state_dict().items():
        assert torch.equal(value, average[f"average/{name}"])


@pytest.mark.parametrize(
    "damage", ["empty", "truncated", "other shape", "parts missing", "no step"]
)
def test_a_damaged_state_is_refused_by_name(tmp_path, damage):
    fit(vision_task("decoder"), loop(2), tmp_path)
    path = tmp_path / "state.safetensors"
    content, tensors = path.read_bytes(), load_file(path)
    if damage in ("empty", "truncated"):
        path.write_bytes(content[: 0 if damage == "empty" else len(content) // 2])
    elif damage == "other shape":
        longer = {k: v.repeat(2) if v.ndim == 1 else v for k, v in tensors.items()}
        save_file(longer, path, metadata={"step": "2"})
    elif damage == "parts missing":
        kept = {k: v for k, v in tensors.items() if k.startswith("module/")}
        save_file(kept, path, metadata={"step": "2"})
    else:
        save_file(tensors, path)
    with pytest.raises(UserError, match=r"state\.safetensors' cannot be resumed") as caught:
        fit(vision_task("decoder"), loop(4), tmp_path)
    assert "\n" not in str(caught.value)


def test_a_state_of_another_optimiser_is_refused(tmp_path):
    fit(vision_task("decoder"), loop(2, muon=True), tmp_path)
    with pytest.raises(UserError, match="cannot be resumed"):
        fit(vision_task("decoder"), loop(4, muon=False), tmp_path)


# --- the command, with real stores and processes ---


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Path:
    return TOY["write_store"](tmp_path_factory.mktemp("store") / "toy.zarr")


def settings(store: Path, out: Path, *more: str) -> TrainConfig:
    return compose("train", [f"store={store}", f"out={out}", *TINY, *more], TrainConfig)


def test_all_stages_make_a_checkpoint_that_loads(store, tmp_path, monkeypatch):
    monkeypatch.setattr("worldmodel.train.run.python_prose", lambda: PROSE)
    assert main(settings(store, tmp_path, "core_loop.steps=4", "checkpoint=tiny")) == 0
    loaded = load(str(tmp_path / "checkpoint"))
    assert loaded.spec == SPEC
    assert loaded.start_frames.shape == (2, 4, 16, 16, 3)
    assert loaded.start_keys.shape == (2, 3)
    assert loaded.details["data"] == {"world": "toy", "episodes": 3, "frames": 39}
    # What is exported is what was trained, in half precision.
    trained = load_file(tmp_path / "core.safetensors")
    for name, value in loaded.core.state_dict().items():
        assert torch.equal(value, trained[name].half().float()), name
    for stage, part in (("encoder", "encoder."), ("decoder", "decoder.")):
        trained = load_file(tmp_path / f"{stage}.safetensors")
        for name, value in loaded.encoder.state_dict().items():
            if name.startswith(part):
                assert torch.equal(value, trained[name].half().float()), name
    # A finished stage that is run again changes nothing.
    before = (tmp_path / "core.safetensors").read_bytes()
    assert main(settings(store, tmp_path, "core_loop.steps=4", "stage=core")) == 0
    assert (tmp_path / "core.safetensors").read_bytes() == before


@pytest.mark.parametrize(
    ("stage", "forerunner"), [("decoder", "encoder"), ("core", "encoder"), ("export", "decoder")]
)
def test_a_stage_without_its_forerunner_names_it(store, tmp_path, monkeypatch, stage, forerunner):
    monkeypatch.setattr("worldmodel.train.run.python_prose", lambda: PROSE)
    with pytest.raises(UserError, match=f"run stage={forerunner} first"):
        main(settings(store, tmp_path, f"stage={stage}"))


def test_a_result_of_another_shape_is_refused(store, tmp_path, monkeypatch):
    monkeypatch.setattr("worldmodel.train.run.python_prose", lambda: PROSE)
    other = build_rae(replace(RAE_SHAPE, channels=8), 0)
    save_file(other.state_dict(), tmp_path / "encoder.safetensors")
    with pytest.raises(UserError, match="does not fit this configuration") as caught:
        main(settings(store, tmp_path, "stage=decoder"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "wrong", ["model.heads=5", "model.experts=0", "model.window=2", "model.unet=-1"]
)
def test_an_impossible_core_is_refused_before_anything_is_done(store, tmp_path, wrong):
    with pytest.raises(UserError, match=wrong.replace(".", r"\.")):
        main(settings(store, tmp_path / "run", wrong))
    assert not (tmp_path / "run").exists()


def test_recordings_are_the_store(store):
    data = load_recordings(str(store), "train")
    assert data.num_episodes == 3
    assert data.starts.tolist() == [0, 13, 26, 39]
    for e in range(3):
        want = episode(e)
        part = slice(int(data.starts[e]), int(data.starts[e + 1]))
        assert np.array_equal(data.frames[part], want.frames)
        assert np.array_equal(data.keys[part][:-1], want.keys)
        assert np.array_equal(data.actions[part][:-1], want.actions)
        assert data.annotations[e] == NOTES
    assert load_recordings(str(store), "train", limit=2).num_episodes == 2
    with pytest.raises(UserError, match="no episodes of the split 'test'"):
        load_recordings(str(store), "test")


def start(store: Path, out: Path) -> subprocess.Popen:
    words = ["train", "stage=core", f"store={store}", f"out={out}", *TINY]
    return subprocess.Popen(
        [sys.executable, "-m", "worldmodel.cli", *words],
        cwd=out,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen) -> None:
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors


def test_a_run_that_is_killed_and_run_again_equals_an_unbroken_one(store, tmp_path):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    tokenizer = train_tokenizer([*PROSE, *(n.text for n in NOTES)] * 9, 300)
    encoder = build_rae(RAE_SHAPE, 0).state_dict()
    for folder in (whole, broken):
        folder.mkdir()
        (folder / "tokenizer.json").write_text(tokenizer.to_json())
        save_file(encoder, folder / "encoder.safetensors")
    finish(start(store, whole))

    state = broken / "core" / "state.safetensors"
    process = start(store, broken)
    while not state.exists():
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    assert process.wait(30) == -signal.SIGKILL
    assert 1 <= step_of(broken / "core") < 14, "it was killed on the way"
    assert not (broken / "core.safetensors").exists()

    finish(start(store, broken))
    assert_equal_states(whole / "core", broken / "core")
    assert state.read_bytes() == (whole / "core" / "state.safetensors").read_bytes()
    result = "core.safetensors"
    assert (broken / result).read_bytes() == (whole / result).read_bytes()
