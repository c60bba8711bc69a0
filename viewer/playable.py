"""What a window needs of whoever runs the model, be it here or on another machine."""

from typing import Protocol

from worldmodel.viewer.commands import Command
from worldmodel.viewer.session import Session
from worldmodel.viewer.snapshot import Snapshot


class Playable(Protocol):
    """An engine as the window sees it; nothing here waits for the model."""

    @property
    def snapshot(self) -> Snapshot:
        """The latest state."""
        ...

    @property
    def busy_since_s(self) -> float | None:
        """When the work in progress began (`time.perf_counter`), else None."""
        ...

    @property
    def session(self) -> Session | None:
        """What is played; None as long as there is no world, or where it is elsewhere."""
        ...

    def start(self) -> None:
        """Begin."""
        ...

    def hold(self, keys: tuple[str, ...]) -> None:
        """Say which keys are held now."""
        ...

    def post(self, command: Command) -> None:
        """Ask for something."""
        ...
