"""Memory that arrays of frames come from."""

import functools

import numpy as np

_BYTES = 16 << 20


@functools.cache
def keep_pages() -> None:
    """Let the C library keep the memory of arrays up to 16 MiB for the next ones.

    Where that is glibc, a large array gets new pages from the system, and at 1 to 2 us for 4 KiB
    these take longer than decoding what comes into them. What is large follows from the largest
    array that was ever freed.
    """
    np.empty(_BYTES, np.uint8)
