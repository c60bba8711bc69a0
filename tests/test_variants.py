"""Every variant of the core: the cache equals the full forward, and training it works."""

import runpy
from pathlib import Path

import numpy as np
import pytest
import torch

from worldmodel.actions import ActionRow, ActionTable
from worldmodel.errors import UserError
from worldmodel.flops import cost, training_flops_per_token
from worldmodel.moe import FeedForward, routers
from worldmodel.sequence import Document, Frame, Text, attention_mask, block_mask, pack
from worldmodel.text import train_tokenizer
from worldmodel.train.core import CoreTask, CoreTraining, run
from worldmodel.train.data import Recordings
from worldmodel.train.samples import Mixture, Sampler
from worldmodel.transformer import Core, CoreConfig
from worldmodel.world import WorldSpec

VARIANTS = {
    "dense": {"ffn": "dense"},
    "modality": {"ffn": "modality"},
    "moe": {},
    "no shared expert": {"shared": "none"},
    "one shared expert": {"shared": "global"},
    "fine experts": {"granularity": 8, "experts": 20},
    "coarse experts": {"granularity": 1, "shared": "none", "experts": 4},
    "velocity": {"prediction": "v", "motion": -1},
    "no motion": {"motion": -1},
    "flat positions": {"positions": "1d"},
    "geometric positions": {"positions": "2d"},
    "no QK norm": {"qk_norm": False},
    "convolutions": {"motion": -1, "unet": 2},
    "convolutions that move": {"motion": 1, "unet": 1, "unet_width": 24},
    "every head its own keys": {"kv_heads": 2},
    "the paper's": {
        "motion": -1,
        "merge": 1,
        "positions": "1d",
        "granularity": 8,
        "experts": 14,
    },
}
FILM: Document = [
    Text((10, 11, 12)),
    Frame(0, target=False),
    Text((20, 21), "action"),
    Frame(1),
    Frame(2),
    Text((22, 23), "action"),
    Frame(3),
]


def shape(**changes) -> CoreConfig:
    base = {
        "vocab": 320,
        "latent_grid": (4, 4),
        "latent_channels": 3,
        "merge": 2,
        "width": 32,
        "depth": 2,
        "heads": 2,
        "kv_heads": 1,
        "hidden": 64,
        "granularity": 4,
        "experts": 6,
        "window": 2,
    }
    return CoreConfig(**(base | changes))


def make(**changes) -> Core:
    torch.manual_seed(0)
    core = Core(shape(**changes))
    paint = core.paint if core.unet is None else core.unet.paint
    for head in (core.say, paint):  # they start at zero; a test needs them to speak
        assert head is not None
        torch.nn.init.normal_(head.weight, std=0.1)
    return core.eval()


def moving_block(length: int = 40) -> torch.Tensor:
    """Latents [length, 16, 3] of one bright cell that goes on by a cell every frame."""
    latents = torch.full((length, 16, 3), -0.3)
    latents[torch.arange(length), torch.arange(length) % 16] = 2.0
    return latents


def task_of(core: Core, **changes) -> CoreTask:
    row = ActionRow("forward", "w", "walk", dx=0.5, phrases=("go on",))
    spec = WorldSpec("toy", ActionTable((row,)), 8, 8, 10.0)
    latents = moving_block()
    data = Recordings(
        spec,
        np.zeros((len(latents), 8, 8, 3), np.uint8),
        np.ones(len(latents), np.uint16),
        np.full((len(latents), 3), 0.5, np.float32),
        np.array([0, len(latents)]),
        ((),),
    )
    tokenizer = train_tokenizer(["action: w", "plain words"] * 5, 320)
    sampler = Sampler(data, tokenizer, Mixture(clip=5), ["plain words"])
    knobs = {"rows": 3, "length": 128, "shortcut_from": 0, "own_past": 0.0} | changes
    return CoreTask(core, sampler, latents, CoreTraining(**knobs))


def train(task: CoreTask, steps: int) -> list[float]:
    optimizer = torch.optim.AdamW(task.module.parameters(), lr=3e-3)
    task.module.train()
    found = []
    for step in range(steps):
        losses = task.losses(step)
        losses["loss"].backward()
        optimizer.step()
        optimizer.zero_grad()
        task.after_step(step)
        found.append(losses["loss"].item())
    return found


@torch.no_grad()
def hidden_of(core: Core, latents: torch.Tensor, mask=None, **layout) -> tuple:
    batch = pack([FILM], [0], core.config.grid, core.config.window, 144, **layout)
    mask = attention_mask(batch) if mask is None else mask(batch)
    shown = core.merge(latents)[batch.source]
    level = torch.where(batch.is_target, 0.4, 0.9)
    stride = torch.full((len(level),), core.config.strides - 1)
    return run(core, batch, mask, shown, level, stride)[0], batch


@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS)
def test_the_future_does_not_change_the_past(changes):
    core = make(**changes)
    latents = torch.randn(4, 16, 3, generator=torch.Generator().manual_seed(1))
    before, batch = hidden_of(core, latents)
    latents[[2, 3]] = latents[[3, 2]]
    after, _ = hidden_of(core, latents)
    moved = (before - after).abs().amax(-1)[0] > 1e-5
    third = int(batch.order[0][batch.step[0] == 2].min())
    real = batch.doc[0] >= 0
    assert not moved[real & (batch.order[0] <= third)].any()
    assert moved[real & (batch.order[0] > third)].all()


@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS)
def test_every_variant_learns(changes):
    losses = train(task_of(make(**changes)), 40)
    assert np.mean(losses[-5:]) < 0.6 * np.mean(losses[:3])


@pytest.mark.parametrize("forcing", ["diffusion", "sequence"])
@pytest.mark.parametrize("prediction", ["x", "v"])
def test_frames_are_learned_in_place_as_well(forcing, prediction):
    core = make(prediction=prediction, motion=-1)
    task = task_of(core, forcing=forcing)
    batch, _ = task.batch(np.random.default_rng(0))
    assert not batch.target.any()
    assert batch.is_target.any()
    assert len(batch.source.unique()) <= len(batch.source)
    losses = train(task, 40)
    assert np.mean(losses[-5:]) < 0.7 * np.mean(losses[:3])


def test_in_place_every_frame_has_a_level_of_its_own_or_its_document_has_one():
    generator = torch.Generator().manual_seed(0)
    found = {}
    for forcing in ("diffusion", "sequence"):
        task = task_of(make(), forcing=forcing, shortcut=0.0)
        batch, _ = task.batch(np.random.default_rng(0))
        level, _ = task._levels(batch, 0, generator)
        docs = batch.doc.flatten()[batch.first_places()]
        found[forcing] = [level[(docs == d) & batch.is_target].unique() for d in docs.unique()]
    assert max(len(levels) for levels in found["sequence"]) == 1
    assert max(len(levels) for levels in found["diffusion"]) == 4


def test_in_place_later_frames_see_earlier_ones_as_they_are_noised():
    core = make()
    latents = torch.randn(4, 16, 3, generator=torch.Generator().manual_seed(1))
    before, batch = hidden_of(core, latents, in_place=True)
    latents[1] += 1.0
    after, _ = hidden_of(core, latents, in_place=True)
    moved = (before - after).abs().amax(-1)[0] > 1e-5
    last = (batch.step[0] == 3) & batch.vision[0]
    assert int(batch.vision.sum()) == 4 * core.config.frame_tokens
    assert moved[last].all()


@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize("kv_heads", [1, 2])
def test_flex_attention_equals_the_dense_mask(in_place, kv_heads):
    core = make(kv_heads=kv_heads)
    latents = torch.randn(4, 16, 3)
    dense, batch = hidden_of(core, latents, in_place=in_place)
    blocks, _ = hidden_of(core, latents, mask=block_mask, in_place=in_place)
    real = batch.doc >= 0
    assert torch.allclose(dense[real], blocks[real], atol=1e-5)


def test_flat_places_count_every_token():
    batch = pack([FILM], [0], (2, 2), 2, 80)
    stream = (batch.doc[0] >= 0) & ~batch.target[0]
    assert batch.position[0, stream, 4].tolist() == list(range(int(stream.sum())))
    copies = batch.visual.view(-1, 4)
    targets = copies[batch.is_target]
    contexts = copies[batch.context_of_targets()]
    places = batch.position[0, :, 4]
    assert torch.equal(places[targets], places[contexts])


def test_velocity_and_clean_predictions_are_the_same_flow():
    core = make(prediction="v", motion=-1)
    z, t = torch.randn(2, 4, 12), torch.tensor([0.25, 0.75])
    hidden = torch.randn(2, 4, 32)
    x = core.draw(hidden, torch.zeros_like(z), z, t)
    velocity = (x - z) / (1 - t).view(-1, 1, 1)
    assert torch.allclose(velocity, core.paint(hidden), atol=1e-5)


@pytest.mark.parametrize(("shared", "fixed"), [("none", 0), ("global", 1), ("modality", 1)])
def test_a_token_runs_granularity_experts_in_all(shared, fixed):
    core = make(shared=shared)
    layer = core.blocks[0].feed_forward
    assert isinstance(layer, FeedForward)
    chosen, weights = layer._choose(torch.randn(9, 32), torch.tensor([0, 1, 1] * 3))
    assert chosen.shape == weights.shape == (9, 4)
    own = chosen[:, 4 - fixed :]
    assert (chosen[:, : 4 - fixed] < 6).all()
    assert own.unique().tolist() == {"none": [], "global": [6], "modality": [6, 7]}[shared]


def test_the_balance_loss_evens_the_routers_without_a_bias():
    uneven = {}
    for weight in (0.0, 1.0):
        core = make()
        with torch.no_grad():
            for router in routers(core):
                router.weight[0] += 0.5  # a favourite
        task = task_of(core, balance=0.0, balance_loss=weight)
        train(task, 40)
        task.losses(0)
        uneven[weight] = np.mean([r.unevenness.item() for r in routers(core)])
    assert uneven[1.0] < 1.05
    assert uneven[1.0] < uneven[0.0]


def test_in_training_a_bias_gives_the_experts_even_loads():
    busiest = {}
    for balance in (0.0, 0.01):
        task = task_of(make(granularity=2, experts=8), balance=balance)
        with torch.no_grad():
            for router in routers(task.module):
                router.weight[0] += 0.3  # a favourite
        train(task, 40)
        loads = torch.zeros(2, 8)
        for step in range(40, 46):
            task.losses(step)
            loads += torch.stack([router.load.sum(0) for router in routers(task.module)])
            task.after_step(step)
        busiest[balance] = (loads.amax(1) / loads.mean(1)).max().item()
    assert busiest[0.0] > 3
    assert busiest[0.01] < 1.8


sizes = runpy.run_path(str(Path(__file__).parents[1] / "docs" / "make_sizes.py"))


@pytest.mark.parametrize(
    ("changes", "active", "total"),
    [
        ({"ffn": "dense"}, 1.498, 1.498),
        ({"ffn": "modality"}, 1.498, 2.304),
        ({"experts": 30}, 1.498, 2.30),
        ({}, 1.498, 13.58),
        ({"experts": 256, "shared": "none"}, 1.498, 13.58),
        ({"experts": 255, "shared": "global"}, 1.498, 13.58),
        ({"experts": 1006}, 1.498, 51.43),
    ],
)
def test_the_papers_sizes(changes, active, total):
    """Billions of parameters as in arXiv 2603.03276; ours has routers and more beside."""
    found = cost(sizes["shape_of"]("paper", **changes))
    assert found.total / 1e9 == pytest.approx(total, rel=0.01)
    assert found.active / 1e9 == pytest.approx(active, rel=0.03)


def test_the_page_has_the_sizes():
    page = sizes["PAGE"].read_text(encoding="utf-8")
    assert sizes["with_table"](page) == page


def test_a_token_costs_six_flops_a_parameter():
    config = sizes["shape_of"]("paper", ffn="dense")
    found = cost(config)
    body = found.active - config.vocab * config.width  # looking a word up is free
    assert training_flops_per_token(config, keys=0, vision=0) == pytest.approx(6 * body, rel=0.01)
    seen = training_flops_per_token(config, keys=1000) - training_flops_per_token(config, keys=0)
    assert seen == 3 * 1000 * 4 * 16 * 2048


def test_the_cost_is_that_of_the_real_core():
    core = make()
    found = cost(core.config)
    assert (found.active, found.total) == core.parameters_by_use()


def test_a_core_made_without_memory_is_filled_like_any_other():
    torch.manual_seed(3)
    want = Core(shape())
    with torch.device("meta"):
        core = Core(shape())
    core.to_empty(device="cpu")
    for tensor in (*core.parameters(), *core.buffers()):
        tensor.data.fill_(7)
    torch.manual_seed(3)
    core.init_weights()
    found = dict(core.named_parameters()) | dict(core.named_buffers())
    kept = dict(want.named_parameters()) | dict(want.named_buffers())
    assert [name for name in kept if (found[name] == 7).all()] == []
    for name in kept:
        spread = [kind[name].detach().float().std().item() for kind in (found, kept)]
        assert spread[0] == pytest.approx(spread[1], rel=0.2), name
    assert torch.equal(core.axis, want.axis)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"heads": 3}, ["heads=3", "width=32"]),
        ({"heads": 2, "kv_heads": 3}, ["kv_heads=3", "heads=2"]),
        ({"heads": 16, "kv_heads": 1}, ["width=32", "heads=16"]),
        ({"granularity": 8, "experts": 5}, ["granularity=8", "experts=5"]),
        ({"granularity": 5}, ["granularity=5", "hidden=64"]),
        ({"granularity": 1}, ["granularity=1", "experts=6"]),
        ({"merge": 3}, ["merge=3", "4x4"]),
        ({"prediction": "v"}, ["prediction=v", "motion"]),
        ({"shared": "two"}, ["shared='two'", "modality"]),
        ({"positions": "3d"}, ["positions='3d'", "sharp"]),
        ({"depth": 0}, ["depth=0"]),
    ],
)
def test_an_impossible_shape_is_refused_with_both_values(changes, words):
    with pytest.raises(UserError) as error:
        shape(**changes)
    for word in words:
        assert word in str(error.value)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"forcing": "diffusion", "own_past": 0.3}, ["forcing=diffusion", "own_past=0"]),
        ({"forcing": "student"}, ["forcing='student'", "teacher"]),
        ({"weighting": "fast"}, ["weighting='fast'", "velocity"]),
    ],
)
def test_impossible_training_is_refused(changes, words):
    with pytest.raises(UserError) as error:
        CoreTraining(**changes)
    for word in words:
        assert word in str(error.value)
