"""Whether the viewer stays as it is over a long time: its memory, and the time of a step.

    python benchmarks/soak.py [--minutes 30] [--out soak.json] [--checkpoint doom-nano]
        [--fps 12] [--denoise-steps 2] [--guidance 2]

Runs the program that `worldmodel play` is, session file included, on a window that nobody sees
(SDL's dummy driver; `SDL_VIDEODRIVER=x11` under Xvfb for a real one). A scripted player presses
real keys: it drives, types sentences and questions, forks, takes futures, rewinds, jumps on the
map, begins elsewhere, records videos and keeps clips. Prints a line a minute and at the end the
minutes from the tenth on beside the last ones; `--out` writes all minutes as JSON. Linux only.
"""

import argparse
import ctypes
import json
import os
import statistics
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

os.environ.setdefault("SDL_VIDEODRIVER", "dummy")
os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")

import pygame

from worldmodel.dream import Dream
from worldmodel.viewer.app import Plan, make_head
from worldmodel.viewer.config import PlayConfig
from worldmodel.viewer.engine import Engine
from worldmodel.viewer.journal import Journal, new_session
from worldmodel.viewer.keep import Keeper
from worldmodel.viewer.meter import summary
from worldmodel.viewer.tape import Tape
from worldmodel.viewer.window import open_window, outliving_its_window, prepare_environment

SENTENCES = ("turn right", "go forward", "turn left", "walk to the red pillar", "stand still")
QUESTIONS = ("what is ahead?", "is it dark?")
FULL = 10  # minutes after which memory is to stay as it is (docs/speed.md)
COMPARED = 3  # minutes at either end whose medians are compared


@dataclass(frozen=True)
class Minute:
    """What was measured in one minute; times in milliseconds, memory in MiB.

    Attributes:
        rss_mb: median of the resident memory.
        heap_mb: of the C library's heap at the end of the minute: 'used', and 'free' but not
            returned to the system.
        step_ms, fork_ms: wall-clock of a step alone, and of one of a fork: median, p95.
        latency_ms: from a key to the frame that answers it: median, p95.
        cpu_ms: processor time of the whole program for each step, which other programs on the
            machine change less.
        steps: taken so far. nodes: of the session's tree so far.
    """

    minute: int
    rss_mb: float
    heap_mb: dict[str, float]
    step_ms: dict[str, float]
    fork_ms: dict[str, float]
    latency_ms: dict[str, float]
    cpu_ms: float
    steps: int
    nodes: int


class Hands:
    """Presses keys as a person would, round after round, until told to stop."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._play, name="hands", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Let go."""
        self._over.set()
        self._thread.join()

    def _play(self) -> None:
        turn = 0
        while not self._over.is_set():
            if self._engine.snapshot.now is None:
                self._over.wait(0.1)
                continue
            self._round(turn)
            turn += 1

    def _round(self, turn: int) -> None:
        self._hold("w", 3)
        self._hold("wa", 2)
        self._hold("d" if turn % 2 else "s", 1.5)
        self._type(SENTENCES[turn % len(SENTENCES)])
        self._over.wait(3)
        self._press("backspace")
        self._press("f")
        self._over.wait(3)
        self._press("2")
        self._hold("w", 2)
        self._press("f")
        self._over.wait(2)
        self._press("escape")
        for _ in range(10 + turn % 7):
            self._press(",")
        self._press("space")
        self._hold("w", 2)
        self._press("m")
        for _ in range(3):
            self._press("left")
        self._press("return")
        self._over.wait(0.5)
        self._press("space")
        self._hold("wd", 2)
        match turn % 5:
            case 0:
                self._press("v")
                self._hold("w", 5)
                self._press("v")
            case 1:
                self._type(QUESTIONS[turn // 5 % len(QUESTIONS)])
                self._press("k")
            case 2:
                self._press("i")
                self._hold("a", 2)
            case 3:
                self._press("c")
                self._press("n")
            case 4:
                self._press("r")
        self._over.wait(0.5)

    def _hold(self, keys: Sequence[str], seconds: float) -> None:
        for key in keys:
            _post(pygame.KEYDOWN, key)
        self._over.wait(seconds)
        for key in keys:
            _post(pygame.KEYUP, key)

    def _press(self, key: str) -> None:
        self._hold([key], 0.03)
        self._over.wait(0.15)

    def _type(self, sentence: str) -> None:
        self._press("return")
        for char in sentence:
            pygame.event.post(pygame.event.Event(pygame.TEXTINPUT, text=char))
        self._press("return")


class Log:
    """Collects the minutes; `see` is called by the model's thread after each change."""

    def __init__(self, engine: Engine, latencies_ms: deque[float]) -> None:
        self.minutes: list[Minute] = []
        self._engine, self._latencies_ms = engine, latencies_ms
        self._alone: deque[float] = deque()
        self._forked: deque[float] = deque()
        self._seen = 0

    def see(self) -> None:
        """Note a step's time."""
        now = self._engine.snapshot
        if now.steps_done != self._seen:
            self._seen = now.steps_done
            (self._forked if now.futures else self._alone).append(now.step_ms)

    def watch(self, minutes: int) -> None:
        """Measure so many minutes, from the first frame on."""
        while self._engine.snapshot.steps_done == 0 and self._engine.alive:
            time.sleep(0.1)
        for minute in range(1, minutes + 1):
            steps, cpu_s = self._engine.snapshot.steps_done, time.process_time()
            rss = []
            for _ in range(60):
                time.sleep(1)
                rss.append(rss_mb())
            if not self._engine.alive or self._engine.snapshot.failure:
                return
            now, session = self._engine.snapshot, self._engine.session
            used_ms = (time.process_time() - cpu_s) * 1e3
            self.minutes.append(
                Minute(
                    minute=minute,
                    rss_mb=round(statistics.median(rss), 1),
                    heap_mb=heap_mb(),
                    step_ms=summary(_taken(self._alone)),
                    fork_ms=summary(_taken(self._forked)),
                    latency_ms=summary(_taken(self._latencies_ms)),
                    cpu_ms=round(used_ms / max(1, now.steps_done - steps), 1),
                    steps=now.steps_done,
                    nodes=len(session.tree) if session else 0,
                )
            )
            print(_line(self.minutes[-1]), flush=True)


def rss_mb() -> float:
    """Return the memory that this process holds now, in MiB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / (1 << 20)


def heap_mb() -> dict[str, float]:
    """Return the heap's memory in use, and its free memory, in MiB; empty without glibc 2.33."""
    measure = getattr(ctypes.CDLL(None), "mallinfo2", None)
    if measure is None:
        return {}
    measure.restype = _MallInfo
    info = measure()
    return {name: round(getattr(info, name) / (1 << 20), 1) for name in ("used", "free")}


class _MallInfo(ctypes.Structure):
    """What glibc's `mallinfo2` returns."""

    _fields_ = tuple(
        (name, ctypes.c_size_t)
        for name in ("arena", "a", "b", "c", "mapped", "d", "e", "used", "free", "end")
    )


def verdict(minutes: Sequence[Minute]) -> str:
    """Return the minutes from `FULL` on beside the last ones."""
    full = [minute for minute in minutes if minute.minute >= FULL]
    if len(full) < 2 * COMPARED:
        return f"To compare takes {2 * COMPARED} minutes from minute {FULL} on."
    first, last = full[:COMPARED], full[-COMPARED:]
    rows = [f"{'':22}{_span(first):>14}{_span(last):>14}{'change':>10}"]
    for name, read in [
        ("memory, MiB", lambda m: m.rss_mb),
        ("step, ms", lambda m: m.step_ms["median"]),
        ("step p95, ms", lambda m: m.step_ms["p95"]),
        ("step of a fork, ms", lambda m: m.fork_ms["median"]),
        ("key to frame, ms", lambda m: m.latency_ms["median"]),
        ("key to frame p95, ms", lambda m: m.latency_ms["p95"]),
        ("processor a step, ms", lambda m: m.cpu_ms),
    ]:
        a, b = (statistics.median(map(read, part)) for part in (first, last))
        rows.append(f"{name:22}{a:14.1f}{b:14.1f}{(b / a - 1 if a else 0):+10.1%}")
    return "\n".join(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--minutes", type=int, default=30)
    parser.add_argument("--checkpoint", default="doom-nano")
    parser.add_argument("--fps", type=float, default=12.0)
    parser.add_argument("--denoise-steps", type=int, default=2)
    parser.add_argument("--guidance", type=float, default=2.0)
    parser.add_argument("--out", default="")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        config = PlayConfig(
            checkpoint=args.checkpoint,
            fps=args.fps,
            denoise_steps=args.denoise_steps,
            guidance=args.guidance,
            sessions=folder,
        )
        minutes = soak(args.minutes, config)
    if args.out:
        Path(args.out).write_text(json.dumps([asdict(m) for m in minutes], indent=1) + "\n")
    if len(minutes) < args.minutes:
        sys.exit(f"The viewer ended in minute {len(minutes) + 1}.")
    print(verdict(minutes))


def soak(minutes: int, config: PlayConfig) -> list[Minute]:
    """Play that long, writing into the folder of sessions; returns the minutes that were played."""
    prepare_environment(headless=False)
    from worldmodel.viewer.ui import Window

    folder, fps = Path(config.sessions), config.fps
    plan = Plan(config, config.start, None)
    open_window(config.width, config.height, "soak", False, False)
    tape = Tape(keep_frames=False, keep_events=False, fps=fps, steady=False)
    keeper = Keeper(partial(make_head, plan), folder, folder, fps, config.clip_s)
    window = Window(tape, None, True, lambda: folder / f"{time.time():.0f}.mp4", None, keeper)
    load = partial(
        Dream.load,
        config.checkpoint,
        denoise_steps=config.denoise_steps,
        guidance=config.guidance,
    )

    def changed() -> None:
        log.see()
        window.wake()

    with outliving_its_window(window.close):
        engine = Engine(
            load,
            fps=fps,
            journal=lambda world: Journal(new_session(folder), make_head(plan, world)),
            on_change=changed,
            on_step=tape.add,
        )
        log = Log(engine, window.stats.latencies_ms)

        def measure() -> None:
            log.watch(minutes)
            window.close()

        watcher = threading.Thread(target=measure, name="log")
        hands = Hands(engine)
        threading.Timer(1.0, watcher.start).start()
        try:
            window.run(engine)
        finally:
            hands.stop()
            engine.stop()
            tape.stop()
    if engine.snapshot.failure:
        raise engine.snapshot.failure
    return log.minutes


def _post(kind: int, key: str) -> None:
    """Put a key into the window's events, as the system would."""
    char = key if len(key) == 1 else ""
    code = pygame.key.key_code(key)
    pygame.event.post(pygame.event.Event(kind, key=code, unicode=char, mod=0))


def _taken(values: deque[float]) -> list[float]:
    """Take out what is there; another thread may append meanwhile."""
    return [values.popleft() for _ in range(len(values))]


def _line(m: Minute) -> str:
    times = ("step", m.step_ms), ("fork", m.fork_ms), ("key", m.latency_ms)
    heap = f"heap {m.heap_mb['used']:.0f} + {m.heap_mb['free']:.0f}  " if m.heap_mb else ""
    said = "  ".join(f"{name} {t['median']:.1f}/{t['p95']:.1f}" for name, t in times)
    return (
        f"minute {m.minute:3}  {m.rss_mb:7.1f} MiB  {heap}{said} ms  cpu {m.cpu_ms:.1f} ms  "
        f"{m.steps} steps, {m.nodes} nodes"
    )


def _span(minutes: Sequence[Minute]) -> str:
    return f"minutes {minutes[0].minute}-{minutes[-1].minute}"


if __name__ == "__main__":
    main()
