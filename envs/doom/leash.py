"""Lets the game engine die with the program that plays it, however that ends.

ViZDoom runs the engine as a process of its own and stops it when it is closed. A program that is
killed closes nothing, and the engine would run on for ever. On Linux the kernel can end a process
together with its parent, but only the process itself can ask for that. So ViZDoom is given a
launcher, which asks and then becomes the engine. Elsewhere there is none.
"""

import os
import shlex
import signal
import sys
from pathlib import Path

_SET_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG, <linux/prctl.h>


def write_launcher(path: Path, engine: str) -> str | None:
    """Write a launcher of `engine` for this process; returns its path.

    None where there can be none: on another system than Linux, or where `path` lies on a disk
    from which nothing may be run.
    """
    if sys.platform != "linux" or not sys.executable:
        return None
    words = [sys.executable, "-IS", __file__, str(os.getpid()), engine]
    path.write_text(f'#!/bin/sh\nexec {shlex.join(words)} "$@"\n')
    path.chmod(0o700)
    return str(path) if os.access(path, os.X_OK) else None


def _become(parent: int, words: list[str]) -> None:
    """Become the engine, bound to the process `parent` that has started this one."""
    import ctypes

    ctypes.CDLL(None).prctl(_SET_DEATH_SIGNAL, signal.SIGKILL, 0, 0, 0)
    if os.getppid() == parent:  # else it is gone already
        os.execv(words[0], words)


if __name__ == "__main__":
    _become(int(sys.argv[1]), sys.argv[2:])
