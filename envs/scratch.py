"""A working folder for engines that write files where they are started."""

import contextlib
import shutil
import tempfile
import threading
import weakref
from collections.abc import Iterator
from pathlib import Path

_WORKING = threading.Lock()  # the working folder belongs to the whole process


class Scratch:
    """A temporary folder that is removed by `close`, or else with its owner.

    Args:
        owner: the object that the folder belongs to.
        name: what the folder is called, before some random letters.
    """

    def __init__(self, owner: object, name: str) -> None:
        self.path = Path(tempfile.mkdtemp(prefix=f"worldmodel_{name}_"))
        self._clean = weakref.finalize(owner, shutil.rmtree, self.path, ignore_errors=True)

    @property
    def alive(self) -> bool:
        """Whether the folder is still there."""
        return self._clean.alive

    @contextlib.contextmanager
    def working(self) -> Iterator[None]:
        """Work inside the folder."""
        with _WORKING, contextlib.chdir(self.path):
            yield

    def close(self) -> None:
        """Remove the folder."""
        self._clean()
