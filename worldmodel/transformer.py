"""The core: one decoder-only transformer over text tokens and frame tokens.

Llama-like blocks with grouped-query attention, QK-norm, rotary positions over (order, step, row,
column), and the feed-forward of `worldmodel.moe`. Text goes in by an embedding table and out by
logits; a frame token goes in by one linear layer from its (noised) latent and out by one linear
layer to the clean latent (x-prediction). Everything that makes it causal is in the mask.

Motion is local: most of a frame is the last frame, moved. So a frame token also sees the last
frame's latents around its place, and its prediction is what it draws plus a mixture of them
(`Motion`; docs/decisions/0006).

Shapes: B rows, L tokens, D width, N tokens a frame, C latent channels a token.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from worldmodel.moe import VISION, FeedForward


@dataclass(frozen=True)
class CoreConfig:
    """Shape of the core.

    Attributes:
        vocab: number of text tokens.
        latent_grid: rows and columns of the encoder's latents.
        latent_channels: channels of one of the encoder's latent tokens.
        merge: the core joins `merge x merge` neighbouring latents into one token.
        motion: how many latents around its place a frame token sees and moves of the last frame;
            -1 for none, as in the paper.
        width, depth, heads, kv_heads: of the transformer.
        ffn: 'dense', 'modality' or 'moe'.
        hidden: hidden size of the feed-forward that a token runs in all (active).
        granularity: 'moe' splits it into this many experts of hidden / granularity, one of
            them shared per modality, the others routed.
        experts: number of routed experts.
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
                "top_k": self.granularity - 1,
                "shared": 2,
            }
        if self.ffn not in ("dense", "modality"):
            raise ValueError(f"ffn must be dense, modality or moe, not {self.ffn!r}")
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
        self.data = torch.zeros(shape, device=device, dtype=dtype)
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
        self.weight = nn.Parameter(torch.full((width,), gain))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Normalise the last axis."""
        return F.rms_norm(x, self.weight.shape, self.weight.to(x.dtype), 1e-6)


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
        self.q_norm = RMSNorm(head, gain=1.5)
        self.k_norm = RMSNorm(head, gain=1.5)

    def forward(
        self,
        x: torch.Tensor,
        rotary: tuple[torch.Tensor, torch.Tensor],
        mask: torch.Tensor,
        cache: KVCache | None,
        layer: int,
    ) -> torch.Tensor:
        """Tokens [B, L, D] to tokens [B, L, D]; mask bool [B, 1, L, keys]."""
        q = self.q(x).unflatten(-1, (self.heads, -1))
        k = self.k(x).unflatten(-1, (self.kv_heads, -1))
        v = self.v(x).unflatten(-1, (self.kv_heads, -1)).transpose(1, 2)
        q = rotate(self.q_norm(q.float()), rotary).transpose(1, 2).to(v.dtype)
        k = rotate(self.k_norm(k.float()), rotary).transpose(1, 2).to(v.dtype)
        if cache is not None:
            k, v = cache.write(layer, k, v)
        groups = self.heads // self.kv_heads
        k, v = (t.repeat_interleave(groups, dim=1) for t in (k, v))
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.out(mixed.transpose(1, 2).flatten(2))


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
        mask: torch.Tensor,
        cache: KVCache | None,
        layer: int,
    ) -> torch.Tensor:
        """Tokens [B, L, D] to tokens [B, L, D]."""
        x = x + self.attention(self.norm1(x), rotary, mask, cache, layer)
        tokens = self.norm2(x).flatten(0, 1)
        return x + self.feed_forward(tokens, modality.flatten()).view_as(x)


class Motion(nn.Module):
    """What a frame token knows of the last frame: the latents around its place.

    A token reads its neighbourhood of (m + 2 r)^2 latents, for m = merge and r = motion, by one
    linear layer. For each of the m^2 latents that it predicts, it can move one of the (2 r + 1)^2
    latents around that place there, or a mixture, or nothing (a softmax, so that rollouts
    stay bounded). After the predicted kernels of video prediction (Finn et al. 2016, arXiv
    1605.07157) and the stacked past frames of DIAMOND (arXiv 2405.12399).
    """

    def __init__(self, config: CoreConfig) -> None:
        super().__init__()
        self.config = config
        r, m = config.motion, config.merge
        self.choices = (2 * r + 1) ** 2 + 1
        self.read = nn.Linear((m + 2 * r) ** 2 * config.latent_channels, config.width, bias=False)
        self.gate = nn.Linear(config.width, m * m * self.choices)

    @torch.no_grad()
    def init_weights(self) -> None:
        """Move nothing anywhere at first: the latent at the same place counts most."""
        nn.init.zeros_(self.gate.weight)
        bias = self.gate.bias.view(-1, self.choices)
        bias.zero_()
        bias[:, (self.choices - 1) // 2] = 2.0

    def see(self, before: torch.Tensor) -> torch.Tensor:
        """Last frames' latents [F, N, C] to what their neighbourhoods add to tokens [F, N, D]."""
        m, r = self.config.merge, self.config.motion
        windows = self._padded(before).unfold(1, m + 2 * r, m).unfold(2, m + 2 * r, m)
        windows = windows.permute(0, 1, 2, 4, 5, 3)  # [F, rows, columns, m + 2 r, m + 2 r, c]
        return self.read(windows.flatten(3).flatten(1, 2))

    def move(self, hidden: torch.Tensor, before: torch.Tensor) -> torch.Tensor:
        """Hidden [F, N, D] and last frames' latents [F, N, C] to moved latents [F, N, C]."""
        config = self.config
        gates = self.gate(hidden).unflatten(-1, (-1, self.choices)).softmax(-1)
        gates = split_cells(config, gates.flatten(2)).unflatten(1, config.latent_grid)
        padded, moved = self._padded(before), 0
        rows, columns = config.latent_grid
        for choice in range(self.choices - 1):  # slices: many times faster here than F.unfold
            down, right = divmod(choice, 2 * config.motion + 1)
            part = padded[:, down : down + rows, right : right + columns]
            moved = moved + gates[..., choice : choice + 1] * part
        assert isinstance(moved, torch.Tensor)
        return join_cells(config, moved.flatten(1, 2))

    def _padded(self, tokens: torch.Tensor) -> torch.Tensor:
        """Latents on their grid with a border, [F, rows + 2 r, columns + 2 r, c]: edges go on."""
        cells = split_cells(self.config, tokens).unflatten(1, self.config.latent_grid)
        cells = F.pad(cells.permute(0, 3, 1, 2), (self.config.motion,) * 4, mode="replicate")
        return cells.permute(0, 2, 3, 1).contiguous()


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
        self.paint = nn.Linear(width, channels)
        self.motion = Motion(config) if config.motion >= 0 else None
        axis, frequencies = rotary_table(width // config.heads)
        self.register_buffer("axis", axis, persistent=False)
        self.register_buffer("frequencies", frequencies, persistent=False)
        self.init_weights()

    @torch.no_grad()
    def init_weights(self) -> None:
        """All initialisation in one place.

        Text embeddings: normal with mean and deviation 1; other tables 0.02.
        Linear layers: normal with variance 1 / inputs; the feed-forward's output is scaled down
        by sqrt(2 * depth), the attention's is not: what it copies should be heard beside the
        noise of the frame. Output heads: zero. Biases: zero, but for queries and keys, see
        `_point_heads`.
        """
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=module.in_features**-0.5)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
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
        nn.init.zeros_(self.paint.weight)
        if self.motion is not None:
            self.motion.init_weights()

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
                spatial = torch.tensor([0.0, *(offset or (0, 0, 0))])
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
    ) -> torch.Tensor:
        """Frame tokens of (noised) latents.

        Args:
            latents: [F, N, C] in the core's grid (see `merge`).
            level: [F] signal level t in [0, 1], 1 is clean.
            stride: int64 [F], step size 2^-i; the last one means "no step, plain flow".
            before: [F, N, C] the last frame as shown to the core; zeros where there is none.

        Returns:
            [F, N, D].
        """
        condition = self.level(level_features(level).to(latents.dtype)) + self.stride(stride)
        x = self.see(latents) + self.place + condition.unsqueeze(1)
        return x if self.motion is None else x + self.motion.see(before)

    def draw(self, hidden: torch.Tensor, before: torch.Tensor) -> torch.Tensor:
        """Hidden states [F, N, D] of frame tokens to predicted clean latents [F, N, C].

        `before` is what `embed_frames` was given.
        """
        x = self.paint(hidden)
        return x if self.motion is None else x + self.motion.move(hidden, before)

    def forward(
        self,
        x: torch.Tensor,
        vision: torch.Tensor,
        position: torch.Tensor,
        mask: torch.Tensor,
        cache: KVCache | None = None,
    ) -> torch.Tensor:
        """Run the blocks.

        Args:
            x: [B, L, D] embedded tokens.
            vision: bool [B, L].
            position: int64 [B, L, 4].
            mask: bool [B, L, keys]; keys are the cache's committed tokens, then these.
            cache: where keys and values are kept, or None.

        Returns:
            [B, L, D], normalised, for `say` and `draw`.
        """
        angles = position[..., self.axis].float() * self.frequencies
        rotary = (angles.cos().unsqueeze(2), angles.sin().unsqueeze(2))
        modality = vision.long() * VISION
        for layer, block in enumerate(self.blocks):
            x = block(x, modality, rotary, mask.unsqueeze(1), cache, layer)
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
        args, idle = self.config.feed_forward, 0
        expert = 3 * self.config.width * args["hidden"]
        idle = self.config.depth * expert * (args["experts"] - args["top_k"] + args["shared"] - 1)
        return total - idle, total


def join_cells(config: CoreConfig, latents: torch.Tensor) -> torch.Tensor:
    """Latents [F, n, c] to tokens [F, N, C] of merge x merge neighbours each."""
    (rows, columns), m = config.latent_grid, config.merge
    x = latents.view(-1, rows // m, m, columns // m, m, latents.shape[-1])
    return x.transpose(2, 3).flatten(3).flatten(1, 2)


def split_cells(config: CoreConfig, tokens: torch.Tensor) -> torch.Tensor:
    """Tokens [F, N, C] to latents [F, n, c]; inverse of `join_cells`."""
    (rows, columns), m = config.grid, config.merge
    x = tokens.view(-1, rows, columns, m, m, tokens.shape[-1] // m**2)
    return x.transpose(2, 3).flatten(1, 4)


def rotary_table(head: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the axis (0 order, 1 step, 2 row, 3 column) and frequency of each of head / 2 pairs.

    A quarter of the pairs each. Order in the text has the usual geometric frequencies. Step,
    row and column have evenly spaced ones up to pi: their sum is a sharp peak, so that a head
    can look at exactly the neighbouring cell of exactly the last frame. With geometric ones it
    sees a blur of cells, and motion is not learned (docs/decisions/0005).
    """
    quarter = head // 8
    order = head // 2 - 3 * quarter
    axis = torch.tensor([0] * order + [1] * quarter + [2] * quarter + [3] * quarter)
    geometric = 10_000.0 ** -(torch.arange(order) / order)
    even = torch.pi * torch.arange(1, quarter + 1) / quarter
    return axis, torch.cat([geometric, even, even, even])


def rotate(x: torch.Tensor, rotary: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """Turn pairs of channels of [B, L, heads, head] by the angles of their positions."""
    cos, sin = rotary
    a, b = x.chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)


def level_features(level: torch.Tensor) -> torch.Tensor:
    """Sines and cosines [F, 64] of signal levels [F]."""
    frequencies = torch.logspace(0, 2.5, 32, device=level.device)
    angles = level.float().unsqueeze(-1) * frequencies
    return torch.cat([angles.sin(), angles.cos()], dim=-1)
