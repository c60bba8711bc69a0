"""Which key does what: the world's own keys from its action table, and the viewer's commands.

Keys have the names that pygame gives them ('w', 'left', 'space'); no pygame here.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from worldmodel.actions import ActionRow, ActionTable


@dataclass(frozen=True)
class Binding:
    """A command of the viewer.

    Attributes:
        name: what it does, a word.
        keys: names (or characters) of the keys; a key that the world uses goes to the world.
        label: the keys as people write them.
        meaning: a line for the help.
        repeats: whether holding the key repeats it.
    """

    name: str
    keys: tuple[str, ...]
    label: str
    meaning: str
    repeats: bool = False


BINDINGS = (
    Binding("say", ("return", "enter", "/"), "Enter", "write a sentence, or a question with ?"),
    Binding("clear", ("backspace",), "Backspace", "drop the instruction"),
    Binding("pause", ("space", "f8"), "Space", "pause, go on"),
    Binding("step", (".", "f3"), ".", "one single step", repeats=True),
    Binding("rewind", (",", "[", "f2"), ",", "one step back in time", repeats=True),
    Binding("fork", ("f", "f7"), "F", "futures side by side"),
    Binding("map", ("m", "tab"), "M", "map of all futures"),
    Binding("restart", ("r", "f5"), "R", "start again from the same place"),
    Binding("next", ("n", "f6"), "N", "next start"),
    Binding("previous", ("p",), "P", "previous start"),
    Binding("record", ("v", "f9"), "V", "record an MP4, on and off"),
    Binding("clip", ("c", "f12"), "C", "export the last seconds"),
    Binding("save", ("k", "f10"), "K", "keep this path as a scenario"),
    Binding("finer", ("+", "=", "[+]"), "+", "more denoising steps", repeats=True),
    Binding("faster", ("-", "[-]"), "-", "fewer denoising steps", repeats=True),
    Binding("experts", ("i", "u"), "I", "which experts fire"),
    Binding("smooth", ("x", "f4"), "X", "smooth or sharp pixels"),
    Binding("help", ("f1", "h"), "F1", "this help"),
    Binding("fullscreen", ("f11",), "F11", "full screen"),
    Binding("quit", ("escape",), "Esc", "leave"),
)

BESIDE_BINDINGS = (
    Binding("drop", ("b", "insert"), "B", "dream on from the real frame"),
    Binding("back", ("g", "home"), "G", "back to the real frame"),
    Binding("difference", ("t", "end"), "T", "map of the difference"),
)
"""Besides, where a real world is beside the dream."""


class Keymap:
    """Key names to actions and commands, for one world.

    Args:
        table: the world's keys.
        bindings: the commands.
        world: other keys for some of the world's.

    Raises:
        UserError: `world` names a key that the world has not.
    """

    def __init__(
        self,
        table: ActionTable | None,
        bindings: tuple[Binding, ...] = BINDINGS,
        world: Mapping[str, tuple[str, ...]] | None = None,
    ) -> None:
        rows = table.rows if table else ()
        self.ways = _arrows(rows)
        """The keys for ahead, back, left and right, by the name of the arrow."""
        self.turns = any(row.dyaw for row in rows)
        """Whether left and right turn by a known angle, so that a mouse can."""
        self.actions = {row.key: row.key for row in rows} | self.ways
        given = world or {}
        if table:
            table.press(given)  # refuses unknown keys by name
            kept = {key: does for key, does in self.actions.items() if does not in given}
            self.actions = kept | {key: does for does, keys in given.items() for key in keys}
        self.commands = {
            key: binding for binding in bindings for key in binding.keys if key not in self.actions
        }

    def cap(self, action: str) -> str:
        """Return the key to press for one of the world's keys, by default that itself."""
        keys = [key for key, does in self.actions.items() if does == action]
        return action if action in keys or not keys else keys[0]

    def label(self, command: str) -> str:
        """Return what to press for a command: a key that the world has not taken, '' if none."""
        free = [key for key, binding in self.commands.items() if binding.name == command]
        if not free:
            return ""
        binding = self.commands[free[0]]
        return binding.label if free[0] == binding.keys[0] else free[0].capitalize()

    def action(self, key: str) -> str | None:
        """Return the action table's key for a pressed key, or None."""
        return self.actions.get(key)

    def command(self, key: str, char: str = "") -> Binding | None:
        """Return the command of a pressed key, by its name or else by the character it types."""
        if key in self.actions:
            return None
        return self.commands.get(key) or self.commands.get(char)


def _arrows(rows: tuple[ActionRow, ...]) -> dict[str, str]:
    """Arrow keys by what they mean: ahead, back, and turning (or stepping where none turns).

    Where no key moves anything by a known amount they stand for W, S, A and D.
    """
    if not any(row.moves for row in rows):
        keys = {row.key for row in rows}
        letters = {"up": "w", "down": "s", "left": "a", "right": "d"}
        return {arrow: key for arrow, key in letters.items() if key in keys}
    side = "dyaw" if any(row.dyaw for row in rows) else "dy"
    wanted = {"up": ("dx", 1), "down": ("dx", -1), "left": (side, 1), "right": (side, -1)}
    arrows = {}
    for arrow, (axis, sign) in wanted.items():
        key = next((row.key for row in rows if getattr(row, axis) * sign > 0), None)
        if key is not None:
            arrows[arrow] = key
    return arrows
