"""`worldmodel/Dream-v0`: a checkpoint as a Gymnasium environment, and several as one batch."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from worldmodel.dream import Dream
from worldmodel.envs.world_env import WorldEnv
from worldmodel.errors import UserError


class DreamEnv(WorldEnv):
    """A trained model as a Gymnasium environment; the seed picks the start and the noise.

    Args:
        checkpoint: a bundled name, a folder, or a `Dream` that is loaded already, whose settings
            then hold instead of the next five.
        device, dtype: where and with which numbers the model runs; see `Dream.load`.
        denoise_steps: network passes a frame; fewer are faster.
        guidance: strength of action text and instruction, 1 for plain.
        noise_seed: of the imagination's noise, for the life of the environment.
        actions, render_mode: see `WorldEnv`.

    `reset(options={"instruction": "go to the red pillar"})` gives a sentence that holds until the
    next reset. An episode has no end of its own; `gymnasium.make(..., max_episode_steps=64)` cuts.

    Raises:
        UserError: no such checkpoint or device, or another kind of actions.
    """

    def __init__(
        self,
        checkpoint: str | Dream = "doom-nano",
        device: str = "auto",
        dtype: str = "auto",
        denoise_steps: int = 2,
        guidance: float = 1.0,
        noise_seed: int = 0,
        actions: str = "discrete",
        render_mode: str | None = None,
    ) -> None:
        if isinstance(checkpoint, Dream):
            self.dream = checkpoint
        else:
            self.dream = Dream.load(checkpoint, device, dtype, denoise_steps, guidance, noise_seed)
        super().__init__(self.dream, actions, render_mode)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Start from the bundled start number `seed` (modulo their number), or a random one."""
        frame, info = super().reset(seed=seed)
        if options and (sentence := options.get("instruction")):
            self.dream.say(sentence)
        return frame, info


class DreamVectorEnv(VectorEnv):
    """Several `DreamEnv` of one model that are stepped as one batch.

    Each is what `gymnasium.make` gives with the same seed and actions, but for the rounding of
    larger matrix products. An episode that was cut begins anew in the next step, whose action for
    it does not count (Gymnasium's next-step autoreset).

    Args:
        num_envs: how many.
        max_episode_steps: after which an episode is truncated; None for never.
        kwargs: those of `DreamEnv`.

    Raises:
        UserError: as `DreamEnv`; or a number below 1.
    """

    metadata: dict[str, Any] = {  # noqa: RUF012 (Gymnasium's own)
        "render_modes": ["rgb_array"],
        "autoreset_mode": AutoresetMode.NEXT_STEP,
    }

    def __init__(
        self, num_envs: int = 1, max_episode_steps: int | None = None, **kwargs: Any
    ) -> None:
        if num_envs < 1 or (max_episode_steps is not None and max_episode_steps < 1):
            raise UserError(
                "num_envs and max_episode_steps must be at least 1, got "
                f"{num_envs} and {max_episode_steps}."
            )
        first = DreamEnv(**kwargs)
        same = {name: kwargs[name] for name in ("actions", "render_mode") if name in kwargs}
        others = first.dream.fork(num_envs - 1)
        self.envs = (first, *(DreamEnv(dream, **same) for dream in others))
        self.num_envs, self.render_mode = num_envs, first.render_mode
        self.metadata = {**first.metadata, **DreamVectorEnv.metadata}
        self.single_observation_space = first.observation_space
        self.single_action_space = first.action_space
        self.observation_space = batch_space(first.observation_space, num_envs)
        self.action_space = batch_space(first.action_space, num_envs)
        self._most = max_episode_steps
        self._steps = np.zeros(num_envs, int)
        self._ended = np.zeros(num_envs, bool)
        self._frames = np.zeros(self.observation_space.shape or (), np.uint8)

    def reset(
        self,
        *,
        seed: int | Sequence[int | None] | None = None,
        options: dict[str, Any] | None = None,
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Start all anew, or with `options={"reset_mask": bool [num_envs]}` some of them.

        Args:
            seed: of each; a number counts up from the first; None draws.
            options: as of `DreamEnv.reset`, for all that are reset.

        Returns:
            Frames uint8 [num_envs, H, W, 3], and infos as `VectorEnv` has them.

        Raises:
            UserError: not a seed or mark for each.
        """
        options = dict(options or {})
        mask = np.asarray(options.pop("reset_mask", np.ones(self.num_envs, bool)))
        seeds: Sequence[int | None] = [None] * self.num_envs
        if isinstance(seed, int | np.integer):
            seeds = range(int(seed), int(seed) + self.num_envs)
        elif seed is not None:
            seeds = seed
        if len(seeds) != self.num_envs or mask.shape != (self.num_envs,) or mask.dtype != bool:
            raise UserError(
                f"{self.num_envs} environments need as many seeds, and as many true or false in "
                "reset_mask."
            )
        infos: dict[str, Any] = {}
        for i in np.flatnonzero(mask).tolist():
            infos = self._begin(i, seeds[i], options, infos)
        return self._frames.copy(), infos

    def step(
        self, actions: Any
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Step all as one batch, but those that begin anew.

        Args:
            actions: an action of each, as `action_space` has them.

        Returns:
            Frames uint8 [num_envs, H, W, 3]; rewards float [num_envs], 0; terminations, never;
            truncations; and infos.
        """
        infos: dict[str, Any] = {}
        going = np.flatnonzero(~self._ended).tolist()
        for i in np.flatnonzero(self._ended).tolist():
            infos = self._begin(i, None, {}, infos)
        if going:
            dreams = [self.envs[i].dream for i in going]
            steps = Dream.batch_step(dreams, [self.envs[i].chosen(actions[i]) for i in going])
            for i, step in zip(going, steps, strict=True):
                self._frames[i], _, _, _, info = self.envs[i].outcome(step)
                infos = self._add_info(infos, info, i)
            self._steps[going] += 1
        truncated = np.zeros(self.num_envs, bool)
        if self._most is not None:
            truncated = self._steps >= self._most
        self._ended = truncated
        never = np.zeros(self.num_envs, bool)
        return self._frames.copy(), np.zeros(self.num_envs), never, truncated.copy(), infos

    def render(self) -> tuple[np.ndarray | None, ...]:
        """Return the last frame of each; None without a render mode."""
        return tuple(env.render() for env in self.envs)

    def close_extras(self, **kwargs: Any) -> None:
        """Close all."""
        for env in self.envs:
            env.close()

    def _begin(
        self, i: int, seed: int | None, options: dict[str, Any], infos: dict[str, Any]
    ) -> dict[str, Any]:
        self._frames[i], info = self.envs[i].reset(seed=seed, options=options)
        self._steps[i], self._ended[i] = 0, False
        return self._add_info(infos, info, i)
