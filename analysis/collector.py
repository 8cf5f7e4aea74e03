"""Every VMA of a recording, from the row that shows it first to its end."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from cdmtrace.analysis.describe import flags_changed
from cdmtrace.analysis.frames import Event, Terms
from cdmtrace.analysis.lanes import Lane, Marker
from cdmtrace.analysis.pages import Census
from cdmtrace.analysis.result import Finding
from cdmtrace.analysis.state import Area, State
from cdmtrace.analysis.timeline import LOOKS, cleared, made, moved, spans
from cdmtrace.analysis.traffic import Space
from cdmtrace.events import Bit, EventKind, Probe

_EVER: Final = 1 << 64


@dataclass(slots=True)
class Vma:
    """A VMA of the recording.

    start, end: as it was last. places: all that it has been, a range for each place to
    which it was moved. first, last: seqs of rows. since: when it was seen first; seen:
    when it was seen to be what it was last; until: when it ended, None if it has not;
    ns. most: base pages of CDM nodes, the most at a time. changes: rows that set its
    policy or show its flags to change. number: in the order in which VMAs appear, which
    is the same each time that a recording is replayed. lane: its life, where that is
    asked for. call: thread and call of the row that showed it first.
    """

    space: Space
    start: int
    end: int
    first: int
    since: int
    seen: int
    number: int = 0
    last: int = _EVER
    most: int = 0
    changes: int = 0
    places: list[tuple[int, int]] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    census: Census = field(default_factory=Census)
    until: int | None = None
    lane: Lane | None = None
    call: tuple[int, int] = (0, 0)

    def holds(self, addr: int) -> bool:
        """Return whether the address is in what it has been."""
        return self.shares(addr, addr + 1) > 0

    def shares(self, start: int, end: int) -> int:
        """Return how many bytes of [start, end) are in what it has been."""
        return max(
            (min(high, end) - max(low, start) for low, high in self.places), default=0
        )

    def extend(self, start: int, end: int) -> None:
        """Note that it has been [start, end)."""
        for at, (low, high) in enumerate(self.places):
            if low <= end and start <= high:
                self.places[at] = min(low, start), max(high, end)
                return
        self.places.append((start, end))

    def absorb(self, other: Vma) -> None:
        """Take in another one, which has been merged with it."""
        for place in other.places:
            self.extend(*place)
        self.first = min(self.first, other.first)
        self.since = min(self.since, other.since)
        self.most = max(self.most, other.most)
        self.changes += other.changes
        if self.lane and other.lane:
            self.lane.absorb(other.lane)

    @property
    def worth(self) -> bool:
        """Whether there is anything to be seen of it."""
        return bool(self.findings or self.most or self.changes)


class Collector:
    """Takes note of every VMA; give take() to replay.check() as a follower.

    ever: every VMA, also those that have been merged into others. stirred: those that
    the last row has made, ended, or changed in more than their pages.
    """

    def __init__(self, terms: Terms, *, apart: int | None = None) -> None:
        """Begin. apart: each VMA gets a lane, and what is closer (ns) is one mark."""
        self._terms, self._apart = terms, apart
        self._marker = None if apart is None else Marker()
        self._gone: list[Vma] = []
        self._live: dict[Space, dict[int, Vma]] = defaultdict(dict)
        self._areas: dict[Space, tuple[Area, ...]] = {}
        # By its start, since when (ns) an area is there of which the VMA has ended.
        self._left: dict[Space, dict[int, int]] = defaultdict(dict)
        self.ever: list[Vma] = []
        self.stirred: list[Vma] = []
        self._merged: set[int] = set()

    @property
    def all(self) -> list[Vma]:
        """Every VMA, but for those that have been merged into others."""
        return [vma for vma in self.ever if id(vma) not in self._merged]

    def live(self, space: Space) -> Mapping[int, Vma]:
        """Return the VMAs that an mm has now, by their starts."""
        return self._live[space]

    def take(self, space: Space, event: Event, before: State, after: State) -> None:
        """Take note of a row, and of its mm before and after it."""
        live = self._live[space]
        known = self._areas.get(space, ())
        self.stirred, self._gone = [], []
        # What is split off keeps its pages, though no row tells of them.
        news: Sequence[Area] = ()
        if known is not after.areas:
            olds, news = _changed(known, after.areas)
            gone = self._reconcile(space, event, known, after, olds, news)
            there = (live.get(area.start) for area in news)
            self.stirred = [*gone, *filter(None, there)]
            self._areas[space] = after.areas
        self._clear(space, event, after)
        self._return(space, event, after)
        if event.mm == space[0]:
            changed = event.kind == EventKind.POLICY and not event.ret
            changed |= flags_changed(event)
            area = after.area(event.start)
            vma = live.get(area.start) if area else None
            if changed and vma and not event.bits & Bit.UNLINKED:
                vma.changes += 1
        touched: list[Area] = []
        if before.pages is not after.pages or self._marker:
            touched = self._touched(event, after)
        for area in {area.start: area for area in (*news, *touched)}.values():
            if vma := live.get(area.start):
                self._show(event, vma, area, after)
        if self._marker and event.kind not in (LOOKS if before.whole else ()):
            vmas = [live[area.start] for area in touched if area.start in live]
            vmas += self._gone
            self._marker.take(event, vmas if event.mm == space[0] else ())
        if event.kind == EventKind.MM_EXIT:
            for vma in live.values():
                vma.last, vma.until = event.seq, event.ts
            self.stirred = list(live.values())
            live.clear()
            self._left.pop(space, None)

    def _clear(self, space: Space, event: Event, after: State) -> None:
        """End what a call has unmapped, or mapped over, and no other row told of.

        The model keeps there what rows inside the call have shown.
        """
        start, end = cleared(event, space)
        if not end:
            return
        end = -(-end // self._terms.page) * self._terms.page
        live = self._live[space]
        for vma in [v for at, v in live.items() if start <= at and v.end <= end]:
            inside = bool(event.call) and vma.call == (event.tid, event.call)
            # What a part was split off for is to be unmapped.
            split_off = inside and event.probe == Probe.SYS_MUNMAP
            if vma.since < event.ts_entry or split_off:
                vma.last, vma.until = event.seq, event.ts
                self._gone.append(live.pop(vma.start))
                self.stirred.append(vma)
                if after.area(vma.start):
                    self._left[space][vma.start] = event.ts

    def _return(self, space: Space, event: Event, after: State) -> None:
        """Begin a VMA where one has ended, if a row tells that there is one again."""
        left = self._left.get(space)
        if not left or event.mm != space[0]:
            return
        for start, since in list(left.items()):
            area = after.area(start)
            if area is None or area.start != start:
                del left[start]
            elif made(event, start) or _about(event, area, since):
                del left[start]
                vma = self._live[space][start] = self._new(space, area, event)
                vma.extend(area.start, area.end)
                self.stirred.append(vma)

    def _show(self, event: Event, vma: Vma, area: Area, after: State) -> None:
        """Note what a VMA is after a row."""
        held = vma.census.on_nodes(after.pages, area.start, area.end)
        pages = {node: size // self._terms.page for node, size in held.items()}
        vma.most = max(vma.most, sum(pages.values()))
        if vma.lane:
            vma.lane.show(event.ts, area, pages, self._terms)

    def _touched(self, event: Event, after: State) -> list[Area]:
        found = {
            area.start: area
            for start, end in spans(event)
            for area in after.overlapping(start, end)
        }
        return list(found.values())

    def _reconcile(
        self,
        space: Space,
        event: Event,
        before: tuple[Area, ...],
        after: State,
        olds: Sequence[Area],
        news: Sequence[Area],
    ) -> list[Vma]:
        """Give each VMA that there is now to what it was before, or was part of.

        olds, news: areas that are not the same as before. Returns VMAs that are gone.
        """
        olds, news = _differing(olds, news)
        live = self._live[space]
        # The record of a VMA is under its start: a merge leaves the greatest part's.
        there = [(area, live.pop(area.start, None)) for area in olds]
        way = moved(event, self._terms)
        for area in news:
            overlaps = [
                (min(area.end, old.end) - max(area.start, old.start), at)
                for at, (old, vma) in enumerate(there)
                if vma and old.start < area.end and area.start < old.end
            ]
            vma = None
            if overlaps:
                at = max(overlaps)[1]
                vma = there[at][1]
                there[at] = (there[at][0], None)
            elif way and area.start <= way[2] < area.end:
                source = next((a for a in before if a.start <= way[0] < a.end), None)
                vma = live.pop(source.start, None) if source else None
                if vma and source:
                    live[source.start] = self._new(space, source, event)
            if vma is None:
                vma = self._new(space, area, event)
            vma.start, vma.end, vma.seen = area.start, area.end, event.ts
            vma.extend(area.start, area.end)
            live[area.start] = vma
            self._left[space].pop(area.start, None)
        gone = [(old, vma) for old, vma in there if vma]
        for old, vma in gone:
            vma.last = event.seq
            # What has merged is one: the life of the one that is left is its own, too.
            whole = after.area(old.start)
            if whole and any(whole is area for area in news):
                live[whole.start].absorb(vma)
                self._merged.add(id(vma))
            else:
                vma.until = event.ts
                self._gone.append(vma)
        return [vma for _, vma in gone]

    def _new(self, space: Space, area: Area, event: Event) -> Vma:
        vma = Vma(
            space=space,
            start=area.start,
            end=area.end,
            first=event.seq,
            since=event.ts,
            seen=event.ts,
            number=len(self.ever),
            lane=None if self._apart is None else Lane(self._apart),
            call=(event.tid, event.call),
        )
        self.ever.append(vma)
        return vma


def _about(event: Event, area: Area, since: int) -> bool:
    """Return whether a row shows that an area is there at a time (ns) after since."""
    if event.kind in (EventKind.CALL, EventKind.CALL_OPEN) or event.ts_entry <= since:
        return False
    return any(low < area.end and area.start < high for low, high in spans(event))


def _changed(
    old: tuple[Area, ...], new: tuple[Area, ...]
) -> tuple[tuple[Area, ...], tuple[Area, ...]]:
    """Return both without those that are the same at either end."""
    first, ends = 0, min(len(old), len(new))
    while first < ends and old[first] is new[first]:
        first += 1
    last = 0
    while last < ends - first and old[-1 - last] is new[-1 - last]:
        last += 1
    return old[first : len(old) - last], new[first : len(new) - last]


def _differing(
    one: Sequence[Area], other: Sequence[Area]
) -> tuple[list[Area], list[Area]]:
    """Return the areas of which the ranges are not the same in both."""
    same = {(a.start, a.end) for a in one} & {(a.start, a.end) for a in other}
    return (
        [area for area in one if (area.start, area.end) not in same],
        [area for area in other if (area.start, area.end) not in same],
    )
