"""What the loop trains: a module and its losses on numbered batches."""

import torch
from torch import nn


class Task:
    """Something to train; a subclass gives `module` and `losses`, and overrides what it needs.

    Attributes:
        module: what is trained. It is the same object from the beginning to the end.
    """

    module: nn.Module

    def losses(self, step: int, batch: int | None = None) -> dict[str, torch.Tensor]:
        """Return scalar losses of one batch; 'loss' is the one that is minimised.

        Args:
            step: the optimiser's step, for what changes in the course of training.
            batch: number of the batch. No two of a run have the same, whatever the number of
                processes and of batches a step; its randomness is a function of it. Left out, it
                is the step's first.
        """
        raise NotImplementedError

    def inputs(self, batch: int) -> dict[str, torch.Tensor]:
        """Return the tensors of a batch, to be looked at when its loss is not finite."""
        raise NotImplementedError

    def after_step(self, step: int) -> dict[str, torch.Tensor]:
        """Run after the optimiser's step; returns further scalars to log."""
        return {}

    def state(self) -> dict[str, torch.Tensor]:
        """Return what resuming needs beside the module; it is filled in place."""
        return {}

    def work(self) -> dict[str, float]:
        """Return how much this process has done so far: 'tokens', 'frames', 'flops'."""
        return {}
