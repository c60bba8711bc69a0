"""The feed-forward part of a block: dense, one per modality, or a mixture of experts.

All three are the same list of experts. A token always runs its shared expert, if there are any
(one for all tokens, or one per modality); in a mixture it also runs `top_k` routed ones, chosen
by a sigmoid router. Loads are kept even by a bias per expert, which takes part in choosing and
not in weighing (arXiv 2408.15664), or by a loss (arXiv 2101.03961). No token is ever dropped.

Shapes: T tokens, D width, E routed experts, S shared experts, K routed choices, H hidden.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

TEXT, VISION = 0, 1
SHARED = {"none": 0, "global": 1, "modality": 2}
"""Number of shared experts: none, one for all tokens, or one per modality."""

# Up to so many tokens and experts all are computed in two batched products: at the size of one
# frame every expert is chosen by some token, and one large product beats many small ones.
FEW_TOKENS = 160
FEW_EXPERTS = 32


class _Spread(torch.autograd.Function):
    """Tokens to the rows of those who chose them; the transpose of `_Collect`.

    `token` [rows] is whose row each is, `rows_of` [T, picks] where a token's rows are. Summing bags
    of rows is one fast pass; what autograd would make of it is a slow scatter-add.
    """

    @staticmethod
    def forward(ctx, x: torch.Tensor, token: torch.Tensor, rows_of: torch.Tensor):  # type: ignore[override]
        """[T, D] to [rows, D]."""
        ctx.save_for_backward(rows_of)
        return x.index_select(0, token)

    @staticmethod
    def backward(ctx, *grads: torch.Tensor):  # type: ignore[override]
        """[rows, D] to [T, D]."""
        (rows_of,) = ctx.saved_tensors
        return F.embedding_bag(rows_of, grads[0].contiguous(), mode="sum"), None, None


class _Collect(torch.autograd.Function):
    """Sum every token's rows; the transpose of `_Spread`."""

    @staticmethod
    def forward(ctx, rows: torch.Tensor, token: torch.Tensor, rows_of: torch.Tensor):  # type: ignore[override]
        """[rows, D] to [T, D]."""
        ctx.save_for_backward(token)
        return F.embedding_bag(rows_of, rows, mode="sum")

    @staticmethod
    def backward(ctx, *grads: torch.Tensor):  # type: ignore[override]
        """[T, D] to [rows, D]."""
        (token,) = ctx.saved_tensors
        return grads[0].index_select(0, token), None, None


@dataclass(frozen=True)
class _Order:
    """The picks of T tokens, sorted by expert.

    Attributes:
        index: int64 [rows], which pick (token * picks + number) each row is.
        token: int64 [rows], whose pick it is.
        rows_of: int64 [T, picks], where a token's rows are.
        ends: int32 [E + S], where the experts' rows end.
    """

    index: torch.Tensor
    token: torch.Tensor
    rows_of: torch.Tensor
    ends: torch.Tensor

    def spread(self, x: torch.Tensor) -> torch.Tensor:
        """Tokens [T, D] to sorted rows [rows, D]."""
        return _Spread.apply(x, self.token, self.rows_of)  # type: ignore[return-value]

    def collect(self, rows: torch.Tensor) -> torch.Tensor:
        """Sorted rows [rows, D] to their sums by token [T, D]."""
        return _Collect.apply(rows, self.token, self.rows_of)  # type: ignore[return-value]


class Router(nn.Module):
    """Sigmoid scores, chosen with a balancing bias, weighed without it."""

    bias: torch.Tensor
    load: torch.Tensor

    def __init__(self, width: int, experts: int, top_k: int) -> None:
        super().__init__()
        self.top_k = top_k
        self.weight = nn.Parameter(torch.empty(experts, width))
        self.register_buffer("bias", torch.zeros(experts))
        # Picks of each expert by modality since the last `balance`; not part of a checkpoint.
        self.register_buffer("load", torch.zeros(2, experts), persistent=False)
        self.init_weights()
        # Of the last forward pass with gradients: 1 when loads and scores are even, E / K at worst.
        self.unevenness: torch.Tensor | None = None

    @torch.no_grad()
    def init_weights(self) -> None:
        """Scores of variance 1 before the sigmoid; no bias."""
        nn.init.normal_(self.weight, std=self.weight.shape[1] ** -0.5)
        self.bias.zero_()
        self.load.zero_()

    def forward(self, x: torch.Tensor, modality: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Tokens [T, D], modality [T] to chosen experts [T, K] and their weights [T, K]."""
        with torch.autocast(x.device.type, enabled=False):
            scores = F.linear(x.float(), self.weight.float()).sigmoid()
        chosen = (scores.detach() + self.bias).topk(self.top_k, dim=-1).indices
        if torch.is_grad_enabled():
            self.unevenness = _unevenness(scores, chosen)
        weights = scores.gather(1, chosen)
        weights = weights / (weights.sum(-1, keepdim=True) + 1e-9)
        if self.training:
            flat = (modality.unsqueeze(1) * self.load.shape[1] + chosen).flatten()
            self.load.view(-1).scatter_add_(0, flat, self.load.new_ones(len(flat)))
        return chosen, weights

    @torch.no_grad()
    def balance(self, rate: float) -> torch.Tensor:
        """Move the biases against the loads since the last call; return and clear the loads."""
        load = self.load.clone()
        total = load.sum(0)
        move = rate * torch.sign(total.mean() - total)
        self.bias += move - move.mean()
        self.load.zero_()
        self.unevenness = None
        return load


def routers(core: nn.Module) -> list[Router]:
    """The routers of a core, from the first block to the last; none for other feed-forwards."""
    return [module for module in core.modules() if isinstance(module, Router)]


class FeedForward(nn.Module):
    """SwiGLU experts; see the module's text for the three kinds.

    Args:
        width: D.
        hidden: H of every expert.
        experts: E routed experts; 0 for none.
        top_k: K.
        shared: 0 for no shared expert, 1 for one, 2 for one per modality.
    """

    fixed: torch.Tensor

    def __init__(self, width: int, hidden: int, experts: int, top_k: int, shared: int) -> None:
        super().__init__()
        self.shared = shared
        self.router = Router(width, experts, top_k) if experts else None
        self.num_experts = experts
        total = experts + shared
        # The shared expert counts like one routed one, whose scores sum to 1.
        self.count = (top_k + (shared > 0)) ** -0.5 if experts else 1.0
        self.scale = top_k * self.count
        # What the shared experts count for a token of either modality.
        self.register_buffer("fixed", torch.zeros(2, total), persistent=False)
        self.w_in = nn.Parameter(torch.empty(total, 2 * hidden, width))
        self.w_out = nn.Parameter(torch.empty(total, width, hidden))
        self.init_weights()

    @torch.no_grad()
    def init_weights(self) -> None:
        """Normal with variance 1 / inputs."""
        for weight in (self.w_in, self.w_out):
            nn.init.normal_(weight, std=weight.shape[-1] ** -0.5)
        self.fixed.zero_()
        for modality in (TEXT, VISION):
            own = self.num_experts + (modality if self.shared == 2 else 0)
            if self.shared:
                self.fixed[modality, own] = self.count
        if self.router is not None:
            self.router.init_weights()

    def forward(self, x: torch.Tensor, modality: torch.Tensor) -> torch.Tensor:
        """Tokens [T, D] and modality [T] (TEXT or VISION) to tokens [T, D]."""
        if len(self.w_in) == 1:  # nothing to choose
            return F.linear(_swiglu(F.linear(x, self.w_in.squeeze(0))), self.w_out.squeeze(0))
        few = len(x) <= FEW_TOKENS and len(self.w_in) <= FEW_EXPERTS
        if few and not torch.is_grad_enabled():
            return self._all_experts(x, self.gates(x, modality))
        return self._grouped(x, *self._choose(x, modality))

    def gates(self, x: torch.Tensor, modality: torch.Tensor) -> torch.Tensor:
        """What every expert counts for each token, [T, E + S] in the number format of x."""
        gates = self.fixed.to(x.dtype).index_select(0, modality)
        if self.router is None:
            return gates
        chosen, scores = self.router(x, modality)
        return gates.scatter_(1, chosen, (scores * self.scale).to(x.dtype))

    def _choose(self, x: torch.Tensor, modality: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return every expert that each token runs [T, picks], and what it counts."""
        own = modality if self.shared == 2 else torch.zeros_like(modality)
        fixed = (self.num_experts + own).unsqueeze(1)[:, : self.shared]
        if self.router is None:
            return fixed, torch.ones_like(fixed, dtype=torch.float32)
        routed, scores = self.router(x, modality)
        weights = F.pad(scores * self.scale, (0, self.shared and 1), value=self.count)
        return torch.cat([routed, fixed], dim=1), weights

    def _grouped(
        self, x: torch.Tensor, chosen: torch.Tensor, weights: torch.Tensor
    ) -> torch.Tensor:
        order = self._sort(chosen)
        if torch.is_autocast_enabled(x.device.type):
            x = x.to(torch.get_autocast_dtype(x.device.type))
        shares = weights.flatten().index_select(0, order.index).unsqueeze(1).to(x.dtype)
        return order.collect(self._products(order.spread(x), shares, order.ends))

    def _sort(self, chosen: torch.Tensor) -> "_Order":
        """Sort what tokens chose [T, picks] by expert."""
        expert, index = chosen.flatten().sort(stable=True)
        rows_of = torch.empty_like(index)
        rows_of[index] = torch.arange(len(index), device=index.device)
        experts = torch.arange(len(self.w_in), device=index.device)
        ends = torch.searchsorted(expert, experts, right=True, out_int32=True)
        return _Order(index, index // chosen.shape[1], rows_of.view_as(chosen), ends)

    def _products(
        self, rows: torch.Tensor, shares: torch.Tensor, ends: torch.Tensor
    ) -> torch.Tensor:
        """The experts of sorted rows [rows, D], each times its share [rows, 1]."""
        # One cast of the whole stack is faster than one of every slice.
        w_in, w_out = self.w_in.to(rows.dtype), self.w_out.to(rows.dtype)
        # Grouped products have a kernel of their own in bfloat16 alone, for rows of whole 16 bytes.
        aligned = all(side % 8 == 0 for side in w_out.shape[1:])
        grouped = rows.is_cuda and rows.dtype == torch.bfloat16 and aligned
        products = _grouped_products if grouped else _sliced_products
        return products(rows, shares, w_in, w_out, ends)

    def _all_experts(self, x: torch.Tensor, gates: torch.Tensor) -> torch.Tensor:
        hidden = _swiglu(torch.matmul(x.unsqueeze(0), self.w_in.mT))  # [E + S, T, H]
        hidden = hidden * gates.T.unsqueeze(-1)
        return torch.matmul(hidden, self.w_out.mT).sum(0)


def _unevenness(scores: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
    """Balance loss E * sum_i f_i P_i (Switch Transformer, arXiv 2101.03961, eq. 4).

    f_i: share of the picks that expert i got; P_i: its mean share of the scores.
    """
    experts = scores.shape[1]
    picks = chosen.flatten()
    # Not bincount, which waits for the device to know the largest.
    share = scores.new_zeros(experts).scatter_add_(0, picks, scores.new_ones(len(picks)))
    share = share / len(picks)
    return experts * (share * (scores / scores.sum(-1, keepdim=True)).mean(0)).sum()


def _sliced_products(
    rows: torch.Tensor,
    shares: torch.Tensor,
    w_in: torch.Tensor,
    w_out: torch.Tensor,
    ends: torch.Tensor,
) -> torch.Tensor:
    """Weighted experts of sorted rows [rows, D], one after the other: slices that fit the caches.

    `ends` [E + S] are where the experts' rows end.
    """
    counts = ends.diff(prepend=ends.new_zeros(1)).tolist()
    # At play filled up to multiples, so that few shapes occur: oneDNN remembers each at 0.3 MiB.
    fill = 1 if torch.is_grad_enabled() else 16
    parts = zip(rows.split(counts), shares.split(counts), w_in, w_out, strict=True)
    return torch.cat(
        [
            F.linear(_swiglu(F.linear(_filled(part, fill), up)) * _filled(share, fill), down)[
                : len(part)
            ]
            for part, share, up, down in parts
            if len(part)
        ]
    )


def _filled(rows: torch.Tensor, multiple: int) -> torch.Tensor:
    """Rows [T, ...] with zeros behind them, to a multiple of so many."""
    missing = -len(rows) % multiple
    return F.pad(rows, (0, 0, 0, missing)) if missing else rows


def _grouped_products(
    rows: torch.Tensor,
    shares: torch.Tensor,
    w_in: torch.Tensor,
    w_out: torch.Tensor,
    ends: torch.Tensor,
) -> torch.Tensor:
    """The same in two grouped products, which do not wait for the device to know the sizes."""
    hidden = _swiglu(F.grouped_mm(rows, w_in.mT, offs=ends)) * shares
    return F.grouped_mm(hidden, w_out.mT, offs=ends)


def _swiglu(x: torch.Tensor) -> torch.Tensor:
    gate, value = x.chunk(2, dim=-1)
    return F.silu(gate) * value
