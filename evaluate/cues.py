"""What happens at each step of a scenario: one `Cue` per step, and of a fork one lane per branch.

`compile_scenario` gives what a viewer plays, with forks and rewinds; `compile_lanes` the ways
through a scenario one by one, for evaluation.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace

from worldmodel.actions import ActionTable
from worldmodel.errors import UserError
from worldmodel.evaluate.scenario import Branch, Event, Scenario
from worldmodel.text import is_question


@dataclass(frozen=True)
class Cue:
    """What happens at one step: first rewind, clear or say, then ask, then the keys are held.

    Attributes:
        keys: names of the keys held, in no particular order.
        say: a sentence given before this step, else None.
        ask: questions asked before this step, about the frame before it.
        clear: whether the instruction is dropped before this step.
        rewind: how many steps to go back before this step.
        means: the keys that a walker would hold for `say`.
        fork: branches that are opened at this step, of which the first is what else is said here.
        pick: whether the first branch of the open fork is taken before this step.
    """

    keys: tuple[str, ...] = ()
    say: str | None = None
    ask: tuple[str, ...] = ()
    clear: bool = False
    rewind: int = 0
    means: tuple[str, ...] = ()
    fork: tuple[Branch, ...] = ()
    pick: bool = False


@dataclass(frozen=True)
class Lane:
    """One way through a scenario: a branch of its fork, or all of it.

    Attributes:
        label: the branch's keys or sentence; empty without a fork.
        cues: one per step, without any rewind.
    """

    label: str
    cues: tuple[Cue, ...]


def compile_scenario(scenario: Scenario, table: ActionTable) -> tuple[Cue, ...]:
    """Return what happens at each of the scenario's steps, of a fork along its first branch.

    Raises:
        UserError: a key that the world's table lacks, a fork with another event in its step.
    """
    forks = sorted((e for e in scenario.events if e.kind == "fork"), key=lambda fork: fork.at)
    picks = set()
    for fork in forks:
        others = [e.at for e in scenario.events if e is not fork and e.at >= fork.at]
        if fork.at in others:
            raise UserError(
                f"The fork at step {fork.at} has another event in the same step, so its branches "
                "would not be seen side by side. Move one of the two."
            )
        for branch in fork.branches:
            table.press((*branch.keys, *branch.means))
        picks.add(min(others, default=scenario.steps))
    plain = scenario
    for fork in forks:
        plain = _along(plain, fork, fork.branches[0], goes_on=True)
    cues = _compile(plain, table)
    opened = {fork.at: fork.branches for fork in forks}
    return tuple(
        replace(cue, fork=opened.get(step, ()), pick=step in picks) for step, cue in enumerate(cues)
    )


def _compile(scenario: Scenario, table: ActionTable) -> tuple[Cue, ...]:
    """Return what happens at each step of a scenario without forks."""
    held: list[set[str]] = [set() for _ in range(scenario.steps)]
    said: dict[int, str | None] = {}
    meant: dict[int, tuple[str, ...]] = {}
    asked: dict[int, tuple[str, ...]] = {}
    rewinds: dict[int, int] = {}
    for event in scenario.events:
        if event.kind in ("hold", "press"):
            table.press(event.keys)  # refuses unknown keys by name
            stop = scenario.steps if event.steps is None else event.at + event.steps
            for step in range(event.at, min(stop, scenario.steps)):
                held[step].update(event.keys)
        elif event.kind == "rewind":
            rewinds[event.at] = rewinds.get(event.at, 0) + (event.steps or 0)
        elif event.kind == "say" and is_question(event.text):
            asked[event.at] = (*asked.get(event.at, ()), event.text)
        else:
            said[event.at] = event.text if event.kind == "say" else None
            table.press(event.keys)
            meant[event.at] = event.keys
    return tuple(
        Cue(
            keys=tuple(key for key in table.keys if key in held[step]),
            say=said.get(step),
            ask=asked.get(step, ()),
            clear=step in said and said[step] is None,
            rewind=rewinds.get(step, 0),
            means=meant.get(step, ()),
        )
        for step in range(scenario.steps)
    )


def compile_lanes(scenario: Scenario, table: ActionTable) -> tuple[Lane, ...]:
    """Return the ways through a scenario: one, or with a fork one per branch.

    A fork ends what was held before. Every branch holds its keys to the end, without the
    instruction, or follows its sentence. The events after it are those of the first branch.

    Raises:
        UserError: a key that the world's table lacks, a second fork, a rewind after a fork.
    """
    forks = [event for event in scenario.events if event.kind == "fork"]
    if not forks:
        return (Lane("", _unwound(_compile(scenario, table))),)
    if len(forks) > 1:
        raise UserError(f"A scenario has at most one fork, this one {len(forks)}.")
    if any(e.kind == "rewind" and e.at >= forks[0].at for e in scenario.events):
        raise UserError("A scenario cannot rewind after its fork.")
    lanes = []
    for number, branch in enumerate(forks[0].branches):
        cues = _compile(_along(scenario, forks[0], branch, goes_on=not number), table)
        lanes.append(Lane(branch.label, _unwound(cues)))
    return tuple(lanes)


def _along(scenario: Scenario, fork: Event, branch: Branch, goes_on: bool) -> Scenario:
    """Return the scenario along a branch of one of its forks.

    Args:
        scenario: what it is a fork of.
        fork: the event.
        branch: holds its keys, or follows its sentence, from there to the end.
        goes_on: whether the events after the fork are this branch's.
    """
    at = fork.at
    before = [_cut(event, at) for event in scenario.events if event.at < at]
    after = [event for event in scenario.events if event.at >= at and event is not fork]
    if branch.say:
        own = [Event(at, "say", keys=branch.means, text=branch.say)]
    else:
        own = [Event(at, "hold", keys=branch.keys)]
        own += [Event(at, "clear")] if any(e.kind == "say" for e in before) else []
    return replace(scenario, events=(*before, *own, *(after if goes_on else ())))


def _cut(event: Event, at: int) -> Event:
    """Return an event whose keys are let go at step `at`."""
    if event.kind != "hold":
        return event
    left = at - event.at
    return replace(event, steps=left if event.steps is None else min(event.steps, left))


def _unwound(cues: Iterable[Cue]) -> tuple[Cue, ...]:
    """Return the cues of the path that is left when all is done; the instruction is not rewound."""
    path: list[Cue] = []
    told: list[tuple[str | None, tuple[str, ...]]] = []  # in force at each step of the path
    now: tuple[str | None, tuple[str, ...]] = (None, ())
    for cue in cues:
        if cue.rewind:
            del path[-cue.rewind :], told[-cue.rewind :]
        before = told[-1] if told else (None, ())
        now = (None, ()) if cue.clear else now
        now = (cue.say, cue.means) if cue.say is not None else now
        say = now[0] if cue.say is not None or now != before else None
        clear = now[0] is None and before[0] is not None
        path.append(replace(cue, say=say, clear=clear, rewind=0, means=now[1] if say else ()))
        told.append(now)
    return tuple(path)
