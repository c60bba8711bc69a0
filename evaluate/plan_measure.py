"""How well plans do: against recorded paths, and in a live world."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from worldmodel.actions import Action
from worldmodel.datasets.store import EpisodeStore
from worldmodel.envs import make_policy
from worldmodel.envs.language import look as scene_of
from worldmodel.errors import UserError
from worldmodel.evaluate.metrics import estimate
from worldmodel.evaluate.plan_config import PlanConfig
from worldmodel.evaluate.planning import (
    Goal,
    ImageGoal,
    Planner,
    choices_of,
    imagine_plans,
    integrate,
    path_error,
    turn,
)
from worldmodel.evaluate.rollouts import sample_clips
from worldmodel.evaluate.scorecard import Metric, Verdict, data_hash, metric
from worldmodel.evaluate.sheets import Row
from worldmodel.world import Step, World, WorldSpec

RANDOM = 8
"""Random plans, or walks, of each episode; their mean is the baseline."""
_COLUMNS = 8  # frames of a plan on the strip
_SHOWN = 6  # episodes on the strip
_TRIES = 20  # levels looked at for each episode

Act = Callable[[list[np.ndarray], list[Action]], list[Action]]
"""Chooses the next actions from the frames so far and the actions between them."""


@dataclass(frozen=True)
class Outcome:
    """What was measured, and what to show of it.

    Attributes:
        metrics, verdicts: the results. data: as in a `Scorecard`.
        rows: for the strip.
        tiles: for the film: a plan beside what it is compared with, from the same frame on.
    """

    metrics: tuple[Metric, ...]
    verdicts: tuple[Verdict, ...]
    rows: tuple[Row, ...]
    tiles: tuple[Row, ...] = ()
    data: str = ""


def offline(dream: Any, store: EpisodeStore, config: PlanConfig) -> Outcome:
    """Plan to the last frame of recorded clips; compare the plans' paths with the recorded ones.

    Beside the planner: the mean of `RANDOM` random plans, the key that walks ahead held, nothing
    done, and the recorded actions themselves: what walls and the engine's own motion cost any
    plan, so a floor.
    """
    clips = sample_clips(
        store, config.split, config.episodes, config.context, config.horizon, config.seed
    )
    planner, first = _planner(dream.spec, config), config.context - 1
    table, rows, tiles = dream.spec.actions, [], []
    errors: dict[str, list[list[float]]] = {}
    costs: dict[str, list[float]] = {}
    for i, (name, start) in enumerate(zip(clips.names, clips.starts, strict=True)):
        poses = store.arrays(name)["facts/pose"][start + first :][: config.horizon + 1]
        actions = clips.actions(table, i)
        dream.reset(seed=i, frames=clips.past[i], actions=actions[:first])
        goal = ImageGoal(clips.future[i, -1], dream.encoder)
        planned = planner.plan(dream, goal, seed=config.seed + i)
        plans = {
            "planned": [planned.actions],
            "random": [planner.random(config.seed + RANDOM * i + k) for k in range(RANDOM)],
            "straight": [[_ahead(dream.spec)] * config.horizon],
            "still": [[Action()] * config.horizon],
            "recorded": [actions[first:]],
        }
        for kind, some in plans.items():
            found = [path_error(integrate(plan, poses[0]), poses) for plan in some]
            values = [[e.ate, e.rpe, e.position, e.yaw] for e in found]
            errors.setdefault(kind, []).append(np.mean(values, axis=0).tolist())
        told = [*plans["recorded"], *plans["random"]]
        ends = goal.costs(imagine_plans(dream, told, config.batch)[:, -1])
        ends = [planned.found.cost, *ends]
        for kind, value in zip(("planned", "recorded"), ends, strict=False):
            costs.setdefault(kind, []).append(float(value))
        costs.setdefault("random", []).append(float(np.mean(ends[2:])))
        costs.setdefault("given", []).append(float(goal.costs(clips.past[i, -1:])[0]))
        if i < _SHOWN:
            lead, goal_frame = clips.past[i], clips.future[i, -1]
            rows += [
                _row("imagined", lead, planned.frames, goal_frame, planned.actions),
                _row("recorded", lead, clips.future[i], goal_frame, actions[first:]),
            ]
            tiles += [
                _tile("imagined", lead[-1], planned.frames, planned.actions),
                _tile("recorded", lead[-1], clips.future[i], actions[first:]),
                _tile("goal", goal_frame, goal_frame[None].repeat(config.horizon, 0)),
            ]
        print(f"clip {i + 1} of {len(clips)}: ATE {errors['planned'][-1][0]:.2f} m", flush=True)
    found = {kind: np.asarray(values) for kind, values in errors.items()}
    metrics = [
        _metric(label, {kind: v[:, k] for kind, v in found.items()}, config, unit)
        for k, (label, unit) in enumerate(
            [("ate", "m"), ("rpe", "m"), ("final_position", "m"), ("final_yaw", "deg")]
        )
    ]
    metrics.append(_metric("goal_cost", {k: np.asarray(v) for k, v in costs.items()}, config))
    verdicts = [
        _better(config, f"smaller ATE than {kind}", found[kind][:, 0] - found["planned"][:, 0])
        for kind in ("random", "straight", "still")
    ]
    data = data_hash(clips.frames, clips.keys)
    return Outcome(tuple(metrics), tuple(verdicts), tuple(rows), tuple(tiles), data)


@dataclass(frozen=True)
class Task:
    """A goal in a live world that a path leads to.

    Attributes:
        seed: of the level.
        lead: actions from the level's start to the task's. path: from there to the goal.
        start, goal: what the world shows there.
        object: what stands ahead at the goal, where that is the goal; else ''.
    """

    seed: int
    lead: tuple[Action, ...]
    path: tuple[Action, ...]
    start: Step
    goal: Step
    object: str = ""


@dataclass(frozen=True)
class Walk:
    """What happened in a live world.

    Attributes:
        frames: uint8 [n+1, H, W, 3] from the task's start on. reached: whether the goal was.
        distance, angle: metres and degrees from the goal's pose at the end.
    """

    frames: np.ndarray
    reached: bool
    distance: float
    angle: float


def find_tasks(world: World, config: PlanConfig) -> list[Task]:
    """Return tasks whose goals are not reached where they start, from one level after another.

    Raises:
        UserError: a world without poses, or without enough such tasks.
    """
    tasks: list[Task] = []
    for seed in range(config.seed, config.seed + _TRIES * config.episodes):
        policy, spec = make_policy(config.policy, seed), world.spec
        step = world.reset(seed=seed)
        if "pose" not in step.facts:
            raise UserError(
                f"The world '{config.world}' tells no poses, so nobody can say whether a goal was "
                "reached. Use one that does, such as world=doom."
            )
        if hasattr(policy, "attach"):
            getattr(policy, "attach")(world)  # noqa: B009  (not in the Protocol)
        policy.reset(seed)
        steps, done = [step], []
        while len(done) < config.lead + config.horizon and not _over(steps[-1]):
            done.append(policy.act(steps[-1], spec))
            steps.append(world.step(done[-1]))
        if len(done) < config.lead + config.horizon:
            continue
        start, goal = steps[config.lead], steps[-1]
        task = Task(seed, tuple(done[: config.lead]), tuple(done[config.lead :]), start, goal)
        if config.goal == "object":
            new = sorted(_things_ahead(goal, spec) - _things_ahead(start, spec))
            tasks += [replace(task, object=new[0])] if new else []
        elif not reached(start, task, spec, config):
            tasks.append(task)
        if len(tasks) == config.episodes:
            return tasks
    raise UserError(
        f"Only {len(tasks)} of {config.episodes} tasks were found in {_TRIES * config.episodes} "
        f"levels: paths of horizon={config.horizon} steps seldom lead to such a goal. Ask for "
        "fewer episodes, a longer horizon, or another policy (policy=goto walks to objects)."
    )


def reached(step: Step, task: Task, spec: WorldSpec, config: PlanConfig) -> bool:
    """Whether a step of a world is at a task's goal; never where another goal is planned for."""
    if not config.judged:
        return False
    if task.object:
        return task.object in _things_ahead(step, spec)
    distance, angle = _apart(step, task.goal)
    return distance <= config.near_metres and angle <= config.near_degrees


def walk(world: World, task: Task, act: Act, config: PlanConfig) -> Walk:
    """Bring a world to a task's start and let `act` go on until the goal or the last step.

    Raises:
        UserError: the world does not come to the same start again.
    """
    steps = [world.reset(seed=task.seed), *map(world.step, task.lead)]
    if not np.allclose(steps[-1].facts["pose"], task.start.facts["pose"], atol=1e-3):
        raise UserError(
            f"The world '{config.world}' does not repeat itself: the same actions from seed "
            f"{task.seed} led elsewhere. Planning is measured in worlds that do."
        )
    actions, queue = list(task.lead), []
    there = False
    while len(actions) < len(task.lead) + config.steps and not there and not _over(steps[-1]):
        queue = queue or act([step.frame for step in steps], actions)
        actions.append(queue.pop(0))
        steps.append(world.step(actions[-1]))
        there = reached(steps[-1], task, world.spec, config)
    frames = np.stack([step.frame for step in steps[len(task.lead) :]])
    return Walk(frames, there, *_apart(steps[-1], task.goal))


def closed_loop(
    dream: Any, world: World, config: PlanConfig, goal: Callable[[Task], Goal]
) -> Outcome:
    """Plan, do the first steps, look, and plan again, until a goal is reached.

    Beside the planner: the mean of `RANDOM` random walks of as many steps with the same choices,
    the key that walks ahead held, and the path that showed the goal.

    Args:
        dream: the model.
        world: a live world with poses that repeats itself.
        config: the settings.
        goal: what to plan for in a task. Where it is not the task's own (`config.judged`), only
            the costs are told.
    """
    planner = _planner(dream.spec, config)
    found: dict[str, list[list[float]]] = {}
    rows: list[Row] = []
    tiles: list[Row] = []
    tasks = find_tasks(world, config)
    for i, task in enumerate(tasks):
        target = goal(task)
        thought: list[np.ndarray] = []
        told: list[Action] = []

        def act(frames: list[np.ndarray], actions: list[Action], i: int = i) -> list[Action]:
            past = frames[-config.context :]
            dream.reset(
                seed=i, frames=np.stack(past), actions=actions[len(actions) + 1 - len(past) :]
            )
            planned = planner.plan(dream, target, config.seed + 1000 * i + len(actions))  # noqa: B023
            thought.extend(planned.frames[: config.replan])  # noqa: B023
            told.extend(planned.actions[: config.replan])  # noqa: B023
            return planned.actions[: config.replan]

        walks = {
            "planned": [walk(world, task, act, config)],
            "random": [
                walk(world, task, _wanders(planner, config.seed + RANDOM * i + k), config)
                for k in range(RANDOM)
            ],
            "straight": [walk(world, task, lambda *_: [_ahead(dream.spec)], config)],
            "path": [walk(world, task, _follows(task), config)],
        }
        for kind, some in walks.items():
            ends = target.costs(np.stack([w.frames[-1] for w in some]))
            values = [
                [w.reached, w.distance, w.angle, end] for w, end in zip(some, ends, strict=True)
            ]
            found.setdefault(kind, []).append(np.mean(values, axis=0).tolist())
        done = walks["planned"][0]
        if i < _SHOWN:
            real, count = done.frames[1:], len(done.frames) - 1
            start, end = done.frames[:1], target.frame
            if end is None:  # words have no picture; what the path showed is one where it fits
                end = task.goal.frame if config.judged else np.zeros_like(start[0])
            label = f" ({task.object})" if task.object else ""
            rows += [
                _row(f"imagined{label}", start, np.stack(thought[:count]), end, told, config.steps),
                _row("happened", start, real, end, told[:count], config.steps),
            ]
            tiles += [
                _tile(f"imagined{label}", start[0], np.stack(thought[:count]), told, config.steps),
                _tile("happened", start[0], real, told[:count], config.steps),
                _tile("goal", end, end[None].repeat(config.steps, 0)),
            ]
        said = f"{'reached' if done.reached else 'missed'}, {done.distance:.1f} m away"
        print(f"level {task.seed} ({i + 1} of {len(tasks)}): {said}", flush=True)
    values = {kind: np.asarray(v, float) for kind, v in found.items()}
    names = [("success", "", "higher"), ("final_distance", "m", "lower")]
    names += [("final_angle", "deg", "lower"), ("goal_cost", "", "lower")]
    metrics = [
        _metric(name, {k: v[:, n] for k, v in values.items()}, config, unit, better)
        for n, (name, unit, better) in enumerate(names)
        if config.judged or name == "goal_cost"
    ]
    column, sign = (0, 1) if config.judged else (3, -1)
    what = "more often there than" if config.judged else "nearer to the goal (goal_cost) than"
    verdicts = [
        _better(config, f"{what} {k}", sign * (values["planned"] - values[k])[:, column])
        for k in ("random", "straight")
    ]
    data = data_hash(*(np.stack([t.start.frame, t.goal.frame]) for t in tasks))
    return Outcome(tuple(metrics), tuple(verdicts), tuple(rows), tuple(tiles), data)


def _planner(spec: WorldSpec, config: PlanConfig) -> Planner:
    return Planner(
        choices_of(spec.actions, config.pairs),
        config.horizon,
        config.hold,
        config.candidates,
        config.elites,
        config.iterations,
        config.batch,
    )


def _ahead(spec: WorldSpec) -> Action:
    """Return the action of the key that walks farthest ahead; nothing where none does."""
    row = max(spec.actions.rows, key=lambda row: row.dx)
    return spec.actions.press([row.key]) if row.dx > 0 else Action()


def _wanders(planner: Planner, seed: int) -> Act:
    """A random walk over the planner's own choices, each held as long as in a plan."""
    return lambda frames, actions: planner.random(seed * 1000 + len(actions))


def _follows(task: Task) -> Act:
    """Does a task's path, then nothing."""
    return lambda frames, actions: [*task.path[len(actions) - len(task.lead) :], Action()]


def _apart(step: Step, other: Step) -> tuple[float, float]:
    here, there = (np.asarray(s.facts["pose"], float) for s in (step, other))
    return float(np.linalg.norm(here[:2] - there[:2])), turn(here[2], there[2])


def _things_ahead(step: Step, spec: WorldSpec) -> set[str]:
    facts = {name: np.asarray(values)[None] for name, values in step.facts.items()}
    return {name for name, side, _ in scene_of(facts, 0, spec).objects if side == "ahead"}


def _over(step: Step) -> bool:
    return step.terminated or step.truncated


def _metric(
    name: str,
    values: dict[str, np.ndarray],
    config: PlanConfig,
    unit: str = "",
    better: str = "lower",
) -> Metric:
    beside = {kind: float(v.mean()) for kind, v in values.items() if kind != "planned"}
    found = estimate(values["planned"], config.seed)
    return metric(name, found, unit=unit, better=better, horizon=config.horizon, baselines=beside)


def _better(config: PlanConfig, name: str, gain: np.ndarray) -> Verdict:
    """Return whether a paired gain [episodes] is above zero with its whole interval."""
    found = estimate(gain, config.seed)
    said = f"{found.value:+.3f} ({found.low:+.3f} to {found.high:+.3f}), n={found.n}"
    return Verdict(name, "the gain's 95 % interval is above 0", said, found.low > 0)


def _row(
    label: str,
    past: np.ndarray,
    frames: np.ndarray,
    goal: np.ndarray,
    actions: Sequence[Action],
    steps: int = 0,
) -> Row:
    """Return a row of the strip: what was given, some frames of a plan, the goal.

    A walk shorter than `steps` leaves the rest of its row empty.
    """
    at = shown(max(steps, len(frames)))
    blank = np.zeros_like(goal)
    some = [frames[t] if t < len(frames) else blank for t in at]
    said = ["+".join(actions[t].keys) if t < len(frames) else "" for t in at]
    return Row(label, np.stack([*past, *some, goal]), (*[""] * len(past), *said, ""))


def _tile(
    label: str,
    start: np.ndarray,
    frames: np.ndarray,
    actions: Sequence[Action] = (),
    steps: int = 0,
) -> Row:
    """Return a tile of the film; one shorter than `steps` stands still at its end."""
    whole = np.concatenate([start[None], frames])
    rest = max(0, steps - len(frames))
    whole = np.concatenate([whole, whole[-1:].repeat(rest, 0)])
    said = ["", *("+".join(action.keys) for action in actions[: len(frames)])]
    return Row(label, whole, tuple(said + [""] * (len(whole) - len(said))))


def shown(steps: int) -> list[int]:
    """Return which of a plan's steps the strip shows."""
    return np.unique(np.linspace(0, steps - 1, min(steps, _COLUMNS)).round()).astype(int).tolist()
