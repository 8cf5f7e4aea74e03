"""A process that drains a ring into a file while BPF fills it without a pause.

It tells how much memory it has as it goes on: a line of JSON every so many events. The
file is cut to nothing again and again, for the disk has an end. Every record comes out
of the ring as some task's, with one of many stacks, and events are lost in many address
spaces at a time.

Usage: flood.py FILE EVENTS
"""

from __future__ import annotations

import json
import mmap
import os
import sys
import threading
from pathlib import Path
from typing import Any

import ringsource
from bareheader import bare

from cdmtrace import drain
from cdmtrace.events import EventKind, Events, Lost, Probe
from cdmtrace.format.writer import TraceWriter
from cdmtrace.losses import Losses, Missing, Waiting, Where
from cdmtrace.recorder import LOST_PLACES
from cdmtrace.ring import Ring

PAGES = 4096
EVERY = 1 << 18
STACKS = 4096
"""As many as the program's map has room for."""
HEADER = bare(PAGES)
FRAMES = tuple(f"a_function_of_the_kernel_{n}+0x{n:x}" for n in range(30))


class Loader:
    """What a drain asks of a loader: many stacks, and losses everywhere."""

    def __init__(self, ring_fd: int) -> None:
        self.ring_fd = ring_fd
        self.looks = 0

    def lost(self) -> Losses:
        """Every place has lost more than the last time."""
        self.looks += 1
        return {
            Where(Probe.RMAP_ADD, Lost.RING, mm): Missing(self.looks, 4096, 8192)
            for mm in range(LOST_PLACES)
        }

    def stack(self, number: int) -> tuple[str, ...]:
        """Return one as deep as they get in practice."""
        return (*FRAMES, f"number_{number}+0x0")

    def waiting(self) -> list[Waiting]:
        """Return nothing: all have returned."""
        return []

    # The rest of the protocol is for others than the drain.
    attach = enable = needs_capability = close = None


def memory() -> int:
    """Return how much of our memory is in RAM, in bytes, without files and rings."""
    text = Path("/proc/self/status").read_text()
    line = next(one for one in text.splitlines() if one.startswith("RssAnon:"))
    return int(line.split()[1]) << 10


class Busy(Ring):
    """A ring whose records are of many tasks and have many stacks."""

    def drain(self, max_records: int | None = None) -> Events:
        """Return records as they come, each made somebody's."""
        events: Events = super().drain(max_records)
        number = events["ts"].copy()
        events["kind"] = EventKind.MAP
        events["kind"][number % 64 == 0] = EventKind.COMM
        events["stack"] = number // 7 % STACKS + 1
        events["pid"] = events["tid"] = number % 100003
        events["ts"] += 1 << 40
        events["mm"] = number % 4099
        return events


def main(path: Path, events: int) -> None:
    """Flood, and tell."""
    drain.Ring = Busy
    stop = threading.Event()
    with ringsource.source(PAGES * mmap.PAGESIZE) as source:

        def fill() -> None:
            while not stop.is_set():
                source.run(1 << 16)

        thread = threading.Thread(target=fill)
        loader: Any = Loader(source.ring_fd)
        with TraceWriter(path, HEADER) as writer:
            drained = drain.Drain(loader, writer, PAGES)
            thread.start()
            last = 0
            try:
                while writer.events < events:
                    drained()
                    # It is written at its end, wherever that is.
                    os.truncate(path, 0)
                    if writer.events >= min(last + EVERY, events):
                        last = writer.events
                        told = {"events": writer.events, "bytes": memory()}
                        sys.stdout.write(json.dumps(told) + "\n")
                        sys.stdout.flush()
            finally:
                stop.set()
                thread.join()
            drained.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
