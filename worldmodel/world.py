"""The World protocol and the shapes that data takes: Step, Episode, Clip.

A real environment, a trained model (`Dream`) and a recording (`Replay`) are all a `World`, so
the viewer, the collector and the evaluator know one interface. numpy only; no torch.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Protocol

import numpy as np

from worldmodel.actions import Action, ActionTable

Facts = Mapping[str, np.ndarray]
"""Privileged facts of one frame, by name. Worlds that have them give:

`pose` float32 [3]: x and y in metres, yaw in degrees (counter-clockwise, 0 along +x);
`light` float32 []: brightness of the agent's place, 0 dark to 1 bright;
`wall` float32 []: metres to the wall straight ahead;
`free` float32 []: metres to what stops the agent straight ahead, wall or not;
`bearing` float32 [K]: degrees to each of the world's K objects (positive to the left), and
`distance` float32 [K]: metres to it; both NaN where the object is not visible;
`theme` float32 []: which of the world's themes the room has, -1 in a corridor;
`velocity` float32 [2]: metres a second ahead and to the left, in the agent's own frame;
`road` float32 [N, 2]: points of the middle of the road, metres ahead and to the left, in order.
"""


@dataclass(frozen=True)
class WorldSpec:
    """What a world looks like from outside.

    Attributes:
        name: short name, for instance 'doom'.
        actions: the table of keys, with their meaning and text.
        height, width: size of a frame in pixels.
        fps: steps per second at which the world is meant to be played.
        objects: names of the K objects that the facts speak of, for instance 'red torch'.
        themes: names of the looks of rooms that the fact `theme` counts, for instance 'red brick'.
    """

    name: str
    actions: ActionTable
    height: int = 64
    width: int = 64
    fps: float = 8.75
    objects: tuple[str, ...] = ()
    themes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return the description as plain data, for stores and checkpoints."""
        plain = {f.name: getattr(self, f.name) for f in fields(self)}
        plain |= {"actions": self.actions.to_json(), "objects": list(self.objects)}
        themes = {"themes": list(self.themes)} if self.themes else {}
        return {name: value for name, value in plain.items() if name != "themes"} | themes

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> "WorldSpec":
        """Return the description that `to_json` wrote."""
        actions = ActionTable.from_json(data["actions"])
        names = {"objects": tuple(data["objects"]), "themes": tuple(data.get("themes", ()))}
        return WorldSpec(**{**data, "actions": actions, **names})


@dataclass(frozen=True)
class Step:
    """What one step of a world gives.

    Attributes:
        frame: uint8 RGB [H, W, 3].
        terminated, truncated: as in Gymnasium.
        facts: privileged facts of the frame; empty where the world has none.
        text: for a Dream, the exact text that was sent to the model; else the action's text.
    """

    frame: np.ndarray
    terminated: bool = False
    truncated: bool = False
    facts: Facts = field(default_factory=dict)
    text: str = ""


class World(Protocol):
    """Anything that gives frames for actions."""

    @property
    def spec(self) -> WorldSpec:
        """The world's description."""
        ...

    def reset(self, seed: int | None = None) -> Step:
        """Start again; the same seed gives the same start. Returns the first frame."""
        ...

    def step(self, action: Action) -> Step:
        """Do one action and return what follows."""
        ...

    def close(self) -> None:
        """Free what the world holds."""
        ...


@dataclass(frozen=True)
class Annotation:
    """A sentence about frames `start` to `stop` (inclusive) of an episode.

    Attributes:
        kind: 'caption' (describes frame `start`; stop == start), 'question' (about frame
            `start`, with `answer`), or 'instruction' (fulfilled by the steps start..stop).
        text: the sentence, lower case, no line breaks.
        answer: the answer to a question, else empty.
    """

    kind: str
    start: int
    stop: int
    text: str
    answer: str = ""


@dataclass(frozen=True)
class Episode:
    """One whole run.

    Attributes:
        frames: uint8 RGB [T+1, H, W, 3].
        actions: float32 [T, 3], (dx, dy, dyaw) of `Action`.
        keys: uint16 [T], the keys held as a bit mask over the action table's rows.
        facts: arrays of `Facts` with a leading axis of T+1.
        annotations: sentences about the episode.
        info: where it came from: world, seed, level seed, split, policy (plain JSON values).
    """

    frames: np.ndarray
    actions: np.ndarray
    keys: np.ndarray
    facts: Facts
    annotations: tuple[Annotation, ...]
    info: dict[str, Any]

    def __post_init__(self) -> None:
        steps = len(self.actions)
        if self.frames.dtype != np.uint8 or self.frames.ndim != 4 or self.frames.shape[-1] != 3:
            raise ValueError(f"frames must be uint8 [T+1,H,W,3], got {self.frames.shape}")
        if len(self.frames) != steps + 1 or len(self.keys) != steps:
            raise ValueError(
                f"{len(self.frames)} frames need {len(self.frames) - 1} actions and keys, "
                f"got {steps} and {len(self.keys)}"
            )
        for name, values in self.facts.items():
            if len(values) != steps + 1:
                raise ValueError(f"fact '{name}' has {len(values)} rows, expected {steps + 1}")

    @property
    def num_steps(self) -> int:
        """T, the number of steps."""
        return len(self.actions)
