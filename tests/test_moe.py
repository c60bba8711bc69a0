"""The mixture of experts, against a plain loop over tokens and experts."""

import pytest
import torch
import torch.nn.functional as F

from worldmodel.moe import (
    TEXT,
    VISION,
    FeedForward,
    Router,
    _grouped_products,
    _sliced_products,
)

WIDTH, HIDDEN = 16, 8


def make(kind: str) -> FeedForward:
    torch.manual_seed(0)
    experts, top_k, shared = {"dense": (0, 0, 1), "modality": (0, 0, 2), "moe": (6, 3, 2)}[kind]
    return FeedForward(WIDTH, HIDDEN, experts, top_k, shared)


def tokens(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(count)
    x = torch.randn(count, WIDTH, generator=generator)
    return x, torch.randint(2, (count,), generator=generator)


def expert(layer: FeedForward, index: int, x: torch.Tensor) -> torch.Tensor:
    gate, value = (layer.w_in[index] @ x).chunk(2)
    return layer.w_out[index] @ (F.silu(gate) * value)


def plain(layer: FeedForward, x: torch.Tensor, modality: torch.Tensor) -> torch.Tensor:
    """One token after the other, one expert after the other."""
    rows = []
    for token, kind in zip(x, modality.tolist(), strict=True):
        own = layer.num_experts + (kind if layer.shared == 2 else 0)
        total = expert(layer, own, token)
        if layer.router is not None:
            scores = (layer.router.weight @ token).sigmoid()
            best = (scores + layer.router.bias).argsort(descending=True)[: layer.router.top_k]
            for i in best.tolist():
                weight = scores[i] / scores[best].sum() * layer.router.top_k
                total = total + weight * expert(layer, i, token)
            total = total / (layer.router.top_k + 1) ** 0.5
        rows.append(total)
    return torch.stack(rows)


@pytest.mark.parametrize("kind", ["dense", "modality", "moe"])
@pytest.mark.parametrize("count", [1, 40, 400])
def test_both_paths_equal_the_plain_loop(kind, count):
    layer = make(kind)
    if layer.router is not None:
        layer.router.bias.copy_(torch.linspace(-0.3, 0.3, 6))
    x, modality = tokens(count)
    with torch.no_grad():
        want = plain(layer, x, modality)
        assert (layer(x, modality) - want).abs().max() < 1e-5  # few tokens: all experts
    grouped = layer(x, modality)
    assert grouped.requires_grad
    assert (grouped - want).abs().max() < 1e-5


@pytest.mark.parametrize("kind", ["dense", "modality", "moe"])
def test_the_gradient_is_that_of_the_plain_loop(kind):
    x, modality = tokens(50)
    weight = torch.randn(50, WIDTH)
    grads = []
    for run in (lambda layer, x: layer(x, modality), lambda layer, x: plain(layer, x, modality)):
        layer, inputs = make(kind), x.clone().requires_grad_()
        (run(layer, inputs) * weight).sum().backward()
        grads.append([inputs.grad, *(p.grad for p in layer.parameters())])
    for ours, theirs in zip(*grads, strict=True):
        assert theirs.abs().max() > 0
        assert torch.allclose(ours, theirs, atol=1e-4, rtol=1e-4)


def test_no_token_is_dropped_when_all_want_the_same_experts():
    layer = make("moe")
    x = tokens(1)[0].expand(300, -1).contiguous()
    modality = torch.zeros(300, dtype=torch.int64)
    out = layer(x, modality)
    assert torch.allclose(out, out[:1].expand_as(out), atol=1e-6)
    assert torch.allclose(out[0], plain(layer, x[:1], modality[:1])[0], atol=1e-5)
    assert sorted(layer.router.load.sum(0).tolist()) == [0, 0, 0, 300, 300, 300]


def test_every_token_gets_different_experts_with_weights_that_sum_to_one():
    router = make("moe").router
    chosen, weights = router(*tokens(200))
    assert all(len(set(row)) == 3 for row in chosen.tolist())
    assert torch.allclose(weights.sum(1), torch.ones(200), atol=1e-5)
    assert (weights > 0).all()


def test_a_bias_changes_the_choice_and_not_the_weights():
    router = make("moe").router
    x, modality = tokens(100)
    scores = F.linear(x, router.weight).sigmoid()
    before, _ = router(x, modality)
    router.bias[2] = 10.0
    after, weights = router(x, modality)
    assert not (before == 2).any(dim=1).all()
    assert (after == 2).any(dim=1).all()
    picked = scores.gather(1, after)
    assert torch.allclose(weights, picked / picked.sum(1, keepdim=True), atol=1e-6)


def test_loads_are_counted_by_modality_and_cleared():
    router = make("moe").router
    x, modality = tokens(64)
    chosen, _ = router(x, modality)
    load = router.balance(0.01)
    for kind in (TEXT, VISION):
        want = torch.bincount(chosen[modality == kind].flatten(), minlength=6)
        assert load[kind].tolist() == want.tolist()
    assert router.load.sum() == 0
    assert "load" not in router.state_dict()
    assert "bias" in router.state_dict()


def test_balance_evens_the_loads():
    torch.manual_seed(1)
    router = Router(WIDTH, 8, 2)
    favourite = torch.randn(WIDTH)  # all tokens are alike, so that a few experts win them all

    def busiest() -> float:
        x = favourite + 0.5 * torch.randn(512, WIDTH)
        with torch.no_grad():
            router(x, torch.randint(2, (512,)))
        load = router.balance(0.01).sum(0)
        return (load.max() / load.mean()).item()

    start = busiest()
    for _ in range(200):
        busiest()
    end = sum(busiest() for _ in range(10)) / 10
    assert start > 2.5
    assert end < 1.35
    assert abs(router.bias.sum().item()) < 1e-3


def test_bfloat16_is_near_float32():
    layer = make("moe")
    x, modality = tokens(300)
    want = layer(x, modality)
    with torch.autocast("cpu", torch.bfloat16):
        got = layer(x, modality)
    assert (got.float() - want).norm() < 0.02 * want.norm()


def test_grouped_products_equal_sliced_ones():
    """The products that a GPU takes, also with an expert that nobody chose."""
    layer = make("moe")
    x, modality = tokens(80)
    chosen, weights = layer._choose(x, modality)
    chosen[chosen == 2] = 3
    order = layer._sort(chosen)
    rows = x[order.token]
    shares = weights.flatten()[order.index].unsqueeze(1).detach()
    results = []
    for products in (_grouped_products, _sliced_products):
        out = products(rows, shares, layer.w_in, layer.w_out, order.ends)
        grads = torch.autograd.grad(out, (layer.w_in, layer.w_out), out.detach().clone())
        results.append((out, *grads))
    for ours, theirs in zip(*results, strict=True):
        assert theirs.abs().max() > 0
        assert torch.allclose(ours, theirs, atol=1e-5, rtol=1e-4)
