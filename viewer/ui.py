"""The window's loop: events in, pictures out. It never waits for the model."""

import contextlib
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pygame

from worldmodel.errors import UserError
from worldmodel.text import clean_sentence
from worldmodel.viewer.draw import draw, thumbs
from worldmodel.viewer.engine import (
    Advance,
    Denoise,
    Engine,
    Pause,
    Restart,
    Rewind,
    Say,
    Snapshot,
)
from worldmodel.viewer.keys import Binding, Keymap
from worldmodel.viewer.layout import Layout
from worldmodel.viewer.meter import Stats
from worldmodel.viewer.script import ScriptPlayer
from worldmodel.viewer.tape import Tape
from worldmodel.viewer.textbox import TextBox
from worldmodel.viewer.view import Face, ViewState
from worldmodel.viewer.window import set_mode

TICK_MS = 16
ANIMATION_S = 0.05
NOTICE_S = 5.0
LATENCY_WINDOW = 30


class Window:
    """Everything between the event queue and the screen; the window must be open already.

    Args:
        tape: takes the recordings.
        player: plays a script; the keyboard then only leaves, helps and resizes.
        smooth: whether frames are enlarged smoothly.
        new_recording: gives the path of the next recording.
        face: what the window does and says.
    """

    def __init__(
        self,
        tape: Tape,
        player: ScriptPlayer | None,
        smooth: bool,
        new_recording: Callable[[], str | Path],
        face: Face | None = None,
    ) -> None:
        self.stats = Stats()
        self._tape, self._player, self._smooth = tape, player, smooth
        self._new_recording = new_recording
        self._face = face or Face()
        self._says = any(binding.name == "say" for binding in self._face.bindings)
        self._keymap = Keymap(None, self._face.bindings)
        self._down: set[int] = set()
        self._held: dict[int, str] = {}  # physical key -> the action table's key
        self._box = TextBox()
        self._opened_by = ""
        self._help = False
        self._notice, self._notice_s = "", 0.0
        self._drawn = Snapshot(serial=-1)
        self._drawn_s = 0.0
        self._stale = True
        self._done = False
        self._size = pygame.display.get_window_size()
        self._layout: Layout | None = None
        self._wake_event = pygame.event.custom_type()
        self._awake = threading.Event()
        pygame.key.set_repeat(350, 70)
        pygame.key.stop_text_input()  # letters drive until the text box is opened

    def wake(self) -> None:
        """Tell the window that there is a new snapshot; may be called from any thread."""
        if not self._awake.is_set():
            self._awake.set()
            with contextlib.suppress(pygame.error):  # the window is closing
                pygame.event.post(pygame.event.Event(self._wake_event))

    def close(self) -> None:
        """Make `run` return."""
        self._done = True

    def run(self, engine: Engine) -> None:
        """Show `engine` until the window is closed or the script is over."""
        self._draw(engine)
        engine.start()
        while not self._done:
            for event in (pygame.event.wait(TICK_MS), *pygame.event.get()):
                self._handle(engine, event)
            self._awake.clear()
            self._notice_load(engine.snapshot)
            if self._needs_drawing(engine):
                self._draw(engine)
            self._go_on(engine)

    def _notice_load(self, snapshot: Snapshot) -> None:
        if snapshot.info and not self._drawn.info:
            print(snapshot.info.line, flush=True)
            pygame.display.set_caption(f"{snapshot.info.name} - worldmodel")
            self._keymap = Keymap(snapshot.info.spec.actions, self._face.bindings)

    def _go_on(self, engine: Engine) -> None:
        """Take the script's next step, and leave where there is nothing to wait for."""
        snapshot = self._drawn
        hopeless = self._player or (isinstance(snapshot.failure, UserError) and not snapshot.now)
        over = snapshot.failure is not None and hopeless
        if not over and self._player:
            over = self._player.tick(engine, snapshot, time.perf_counter())
        self._done = self._done or bool(over)

    # Drawing

    def _needs_drawing(self, engine: Engine) -> bool:
        if self._stale or engine.snapshot.serial != self._drawn.serial:
            return True
        now_s = time.perf_counter()
        moving = (
            engine.snapshot.info is None
            or self._box.open
            or self._notice
            or self._tape.recording_s is not None
            or now_s - engine.snapshot.notice_s < 2 * NOTICE_S
            or (engine.busy_since_s or now_s) < now_s - 1
        )
        return bool(moving) and now_s - self._drawn_s > ANIMATION_S

    def _draw(self, engine: Engine) -> None:
        snapshot, now_s = engine.snapshot, time.perf_counter()
        if self._notice and now_s - self._notice_s > NOTICE_S:
            self._notice = ""
        latencies = list(self.stats.latencies_ms)[-LATENCY_WINDOW:]
        view = ViewState(
            snapshot=snapshot,
            held=self._player.keys if self._player else self._keys(),
            box=self._box,
            help=self._help,
            latency_ms=sorted(latencies)[len(latencies) // 2] if latencies else None,
            step_times_ms=tuple(self.stats.steps_ms)[-120:],
            notice=self._notice,
            recording_s=self._tape.recording_s,
            busy_s=now_s - (engine.busy_since_s or now_s),
            scripted=self._player is not None,
            face=self._face,
            smooth=self._smooth,
            now_s=now_s,
        )
        surface = pygame.display.get_surface()
        assert surface is not None
        self._layout = draw(surface, view)
        pygame.display.flip()
        self._stale = False
        self._drawn_s = time.perf_counter()
        if snapshot.steps_done != self._drawn.steps_done:
            self._count(snapshot)
        self._drawn = snapshot

    def _count(self, snapshot: Snapshot) -> None:
        first = self.stats.start_s is None
        self.stats.shown(snapshot.steps_done, snapshot.step_ms, snapshot.input_s, self._drawn_s)
        if first:
            kind = "imagined " if snapshot.denoise_steps else ""
            print(f"first {kind}frame after {self.stats.start_s:.1f} s", flush=True)

    # Events

    def _handle(self, engine: Engine, event: pygame.event.Event) -> None:
        if event.type in (pygame.NOEVENT, self._wake_event):
            return
        if event.type in (pygame.QUIT, pygame.WINDOWCLOSE):
            self._done = True
        elif event.type == pygame.KEYDOWN:
            repeated = event.key in self._down
            self._down.add(event.key)
            self._key_down(engine, event, repeated)
        elif event.type == pygame.KEYUP:
            self._down.discard(event.key)
            if self._held.pop(event.key, None):
                engine.hold(self._keys())
        elif event.type == pygame.TEXTINPUT and self._box.open:
            self._type(event.text)
        elif event.type == pygame.TEXTEDITING and self._box.open:
            self._box = TextBox(True, self._box.text, self._box.cursor, event.text)
        elif event.type == pygame.WINDOWFOCUSLOST:
            self._release(engine)
        elif event.type == pygame.MOUSEBUTTONDOWN and event.button == 1 and not self._player:
            self._click(engine, event.pos)
        elif event.type in (pygame.MOUSEMOTION, pygame.ACTIVEEVENT):
            return  # nothing on screen follows the mouse
        self._stale = True

    def _key_down(self, engine: Engine, event: pygame.event.Event, repeated: bool) -> None:
        name = pygame.key.name(event.key)
        if self._box.open:
            self._edit(engine, event, name)
            return
        if event.mod & (pygame.KMOD_CTRL | pygame.KMOD_ALT | pygame.KMOD_GUI):
            return
        if self._help and name == "escape":
            self._help = False
        elif (action := self._keymap.action(name)) and not self._player:
            self._held[event.key] = action
            engine.hold(self._keys())
        else:
            binding = self._keymap.command(name, event.unicode)
            if binding and (binding.repeats or not repeated):
                self._command(engine, binding)

    def _command(self, engine: Engine, binding: Binding) -> None:
        if self._player and binding.name not in ("quit", "help", "fullscreen", "smooth"):
            return
        match binding.name:
            case "say":
                self._open_box(engine, binding)
            case "clear":
                engine.post(Say(""))
            case "pause":
                engine.post(Pause())
            case "step":
                engine.post(Pause(True))
                engine.post(Advance(self._keys()))
            case "rewind":
                engine.post(Rewind(1))
            case "restart" | "next" | "previous":
                engine.post(Restart({"restart": 0, "next": 1, "previous": -1}[binding.name]))
            case "record":
                self._toggle_recording()
            case "finer" | "faster":
                engine.post(Denoise(finer=binding.name == "finer"))
            case "smooth":
                self._smooth = not self._smooth
            case "help":
                self._help = not self._help
            case "fullscreen":
                self._toggle_fullscreen()
            case "quit":
                self._done = True

    def _keys(self) -> tuple[str, ...]:
        return tuple(sorted(set(self._held.values())))

    def _release(self, engine: Engine) -> None:
        """Let go of all keys: their KEYUP will go elsewhere."""
        self._down.clear()
        self._held.clear()
        engine.hold(())

    def _click(self, engine: Engine, at: tuple[int, int]) -> None:
        if not self._layout or self._drawn.now is None:
            return
        if self._layout.box.collidepoint(at) and not self._box.open:
            self._open_box(engine, None)
        for place, moment in thumbs(self._layout, self._drawn):
            back = self._drawn.now.number - moment.number
            if place.collidepoint(at) and back:
                engine.post(Rewind(back))

    def _toggle_recording(self) -> None:
        try:
            if self._tape.recording_s is None:
                self._tape.record(self._new_recording())
            elif saved := self._tape.stop():
                self._tell(f"Recorded {saved[1]} frames in {saved[0]}")
        except (UserError, OSError) as error:
            self._tell(str(error))

    def _toggle_fullscreen(self) -> None:
        full = pygame.display.is_fullscreen()
        if not full:
            self._size = pygame.display.get_window_size()
        set_mode(self._size, not full)

    def _tell(self, notice: str) -> None:
        self._notice, self._notice_s = notice, time.perf_counter()

    # The text box

    def _open_box(self, engine: Engine, binding: Binding | None) -> None:
        if self._drawn.info is None or not self._says:
            return
        self._release(engine)
        self._box = TextBox().opened()
        self._opened_by = "/" if binding else ""  # its own character may still arrive as text
        pygame.key.start_text_input()

    def _close_box(self) -> None:
        self._box = TextBox()
        pygame.key.stop_text_input()

    def _type(self, text: str) -> None:
        if not (text == self._opened_by and not self._box.text):
            self._box = self._box.typed(text)
        self._opened_by = ""

    def _edit(self, engine: Engine, event: pygame.event.Event, name: str) -> None:
        if self._box.composing:  # the keys belong to the input method
            return
        if name == "escape":
            self._close_box()
        elif name in ("return", "enter"):
            self._send(engine)
        elif name == "v" and event.mod & (pygame.KMOD_CTRL | pygame.KMOD_GUI):
            self._box = self._box.typed(_clipboard())
        else:
            self._box = self._box.key(name)

    def _send(self, engine: Engine) -> None:
        """Give the sentence to the model; one that is too long stays in the box."""
        try:
            sentence = clean_sentence(self._box.text) if self._box.text.strip() else ""
        except UserError as error:
            self._tell(str(error))
            return
        engine.post(Say(sentence))
        self._close_box()


def _clipboard() -> str:
    get_text: Any = pygame.scrap.get_text
    with contextlib.suppress(pygame.error):
        return get_text() or ""
    return ""
