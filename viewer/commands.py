"""What can be asked of a session, as values, and as lines of a session file. No pygame here."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from worldmodel.errors import UserError

if TYPE_CHECKING:
    from worldmodel.viewer.session import Session


@dataclass(frozen=True)
class Branch:
    """One of the futures of a fork: keys that are held all the time, or a sentence that leads."""

    keys: tuple[str, ...] = ()
    say: str = ""

    @property
    def label(self) -> str:
        """What people call it, for instance 'w+a' or 'turn right'."""
        return self.say or "+".join(self.keys) or "nothing"


@dataclass(frozen=True)
class Advance:
    """Take exactly one step under `keys` (and keep the pause); of a fork, one of each branch."""

    keys: tuple[str, ...] = ()


@dataclass(frozen=True)
class Say:
    """Set the instruction; empty clears it."""

    text: str


@dataclass(frozen=True)
class Ask:
    """Ask about the current frame."""

    text: str


@dataclass(frozen=True)
class Rewind:
    """Go back so many steps and pause."""

    steps: int = 1


@dataclass(frozen=True)
class Restart:
    """Begin again, so many start scenes further on."""

    offset: int = 0


@dataclass(frozen=True)
class Pause:
    """Pause (True), go on (False), or the other of the two (None)."""

    on: bool | None = None


@dataclass(frozen=True)
class Denoise:
    """Take twice as many denoising steps per frame, or half: models know powers of two."""

    finer: bool


@dataclass(frozen=True)
class Fork:
    """Open several futures of the current frame side by side; of an open fork, of its origin."""

    branches: tuple[Branch, ...]


@dataclass(frozen=True)
class Pick:
    """Go on with a branch of the open fork, counted from 0."""

    index: int


@dataclass(frozen=True)
class Leave:
    """Close the fork and be back where it was opened; its branches stay in the tree."""


@dataclass(frozen=True)
class Jump:
    """Go to any node of the tree, by its number, and pause."""

    node: int


@dataclass(frozen=True)
class Name:
    """Give a node a name; an empty one takes it away."""

    node: int
    name: str


@dataclass(frozen=True)
class Drop:
    """Drop into the dream: let it begin anew from the real frames beside it."""


@dataclass(frozen=True)
class Back:
    """Go back to where the real world is, or to where this dream began, and pause."""


@dataclass(frozen=True)
class Chart:
    """Publish the outline of the tree with each snapshot, and pause; or stop that."""

    on: bool


@dataclass(frozen=True)
class Experts:
    """Watch which experts of the model fire, or no longer."""


@dataclass(frozen=True)
class Calibrate:
    """Do a piece of what the instruments still have to measure; the engine asks itself for it."""


@dataclass(frozen=True)
class Live:
    """End the lockstep of a script: from now on a person plays. Begins paused."""


@dataclass(frozen=True)
class Look:
    """Call a function with the session, in its thread; what it returns is shown as a notice."""

    at: "Callable[[Session], str]"


Command = (
    Advance
    | Say
    | Ask
    | Rewind
    | Restart
    | Pause
    | Denoise
    | Fork
    | Pick
    | Leave
    | Jump
    | Name
    | Drop
    | Back
    | Chart
    | Experts
    | Calibrate
    | Live
    | Look
)

BY_NAME: Mapping[str, Command] = {
    "clear": Say(""),
    "pause": Pause(),
    "rewind": Rewind(1),
    "restart": Restart(0),
    "next": Restart(1),
    "previous": Restart(-1),
    "finer": Denoise(True),
    "faster": Denoise(False),
    "experts": Experts(),
    "drop": Drop(),
    "back": Back(),
}
"""The commands that always ask for the same, by the names that keys have for them."""


def to_json(command: Command) -> dict[str, Any] | None:
    """Return a command as a line of a session file; None for one that changes no session."""
    match command:
        case Advance(keys):
            return {"step": list(keys)}
        case Say(text):
            return {"say": text}
        case Ask(text):
            return {"ask": text}
        case Rewind(steps):
            return {"rewind": steps}
        case Restart(offset):
            return {"restart": offset}
        case Denoise(finer):
            return {"finer": finer}
        case Fork(branches):
            kinds = [{"say": b.say} if b.say else {"keys": list(b.keys)} for b in branches]
            return {"fork": kinds}
        case Pick(index):
            return {"pick": index}
        case Leave():
            return {"leave": True}
        case Jump(node):
            return {"jump": node}
        case Name(node, name):
            return {"name": name, "of": node}
        case Drop():
            return {"drop": True}
        case Back():
            return {"back": True}
    return None


def from_json(data: dict[str, Any]) -> Command:
    """Return the command of a line of a session file.

    Raises:
        UserError: a line that is none.
    """
    try:
        match data:
            case {"step": list(keys)}:
                return Advance(tuple(map(str, keys)))
            case {"say": str(text)}:
                return Say(text)
            case {"ask": str(text)}:
                return Ask(text)
            case {"rewind": int(steps)}:
                return Rewind(steps)
            case {"restart": int(offset)}:
                return Restart(offset)
            case {"finer": bool(finer)}:
                return Denoise(finer)
            case {"fork": list(kinds)}:
                return Fork(
                    tuple(Branch(tuple(k.get("keys", ())), str(k.get("say", ""))) for k in kinds)
                )
            case {"pick": int(index)}:
                return Pick(index)
            case {"leave": True}:
                return Leave()
            case {"jump": int(node)}:
                return Jump(node)
            case {"name": str(name), "of": int(node)}:
                return Name(node, name)
            case {"drop": True}:
                return Drop()
            case {"back": True}:
                return Back()
    except (AttributeError, TypeError):
        pass
    raise UserError(f"{data!r} is no command of a session.")
