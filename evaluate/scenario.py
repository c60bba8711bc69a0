"""The scenario file: one YAML for headless play, recorded sessions and evaluation.

    checkpoint: doom-nano            # a bundled name, a folder or a hub name; optional
    start: {seed: 3}                 # or {store: x.zarr, episode: 4, step: 10},
                                     # {image: a.png}, {world: doom, split: val, seed: 7}
    seeds: [7, 8]                    # instead of start.seed: evaluation repeats it from each
    seed: 0                          # of the imagination
    steps: 64                        # frames to imagine
    events:
      - {at: 0, hold: w, for: 16}    # keys by name; "w+a" together; without `for`: to the end
      - {at: 16, press: a}           # held for one step
      - {at: 20, say: "get out of the shadow"}
      - {at: 30, say: "what is ahead?"}    # a question; its answer is in the report
      - {at: 40, clear: true}        # drop the instruction
      - {at: 42, rewind: 4}          # go back so many steps before going on
      - {at: 44, fork: [w, a, d]}    # branches side by side, until the next event or the end;
                                     # then the first goes on, holding its keys
    checks: [still, {returns: {away: 16}}]    # for evaluation only, see docs/evaluation.md

A `say` may have `means: d`, the keys that a walker would hold for it: evaluation lets the real
world hold them. A branch of a fork may be such a sentence:
`fork: [d, {say: turn right, means: d}]`.

`load_scenario` reads it; `worldmodel.evaluate.cues` says what happens at each step. No window and
no model here.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import yaml

from worldmodel.errors import UserError, suggest

Read = TypeVar("Read")

MAX_STEPS = 1_000_000
SUITE_KEYS = ("include", "starts")
SCENARIO_KEYS = ("checkpoint", "start", "seeds", "seed", "steps", "events", "checks")
START_KEYS = ("seed", "store", "episode", "step", "image", "world", "split")
EVENT_KINDS = ("hold", "press", "say", "clear", "rewind", "fork")
CHECKS = {
    "still": (),
    "returns": ("away",),
    "stops": (),
    "goes_on": (),
    "brightness": (),
    "brightens": (),
    "same": (),
    "differs": (),
    "follows": (),
}
"""The checks of `worldmodel.evaluate.checks`, and what may be set about each."""


@dataclass(frozen=True)
class Start:
    """Where the imagination begins; without any of the others, bundled start `seed`.

    Attributes:
        seed: number of the bundled start, or the seed of `world`; None where not given.
        store, episode, step: a recorded episode (its position in the store) and the step in it.
        image: path of a picture.
        world: name of a real environment.
        split: which of its levels: 'train', 'val' or 'test'; None for its own choice.
    """

    seed: int | None = None
    store: str | None = None
    episode: int = 0
    step: int = 0
    image: str | None = None
    world: str | None = None
    split: str | None = None


@dataclass(frozen=True)
class Branch:
    """One branch of a fork: keys that are held, or a sentence that leads.

    Attributes:
        keys: names of the keys. say: the sentence.
        means: the keys that a walker would hold for it.
    """

    keys: tuple[str, ...] = ()
    say: str = ""
    means: tuple[str, ...] = ()

    @property
    def label(self) -> str:
        """What tells it from the others."""
        return self.say or "+".join(self.keys)


@dataclass(frozen=True)
class Check:
    """One entry of `checks`: its name, one of `CHECKS`, and what is set about it."""

    name: str
    settings: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Event:
    """One line of `events`.

    Attributes:
        at: the step it belongs to, from 0.
        kind: one of `EVENT_KINDS`.
        keys: of hold and press; of say, what it means.
        steps: how long keys are held (None: to the end), or how far to rewind.
        text: the sentence of say.
        branches: of fork.
    """

    at: int
    kind: str
    keys: tuple[str, ...] = ()
    steps: int | None = None
    text: str = ""
    branches: tuple[Branch, ...] = ()


@dataclass(frozen=True)
class Scenario:
    """A whole scenario file; None where the file leaves the choice to the reader."""

    steps: int
    checkpoint: str | None = None
    start: Start = field(default_factory=Start)
    seed: int | None = None
    events: tuple[Event, ...] = ()
    checks: tuple[Check, ...] = ()
    seeds: tuple[int, ...] = ()


@dataclass(frozen=True)
class SuiteFile:
    """What a `suite.yaml` says of the folder of scenarios that it lies in.

    Attributes:
        include: bundled suites that belong to it as well.
        starts: the most seeds of each scenario that are used; None for all.
    """

    include: tuple[str, ...] = ()
    starts: int | None = None


def load_scenario(path: str | Path) -> Scenario:
    """Read a scenario file.

    Raises:
        UserError: a missing or unreadable file, YAML that does not parse, an unknown key or a
            value of the wrong type; the message names the file and the place.
    """
    return _load(path, "scenario", parse_scenario)


def load_suite_file(path: Path) -> SuiteFile:
    """Read a `suite.yaml`.

    Raises:
        UserError: as `load_scenario`.
    """
    return _load(path, "suite", _suite)


def _suite(data: Any) -> SuiteFile:
    data = _mapping(data, "the suite", SUITE_KEYS)
    include = _list(data.get("include"), "include")
    names = tuple(_string(name, f"include[{i}]") for i, name in enumerate(include))
    starts = _integer(data["starts"], "starts", low=1) if "starts" in data else None
    return SuiteFile(names, starts)


def _load(path: str | Path, what: str, parse: Callable[[Any], Read]) -> Read:
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise UserError(f"Cannot read the {what} file '{path}': {reason}.") from error
    try:
        data = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" in line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or "characters that YAML does not allow"
        raise UserError(f"The {what} file '{path}' is not YAML{where}: {problem}.") from error
    try:
        return parse(data)
    except UserError as error:
        raise UserError(f"{what.capitalize()} file '{path}': {error}") from error


def parse_scenario(data: Any) -> Scenario:
    """Return the scenario of plain YAML data.

    Raises:
        UserError: an unknown key or a value of the wrong type.
    """
    data = _mapping(data, "the scenario", SCENARIO_KEYS)
    if "steps" not in data:
        raise UserError("'steps' is missing; it says how many frames to imagine, e.g. steps: 64.")
    steps = _integer(data["steps"], "steps", low=1, high=MAX_STEPS)
    events = _list(data.get("events"), "events")
    start = _start(data.get("start"))
    seeds = _list(data.get("seeds"), "seeds")
    seeds = tuple(_integer(seed, f"seeds[{i}]") for i, seed in enumerate(seeds))
    if seeds and start.seed is not None:
        raise UserError("Give either 'seeds' or 'start.seed', not both.")
    if seeds and (start.store or start.image):
        raise UserError("'seeds' goes with bundled starts and with 'start.world' only.")
    checks = _list(data.get("checks"), "checks")
    return Scenario(
        steps=steps,
        checkpoint=_optional(data, "checkpoint", _string),
        start=replace(start, seed=seeds[0]) if seeds else start,
        seed=_optional(data, "seed", _integer),
        events=tuple(_event(event, i, steps) for i, event in enumerate(events)),
        checks=tuple(_check(check, i, steps) for i, check in enumerate(checks)),
        seeds=seeds,
    )


def _start(data: Any) -> Start:
    if data is None:
        return Start()
    data = _mapping(data, "start", START_KEYS)
    sources = [name for name in ("store", "image", "world") if name in data]
    if len(sources) > 1:
        raise UserError(
            f"'start' takes one of store, image and world, not {' and '.join(sources)}."
        )
    for name in ("episode", "step"):
        if name in data and "store" not in data:
            raise UserError(f"'start.{name}' needs 'start.store', the store it is in.")
    if "split" in data and "world" not in data:
        raise UserError("'start.split' needs 'start.world', the world whose levels it names.")
    return Start(
        seed=_optional(data, "seed", _integer, "start."),
        store=_optional(data, "store", _string, "start."),
        episode=_optional(data, "episode", _integer, "start.") or 0,
        step=_optional(data, "step", _integer, "start.") or 0,
        image=_optional(data, "image", _string, "start."),
        world=_optional(data, "world", _string, "start."),
        split=_optional(data, "split", _string, "start."),
    )


def _event(data: Any, index: int, num_steps: int) -> Event:
    name = f"events[{index}]"
    data = _mapping(data, name, ("at", "for", "means", *EVENT_KINDS))
    if "at" not in data:
        raise UserError(f"'{name}' lacks 'at', the step it belongs to.")
    at = _integer(data["at"], f"{name}.at")
    if at >= num_steps:
        raise UserError(f"'{name}.at' is {at}, but the scenario ends after step {num_steps - 1}.")
    kinds = [kind for kind in EVENT_KINDS if kind in data]
    if len(kinds) != 1:
        raise UserError(
            f"'{name}' needs exactly one of {', '.join(EVENT_KINDS)}, "
            f"got {' and '.join(kinds) or 'none'}."
        )
    kind = kinds[0]
    if "for" in data and kind != "hold":
        raise UserError(f"'{name}.for' goes with 'hold' only, not with '{kind}'.")
    if "means" in data and kind != "say":
        raise UserError(f"'{name}.means' goes with 'say' only, not with '{kind}'.")
    place, value = f"{name}.{kind}", data[kind]
    if kind == "hold":
        steps = _integer(data["for"], f"{name}.for", low=1) if "for" in data else None
        return Event(at, kind, keys=_keys(value, place), steps=steps)
    if kind == "press":
        return Event(at, kind, keys=_keys(value, place), steps=1)
    if kind == "say":
        text = _string(value, place)
        if not text.strip():
            raise UserError(f"'{place}' is empty; to drop the instruction write clear: true.")
        means = _keys(data["means"], f"{name}.means") if "means" in data else ()
        return Event(at, kind, keys=means, text=text)
    if kind == "clear":
        if value is not True:
            raise UserError(f"'{place}' must be true, got {value!r}.")
        return Event(at, kind)
    if kind == "rewind":
        return Event(at, kind, steps=_integer(value, place, low=1))
    branches = _list(value, place)
    if not 2 <= len(branches) <= 9:
        raise UserError(f"'{place}' needs 2 to 9 branches, got {len(branches)}.")
    return Event(at, kind, branches=tuple(_branch(branch, place) for branch in branches))


def _branch(value: Any, name: str) -> Branch:
    if not isinstance(value, dict):
        return Branch(keys=_keys(value, name))
    data = _mapping(value, name, ("say", "means"))
    say = _string(data.get("say"), f"{name}.say").strip()
    if not say:
        raise UserError(f"'{name}.say' is empty.")
    return Branch(say=say, means=_keys(data["means"], f"{name}.means") if "means" in data else ())


def _check(value: Any, index: int, num_steps: int) -> Check:
    name = f"checks[{index}]"
    data = {value: None} if isinstance(value, str) else value
    if not isinstance(data, dict) or len(data) != 1:
        raise UserError(f"'{name}' must be the name of a check, got {_kind(value)}.")
    ((kind, settings),) = data.items()
    if kind not in CHECKS:
        raise UserError(f"Unknown check '{kind}' in {name}.{suggest(str(kind), CHECKS)}")
    settings = {} if settings is None else _mapping(settings, f"{name}.{kind}", CHECKS[kind])
    read = {
        key: _integer(number, f"{name}.{kind}.{key}", low=1, high=num_steps)
        for key, number in settings.items()
    }
    return Check(str(kind), read)


def _keys(value: Any, name: str) -> tuple[str, ...]:
    parts = tuple(part.strip() for part in _string(value, name).split("+"))
    if not all(parts):
        raise UserError(f"'{name}' must name keys such as w or w+a, got {value!r}.")
    return parts


def _mapping(data: Any, name: str, known: Iterable[str]) -> Mapping[str, Any]:
    if not isinstance(data, dict):
        raise UserError(f"{name} must be keys with values, got {_kind(data)}.")
    for key in data:
        if key not in known:
            raise UserError(f"Unknown key '{key}' in {name}.{suggest(str(key), known)}")
    return data


def _list(value: Any, name: str) -> list[Any]:
    if value is None:
        return []
    if not isinstance(value, list):
        raise UserError(f"'{name}' must be a list, got {_kind(value)}.")
    return value


def _integer(value: Any, name: str, low: int = 0, high: int = 2**63 - 1) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise UserError(f"'{name}' must be a whole number, got {_kind(value)}.")
    if not low <= value <= high:
        raise UserError(f"'{name}' must be {low} to {high}, got {value}.")
    return value


def _string(value: Any, name: str) -> str:
    if not isinstance(value, str):
        raise UserError(f"'{name}' must be text (put it in quotes), got {_kind(value)}.")
    return value


def _optional(data: Mapping[str, Any], key: str, read: Any, prefix: str = "") -> Any:
    return None if data.get(key) is None else read(data[key], prefix + key)


def _kind(value: Any) -> str:
    if value is None:
        return "nothing"
    names = {bool: "true/false", int: "a number", float: "a number", str: "text", list: "a list"}
    return f"{names.get(type(value), 'keys with values')} ({str(value)[:40]!r})"
