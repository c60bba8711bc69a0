"""A network laid out once for passes over few tokens on a CPU, as at play.

Passes of one frame are short: laying out weights for the processor's matrix instructions, which
PyTorch does at every call, takes as long as the product itself, and hundreds of small operations
take as long as all products. So `packed` gives a copy of a module whose linear layers and
convolutions are laid out (oneDNN's own format), and whose blocks do the same with fewer
operations: one product for queries, keys and values, three for all experts, activations and sums
within the products. What it gives equals the module's to rounding (`tests/test_packed.py`), and
the incremental path of rollouts runs on it.
"""

import copy
from functools import cache
from typing import TypeVar, cast

import torch
import torch.nn.functional as F
from torch import nn

from worldmodel.encoders.frame_encoder import FrameEncoder
from worldmodel.encoders.representation import Decoder
from worldmodel.moe import FEW_EXPERTS, FEW_TOKENS, Router
from worldmodel.rotary import rotate
from worldmodel.transformer import Block, KVCache, RMSNorm

Kind = TypeVar("Kind", bound=nn.Module)


@cache
def can_pack(device: torch.device) -> bool:
    """Whether this PyTorch has oneDNN's products for the device, and they are right."""
    if device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    try:
        # Nobody's random numbers are to depend on whether this ran before.
        with torch.random.fork_rng(devices=[]), torch.inference_mode():
            linear, convolution = nn.Linear(8, 8), nn.Conv2d(8, 8, 3, padding=1)
            x, picture = torch.rand(2, 8), torch.rand(1, 8, 4, 4)
            found = (_packed(linear)(x), _packed(convolution)(picture))
            wanted = (linear(x), convolution(picture))
    except (AttributeError, RuntimeError):  # another build of PyTorch, or another processor
        return False
    return all(torch.allclose(a, b, atol=1e-3) for a, b in zip(found, wanted, strict=True))


def packed(module: Kind) -> Kind:
    """Return a module that computes the same, laid out as it is now; the given one stays.

    What is not laid out (tables, norms, routers' biases) is shared with the module, hooks too. What
    it returns in the place of a layer or a block is called like one, and has no weights to train.
    """
    return cast(Kind, _packed(module))


def _packed(module: nn.Module) -> nn.Module:
    if isinstance(module, nn.Linear):
        return PackedLinear(module.weight, module.bias)
    if isinstance(module, nn.Conv2d):
        return PackedConvolution(module)
    if isinstance(module, Router):
        module = copy.copy(module)  # it computes in float32 whatever the rest does
        module._parameters = {"weight": nn.Parameter(module.weight.float(), requires_grad=False)}
        return module
    if isinstance(module, Block):
        fits = len(module.feed_forward.w_in) <= FEW_EXPERTS
        return PackedBlock(module) if fits else module
    twin = copy.copy(module)
    twin._modules = {
        name: None if child is None else _packed(child) for name, child in module._modules.items()
    }
    return twin


def drawing(encoder: FrameEncoder, dtype: torch.dtype) -> FrameEncoder:
    """Return an encoder that draws in another number format, laid out, if it has a `Decoder`."""
    decoder = getattr(encoder, "decoder", None)
    if not isinstance(decoder, Decoder):
        return encoder
    twin = copy.copy(encoder)
    twin._modules = {**encoder._modules, "decoder": packed(copy.deepcopy(decoder).to(dtype))}
    return twin


class PackedLinear(nn.Module):
    """A linear layer of some weight [outputs, inputs], laid out.

    It can go on with its product while that is at hand: an activation, a product, a sum.
    """

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None = None) -> None:
        super().__init__()
        self._weight = torch.ops.mkldnn._reorder_linear_weight(weight.detach().contiguous())
        self._bias = None if bias is None else bias.detach()

    def forward(self, x: torch.Tensor, activation: str = "none") -> torch.Tensor:
        """[..., inputs] to [..., outputs], then `activation`: 'none' or 'swish' (SiLU)."""
        return torch.ops.mkldnn._linear_pointwise(x, self._weight, self._bias, activation, [], "")

    def times(self, x: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        """The layer's output times `other`, of the same shape."""
        return torch.ops.mkldnn._linear_pointwise.binary(x, other, self._weight, self._bias, "mul")

    def plus(self, x: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        """The layer's output and `other`, of the same shape."""
        return torch.ops.mkldnn._linear_pointwise.binary(x, other, self._weight, self._bias, "add")


class PackedConvolution(nn.Module):
    """A convolution, laid out; takes and gives channels last."""

    def __init__(self, convolution: nn.Conv2d) -> None:
        super().__init__()
        of = convolution
        assert isinstance(of.padding, tuple)
        self._shape = (of.padding, of.stride, of.dilation, of.groups)
        self._weight = torch.ops.mkldnn._reorder_convolution_weight(
            of.weight.detach().contiguous(memory_format=torch.channels_last), *self._shape
        )
        self._bias = None if of.bias is None else of.bias.detach()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[F, channels, rows, columns] to the same with the layer's channels."""
        x = x.contiguous(memory_format=torch.channels_last)
        return torch.ops.mkldnn._convolution_pointwise(
            x, self._weight, self._bias, *self._shape, "none", [], ""
        )


class PackedBlock(nn.Module):
    """A `worldmodel.transformer.Block`, called like one."""

    def __init__(self, block: Block) -> None:
        super().__init__()
        attention, experts = block.attention, block.feed_forward
        self.block = [block]  # in a list: shared, not one of this module's own
        self.experts = packed(experts)
        self.many = len(experts.w_in) > 1
        self.heads, self.kv_heads = attention.heads, attention.kv_heads
        parts = (attention.q, attention.k, attention.v)
        bias = [p.weight.new_zeros(len(p.weight)) if p.bias is None else p.bias for p in parts]
        self.qkv = PackedLinear(torch.cat([p.weight for p in parts]), torch.cat(bias))
        self.out = PackedLinear(attention.out.weight)
        norms = ((attention.q_norm, self.heads), (attention.k_norm, self.kv_heads))
        gains = [n.weight.float().expand(k, -1) for n, k in norms if isinstance(n, RMSNorm)]
        self.gains = torch.cat(gains).detach() if gains else None  # [heads + kv_heads, head]
        gate, value = experts.w_in.detach().chunk(2, dim=1)  # [E, H, D] each
        self.gate = PackedLinear(gate.flatten(0, 1))
        self.value = PackedLinear(value.flatten(0, 1))
        self.down = PackedLinear(experts.w_out.detach().transpose(0, 1).flatten(1))  # [D, E * H]

    def forward(
        self,
        x: torch.Tensor,
        modality: torch.Tensor,
        rotary: tuple[torch.Tensor, torch.Tensor],
        mask: torch.Tensor,
        cache: KVCache | None,
        layer: int,
    ) -> torch.Tensor:
        """Tokens [B, L, D] to tokens [B, L, D], see `Block`."""
        (block,) = self.block
        if x.shape[0] * x.shape[1] > FEW_TOKENS or torch.is_grad_enabled():
            return block(x, modality, rotary, mask, cache, layer)
        x = self._attend(block, x, rotary, mask, cache, layer)
        tokens = block.norm2(x)
        hidden = self.value.times(tokens, self.gate(tokens, "swish"))  # [B, L, E * H]
        if self.many:
            gates = self.experts.gates(tokens.flatten(0, 1), modality.flatten())
            hidden.view(*gates.shape, -1).mul_(gates.unsqueeze(-1))
        return self.down.plus(hidden, x)

    def _attend(
        self,
        block: Block,
        x: torch.Tensor,
        rotary: tuple[torch.Tensor, torch.Tensor],
        mask: torch.Tensor,
        cache: KVCache | None,
        layer: int,
    ) -> torch.Tensor:
        heads = self.qkv(block.norm1(x)).unflatten(-1, (self.heads + 2 * self.kv_heads, -1))
        turned = heads[:, :, : -self.kv_heads].float()
        if self.gains is not None:
            turned = F.rms_norm(turned, turned.shape[-1:], None, 1e-6) * self.gains
        turned = rotate(turned, rotary).transpose(1, 2).to(x.dtype)
        q, k = turned.split([self.heads, self.kv_heads], dim=1)
        v = heads[:, :, -self.kv_heads :].transpose(1, 2)
        if cache is not None:
            k, v = cache.write(layer, k, v)
        shared = self.kv_heads < self.heads
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=shared)
        return self.out.plus(mixed.transpose(1, 2).flatten(2), x)
