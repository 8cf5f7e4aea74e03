"""What a VMA was in the course of time, in a room that does not grow with the trace.

A lane is drawn, so it keeps what can be told apart on a screen. What comes too close
upon each other is put together while it comes, and counted: nothing that happened is
left out of the numbers, and the first of each sort is kept to be told of.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final, Literal, Protocol

from cdmtrace.analysis.describe import flags_changed
from cdmtrace.analysis.frames import Event, Terms
from cdmtrace.analysis.state import Area
from cdmtrace.events import Bit, EventKind

STRETCHES: Final = 64
"""Times between two changes of tag, policy or range that a lane keeps at most."""

POINTS: Final = 160
"""Numbers of pages that it keeps."""

MARKS: Final = 32
"""Marks of one sort that it keeps."""

SORTS: Final = 4
"""Different rows that one mark tells of; of more, only how many there were."""

APART: Final = 400
"""What is closer than this part of the recording is drawn at the same place."""

Sort = Literal["flags", "policy", "call", "vma", "pages"]

_OF_PAGES: Final = frozenset(
    {
        EventKind.ALLOC,
        EventKind.MAP,
        EventKind.MIGRATE,
        EventKind.UNMAP,
        EventKind.ZAP,
        EventKind.COLLAPSE,
        EventKind.KSM_PAGE,
        EventKind.NUMA_SCAN,
        EventKind.NUMA_MOVE,
    }
)

_SILENT: Final = frozenset(
    {
        EventKind.VMA_SEEN,
        EventKind.SNAP_VMA,
        EventKind.SNAP_PAGES,
        EventKind.SNAP_MM,
        EventKind.SNAP_RANGES,
        EventKind.WRITE_SECTION,
    }
)
"""Rows that show how a VMA is, and that nothing has happened to it."""


@dataclass(slots=True)
class Stretch:
    """A VMA as it was from a time (ns) on, until the next stretch.

    tagged: None where it is not known. policy: byte and nodes, None where not known.
    known: all its pages of CDM nodes are. mixed: stretches too short to be drawn, of
    which this is the last.
    """

    since: int
    start: int
    end: int
    tagged: bool | None
    policy: tuple[int, int] | None
    known: bool
    mixed: bool = False

    def like(self, other: Stretch) -> bool:
        """Return whether it differs in nothing but the time."""
        return (
            (self.start, self.end, self.known) == (other.start, other.end, other.known)
            and self.tagged is other.tagged
            and self.policy == other.policy
            and not (self.mixed or other.mixed)
        )


@dataclass(slots=True)
class Mark:
    """Rows of one sort that came one upon the other: since, until in ns.

    rows: the first one of each kind, and how many there were of it. more: rows of
    further kinds.
    """

    since: int
    until: int
    count: int = 0
    rows: dict[tuple[int, ...], tuple[Event, int]] = field(default_factory=dict)
    more: int = 0

    def add(self, event: Event) -> None:
        """Count a row that came after the others."""
        self.until = max(self.until, event.ts)
        self.count += 1
        self._count(_kind(event), event, 1)

    def absorb(self, later: Mark) -> None:
        """Take in a mark that came after it."""
        self.until = max(self.until, later.until)
        self.count += later.count
        self.more += later.more
        for key, (event, many) in later.rows.items():
            self._count(key, event, many)

    def _count(self, key: tuple[int, ...], event: Event, many: int) -> None:
        first, before = self.rows.get(key, (event, 0))
        if before or len(self.rows) < SORTS:
            self.rows[key] = first, before + many
        else:
            self.more += many


@dataclass(slots=True)
class Lane:
    """The life of one VMA. apart: what comes within so many ns is one mark.

    points: time (ns), and base pages by CDM node, as they were from then on.
    """

    apart: int
    stretches: list[Stretch] = field(default_factory=list)
    points: list[tuple[int, Mapping[int, int]]] = field(default_factory=list)
    marks: dict[Sort, list[Mark]] = field(default_factory=dict)

    def show(self, ts: int, area: Area, pages: Mapping[int, int], terms: Terms) -> None:
        """Note what the VMA is after a row. pages: of CDM nodes."""
        policy = (area.policy.byte, area.policy.nodes) if area.policy else None
        new = Stretch(
            since=ts,
            start=area.start,
            end=area.end,
            tagged=area.tagged(terms) if terms.tag else None,
            policy=policy,
            known=area.pages_known and terms.sees_all(area.start, area.end),
        )
        if not (self.stretches and self.stretches[-1].like(new)):
            self.stretches.append(new)
        if len(self.stretches) > 2 * STRETCHES:
            self.stretches = _paired(self.stretches)
        if not (self.points and self.points[-1][1] == pages):
            self.points.append((ts, dict(pages)))
        if len(self.points) > 2 * POINTS:
            self.points = _extremes(self.points)

    def mark(self, event: Event) -> None:
        """Note a row that is about the VMA."""
        sort = sort_of(event)
        if sort is None:
            return
        marks = self.marks.setdefault(sort, [])
        last = marks[-1] if marks else None
        if last is None or not self._joins(sort, last, event):
            last = Mark(event.ts, event.ts)
            marks.append(last)
        last.add(event)
        if len(marks) > 2 * MARKS:
            self.marks[sort] = _joined(marks)

    def _joins(self, sort: Sort, last: Mark, event: Event) -> bool:
        """Return whether a row belongs to the last mark of its sort."""
        if event.ts - last.until > self.apart:
            return False
        return sort == "pages" or set(last.rows) == {_kind(event)}

    def absorb(self, other: Lane) -> None:
        """Take in the lane of a VMA that has been merged with this one."""
        since = self.stretches[0].since if self.stretches else 1 << 64
        self.stretches[:0] = [one for one in other.stretches if one.since < since]
        first = self.points[0][0] if self.points else 1 << 64
        self.points[:0] = [one for one in other.points if one[0] < first]
        for sort, marks in other.marks.items():
            mine = [*self.marks.get(sort, []), *marks]
            self.marks[sort] = sorted(mine, key=lambda mark: mark.since)
        self.bound()

    def bound(self) -> None:
        """Have it keep no more than what it may."""
        while len(self.stretches) > STRETCHES:
            self.stretches = _paired(self.stretches)
        while len(self.points) > POINTS:
            self.points = _extremes(self.points)
        for sort, marks in self.marks.items():
            while len(marks) > MARKS:
                marks = _joined(marks)  # noqa: PLW2901
            self.marks[sort] = marks


class Owner(Protocol):
    """What has a lane. until: when it ended (ns), None if it has not."""

    @property
    def lane(self) -> Lane | None: ...  # noqa: D102

    @property
    def until(self) -> int | None: ...  # noqa: D102


class Marker:
    """Marks rows in the lanes of the VMAs that they are about."""

    def __init__(self) -> None:
        self._calls: dict[int, tuple[int, dict[int, Owner]]] = {}

    def take(self, event: Event, vmas: Iterable[Owner]) -> None:
        """Mark a row. vmas: those that are in its range.

        A system call is about those, too, about which rows inside it were.
        """
        found = {id(vma): vma for vma in vmas}
        call, inside = self._calls.get(event.tid, (0, {}))
        if call != event.call:
            inside = {}
        if event.kind in (EventKind.CALL, EventKind.CALL_OPEN):
            self._calls.pop(event.tid, None)
            found |= {key: vma for key, vma in inside.items() if vma.until is None}
        elif event.call and found:
            self._calls[event.tid] = event.call, inside | found
        for vma in found.values():
            if vma.lane:
                vma.lane.mark(event)


def sort_of(event: Event) -> Sort | None:
    """Return what a row is about, None: nothing that would be marked."""
    if event.kind in _SILENT:
        return None
    if event.kind in (EventKind.CALL, EventKind.CALL_OPEN):
        return "call"
    if flags_changed(event):
        return "flags"
    if event.kind == EventKind.POLICY:
        return "policy"
    if event.kind in (EventKind.FLAGS, EventKind.WRITE, EventKind.KSM_ADVICE):
        return None if event.bits & Bit.VMA_UNREAD else "flags"
    return "pages" if event.kind in _OF_PAGES else "vma"


def _kind(event: Event) -> tuple[int, ...]:
    """Return what rows have in common that are told of in one line."""
    who = (event.kind, event.probe, event.tid, event.ret, event.arg)
    lock = (event.lock_entry, event.lock_exit)
    change = (event.flags_before, event.flags_after)
    if event.kind in _OF_PAGES:
        return (*who, *lock, *change, event.node, event.src_node)
    ask = (event.policy, event.nodes, event.other_policy, event.other)
    return (*who, *lock, *change, *ask, event.start, event.end)


def _paired(stretches: list[Stretch]) -> list[Stretch]:
    """Return half as many: what two of them were is not told where they differ."""
    found = []
    for at in range(0, len(stretches), 2):
        pair = stretches[at : at + 2]
        last = pair[-1]
        last.mixed |= any(one.mixed for one in pair) or len(pair) > 1
        last.since = pair[0].since
        found.append(last)
    return found


def _extremes(
    points: list[tuple[int, Mapping[int, int]]],
) -> list[tuple[int, Mapping[int, int]]]:
    """Return half as many: of four, that with the most pages and the last one."""
    found = []
    for at in range(0, len(points), 4):
        four = points[at : at + 4]
        most = max(range(len(four)), key=lambda n: sum(four[n][1].values()))
        found += [four[n] for n in sorted({most, len(four) - 1})]
    return found


def _joined(marks: list[Mark]) -> list[Mark]:
    """Return half as many, of two neighbours one."""
    for at in range(0, len(marks) - 1, 2):
        marks[at].absorb(marks[at + 1])
    return marks[::2]
