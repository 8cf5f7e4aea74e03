#!/usr/bin/env python3
"""Make a large trace file of a real one: its rows again and again, with other ids.

    benchmarks/large.py BASE OUT --events N

Each time that they come again they are later and of other processes: times, address
spaces, VMAs, tasks and calls are shifted, and everything else is as the kernel told it.
What was looked at when recording began, and stacks, which have their numbers from BASE,
come once. N is how many rows there are at least; whole recordings follow each other.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cdmtrace.drain import BATCH_ROWS
from cdmtrace.events import EVENT_DTYPE, EventKind, Events
from cdmtrace.format.reader import TraceReader
from cdmtrace.format.schema import Header, column_values
from cdmtrace.format.writer import TraceWriter

ONCE = (
    *(EventKind.SNAP_MM, EventKind.SNAP_VMA, EventKind.SNAP_PAGES),
    *(EventKind.SNAP_RANGES, EventKind.STACK),
)
"""Kinds of rows that come once."""
STEP = np.uint64(0x9E3779B97F4A7C15)
"""Between an id of an address space and the same one, the next time: odd, so that it
comes back after 2^64 times."""
PAUSE = 1_000_000
"""ns from the last row of one time to the first of the next."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Base:
    """A recording in memory: rows as they come out of the ring, and their payloads."""

    header: Header
    rows: Events
    payloads: list[bytes | None]

    @classmethod
    def read(cls, path: Path) -> Base:
        """Read a file; what was lost is left out."""
        parts, payloads = [], []
        with TraceReader(path) as reader:
            for batch in reader:
                rows: Events = np.zeros(batch.columns.num_rows, EVENT_DTYPE)
                for name in EVENT_DTYPE.names or ():
                    rows[name] = column_values(batch.columns.column(name))
                parts.append(rows)
                payloads += batch.columns.column("payload").to_pylist()
            return cls(
                header=dataclasses.replace(reader.header, part=None),
                rows=np.concatenate(parts),
                payloads=payloads,
            )

    def again(self) -> Base:
        """Return what of it can come again."""
        kept = ~np.isin(self.rows["kind"], ONCE)
        return dataclasses.replace(
            self,
            rows=self.rows[kept],
            payloads=[p for p, keep in zip(self.payloads, kept, strict=True) if keep],
        )


def shifted(base: Base, first: int, times: int) -> tuple[Events, list[bytes | None]]:
    """Return its rows, and their payloads, the first-th time and so on."""
    rows: Events = np.tile(base.rows, times)
    which = np.repeat(np.arange(first, first + times, dtype=np.uint64), len(base.rows))
    span = int(base.rows["ts"].max() - base.rows["ts_entry"].min()) + PAUSE
    for name in ("ts", "ts_entry"):
        rows[name] += which * np.uint64(span)
    forks = rows["kind"] == EventKind.COPY
    for name, there in (("mm", rows["mm"] != 0), ("other", forks)):
        rows[name][there] += (which * STEP)[there]
    # The first task of a process has its number: both go the same way.
    tasks = ("pid", "tid")
    for name, alike in (("vma", ()), ("pid", tasks), ("tid", tasks), ("call", ())):
        most = np.uint64(max(int(base.rows[one].max()) for one in (name, *alike)) + 1)
        there = rows[name] != 0
        rows[name][there] += (which * most).astype(np.uint32)[there]
    return rows, base.payloads * times


def batches(base: Base, events: int) -> Iterator[tuple[Events, list[bytes | None]]]:
    """Yield what to write, some batches' worth at a time."""
    yield base.rows, base.payloads
    again = base.again()
    made, first = len(base.rows), 1
    at_a_time = max(1, BATCH_ROWS // len(again.rows))
    while made < events:
        missing = -(-(events - made) // len(again.rows))
        times = min(at_a_time, missing)
        yield shifted(again, first, times)
        made += times * len(again.rows)
        first += times


def make(source: Path, out: Path, events: int) -> int:
    """Write the file; return how many rows it has."""
    base = Base.read(source)
    written = 0
    with TraceWriter(out, base.header, force=True) as writer:
        for rows, payloads in batches(base, events):
            for at in range(0, len(rows), BATCH_ROWS):
                some = slice(at, at + BATCH_ROWS)
                writer.write(rows[some], payloads=payloads[some])
            written += len(rows)
        writer.end("made of another recording")
    return written


def main() -> None:
    """Make one."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("base", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--events", type=int, required=True)
    options = parser.parse_args()
    print(f"{make(options.base, options.out, options.events):,} rows")


if __name__ == "__main__":
    main()
