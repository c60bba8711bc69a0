"""What is laid out for play gives what it was laid out from, to rounding."""

import pytest
import torch
from torch import nn

from worldmodel import packed as module
from worldmodel.encoders.rae import RAE, RAEConfig
from worldmodel.encoders.representation import Decoder
from worldmodel.moe import routers
from worldmodel.packed import PackedBlock, PackedLinear, can_pack, drawing, packed
from worldmodel.transformer import Block, Core, CoreConfig, KVCache

CPU = torch.device("cpu")
if not can_pack(CPU):
    pytest.skip("this PyTorch has no oneDNN", allow_module_level=True)

SHAPES = {
    "mixture": {},
    "dense": {"ffn": "dense"},
    "one for each modality": {"ffn": "modality"},
    "no shared expert": {"shared": "none"},
    "shared keys": {"kv_heads": 1},
    "no QK norm": {"qk_norm": False},
    "convolutions": {"unet": 2, "unet_width": 16, "motion": 1},
}


def make(**changes) -> Core:
    torch.manual_seed(0)
    shape = {"vocab": 64, "latent_channels": 8, "width": 64, "depth": 2, "heads": 2, "kv_heads": 2}
    core = Core(CoreConfig(**{**shape, "hidden": 128, "experts": 6, **changes})).eval()
    with torch.no_grad():
        for weight in core.parameters():  # output layers begin at zero
            weight.add_(0.05 * torch.randn_like(weight))
        for router in routers(core):
            router.bias.copy_(torch.linspace(-0.2, 0.2, len(router.bias)))
    return core


def inputs(core: Core, rows: int, tokens: int, past: int = 0):
    """Tokens, modalities, positions and a mask of words that come before a frame."""
    x = torch.randn(rows, tokens, core.config.width)
    vision = (torch.arange(tokens) >= tokens // 3).expand(rows, -1)
    position = torch.randint(9, (rows, tokens, 5))
    mask = torch.rand(rows, tokens, past + tokens) < 0.7
    mask[:, :, past:] |= torch.eye(tokens, dtype=torch.bool)
    return x, vision, position, mask


@pytest.mark.parametrize("changes", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("size", [(1, 1), (2, 20), (3, 90)])
@torch.inference_mode()
def test_a_core_laid_out_gives_the_same(changes, size):
    """Also with more tokens than are laid out for, and in what it keeps for later passes."""
    core = make(**changes)
    twin = packed(core)
    assert all(isinstance(block, PackedBlock) for block in twin.blocks)
    rows, tokens = size
    found = []
    for one in (core, twin):
        torch.manual_seed(1)
        cache = KVCache(core.config, rows, 3 + tokens, CPU, torch.float32)
        one(*inputs(core, rows, 3), cache)
        cache.commit(3)
        found.append((one(*inputs(core, rows, tokens, 3), cache), cache.data))
    for plain, fast in zip(*found, strict=True):
        assert plain.abs().max() > 0.1
        assert torch.allclose(plain, fast, atol=2e-4)


@torch.inference_mode()
def test_frames_go_in_and_out_the_same():
    core = make(**SHAPES["convolutions"])
    twin = packed(core)
    z, before = torch.randn(2, 3, core.config.frame_tokens, core.config.channels)
    t, stride = torch.tensor([0.0, 0.4, 0.9]), torch.tensor([0, 1, 3])
    (a, seen), (b, also) = (one.embed_frames(z, t, stride, before) for one in (core, twin))
    assert torch.allclose(a, b, atol=1e-4)
    hidden = torch.randn(3, core.config.frame_tokens, core.config.width)
    drawn = core.draw(hidden, seen, z, t)
    assert drawn.abs().max() > 0.1
    assert torch.allclose(drawn, twin.draw(hidden, also, z, t), atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.inference_mode()
def test_an_encoder_laid_out_draws_the_same(dtype):
    torch.manual_seed(0)
    shape = {"size": 32, "channels": 8, "width": 32, "heads": 2, "decoder_depth": 2}
    plain = RAE(RAEConfig(**shape)).eval()
    fast = drawing(plain, dtype)
    latents = plain.encode(torch.randint(256, (2, 32, 32, 3), dtype=torch.uint8))
    apart = (plain.decode(latents).int() - fast.decode(latents).int()).abs().max()
    assert apart <= (1 if dtype == torch.float32 else 3)
    assert isinstance(plain.decoder, Decoder)  # as it was
    assert plain.decoder.position.dtype == torch.float32


@torch.inference_mode()
def test_a_layer_goes_on_with_its_product():
    torch.manual_seed(0)
    layer = nn.Linear(12, 7)
    x, other = torch.randn(5, 12), torch.randn(5, 7)
    fast = PackedLinear(layer.weight, layer.bias)
    plain = layer(x)
    assert torch.allclose(fast(x, "swish"), nn.functional.silu(plain), atol=1e-5)
    assert torch.allclose(fast.times(x, other), plain * other, atol=1e-5)
    assert torch.allclose(fast.plus(x, other), plain + other, atol=1e-5)


def test_with_gradients_a_block_runs_as_it_is():
    core = make()
    (x, vision, position, mask) = inputs(core, 1, 6)
    packed(core)(x, vision, position, mask).sum().backward()
    block = core.blocks[0]
    assert isinstance(block, Block)
    assert block.attention.q.weight.grad is not None


def test_a_pytorch_whose_products_fail_or_are_wrong_is_not_used(monkeypatch):
    linear = module.PackedLinear.forward

    def wrong(self, x, activation="none"):
        return linear(self, x, activation) + 1

    def failing(self, x, activation="none"):
        raise RuntimeError("could not create a primitive")

    for broken in (wrong, failing):
        monkeypatch.setattr(module.PackedLinear, "forward", broken)
        assert not can_pack.__wrapped__(CPU)
    monkeypatch.setattr(module.PackedLinear, "forward", linear)
    state = torch.get_rng_state()
    assert can_pack.__wrapped__(CPU)
    assert torch.equal(torch.get_rng_state(), state)
    assert not can_pack(torch.device("cuda"))
