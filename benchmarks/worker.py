"""Runs in the guest: the process whose faults and calls are measured.

It does what it is ordered to, one byte each time, so that it waits while probes are
attached or detached. And it is not the recorder's process, which is not recorded.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import signal
import time
from pathlib import Path

LIBC = ctypes.CDLL(None, use_errno=True)
LIBC.mremap.restype = ctypes.c_void_p
PAGE = mmap.PAGESIZE
PRIVATE = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
MBIND, BIND, RAM_MASK, CDM_MASK = 237, 2, 1, 2
MADV_UNMERGEABLE = 13
PAGES, TIMES = 256, 10
LOOP_PAGES, LOOPS = 5_000, 3


def region(pages: int) -> tuple[mmap.mmap, int]:
    """Return an anonymous region without huge pages, and its address."""
    area = mmap.mmap(-1, pages * PAGE, flags=PRIVATE)
    area.madvise(mmap.MADV_NOHUGEPAGE)
    return area, ctypes.addressof(ctypes.c_char.from_buffer(area))


def call(number: int, *arguments: int) -> None:
    if LIBC.syscall(number, *map(ctypes.c_ulong, arguments)):
        raise OSError(ctypes.get_errno(), f"system call {number}")


def bind(start: int, pages: int, nodes: int) -> None:
    mask = ctypes.c_ulong(nodes)
    call(MBIND, start, pages * PAGE, BIND, ctypes.addressof(mask), 65, 0)


def fault_loop(nodes: int) -> float:
    """Return the seconds that it takes to write to LOOP_PAGES for the first time.

    The least of some times: whoever takes the cpu away only adds.
    """
    least = float("inf")
    for _ in range(LOOPS):
        area, start = region(LOOP_PAGES)
        bind(start, LOOP_PAGES, nodes)
        since = time.monotonic()
        ctypes.memset(start, 1, len(area))
        least = min(least, time.monotonic() - since)
    return least


def in_a_child(start: int, *, bound: bool) -> None:
    """Fork, and write to pages there; give them a policy of RAM first, if asked to."""
    pid = os.fork()
    if not pid:
        if bound:
            bind(start, 4, RAM_MASK)
        ctypes.memset(start, 2, 16 * PAGE)
        os._exit(0)
    os.waitpid(pid, 0)


def a_bit_of_everything() -> None:
    """Fault, fork, copy, map files, move, split, lock, compact: all on RAM."""
    for _ in range(TIMES):
        area, start = region(PAGES)
        ctypes.memset(start, 1, len(area))
        in_a_child(start, bound=False)
        LIBC.mprotect(ctypes.c_void_p(start), 64 * PAGE, mmap.PROT_READ)
        LIBC.mlock(ctypes.c_void_p(start + 64 * PAGE), 64 * PAGE)
        LIBC.munlock(ctypes.c_void_p(start + 64 * PAGE), 64 * PAGE)
        area.madvise(MADV_UNMERGEABLE)
        area.madvise(mmap.MADV_DONTNEED, 64 * PAGE, 64 * PAGE)
        new = LIBC.mremap(
            *(ctypes.c_void_p(start + 128 * PAGE), ctypes.c_ulong(64 * PAGE)),
            *(ctypes.c_ulong(128 * PAGE), 1),
        )
        LIBC.munmap(ctypes.c_void_p(new), 128 * PAGE)
        with mmap.mmap(-1, PAGES * PAGE) as shared:
            shared.write(bytes(PAGES * PAGE))
    path = Path("/tmp/probe-cost")
    path.write_bytes(bytes(PAGES * PAGE))
    with path.open("rb") as file:
        for _ in range(TIMES):
            with mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapped:
                mapped.madvise(mmap.MADV_RANDOM)
                sum(mapped[at] for at in range(0, len(mapped), PAGE))
    kept, start = region(8 * PAGES)
    ctypes.memset(start, 1, len(kept))
    Path("/proc/sys/vm/compact_memory").write_text("1")


def policies() -> None:
    """Set policies of RAM: that calls do is told, and their processes followed then."""
    kept, start = region(16)
    for _ in range(TIMES):
        in_a_child(start, bound=True)
    kept.close()


ORDERS = {
    b"l": lambda: fault_loop(RAM_MASK),
    b"c": lambda: fault_loop(CDM_MASK),
    b"e": a_bit_of_everything,
    b"p": policies,
}


def work(orders: int, answers: int) -> None:
    """Do what is ordered, and answer with the seconds it took."""
    while order := os.read(orders, 1):
        seconds = ORDERS[order]()
        os.write(answers, f"{seconds or 0.0}\n".encode())


class Worker:
    """The process, from outside."""

    def __init__(self) -> None:
        """Start it."""
        self._theirs, self._orders = os.pipe()
        self.answers, theirs = os.pipe()
        self.pid = os.fork()
        if not self.pid:
            os.close(self._orders)
            work(self._theirs, theirs)
            os._exit(0)

    def order(self, order: bytes) -> None:
        """Have it begin; ``answers`` is readable when it is done."""
        os.write(self._orders, order)

    def answer(self) -> float:
        """Wait until it is done; return the seconds that it took."""
        return float(os.read(self.answers, 64))

    def do(self, order: bytes) -> float:
        """Do both."""
        self.order(order)
        return self.answer()

    def end(self) -> None:
        """Kill it."""
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
