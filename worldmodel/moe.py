"""The feed-forward part of a block: dense, one per modality, or a mixture of experts.

All three are the same list of experts. A token always runs its shared expert (one for all
tokens, or one per modality); in a mixture it also runs `top_k` routed ones, chosen by a
sigmoid router whose per-expert bias is nudged towards even loads (arXiv 2408.15664): the bias
takes part in choosing and not in weighing. No token is ever dropped.

Shapes: T tokens, D width, E routed experts, S shared experts, K routed choices, H hidden.
"""

import torch
import torch.nn.functional as F
from torch import nn

TEXT, VISION = 0, 1

# Up to this many tokens all experts are computed in two batched products: at the size of one
# frame every expert is chosen by some token, and one large product beats many small ones.
_FEW_TOKENS = 160


class _Permute(torch.autograd.Function):
    """Reorder rows; the backward pass is the inverse reordering, not a slow scatter-add."""

    @staticmethod
    def forward(ctx, x: torch.Tensor, index: torch.Tensor, inverse: torch.Tensor):  # type: ignore[override]
        """Return x[index]; `inverse` undoes `index`."""
        ctx.save_for_backward(inverse)
        return x.index_select(0, index)

    @staticmethod
    def backward(ctx, *grads: torch.Tensor):  # type: ignore[override]
        """Return the gradient in the old order."""
        (inverse,) = ctx.saved_tensors
        return grads[0].index_select(0, inverse), None, None


class Router(nn.Module):
    """Sigmoid scores, chosen with a balancing bias, weighed without it."""

    bias: torch.Tensor
    load: torch.Tensor

    def __init__(self, width: int, experts: int, top_k: int) -> None:
        super().__init__()
        self.top_k = top_k
        self.weight = nn.Parameter(torch.randn(experts, width) * width**-0.5)
        self.register_buffer("bias", torch.zeros(experts))
        # Picks of each expert by modality since the last `balance`; not part of a checkpoint.
        self.register_buffer("load", torch.zeros(2, experts), persistent=False)

    def forward(self, x: torch.Tensor, modality: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Tokens [T, D], modality [T] to chosen experts [T, K] and their weights [T, K]."""
        with torch.autocast(x.device.type, enabled=False):
            scores = F.linear(x.float(), self.weight.float()).sigmoid()
        chosen = (scores.detach() + self.bias).topk(self.top_k, dim=-1).indices
        weights = scores.gather(1, chosen)
        weights = weights / (weights.sum(-1, keepdim=True) + 1e-9)
        with torch.no_grad():
            flat = modality.unsqueeze(1) * self.load.shape[1] + chosen
            self.load += torch.bincount(flat.flatten(), minlength=self.load.numel()).view_as(
                self.load
            )
        return chosen, weights

    @torch.no_grad()
    def balance(self, rate: float) -> torch.Tensor:
        """Move the biases against the loads since the last call; return and clear the loads."""
        load = self.load.clone()
        total = load.sum(0)
        move = rate * torch.sign(total.mean() - total)
        self.bias += move - move.mean()
        self.load.zero_()
        return load


class FeedForward(nn.Module):
    """SwiGLU experts; see the module's text for the three kinds.

    Args:
        width: D.
        hidden: H of every expert.
        experts: E routed experts; 0 for none.
        top_k: K.
        shared: 1 for one shared expert, 2 for one per modality.
    """

    def __init__(self, width: int, hidden: int, experts: int, top_k: int, shared: int) -> None:
        super().__init__()
        self.shared = shared
        self.router = Router(width, experts, top_k) if experts else None
        self.num_experts = experts
        total = experts + shared
        self.w_in = nn.Parameter(torch.randn(total, 2 * hidden, width) * width**-0.5)
        self.w_out = nn.Parameter(torch.randn(total, width, hidden) * hidden**-0.5)

    def forward(self, x: torch.Tensor, modality: torch.Tensor) -> torch.Tensor:
        """Tokens [T, D] and modality [T] (TEXT or VISION) to tokens [T, D]."""
        own = modality if self.shared == 2 else torch.zeros_like(modality)
        chosen = (self.num_experts + own).unsqueeze(1)
        weights = torch.ones_like(chosen, dtype=torch.float32)
        if self.router is not None:
            routed, scores = self.router(x, modality)
            # The shared expert counts like one routed one: scores sum to 1, scaled by K.
            chosen = torch.cat([routed, chosen], dim=1)
            weights = torch.cat([scores * self.router.top_k, weights], dim=1)
            weights = weights / (self.router.top_k + 1) ** 0.5
        if len(x) <= _FEW_TOKENS and not torch.is_grad_enabled():
            return self._all_experts(x, chosen, weights)
        return self._grouped(x, chosen, weights)

    def _grouped(
        self, x: torch.Tensor, chosen: torch.Tensor, weights: torch.Tensor
    ) -> torch.Tensor:
        picks = chosen.shape[1]
        index = torch.argsort(chosen.flatten(), stable=True)
        inverse = torch.empty_like(index)
        inverse[index] = torch.arange(len(index), device=index.device)
        counts = torch.bincount(chosen.flatten(), minlength=len(self.w_in)).tolist()
        rows = x.unsqueeze(1).expand(-1, picks, -1).reshape(-1, x.shape[-1])
        parts = _Permute.apply(rows, index, inverse).split(counts)  # type: ignore[union-attr]
        w_in, w_out = self.w_in, self.w_out
        if torch.is_autocast_enabled(x.device.type):  # cast the stack once, not slice by slice
            dtype = torch.get_autocast_dtype(x.device.type)
            w_in, w_out = w_in.to(dtype), w_out.to(dtype)
        done = [
            F.linear(_swiglu(F.linear(part, up)), down)
            for part, up, down in zip(parts, w_in.unbind(), w_out.unbind(), strict=True)
            if len(part)
        ]
        out = _Permute.apply(torch.cat(done), inverse, index)
        out = out.view(len(x), picks, -1)  # type: ignore[union-attr]
        return (out * weights.unsqueeze(-1).to(out.dtype)).sum(1)

    def _all_experts(
        self, x: torch.Tensor, chosen: torch.Tensor, weights: torch.Tensor
    ) -> torch.Tensor:
        gates = torch.zeros(len(x), len(self.w_in), device=x.device, dtype=x.dtype)
        gates.scatter_(1, chosen, weights.to(x.dtype))
        hidden = _swiglu(torch.matmul(x.unsqueeze(0), self.w_in.mT))  # [E + S, T, H]
        hidden = hidden * gates.T.unsqueeze(-1)
        return torch.matmul(hidden, self.w_out.mT).sum(0)


def _swiglu(x: torch.Tensor) -> torch.Tensor:
    gate, value = x.chunk(2, dim=-1)
    return F.silu(gate) * value
