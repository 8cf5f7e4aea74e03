#!/usr/bin/env python3
"""Measure natively how fast events come out of the ring and into the file.

    sudo benchmarks/drain.py [--seconds S] [--rounds N] [--ring-pages N] [--rate M...]

Prints two tables in Markdown (docs/cost.md). The first has what an event costs the one
who takes it out, in ns of his cpu, of a ring that is filled before: cdmtrace's own way,
step by step, and the way that bcc documents. The second has what becomes of events that
come in at a rate, from another cpu, while a recording like any other takes them out,
alone and with a live view beside it, in turns.
"""

from __future__ import annotations

import argparse
import ctypes
import mmap
import multiprocessing
import os
import pty
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import ringsource
from bareheader import bare

from cdmtrace.drain import BATCH_ROWS
from cdmtrace.events import EVENT_DTYPE, EventKind, Mpol, Probe
from cdmtrace.format.writer import TraceWriter
from cdmtrace.live import process
from cdmtrace.loader.bcc import import_bcc
from cdmtrace.losses import Losses, Missing, Where
from cdmtrace.options import Options
from cdmtrace.ring import Ring
from cdmtrace.session import Session

RING_PAGES = 4096
RING_SIZE = RING_PAGES * mmap.PAGESIZE
ROUNDS = 15
START = 0x100040000000
IMPORTS = 3.0
"""Seconds that a viewer gets to import: where programs are compiled, it has them."""

HEADER = bare(RING_PAGES)
C_TYPES = {
    "u8": ctypes.c_uint64,
    "u4": ctypes.c_uint32,
    "u2": ctypes.c_uint16,
    "u1": ctypes.c_uint8,
    "i4": ctypes.c_int32,
    "i2": ctypes.c_int16,
}


def template() -> bytes:
    """Return an event such as a fault makes."""
    event = np.zeros(1, EVENT_DTYPE)
    event["kind"], event["probe"] = EventKind.MAP, Probe.RMAP_ADD
    event["mm"], event["pid"], event["tid"] = 23, 42, 42
    event["start"], event["end"] = START, START + mmap.PAGESIZE
    event["addr"], event["size"] = START, mmap.PAGESIZE
    event["policy"], event["nodes"], event["node"] = Mpol.BIND, 2, 1
    return event.tobytes()


class Event(ctypes.Structure):
    """A record, as bcc makes it of the struct in the program."""

    _fields_ = [
        (name, C_TYPES[EVENT_DTYPE[name].str[1:]]) for name in EVENT_DTYPE.names or ()
    ]


@contextmanager
def by_callback(fd: int, use: Callable[[Event], None]) -> Iterator[Callable[[], None]]:
    """What bcc's open_ring_buffer(), event() and ring_buffer_consume() do."""
    bcc = import_bcc()
    lib, table = bcc.libbcc.lib, bcc.libbcc

    def told(context: Any, data: Any, size: int) -> int:
        del context, size
        use(ctypes.cast(data, ctypes.POINTER(Event)).contents)
        return 0

    callback = table._RINGBUF_CB_TYPE(told)
    manager = lib.bpf_new_ringbuf(fd, callback, None)
    yield lambda: lib.bpf_consume_ringbuf(manager)
    lib.bpf_free_ringbuf(manager)


def cost(prepare: Callable[[], None], consume: Callable[[], object], count: int) -> Any:
    """Return (least, median) ns of cpu an event."""
    times = []
    for _ in range(ROUNDS):
        prepare()
        before = time.process_time_ns()
        consume()
        times.append((time.process_time_ns() - before) / count)
    return min(times), statistics.median(times)


def consumers(folder: Path) -> dict[str, tuple[float, float]]:
    """Return what each way costs: (least, median) ns an event."""
    found = {}
    count = BATCH_ROWS
    with ringsource.source(RING_SIZE, template=template()) as made:
        with closing(Ring(made.ring_fd, RING_SIZE, EVENT_DTYPE)) as ring:
            fill = lambda: made.run(count)  # noqa: E731
            found["out of the ring"] = cost(fill, lambda: ring.drain(count), count)
            with TraceWriter(folder / "a.arrows", HEADER) as writer:
                found["out of the ring, into the file"] = cost(
                    fill, lambda: writer.write(ring.drain(count)), count
                )
        few = count // 16
        fill = lambda: made.run(few)  # noqa: E731
        with by_callback(made.ring_fd, lambda _: None) as consume:
            found["bcc: event(data)"] = cost(fill, consume, few)

        def printed(event: Event) -> None:
            print(
                *(event.ts, event.ts_entry, event.pid, event.tid, hex(event.mm)),
                *(hex(event.start), hex(event.end), hex(event.addr)),
                *(hex(event.flags_before), hex(event.flags_after)),
                *(event.lock_entry, event.lock_exit, event.kind, event.stack),
                file=out,
            )

        with (
            (folder / "b.txt").open("w") as out,
            by_callback(made.ring_fd, printed) as consume,
        ):
            found["bcc: event(data), and print"] = cost(fill, consume, few)
    return found


class Filled:
    """Stands for the program: its ring is filled by another process."""

    def __init__(self, made: ringsource.Source) -> None:
        self._made = made
        self.ring_fd = made.ring_fd

    def attach(self, plans: object) -> None: ...

    def enable(self, on: bool) -> None: ...

    def close(self) -> None: ...

    def stack(self, number: int) -> tuple[str, ...]:
        raise AssertionError(number)

    def waiting(self) -> list[Any]:
        return []

    def lost(self) -> Losses:
        _, lost = self._made.counts()
        return {Where(Probe.RMAP_ADD, 0): Missing(lost)} if lost else {}


def produce(made: ringsource.Source, rate: float, seconds: float) -> None:
    """Fill the ring at a rate (events a second), in pieces of a millisecond."""
    os.sched_setaffinity(0, {0})
    begin = time.monotonic()
    done = 0
    while (now := time.monotonic() - begin) < seconds:
        due = int(now * rate) - done
        if due > 0:
            made.run(due)
            done += due
        time.sleep(0.001)


@contextmanager
def terminal() -> Iterator[bytearray]:
    """Have stderr be a terminal; give what is drawn on it."""
    drawn = bytearray()
    ours, theirs = pty.openpty()
    kept = os.dup(2)

    def look() -> None:
        # It ends when nobody has the terminal any more.
        with suppress(OSError):
            while data := os.read(ours, 1 << 16):
                drawn.extend(data)

    looker = threading.Thread(target=look)
    looker.start()
    os.dup2(theirs, 2)
    os.close(theirs)
    try:
        yield drawn
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        looker.join()
        os.close(ours)


class Sustained(NamedTuple):
    """What became of what came in at a rate."""

    events: int
    lost: int
    share: float
    """Of one cpu, that the recorder took."""


def sustained(
    folder: Path, rate: float, seconds: float, *, live: bool, ring_pages: int
) -> Sustained:
    """Record so many events a second."""
    size = ring_pages * mmap.PAGESIZE
    said: list[str] = []
    options = Options(
        output=folder / "c.arrows", duration=seconds + 1, ring_pages=ring_pages
    )
    context = multiprocessing.get_context("fork")
    with (
        terminal() as drawn,
        ringsource.source(size, template=template(), mark=size // 4) as made,
        process.beside(said.append, live=live) as beside,
    ):
        if live:
            time.sleep(IMPORTS)
        with (
            TraceWriter(options.output, HEADER, force=True) as writer,
            closing(
                Session(
                    *(Filled(made), writer, options),
                    *(beside.say, beside.watch, beside.pid),
                )
            ) as session,
        ):
            beside.show(options.output, writer.fileno())
            other = context.Process(target=produce, args=(made, rate, seconds))
            everywhere = os.sched_getaffinity(0)
            os.sched_setaffinity(0, {1})
            before = time.process_time()
            other.start()
            # Nothing is attached here, so there is nothing to look at first.
            outcome = session.run(())
            used = time.process_time() - before
            os.sched_setaffinity(0, everywhere)
            other.join()
    if bool(drawn) is not live or any("has ended" in line for line in said):
        raise RuntimeError(f"not the picture that is due: {said} {drawn[-2000:]!r}")
    return Sustained(outcome.events, outcome.lost, used / seconds)


def main() -> None:
    """Do as the module says."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--ring-pages", type=int, default=RING_PAGES)
    parser.add_argument(
        "--rate", type=float, nargs="+", metavar="M", default=[0.1, 1, 3, 5]
    )
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir="/dev/shm") as scratch:
        folder = Path(scratch)
        print("| way | least, ns | median, ns | times the first |")
        print("|---|---:|---:|---:|")
        found = consumers(folder)
        first = min(found["out of the ring, into the file"])
        for name, (least, median) in found.items():
            print(f"| {name} | {least:.0f} | {median:.0f} | {least / first:.1f} |")
        print()
        print("| events a second | view | written | lost, least | most | of one cpu |")
        print("|---:|---|---:|---:|---:|---:|")
        rates = [(rate, live) for rate in options.rate for live in (False, True)]
        rounds = [
            {
                (rate, live): sustained(
                    *(folder, rate * 1e6, options.seconds),
                    live=live,
                    ring_pages=options.ring_pages,
                )
                for rate, live in rates
            }
            for _ in range(options.rounds)
        ]
        for rate, live in rates:
            events, lost, shares = zip(*(a[rate, live] for a in rounds), strict=True)
            view = "live" if live else "none"
            written = (
                f"{statistics.median(events):,.0f} | {min(lost):,} | {max(lost):,}"
            )
            share = statistics.median(shares)
            print(f"| {rate:g} M | {view} | {written} | {share:.0%} |")


if __name__ == "__main__":
    main()
