"""Figures about the running program: rates, latencies, memory, age of the process."""

import os
import sys
import time
from collections import deque
from collections.abc import Collection
from pathlib import Path

import numpy as np

_IMPORTED_S = time.monotonic()


class Rate:
    """Events per second over the last `window` events."""

    def __init__(self, window: int = 24) -> None:
        self._times: deque[float] = deque(maxlen=window)

    def tick(self, now_s: float) -> float:
        """Count one event at `now_s`; returns the rate, 0 before the second one."""
        self._times.append(now_s)
        spent = self._times[-1] - self._times[0]
        return (len(self._times) - 1) / spent if spent > 0 else 0.0

    def restart(self) -> None:
        """Forget what came before, for instance after a pause."""
        self._times.clear()


class Quality:
    """Says when to take fewer denoising steps, for a pace that is not kept, or more again.

    Args:
        period_s: seconds that a step may take.
        window: steps that are looked at; after a change as many have to pass.
    """

    def __init__(self, period_s: float, window: int = 8) -> None:
        self._period_s = period_s
        self._times_s: deque[float] = deque(maxlen=window)

    def after(self, step_s: float, now: int, wanted: int) -> bool | None:
        """Count a step. Returns True for more denoising steps, False for fewer, else None.

        Args:
            step_s: what the step took.
            now: its denoising steps.
            wanted: those that the user asked for; there are never more.
        """
        self._times_s.append(step_s)
        if len(self._times_s) < (self._times_s.maxlen or 1):
            return None
        usual_s = sorted(self._times_s)[len(self._times_s) // 2]
        if usual_s > 1.1 * self._period_s and now > 1:
            finer = False
        elif 2 * usual_s < 0.9 * self._period_s and now < wanted:
            finer = True
        else:
            return None
        self._times_s.clear()
        return finer


def summary(values_ms: Collection[float]) -> dict[str, float]:
    """Return the median and the 95th percentile; both 0 without values."""
    if not values_ms:
        return {"median": 0.0, "p95": 0.0}
    median, p95 = np.percentile(list(values_ms), [50, 95])
    return {"median": round(float(median), 2), "p95": round(float(p95), 2)}


def process_age_s() -> float:
    """Return the seconds since this process started.

    Linux knows (in steps of 10 ms); elsewhere the time since this module was imported.
    """
    imported = time.monotonic() - _IMPORTED_S
    try:
        fields = Path("/proc/self/stat").read_text().rsplit(")", 1)[1].split()
        started = int(fields[19]) / os.sysconf("SC_CLK_TCK")
        age = float(Path("/proc/uptime").read_text().split()[0]) - started
    except (OSError, ValueError, IndexError, AttributeError):
        return imported
    return age if imported <= age <= imported + 600 else imported


def peak_memory_mb() -> float:
    """Return the most memory this process has held, in MiB; 0 where the system does not tell."""
    try:
        import resource
    except ImportError:  # Windows
        return 0.0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (1 << 20 if sys.platform == "darwin" else 1 << 10), 1)


class Stats:
    """What the window measures while it shows frames; bounded, however long it runs.

    Attributes:
        latencies_ms: from an input to the frame that answers it, on screen.
        steps_ms: the model's time per step.
        start_s: from process start to the first imagined frame on screen, None before it.
    """

    def __init__(self, window: int = 4096) -> None:
        self.latencies_ms: deque[float] = deque(maxlen=window)
        self.steps_ms: deque[float] = deque(maxlen=window)
        self.start_s: float | None = None
        self._first: tuple[int, float] | None = None
        self._last = (0, 0.0)

    def shown(self, steps_done: int, step_ms: float, input_s: float | None, now_s: float) -> None:
        """Count a frame that has just come on screen."""
        if self._first is None:
            self.start_s = process_age_s()
            self._first = (steps_done, now_s)
        self._last = (steps_done, now_s)
        self.steps_ms.append(step_ms)
        if input_s is not None:
            self.latencies_ms.append((now_s - input_s) * 1e3)

    def fps(self, apart_s: float = 0.0) -> float:
        """Imagined frames per second from the first one shown to the last, without `apart_s`."""
        spent_s = self._last[1] - self._first[1] - apart_s if self._first else 0.0
        return (self._last[0] - self._first[0]) / spent_s if self._first and spent_s > 0 else 0.0
