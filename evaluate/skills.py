"""Scenarios played and judged: by the model, and by the real world where they begin in one.

A suite is a folder of scenario files; each may be repeated from several starts. Beside the model
the same checks are run on the real world under the same keys (the ceiling, from which the pass
marks come), on a copy of the first frame and on noise.

Letters in shapes: S starts, B branches, T steps, H W 3 a frame, N C a latent, K candidates.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from worldmodel.actions import Action, ActionTable
from worldmodel.errors import UserError, suggest
from worldmodel.evaluate import metrics, sheets
from worldmodel.evaluate.checks import LUMA, READ_STEPS, RULES, STEP, Ground, Judgement, Seen, judge
from worldmodel.evaluate.config import EvalConfig
from worldmodel.evaluate.cues import Cue, Lane, compile_lanes
from worldmodel.evaluate.imaginer import Guest
from worldmodel.evaluate.quick import Outcome
from worldmodel.evaluate.rollouts import FrameEncoder, Imagination, encode, reconstruct
from worldmodel.evaluate.scenario import Scenario, SuiteFile, load_scenario, load_suite_file
from worldmodel.evaluate.scorecard import Verdict, data_hash, metric
from worldmodel.evaluate.sheets import Row, Sheet
from worldmodel.evaluate.starts import Given, find_start, open_world
from worldmodel.world import World

SUITES = Path(__file__).parent / "suites"
SUITE_FILE = "suite.yaml"
ANCHORS = 16  # first frames of the world's levels that say how bright an average place is
SLACK = 1.2  # by which the real range of sharpness is widened: the frames it is read from are few
_COLUMNS = 9


class Reality:
    """A real environment whose walks are remembered: to begin a level again takes long.

    Args:
        world: the environment; closed with this.
    """

    def __init__(self, world: World) -> None:
        self.world = world
        self._walks: dict[tuple[int, tuple[Action, ...]], np.ndarray] = {}

    def walk(self, seeds: Sequence[int], plans: Sequence[Sequence[Action]]) -> np.ndarray:
        """Return what is seen on plans of one length, each from each seed.

        Returns:
            uint8 [S, plans, T+1, H, W, 3].
        """
        return np.stack([[self._walk(seed, tuple(plan)) for plan in plans] for seed in seeds])

    @cached_property
    def anchors(self) -> np.ndarray:
        """The first frames of some levels, uint8 [ANCHORS, H, W, 3]."""
        return self.walk(range(ANCHORS), [[]])[:, 0, 0]

    def close(self) -> None:
        """Close the environment."""
        self.world.close()

    def _walk(self, seed: int, plan: tuple[Action, ...]) -> np.ndarray:
        if (seed, plan) not in self._walks:
            frames = [self.world.reset(seed).frame]
            frames += [self.world.step(action).frame for action in plan]
            self._walks[seed, plan] = np.stack(frames)
        return self._walks[seed, plan]


def suites() -> tuple[str, ...]:
    """Return the names of the bundled suites."""
    return tuple(sorted(path.name for path in SUITES.iterdir() if any(path.glob("*.yaml"))))


def load_suite(place: Path) -> dict[str, Scenario]:
    """Return the scenarios of a folder, or the one of a file, by name.

    A folder's `suite.yaml` may include bundled suites, and say how many starts are used.

    Raises:
        UserError: no such place, none in it, or a file that is no scenario.
    """
    paths = sorted(place.glob("*.yaml")) if place.is_dir() else [place]
    if not paths:
        raise UserError(f"There are no scenario files (*.yaml) in {place}.")
    head, found = SuiteFile(), dict[str, Scenario]()
    if place.is_dir() and (place / SUITE_FILE) in paths:
        paths.remove(place / SUITE_FILE)
        head = load_suite_file(place / SUITE_FILE)
        for name in head.include:
            found |= bundled_suite(name)
    found |= {path.stem: load_scenario(path) for path in paths}
    return {name: replace(one, seeds=one.seeds[: head.starts]) for name, one in found.items()}


def bundled_suite(name: str) -> dict[str, Scenario]:
    """Return the scenarios of a bundled suite.

    Raises:
        UserError: no suite of that name.
    """
    if name not in suites():
        raise UserError(f"Unknown suite '{name}'.{suggest(name, suites())}")
    return load_suite(SUITES / name)


def run_scenarios(
    dream: Imagination, encoder: FrameEncoder, scenarios: Mapping[str, Scenario], config: EvalConfig
) -> Outcome:
    """Play scenarios and judge them by their checks; with a guest, those without sentences.

    Raises:
        UserError: keys or frames that are not the model's, a check that lacks what it compares.
    """
    lanes = {}  # all of them before the first is played
    for name, scenario in scenarios.items():
        with _named(name):
            lanes[name] = compile_lanes(scenario, dream.spec.actions)
            require(scenario, lanes[name])
    if isinstance(dream, Guest):
        scenarios = _unspoken(scenarios, lanes, dream)
    results: list[Outcome] = []
    with ExitStack() as stack:
        worlds: dict[tuple[str | None, str | None], Reality] = {}
        for name, scenario in scenarios.items():
            start = scenario.start
            key = (start.world, start.split)
            if start.world and key not in worlds:
                worlds[key] = Reality(open_world(start, dream.spec))
                stack.callback(worlds[key].close)
            told = seeded(dream, scenario)
            with _named(name):
                one = _run(name, scenario, lanes[name], told, encoder, worlds.get(key), config)
            results.append(one)
    return Outcome(
        tuple(m for one in results for m in one.metrics),
        tuple(v for one in results for v in one.verdicts),
        tuple(s for one in results for s in one.sheets),
        data=data_hash(*(one.data for one in results)),
    )


def require(scenario: Scenario, lanes: Sequence[Lane]) -> None:
    """Refuse checks that the scenario gives nothing to compare.

    Raises:
        UserError: what is missing.
    """
    for check in scenario.checks:
        rule = RULES[check.name]
        if rule.world and not scenario.start.world:
            raise UserError(
                f"The check '{check.name}' compares with the real world; begin there, for "
                "instance with start: {world: doom, seed: 3}."
            )
        if len(lanes) < rule.branches:
            raise UserError(
                f"The check '{check.name}' compares branches; the scenario needs a fork, for "
                "instance {at: 0, fork: [w, a, d]}."
            )
        if check.name == "follows" and not all(_constant(lane.cues) for lane in lanes):
            raise UserError(
                "The check 'follows' needs to know what is to be seen: the same keys held from "
                "step 0 to the end in each branch, or a sentence with means: KEYS."
            )
        if check.name == "brightens" and not scenario.start.world:
            raise UserError(
                "The check 'brightens' compares with an average place of the real world; begin "
                "there, for instance with start: {world: doom, seed: 3}."
            )


def seeded(dream: Any, scenario: Scenario) -> Any:
    """Return the dream with the noise of the scenario's own seed, if it names one."""
    if scenario.seed is None or not hasattr(dream, "engine"):
        return dream
    settings = (dream.denoise_steps, dream.guidance, scenario.seed, dream.device_reason)
    return type(dream)(dream.engine, *settings)


def play(
    dream: Imagination,
    starts: Sequence[tuple[int, Given | None]],
    lanes: Sequence[Lane],
    batch: int = 16,
    title: str = "imagining",
) -> np.ndarray:
    """Let the model go through a scenario.

    All branches of a start have the same noise, so they differ by what they were told alone.
    Questions are left out.

    Args:
        dream: the model.
        starts: of each its seed and its frames, None for a bundled start.
        lanes: the branches.
        batch: rollouts at once, where the model can.
        title: for the progress bar.

    Returns:
        uint8 [S, B, T+1, H, W, 3], from the start's frame on.
    """
    spec, steps = dream.spec, len(lanes[0].cues)
    out = np.empty((len(starts), len(lanes), steps + 1, spec.height, spec.width, 3), np.uint8)
    places = [(s, b) for s in range(len(starts)) for b in range(len(lanes))]
    together: Any = getattr(dream, "batch_step", None)
    size = batch if together and hasattr(dream, "fork") else 1
    bar = tqdm(total=len(places) * steps, desc=title, unit="frame", leave=False)
    for first in range(0, len(places), size):
        here = places[first : first + size]
        team: list[Any] = [dream]
        _begin(dream, *starts[here[0][0]])
        if len(here) > 1:
            team += getattr(dream, "fork")(len(here) - 1)  # noqa: B009  (not in the Protocol)
        for member, (s, b) in zip(team, here, strict=True):
            out[s, b, 0] = _begin(member, *starts[s])
        told = [False] * len(here)
        for t in range(steps):
            actions: list[Action | None] = []
            for i, (_, b) in enumerate(here):
                cue = lanes[b].cues[t]
                if cue.clear or cue.say is not None:
                    team[i].say(cue.say)
                    told[i] = cue.say is not None
                led = told[i] and not cue.keys
                actions.append(None if led else spec.actions.press(cue.keys))
            found = together(team, actions) if len(team) > 1 else [dream.step(actions[0])]
            for (s, b), step in zip(here, found, strict=True):
                out[s, b, t + 1] = step.frame
            bar.update(len(here))
    bar.close()
    dream.say(None)
    return out


def real_plan(lane: Lane, table: ActionTable) -> list[Action]:
    """Return what the real world does in a lane: its keys, or what its sentence means."""
    return [table.press(keys) for keys in _meant(lane.cues)]


def _run(
    name: str,
    scenario: Scenario,
    lanes: Sequence[Lane],
    dream: Imagination,
    encoder: FrameEncoder,
    reality: Reality | None,
    config: EvalConfig,
) -> Outcome:
    seeds = list(scenario.seeds[: config.starts] or [scenario.start.seed or 0])
    starts = [(s, find_start(scenario.start, dream.spec) if not reality else None) for s in seeds]
    ground = Ground()
    if reality:
        follows = any(check.name == "follows" for check in scenario.checks)
        ground = measure_ground(reality, encoder, seeds, lanes, follows)
        assert ground.real is not None
        starts = [(s, Given(ground.real.frames[i, 0, :1])) for i, s in enumerate(seeds)]
    frames = play(dream, starts, lanes, config.batch, name)

    def see(shown: np.ndarray) -> Seen:
        return look(shown, encoder, ground.sharpest)

    noise = np.random.default_rng(config.seed).integers(0, 256, frames.shape, dtype=np.uint8)
    noise[:, :, 0] = frames[:, :, 0]
    model = see(frames)
    first, length = see(frames[:, :, :1]), frames.shape[2]
    parts = (first.frames, first.latents, first.views)
    others = {
        "copy": Seen(*(np.repeat(part, length, axis=2) for part in parts)),
        "noise": see(noise),
    }
    found = [judge(check, model, others, ground, config.seed) for check in scenario.checks]
    return Outcome(
        tuple(_metric(name, one) for one in found),
        tuple(_verdict(name, one) for one in found),
        (_sheet(name, lanes, frames, ground.real, seeds, found),),
        data=data_hash(repr(scenario), repr(seeds), frames[:, :, 0]),
    )


def look(frames: np.ndarray, encoder: FrameEncoder, sharpest: float) -> Seen:
    """Return frames uint8 [S, B, T+1, H, W, 3] as they are judged."""
    return Seen(frames, encode(encoder, frames), metrics.sharpness(frames) <= sharpest)


def measure_ground(
    reality: Reality,
    encoder: FrameEncoder,
    seeds: Sequence[int],
    lanes: Sequence[Lane],
    follows: bool = True,
) -> Ground:
    """Measure what the real world says about a scenario.

    Args:
        reality: it.
        encoder: the model's frame encoder.
        seeds: of the starts.
        lanes: the branches.
        follows: whether the frames under each single key are needed.
    """
    table, anchors = reality.world.spec.actions, reality.anchors

    def held(options: Iterable[tuple[str, ...]]) -> np.ndarray:
        return reality.walk(seeds, [[table.press(keys)] * READ_STEPS for keys in options])

    shown = reality.walk(seeds, [real_plan(lane, table) for lane in lanes])
    turn = next((row.key for row in table.rows if row.dyaw), table.keys[0])
    pairs = encode(encoder, held([(turn,)])[:, 0, :2])
    known = [shown, anchors, reconstruct(encoder, anchors)]
    sharpest = SLACK * max(float(metrics.sharpness(frames).max()) for frames in known)
    expected = [_constant(lane.cues) for lane in lanes]
    ground = Ground(
        real=look(shown, encoder, sharpest),
        step=float(metrics.encoder_distance(pairs[:, 0], pairs[:, 1]).mean()) or STEP,
        light=float((anchors @ LUMA).mean()),
        sharpest=sharpest,
        expected=tuple(map(_label, expected)),
    )
    if not follows:
        return ground
    options = dict.fromkeys([(), *((key,) for key in table.keys), *(k for k in expected if k)])
    names = tuple(_label(keys) or "none" for keys in options)
    return replace(ground, names=names, candidates=encode(encoder, held(options)))


def _unspoken(
    scenarios: Mapping[str, Scenario], lanes: Mapping[str, Sequence[Lane]], guest: Guest
) -> dict[str, Scenario]:
    """Return the scenarios in which nothing is said, and tell which are left out."""
    said = {name for name in lanes if any(cue.say for lane in lanes[name] for cue in lane.cues)}
    if said:
        print(f"left out, as {guest.name} reads no sentences: {', '.join(sorted(said))}")
    if len(said) == len(lanes):
        raise UserError(f"The imaginer '{guest.name}' reads no sentences; these scenarios do.")
    return {name: one for name, one in scenarios.items() if name not in said}


@contextmanager
def _named(name: str) -> Iterator[None]:
    """Say in which scenario a mistake is."""
    try:
        yield
    except UserError as error:
        raise UserError(f"Scenario '{name}': {error}") from error


def _begin(dream: Any, seed: int, given: Given | None) -> np.ndarray:
    if given is None:
        frame = dream.reset(seed=seed).frame
    else:
        frame = dream.reset(seed=seed, frames=given.frames, actions=list(given.actions)).frame
    dream.say(None)
    return frame


def _meant(cues: Sequence[Cue]) -> list[tuple[str, ...]]:
    """Return the keys of each step, or what the sentence in force means."""
    now: tuple[str, ...] = ()
    keys = []
    for cue in cues:
        now = cue.means if cue.say is not None else () if cue.clear else now
        keys.append(cue.keys or now)
    return keys


def _constant(cues: Sequence[Cue]) -> tuple[str, ...]:
    """Return the keys that are held, or meant, all the time; none where they change."""
    keys = set(map(frozenset, _meant(cues)))
    return _meant(cues)[0] if len(keys) == 1 else ()


def _label(keys: Sequence[str]) -> str:
    return "+".join(sorted(keys))


def _metric(name: str, one: Judgement) -> Any:
    beside = {**one.others, "pass mark": one.mark}
    return metric(f"{name}: {one.check}", one.score, better="higher", baselines=beside)


def _verdict(name: str, one: Judgement) -> Verdict:
    real = one.others["real"]
    beside = "" if math.isnan(real) else f", which the real world does with {real:.2f}"
    found = f"{one.score.value:.2f} ({one.score.low:.2f} to {one.score.high:.2f})"
    asked = f"at least {one.mark:.2f}{beside}; compares {one.says}"
    return Verdict(f"{name}: {one.check}", asked, found, one.passed)


def _sheet(
    name: str,
    lanes: Sequence[Lane],
    frames: np.ndarray,
    real: Seen | None,
    seeds: Sequence[int],
    found: Sequence[Judgement],
) -> Sheet:
    """Draw the first start: of each branch the real world, if there is one, above the model."""
    steps = frames.shape[2] - 1
    at = np.unique(np.linspace(0, steps, min(_COLUMNS, steps + 1)).round().astype(int))
    tiles = []
    for b, lane in enumerate(lanes):
        keys = ("", *("+".join(cue.keys) for cue in lane.cues))
        if real:
            tiles.append(Row(_short("real", lane), real.frames[0, b], keys))
        tiles.append(Row(_short("model", lane), frames[0, b], keys))
    rows = [Row(row.label, row.frames[at]) for row in tiles]
    heads = ["given", *(f"+{t}" for t in at[1:])]
    passed = ", ".join(f"{one.check} {'passes' if one.passed else 'fails'}" for one in found)
    caption = f"{steps} steps from start {seeds[0]}; {passed or 'no checks'}"
    drawn = sheets.draw(rows, heads, 80), sheets.animate(tiles)
    return Sheet(f"skill_{name}", name.replace("-", " "), caption, *drawn)


def _short(hand: str, lane: Lane) -> str:
    return f"{hand} {lane.label[:28]}".strip()
