"""`worldmodel plan`: reach goals by planning in the imagination; see docs/planning.md."""

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from worldmodel import __version__
from worldmodel.checkpoint import find
from worldmodel.datasets.store import EpisodeStore
from worldmodel.envs import make_world
from worldmodel.errors import UserError
from worldmodel.evaluate.config import EvalConfig
from worldmodel.evaluate.plan_config import PlanConfig
from worldmodel.evaluate.plan_measure import Outcome, Task, closed_loop, offline, shown
from worldmodel.evaluate.planning import Goal, ImageGoal, WordsGoal
from worldmodel.evaluate.report import write_report
from worldmodel.evaluate.rollouts import sample_clips
from worldmodel.evaluate.run import check_same_world, open_store
from worldmodel.evaluate.scorecard import Scorecard, git_commit, weights_hash
from worldmodel.evaluate.sheets import Sheet, animate, draw, save_sheets
from worldmodel.world import WorldSpec

_IMAGES = (".png", ".jpg", ".jpeg", ".bmp", ".webp")


def main(config: PlanConfig) -> int:
    """Plan, and write `out`; return 0, whether or not the goals are reached.

    Raises:
        UserError: a setting that makes no sense, a store without poses or of another world, a
            world without poses, a goal that is no image, no sentence, or of the wrong size.
    """
    _check(config)
    store = None if config.world else _store_with_poses(config)
    from worldmodel.dream import Dream  # heavy, and a bad config should be told at once

    dream = Dream.load(
        config.checkpoint, device=config.device, dtype=config.dtype,
        denoise_steps=config.denoise_steps, guidance=config.guidance, seed=config.seed,
    )  # fmt: skip
    print(f"{dream.device}: {dream.device_reason}")
    if store is not None:
        check_same_world(dream.spec, store.spec, _as_eval(config))
        outcome = offline(dream, store, config)
    else:
        outcome = _in_world(dream, config)
    card = Scorecard(
        suite="plan",
        checkpoint=config.checkpoint,
        checkpoint_hash=weights_hash(find(config.checkpoint)),
        store=config.world or config.store,
        split=config.split,
        seed=config.seed,
        commit=git_commit(),
        version=__version__,
        device=str(dream.device),
        dtype=str(dream.dtype),
        settings=asdict(config),
        metrics=outcome.metrics,
        verdicts=outcome.verdicts,
        data=outcome.data,
    )
    _write(card, outcome, Path(config.out))
    print(summary(card))
    print(f"\nplan: {Path(config.out) / 'plan.json'}, strip: {Path(config.out) / 'strip.png'}")
    print(f"report: {Path(config.out) / 'index.html'}")
    return 0


def read_goal(name: str, spec: WorldSpec) -> np.ndarray:
    """Return the frame of an image file, uint8 [H, W, 3].

    Raises:
        UserError: no such file, not an image, or one of another size.
    """
    try:
        with Image.open(name) as image:
            frame = np.asarray(image.convert("RGB"))
    except FileNotFoundError:
        raise UserError(f"There is no image '{name}'; goal= takes its path.") from None
    except (UnidentifiedImageError, OSError) as error:
        raise UserError(f"'{name}' cannot be read as an image ({error}).") from None
    if frame.shape != (spec.height, spec.width, 3):
        raise UserError(
            f"The goal '{name}' is {frame.shape[1]}x{frame.shape[0]} pixels, but the model "
            f"imagines {spec.width}x{spec.height}. Resize it first."
        )
    return frame


def summary(card: Scorecard) -> str:
    """Return a short table of the metrics beside their baselines, and the verdicts."""
    kinds = list(card.metrics[0].baselines)
    lines = [f"{'':16}{'planned':>10}{'95 % interval':>20}" + "".join(f"{k:>10}" for k in kinds)]
    for m in card.metrics:
        span = f"{m.low:.3f} to {m.high:.3f}"
        beside = "".join(
            f"{k:>7} {v:.3f}" if k not in kinds else "" for k, v in m.baselines.items()
        )
        cells = "".join(
            f"{m.baselines[k]:10.3f}" if k in m.baselines else f"{'':10}" for k in kinds
        )
        lines.append(f"{m.name:16}{m.value:10.3f}{span:>20}{cells} {beside}".rstrip())
    lines.append("")
    lines += [f"{'yes' if v.passed else 'no':>4}  {v.name}: {v.found}" for v in card.verdicts]
    return "\n".join(lines)


def _in_world(dream: Any, config: PlanConfig) -> Outcome:
    """Open the live world and plan in it for the goal that was asked for."""
    spec, goal = dream.spec, config.goal
    own: Goal | None = None
    if not config.judged and goal.lower().endswith(_IMAGES):
        own = ImageGoal(read_goal(goal, spec), dream.encoder)
    elif not config.judged:
        own = WordsGoal(goal, dream)

    def target(task: Task) -> Goal:
        if own is not None:
            return own
        if task.object:
            return WordsGoal(f"a {task.object} ahead", dream)
        return ImageGoal(task.goal.frame, dream.encoder)

    world = make_world(config.world, split=config.split, size=spec.height)
    try:
        named = replace(_as_eval(config), store=f"The world '{config.world}'")
        check_same_world(spec, world.spec, named)
        return closed_loop(dream, world, config, target)
    finally:
        world.close()


def _store_with_poses(config: PlanConfig) -> EpisodeStore:
    store = open_store(_as_eval(config))
    clips = sample_clips(
        store, config.split, config.episodes, config.context, config.horizon, config.seed
    )
    if any("facts/pose" not in store.arrays(name) for name in set(clips.names)):
        raise UserError(
            f"{config.store} holds no poses, so there are no paths to compare plans with. Use a "
            "store of a world that tells them, such as doom, or a live world with world=doom."
        )
    if len(clips) < 2:
        raise UserError(
            f"{config.store} has room for only one clip of split '{config.split}'; an interval "
            "needs 2. Ask for a shorter horizon, or collect more episodes."
        )
    return store


def _as_eval(config: PlanConfig) -> EvalConfig:
    """Return what the checks shared with `worldmodel eval` need to know."""
    return EvalConfig(checkpoint=config.checkpoint, store=config.store, split=config.split)


def _heads(count: int, steps: int) -> list[str]:
    at = shown(steps)
    before = count - len(at) - 1
    return [*(f"{n + 1 - before}" if n + 1 < before else "now" for n in range(before)),
            *(f"+{t + 1}" for t in at), "goal"]  # fmt: skip


def _write(card: Scorecard, outcome: Outcome, out: Path) -> None:
    steps = card.settings["steps"] if card.settings["world"] else card.settings["horizon"]
    try:
        card.save(out / "plan.json")
        heads = _heads(len(outcome.rows[0].frames), steps)
        caption = "What the plan imagines, what it is compared with, and the goal"
        drawn = draw(outcome.rows, heads), animate(outcome.tiles, columns=6)
        sheets = [Sheet("strip", "Plans", caption, *drawn)]
        save_sheets(sheets, out)
        write_report(card, sheets, out / "index.html")
    except OSError as error:
        raise UserError(f"The plan cannot be written to {out}: {error}.") from error


def _check(config: PlanConfig) -> None:
    least = {
        "episodes": 2, "context": 1, "horizon": 1, "hold": 1, "candidates": 1, "elites": 1,
        "iterations": 1, "batch": 1, "replan": 1, "steps": 1, "lead": 0, "denoise_steps": 1,
        "near_metres": 0, "near_degrees": 0, "seed": 0,
    }  # fmt: skip
    for name, limit in least.items():
        if getattr(config, name) < limit:
            raise UserError(f"{name}={getattr(config, name)} is too small; at least {limit}.")
    if config.replan > config.horizon:
        raise UserError(
            f"replan={config.replan} steps are more than a plan has (horizon={config.horizon})."
        )
    if not config.world and config.goal != "frame":
        raise UserError(
            f"goal={config.goal} needs a live world to be reached in: add world=doom. Without "
            "one, plans are compared with the recorded paths to goal=frame."
        )
    named = config.judged or config.goal.lower().endswith(_IMAGES)
    if not named and " " not in config.goal.strip():
        raise UserError(
            f"goal={config.goal} is neither 'frame' nor 'object', an image file (.png, .jpg), a "
            "caption such as 'a red torch ahead', nor a question with its answer."
        )
