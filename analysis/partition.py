"""Shares of a recording: some of its address spaces each, to be replayed apart.

What the model says of an address space it says of that one's rows, and of those of the
tasks that are in a call about it. Of another address space it asks once only, when that
is copied by fork(): parents and their children are a *family*, and stay together. So
whoever is given all rows of some families, and those of the tasks in their calls, says
of them what would be said in a replay of the whole (verdicts.py puts it together).

Rows that are about no address space matter where they name a task, or end the look with
which a recording began: everybody gets them.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from cdmtrace.events import EventKind
from cdmtrace.format.schema import column_values

if TYPE_CHECKING:
    import pyarrow as pa

Ids = npt.NDArray[np.unsignedinteger[Any]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Share:
    """Some address spaces of a recording.

    mms: their ids, ascending; callers: tasks that have been in a call about one,
    ascending. first: seq of the recording's first row, where this one is to say what
    concerns the recording as a whole. rows: how many are about these address spaces.
    """

    mms: Ids
    callers: Ids
    first: int | None
    rows: int

    def rows_of(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """Return the rows of a batch that it needs."""
        import pyarrow as pa

        kind, mm, tid = (column_values(batch[name]) for name in ("kind", "mm", "tid"))
        # What a task is called, and that the look at all processes is over.
        wanted = (kind == EventKind.COMM) | ((kind == EventKind.SNAP_MM) & (mm == 0))
        wanted |= _among(mm, self.mms) | _among(tid, self.callers)
        if self.first is not None:
            wanted |= column_values(batch["seq"]) == self.first
        return batch.filter(pa.array(wanted))


def _among(values: Ids, some: Ids) -> npt.NDArray[np.bool_]:
    """Return which values are some of these, which are ascending."""
    if not len(some):
        return np.zeros(len(values), np.bool_)
    at = np.minimum(np.searchsorted(some, values), len(some) - 1)
    found: npt.NDArray[np.bool_] = some[at] == values
    return found


def shares(batches: Iterable[pa.RecordBatch], most: int) -> list[Share]:
    """Return the shares of a recording, which have about as many rows each.

    batches: its rows. most: how many shares; there are fewer where there are fewer
    families.
    """
    rows, copies, calls = Counter[int](), set[tuple[int, int]](), set[tuple[int, int]]()
    first: tuple[int, int] | None = None
    for batch in batches:
        if not batch.num_rows:
            continue
        if first is None:
            first = batch["seq"][0].as_py(), batch["mm"][0].as_py()
        kind, mm, call, tid, other = (
            column_values(batch[name])
            for name in ("kind", "mm", "call", "tid", "other")
        )
        ids, counts = np.unique(mm, return_counts=True)
        rows.update(dict(zip(ids.tolist(), counts.tolist(), strict=True)))
        forks = (kind == EventKind.COPY) & (other != 0)
        copies |= _pairs(mm[forks], other[forks])
        inside = (call != 0) & (mm != 0)
        calls |= _pairs(tid[inside], mm[inside])
    del rows[0]
    groups = _balanced(_families(rows, copies), rows, most)
    share_of = {mm: number for number, group in enumerate(groups) for mm in group}
    begins = share_of.get(first[1], 0) if first else 0
    callers: list[set[int]] = [set() for _ in groups]
    for caller, space in calls:
        callers[share_of[space]].add(caller)
    return [
        Share(
            mms=np.array(sorted(group), np.uint64),
            callers=np.array(sorted(callers[number]), np.uint32),
            first=first[0] if first and number == begins else None,
            rows=sum(rows[mm] for mm in group),
        )
        for number, group in enumerate(groups)
    ]


def _pairs(one: Ids, other: Ids) -> set[tuple[int, int]]:
    """Return the pairs that there are of two columns."""
    order = np.lexsort((other, one))
    one, other = one[order], other[order]
    new = np.ones(len(one), np.bool_)
    new[1:] = (one[1:] != one[:-1]) | (other[1:] != other[:-1])
    return {*zip(one[new].tolist(), other[new].tolist(), strict=True)}


def _families(mms: Iterable[int], copies: Iterable[tuple[int, int]]) -> list[list[int]]:
    """Return the address spaces by family. copies: child and parent of each fork()."""
    elder: dict[int, int] = {}

    def eldest(mm: int) -> int:
        line = [mm]
        while (above := elder.get(line[-1])) is not None:
            line.append(above)
        # The next one that asks goes there at once.
        elder.update(dict.fromkeys(line[:-1], line[-1]))
        return line[-1]

    for child, parent in sorted(copies):
        one, other = eldest(child), eldest(parent)
        if one != other:
            elder[one] = other
    found: dict[int, list[int]] = {}
    for mm in sorted(mms):
        found.setdefault(eldest(mm), []).append(mm)
    return list(found.values())


def _balanced(
    families: Sequence[Sequence[int]], rows: Mapping[int, int], most: int
) -> list[list[int]]:
    """Return the families' address spaces in groups of about as many rows.

    The largest family first, each to the group that has the fewest rows (Graham, Bounds
    on multiprocessing timing anomalies, 1969: at most a third more than need be).
    """
    weights = [sum(rows[mm] for mm in family) for family in families]
    heaviest_first = sorted(range(len(families)), key=lambda number: -weights[number])
    groups: list[list[int]] = [[] for _ in range(max(1, min(most, len(families))))]
    loads = [(0, number) for number in range(len(groups))]
    for number in heaviest_first:
        load, lightest = loads[0]
        heapq.heapreplace(loads, (load + weights[number], lightest))
        groups[lightest] += families[number]
    return groups
