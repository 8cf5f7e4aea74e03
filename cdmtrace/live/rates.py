"""How many events come and are lost, by probe: counted, not decoded."""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass
from typing import Final

import numpy as np

from cdmtrace.format.reader import TraceBatch
from cdmtrace.format.schema import Header, column_values

SECOND: Final = 10**9
WINDOW: Final = 2
"""Seconds over which a rate is a mean."""

HISTORY: Final = 24
"""Seconds whose rates are kept."""

_BATCHES: Final = 1024
"""Batches of late that are kept; a recorder writes a dozen a second, or larger ones."""

OWN: Final = "recorder"
"""What rows of no probe are called: names, stacks and looks of the recorder's own."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Rate:
    """What a probe has told so far, per second of late, and what it has lost."""

    probe: str
    events: int
    per_second: float
    lost: int


class Rates:
    """The counts of a recording so far; of what is past, only sums are kept.

    Times are those of the rows (ns, CLOCK_MONOTONIC of the machine that records). At
    which of them a reader is now follows from how long ago, on its own clock, the last
    batch came.
    """

    def __init__(self, header: Header, clock: int) -> None:
        """Begin with nothing. clock: the reader's, ns, as for all of its times."""
        numbers = header.enums.get("probe", {})
        self._names = {number: name for name, number in numbers.items()}
        self._names[0] = OWN
        self._events = np.zeros(256, np.int64)
        self._lost = Counter[str]()
        self._late: deque[tuple[int, np.ndarray]] = deque(maxlen=_BATCHES)
        self._seconds = Counter[int]()
        self._started = header.started
        self._last = header.started
        self._came = clock

    @property
    def events(self) -> int:
        """All rows so far."""
        return int(self._events.sum())

    @property
    def lost(self) -> int:
        """All events that are missing so far."""
        return self._lost.total()

    def add(self, batch: TraceBatch, came: int) -> None:
        """Count a batch that came at a time of the reader's own clock, in ns."""
        for loss in batch.losses:
            self._lost[loss.probe] += loss.count
        self._came = came
        mark = batch.mark
        if mark.last_ts is None:
            return
        self._last = max(self._last, mark.last_ts)
        column = column_values(batch.columns.column("probe"))
        counts = np.bincount(column, minlength=256)
        self._events += counts
        # A file can say anything of its times; what is kept must be in order.
        self._late.append((self._last, counts))
        self._seconds[self._second(mark.last_ts)] += mark.rows
        self._forget(self._last)

    def now(self, clock: int) -> int:
        """Return the time of the recording at a time of the reader's clock, in ns."""
        return self._last + max(clock - self._came, 0)

    def rates(self, now: int) -> list[Rate]:
        """Return a rate for each probe that has told or lost anything, busiest first.

        now: a time of the recording, in ns.
        """
        self._forget(now)
        late = sum((counts for _, counts in self._late), np.zeros(256, np.int64))
        known = {
            self._names.get(number, str(number)): number
            for number in np.flatnonzero(self._events).tolist()
        }
        found = [
            Rate(
                probe=name,
                events=int(self._events[known[name]]) if name in known else 0,
                per_second=float(late[known[name]]) / WINDOW if name in known else 0.0,
                lost=self._lost[name],
            )
            for name in known.keys() | self._lost.keys()
        ]
        return sorted(found, key=lambda r: (-r.per_second, -r.events, r.probe))

    def history(self, now: int) -> list[int]:
        """Return the events of each whole second before now, the oldest first."""
        self._forget(now)
        last = self._second(now)
        first = max(last - HISTORY, 0)
        return [self._seconds[second] for second in range(first, last)]

    def _second(self, ts: int) -> int:
        return (ts - self._started) // SECOND

    def _forget(self, now: int) -> None:
        while self._late and self._late[0][0] <= now - WINDOW * SECOND:
            self._late.popleft()
        oldest = self._second(now) - HISTORY
        if len(self._seconds) > 2 * HISTORY:
            for second in [s for s in self._seconds if s < oldest]:
                del self._seconds[second]
