"""The tables of ``report`` of many recordings, added up.

What is left out is what means nothing outside of its recording: pids and addresses.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from cdmtrace.analysis.aggregate import SERVICES

Rows = Sequence[Mapping[str, Any]]
Tables = dict[str, list[dict[str, Any]]]

RECORDINGS: Final = "recordings"
"""The column that says in how many recordings there is such a row."""

UNSEEN: Final = "not seen in"
"""The column that says of how many recordings nobody knows what it was there."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Sum:
    """What becomes of one table.

    keys: columns whose values make a row. sums: those that are added up, the one that
    rows are sorted by first. counts: what a column is called that counts the rows.
    unseen: a sum may be of what nobody could see.
    """

    keys: tuple[str, ...]
    sums: tuple[str, ...]
    counts: tuple[str, ...] = ()
    unseen: bool = False


_SUMS: Final[Mapping[str, _Sum]] = {
    "Processes": _Sum(
        keys=("comm",),
        sums=("pages came", "pages left", "pages now", "VMAs tagged", "tags set"),
        counts=("processes",),
    ),
    "Nodes": _Sum(keys=("node",), sums=("pages came", "pages left", "mapped now")),
    "Arrivals by cause": _Sum(
        keys=("cause", "node"), sums=("pages", "bytes", "processes")
    ),
    SERVICES: _Sum(
        keys=("node", "service"),
        sums=("pages came", "pages left", "pages stayed"),
        unseen=True,
    ),
    "Migrations": _Sum(keys=("cause", "from", "to"), sums=("pages", "bytes")),
    "Pages that move to and fro": _Sum(
        keys=("route",), sums=("moves", "pages"), counts=("VMAs",)
    ),
    "Changes of vm_flags": _Sum(
        keys=("function", "mmap lock", "before", "after"), sums=("changes",)
    ),
}


def of_one(tables: Mapping[str, Rows]) -> Tables:
    """Return the tables of one recording as added() takes them."""
    return {
        title: [{**row, RECORDINGS: 1} for row in _summed(tables.get(title, ()), how)]
        for title, how in _SUMS.items()
    }


def added(several: Iterable[Mapping[str, Rows]]) -> Tables:
    """Return the sums over recordings, those that count most first.

    several: as of_one() has them. Unknown numbers (None) are left out of a sum, and in
    how many recordings one is unknown is said; where it is in all, so is the sum.
    Pages are base pages, which may be of another size in another recording.
    """
    rows: dict[str, list[Mapping[str, Any]]] = {title: [] for title in _SUMS}
    for tables in several:
        for title, found in tables.items():
            rows[title] += found
    sums = {
        title: _summed(found, _SUMS[title], (RECORDINGS,))
        for title, found in rows.items()
    }
    for title, how in _SUMS.items():
        for row in sums[title] if how.unseen else ():
            if row[UNSEEN] == row[RECORDINGS]:
                row.update(dict.fromkeys(how.sums))
    return sums


def _summed(rows: Rows, how: _Sum, more: tuple[str, ...] = ()) -> list[dict[str, Any]]:
    """Return those rows that have the same keys as one. more: columns to add, too."""
    columns = (*how.sums, *how.counts, *more, *((UNSEEN,) if how.unseen else ()))
    found: dict[tuple[Any, ...], dict[str, Any]] = {}
    for row in rows:
        key = tuple(row[name] for name in how.keys)
        told = found.setdefault(
            key, {**dict(zip(how.keys, key, strict=True)), **dict.fromkeys(columns, 0)}
        )
        unseen = int(any(row[name] is None for name in how.sums))
        # A row that is of no sum yet counts as one.
        counted = {**dict.fromkeys(how.counts, 1), UNSEEN: unseen, **row}
        for name in columns:
            told[name] += counted[name] or 0
    return sorted(found.values(), key=lambda told: -told[how.sums[0]])
