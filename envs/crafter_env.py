"""Crafter as a Gymnasium environment; the package itself speaks an older interface."""

from typing import Any, ClassVar

import crafter
import gymnasium
import numpy as np
from crafter import constants
from gymnasium import spaces

_ACTIONS: list[str] = vars(constants)["actions"]


class CrafterEnv(gymnasium.Env):
    """Crafter: gather, build, eat, fight on a random map.

    Observations are uint8 RGB [size, size, 3]; actions are Discrete, see `get_action_meanings`.

    Args:
        size: height and width of the picture.
        length: steps of an episode.
        render_mode: None or 'rgb_array'.
    """

    metadata: ClassVar[dict[str, Any]] = {"render_modes": ["rgb_array"], "render_fps": 5}

    def __init__(
        self, size: int = 64, length: int = 10_000, render_mode: str | None = None
    ) -> None:
        self.render_mode = render_mode
        self.observation_space = spaces.Box(0, 255, (size, size, 3), np.uint8)
        self.action_space = spaces.Discrete(len(_ACTIONS))
        self._length = length
        no_limit: Any = None  # the package knows it, its annotations do not
        self._game = _Game(size=(size, size), length=no_limit, seed=0)
        self._steps = 0

    def get_action_meanings(self) -> list[str]:
        """Return the names of the actions."""
        return list(_ACTIONS)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Start on a new map; the same seed gives the same map."""
        super().reset(seed=seed)
        self._steps = 0
        return self._game.restart(int(self.np_random.integers(2**31 - 1))), self._info()

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Do one action. It ends when the player is dead."""
        frame, reward, dead, info = self._game.step(int(action))
        self._steps += 1
        achieved = {"achievements": info["achievements"]}
        ended = self._steps >= self._length
        return frame, float(reward), bool(dead), ended, self._info() | achieved

    def render(self) -> np.ndarray:  # type: ignore[override]
        """Return the picture, uint8 RGB [size, size, 3]."""
        return self._game.render()

    def _info(self) -> dict[str, Any]:
        player = self._game.player
        return {"inventory": dict(player.inventory), "player_pos": np.array(player.pos)}


class _Game(crafter.Env):
    """The package's game, made to depend on its seed alone."""

    @property
    def player(self) -> Any:
        """The player, with `inventory` and `pos`."""
        return self._player

    def restart(self, seed: int) -> np.ndarray:
        """Start on the map of `seed`."""
        self._seed, self._episode = seed, 0
        return self.reset()

    def _balance_chunk(self, chunk: Any, objs: Any) -> None:
        # A set has no fixed order: drawing a creature from it would differ between processes.
        super()._balance_chunk(chunk, sorted(objs, key=lambda creature: tuple(creature.pos)))
