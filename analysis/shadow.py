"""Which VMAs would have to be tagged, on a kernel that has no VM_CDM.

The demand is the one that a missing tag is held against where there is one (CDM002),
asked for whenever a VMA has settled; here it is written down, with the time since when
it holds. Nothing is judged: without the flag no kernel can do as it is asked.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import msgspec
from msgspec.structs import replace

from cdmtrace.analysis.frames import Event
from cdmtrace.analysis.notes import Settled
from cdmtrace.analysis.pages import PageMap
from cdmtrace.analysis.state import Area

Space = tuple[int, int]
"""An mm by its id and generation."""


class Due(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """[start, end) of an mm as it was when a VMA there had to be tagged last.

    clause, why: of the profile. since: the row that gave it the reason, or the first
    that showed it with one. until: the row at which it had none any more, None where no
    row says so. ended: there is no such VMA any more, be it that no row says since
    when. pages: bytes on each CDM node that it had when it was last judged.
    """

    space: Space
    start: int
    end: int
    clause: str
    why: str
    since: Event
    until: Event | None
    ended: bool
    pages: Mapping[int, int]


class _Span(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One that still holds; held: all pages of its mm when it was last judged."""

    start: int
    end: int
    clause: str
    why: str
    since: Event
    held: PageMap


@dataclass(slots=True)
class Shadow:
    """What would have had to be tagged in a recording: its VMAs, as they settle."""

    _open: dict[Space, dict[int, _Span]] = field(default_factory=dict)
    _over: list[Due] = field(default_factory=list)

    def take(self, space: Space, note: Settled) -> None:
        """Take note of what is asked of a VMA now."""
        area, due = note.area, note.due
        spans = self._open.setdefault(space, {})
        span = spans.get(area.start)
        if due is None or span is None or (span.end, span.since) != (area.end, due):
            self._carve(space, note)
        if due is not None:
            spans[area.start] = _Span(
                start=area.start,
                end=area.end,
                clause=note.demand.clause,
                why=note.demand.why,
                since=due,
                held=note.held,
            )

    def unmapped(self, space: Space, event: Event) -> None:
        """Take note of a munmap() that has succeeded: no VMA of before is there."""
        spans = self._open.get(space, {})
        start, end = event.start, event.end
        for span in [s for s in spans.values() if s.start < end and start < s.end]:
            del spans[span.start]
            if span.start < start:
                spans[span.start] = replace(span, end=start)
            if end < span.end:
                spans[end] = replace(span, start=end)
            inside = replace(span, start=max(span.start, start), end=min(span.end, end))
            self._over.append(_told(space, inside, until=None, ended=True))

    def _carve(self, space: Space, note: Settled) -> None:
        """Take a VMA's range out of what holds; what lies beside it holds on."""
        area, due = note.area, note.due
        spans = self._open[space]
        met = [s for s in spans.values() if s.start < area.end and area.start < s.end]
        for span in met:
            del spans[span.start]
            if span.start < area.start:
                spans[span.start] = replace(span, end=area.start)
            if area.end < span.end:
                spans[area.end] = replace(span, start=area.end)
            # One that is a part of a bigger one now, or of which this is a part.
            if due is not None and due.seq <= span.since.seq:
                continue
            inside = replace(
                span, start=max(span.start, area.start), end=min(span.end, area.end)
            )
            # It may be another VMA that came to its place: then nobody saw it go.
            same = area.due is not None and area.due.seq <= span.since.seq
            until = note.event if same else None
            self._over.append(_told(space, inside, until=until, ended=not same))

    def result(self, areas: Callable[[Space], tuple[Area, ...]]) -> tuple[Due, ...]:
        """Return all, in the order in which they began. areas: an mm's last ones."""
        found = list(self._over)
        for space, spans in self._open.items():
            there = areas(space)
            for span in spans.values():
                holds = any(
                    area.due and area.start < span.end and span.start < area.end
                    for area in there
                )
                found.append(_told(space, span, until=None, ended=not holds))
        return tuple(
            sorted(found, key=lambda due: (due.since.seq, due.start, *due.space))
        )


def _told(space: Space, span: _Span, *, until: Event | None, ended: bool) -> Due:
    return Due(
        space=space,
        start=span.start,
        end=span.end,
        clause=span.clause,
        why=span.why,
        since=span.since,
        until=until,
        ended=ended,
        pages=dict(sorted(span.held.on_nodes(span.start, span.end).items())),
    )
