"""The screen: rows of which is known what the model would say of them.

Most of a large recording are pages that come and go in a VMA where nothing else
changes. Of such a run of alike units (runs.py) the first two are given to the model. If
all that comes of each of the others is what came of the second (alike.py says when),
they are accounted for without it: what was said once is said so many times, and their
pages are put into the account of pages, or taken out. The last unit is given to the
model again, and shows the VMA last.

Rows between the units belong to other address spaces and other tasks. A task that is in
a call which has to do with this mm could change it without naming it, so there must be
none. Everything else is given to the model, row by row, in the order of the ring.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import numpy as np

from cdmtrace.analysis import runs
from cdmtrace.analysis.alike import CHANGES, still
from cdmtrace.analysis.frames import Event, Terms
from cdmtrace.analysis.state import State

if TYPE_CHECKING:
    from collections.abc import Collection

    from cdmtrace.analysis.replay import Replay, Said
    from cdmtrace.analysis.rows import Piece, Rows

_PIECE: Final = 1 << 14
"""Rows in which runs are looked for at a time; what of them the model has to see is
made into events together."""


def go_through(
    replay: Replay,
    rows: Rows,
    terms: Terms,
    breaks: Collection[int],
    until: int | None,
) -> None:
    """Give a replay all rows, or those until one of this seq.

    breaks: seqs of rows before which some are missing.
    """
    for piece in rows.pieces(_PIECE):
        if until is not None and piece.until(until) < len(piece):
            for event in piece.events(np.arange(piece.until(until))):
                replay.take(event)
            return
        _Screen(replay, piece, terms).go_through(breaks)


@dataclass(slots=True)
class _Candidate:
    """A run that is gone through.

    before, after: what its mm was before and after the second unit; unit: the rows of
    that; said: what came of it.
    """

    units: runs.Numbers
    before: State | None = None
    after: State | None = None
    unit: list[Event] = field(default_factory=list)
    said: Said | None = None


class _Screen:
    """A piece of a recording."""

    def __init__(self, replay: Replay, piece: Piece, terms: Terms) -> None:
        self._replay, self._piece, self._terms = replay, piece, terms
        self._columns = piece.values
        # Rows whose turn comes, and those of them of which events are to be made.
        self._agenda: list[int] = []
        self._new: list[int] = []
        self._events: dict[int, Event] = {}
        self._second: dict[int, _Candidate] = {}
        self._due: dict[int, _Candidate] = {}

    def go_through(self, breaks: Collection[int]) -> None:
        """Give the replay all rows of the piece, most of the runs' together."""
        found = []
        if self._piece.single:
            found = runs.find(self._columns, self._terms.page, breaks)
        if not found:
            for event in self._piece.events():
                self._replay.take(event)
            return
        plain = np.ones(len(self._columns["kind"]), np.bool_)
        for run in found:
            plain[run.units.ravel()] = False
        self._await(np.flatnonzero(plain))
        for run in found:
            self._plan(run.units)
        self._decode()
        while self._agenda:
            row = heapq.heappop(self._agenda)
            if row in self._due:
                self._account(self._due.pop(row))
            elif row in self._second:
                self._hear(self._second.pop(row), row, self._events.pop(row))
            else:
                self._replay.take(self._events.pop(row))

    def _plan(self, units: runs.Numbers) -> None:
        """Have two units of a run taken, and then all others accounted for."""
        if len(units) < runs.LEAST:
            self._await(units.ravel())
            return
        one = _Candidate(units=units)
        self._await(units[:2].ravel())
        self._second |= dict.fromkeys(units[1].tolist(), one)
        due = int(units[2, 0])
        self._due[due] = one
        heapq.heappush(self._agenda, due)

    def _await(self, rows: runs.Numbers) -> None:
        """Have rows given to the replay when their turn comes."""
        self._new += rows.tolist()

    def _decode(self) -> None:
        """Make events of those that are awaited since the last time."""
        rows = sorted(self._new)
        self._new = []
        if rows:
            events = self._piece.events(np.array(rows))
            self._events |= zip(rows, events, strict=True)
        for row in rows:
            heapq.heappush(self._agenda, row)

    def _hear(self, one: _Candidate, row: int, event: Event) -> None:
        """Take a row of a second unit."""
        if row == one.units[1, 0]:
            one.before = self._replay.state(event.mm)
        one.said = self._replay.hear(event, one.said)
        one.unit.append(event)
        if row == one.units[1, -1]:
            one.after = self._replay.state(event.mm)

    def _account(self, one: _Candidate) -> None:
        """Account for the units that follow the second one, as far as they are like it;
        have the last of them taken, and one that is not, and go on after that.
        """
        state, said = one.after, one.said
        if state is None or said is None or not self._stands(one):
            self._await(one.units[2:].ravel())
            self._decode()
            return
        event = one.unit[-1]
        pages = CHANGES[event.kind](state, one.unit, self._terms)
        addresses = self._columns["addr"][one.units[2:, -1]].tolist()
        alike = pages.alike(addresses)
        many = max(alike - 1, 0)
        if many:
            state = pages.after(self._columns, one.units[2 : 2 + many, -1])
            self._replay.say_again(said, event.mm, state, many)
        end = 2 + alike + 1
        self._await(one.units[2 + many : end].ravel())
        self._plan(one.units[end:])
        self._decode()

    def _stands(self, one: _Candidate) -> bool:
        """Return whether what was said of a second unit can be said of others."""
        before, after, event = one.before, one.after, one.unit[-1]
        if before is None or after is None:
            return False
        until = int(self._columns["ts"][one.units[2:]].max())
        said = one.said is not None and not one.said.open
        return (
            said
            # A call of another task may have returned since, and have changed it.
            and self._replay.state(event.mm) is after
            and self._replay.alone(event.mm, event.tid, until)
            and still(before, after, one.unit)
        )
