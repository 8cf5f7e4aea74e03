"""What is there already when a recording begins, and looks at it later.

To look at a process is to read its /proc/PID/numa_maps: what the kernel counts then,
the probes put into the ring, in its order. Only where pages are is asked for here.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import mmap
import os
import platform
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

PROC: Final = Path("/proc")

_ENDED: Final = (FileNotFoundError, ProcessLookupError)
"""A process may end at any time, and that is no error of ours."""
_PRESENT: Final = np.uint64(1 << 63)
"""Of an entry of /proc/PID/pagemap (Documentation/admin-guide/mm/pagemap.rst)."""
_CHUNK: Final = 1 << 18
"""Entries of a pagemap that are read at a time: 2 MiB of them, 1 GiB of addresses."""
_MOVE_PAGES: Final = {"x86_64": 279, "aarch64": 239, "ppc64le": 301}

Addresses = npt.NDArray[np.uint64]
Runs = npt.NDArray[np.uint64]
"""Of shape (n, 2): address, bytes."""


def processes() -> frozenset[int]:
    """Return the processes that there are, without our own."""
    found = {int(entry.name) for entry in PROC.iterdir() if entry.name.isdecimal()}
    return frozenset(found - {os.getpid()})


def look(pid: int) -> None:
    """Have the kernel count the pages of every VMA of a process, if it still is.

    Raises PermissionError where even root may not look.
    """
    with (
        contextlib.suppress(*_ENDED),
        (PROC / str(pid) / "numa_maps").open("rb") as file,
    ):
        while file.read(1 << 20):
            pass


def name(pid: int) -> bytes:
    """Return the name of a process, empty where it has ended."""
    with contextlib.suppress(*_ENDED):
        return (PROC / str(pid) / "comm").read_bytes().rstrip(b"\n")
    return b""


def runs_on(pid: int, start: int, end: int, node: int, wanted: int) -> Runs:
    """Return where in [start, end) pages of a process lie on a node, as runs.

    Stops when as many as wanted are found. Those that went meanwhile are left out, and
    all of them where the process has ended. No more than a piece of all addresses is
    held at a time: a process can have more pages than we have memory for.
    """
    found: list[Runs] = []
    missing = wanted
    with contextlib.suppress(*_ENDED):
        for addresses in _mapped(pid, start, end):
            here = addresses[_nodes(pid, addresses) == node]
            found.append(runs(here))
            missing -= len(here)
            if missing <= 0:
                break
    return _joined(np.concatenate([np.empty((0, 2), np.uint64), *found]))


def runs(addresses: Addresses) -> Runs:
    """Return pages as (address, bytes) of runs without a hole, shape (n, 2).

    addresses: of pages of the base size, ascending.
    """
    size = np.full(len(addresses), mmap.PAGESIZE, np.uint64)
    return _joined(np.column_stack((addresses, size)))


def _joined(parts: Runs) -> Runs:
    """Return runs, ascending, of which none begins where the one before it ends."""
    if not len(parts):
        return parts
    ends = parts[:, 0] + parts[:, 1]
    heads = np.concatenate(([True], parts[1:, 0] != ends[:-1]))
    tails = np.concatenate((heads[1:], [True]))
    return np.column_stack((parts[heads, 0], ends[tails] - parts[heads, 0]))


def _mapped(pid: int, start: int, end: int) -> Iterator[Addresses]:
    """Yield addresses in [start, end) at which a page is mapped, piece by piece."""
    page = mmap.PAGESIZE
    with (PROC / str(pid) / "pagemap").open("rb", buffering=0) as file:
        for first in range(start // page, end // page, _CHUNK):
            count = min(_CHUNK, end // page - first)
            data = os.pread(file.fileno(), count * 8, first * 8)
            entries = np.frombuffer(data, np.uint64)
            there = np.flatnonzero(entries & _PRESENT).astype(np.uint64)
            if len(there):
                yield (there + np.uint64(first)) * np.uint64(page)


def _nodes(pid: int, addresses: Addresses) -> npt.NDArray[np.int32]:
    """Return the node of each page, or a negative error, by move_pages(2)."""
    status: npt.NDArray[np.int32] = np.full(len(addresses), -1, np.int32)
    number = _MOVE_PAGES[platform.machine()]
    result = _libc().syscall(
        ctypes.c_long(number),
        ctypes.c_long(pid),
        ctypes.c_ulong(len(addresses)),
        addresses.ctypes.data_as(ctypes.c_void_p),
        None,
        status.ctypes.data_as(ctypes.c_void_p),
        ctypes.c_long(0),
    )
    if result < 0:
        number = ctypes.get_errno()
        # A zombie is still there and has no memory: kernel_move_pages() says EINVAL.
        kind = ProcessLookupError if number == errno.EINVAL else OSError
        raise kind(number, os.strerror(number))
    return status


def _libc() -> Any:
    return ctypes.CDLL(None, use_errno=True)
