"""Checks: is a skill there? Each is a plain function of frames, with a score that is 1 at best.

A score compares what was seen with itself (still, returns, stops, brightness, brightens, same)
or with what the real world shows under the same keys (goes_on, differs, follows). "Distance" is the
`encoder_distance` of two frames; a frame of noise, see `Ground.sharpest`, is as far from
everything as unrelated frames are, which is 1.

The real world is judged in the same way. A model passes with `Rule.share` of the real world's
score; where there is no real world to measure, with that share of 1. The share is a choice.

Letters in shapes: S starts, B branches, T steps, H W 3 a frame, N C a latent, K candidates.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from worldmodel.evaluate import metrics
from worldmodel.evaluate.scenario import Check

FAR = 1.0
STEP = 0.4
"""Distance of one step where no real world tells it; it is what doom's steps come to."""
SHARPEST = 2.0
"""Sharpness from which a frame is noise, where no real world tells it; white noise has 4.5."""
READ_STEPS = 12  # steps in which `follows` reads: later a walker stands at a wall, whatever it does
LUMA = np.array([0.299, 0.587, 0.114])


@dataclass(frozen=True)
class Seen:
    """What one hand made of a scenario: the model, the real world, a copy, noise.

    Attributes:
        frames: uint8 [S, B, T+1, H, W, 3], from the start's frame on.
        latents: float32 [S, B, T+1, N, C], the same encoded.
        views: bool [S, B, T+1], whether a frame is a view and no noise.
    """

    frames: np.ndarray
    latents: np.ndarray
    views: np.ndarray

    def since_start(self) -> np.ndarray:
        """Return the distance of each frame to its start's, float [S, B, T+1]."""
        return _apart(self, np.s_[:, :, :], self, np.s_[:, :, :1])

    def light(self) -> np.ndarray:
        """Return the brightness of each frame, 0 to 255, float [S, B, T+1]; NaN for noise."""
        luma = (self.frames @ LUMA).mean((-2, -1))
        return np.where(self.views, luma, np.nan)


@dataclass(frozen=True)
class Ground:
    """What the real world says about a scenario.

    Attributes:
        real: the real world under the same keys; None where there is none.
        step: distance between frames that lie one real step apart.
        light: brightness of an average place, 0 to 255.
        sharpest: sharpness above which a frame is no view any more.
        names: of the K candidates: what may be held from the start on.
        candidates: float32 [S, K, at most READ_STEPS+1, N, C], what the real world shows then.
        expected: of each branch the candidate that it should look like; empty for none.
    """

    real: Seen | None = None
    step: float = STEP
    light: float = math.nan
    sharpest: float = SHARPEST
    names: tuple[str, ...] = ()
    candidates: np.ndarray = field(default_factory=lambda: np.zeros((0, 0, 0, 0, 0), np.float32))
    expected: tuple[str, ...] = ()


Settings = Mapping[str, int]


@dataclass(frozen=True)
class Rule:
    """A check: how it is scored, and what share of the real world's score is asked for.

    Attributes:
        measure: gives a score per start, float [S].
        says: what it compares, for the report.
        share: of the real world's score; a choice.
        branches: how many the scenario must have at least.
        world: whether it cannot be scored without a real world.
    """

    measure: Callable[[Seen, Ground, Settings], np.ndarray]
    says: str
    share: float = 0.5
    branches: int = 1
    world: bool = False


def still(seen: Seen, ground: Ground, settings: Settings) -> np.ndarray:
    """Return 1 less the drift from the start's frame, counted in single real steps."""
    drift = seen.since_start()
    return (1 - _late(drift, 2) / ground.step).mean(axis=1)


def returns(seen: Seen, ground: Ground, settings: Settings) -> np.ndarray:
    """Return how much nearer the start the end is than step `away` (the middle), as a share.

    The share is of the way that was gone, or the real way if that was longer: who never leaves
    does not return.
    """
    steps = seen.frames.shape[2] - 1
    away = settings.get("away", steps // 2)
    gone = seen.since_start()
    there = gone[:, :, away]
    least = ground.real.since_start()[:, :, away] if ground.real else ground.step
    return ((there - gone[:, :, -1]) / np.maximum(there, least)).mean(axis=1)


def stops(seen: Seen, ground: Ground, settings: Settings) -> np.ndarray:
    """Return how much less a frame differs from the one before at the end than at first."""
    change = _changes(seen)
    early = change[:, :, :4].mean(axis=2)
    least = _changes(ground.real)[:, :, :4].mean(axis=2) if ground.real else ground.step
    return ((early - _late(change, 4)) / np.maximum(early, least)).mean(axis=1)


def goes_on(seen: Seen, ground: Ground, settings: Settings) -> np.ndarray:
    """Return the ratio of the change from frame to frame and the real one, smaller to larger.

    Both of the second half: there a walk may be at an end, or behind a door. Noise does not walk.
    """
    assert ground.real is not None
    walk = np.where(seen.views[:, :, 1:], _changes(seen), 0)
    late, real = _late(walk, 2), _late(_changes(ground.real), 2)
    return (np.minimum(late, real) / np.maximum(np.maximum(late, real), 1e-9)).mean(axis=1)


def brightness(seen: Seen, ground: Ground, settings: Settings) -> np.ndarray:
    """Return the ratio of the brightness at the end and at the start, the smaller to the larger.

    Noise counts as no light at all.
    """
    light = np.nan_to_num(seen.light()) + 1.0
    first, last = light[:, :, 0], _late(light, 2)
    return np.minimum(first / last, last / first).mean(axis=1)


def brightens(seen: Seen, ground: Ground, settings: Settings) -> np.ndarray:
    """Return how far the brightness rose from the start's to an average place's, at most 1."""
    light = seen.light()
    first = light[:, :, :1]
    light = np.where(np.isnan(light), first, light)
    rise = _late(light, 4) - first[:, :, 0]
    wanted = np.maximum(ground.light - first[:, :, 0], 1.0)
    return np.minimum(rise / wanted, 1.0).mean(axis=1)


def same(seen: Seen, ground: Ground, settings: Settings) -> np.ndarray:
    """Return how near the second branch is to the first, against how far both went."""
    gone = seen.since_start()[:, 0, 1:].mean(axis=1)
    between = _apart(seen, np.s_[:, 0, 1:], seen, np.s_[:, 1, 1:]).mean(axis=1)
    least = ground.real.since_start()[:, 0, 1:].mean(axis=1) if ground.real else ground.step
    return (gone - between) / np.maximum(gone, least)


def differs(seen: Seen, ground: Ground, settings: Settings) -> np.ndarray:
    """Return how much nearer each branch is to its own real future than to the others'.

    As a share of how far the real futures are apart, over all steps.
    """
    real = ground.real
    assert real is not None
    count = seen.frames.shape[1]
    between = np.stack(
        [[_steps_apart(seen, i, real, j) for j in range(count)] for i in range(count)]
    )
    truth = np.stack([[_steps_apart(real, i, real, j) for j in range(count)] for i in range(count)])
    other = ~np.eye(count, dtype=bool)
    own = between[~other].mean(axis=0)
    return (between[other].mean(axis=0) - own) / truth[other].mean(axis=0)


def follows(seen: Seen, ground: Ground, settings: Settings) -> np.ndarray:
    """Return the share of the first steps that are read as what was told.

    A frame is read as the candidate whose real frame at the same step is the nearest.
    """
    steps = min(READ_STEPS, seen.frames.shape[2] - 1)
    scores = []
    for branch, wanted in enumerate(ground.expected):
        frames = seen.latents[:, branch, None, 1 : steps + 1]
        shown = np.broadcast_to(frames, ground.candidates[:, :, 1 : steps + 1].shape)
        distance = metrics.encoder_distance(shown, ground.candidates[:, :, 1 : steps + 1])
        read = distance.argmin(axis=1)  # [S, steps]
        right = (read == ground.names.index(wanted)) & seen.views[:, branch, 1 : steps + 1]
        scores.append(right.mean(axis=1))
    return np.mean(scores, axis=0)


RULES: Mapping[str, Rule] = {
    "still": Rule(still, "the frames of the second half with the first one"),
    "returns": Rule(returns, "the last frame with the first one, against the way that was gone"),
    "stops": Rule(stops, "the change from frame to frame at the end with that at first"),
    "goes_on": Rule(
        goes_on, "the change from frame to frame in the second half with the real one", world=True
    ),
    "brightness": Rule(brightness, "the light of the second half with that of the start", 2 / 3),
    "brightens": Rule(brightens, "the light at the end with the start's and an average place's"),
    "same": Rule(same, "the second branch with the first", branches=2),
    "differs": Rule(differs, "each branch with all the real futures", branches=2, world=True),
    "follows": Rule(follows, "the frames with the real futures under each key", world=True),
}


@dataclass(frozen=True)
class Judgement:
    """What a check found.

    Attributes:
        check: its name. says: what it compares.
        score: of the model, with its interval over the starts.
        mark: from where it passes.
        others: the score of the real world, of a copy of the first frame and of noise, by name;
            NaN where there is no real world that could do it.
    """

    check: str
    says: str
    score: metrics.Estimate
    mark: float
    others: Mapping[str, float]

    @property
    def passed(self) -> bool:
        """Whether the model reaches the mark."""
        return self.score.value >= self.mark


def judge(
    check: Check, model: Seen, others: Mapping[str, Seen], ground: Ground, seed: int = 0
) -> Judgement:
    """Score a check for the model and for others, and set the mark by the real world's score.

    The scenario must have what the check compares, see `worldmodel.evaluate.skills.require`.
    """
    rule = RULES[check.name]
    score = rule.measure(model, ground, check.settings)
    beside = {
        name: float(rule.measure(seen, ground, check.settings).mean())
        for name, seen in others.items()
    }
    # The real world has no ears: it can stand for a sentence only where its keys are known.
    real = math.nan
    if ground.real and (check.name != "brightens" or any(ground.expected)):
        real = float(rule.measure(ground.real, ground, check.settings).mean())
    mark = rule.share * (1.0 if math.isnan(real) else real)
    return Judgement(
        check.name, rule.says, metrics.estimate(score, seed), mark, {"real": real, **beside}
    )


def _apart(a: Seen, at_a: Any, b: Seen, at_b: Any) -> np.ndarray:
    x, y = np.broadcast_arrays(a.latents[at_a], b.latents[at_b])
    both = a.views[at_a] & b.views[at_b]
    return np.where(both, metrics.encoder_distance(x, y), FAR)


def _steps_apart(a: Seen, i: int, b: Seen, j: int) -> np.ndarray:
    """Return the mean distance of branch i of one and j of the other, float [S]."""
    return _apart(a, np.s_[:, i, 1:], b, np.s_[:, j, 1:]).mean(axis=1)


def _changes(seen: Seen) -> np.ndarray:
    return _apart(seen, np.s_[:, :, 1:], seen, np.s_[:, :, :-1])


def _late(values: np.ndarray, part: int) -> np.ndarray:
    """Return the mean over the last half (part 2) or quarter (part 4) of the steps."""
    steps = values.shape[2]
    return values[:, :, steps - max(1, steps // part) :].mean(axis=2)
