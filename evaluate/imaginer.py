"""World models of any make behind one small protocol, so that the same suites score them.

`worldmodel eval imaginer=FILE.py:FUNCTION` scores such a model (docs/evaluation.md). A `Dream`
takes the same way: `Stepwise` puts whatever goes step by step behind the protocol, `Guest` gives
what is behind it a `reset` and a `step`.

Letters in shapes: B rollouts, T given frames, H imagined ones, h w 3 a frame.
"""

import importlib
import importlib.util
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np

from worldmodel.actions import Action
from worldmodel.errors import UserError
from worldmodel.world import Step, WorldSpec

if TYPE_CHECKING:
    from worldmodel.evaluate.rollouts import Imagination

_STRIDE = 1_000_003  # between the seeds of one rollout's steps; clips have neighbouring seeds


@runtime_checkable
class Imaginer(Protocol):
    """A world model: given frames, actions and a horizon it imagines frames.

    Attributes:
        name: what reports call it.
        context: how many given frames it looks back on at most; earlier ones are left out.
    """

    name: str
    context: int

    def imagine(
        self,
        frames: np.ndarray,
        actions: Sequence[Sequence[Action]],
        horizon: int,
        seeds: Sequence[int],
    ) -> np.ndarray:
        """Imagine B rollouts.

        Args:
            frames: uint8 RGB [B, T, h, w, 3], the given frames; T at least 1.
            actions: [B][T-1+horizon]: the actions between the given frames, then those that lead
                to the imagined ones. `ActionTable.mask` makes a number of an action.
            horizon: H, frames to imagine.
            seeds: of each rollout's noise. Rollouts of the same seed have the same noise, so that
                they differ by their actions alone; equal calls give equal frames.

        Returns:
            uint8 RGB [B, H, h, w, 3].
        """
        ...


Factory = Callable[[WorldSpec, str, str], Imaginer]
"""Makes a model: of the world's description, what `weights=` names ('' for nothing) and the device
('cpu', 'cuda'…)."""


class Stepwise:
    """What goes step by step, such as a `Dream`, as an `Imaginer`.

    With `fork` and `batch_step`, as a `Dream` has them, the rollouts run as one batch.

    Args:
        dream: the model.
        say: instruction to give at the start.
        tick: called with the number of frames that were imagined, for a progress bar.
    """

    context = 2**31  # a Dream's own window cuts what it is given

    def __init__(
        self,
        dream: "Imagination",
        say: str | None = None,
        tick: Callable[[int], object] = lambda frames: None,
    ) -> None:
        self.name = str(getattr(dream, "checkpoint_name", type(dream).__name__))
        self._dream: Any = dream
        self._say, self._tick = say, tick

    def imagine(
        self,
        frames: np.ndarray,
        actions: Sequence[Sequence[Action | None]],
        horizon: int,
        seeds: Sequence[int],
    ) -> np.ndarray:
        """As `Imaginer.imagine`; an action None leaves a step to the instruction."""
        dream, rows, between = self._dream, len(frames), frames.shape[1] - 1
        if rows > 1 and not (hasattr(dream, "batch_step") and hasattr(dream, "fork")):
            each = range(rows)
            parts = [
                self.imagine(frames[i : i + 1], actions[i : i + 1], horizon, seeds[i : i + 1])
                for i in each
            ]
            return np.concatenate(parts)
        team = [dream, *(dream.fork(rows - 1) if rows > 1 else [])]
        for member, given, told, seed in zip(team, frames, actions, seeds, strict=True):
            member.reset(seed=seed, frames=given, actions=list(told[:between]))
            if self._say:
                member.say(self._say)
        out = np.empty((rows, horizon, *frames.shape[2:]), np.uint8)
        for t in range(horizon):
            told = [row[between + t] for row in actions]
            found = dream.batch_step(team, told) if rows > 1 else [dream.step(told[0])]
            out[:, t] = np.stack([step.frame for step in found])
            self._tick(rows)
        return out


class Guest:
    """A model of another make as the suites meet it: imagines whole plans, or step by step.

    It reads no sentences. Step by step it is asked for one frame at a time.

    Args:
        model: the model.
        spec: the world that it imagines.
        device: where it was told to run.

    Raises:
        UserError: a model that looks back on no frame.
    """

    dtype = ""  # its own affair

    def __init__(self, model: Imaginer, spec: WorldSpec, device: str = "cpu") -> None:
        if model.context < 1:
            raise UserError(f"The imaginer '{model.name}' must look back on a frame at least.")
        self.model, self.spec, self.device = model, spec, device
        self.name, self.context = model.name, model.context
        self._seed = self._step = 0
        self._frames = np.zeros((0, spec.height, spec.width, 3), np.uint8)
        self._actions: list[Action] = []

    def imagine(
        self,
        frames: np.ndarray,
        actions: Sequence[Sequence[Action | None]],
        horizon: int,
        seeds: Sequence[int],
    ) -> np.ndarray:
        """Let the model imagine, as `Imaginer.imagine`; what it gives is checked.

        Raises:
            UserError: frames of another shape or type than the protocol says.
        """
        cut = max(frames.shape[1] - self.context, 0)
        told = [[action or Action() for action in row[cut:]] for row in actions]
        found = self.model.imagine(frames[:, cut:], told, horizon, seeds)
        expected = (len(frames), horizon, *frames.shape[2:])
        if found.shape != expected or found.dtype != np.uint8:
            raise UserError(
                f"The imaginer '{self.name}' gave {found.dtype} {list(found.shape)}; frames must "
                f"be uint8 {list(expected)}: rollouts, horizon, height, width, 3."
            )
        return found

    def reset(
        self,
        seed: int | None = None,
        frames: np.ndarray | None = None,
        actions: Sequence[Action] | None = None,
    ) -> Step:
        """Start from frames uint8 [T, h, w, 3] and the T-1 actions between; seed the noise.

        Raises:
            UserError: no frames: only checkpoints bring starts of their own.
        """
        if frames is None:
            raise UserError(
                f"The imaginer '{self.name}' has no starts of its own. Let the scenario begin in "
                "a world, a store or an image, for instance start: {world: doom, seed: 3}."
            )
        self._seed, self._step = self._seed if seed is None else seed, 0
        self._frames = frames
        self._actions = list(actions or [Action()] * (len(frames) - 1))
        return Step(frames[-1])

    def step(self, action: Action | None) -> Step:
        """Imagine one frame; None does nothing."""
        return Guest.batch_step([self], [action])[0]

    def say(self, text: str | None) -> str:
        """Give no instruction, which is all that it understands.

        Raises:
            UserError: an instruction.
        """
        if text is not None:
            raise UserError(f"The imaginer '{self.name}' reads no sentences.")
        return ""

    def fork(self, k: int) -> list["Guest"]:
        """Return k more of the same model, each to be reset before it is stepped."""
        return [Guest(self.model, self.spec, self.device) for _ in range(k)]

    @staticmethod
    def batch_step(guests: Sequence["Guest"], actions: Sequence[Action | None]) -> list[Step]:
        """Step several of one model, that were given as many frames, as one batch."""
        for guest, action in zip(guests, actions, strict=True):
            guest._actions.append(action or Action())
        frames = guests[0].imagine(
            np.stack([guest._frames for guest in guests]),
            [guest._actions for guest in guests],
            1,
            [guest._seed + _STRIDE * guest._step for guest in guests],
        )[:, 0]
        for guest, frame in zip(guests, frames, strict=True):
            guest._step += 1
            guest._frames = np.concatenate([guest._frames, frame[None]])[-guest.context :]
            guest._actions = guest._actions[len(guest._actions) - len(guest._frames) + 1 :]
        return [Step(frame) for frame in frames]


class CopyLast:
    """The least that a model has to beat: the last given frame, again and again."""

    name, context = "copy of the last frame", 1

    def imagine(
        self,
        frames: np.ndarray,
        actions: Sequence[Sequence[Action]],
        horizon: int,
        seeds: Sequence[int],
    ) -> np.ndarray:
        """As `Imaginer.imagine`."""
        return np.repeat(frames[:, -1:], horizon, axis=1)


def copy_last(spec: WorldSpec, weights: str, device: str) -> CopyLast:
    """Return `CopyLast`; a `Factory`."""
    return CopyLast()


def invite(place: str, weights: str, spec: WorldSpec, device: str) -> Guest:
    """Make the model that `place` names and give it to the suites.

    Args:
        place: of its `Factory`, see `find_object`.
        weights: handed to it.
        spec: the world to imagine.
        device: where.

    Raises:
        UserError: no such function, or what it made is no `Imaginer`.
    """
    model = find_object(place)(spec, weights, device)
    if not isinstance(model, Imaginer):
        lacks = [name for name in ("name", "context", "imagine") if not hasattr(model, name)]
        raise UserError(
            f"{place} made a {type(model).__name__} without {' and '.join(lacks)}; a world model "
            "needs a name, a context and imagine(frames, actions, horizon, seeds), as "
            "worldmodel.evaluate.imaginer.Imaginer says."
        )
    return Guest(model, spec, device)


def find_object(place: str) -> Any:
    """Return what `package.module:name` or `path/to/file.py:name` names.

    Raises:
        UserError: it is not of that form, or not there; a module that cannot be imported.
    """
    where, colon, name = place.rpartition(":")
    if not colon or not where or not name:
        raise UserError(
            f"'{place}' names no Python object; write package.module:name or path/to/file.py:name."
        )
    try:
        if where.endswith(".py"):
            path = Path(where).resolve(strict=True)
            made = importlib.util.spec_from_file_location(f"_user_{path.stem}", path)
            assert made is not None
            assert made.loader is not None
            module = sys.modules[made.name] = importlib.util.module_from_spec(made)
            sys.path.append(str(path.parent))  # it may import its neighbours, as a script does
            made.loader.exec_module(module)
        else:
            module = importlib.import_module(where)
    except (ImportError, OSError) as error:
        raise UserError(f"{where} cannot be imported: {error}.") from error
    if not hasattr(module, name):
        raise UserError(f"{where} has no '{name}'.")
    return getattr(module, name)
