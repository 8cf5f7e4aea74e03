"""The model held against what the kernel counts itself: an audit of the tool.

``record --audit`` reads /proc/PID/numa_maps again and again, and the probes write
down what the kernel counts then: for each VMA the pages by node (SNAP_VMA and
SNAP_PAGES rows). The model never takes anything from them. So where both differ,
cdmtrace has missed a way by which pages come or go: an error of its own, whatever
the kernel did.

A comparison is exact on a running system. The kernel counts a VMA under its page
table locks, and the probes tell of each entry under the same locks. What was told
before the count began is in it. VMAs of which something was told while they were
counted are left out.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import msgspec

from cdmtrace.analysis.frames import Event, Terms
from cdmtrace.analysis.rows import only
from cdmtrace.analysis.state import State
from cdmtrace.events import EventKind

_PAGES = frozenset(
    {
        EventKind.MAP,
        EventKind.MIGRATE,
        EventKind.UNMAP,
        EventKind.COPY,
        EventKind.MOVE,
    }
)


_COUNTS = frozenset({EventKind.SNAP_VMA, EventKind.SNAP_PAGES})


class Difference(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One VMA of which the model holds something else than the kernel counted.

    model, kernel: node -> pages of the base size. pid: of the process that was
    looked at; mm: the id of its address space. seq: the row of the count.
    """

    pid: int
    mm: int
    start: int
    end: int
    model: Mapping[int, int]
    kernel: Mapping[int, int]
    seq: int


class Audit(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """What all comparisons came to.

    looks: times that an address space was looked at. vmas, pages: compared; VMAs
    count each time, pages are of the base size, as the kernel counted them. moving:
    VMAs left out because pages came or went meanwhile; unknown: left out because
    events of theirs are lost, or what they held when the recording began is not known.
    """

    looks: int
    vmas: int
    pages: int
    moving: int
    unknown: int
    differences: tuple[Difference, ...]

    @property
    def asked(self) -> bool:
        """Whether somebody has asked for one."""
        return bool(self.looks or self.unknown)


def together(parts: Iterable[Audit]) -> Audit:
    """Return what the audits of different address spaces came to."""
    there = list(parts)
    return Audit(
        looks=sum(one.looks for one in there),
        vmas=sum(one.vmas for one in there),
        pages=sum(one.pages for one in there),
        moving=sum(one.moving for one in there),
        unknown=sum(one.unknown for one in there),
        differences=tuple(
            sorted(
                (found for one in there for found in one.differences),
                key=lambda found: found.seq,
            )
        ),
    )


@dataclass(slots=True)
class _Count:
    """One VMA while it was counted, from since to until, ns."""

    since: int
    until: int
    start: int
    end: int
    nodes: Counter[int] = field(default_factory=Counter)
    moving: bool = False


@dataclass(slots=True)
class _Look:
    """An address space that is being looked at: which ranges were counted so far."""

    since: int
    counted: list[tuple[int, int]] = field(default_factory=list)
    moved: bool = False


def pages_by_node(
    state: State, terms: Terms, start: int = 0, end: int = 1 << 64
) -> Counter[int]:
    """Return node -> pages (of the base size) that the model holds in [start, end)."""
    held = state.pages.on_nodes(start, end) + state.ram.on_nodes(start, end)
    return Counter({node: size // terms.page for node, size in held.items()})


class Auditor:
    """Compares while the trace is replayed."""

    def __init__(self, events: Iterable[Event], terms: Terms) -> None:
        """Gather the kernel's counts, to know beforehand when each was made."""
        self._terms = terms
        self._counts: dict[int, deque[_Count]] = {}
        last: dict[tuple[int, int], _Count] = {}
        for event in only(events, _COUNTS):
            if event.kind == EventKind.SNAP_VMA:
                count = _Count(
                    since=event.ts_entry,
                    until=event.ts,
                    start=event.start,
                    end=event.end,
                )
                self._counts.setdefault(event.mm, deque()).append(count)
                last[event.tid, event.mm] = count
            else:
                looked = last.get((event.tid, event.mm))
                if looked and event.start == looked.start:
                    looked.nodes[event.node] = event.size // terms.page
        self._passed: set[int] = set()
        self._looks: dict[int, _Look] = {}
        self._done = self._vmas = self._pages = self._moving = self._unknown = 0
        self._differences: list[Difference] = []

    def move(self, event: Event) -> None:
        """Note a row of an address space that is perhaps being counted now."""
        if event.kind not in _PAGES:
            return
        look = self._looks.get(event.mm)
        if look and event.kind in (EventKind.MOVE, EventKind.COPY):
            look.moved = True
        for count in self._counts.get(event.mm, ()):
            if count.since > event.ts:
                break
            if event.kind == EventKind.MOVE or (
                event.addr < count.end and count.start < event.addr + event.size
            ):
                count.moving = True

    def idle(self, mm: int, until: int) -> bool:
        """Return whether no row of an address space until a time (ns) matters here."""
        counts = self._counts.get(mm)
        return not counts or counts[0].since > until

    def look(self, event: Event, state: State, *, known: bool) -> None:
        """Compare one SNAP_VMA row, or, at SNAP_MM, what no such row was about.

        state: of its mm, before the row. known: nothing of the VMA is lost.
        """
        if event.kind == EventKind.SNAP_VMA:
            self._compare(event, state, known)
        elif event.kind == EventKind.SNAP_MM:
            self._rest(event, state, known)

    def leave(self, mm: int) -> None:
        """Drop what was counted of an address space that has ended meanwhile."""
        self._looks.pop(mm, None)

    def begin_anew(self) -> None:
        """Drop the looks that were going on when rows begin to be missing."""
        self._looks.clear()

    def pass_by(self, event: Event) -> None:
        """Drop a count of an address space of which the model does not know all.

        The first one is the look that begins a recording, and no audit.
        """
        if event.kind == EventKind.SNAP_VMA:
            self._counts[event.mm].popleft()
            self._unknown += event.mm in self._passed
        else:
            self._passed.add(event.mm)

    def _compare(self, event: Event, state: State, known: bool) -> None:
        count = self._counts[event.mm].popleft()
        look = self._looks.setdefault(event.mm, _Look(since=count.since))
        look.counted.append((count.start, count.end))
        area = state.area(count.start)
        if not known or (area and not area.pages_known):
            self._unknown += 1
            return
        if count.moving:
            self._moving += 1
            return
        self._vmas += 1
        model = pages_by_node(state, self._terms, count.start, count.end)
        self._pages += count.nodes.total()
        if model != count.nodes:
            self._differ(event, count.start, count.end, model, count.nodes)

    def _rest(self, event: Event, state: State, known: bool) -> None:
        look = self._looks.pop(event.mm, _Look(since=event.ts))
        self._done += 1
        if look.moved or not known:
            return
        at = 0
        for start, end in (*sorted(look.counted), (1 << 64, 1 << 64)):
            stray = [
                page
                for pages in (state.pages, state.ram)
                for page in pages.within(at, start)
                if page.event.ts < look.since
            ]
            if stray:
                first = min(page.addr for page in stray)
                last = max(page.addr + page.size for page in stray)
                held = pages_by_node(state, self._terms, first, last)
                self._differ(event, first, last, held, {})
            at = max(at, end)

    def _differ(
        self,
        event: Event,
        start: int,
        end: int,
        model: Mapping[int, int],
        kernel: Mapping[int, int],
    ) -> None:
        self._differences.append(
            Difference(
                pid=event.pid,
                mm=event.mm,
                start=start,
                end=end,
                model=dict(model),
                kernel=dict(kernel),
                seq=event.seq,
            )
        )

    def result(self) -> Audit:
        """Return what it came to; where nobody asked for an audit, to nothing."""
        return Audit(
            looks=self._done,
            vmas=self._vmas,
            pages=self._pages,
            moving=self._moving,
            unknown=self._unknown,
            differences=tuple(self._differences),
        )
