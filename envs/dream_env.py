"""`worldmodel/Dream-v0`: a checkpoint as a Gymnasium environment."""

from typing import Any

import numpy as np

from worldmodel.dream import Dream
from worldmodel.envs.world_env import WorldEnv


class DreamEnv(WorldEnv):
    """A trained model as a Gymnasium environment; the seed picks the start and the noise.

    Args:
        checkpoint: a bundled name or a folder.
        device, dtype: where and with which numbers the model runs; see `Dream.load`.
        denoise_steps: network passes a frame; fewer are faster.
        guidance: strength of action text and instruction, 1 for plain.
        noise_seed: of the imagination's noise, for the life of the environment.
        actions, render_mode: see `WorldEnv`.

    `reset(options={"instruction": "go to the red pillar"})` gives a sentence that holds until the
    next reset.
    """

    def __init__(
        self,
        checkpoint: str = "doom-nano",
        device: str = "auto",
        dtype: str = "auto",
        denoise_steps: int = 2,
        guidance: float = 1.0,
        noise_seed: int = 0,
        actions: str = "discrete",
        render_mode: str | None = None,
    ) -> None:
        self._dream = Dream.load(checkpoint, device, dtype, denoise_steps, guidance, noise_seed)
        super().__init__(self._dream, actions, render_mode)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Start from the bundled start number `seed` (modulo their number), or a random one."""
        frame, info = super().reset(seed=seed)
        if options and (sentence := options.get("instruction")):
            self._dream.say(sentence)
        return frame, info
