"""From the ring into the file.

Nothing is decoded but the numbers of stacks, which are looked up while the kernel has
them.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections import Counter
from collections.abc import Iterator
from typing import Final

import numpy as np

from cdmtrace.events import (
    EVENT_DTYPE,
    NO_NODE,
    STACKS,
    EventKind,
    Events,
    Lost,
    Probe,
)
from cdmtrace.format.parts import Writer
from cdmtrace.format.schema import Shortfall
from cdmtrace.loader import Loader
from cdmtrace.losses import Losses, Missing, Where, fresh, open_calls
from cdmtrace.ring import Ring

BATCH_ROWS: Final = 1 << 16
"""Rows of a batch at most: 8 MiB."""


COUNTED: Final = "what the probes have put into the ring, but names and looks"
"""What a limit of events is about. Looks are the rows of a snapshot."""

_NOT_COUNTED: Final = (
    *(EventKind.COMM, EventKind.SNAP_VMA, EventKind.SNAP_PAGES, EventKind.SNAP_MM),
)


def own_rows(kind: EventKind, since: int, count: int) -> Events:
    """Return rows of the recorder's own: ts_entry is since, ts now, in ns."""
    rows: Events = np.zeros(count, EVENT_DTYPE)
    rows["kind"] = kind
    rows["ts_entry"], rows["ts"] = since, time.monotonic_ns()
    rows["node"] = rows["src_node"] = NO_NODE
    return rows


class Drain:
    """Takes what is in the ring into the file, and what was lost."""

    def __init__(self, loader: Loader, writer: Writer, ring_pages: int) -> None:
        """Map the ring. Raises OSError."""
        self.writer: Final = writer
        self._loader = loader
        self._size = ring_pages * os.sysconf("SC_PAGE_SIZE")
        self._ring = Ring(loader.ring_fd, self._size, EVENT_DTYPE)
        self._full_batches = self._size // (BATCH_ROWS * EVENT_DTYPE.itemsize) + 1
        self._counted: Losses = loader.lost()
        self._lost = 0
        # Whether a stack is written already, by its number; there is no stack 0.
        self._told = np.zeros(STACKS + 1, np.bool_)
        self._told[0] = True
        self._kept: list[Events] | None = None
        self._left: int | None = None

    @property
    def lost(self) -> int:
        """Events lost so far."""
        return self._lost

    @property
    def behind(self) -> bool:
        """Whether a quarter of the ring or more waits: nobody will say so again."""
        return self._ring.pending * 4 >= self._size

    @property
    def full(self) -> bool:
        """Whether as many events are written as there may be."""
        return self._left == 0

    def limit(self, events: int | None) -> None:
        """Write so many events more, of those that are COUNTED; None: all there are."""
        self._left = events

    def close(self) -> None:
        """Unmap the ring."""
        self._ring.close()

    def __call__(self) -> None:
        """Write what is in the ring, and what was lost since the last time.

        Once it is full, what comes is thrown away, and what is lost is no matter.
        """
        if self.full:
            self._ring.drain(BATCH_ROWS)
            return
        begin = time.monotonic_ns()
        counted = self._loader.lost()
        window = (begin, time.monotonic_ns())
        lost = fresh(counted, self._counted)
        events, taken = self._take()
        self._notice(events)
        if len(events) or lost:
            # The window goes with every batch: a later loss came after this one.
            self._write(events, lost, window)
        self._counted = counted
        # What one ring can hold, and no more: whoever waits for us is looked after
        # even if events come in faster than they are written.
        for _ in range(self._full_batches):
            if taken < BATCH_ROWS or self.full:
                break
            events, taken = self._take()
            self._notice(events)
            if len(events):
                self.writer.write(events)

    def _take(self) -> tuple[Events, int]:
        """Return the next events of the ring that may be written, and how many it had.

        What comes after the last that may be is left out, so that the file ends there.
        """
        events: Events = self._ring.drain(BATCH_ROWS)
        if self._left is None:
            return events, len(events)
        counted = np.flatnonzero(~np.isin(events["kind"], _NOT_COUNTED))
        taken = min(len(counted), self._left)
        self._left -= taken
        last = counted[taken - 1] + 1 if taken and not self._left else len(events)
        return events[:last], len(events)

    @contextlib.contextmanager
    def keeping(self) -> Iterator[list[Events]]:
        """Keep the SNAP_PAGES rows that come meanwhile, in the list that is given."""
        kept: list[Events] = []
        self._kept = kept
        try:
            yield kept
        finally:
            self._kept = None

    def write_waiting(self) -> None:
        """Write what has not returned by now: calls as rows, functions as lost."""
        if self.full:
            return
        begin = time.monotonic_ns()
        waiting = self._loader.waiting()
        window = (begin, time.monotonic_ns())
        functions = Counter(
            Where(item.probe, Lost.UNPAIRED)
            for item in waiting
            # What is still ending when the recording ends is there until then.
            if not item.call and item.probe != Probe.EXIT_MMAP
        )
        lost = fresh({w: Missing(n) for w, n in functions.items()}, {})
        rows = open_calls([w for w in waiting if w.call and w.concerns], window[1])
        if len(rows) or lost:
            self._write(rows, lost, window)

    def _write(
        self, events: Events, lost: tuple[Shortfall, ...], window: tuple[int, int]
    ) -> None:
        self.writer.write(events, lost=lost, window=window)
        self._lost += sum(entry.count for entry in lost)

    def _notice(self, events: Events) -> None:
        """Keep the counts, if they are waited for; write the stacks that are new."""
        if self._kept is not None:
            self._kept.append(events[events["kind"] == EventKind.SNAP_PAGES])
        stacks = events["stack"]
        new = sorted({*stacks[~self._told[stacks]].tolist()})
        if not new:
            return
        rows = own_rows(EventKind.STACK, time.monotonic_ns(), len(new))
        rows["stack"] = new
        frames = ["\n".join(self._loader.stack(number)) for number in new]
        self.writer.write(rows, payloads=[text.encode() for text in frames])
        self._told[new] = True
