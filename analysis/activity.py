"""How much happened when in a recording as a whole."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Final

from cdmtrace.analysis import aggregate
from cdmtrace.analysis.frames import Event
from cdmtrace.analysis.notes import Arrived, FlagsChanged, Left, Note
from cdmtrace.events import EventKind

BINS: Final = 200
"""Parts of the time of which it is told how much happened in each."""

_FINE: Final = 64 * BINS
"""Parts in which is counted what may lie in a short time of a long recording."""


@dataclass(kw_only=True, slots=True)
class Activity:
    """How much happened when. since, span: ns; page: bytes of a base page."""

    since: int
    span: int
    page: int
    _counts: dict[str, Counter[int]] = field(default_factory=dict)

    def take(self, event: Event, note: Note) -> None:
        """Count what a note tells: pages of CDM nodes, and changes of vm_flags."""
        if isinstance(note, Arrived):
            moved = note.event.kind == EventKind.MIGRATE
            self._add("migrated in" if moved else "came", event, note.page.size)
        elif isinstance(note, Left):
            self._add("left", event, note.event.size)
        elif isinstance(note, FlagsChanged) and aggregate.changes(note):
            self._add("flags", event, self.page)

    def _add(self, what: str, event: Event, size: int) -> None:
        at = (event.ts - self.since) * _FINE // self.span
        counts = self._counts.setdefault(what, Counter())
        counts[min(max(at, 0), _FINE - 1)] += size // self.page

    def document(self) -> dict[str, Any]:
        """Return the number of pages, or changes, in each part of the time.

        Of the time, that is, from the first of them to the last.
        """
        told = [at for counts in self._counts.values() for at in counts]
        first, last = min(told, default=0), max(told, default=0)
        merged = (last - first) // BINS + 1
        bins = (last - first) // merged + 1
        return {
            "since": first * self.span / _FINE / 1e9,
            "width": merged * self.span / _FINE / 1e9,
            "counts": {
                what: [
                    sum(counts[first + at * merged + n] for n in range(merged))
                    for at in range(bins)
                ]
                for what, counts in self._counts.items()
            },
        }
