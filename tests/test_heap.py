"""What `worldmodel.heap` asks of the C library, in processes of their own."""

import os
import subprocess
import sys

import pytest

HEAD = """
import ctypes, os, sys, threading
from worldmodel import heap

libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
libc.free.argtypes = [ctypes.c_void_p]

class Info(ctypes.Structure):
    _fields_ = [(f"n{i}", ctypes.c_size_t) for i in range(10)]

libc.mallinfo2.restype = Info
mapped = lambda: libc.mallinfo2().n3

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") >> 20
"""

pytestmark = pytest.mark.skipif(
    sys.platform != "linux"
    or not hasattr(os, "confstr_names")
    or "glibc" not in (os.confstr("CS_GNU_LIBC_VERSION") or ""),
    reason="needs glibc",
)


def run(code: str) -> str:
    env = {k: v for k, v in os.environ.items() if k != "ONEDNN_PRIMITIVE_CACHE_CAPACITY"}
    done = subprocess.run(
        [sys.executable, "-c", HEAD + code],
        env=env,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    return done.stdout.strip()


# A buffer is taken and freed, then one that is a little smaller: glibc by itself has learnt by
# then to take it from the heap.
BUFFERS = """
libc.free(libc.malloc(8 << 20))
before = mapped()
libc.malloc(4 << 20)
print(mapped() - before)
"""


def test_large_buffers_stay_outside_the_heap() -> None:
    assert run(BUFFERS) == "0"
    assert run("heap.settle()" + BUFFERS) == "1"


def test_what_a_thread_has_freed_goes_back_to_the_system() -> None:
    code = """
def work():
    blocks = [libc.malloc(10_000) for _ in range(4000)]
    for block in blocks:
        ctypes.memset(block, 1, 10_000)
    for block in blocks[:-1]:  # the last one keeps the others from being the heap's end
        libc.free(block)

thread = threading.Thread(target=work)
thread.start()
thread.join()
before = resident()
heap.give_back()
print(before - resident())
"""
    assert int(run(code)) >= 30


def test_the_number_of_products_to_remember_is_set_unless_somebody_has() -> None:
    code = """
heap.settle()
print(os.environ["ONEDNN_PRIMITIVE_CACHE_CAPACITY"])
"""
    assert run(code) == "512"
    assert run('os.environ["ONEDNN_PRIMITIVE_CACHE_CAPACITY"] = "9"' + code) == "9"
