"""A World as a Gymnasium environment, so that agents and tools of that ecosystem run in it."""

from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from worldmodel.actions import Action
from worldmodel.envs.gym_controls import pairs
from worldmodel.errors import UserError, suggest
from worldmodel.world import Step, World

KINDS = ("discrete", "buttons")


class WorldEnv(gymnasium.Env):
    """A World as a Gymnasium environment.

    Observations are frames, uint8 RGB [H, W, 3]. There is no reward of its own: it is 0. `info`
    holds the world's facts, infinite where a fact is not known, as the distance of what is out
    of sight; and under 'text' the action's text.

    Args:
        world: what is played; closed with the environment.
        actions: 'discrete', one of `get_action_meanings()`: nothing, each key, each two keys
            that can be held together; or 'buttons', MultiBinary, a bit per key.
        render_mode: None or 'rgb_array'.

    Raises:
        UserError: another kind of actions.
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"]}  # noqa: RUF012 (Gymnasium's own)

    def __init__(
        self, world: World, actions: str = "discrete", render_mode: str | None = None
    ) -> None:
        if actions not in KINDS:
            raise UserError(f"Unknown kind of actions '{actions}'.{suggest(actions, KINDS)}")
        spec = world.spec
        self.world = world
        self.render_mode = render_mode
        self.metadata = {**WorldEnv.metadata, "render_fps": spec.fps}
        self.observation_space = spaces.Box(0, 255, (spec.height, spec.width, 3), np.uint8)
        self._choices: tuple[Action, ...] = ()
        if actions == "discrete":
            self._choices = pairs(spec.actions)
            self.action_space: gymnasium.Space = spaces.Discrete(len(self._choices))
        else:
            self.action_space = spaces.MultiBinary(len(spec.actions.rows))
        self._frame = np.zeros((spec.height, spec.width, 3), np.uint8)

    def get_action_meanings(self) -> list[str]:
        """Return the keys of each action, for instance 'none', 'w', 'w+a'; or of each button."""
        if not self._choices:
            return list(self.world.spec.actions.keys)
        texts = (self.world.spec.actions.text(choice) for choice in self._choices)
        return [text.removeprefix("action: ") for text in texts]

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Start again; the seed is the world's own, None draws one."""
        super().reset(seed=seed)
        if seed is None:
            seed = int(self.np_random.integers(2**31))
        return self._show(self.world.reset(seed))

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Do one action."""
        return self.outcome(self.world.step(self.chosen(action)))

    def chosen(self, action: Any) -> Action:
        """Return what an element of the action space does."""
        table = self.world.spec.actions
        if self._choices:
            return self._choices[int(action)]
        return table.press(key for key, on in zip(table.keys, action, strict=True) if on)

    def outcome(self, step: Step) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Return what `step` gives for a step of the world, which is then shown."""
        frame, info = self._show(step)
        return frame, 0.0, step.terminated, step.truncated, info

    def render(self) -> np.ndarray | None:  # type: ignore[override]
        """Return the last frame, uint8 RGB [H, W, 3]; None without a render mode."""
        return self._frame.copy() if self.render_mode == "rgb_array" else None

    def close(self) -> None:
        """Close the world."""
        self.world.close()

    def _show(self, step: Step) -> tuple[np.ndarray, dict[str, Any]]:
        self._frame = step.frame
        return step.frame.copy(), self._info(step)

    def _info(self, step: Step) -> dict[str, Any]:
        # NaN does not equal itself: two equal steps would look different.
        facts = {name: np.nan_to_num(fact, nan=np.inf) for name, fact in step.facts.items()}
        return {**facts, "text": step.text}


class DoomEnv(WorldEnv):
    """`worldmodel/Doom-v0`: procedural Doom levels; the seed is the level's number.

    Args:
        split: 'train', 'val' or 'test'; their levels are disjoint.
        native: height of the engine's picture before it is resampled: 120, 240 or 480.
        size: height and width of the frames.
        actions, render_mode: see `WorldEnv`.
    """

    def __init__(
        self,
        split: str = "train",
        native: int = 240,
        size: int = 64,
        actions: str = "discrete",
        render_mode: str | None = None,
    ) -> None:
        from worldmodel.envs import make_world

        world = make_world("doom", split=split, native=native, size=size)
        super().__init__(world, actions, render_mode)
