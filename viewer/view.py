"""Everything on screen at one instant, as one value."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from worldmodel.viewer.engine import Snapshot
from worldmodel.viewer.keys import BESIDE_BINDINGS, BINDINGS, Binding
from worldmodel.viewer.textbox import TextBox


@dataclass(frozen=True)
class Face:
    """What a window does and says, beyond the world: by default, for driving a dream.

    Attributes:
        bindings: the commands.
        hints: names of commands with a word each, at the foot of the panel.
        loading: said until there is a world.
        sent: label of the text of the last action.
        line: gives the text of the sentence's box while it is empty.
        about: gives the line under the world's name; None for the start's number.
        stages: gives what the parts of a step took; None or empty for the parts of one here.
        missing: what is said instead of doing a command, by its name.
    """

    bindings: tuple[Binding, ...] = BINDINGS
    hints: tuple[tuple[str, str], ...] = (
        ("say", "say"),
        ("fork", "fork"),
        ("map", "map"),
        ("pause", "pause"),
        ("help", "help"),
    )
    loading: str = "Waking the model"
    sent: str = "SENT"
    line: Callable[[], str] = lambda: "Enter: say what is to happen, or ask: what is ahead?"
    about: Callable[[], str] | None = None
    stages: Callable[[], str] | None = None
    missing: Mapping[str, str] = field(default_factory=dict)


BESIDE_FACE = Face(
    bindings=(*BINDINGS, *BESIDE_BINDINGS),
    hints=(("drop", "dream on"), ("back", "back"), ("difference", "difference"), ("help", "help")),
)
"""For driving a dream beside the real world."""


REAL_FACE = Face(
    hints=(("pause", "pause"), ("step", "step"), ("restart", "again"), ("help", "help")),
    line=lambda: "A real world: its keys drive. It takes no sentences and has one future.",
)
"""For driving a real world alone."""


@dataclass(frozen=True)
class ViewState:
    """All that is on screen.

    Attributes:
        snapshot: what the model's thread last published.
        held: action keys held now.
        cap: gives the key to press for one of the world's keys.
        box: the text box.
        help: which page of the help lies over everything; 0 for none.
        help_rows: what stands in it.
        latency_ms: median time from key to frame, None before the first one.
        step_times_ms: the latest steps, oldest first.
        draw_ms: what drawing the window takes, median.
        notice: a sentence of the window's own (not the model's), or empty.
        recording_s: length of the running recording, None when none runs.
        charted: which stop of the map is selected; None while the map is closed.
        fits: characters of the typed sentence that the model reads.
        busy_s: how long the step in progress has taken so far.
        progress: how far the script is, where that is to be said.
        scripted: whether a script plays; its stops are not the user's.
        face: what the window does and says.
        hints: keys with a word each, at the foot of the panel.
        smooth: whether the frame is enlarged smoothly.
        apart: whether the map of the difference to the real world is shown.
        now_s: `time.perf_counter`, for what moves.
    """

    snapshot: Snapshot
    held: tuple[str, ...] = ()
    cap: Callable[[str], str] = str
    box: TextBox = field(default_factory=TextBox)
    help: int = 0
    help_rows: tuple[tuple[str, str], ...] = ()
    latency_ms: float | None = None
    step_times_ms: tuple[float, ...] = ()
    draw_ms: float = 0.0
    notice: str = ""
    recording_s: float | None = None
    busy_s: float = 0.0
    charted: int | None = None
    fits: int = 1 << 30
    progress: str = ""
    scripted: bool = False
    face: Face = field(default_factory=Face)
    hints: tuple[tuple[str, str], ...] = ()
    smooth: bool = True
    apart: bool = False
    now_s: float = 0.0
