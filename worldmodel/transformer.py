"""The core: one decoder-only transformer over text tokens and frame tokens.

Llama-like blocks with grouped-query attention, QK-norm, rotary positions over (order, step, row,
column), and the feed-forward of `worldmodel.moe`. Text goes in by an embedding table and out by
logits; a frame token goes in by one linear layer from its (noised) latent and out by one linear
layer, read as the clean latent (x-prediction) or the velocity towards it (v-prediction).
Everything that makes it causal is in the mask.

Motion is local: most of a frame is the last frame, moved. So convolutions around the blocks see it
beside the frame's latents (`worldmodel.unet`; docs/decisions/0007), or a token sees the latents
around its place and moves them (`worldmodel.motion`; docs/decisions/0006). The choices that the
paper compares are values of `CoreConfig`; docs/model.md has their equations.

Shapes: B rows, L tokens, D width, N tokens a frame, C latent channels a token.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import nn

from worldmodel.errors import UserError, suggest
from worldmodel.moe import SHARED, VISION, FeedForward
from worldmodel.motion import Motion, join_cells, split_cells
from worldmodel.rotary import rotary_table, rotate, turns
from worldmodel.unet import UNet

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask

CHOICES = {
    "ffn": ("dense", "modality", "moe"),
    "shared": tuple(SHARED),
    "prediction": ("x", "v"),
    "positions": ("sharp", "2d", "1d"),
}


@dataclass(frozen=True)
class CoreConfig:
    """Shape of the core.

    Attributes:
        vocab: number of text tokens.
        latent_grid: rows and columns of the encoder's latents.
        latent_channels: channels of one of the encoder's latent tokens.
        merge: the core joins `merge x merge` neighbouring latents into one token.
        motion: how many latents around its place a frame token sees and moves of the last frame;
            -1 for none, as in the paper (convolutions see the last frame without it).
        unet: convolutions at the latents' own resolution before the blocks, and as many behind
            them; 0 for linear layers, as in the paper.
        unet_width: channels of those convolutions.
        width, depth, heads, kv_heads: of the transformer.
        ffn: 'dense', 'modality' or 'moe'.
        hidden: hidden size of the feed-forward that a token runs in all (active).
        granularity: 'moe' splits it into this many experts of hidden / granularity: one that
            is shared, unless `shared` is 'none', and the others routed. With hidden = 4 * width
            it is the paper's G.
        experts: number of routed experts.
        shared: which tokens share the expert that always runs: 'none' has no such expert,
            'global' one for all tokens, 'modality' one for text and one for frames.
        prediction: what the network's output is: 'x' the clean latent, 'v' the velocity.
        positions: 'sharp' and '2d' turn by (order, step, row, column), with evenly spaced or
            geometric frequencies; '1d' by the place in the flat stream, as in Llama.
        qk_norm: normalise queries and keys.
        window: how many earlier frames a frame sees.
        strides: number of step sizes 1, 1/2, 1/4, ... that few-step sampling knows.
    """

    vocab: int
    latent_grid: tuple[int, int] = (8, 8)
    latent_channels: int = 32
    merge: int = 2
    motion: int = 2
    width: int = 256
    depth: int = 8
    heads: int = 4
    kv_heads: int = 2
    ffn: str = "moe"
    hidden: int = 1024
    granularity: int = 4
    experts: int = 12
    window: int = 6
    strides: int = 4
    shared: str = "modality"
    prediction: str = "x"
    positions: str = "sharp"
    qk_norm: bool = True
    unet: int = 0
    unet_width: int = 96

    def __post_init__(self) -> None:
        """Refuse what cannot be built.

        Raises:
            UserError: names both values that do not go together.
        """
        for name, known in CHOICES.items():
            value = getattr(self, name)
            if value not in known:
                raise UserError(f"model.{name}={value!r} is unknown.{suggest(str(value), known)}")
        sizes = ("vocab", "latent_channels", "merge", "width", "depth", "heads", "kv_heads")
        for name in (*sizes, "hidden", "granularity", "window", "strides", "unet_width"):
            if getattr(self, name) < 1:
                raise UserError(f"model.{name}={getattr(self, name)} must be at least 1.")
        self._divide("width", "heads")
        self._divide("heads", "kv_heads")
        if self.width // self.heads % 8:
            raise UserError(
                f"model.width={self.width} over model.heads={self.heads} gives heads of "
                f"{self.width // self.heads} channels; rotary positions need a multiple of 8."
            )
        if self.unet < 0:
            raise UserError(f"model.unet={self.unet} must be 0 or more.")
        for side in self.latent_grid:
            if side % self.merge:
                raise UserError(
                    f"model.merge={self.merge} does not divide the encoder's grid "
                    f"{self.latent_grid[0]}x{self.latent_grid[1]}; take 1, or a divisor of both."
                )
        if self.motion >= 0 and self.prediction != "x":
            raise UserError(
                f"model.prediction={self.prediction} cannot move the last frame's latents; set "
                f"model.motion=-1 (now {self.motion}) or model.prediction=x."
            )
        if self.ffn == "moe":
            self._divide("hidden", "granularity")
            chosen = self.feed_forward["top_k"]
            if not 1 <= chosen <= self.experts:
                raise UserError(
                    f"model.granularity={self.granularity} with shared={self.shared} lets a token "
                    f"run {chosen} routed experts, but model.experts={self.experts}; it must be "
                    "1 to as many as there are."
                )

    def _divide(self, whole: str, part: str) -> None:
        a, b = getattr(self, whole), getattr(self, part)
        if a % b:
            raise UserError(f"model.{part}={b} does not divide model.{whole}={a}.")

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of a frame's tokens in the core."""
        return self.latent_grid[0] // self.merge, self.latent_grid[1] // self.merge

    @property
    def frame_tokens(self) -> int:
        """N."""
        return self.grid[0] * self.grid[1]

    @property
    def channels(self) -> int:
        """C, channels of a frame token in the core."""
        return self.latent_channels * self.merge**2

    @property
    def feed_forward(self) -> dict[str, int]:
        """Arguments of `FeedForward` for the chosen kind, at equal active size."""
        if self.ffn == "moe":
            return {
                "hidden": self.hidden // self.granularity,
                "experts": self.experts,
                "top_k": self.granularity - (self.shared != "none"),
                "shared": SHARED[self.shared],
            }
        shared = 1 if self.ffn == "dense" else 2
        return {"hidden": self.hidden, "experts": 0, "top_k": 0, "shared": shared}


class KVCache:
    """Keys and values of the stream so far, preallocated.

    `length` tokens are committed. A forward pass writes its tokens behind them and sees all; it
    is up to the caller to `commit` them, so that denoising leaves no trace.
    """

    def __init__(
        self, config: CoreConfig, rows: int, capacity: int, device: torch.device, dtype: torch.dtype
    ) -> None:
        head = config.width // config.heads
        shape = (config.depth, 2, rows, config.kv_heads, capacity, head)
        self.data = torch.empty(shape, device=device, dtype=dtype)
        self.length = 0

    def write(self, layer: int, k: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Put [B, kv_heads, L, head] behind the committed tokens; return all keys, values."""
        stop = self.length + k.shape[2]
        data = self.data[layer]
        data[0, :, :, self.length : stop] = k
        data[1, :, :, self.length : stop] = v
        return data[0, :, :, :stop], data[1, :, :, :stop]

    def commit(self, tokens: int) -> None:
        """Keep the first `tokens` tokens of the last forward pass."""
        self.length += tokens


class RMSNorm(nn.Module):
    """Root-mean-square norm whose weight follows the dtype of its input."""

    def __init__(self, width: int, gain: float = 1.0) -> None:
        super().__init__()
        self.gain = gain
        self.weight = nn.Parameter(torch.full((width,), gain))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Normalise the last axis."""
        return F.rms_norm(x, self.weight.shape, self.weight.to(x.dtype), 1e-6)


# Up to this many queries, at play, PyTorch's fused attention is faster on any device.
_MANY_QUERIES = 128


class Attention(nn.Module):
    """Grouped-query attention with QK-norm and rotary positions."""

    def __init__(self, config: CoreConfig) -> None:
        super().__init__()
        self.heads, self.kv_heads = config.heads, config.kv_heads
        head = config.width // config.heads
        # Biases on queries and keys let a head look at a place whatever is there.
        self.q = nn.Linear(config.width, config.heads * head)
        self.k = nn.Linear(config.width, config.kv_heads * head)
        self.v = nn.Linear(config.width, config.kv_heads * head, bias=False)
        self.out = nn.Linear(config.heads * head, config.width, bias=False)
        # A gain above 1, so that attention can be sharp over hundreds of tokens early on.
        self.q_norm = RMSNorm(head, gain=1.5) if config.qk_norm else nn.Identity()
        self.k_norm = RMSNorm(head, gain=1.5) if config.qk_norm else nn.Identity()

    def forward(
        self,
        x: torch.Tensor,
        rotary: tuple[torch.Tensor, torch.Tensor],
        mask: "torch.Tensor | BlockMask",
        cache: KVCache | None,
        layer: int,
    ) -> torch.Tensor:
        """Tokens [B, L, D] to tokens [B, L, D]; mask bool [B, 1, L, keys], or blocks."""
        q = self.q(x).unflatten(-1, (self.heads, -1))
        k = self.k(x).unflatten(-1, (self.kv_heads, -1))
        v = self.v(x).unflatten(-1, (self.kv_heads, -1)).transpose(1, 2)
        q = rotate(self.q_norm(q.float()), rotary).transpose(1, 2).to(v.dtype)
        k = rotate(self.k_norm(k.float()), rotary).transpose(1, 2).to(v.dtype)
        if cache is not None:
            k, v = cache.write(layer, k, v)
        shared = self.kv_heads < self.heads
        if not isinstance(mask, torch.Tensor):
            compiled = q.is_cuda and not torch.compiler.is_compiling()  # or it is already
            mixed = _flex_attention(compiled)(q, k, v, block_mask=mask, enable_gqa=shared)
        elif q.device.type == "cpu" and q.dtype == torch.bfloat16 and q.shape[2] > _MANY_QUERIES:
            mixed = _attend(q, k, v, mask)
        else:
            if q.is_cuda and shared:  # no fused kernel there takes both a mask and shared heads
                k, v = (_repeat_heads(x, self.heads // self.kv_heads) for x in (k, v))
                shared = False
            mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=shared)
        return self.out(mixed.transpose(1, 2).flatten(2))


def _repeat_heads(x: torch.Tensor, times: int) -> torch.Tensor:
    """Keys or values [B, kv_heads, L, head] for every query head, [B, heads, L, head]."""
    return x.unsqueeze(2).expand(-1, -1, times, -1, -1).flatten(1, 2)


def _attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Attention in plain products, [B, heads, L, head]; `mask` as in `Attention.forward`.

    On a CPU, PyTorch's fused attention multiplies bfloat16 in float32. With many queries these
    products are more than twice as fast, forward and backward (benchmarks/train_speed.py).
    """
    queries = q.unflatten(1, (k.shape[1], -1)) * q.shape[-1] ** -0.5  # [B, kv_heads, groups, ...]
    scores = queries @ k.unsqueeze(2).mT
    bias = torch.zeros(mask.shape, dtype=scores.dtype).masked_fill_(~mask, -torch.inf)
    shares = scores.add_(bias.unsqueeze(1)).softmax(-1)  # adding is faster than filling
    return (shares @ v.unsqueeze(2)).flatten(1, 2)


@cache
def _flex_attention(compiled: bool) -> Callable[..., Any]:
    """FlexAttention; only compiled does it skip blocks (on CPU it is there to be compared)."""
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention) if compiled else flex_attention


class Block(nn.Module):
    """Pre-norm attention and feed-forward."""

    def __init__(self, config: CoreConfig) -> None:
        super().__init__()
        self.norm1 = RMSNorm(config.width)
        self.attention = Attention(config)
        self.norm2 = RMSNorm(config.width)
        self.feed_forward = FeedForward(config.width, **config.feed_forward)

    def forward(
        self,
        x: torch.Tensor,
        modality: torch.Tensor,
        rotary: tuple[torch.Tensor, torch.Tensor],
        mask: "torch.Tensor | BlockMask",
        cache: KVCache | None,
        layer: int,
    ) -> torch.Tensor:
        """Tokens [B, L, D] to tokens [B, L, D]."""
        x = x + self.attention(self.norm1(x), rotary, mask, cache, layer)
        tokens = self.norm2(x).flatten(0, 1)
        return x + self.feed_forward(tokens, modality.flatten()).view_as(x)


class Core(nn.Module):
    """The whole network."""

    frequencies: torch.Tensor
    axis: torch.Tensor

    def __init__(self, config: CoreConfig) -> None:
        super().__init__()
        self.config = config
        width, channels = config.width, config.channels
        self.embed = nn.Embedding(config.vocab, width)
        self.see = nn.Linear(channels, width)
        self.level = nn.Sequential(nn.Linear(64, width), nn.SiLU(), nn.Linear(width, width))
        self.stride = nn.Embedding(config.strides, width)
        self.place = nn.Parameter(torch.zeros(config.frame_tokens, width))
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.norm = RMSNorm(width)
        self.say = nn.Linear(width, config.vocab, bias=False)
        self.unet = UNet(config) if config.unet else None
        self.paint = None if config.unet else nn.Linear(width, channels)
        self.motion = Motion(config) if config.motion >= 0 and not config.unet else None
        pairs = width // config.heads // 2
        self.register_buffer("axis", torch.zeros(pairs, dtype=torch.int64), persistent=False)
        self.register_buffer("frequencies", torch.zeros(pairs), persistent=False)
        self.init_weights()

    @torch.no_grad()
    def init_weights(self) -> None:
        """All initialisation in one place, so that a core made on 'meta' can be filled anywhere.

        Text embeddings: normal with mean and deviation 1; other tables 0.02.
        Linear layers: normal with variance 1 / inputs; the feed-forward's output is scaled down
        by sqrt(2 * depth), the attention's is not: what it copies should be heard beside the
        noise of the frame. Output heads: zero. Biases: zero, but for queries and keys, see
        `_point_heads`.
        """
        axis, frequencies = rotary_table(
            self.config.width // self.config.heads, self.config.positions
        )
        self.axis.copy_(axis)
        self.frequencies.copy_(frequencies)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=module.in_features**-0.5)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, RMSNorm):
                module.weight.fill_(module.gain)
            elif isinstance(module, FeedForward):
                module.init_weights()
        if self.config.positions == "sharp":
            for layer, block in enumerate(self.blocks):
                assert isinstance(block, Block)
                self._point_heads(block.attention, layer)
        nn.init.normal_(self.embed.weight, mean=1.0)
        for table in (self.stride.weight, self.place):
            nn.init.normal_(table, std=0.02)
        scale = (2 * self.config.depth) ** -0.5
        for block in self.blocks:
            assert isinstance(block, Block)
            block.feed_forward.w_out.mul_(scale)
        last = self.level[-1]
        assert isinstance(last, nn.Linear)
        last.weight.mul_(0.1)  # at first, what a frame shows weighs more than how noisy it is
        nn.init.zeros_(self.say.weight)
        if self.paint is not None:
            nn.init.zeros_(self.paint.weight)
        for part in (self.motion, self.unet):
            if part is not None:
                part.init_weights()

    def _point_heads(self, attention: Attention, layer: int) -> None:
        """Point the first head at the words of its own step, the others at the last frame.

        Motion is a choice, by the action's words, among neighbouring cells of the last frame.
        Found by chance that takes thousands of steps. All text embeddings share a direction
        (their mean), which the first head's keys look for; the other heads start at one cell.
        """
        head = self.config.width // self.config.heads
        sides = ((0, 1), (0, -1)) if layer % 2 == 0 else ((1, 0), (-1, 0))
        offsets = [None, (1, 0, 0), *((1, *side) for side in sides)]
        slow = (self.axis == 0) & (self.frequencies < 0.1)  # pairs that hardly turn: content
        for module, sign in ((attention.q, -1.0), (attention.k, 0.0)):
            weight = module.weight.view(-1, head, self.config.width)
            bias = module.bias.view(-1, head)
            for i in range(len(bias)):
                offset = offsets[i % len(offsets)]
                place = [0.0, *(offset or (0, 0, 0))]
                spatial = torch.tensor(place, device=self.axis.device)
                used = (self.axis > 0) if offset else (self.axis == 1)
                angle = sign * spatial[self.axis] * self.frequencies
                bias[i].copy_(torch.cat([angle.cos() * used, angle.sin() * used]))
                weight[i].mul_(0.3)
                if offset is None:
                    words = torch.cat([slow, torch.zeros_like(slow)])
                    if module is attention.q:
                        bias[i][words] = 2.0
                    else:
                        weight[i][words] = 4.0 / self.config.width

    def embed_frames(
        self,
        latents: torch.Tensor,
        level: torch.Tensor,
        stride: torch.Tensor,
        before: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Frame tokens of (noised) latents, and what goes past the blocks to `draw`.

        Args:
            latents: [F, N, C] in the core's grid (see `merge`).
            level: [F] signal level t in [0, 1], 1 is clean.
            stride: int64 [F], step size 2^-i; the last one means "no step, plain flow".
            before: [F, N, C] the last frame as shown to the core; zeros where there is none.

        Returns:
            Tokens [F, N, D]; what `draw` is to be given, [F, ...].
        """
        condition = self.level(level_features(level).to(latents.dtype)) + self.stride(stride)
        x = self.see(latents) + self.place + condition.unsqueeze(1)
        if self.unet is not None:
            found, seen = self.unet.sink(latents, before, condition)
            return x + found, seen
        return (x if self.motion is None else x + self.motion.see(before)), before

    def draw(
        self, hidden: torch.Tensor, seen: torch.Tensor, latents: torch.Tensor, level: torch.Tensor
    ) -> torch.Tensor:
        """Hidden states [F, N, D] of frame tokens to predicted clean latents [F, N, C].

        `seen` is what `embed_frames` returned beside the tokens, the rest what it was given. A
        predicted velocity v = x - noise points from z_t at level t to x = z_t + (1 - t) v.
        """
        if self.unet is not None:
            out = self.unet.rise(hidden, seen)
        else:
            assert self.paint is not None
            out = self.paint(hidden)
        if self.config.prediction == "v":
            return latents + (1 - level).view(-1, 1, 1).to(out.dtype) * out
        return out if self.motion is None else out + self.motion.move(hidden, seen)

    def forward(
        self,
        x: torch.Tensor,
        vision: torch.Tensor,
        position: torch.Tensor,
        mask: "torch.Tensor | BlockMask",
        cache: KVCache | None = None,
    ) -> torch.Tensor:
        """Run the blocks.

        Args:
            x: [B, L, D] embedded tokens.
            vision: bool [B, L].
            position: int64 [B, L, 5], see `worldmodel.sequence.Batch`.
            mask: bool [B, L, keys]; keys are the cache's committed tokens, then these. Or a
                `BlockMask` for FlexAttention.
            cache: where keys and values are kept, or None.

        Returns:
            [B, L, D], normalised, for `say` and `draw`.
        """
        angles = position[..., self.axis].float() * self.frequencies
        rotary = turns(angles.unsqueeze(2))
        modality = vision.long() * VISION
        if isinstance(mask, torch.Tensor):
            mask = mask.unsqueeze(1)
        for layer, block in enumerate(self.blocks):
            x = block(x, modality, rotary, mask, cache, layer)
        return self.norm(x)

    def merge(self, latents: torch.Tensor) -> torch.Tensor:
        """Encoder latents [F, n, c] to core tokens [F, N, C], neighbours joined."""
        return join_cells(self.config, latents)

    def split(self, tokens: torch.Tensor) -> torch.Tensor:
        """Core tokens [F, N, C] to encoder latents [F, n, c]; inverse of `merge`."""
        return split_cells(self.config, tokens)

    def parameters_by_use(self) -> tuple[int, int]:
        """Return (active, total) numbers of parameters; active is what one token runs."""
        total = sum(p.numel() for p in self.parameters())
        args = self.config.feed_forward
        expert = 3 * self.config.width * args["hidden"]
        idle_shared = max(args["shared"] - 1, 0)
        idle = self.config.depth * expert * (args["experts"] - args["top_k"] + idle_shared)
        return total - idle, total


def level_features(level: torch.Tensor) -> torch.Tensor:
    """Sines and cosines [F, 64] of signal levels [F]."""
    frequencies = torch.logspace(0, 2.5, 32, device=level.device)
    angles = level.float().unsqueeze(-1) * frequencies
    return torch.cat([angles.sin(), angles.cos()], dim=-1)
