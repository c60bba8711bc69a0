"""The core: who can know what, what a batch may not change, and what parameters cost."""

import pytest
import torch

from worldmodel.rotary import rotary_table, rotate, turns
from worldmodel.sequence import Document, Frame, Text, attention_mask, pack
from worldmodel.text import EOS
from worldmodel.train.core import run
from worldmodel.transformer import Core, CoreConfig, RMSNorm, _attend

FFNS = ("dense", "modality", "moe")
FILM: Document = [
    Text((10, 11, 12)),
    Frame(0, target=False),
    Text((20, 21), "action"),
    Frame(1),
    Frame(2),
    Text((22, 23), "action"),
    Frame(3),
]
QUESTION: Document = [Frame(4, target=False), Text((30, 31, 32, EOS))]


def make(ffn: str = "moe", **changes) -> Core:
    torch.manual_seed(0)
    shape = {
        "vocab": 50,
        "latent_grid": (4, 4),
        "latent_channels": 3,
        "width": 32,
        "depth": 2,
        "heads": 2,
        "kv_heads": 1,
        "hidden": 32,
        "granularity": 4,
        "experts": 6,
        "window": 2,
    }
    core = Core(CoreConfig(ffn=ffn, **({"merge": 2} | shape | changes)))
    for head in (core.say, core.paint):  # they start at zero; a test needs them to speak
        torch.nn.init.normal_(head.weight, std=0.1)
    return core.eval()


@torch.no_grad()
def forward(core: Core, documents, latents: torch.Tensor, length: int = 80, noise=None, shift=0):
    """Hidden states [R, L, D] and the batch; copies show `latents`, targets plus `noise`."""
    batch = pack(documents, [0] * len(documents), core.config.grid, core.config.window, length)
    batch.position[..., 0] += shift
    shown = latents[batch.source].clone()
    if noise is not None:
        shown[batch.is_target] += noise
    level = torch.where(batch.is_target, 0.4, 0.9)
    stride = torch.full((len(level),), core.config.strides - 1)
    return run(core, batch, attention_mask(batch), shown, level, stride)[0], batch


def draw(core: Core, hidden: torch.Tensor, before: torch.Tensor) -> torch.Tensor:
    return core.draw(hidden, before, torch.zeros_like(before), torch.zeros(len(before)))


def latents_of(core: Core, count: int = 6) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    shape = (count, core.config.frame_tokens, core.config.channels)
    return torch.randn(shape, generator=generator)


@pytest.mark.parametrize(("grid", "merge"), [((4, 4), 2), ((4, 6), 2), ((4, 4), 1), ((8, 4), 4)])
def test_split_undoes_merge(grid, merge):
    core = make(latent_grid=grid, merge=merge)
    latents = torch.randn(3, grid[0] * grid[1], 3)
    tokens = core.merge(latents)
    assert tokens.shape == (3, core.config.frame_tokens, core.config.channels)
    assert torch.equal(core.split(tokens), latents)


def test_merge_joins_neighbours():
    core = make(latent_grid=(4, 6))
    number = torch.arange(24.0).view(1, 24, 1).expand(1, 24, 3)
    tokens = core.merge(number)[0]  # 2 x 3 tokens of 2 x 2 cells
    assert tokens[0].unique().tolist() == [0, 1, 6, 7]
    assert tokens[1].unique().tolist() == [2, 3, 8, 9]
    assert tokens[3].unique().tolist() == [12, 13, 18, 19]


@pytest.mark.parametrize("ffn", FFNS)
def test_parameters_by_use_add_up(ffn):
    core = make(ffn)
    active, total = core.parameters_by_use()
    assert total == sum(p.numel() for p in core.parameters())
    # What one text token runs, found by its gradient.
    block = core.blocks[0].feed_forward
    block(torch.randn(1, 32), torch.zeros(1, dtype=torch.int64)).sum().backward()
    idle = 0
    for stack in (block.w_in, block.w_out):
        used = stack.grad.abs().sum(dim=(1, 2)) > 0
        idle += int((~used).sum()) * stack[0].numel()
    assert total - active == idle * core.config.depth


def test_the_three_kinds_have_equal_active_parameters():
    dense, modality, moe = (make(ffn).parameters_by_use() for ffn in FFNS)
    assert dense[0] == dense[1] == modality[0]
    router = 2 * 6 * 32  # depth, experts, width
    assert moe[0] - router == dense[0]
    assert dense[1] < modality[1] < moe[1]


def test_an_unknown_kind_is_refused():
    with pytest.raises(ValueError, match=r"model\.ffn='mixture' is unknown"):
        make("mixture")


@pytest.mark.parametrize("ffn", FFNS)
def test_the_future_does_not_change_the_past(ffn):
    core = make(ffn)
    latents = latents_of(core)
    before, batch = forward(core, [FILM], latents)
    changed = latents.clone()
    changed[[2, 3]] = latents[[3, 2]]
    after, _ = forward(core, [FILM], changed)
    moved = (before - after).abs().amax(dim=-1)[0] > 1e-5
    third = int(batch.order[0][batch.step[0] == 2].min())  # where frame 2 begins
    real = batch.doc[0] >= 0
    assert not moved[real & (batch.order[0] <= third)].any()
    assert moved[real & (batch.order[0] > third)].all()


def test_words_do_not_know_the_words_after_them():
    core = make()
    latents = latents_of(core)
    before, _ = forward(core, [QUESTION], latents)
    after, batch = forward(core, [[QUESTION[0], Text((30, 31, 40, EOS))]], latents)
    moved = (before - after).abs().amax(dim=-1)[0] > 1e-5
    changed = int((batch.ids[0] == 40).nonzero())
    assert moved[changed : changed + 2].all()
    assert not moved[:changed].any()


def test_a_target_changes_itself_alone():
    core = make()
    latents = latents_of(core)
    before, batch = forward(core, [FILM], latents)
    noise = torch.zeros(3, core.config.frame_tokens, core.config.channels)
    noise[1] = 1.0
    after, _ = forward(core, [FILM], latents, noise=noise)
    moved = (before - after).abs().amax(dim=-1).flatten() > 1e-5
    own = batch.visual.view(-1, core.config.frame_tokens)[batch.is_target][1]
    assert set(moved.nonzero().squeeze(1).tolist()) == set(own.tolist())


@pytest.mark.parametrize("ffn", FFNS)
def test_company_in_the_batch_changes_nothing(ffn):
    core = make(ffn)
    latents = latents_of(core)
    alone, of_one = forward(core, [FILM], latents)
    together, of_all = forward(core, [QUESTION, FILM, QUESTION, FILM], latents)
    want = alone[of_one.doc == 0]
    for number in (1, 3):
        assert torch.allclose(together[of_all.doc == number], want, atol=1e-5)
    longer, of_longer = forward(core, [FILM], latents, length=150)
    assert torch.allclose(longer[of_longer.doc == 0], want, atol=1e-5)


def test_a_document_means_the_same_whenever_it_begins():
    """Rotary positions are relative in time, so a rollout may go on for ever."""
    core = make()
    latents = latents_of(core)
    now, batch = forward(core, [FILM], latents)
    later, _ = forward(core, [FILM], latents, shift=300)
    real = batch.doc >= 0
    assert torch.allclose(now[real], later[real], atol=1e-3)


def test_places_and_levels_and_strides_matter():
    core = make()
    x = latents_of(core)[:1]
    level, stride = torch.tensor([0.5]), torch.tensor([3])
    last = latents_of(core)[1:2]
    base = core.embed_frames(x, level, stride, last)[0]
    for other in (
        core.embed_frames(x, level + 0.1, stride, last)[0],
        core.embed_frames(x, level, stride - 1, last)[0],
        core.embed_frames(x, level, stride, x)[0],
        core.embed_frames(x.flip(1), level, stride, last.flip(1))[0].flip(1),
    ):
        assert not torch.allclose(base, other, atol=1e-3)


def test_a_new_core_draws_nothing_and_says_everything_alike():
    config = CoreConfig(vocab=50, motion=-1, width=32, depth=1, heads=2, kv_heads=1, hidden=32)
    core = Core(config)
    hidden = torch.randn(4, 16, 32)
    before, noised = torch.randn(2, 4, 16, config.channels)
    assert core.draw(hidden, before, noised, torch.rand(4)).abs().max() == 0
    assert core.say(hidden).abs().max() == 0


@pytest.mark.parametrize("merge", [1, 2])
def test_a_frame_can_be_moved_by_two_latents_at_most(merge):
    config = CoreConfig(vocab=50, merge=merge, width=32, depth=1, heads=2, kv_heads=1, hidden=32)
    core = Core(config)
    before = torch.randn(1, 64, 32)
    hidden = torch.zeros(1, config.frame_tokens, 32)
    for down, right, there in ((0, 0, True), (2, -1, True), (3, 0, False)):
        moved = before.view(1, 8, 8, 32).roll((down, right), (1, 2))
        bias = core.motion.gate.bias.detach().view(-1, 26)
        bias.zero_()
        bias[:, min(24, (2 - down) * 5 + 2 - right if there else 24)] = 50.0
        drawn = core.split(draw(core, hidden, core.merge(before))).view(1, 8, 8, 32)
        inner = (slice(None), slice(3, 5), slice(3, 5))
        assert torch.allclose(drawn[inner], moved[inner], atol=1e-4) == there


def test_rotation_keeps_lengths_and_depends_on_differences():
    axis, frequencies = rotary_table(16)
    assert len(axis) == len(frequencies) == 8
    assert axis.bincount().tolist() == [2, 2, 2, 2]
    q, k = torch.randn(1, 1, 1, 16), torch.randn(1, 1, 1, 16)

    def product(a: tuple[int, ...], b: tuple[int, ...]) -> float:
        turned = []
        for x, place in ((q, a), (k, b)):
            angles = torch.tensor(place)[axis].float() * frequencies
            x = rotate(x, turns(angles))
            turned.append(x)
        assert turned[0].norm().item() == pytest.approx(q.norm().item(), rel=1e-5)
        return (turned[0] * turned[1]).sum().item()

    here = product((5, 2, 1, 2), (3, 1, 0, 1))
    assert here == pytest.approx(product((12, 4, 3, 3), (10, 3, 2, 2)), abs=1e-4)
    assert here != pytest.approx(product((5, 2, 1, 2), (3, 1, 1, 0)), abs=1e-3)


def test_a_head_can_look_at_exactly_one_cell():
    """With equal queries and keys, the peak over an 8x8 grid is at no offset, and it is sharp."""
    axis, frequencies = rotary_table(64)
    x = torch.ones(1, 1, 1, 64)
    cells = torch.cartesian_prod(
        torch.zeros(1), torch.zeros(1), torch.arange(8.0), torch.arange(8.0)
    )
    angles = cells[:, axis] * frequencies
    turned = rotate(x.expand(64, 1, 1, 64), turns(angles[:, None, None]))
    scores = turned.flatten(1) @ turned.flatten(1).T
    gap = scores.diagonal() - (scores - 1e9 * torch.eye(64)).max(1).values
    assert gap.min() > 0.2 * scores.max()


def test_the_norm_is_that_of_the_root_mean_square():
    x = torch.randn(3, 8)
    want = x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt()
    assert torch.allclose(RMSNorm(8)(x), want, atol=1e-6)


def test_attention_in_plain_products_equals_the_fused_one():
    """What training in bfloat16 takes on a CPU, with two queries for every key."""
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, heads, 9, 8, generator=generator) for heads in (4, 2, 2))
    mask = (torch.rand(2, 1, 9, 9, generator=generator) < 0.5) | torch.eye(9, dtype=torch.bool)
    fused = torch.nn.functional.scaled_dot_product_attention
    want = fused(q, k, v, attn_mask=mask, enable_gqa=True)
    assert torch.allclose(_attend(q, k, v, mask), want, atol=1e-6)
    half = _attend(*(x.bfloat16() for x in (q, k, v)), mask)
    assert half.dtype == torch.bfloat16
    assert (half.float() - want).norm() < 0.02 * want.norm()
