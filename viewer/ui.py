"""The window's loop: events in, pictures out. It never waits for the model."""

import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import pygame

from worldmodel.errors import UserError
from worldmodel.text import clean_sentence, is_question
from worldmodel.viewer.commands import (
    BY_NAME,
    Advance,
    Ask,
    Branch,
    Fork,
    Leave,
    Look,
    Name,
    Pause,
    Pick,
    Rewind,
    Say,
)
from worldmodel.viewer.draw import aspect_of, draw, thumbs
from worldmodel.viewer.forkview import branch_at, first_branches, toggled
from worldmodel.viewer.hands import Hands
from worldmodel.viewer.helpview import help_pages, help_rows
from worldmodel.viewer.keep import Keeper
from worldmodel.viewer.keys import Binding, Keymap
from worldmodel.viewer.layout import Layout
from worldmodel.viewer.mapmode import MapMode
from worldmodel.viewer.meter import Stats
from worldmodel.viewer.pad import BUTTONS, Pads
from worldmodel.viewer.phrases import fitting
from worldmodel.viewer.playable import Playable
from worldmodel.viewer.script import ScriptPlayer, SessionPlayer
from worldmodel.viewer.snapshot import Snapshot
from worldmodel.viewer.tape import Tape
from worldmodel.viewer.textbox import Typist
from worldmodel.viewer.view import Face, ViewState
from worldmodel.viewer.window import clipboard, set_mode

TICK_MS = 16
ANIMATION_S = 0.05
NOTICE_S = 5.0
LATENCY_WINDOW = 30


class Window:
    """Everything between the event queue and the screen; the window must be open already.

    Args:
        tape: takes the recordings.
        player: plays a script; the keyboard then only leaves, helps and resizes, and Space ends
            the playing of a session.
        smooth: whether frames are enlarged smoothly.
        new_recording: gives the path of the next recording.
        face: what the window does and says.
        keeper: keeps scenarios and clips.
        keys: other keys for some of the world's, see `Keymap`.
    """

    def __init__(
        self,
        tape: Tape,
        player: ScriptPlayer | SessionPlayer | None,
        smooth: bool,
        new_recording: Callable[[], str | Path],
        face: Face | None = None,
        keeper: Keeper | None = None,
        keys: Mapping[str, tuple[str, ...]] | None = None,
    ) -> None:
        self.stats = Stats()
        self._tape, self._player, self._smooth = tape, player, smooth
        self._new_recording = new_recording
        self._face = face or Face()
        self._says = any(binding.name == "say" for binding in self._face.bindings)
        self._hands = Hands(self._face.bindings)
        self._keeper, self._keys_given = keeper, keys or {}
        self._typist = Typist()
        self._pads = Pads()
        self._map: MapMode | None = None
        self._forked: tuple[Branch, ...] = ()  # keys of the last fork
        self._help, self._apart = 0, False  # page of the help, and whether the difference shows
        self._notice, self._notice_s = "", 0.0
        self._drawn = Snapshot(serial=-1)
        self._drawn_s = 0.0
        self._draws_ms: deque[float] = deque(maxlen=LATENCY_WINDOW)
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

    def run(self, engine: Playable) -> None:
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
            self._hands.turn(engine, self._drawn)
            self._go_on(engine)

    def _notice_load(self, snapshot: Snapshot) -> None:
        if snapshot.info and snapshot.info != self._drawn.info:
            print(snapshot.info.line, flush=True)
            if snapshot.journal:
                print(f"this session is written to {snapshot.journal}", flush=True)
            pygame.display.set_caption(f"{snapshot.info.name} - worldmodel")
            table = snapshot.info.spec.actions
            self._hands.keymap = Keymap(table, self._face.bindings, self._keys_given)
            self._typist.phrases = snapshot.info.phrases

    def _go_on(self, engine: Playable) -> None:
        """Take the script's next step, and leave where there is nothing to wait for."""
        snapshot = self._drawn
        hopeless = self._player or (isinstance(snapshot.failure, UserError) and not snapshot.now)
        over = snapshot.failure is not None and hopeless
        if not over and self._player:
            over = self._player.tick(engine, snapshot, time.perf_counter())
            if over and isinstance(self._player, SessionPlayer) and self._player.live:
                self._player, over = None, False
                self.tell("That was the session. Space goes on from here.")
        self._done = self._done or bool(over)

    # Drawing

    def _needs_drawing(self, engine: Playable) -> bool:
        if self._stale or engine.snapshot.serial != self._drawn.serial:
            return True
        now_s = time.perf_counter()
        moving = (
            engine.snapshot.info is None
            or self._typist.box.open
            or self._notice
            or self._tape.recording_s is not None
            or now_s - engine.snapshot.notice_s < 2 * NOTICE_S
            or (engine.busy_since_s or now_s) < now_s - 1
        )
        return bool(moving) and now_s - self._drawn_s > ANIMATION_S

    def _draw(self, engine: Playable) -> None:
        snapshot, now_s = engine.snapshot, time.perf_counter()
        if self._notice and now_s - self._notice_s > NOTICE_S:
            self._notice = ""
        latencies = list(self.stats.latencies_ms)[-LATENCY_WINDOW:]
        view = ViewState(
            snapshot=snapshot,
            held=self._shown_keys(snapshot),
            cap=self._hands.keymap.cap,
            box=self._typist.box,
            fits=self._fits(snapshot),
            charted=self._map.selected(snapshot.chart) if self._map else None,
            progress=self._player.progress if self._player else "",
            help=self._help,
            help_rows=self._help_rows(snapshot),
            latency_ms=sorted(latencies)[len(latencies) // 2] if latencies else None,
            step_times_ms=tuple(self.stats.steps_ms)[-120:],
            draw_ms=sorted(self._draws_ms)[len(self._draws_ms) // 2] if self._draws_ms else 0.0,
            notice=self._notice,
            recording_s=self._tape.recording_s,
            busy_s=now_s - (engine.busy_since_s or now_s),
            scripted=self._player is not None,
            face=self._face,
            hints=self._hints(snapshot),
            smooth=self._smooth,
            apart=self._apart,
            now_s=now_s,
        )
        surface = pygame.display.get_surface()
        assert surface is not None
        self._layout = draw(surface, view)
        pygame.display.flip()
        self._stale = False
        self._drawn_s = time.perf_counter()
        self._draws_ms.append((self._drawn_s - now_s) * 1e3)
        if snapshot.steps_done != self._drawn.steps_done:
            self._count(snapshot)
        self._drawn = snapshot

    def _count(self, snapshot: Snapshot) -> None:
        first = self.stats.start_s is None
        self._hands.answered(snapshot.now.keys if snapshot.now else ())
        self.stats.shown(snapshot.steps_done, snapshot.step_ms, snapshot.input_s, self._drawn_s)
        if first:
            kind = "imagined " if snapshot.denoise_steps else ""
            print(f"first {kind}frame after {self.stats.start_s:.1f} s", flush=True)

    # Events

    def _handle(self, engine: Playable, event: pygame.event.Event) -> None:
        if event.type in (pygame.NOEVENT, self._wake_event):
            return
        if event.type in (pygame.QUIT, pygame.WINDOWCLOSE):
            self._done = True
        elif event.type == pygame.KEYDOWN:
            self._key_down(engine, event, self._hands.press(event.key))
        elif event.type == pygame.KEYUP:
            if self._hands.lift(event.key):
                engine.hold(self._hands.keys)
        elif event.type == pygame.TEXTINPUT and self._typist.box.open:
            self._typist.type(event.text)
        elif event.type == pygame.TEXTEDITING and self._typist.box.open:
            self._typist.compose(event.text)
        elif event.type == pygame.WINDOWFOCUSLOST:
            self._release(engine)
        elif event.type == pygame.MOUSEBUTTONDOWN and event.button == 1 and not self._player:
            self._click(engine, event.pos)
        elif event.type in (pygame.JOYAXISMOTION, pygame.JOYHATMOTION, pygame.JOYBUTTONDOWN):
            self._pad_event(engine, event)
        elif event.type in (pygame.JOYDEVICEADDED, pygame.JOYDEVICEREMOVED):
            self._pads.plug(event)
        elif event.type in (pygame.MOUSEMOTION, pygame.MOUSEBUTTONDOWN, pygame.MOUSEBUTTONUP):
            if self._layout and not self._player:
                self._hands.slide(event, self._layout.unit)
            return  # nothing on screen follows the mouse
        elif event.type == pygame.ACTIVEEVENT:
            return
        self._stale = True

    def _key_down(self, engine: Playable, event: pygame.event.Event, repeated: bool) -> None:
        name = pygame.key.name(event.key)
        if self._typist.box.open:
            self._edit(engine, event, name)
            return
        if event.mod & (pygame.KMOD_CTRL | pygame.KMOD_ALT | pygame.KMOD_GUI):
            return
        if self._help and name == "escape":
            self._help = 0
        elif self._map:
            self._map_key(engine, name, event.unicode)
        elif self._drawn.futures and not self._player and self._fork_key(engine, event, repeated):
            return
        elif (action := self._hands.keymap.action(name)) and not self._player:
            self._hands.hold(event.key, action)
            engine.hold(self._hands.keys)
        else:
            binding = self._hands.keymap.command(name, event.unicode)
            if binding and (binding.repeats or not repeated):
                self._command(engine, binding)

    def _command(self, engine: Playable, binding: Binding) -> None:
        if isinstance(self._player, SessionPlayer) and binding.name == "pause":
            self._player.stop()
        if self._player and binding.name not in ("quit", "help", "fullscreen", "smooth"):
            return
        if sentence := self._face.missing.get(binding.name):
            self.tell(sentence)
            return
        match binding.name:
            case "say":
                self._open_box(engine, binding)
            case "step":
                engine.post(Pause(True))
                engine.post(Advance(self._hands.keys))
            case "fork":
                self._fork(engine)
            case "map":
                self._open_map(engine)
            case "save":
                self._save(engine, None)
            case "clip":
                if self._keeper:
                    engine.post(Look(partial(self._keeper.clip, tell=self.tell)))
            case "record":
                self._toggle_recording()
            case "smooth":
                self._smooth = not self._smooth
            case "help":
                self._turn_page()
            case "fullscreen":
                self._toggle_fullscreen()
            case "difference":
                self._apart = not self._apart
            case "quit":
                self._done = True
            case name:
                engine.post(BY_NAME[name])

    def _pad_event(self, engine: Playable, event: pygame.event.Event) -> None:
        """Drive by a gamepad; its buttons take futures, go to places, or are commands."""
        if self._player:
            return
        if event.type != pygame.JOYBUTTONDOWN:
            fresh = self._hands.tilt(event)
            if not self._map:
                engine.hold(self._hands.keys)
            elif fresh:
                self._map_key(engine, fresh[0])
        elif self._map:
            self._map_key(engine, {0: "return", 1: "escape", 3: "escape"}.get(event.button, ""))
        elif self._drawn.futures:
            engine.post(Leave() if event.button == 6 else Pick(event.button))
        elif binding := next(
            (b for b in self._face.bindings if b.name == BUTTONS.get(event.button)), None
        ):
            self._command(engine, binding)

    def _release(self, engine: Playable) -> None:
        """Let go of all keys: their KEYUP will go elsewhere."""
        self._hands.release()
        engine.hold(())

    def _click(self, engine: Playable, at: tuple[int, int]) -> None:
        if not self._layout or self._drawn.now is None:
            return
        aspect = aspect_of(self._drawn)
        if self._map:
            self._map.click(engine, at, self._layout, self._drawn, aspect)
            self._map = self._map if self._map.open else None
            return
        if self._drawn.futures:
            index = branch_at(self._layout, self._drawn.futures, at, aspect)
            if index is not None:
                engine.post(Pick(index))
        if self._layout.box.collidepoint(at) and not self._typist.box.open:
            self._open_box(engine, None)
        for place, moment in thumbs(self._layout, self._drawn):
            back = self._drawn.now.number - moment.number
            if place.collidepoint(at) and back:
                engine.post(Rewind(back))

    # Fork and map

    def _fork(self, engine: Playable) -> None:
        """Open a fork, or the open one anew."""
        if self._drawn.info is None:
            return
        open_now = tuple(future.branch for future in self._drawn.futures)
        first = first_branches(self._hands.keymap, self._drawn.instruction)
        again = (*self._forked, *(branch for branch in first if branch.say))
        self._release(engine)
        engine.post(Fork(open_now or (again if self._forked else first)))

    def _fork_key(self, engine: Playable, event: pygame.event.Event, repeated: bool) -> bool:
        """Take a key of the fork. Returns whether it was one."""
        name = pygame.key.name(event.key)
        digit = name.strip("[]")
        branches = tuple(future.branch for future in self._drawn.futures)
        binding = self._hands.keymap.command(name, event.unicode)
        if len(digit) == 1 and digit in "123456789":
            engine.post(Pick(int(digit) - 1))
        elif binding and binding.name == "quit":
            engine.post(Leave())
        elif action := self._hands.keymap.action(name):
            if not repeated:
                wanted = toggled(branches, Branch((action,)))
                self._forked = tuple(branch for branch in wanted if branch.keys)
                engine.post(Fork(wanted))
        elif binding and binding.name == "clear":
            engine.post(Fork(tuple(branch for branch in branches if branch.keys)))
        else:
            return False
        return True

    def _open_map(self, engine: Playable) -> None:
        if self._drawn.now is not None:
            self._release(engine)
            self._map = MapMode(engine, self._drawn)

    def _map_key(self, engine: Playable, name: str, char: str = "") -> None:
        assert self._map is not None
        binding = self._map.key(engine, self._hands.keymap, name, char)
        if name == "n":
            named = {stop.node: stop.name for stop in engine.snapshot.chart}
            self._open_box(engine, None, "Name")
            self._typist.type(named.get(self._map.node, ""))
        elif binding and binding.name == "save":
            self._save(engine, self._map.node)
        elif binding and binding.name in ("help", "fullscreen", "smooth"):
            self._command(engine, binding)
        if not self._map.open:
            self._map = None

    def _save(self, engine: Playable, node: int | None) -> None:
        if self._keeper:
            engine.post(Look(partial(self._keeper.save, node=node)))

    def _hints(self, snapshot: Snapshot) -> tuple[tuple[str, str], ...]:
        """Return keys with a word each, for the foot of the panel."""
        wanted = (("quit", "back"), ("fork", "again")) if snapshot.futures else self._face.hints
        keys = tuple((self._hands.keymap.label(name), word) for name, word in wanted)
        return (("1-9", "take"), *keys) if snapshot.futures else keys

    def _shown_keys(self, snapshot: Snapshot) -> tuple[str, ...]:
        """Return the keys that are held, by whoever holds them."""
        if snapshot.futures:
            return tuple(key for future in snapshot.futures for key in future.branch.keys)
        return self._player.keys if self._player else self._hands.keys

    def _toggle_recording(self) -> None:
        try:
            if self._tape.recording_s is None:
                self._tape.record(self._new_recording())
            elif saved := self._tape.stop():
                self.tell(f"Recorded {saved[1]} frames in {saved[0]}")
        except (UserError, OSError) as error:
            self.tell(str(error))

    def _toggle_fullscreen(self) -> None:
        full = pygame.display.is_fullscreen()
        if not full:
            self._size = pygame.display.get_window_size()
        set_mode(self._size, not full)

    def tell(self, notice: str) -> None:
        """Show a sentence for a while; may be called from any thread."""
        self._notice, self._notice_s = notice, time.perf_counter()

    def _help_rows(self, snapshot: Snapshot) -> tuple[tuple[str, str], ...]:
        if not self._help:
            return ()
        table = snapshot.info.spec.actions if snapshot.info else None
        return help_rows(table, self._hands.keymap, self._face.bindings)

    def _turn_page(self) -> None:
        """Open the help, go to its next page, or close it."""
        self._help += 1
        size, count = pygame.display.get_window_size(), len(self._help_rows(self._drawn))
        if not self._layout or self._help > help_pages(self._layout, size, count):
            self._help = 0

    # The text box

    def _open_box(self, engine: Playable, binding: Binding | None, label: str = "") -> None:
        if self._drawn.info is None or not self._says:
            return
        self._release(engine)
        self._typist.open(opened_by="/" if binding else "", label=label)
        pygame.key.start_text_input()
        if self._layout:  # an input method shows its choices there
            pygame.key.set_text_input_rect(self._layout.box)

    def _close_box(self) -> None:
        self._typist.close()
        pygame.key.stop_text_input()

    def _edit(self, engine: Playable, event: pygame.event.Event, name: str) -> None:
        if self._typist.box.composing:  # the keys belong to the input method
            return
        if name == "escape":
            self._close_box()
        elif name in ("return", "enter"):
            self._send(engine)
        elif name == "v" and event.mod & (pygame.KMOD_CTRL | pygame.KMOD_GUI):
            self._typist.type(clipboard())
        else:
            self._typist.key(name, bool(event.mod & (pygame.KMOD_CTRL | pygame.KMOD_ALT)))

    def _fits(self, snapshot: Snapshot) -> int:
        """Return how many characters of what is typed the model reads."""
        info, box = snapshot.info, self._typist.box
        if not (box.open and info) or box.label:
            return len(box.text)
        try:
            return fitting(box.text, info.count_tokens, info.max_tokens)
        except UserError:  # control characters only, or far too long
            return 0

    def _send(self, engine: Playable) -> None:
        """Give the sentence to the model; one that is too long stays in the box."""
        text = self._typist.box.text
        if self._typist.box.label:
            if self._map:
                engine.post(Name(self._map.node, text))
            self._close_box()
            return
        try:
            sentence = clean_sentence(text) if text.strip() else ""
        except UserError as error:
            self.tell(str(error))
            return
        if self._fits(self._drawn) < len(text) and not is_question(sentence):
            self.tell("The model reads no more than what is not red. Say it shorter.")
            return
        futures = self._drawn.futures
        if is_question(sentence):
            engine.post(Ask(sentence))
        elif not futures:
            engine.post(Say(sentence))
        elif sentence:
            branches = tuple(future.branch for future in futures)
            engine.post(Fork((*branches, Branch(say=sentence))))
        self._typist.sent(sentence)
        self._close_box()
