"""Planning in the imagination: search for the actions whose imagined end is nearest to a goal.

The search is the cross-entropy method over keys; plans are forked from one cached context and
imagined as batches. Plans are judged as Navigation World Models does (Bar et al., arXiv
2412.03572): by the path that they describe against the recorded one.

Letters in shapes: P plans, B blocks (choices held for some steps), T steps, H W 3 a frame.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, Protocol

import numpy as np
import torch

from worldmodel.actions import Action, ActionTable
from worldmodel.errors import UserError
from worldmodel.evaluate.metrics import encoder_distance
from worldmodel.evaluate.rollouts import FrameEncoder, encode
from worldmodel.generate import encode as encode_prompt
from worldmodel.generate import look
from worldmodel.passes import Reader
from worldmodel.text import clean_sentence

Costs = Callable[[np.ndarray], np.ndarray]
"""Costs float [P] of plans int [P, B], lower is better; the same plan costs the same each time."""

Prefix = tuple[int, ...]
"""The first choices of a plan."""

UNIFORM = 0.1
"""Share of each distribution that stays uniform, so that no choice is ever ruled out."""


@dataclass(frozen=True)
class Found:
    """The best plan of a search.

    Attributes:
        plan: int [B], one choice per block.
        cost: what it costs.
        tried: plans that were imagined, all different.
        best: cost of the best plan so far after each iteration.
    """

    plan: np.ndarray
    cost: float
    tried: int
    best: tuple[float, ...]


def search(
    costs: Costs,
    blocks: int,
    choices: int,
    candidates: int = 32,
    elites: int = 6,
    iterations: int = 3,
    seed: int = 0,
) -> Found:
    """Minimise the cost of a plan by the cross-entropy method; one iteration is random shooting.

    Each block has a categorical distribution, uniform at first. An iteration draws plans that
    were not tried yet; the distributions then become those of the best plans so far (kept
    elites, as in iCEM, Pinneri et al., arXiv 2008.06389), mixed with some of the uniform one.

    Args:
        costs: judges plans.
        blocks: choices to make, one after another.
        choices: what to choose from at each.
        candidates: plans of each iteration; fewer where there are no others left.
        elites: how many of the best plans shape the next iteration.
        iterations: how often.
        seed: of the draws.
    """
    rng = np.random.default_rng(seed)
    chances = np.full((blocks, choices), 1 / choices)
    tried: dict[tuple[int, ...], float] = {}
    best: list[float] = []
    for _ in range(iterations):
        drawn = _draw_new(rng, chances, candidates, tried)
        if len(drawn):
            tried |= zip(map(tuple, drawn.tolist()), map(float, costs(drawn)), strict=True)
        leaders = sorted(tried, key=lambda plan: tried[plan])[:elites]
        shares = np.eye(choices)[np.asarray(leaders)].mean(axis=0)
        chances = UNIFORM / choices + (1 - UNIFORM) * shares
        best.append(tried[leaders[0]])
    plan = min(tried, key=lambda plan: tried[plan])
    return Found(np.asarray(plan), tried[plan], len(tried), tuple(best))


def _draw_new(
    rng: np.random.Generator, chances: np.ndarray, count: int, tried: dict[tuple[int, ...], float]
) -> np.ndarray:
    """Return up to `count` different plans int [P, B] that were not tried."""
    left = min(count, chances.shape[1] ** chances.shape[0] - len(tried))
    heights = chances.cumsum(axis=1)
    heights[:, -1] = 1.0  # a sum of shares may end just below
    found: dict[tuple[int, ...], None] = {}
    while len(found) < left:  # every choice keeps a chance, so this ends
        marks = rng.random((max(count, 64), len(chances), 1))
        for plan in map(tuple, (marks >= heights).sum(axis=2).tolist()):
            if plan not in tried and len(found) < left:
                found[plan] = None
    return np.asarray(list(found), np.int64).reshape(-1, len(chances))


def choices_of(table: ActionTable, pairs: bool = True) -> list[Action]:
    """Return what can be chosen at a block: nothing, each key, and each two that go together."""
    sets = [(), *((key,) for key in table.keys)]
    sets += combinations(table.keys, 2) if pairs else ()
    actions = {action.keys: action for action in map(table.press, sets)}
    return list(actions.values())


def held(plan: np.ndarray, choices: Sequence[Action], hold: int, horizon: int) -> list[Action]:
    """Return the `horizon` actions of a plan int [B] whose choices are held for `hold` steps."""
    return [choices[plan[t // hold]] for t in range(horizon)]


def imagine_plans(dream: Any, plans: Sequence[Sequence[Action]], batch: int = 32) -> np.ndarray:
    """Imagine plans from where a dream is, forked from its one cached past; the dream stays.

    All plans share the noise, so they differ by their actions alone.

    Args:
        dream: a `Dream`, or what has its `fork` and `batch_step`.
        plans: P plans of T actions each.
        batch: most rollouts at once.

    Returns:
        uint8 [P, T, H, W, 3].
    """
    rollouts = []
    for first in range(0, len(plans), batch):
        part = plans[first : first + batch]
        team = dream.fork(len(part))
        steps = [dream.batch_step(team, told) for told in zip(*part, strict=True)]
        rollouts.append(np.stack([[s.frame for s in step] for step in steps], axis=1))
    return np.concatenate(rollouts)


class Goal(Protocol):
    """What is to be reached.

    Attributes:
        frame: uint8 [H, W, 3], a picture of it; None where there is none.
    """

    frame: np.ndarray | None

    def costs(self, frames: np.ndarray) -> np.ndarray:
        """How far frames uint8 [P, H, W, 3] are from it, float64 [P]; lower is nearer."""
        ...


class ImageGoal:
    """A frame, uint8 [H, W, 3]; the cost is the `encoder_distance` to it, 0 to 2."""

    def __init__(self, frame: np.ndarray, encoder: FrameEncoder) -> None:
        self.frame: np.ndarray | None = frame
        self._encoder = encoder
        self._latent = encode(encoder, frame[None])

    def costs(self, frames: np.ndarray) -> np.ndarray:
        """See `Goal.costs`."""
        latents = encode(self._encoder, frames)
        return encoder_distance(latents, np.broadcast_to(self._latent, latents.shape))


class WordsGoal:
    """A caption, or a question and its answer as 'what is ahead? a red torch'.

    The cost is the model's own surprise at the caption, or at the answer to the question, when
    it sees a frame alone: minus the mean log-probability of its tokens (nats), from 0 up.

    Raises:
        UserError: an empty sentence, a question without an answer, or one that is too long.
    """

    frame: np.ndarray | None = None

    def __init__(self, sentence: str, dream: Any) -> None:
        words = clean_sentence(sentence).lower()
        asked, mark, answer = words.partition("?")
        if mark and not answer.strip():
            raise UserError(
                f"The goal '{sentence}' is a question without an answer. Add it, such as "
                "'what is ahead? a red torch'."
            )
        before = f"question: {asked}? answer:" if mark else "caption:"
        said = answer.strip() if mark else words
        self._engine = dream.engine
        self._prompt = encode_prompt(self._engine, before)
        self._said = encode_prompt(self._engine, f" {said}")

    def costs(self, frames: np.ndarray) -> np.ndarray:
        """See `Goal.costs`."""
        streams = look(self._engine, self._engine.see(frames))
        reader = Reader(self._engine, streams, len(self._prompt) + len(self._said) + 1)
        read, surprise = self._prompt, torch.zeros(len(frames))
        if unread := [i for words in streams[0].unread for i in words.ids]:
            read = [*unread, *read]
        for token in self._said:
            logits = reader.read([read] * len(frames))
            surprise -= logits.log_softmax(-1)[:, token].cpu()
            read = [token]
        return surprise.double().numpy() / len(self._said)


@dataclass(frozen=True)
class Planned:
    """A plan and how it was found.

    Attributes:
        actions: T actions. frames: what they are imagined to show, uint8 [T, H, W, 3].
        found: the search; `found.cost` is the goal's of the last frame.
    """

    actions: list[Action]
    frames: np.ndarray
    found: Found


@dataclass(frozen=True)
class Planner:
    """Plans from where a dream is; the fields as in conf/plan.yaml.

    Attributes:
        choices: actions to choose from, see `choices_of`.
    """

    choices: Sequence[Action]
    horizon: int = 8
    hold: int = 2
    candidates: int = 32
    elites: int = 6
    iterations: int = 3
    batch: int = 32

    @property
    def blocks(self) -> int:
        """How many choices a plan makes."""
        return -(-self.horizon // self.hold)

    def plan(self, dream: Any, goal: Goal, seed: int = 0) -> Planned:
        """Return the plan whose last imagined frame is nearest to the goal."""
        known: dict[Prefix, tuple[Any, np.ndarray]] = {}

        def costs(plans: np.ndarray) -> np.ndarray:
            self._imagine(dream, plans, known)
            return goal.costs(np.stack([known[tuple(plan)][1][-1] for plan in plans.tolist()]))

        found = search(
            costs, self.blocks, len(self.choices), self.candidates, self.elites,
            self.iterations, seed,
        )  # fmt: skip
        actions = held(found.plan, self.choices, self.hold, self.horizon)
        best = tuple(found.plan.tolist())
        frames = [known[best[: n + 1]][1] for n in range(self.blocks)]
        return Planned(actions, np.concatenate(frames), found)

    def _imagine(
        self, dream: Any, plans: np.ndarray, known: dict[Prefix, tuple[Any, np.ndarray]]
    ) -> None:
        """Imagine plans int [P, B], block after block, from where a dream is.

        Plans that begin alike are imagined once as far as they do: `known` holds, per beginning,
        the dream after it and the frames of its last block, uint8 [hold, H, W, 3].
        """
        for n in range(1, self.blocks + 1):
            steps = min(self.hold, self.horizon - self.hold * (n - 1))
            new = sorted({tuple(plan[:n]) for plan in plans.tolist()} - known.keys())
            for first in range(0, len(new), self.batch):
                part = new[first : first + self.batch]
                before = [known[p[:-1]][0] if n > 1 else dream for p in part]
                team = [past.fork(1)[0] for past in before]
                told = [self.choices[p[-1]] for p in part]
                shown = [[s.frame for s in dream.batch_step(team, told)] for _ in range(steps)]
                known |= zip(part, zip(team, np.stack(shown, axis=1), strict=True), strict=True)

    def random(self, seed: int) -> list[Action]:
        """Return a plan whose choices are drawn evenly."""
        rng = np.random.default_rng(seed)
        drawn = rng.integers(len(self.choices), size=self.blocks)
        return held(drawn, self.choices, self.hold, self.horizon)


def integrate(actions: Sequence[Action], start: Sequence[float] = (0, 0, 0)) -> np.ndarray:
    """Return the poses that actions describe, float64 [T+1, 3]: x, y in metres, yaw in degrees.

    A step walks along the middle of its turn, as walking and turning go on together. Walls and
    the time that walking takes to begin and end are not known here.
    """
    poses = [tuple(map(float, start))]
    for action in actions:
        x, y, yaw = poses[-1]
        middle = np.radians(yaw + action.dyaw / 2)
        ahead, left = np.cos(middle), np.sin(middle)
        dx, dy = action.dx, action.dy
        poses.append((x + ahead * dx - left * dy, y + left * dx + ahead * dy, yaw + action.dyaw))
    return np.asarray(poses)


@dataclass(frozen=True)
class PathError:
    """How far a path is from another with the same start; metres and degrees.

    Attributes:
        ate: absolute trajectory error, the root mean square of the distances of the T poses.
        rpe: relative pose error, the root mean square of the differences of the T one-step
            translations, each in the frame of the pose it starts from.
        position, yaw: distance and angle between the last poses.
    """

    ate: float
    rpe: float
    position: float
    yaw: float


def path_error(path: np.ndarray, truth: np.ndarray) -> PathError:
    """Compare two paths, float [T+1, 3] poses, without aligning or scaling them.

    As `evo` does for Navigation World Models, but the shared start is counted in no average.

    Raises:
        ValueError: paths of different shapes, or without a step.
    """
    if path.shape != truth.shape or path.ndim != 2 or path.shape[1] != 3 or len(path) < 2:
        raise ValueError(f"paths must share a shape [T+1, 3], got {path.shape} and {truth.shape}")
    far = np.linalg.norm(path[1:, :2] - truth[1:, :2], axis=1)
    apart = np.linalg.norm(_strides(path) - _strides(truth), axis=1)
    return PathError(_rms(far), _rms(apart), float(far[-1]), turn(path[-1, 2], truth[-1, 2]))


def turn(a: float, b: float) -> float:
    """Return the angle between two directions, 0 to 180 degrees."""
    return abs((float(a) - float(b) + 180) % 360 - 180)


def _strides(path: np.ndarray) -> np.ndarray:
    """Return the translation of each step in its first pose's frame, [T, 2]."""
    (x, y), yaw = np.diff(path[:, :2], axis=0).T, np.radians(path[:-1, 2])
    return np.stack([np.cos(yaw) * x + np.sin(yaw) * y, np.cos(yaw) * y - np.sin(yaw) * x], axis=1)


def _rms(values: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(values))))
