"""The session file: everything that was done, as it happens, one JSON line a command.

The first line says what was played: checkpoint and its hash, start, seed, settings. Each other
line is a command (`worldmodel.viewer.commands`) with its time in seconds and the number of the
node that was current after it. Carrying the commands out again in order gives the same tree and,
on the same machine, the same frames. A line is on its way to the disk when it is written: a
killed program loses the step in progress at most, a power cut about a second. A last line that
was torn is left out when the file is read.
"""

import json
import os
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path
from typing import IO, Any

import yaml

from worldmodel import __version__
from worldmodel.errors import UserError
from worldmodel.evaluate.scenario import Start, parse_scenario
from worldmodel.viewer.commands import Command, from_json, to_json
from worldmodel.viewer.tree import Tree

FORMAT = 1
_SYNC_S = 1.0  # what a power cut may take


@dataclass(frozen=True)
class Head:
    """What was played.

    Attributes:
        checkpoint: its name or folder. sha256: hash of its `config.json`, which has those of its
            other files; empty where there is none.
        world: 'dream', or the name of a real environment.
        beside: the real world or the store that was beside the dream, or empty.
        start: where it began. seed: of the imagination.
        denoise_steps, guidance, device, dtype: of the imagination at the beginning.
    """

    checkpoint: str = ""
    sha256: str = ""
    world: str = "dream"
    beside: str = ""
    start: Start = field(default_factory=Start)
    seed: int = 0
    denoise_steps: int = 0
    guidance: float = 1.0
    device: str = ""
    dtype: str = ""


@dataclass(frozen=True)
class Record:
    """A session file that was read."""

    head: Head
    commands: tuple[Command, ...]


class Journal:
    """Writes a session file; it appears with the first command.

    Args:
        path: where to. head: what is played.
    """

    def __init__(self, path: Path, head: Head) -> None:
        self.path = path
        self._head = head
        self._file: IO[bytes] | None = None
        self._began_s = time.monotonic()
        self._synced_s = self._began_s

    def write(self, command: Command, node: int) -> None:
        """Append a command after which `node` is current; others than a session's are left out.

        Raises:
            OSError: the file cannot be written.
        """
        data = to_json(command)
        if data is None:
            return
        if self._file is None:
            self._file = self.path.open("xb", buffering=0)
            self._append(_head_json(self._head))
        now_s = time.monotonic()
        self._append({"t": round(now_s - self._began_s, 3), **data, "node": node})
        if now_s - self._synced_s > _SYNC_S:
            os.fsync(self._file.fileno())
            self._synced_s = now_s

    def close(self) -> None:
        """Finish the file."""
        if self._file:
            os.fsync(self._file.fileno())
            self._file.close()
            self._file = None

    def _append(self, data: Mapping[str, Any]) -> None:
        assert self._file is not None
        line = json.dumps(data, ensure_ascii=False, separators=(",", ":")) + "\n"
        self._file.write(line.encode())  # unbuffered: the system has it, whatever becomes of us


def new_session(folder: Path) -> Path:
    """Return the path of a session that begins now, in a folder that is made.

    Raises:
        UserError: the folder cannot be made or written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"The session is not being written: cannot make the folder '{folder}': "
            f"{error.strerror or error}."
        ) from error
    if not os.access(folder, os.W_OK):
        raise UserError(f"The session is not being written: '{folder}' is not writable.")
    stamp, count = f"{datetime.now():%Y%m%d-%H%M%S}", 1
    path = folder / f"{stamp}.jsonl"
    while path.exists():
        count += 1
        path = folder / f"{stamp}-{count}.jsonl"
    return path


def read_session(path: str | Path) -> Record:
    """Read a session file.

    Raises:
        UserError: no such file, no session, another format, or a line that is damaged (other
            than the last one, which may be torn).
    """
    try:
        lines = Path(path).read_bytes().split(b"\n")
    except OSError as error:
        raise UserError(f"Cannot read the session '{path}': {error.strerror or error}.") from error
    *whole, _torn = lines  # what follows the last line break is empty or torn
    rows = []
    for number, line in enumerate(whole, start=1):
        try:
            rows.append(json.loads(line))
        except ValueError:
            if number == len(whole):
                break  # a power cut can leave anything in the last one
            raise UserError(f"Line {number} of the session '{path}' is damaged.") from None
    if not rows or not isinstance(rows[0], dict) or "session" not in rows[0]:
        raise UserError(f"'{path}' is no session file; the viewer writes them to sessions/.")
    head, *events = rows
    if head["session"] != FORMAT:
        raise UserError(
            f"The session '{path}' has format {head['session']}; this version reads {FORMAT}."
        )
    try:
        known = {name: head[name] for name in Head.__dataclass_fields__ if name in head}
        start = parse_scenario({"steps": 1, "start": known.pop("start", None)}).start
        commands = tuple(from_json(_command(event)) for event in events)
        return Record(Head(**known, start=start), commands)
    except UserError as error:
        raise UserError(f"The session '{path}' cannot be read: {error}") from error


def scenario_of(tree: Tree, node: int, head: Head, begin: Start) -> dict[str, Any]:
    """Return the scenario (`worldmodel.evaluate.scenario`) of the path to a node.

    Args:
        tree: the session's tree.
        node: where the path ends.
        head: what was played.
        begin: where the path begins, if that is in a dream.

    Raises:
        UserError: a path without steps, or with a recorded step that no keys make.
    """
    start, *steps = (tree[i] for i in tree.path(node))
    if not steps:
        raise UserError("This frame is a start: there is no step to save yet.")
    events: list[dict[str, Any]] = []
    for at, step in enumerate(steps):
        if step.said is not None:
            events.append({"at": at, "say": step.said} if step.said else {"at": at, "clear": True})
        if step.moved:
            raise UserError(
                f"Step {step.number} was recorded without keys, and a scenario knows keys and "
                "sentences only. The session's file has all of it."
            )
        if not step.keys:
            continue
        keys = "+".join(step.keys)
        last = next((event for event in reversed(events) if "hold" in event), None)
        if last and last["hold"] == keys and last["at"] + last["for"] == at:
            last["for"] += 1
        else:
            events.append({"at": at, "hold": keys, "for": 1})
    imagined = {"checkpoint": head.checkpoint} if head.world == "dream" else {}
    first = _plain_start(begin)
    if head.world != "dream":
        first = {"world": head.world, "seed": start.start}
    return {**imagined, "start": first, "seed": head.seed, "steps": len(steps), "events": events}


def to_yaml(scenario: Mapping[str, Any]) -> str:
    """Return a scenario as its YAML file."""
    return yaml.safe_dump(
        dict(scenario), sort_keys=False, allow_unicode=True, default_flow_style=None, width=100
    )


def _plain_start(start: Start) -> dict[str, Any]:
    plain = {name: value for name, value in asdict(start).items() if value is not None}
    if not start.store:
        del plain["episode"], plain["step"]
    return plain


def _head_json(head: Head) -> dict[str, Any]:
    plain = {name: getattr(head, name) for name in Head.__dataclass_fields__}
    made = datetime.now().astimezone().isoformat(timespec="seconds")
    first = {"session": FORMAT, "worldmodel": __version__, "made": made}
    return {**first, **plain, "start": _plain_start(head.start)}


def _command(event: Any) -> dict[str, Any]:
    if not isinstance(event, dict):
        raise UserError(f"{event!r} is no command of a session.")
    return {name: value for name, value in event.items() if name not in ("t", "node")}
