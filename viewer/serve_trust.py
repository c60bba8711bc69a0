"""How far to trust a served model: its real frames are measured once, for all sessions."""

import threading

from worldmodel.viewer.serve_model import Guest
from worldmodel.viewer.trust import Gauge, Settings


class Usual:
    """What is usual for real frames, measured in a thread of its own while people play already.

    Args:
        guest: a guest of the shared engine, for this alone.
        settings: denoising steps and guidance of all sessions.
    """

    def __init__(self, guest: Guest, settings: Settings) -> None:
        self._gauge = Gauge(guest)
        self._settings = settings
        self._done = False
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="trust", daemon=True)
        self._thread.start()

    def gauge(self, engine: Guest) -> Gauge | None:
        """Return a gauge for a session; None as long as the real frames are being measured."""
        return Gauge(engine, self._gauge) if self._done else None

    def close(self) -> None:
        """End the thread after the piece of work in progress."""
        self._closed.set()
        self._thread.join()

    def _run(self) -> None:
        while self._gauge.pending(self._settings):
            if self._closed.is_set():
                return
            self._gauge.work()
        self._gauge.close()
        self._done = True
