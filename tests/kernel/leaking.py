"""Runs in the guest: a program that gets pages of node 1 in three ways.

Prints as JSON, by way: the range, and how many of its pages numa_maps has on node 1.
It ends with all of them mapped.
"""

from __future__ import annotations

import ctypes
import json
import mmap
import os
import sys
from pathlib import Path

PAGE = mmap.PAGESIZE
PLACES = {"asked": 0x2000_0000_0000, "moved": 0x2000_4000_0000, "leaked": 1 << 46}
PAGES = {"asked": 23, "moved": 41, "leaked": 31}
MOVED = 7
NODE = 1
READ_WRITE = mmap.PROT_READ | mmap.PROT_WRITE
FLAGS = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x100000
"""MAP_FIXED_NOREPLACE."""
MBIND, SET_MEMPOLICY, MOVE_PAGES = 237, 238, 279
DEFAULT, PREFERRED, BIND = 0, 1, 2
MOVE = 2
LIBC = ctypes.CDLL(None, use_errno=True)


def call(function: str, *arguments: object) -> int:
    """Call a function of libc; it must not fail."""
    it = getattr(LIBC, function)
    it.restype = ctypes.c_long
    values = [ctypes.c_ulong(a) if isinstance(a, int) else a for a in arguments]
    result: int = it(*values)
    if result == -1:
        number = ctypes.get_errno()
        raise OSError(number, f"{function}: {os.strerror(number)}")
    return result


def on_node(addr: int) -> int:
    """Return how many pages of the VMA that begins there are on node 1."""
    for line in Path("/proc/self/numa_maps").read_text().splitlines():
        first, *words = line.split()
        if int(first, 16) == addr:
            found = [word for word in words if word.startswith(f"N{NODE}=")]
            return int(found[0].split("=")[1]) if found else 0
    raise ValueError(f"{addr:x} is not mapped")


def main() -> None:
    """Ask for pages, move some in, and get others that nobody has asked for."""
    nodes = ctypes.c_ulong(1 << NODE)
    mask = ctypes.byref(nodes)
    for name, addr in PLACES.items():
        size = PAGES[name] * PAGE
        assert call("mmap", addr, size, READ_WRITE, FLAGS, (1 << 64) - 1, 0) == addr
    size = PAGES["asked"] * PAGE
    call("syscall", MBIND, PLACES["asked"], size, BIND, mask, 64, 0)
    ctypes.memset(PLACES["asked"], 1, size)

    ctypes.memset(PLACES["moved"], 1, PAGES["moved"] * PAGE)
    addrs = (ctypes.c_ulong * MOVED)(
        *(PLACES["moved"] + n * PAGE for n in range(MOVED))
    )
    to, status = (ctypes.c_int * MOVED)(*[NODE] * MOVED), (ctypes.c_int * MOVED)()
    call("syscall", MOVE_PAGES, 0, MOVED, addrs, to, status, MOVE)
    assert list(status) == [NODE] * MOVED

    call("syscall", SET_MEMPOLICY, PREFERRED, mask, 64)
    ctypes.memset(PLACES["leaked"], 1, PAGES["leaked"] * PAGE)
    call("syscall", SET_MEMPOLICY, DEFAULT, 0, 0)
    told = {
        name: [addr, addr + PAGES[name] * PAGE, on_node(addr)]
        for name, addr in PLACES.items()
    }
    json.dump(told, sys.stdout)


if __name__ == "__main__":
    main()
