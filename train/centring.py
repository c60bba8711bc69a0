"""Loss centring: text and flow loss pull with equal strength, whatever their sizes are."""

import torch

from worldmodel.train.distributed import ranks, total


class LossCentre:
    """Makes each of two losses worth the running mean of both (arXiv 2603.03276, appendix).

    c = share * flow + (1 - share) * text, kept as a running mean with `decay`; the weights are
    c / flow and c / text, without gradient. The paper does not give share and decay.
    """

    def __init__(self, share: float, decay: float, device: torch.device) -> None:
        self.share, self.decay = share, decay
        self.mean = torch.zeros((), device=device)  # 0 until the first step is done
        self._seen: list[torch.Tensor] = []

    def weigh(self, text: torch.Tensor, flow: torch.Tensor) -> torch.Tensor:
        """Return the loss of one batch."""
        flow_now, text_now = flow.detach(), text.detach()
        here = self.share * flow_now + (1 - self.share) * text_now
        self._seen.append(here)
        return self._next(here) * (
            flow / flow_now.clamp(min=1e-9) + text / text_now.clamp(min=1e-9)
        )

    def update(self) -> None:
        """Take in the batches of a step, of all processes."""
        here = total(torch.stack(self._seen).mean()) / ranks()
        self.mean.copy_(self._next(here))
        self._seen.clear()

    def _next(self, here: torch.Tensor) -> torch.Tensor:
        moved = self.decay * self.mean + (1 - self.decay) * here
        return torch.where(self.mean > 0, moved, here)
