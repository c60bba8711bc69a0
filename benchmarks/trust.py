"""How many frames the viewer's trust meter flags: standing still, and walking as a real walk does.

    python benchmarks/trust.py --starts 16 --steps 128

In each of so many val levels a policy walks in the real world. The model gets the first real
frames, and then either no key, or the keys of the walk; both are read as the viewer reads them, on
every fourth frame. Beside them the real frames of the walk, and real ones of standing still, by
their round trip and drift (they have no passes to compare). Shares with 95 % intervals over starts.
For the walk also: the encoder distance of the frame to the real one of that step, by light.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from worldmodel.actions import Action
from worldmodel.dream import Dream
from worldmodel.envs import make_policy, make_world
from worldmodel.evaluate.metrics import encoder_distance, estimate
from worldmodel.evaluate.rollouts import encode
from worldmodel.viewer.reading import Reading
from worldmodel.viewer.trust import Gauge
from worldmodel.world import World

KINDS = ("left alone", "the walk's keys", "real, left alone", "real, the walk")
LIGHTS = ("green", "amber", "red")


@dataclass(frozen=True)
class Shown:
    """A real frame, as the meter looks at a dream: what the encoder and the decoder make of it."""

    latent: torch.Tensor
    frame: np.ndarray
    denoise_steps: int
    guidance: float


@dataclass(frozen=True)
class Level:
    """What was read in one level.

    Attributes:
        readings: of each of `KINDS`, the same number for all levels.
        apart: encoder distances of the imagined walk's frames that were read to the real ones.
    """

    readings: tuple[list[Reading], ...]
    apart: list[float]


def main() -> None:
    """Measure, and print a table in Markdown."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--checkpoint", default="doom-nano")
    parser.add_argument("--world", default="doom", help="a real world of the checkpoint's frames")
    parser.add_argument("--policy", default="mix", help="who walks in it")
    parser.add_argument("--starts", type=int, default=16)
    parser.add_argument("--steps", type=int, default=128)
    parser.add_argument("--given", type=int, default=4, help="real frames that the model gets")
    parser.add_argument("--denoise-steps", type=int, default=2)
    parser.add_argument("--guidance", type=float, default=1.5)
    asked = parser.parse_args()
    if asked.steps < 16:
        parser.error("--steps: at least 16, so that each quarter has a reading")

    dream = Dream.load(asked.checkpoint, denoise_steps=asked.denoise_steps, guidance=asked.guidance)
    print(f"{dream.device}, {dream.dtype}, {asked.starts} levels, {asked.steps} steps", flush=True)
    gauge = calibrated(dream)
    world = make_world(asked.world, split="val", size=dream.spec.height)
    levels = [
        measure(dream, gauge, world, asked.policy, seed, asked.given, asked.steps)
        for seed in range(asked.starts)
    ]
    world.close()
    print(f"round trip of real frames: {gauge.round_trip}\n")
    print(report(levels))


def calibrated(dream: Dream) -> Gauge:
    """A meter that has seen the real frames of the checkpoint's starts."""
    gauge = Gauge(dream.engine)
    while gauge.pending((dream.denoise_steps, dream.guidance)):
        gauge.work()
    return gauge


def measure(
    dream: Dream, gauge: Gauge, world: World, walker: str, seed: int, given: int, steps: int
) -> Level:
    """Walk in a level, and read what is imagined after its first frames, and what is real."""
    policy = make_policy(walker, seed)
    if hasattr(policy, "attach"):
        getattr(policy, "attach")(world)  # noqa: B009  (not in the Protocol)
    policy.reset(seed)
    step = world.reset(seed=seed)
    frames, walk = [step.frame], list[Action]()
    while len(frames) < given + steps:
        walk.append(policy.act(step, world.spec))
        step = world.step(walk[-1])
        frames.append(step.frame)
    past, walked = np.stack(frames[:given]), np.stack(frames[given:])
    lead, keys, still = walk[: given - 1], walk[given - 1 :], [Action()] * steps

    dream.reset(seed=seed, frames=past, actions=lead)
    alone, _ = imagined(dream, gauge, still)
    dream.reset(seed=seed, frames=past, actions=lead)
    told, shown = imagined(dream, gauge, keys)
    dreamt = encode(dream.encoder, np.stack(list(shown.values())))
    apart = encoder_distance(dreamt, encode(dream.encoder, walked[list(shown)]))

    world.reset(seed=seed)
    for action in lead:
        world.step(action)
    stood = np.stack([world.step(action).frame for action in still])
    readings = alone, told, seen(dream, gauge, stood), seen(dream, gauge, walked)
    flagged = [sum(r.light != "green" for r in row) for row in readings]
    print(f"level {seed}: {flagged} of {len(told)} flagged", flush=True)
    return Level(readings, apart.tolist())


def imagined(
    dream: Dream, gauge: Gauge, told: Sequence[Action]
) -> tuple[list[Reading], dict[int, np.ndarray]]:
    """The readings of a rollout, and the frames that were read, by step."""
    gauge.forget()
    row: list[Reading] = []
    shown: dict[int, np.ndarray] = {}
    for i, action in enumerate(told):
        gauge.begin()
        dream.step(action)
        if reading := gauge.read(dream):
            row.append(reading)
            shown[i] = dream.frame
    return row, shown


def seen(dream: Dream, gauge: Gauge, frames: np.ndarray) -> list[Reading]:
    """The readings of real frames uint8 [T, H, W, 3]."""
    gauge.forget()
    row: list[Reading] = []
    for frame in frames:
        gauge.begin()
        latent = dream.engine.see(frame[None])
        shown = dream.engine.show(latent)[0]
        reading = gauge.read(Shown(latent[0], shown, dream.denoise_steps, dream.guidance))
        row += [reading] if reading else []
    return row


def report(levels: Sequence[Level]) -> str:
    """The table, and how the lights of the walk go with its distance from the real one."""
    lines = [
        "| | amber or red | red | the last reading | by quarters | score | drift, 95 % |",
        "|---|---|---|---|---|---|---|",
        *(line(kind, [level.readings[k] for level in levels]) for k, kind in enumerate(KINDS)),
        "",
    ]
    told = [reading for level in levels for reading in level.readings[1]]
    scores = np.array([reading.score for reading in told])
    lights = np.array([LIGHTS.index(reading.light) for reading in told])
    apart = np.concatenate([level.apart for level in levels])
    lines += [
        f"{name}: {apart[lights == i].mean():.2f} from the real frame, n = {(lights == i).sum()}"
        for i, name in enumerate(LIGHTS)
        if (lights == i).any()
    ]
    alike = np.corrcoef(scores.argsort().argsort(), apart.argsort().argsort())[0, 1]
    lines.append(f"rank correlation of score and distance: {alike:.2f}")
    return "\n".join(lines)


def line(kind: str, rows: Sequence[Sequence[Reading]]) -> str:
    """A row of the table: the readings of one kind, of each level as many."""
    lights = np.array([[LIGHTS.index(r.light) for r in row] for row in rows])
    flagged, red = (estimate((lights >= level).mean(axis=1)) for level in (1, 2))
    drift = [r.drift for row in rows for r in row]
    cells = [
        f"{flagged.value:.1%} ({flagged.low:.1%} to {flagged.high:.1%})",
        f"{red.value:.1%}",
        f"{(lights[:, -1] > 0).sum()} of {len(lights)}",
        " ".join(f"{part.mean():.0%}" for part in np.array_split(lights > 0, 4, axis=1)),
        f"{np.median([r.score for row in rows for r in row]):.1f}",
        f"{np.median(drift):.1f}, {np.quantile(drift, 0.95):.1f}",
    ]
    return f"| {kind} | {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
