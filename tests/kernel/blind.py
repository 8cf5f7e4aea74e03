"""Runs in the guest: recordings of one load, each without one of the probes.

The load is the driver scenario, and after it pages that KSM has merged, which move:
a page of a driver's or of KSM's does not tell where in a VMA it is. Leaves
PROBE.arrows of each, and in PROBE.stdout what the load says.

Usage: blind.py DRIVER QUIRKS PROBE...
"""

from __future__ import annotations

import ctypes
import mmap
import os
import subprocess
import sys
import time
from pathlib import Path

from recordings import LIBC, PATIENCE, bound, finish, prepared, start

MOVE_PAGES, MOVE_ALL = 279, 4
PAIRS = 7
KSM = Path("/sys/kernel/mm/ksm")


def move_merged_pages() -> None:
    """Let ksmd merge pairs of pages on the CDM node, and move what is left to RAM."""
    region = bound(2 * PAIRS, mmap.MADV_MERGEABLE)
    for page in range(2 * PAIRS):
        region[page * mmap.PAGESIZE] = 1 + page % PAIRS
    (KSM / "pages_to_scan").write_text("1000")
    (KSM / "run").write_text("1")
    deadline = time.monotonic() + PATIENCE
    # The whole machine's count has those of processes that ended just now, too.
    while int(Path("/proc/self/ksm_merging_pages").read_text()) < 2 * PAIRS:
        if time.monotonic() > deadline:
            raise TimeoutError("ksmd merges nothing")
        time.sleep(0.1)
    (KSM / "run").write_text("0")
    first = ctypes.addressof(ctypes.c_char.from_buffer(region))
    # Each page once, by one of the two addresses that it is mapped at.
    pages = (ctypes.c_ulong * PAIRS)(
        *(first + page * mmap.PAGESIZE for page in range(PAIRS))
    )
    nodes, status = ((ctypes.c_int * PAIRS)() for _ in range(2))
    LIBC.syscall(MOVE_PAGES, 0, ctypes.c_ulong(PAIRS), pages, nodes, status, MOVE_ALL)
    if any(status):
        raise OSError(f"move_pages: {list(status)}")
    sys.stdout.write(f"# merged pid={os.getpid()} addr={first:#x}\n")


def load(driver: str, quirks: str) -> int:
    """Be the load; return the scenario's status."""
    status = subprocess.run([driver, "--quirks", quirks], check=False).returncode
    move_merged_pages()
    return status


def main(driver: str, quirks: str, *probes: str) -> int:
    """Make the recordings; return how many of them failed."""
    command = ("--", "/usr/bin/python3", __file__, "--load", driver, quirks)
    with prepared():
        return sum(
            finish(start(probe, "--no-probe", probe, *command)) != 0 for probe in probes
        )


if __name__ == "__main__":
    if sys.argv[1] == "--load":
        sys.exit(load(*sys.argv[2:]))
    sys.exit(main(*sys.argv[1:]))
