"""Optimisers: Muon for the matrices inside the blocks, AdamW for everything else."""

import math
from collections.abc import Iterable, Sequence

import torch
from torch import _foreach_add_, _foreach_lerp, _foreach_lerp_, _foreach_mul_, nn  # type: ignore
from torch.distributed.tensor import DTensor, Replicate, Shard

from worldmodel.devices import choose_dtype

# Coefficients of the quintic Newton-Schulz iteration, from Jordan et al. 2024 (Muon).
_NS = (3.4445, -4.7750, 2.0315)
_TOGETHER = 1 << 22
"""Matrices of one shape are orthogonalised together up to about so many numbers: small ones cost
more to begin than to compute."""


class Muon(torch.optim.Optimizer):
    """Momentum, orthogonalised by Newton-Schulz (Jordan et al. 2024).

    Unlike `torch.optim.Muon` it takes stacks of matrices [E, rows, columns], so that every
    expert of a layer is orthogonalised by itself in one batched product. The update is scaled
    by the size of the matrix as in Liu et al. 2025 (arXiv 2502.16982: 0.2 * sqrt(max side),
    an AdamW update), but three times as large: runs here are short.
    """

    def __init__(
        self,
        params: Iterable[nn.Parameter],
        lr: float,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
    ) -> None:
        defaults = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay}
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient."""
        del closure
        for group in self.param_groups:
            trained = [p for p in group["params"] if p.grad is not None]
            for alike in _alike(trained):
                gradients = [p.grad for p in alike if p.grad is not None]
                for p in alike:
                    if not self.state[p]:
                        self.state[p]["momentum"] = torch.zeros_like(p)
                momenta = [self.state[p]["momentum"] for p in alike]
                _foreach_lerp_(momenta, gradients, 1 - group["momentum"])
                nesterov = _foreach_lerp(gradients, momenta, group["momentum"])
                updates = _orthogonal_updates(nesterov)  # type: ignore[arg-type]
                scale = 0.6 * math.sqrt(max(alike[0].shape[-2:]))
                _foreach_mul_(alike, 1 - group["lr"] * group["weight_decay"])
                _foreach_add_(alike, updates, alpha=-group["lr"] * scale)


def _alike(params: Sequence[torch.Tensor]) -> list[list[torch.Tensor]]:
    """Sort parameters into lists of one shape, to be done together: small ones, whole ones."""
    found: list[list[torch.Tensor]] = []
    last: dict[torch.Size, list[torch.Tensor]] = {}
    for p in params:
        if isinstance(p, DTensor):
            found.append([p])
            continue
        together = last.get(p.shape)
        if together is None or len(together) * p.numel() >= _TOGETHER:
            together = last[p.shape] = []
            found.append(together)
        together.append(p)
    return found


def orthogonalise(matrix: torch.Tensor, steps: int = 5) -> torch.Tensor:
    """Return the nearest semi-orthogonal matrix (roughly) of [..., rows, columns].

    In bfloat16 where it is fast, else in the matrix's own format.
    """
    a, b, c = _NS
    x = matrix.to(choose_dtype("auto", matrix.device)).reshape(-1, *matrix.shape[-2:])
    wide = x.shape[-2] <= x.shape[-1]
    if not wide:
        x = x.mT
    x = x / (x.float().norm(dim=(-2, -1), keepdim=True).to(x.dtype) + 1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x if wide else x.mT).reshape(matrix.shape)


def _orthogonal_updates(matrices: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Orthogonalise matrices or stacks of one shape, in their own format."""
    if len(matrices) == 1:
        return [_orthogonal_update(matrices[0])]
    return list(orthogonalise(torch.stack(list(matrices))).to(matrices[0].dtype))


def _orthogonal_update(matrix: torch.Tensor) -> torch.Tensor:
    """Orthogonalise a matrix or a stack, also one that is divided over processes.

    Of a stack that is divided between its matrices, each process does its own. One matrix that is
    divided is put together and done by all: those are the small ones, of attention.
    """
    if not isinstance(matrix, DTensor):
        return orthogonalise(matrix).to(matrix.dtype)
    mesh, placements = matrix.device_mesh, matrix.placements
    if matrix.ndim == 3 and all(p == Shard(0) or p.is_replicate() for p in placements):
        local = matrix.to_local()
        done = orthogonalise(local) if len(local) else local
        return DTensor.from_local(
            done.to(matrix.dtype), mesh, placements, shape=matrix.shape, stride=matrix.stride()
        )
    full = orthogonalise(matrix.full_tensor()).to(matrix.dtype).contiguous()
    return DTensor.from_local(full, mesh, [Replicate()] * mesh.ndim).redistribute(mesh, placements)


def build_optimizers(
    module: nn.Module, lr: float, weight_decay: float, muon: bool
) -> list[torch.optim.Optimizer]:
    """Split the parameters: matrices of the blocks to Muon (if asked), the rest to AdamW.

    Every trainable parameter is in exactly one group. Weight decay acts on matrices only.
    """
    matrices, tables, vectors = [], [], []
    for name, p in module.named_parameters():
        if not p.requires_grad:
            continue
        if p.ndim >= 2 and "blocks." in name and min(p.shape[-2:]) > 1:
            matrices.append(p)
        else:
            (tables if p.ndim >= 2 else vectors).append(p)
    adam = [
        {"params": tables if muon else tables + matrices, "weight_decay": weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    fused = all(p.device.type in ("cpu", "cuda") for p in module.parameters())
    optimizers: list[torch.optim.Optimizer] = [
        torch.optim.AdamW(adam, lr=lr, betas=(0.9, 0.95), fused=fused)
    ]
    if muon and matrices:
        optimizers.append(Muon(matrices, lr=lr, weight_decay=weight_decay))
    return optimizers


def learning_rate(step: int, steps: int, peak: float, warmup: int, end: float = 0.05) -> float:
    """Linear warm-up to `peak`, then cosine to `end * peak` at the last step."""
    if step < warmup:
        return peak * (step + 1) / warmup
    progress = (step - warmup) / max(1, steps - warmup)
    return peak * (end + (1 - end) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress))))
