"""Keeping the memory of a process steady that imagines for hours on a CPU.

A step needs buffers of some MiB for a moment, and leaves keys and values of some 100 kB for long.
glibc takes both from one heap: what stays cuts the holes that the buffers leave, the next buffers
no longer fit, and the heap grows though nothing more is in use. And oneDNN remembers how to
compute up to 1,024 shapes of products, some at a MiB each; a rollout meets new ones for hours, as
batches and sentences have many lengths. docs/speed.md has what that is in MiB.
"""

import ctypes
import os
import sys
from collections.abc import Callable

LARGE = 1 << 20
"""Bytes from which on a buffer is mapped by itself, outside the heap."""

SPARE = 16 << 20
"""Bytes of free heap at its end that are not returned to the system at once."""

SHAPES = 512
"""Products that oneDNN remembers: about what steps, forks and sentences of doom-nano need."""

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h


def settle() -> None:
    """Set the process up for a long rollout; to be called before the first product."""
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", str(SHAPES))
    if set_option := _glibc("mallopt"):
        set_option(_M_MMAP_THRESHOLD, LARGE)
        set_option(_M_TRIM_THRESHOLD, SPARE)


def give_back() -> None:
    """Return free memory to the system, at the end of a thread's work.

    glibc keeps what a thread has freed for threads to come: for each video some 20 MiB, in up to
    eight places a processor core.
    """
    if trim := _glibc("malloc_trim"):
        trim(0)


def _glibc(name: str) -> Callable[..., int] | None:
    """A function of glibc's; None with another C library."""
    library = ctypes.CDLL(None) if sys.platform == "linux" else None
    return getattr(library, name) if hasattr(library, "gnu_get_libc_version") else None
