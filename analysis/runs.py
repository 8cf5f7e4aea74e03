"""Runs of rows that bring or take pages one after the other, and differ in little else.

Found by column, a batch at a time, and without a model: what a run means is for
screen.py. A *unit* is what the kernel tells of one page: a MAP, an UNMAP or a MIGRATE
row, the ALLOC row of a fault and its MAP row, or the UNMAP row of a page that is moved
and its MIGRATE row. In a run, units follow each other in one address
space and in one task, and each is like the one before it in every column but for
NOT_COMPARED.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from cdmtrace.events import EVENT_DTYPE, Bit, EventKind

LEAST: Final = 5
"""Units of the shortest run: three are replayed as they are, whatever comes of it."""

NOT_COMPARED: Final = frozenset({"ts", "ts_entry", "addr", "cpu"})
"""Columns in which the units of a run may differ, beside the number of the row. Of
these the model and the rules look at the address, and at times where they hold them
against those of other rows."""

_COMPARED: Final = tuple(
    name for name in EVENT_DTYPE.names or () if name not in NOT_COMPARED
)
_PAGES: Final = (*(EventKind.ALLOC, EventKind.MAP, EventKind.UNMAP, EventKind.MIGRATE),)
_PAIRS: Final = (
    (EventKind.ALLOC, EventKind.MAP, "node"),
    (EventKind.UNMAP, EventKind.MIGRATE, "src_node"),
)
"""Kinds of rows that are a unit together, and what both tell of the page."""
_STOPS: Final = (
    *(EventKind.COPY, EventKind.SNAP_MM, EventKind.SNAP_VMA),
    *(EventKind.SNAP_PAGES, EventKind.SNAP_RANGES),
)
"""Kinds of rows that may be about address spaces which they do not name."""
_ODD: Final = Bit.VMA_UNREAD | Bit.UNLINKED | Bit.KSM

Numbers = npt.NDArray[np.intp]
Flags = npt.NDArray[np.bool_]
Columns = Mapping[str, npt.NDArray[Any]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """units: numbers of the rows of each, in order; shape (units, 1) or (units, 2).

    The last row of a unit is the one that says where the page is then.
    """

    units: Numbers


def find(columns: Columns, page: int, breaks: Collection[int] = ()) -> list[Run]:
    """Return the runs of a batch, none of which shares a row with another.

    columns: name -> values, of every column of fixed width. page: bytes of a base page.
    breaks: seqs of rows before which some are missing.
    """
    candidates = _candidates(columns, page)
    if np.count_nonzero(candidates) < LEAST:
        return []
    # By address space, and in each as they came: a row's predecessor lies before it.
    order = np.argsort(columns["mm"], kind="stable")
    rows = {name: columns[name][order] for name in (*_COMPARED, "addr")}
    follows = _follow(columns, order, breaks)
    page_row = candidates[order]
    follows[1:] &= page_row[1:] & page_row[:-1]
    pairs = _pairs(rows, follows)
    # A row that is in a unit of two is in no other.
    single = (rows["kind"] != EventKind.ALLOC) & ~pairs
    single[:-1] &= ~pairs[1:]
    of_one = follows & _like(rows, 1) & single
    of_one[1:] &= single[:-1]
    of_two = pairs.copy()
    of_two[:2] = False
    like = _like(rows, 2)
    of_two[2:] &= pairs[:-2] & follows[1:-1] & like[2:] & like[1:-1]
    return [
        *_runs(order, np.flatnonzero(pairs), of_two, 2),
        *_runs(order, np.flatnonzero(single), of_one, 1),
    ]


def _candidates(columns: Columns, page: int) -> Flags:
    """Return which rows are about one base page in a VMA that they show whole."""
    addr = columns["addr"]
    flags: Flags = (
        np.isin(columns["kind"], _PAGES)
        & (columns["mm"] != 0)
        & (columns["size"] == page)
        & (columns["bits"] & _ODD == 0)
        & (columns["flags_before"] == columns["flags_after"])
        & (columns["start"] <= addr)
        & (addr < columns["end"])
    )
    return flags


def _follow(columns: Columns, order: Numbers, breaks: Collection[int]) -> Flags:
    """Return which rows, in this order, follow the one before them closely.

    Nothing lies in between that is told of their address space, or by their task, or
    that may be about any address space.
    """
    mm, tid = columns["mm"], columns["tid"]
    by_task = np.argsort(tid, kind="stable")
    before = np.full(len(order), -1)
    before[by_task[1:]] = by_task[:-1]
    stops = np.isin(columns["kind"], _STOPS)
    if breaks:
        stops |= np.isin(columns["seq"], list(breaks))
    section = np.cumsum(stops)
    follows = np.zeros(len(order), np.bool_)
    first, second = order[:-1], order[1:]
    follows[1:] = (
        (mm[first] == mm[second])
        & (tid[first] == tid[second])
        & (before[second] == first)
        & (section[first] == section[second])
    )
    return follows


def _pairs(rows: Columns, follows: Flags) -> Flags:
    """Return which rows end a unit that the row before them begins."""
    pairs = np.zeros(len(follows), np.bool_)
    for begins, ends, told in _PAIRS:
        pair = follows & (rows["kind"] == ends)
        pair[1:] &= rows["kind"][:-1] == begins
        for name in ("addr", "start", "end", "call", told):
            pair[1:] &= rows[name][1:] == rows[name][:-1]
        pairs |= pair
    return pairs


def _like(rows: Columns, back: int) -> Flags:
    """Return which rows are like the one so many rows before them."""
    like = np.zeros(len(rows["kind"]), np.bool_)
    like[back:] = True
    for name in _COMPARED:
        like[back:] &= rows[name][back:] == rows[name][:-back]
    return like


def _runs(order: Numbers, ends: Numbers, goes_on: Flags, width: int) -> list[Run]:
    """Return runs of units. ends: the last row of each unit there is; goes_on: whether
    the unit that ends with a row continues the run of the unit before it.
    """
    joined = goes_on[ends]
    starts = np.flatnonzero(~joined)
    lengths = np.diff(np.append(starts, len(ends)))
    found = []
    for start, length in zip(starts.tolist(), lengths.tolist(), strict=True):
        if length >= LEAST:
            last = ends[start : start + length]
            found.append(Run(units=order[last[:, None] + np.arange(1 - width, 1)]))
    return found
