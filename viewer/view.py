"""Everything on screen at one instant, as one value."""

from dataclasses import dataclass, field

from worldmodel.viewer.engine import Snapshot
from worldmodel.viewer.textbox import TextBox


@dataclass(frozen=True)
class ViewState:
    """All that is on screen.

    Attributes:
        snapshot: what the model's thread last published.
        held: action keys held now.
        box: the text box.
        help: whether the help lies over everything.
        latency_ms: median time from key to frame, None before the first one.
        step_times_ms: the latest steps, oldest first.
        notice: a sentence of the window's own (not the model's), or empty.
        recording_s: length of the running recording, None when none runs.
        busy_s: how long the step in progress has taken so far.
        scripted: whether a script plays; its stops are not the user's.
        smooth: whether the frame is enlarged smoothly.
        now_s: `time.perf_counter`, for what moves.
    """

    snapshot: Snapshot
    held: tuple[str, ...] = ()
    box: TextBox = field(default_factory=TextBox)
    help: bool = False
    latency_ms: float | None = None
    step_times_ms: tuple[float, ...] = ()
    notice: str = ""
    recording_s: float | None = None
    busy_s: float = 0.0
    scripted: bool = False
    smooth: bool = True
    now_s: float = 0.0
