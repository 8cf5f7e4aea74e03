"""The life of one VMA: which rows are about it, and what it was after each.

An address is followed, not a pointer. Whatever VMA holds it is the one that is meant,
also when that is split, has grown or was merged; where mremap() takes it elsewhere, the
address that is followed goes with it. A *generation* is what lies between two times at
which no VMA holds the address: freed, or mapped anew over what was there.
"""

from __future__ import annotations

import bisect
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from cdmtrace import units
from cdmtrace.analysis.book import NAMES, Gaps
from cdmtrace.analysis.frames import FOLLOWED, ROWS, Event, Gap, Terms, Trace
from cdmtrace.analysis.pages import Census
from cdmtrace.analysis.replay import check
from cdmtrace.analysis.result import Finding, Mm, Result
from cdmtrace.analysis.rows import only
from cdmtrace.analysis.rules import Rule
from cdmtrace.analysis.state import Area, State
from cdmtrace.analysis.traffic import Space
from cdmtrace.events import Bit, EventKind, Probe

_NAMES_ONLY: Final = Probe.TASK.name.lower()
"""A probe of which a loss says nothing of any VMA."""

_COUNTS: Final = frozenset({EventKind.SNAP_PAGES, EventKind.SNAP_MM})
"""Rows of a look at an mm that add nothing to what its other rows tell of a VMA."""

LOOKS: Final = frozenset({EventKind.SNAP_VMA, EventKind.SNAP_RANGES})
"""Rows of a look that show a VMA, and of a VMA that is known nothing new."""

_BY_ADDRESS: Final = frozenset(
    {
        EventKind.ALLOC,
        EventKind.MAP,
        EventKind.MIGRATE,
        EventKind.UNMAP,
        EventKind.VMA_FREE,
        EventKind.KSM_PAGE,
        EventKind.NUMA_MOVE,
        EventKind.NUMA_SCAN,
    }
)
"""Rows that are about [addr, addr + size) alone, where they have an addr."""

_OF_RANGES: Final = frozenset(
    {
        Probe.SYS_MBIND,
        Probe.SYS_MADVISE,
        Probe.SYS_MUNMAP,
        Probe.SYS_MREMAP,
        Probe.SYS_MPROTECT,
        Probe.SYS_MLOCK,
        Probe.SYS_SET_HOME_NODE,
    }
)
"""System calls that are about [start, end); of others, rows inside tell what for."""

_DONTUNMAP: Final = 4
"""MREMAP_DONTUNMAP (include/uapi/linux/mman.h)."""

GOES_ON: Final = "is there when the recording ends"
MISSING: Final = "rows are missing from then on"


@dataclass(frozen=True, kw_only=True, slots=True)
class Moment:
    """A row about a VMA, and the VMA after it.

    area: None once it is gone. pages: base pages by node; what nobody told of is not
    in it. known: whether all pages of CDM nodes are.
    """

    event: Event
    area: Area | None
    pages: Mapping[int, int]
    known: bool


@dataclass(slots=True)
class VmaLife:
    """One generation: a VMA from the first row that shows it to the last.

    at: the address that is followed, as it is at the end. places: where it has been.
    began, ended: how, in words. kin: ids of the mms whose losses are its own.
    """

    space: Space
    at: int
    began: str
    kin: frozenset[int]
    ended: str = GOES_ON
    places: set[int] = field(default_factory=set)
    moments: list[Moment] = field(default_factory=list)
    _calls: set[tuple[int, int]] = field(default_factory=set)
    _census: tuple[Census, Census] = field(default_factory=lambda: (Census(), Census()))

    def concerns(self, event: Event, ranges: Iterable[Area], *, whole: bool) -> bool:
        """Return whether a row is about it. ranges: it, before and after the row.

        whole: its mm was known before, so that a look at it tells nothing new.
        """
        if event.kind == EventKind.CALL and (event.tid, event.call) in self._calls:
            return True
        if event.kind == EventKind.MM_EXIT:
            return True
        if event.kind in _COUNTS or (whole and event.kind in LOOKS):
            return False
        if event.kind == EventKind.CALL and event.mm != self.space[0]:
            return False
        return any(
            area.start < end and start < area.end
            for start, end in spans(event)
            for area in ranges
        )

    def add(self, event: Event, state: State, area: Area | None, terms: Terms) -> None:
        """Note a row, after which it is this area, None: gone."""
        if event.call:
            self._calls.add((event.tid, event.call))
        pages: dict[int, int] = {}
        if area:
            of_cdm, of_ram = self._census
            found = of_cdm.on_nodes(state.pages, area.start, area.end)
            pages = {n: found[n] // terms.page for n in terms.nodes if terms.is_cdm(n)}
            if terms.all:
                found = of_ram.on_nodes(state.ram, area.start, area.end)
                pages |= {n: size // terms.page for n, size in found.items() if n >= 0}
        known = area is None or (
            area.pages_known and terms.sees_all(area.start, area.end)
        )
        self.moments.append(Moment(event=event, area=area, pages=pages, known=known))

    def absorb(self, other: VmaLife) -> None:
        """Take in the rows of what was made in order that this be moved into it."""
        rows = [*self.moments, *other.moments]
        self.moments = sorted(rows, key=lambda moment: moment.event.seq)

    def as_of(self, seq: int) -> Area | None:
        """Return what it was when a row had come, None before and after its life.

        The last row of its life still finds it as it was before.
        """
        at = bisect.bisect_right(self.moments, seq, key=lambda one: one.event.seq) - 1
        if at < 0:
            return None
        moment = self.moments[at]
        if at and moment.area is None and moment.event.seq == seq:
            moment = self.moments[at - 1]
        return moment.area

    @property
    def open(self) -> bool:
        """Whether no row tells of its end."""
        return self.ended in (GOES_ON, MISSING)

    @property
    def span(self) -> tuple[int, int]:
        """The lowest and the highest address that it has had."""
        areas = [moment.area for moment in self.moments if moment.area]
        return min(a.start for a in areas), max(a.end for a in areas)


def spans(event: Event) -> list[tuple[int, int]]:
    """Return the ranges of addresses, ends excluded, that a row is about."""
    asked = (event.addr, event.addr + max(event.size, 1))
    if event.kind == EventKind.CALL:
        if event.probe == Probe.SYS_MMAP:
            made = (event.other, event.other + event.size)
            return [made] if event.other and event.ret >= 0 else []
        if event.probe == Probe.SYS_MREMAP and event.other:
            made = (event.other, event.other + event.nodes)
            return [(event.start, event.end), made]
        return [(event.start, event.end)] if event.probe in _OF_RANGES else []
    if event.bits & (Bit.UNLINKED | Bit.VMA_UNREAD):
        return [asked]
    if event.addr and event.kind in _BY_ADDRESS:
        return [asked]
    vma = (event.start, event.end)
    # That of a fork is its parent's, which has the same address.
    return [vma, asked] if event.addr else [vma]


def moved(event: Event, terms: Terms) -> tuple[int, int, int] | None:
    """Return from where (start, bytes) to where a row moves addresses, None: nowhere.

    The system call's own row says so where no probe saw its page tables move.
    """
    if event.kind == EventKind.MOVE:
        return event.addr, event.size, event.other
    if event.kind != EventKind.CALL or event.probe != Probe.SYS_MREMAP:
        return None
    if terms.probes.get("move_page_tables") or event.ret < 0 or not event.other:
        return None
    if event.other == event.addr:
        return None
    size = -(-min(event.size, event.nodes) // terms.page) * terms.page
    return event.addr, size, event.other


def places(trace: Trace, addr: int) -> Mapping[int, set[int]]:
    """Return, by id of an mm, from which addresses one can have come to be this one."""
    moves = [
        (event.mm, *way)
        for event in only(trace.events, {EventKind.MOVE, EventKind.CALL})
        if (way := moved(event, trace.terms))
    ]
    found: dict[int, set[int]] = defaultdict(lambda: {addr})
    for mm, start, size, to in reversed(moves):
        found[mm] |= {start + p - to for p in found[mm] if to <= p < to + size}
    return found


class Tracker:
    """Follows one address in all mms; give take() to replay.check() as a follower."""

    def __init__(self, trace: Trace, addr: int) -> None:
        self._terms, self._addr = trace.terms, addr
        self._places = places(trace, addr)
        self._live: dict[Space, dict[int, VmaLife]] = defaultdict(dict)
        self._kin: dict[Space, frozenset[int]] = {}
        self._latest: dict[int, Space] = {}
        self._left: set[tuple[Space, int]] = set()
        self.all: list[VmaLife] = []

    def take(self, space: Space, event: Event, before: State, after: State) -> None:
        """Take note of a row, and of its mm before and after it."""
        self._latest[space[0]] = space
        if event.kind == EventKind.COPY and event.mm == space[0]:
            parent = self._latest.get(event.other)
            kin = self._kin.get(parent, frozenset()) if parent else frozenset()
            mine = self._kin.get(space, frozenset())
            self._kin[space] = mine | kin | {event.other}
        if event.mm == space[0] and (way := moved(event, self._terms)):
            self._move(space, event, way)
        for life in list(self._live[space].values()):
            self._go_on(life, event, before, after)
        for addr in self._places[space[0]]:
            self._begin(space, addr, event, before, after)

    def _go_on(self, life: VmaLife, event: Event, before: State, after: State) -> None:
        area = after.area(life.at)
        there = [one for one in (before.area(life.at), area) if one]
        if area is not None and _over(life, event):
            # The model keeps what other rows have shown within the call.
            life.add(event, after, None, self._terms)
            mapped = event.probe == Probe.SYS_MMAP
            self._end(life, "mapped over" if mapped else "freed")
            if not mapped:
                self._left.add((life.space, life.at))
        elif area is None:
            life.add(event, after, None, self._terms)
            self._end(life, "freed")
        elif life.concerns(event, there, whole=before.whole):
            gone = event.kind == EventKind.MM_EXIT
            life.add(event, after, None if gone else area, self._terms)
            if gone:
                self._end(life, "its address space has ended")

    def _end(self, life: VmaLife, how: str) -> None:
        life.ended = how
        del self._live[life.space][life.at]

    def _begin(
        self, space: Space, addr: int, event: Event, before: State, after: State
    ) -> None:
        area = after.area(addr)
        if area is None or event.kind == EventKind.MM_EXIT:
            self._left.discard((space, addr))
            return
        if addr in self._live[space]:
            return
        if (space, addr) in self._left:
            # What mremap() has moved away is there until it is unmapped.
            if not made(event, addr):
                return
            self._left.discard((space, addr))
        kin = self._kin.get(space, frozenset()) | {space[0]}
        began = _began(event, known=before.whole)
        life = VmaLife(space=space, at=addr, began=began, kin=kin, places={addr})
        life.add(event, after, area, self._terms)
        self._live[space][addr] = life
        self.all.append(life)

    def _move(self, space: Space, event: Event, way: tuple[int, int, int]) -> None:
        start, size, to = way
        live = self._live[space]
        for addr in [at for at in live if start <= at < start + size]:
            life = live.pop(addr)
            self._left.add((space, addr))
            life.at = addr + to - start
            life.places.add(life.at)
            there = live.pop(life.at, None)
            if there and _same_call(there.moments[0].event, event):
                life.absorb(there)
                self.all.remove(there)
            elif there:
                there.ended = "mapped over"
            live[life.at] = life


def _over(life: VmaLife, event: Event) -> bool:
    """Return whether a call that has returned has unmapped it, or mapped another there.

    Where a probe sees VMAs be freed, that has been told before.
    """
    start, end = cleared(event, life.space)
    return start <= life.at < end and life.moments[0].event.ts < event.ts_entry


def cleared(event: Event, space: Space) -> tuple[int, int]:
    """Return the range of an mm in which a call that has returned has left no VMA, or
    has mapped another; it is empty if the row is no such call.
    """
    ends = event.kind == EventKind.CALL and event.mm == space[0] and event.ret >= 0
    if not (ends and event.probe in (Probe.SYS_MMAP, Probe.SYS_MUNMAP)):
        return 0, 0
    return next(iter(spans(event)), (0, 0))


def made(event: Event, addr: int) -> bool:
    """Return whether a row tells that a VMA is at an address that was left."""
    if event.kind == EventKind.CALL and event.probe == Probe.SYS_MREMAP:
        return bool(event.arg & _DONTUNMAP)
    mapped = event.kind == EventKind.CALL and event.probe == Probe.SYS_MMAP
    if not (mapped or event.kind == EventKind.VMA_NEW):
        return False
    return any(start <= addr < end for start, end in spans(event))


def _same_call(one: Event, other: Event) -> bool:
    return bool(one.call) and (one.tid, one.call) == (other.tid, other.call)


def _began(event: Event, *, known: bool) -> str:
    if event.kind == EventKind.COPY:
        return "copied by fork"
    mapped = event.kind == EventKind.CALL and event.probe == Probe.SYS_MMAP
    if mapped or event.kind == EventKind.VMA_NEW:
        return "mapped"
    if event.kind in LOOKS:
        return "was there when recording began"
    if event.kind == EventKind.CALL and event.probe == Probe.SYS_MREMAP:
        return "left behind by mremap"
    return "seen first" if known else "seen first: it may have been there before"


@dataclass(frozen=True, kw_only=True, slots=True)
class Timeline:
    """What was found of an address in a process: its generations, in order."""

    result: Result
    mms: Mapping[Space, Mm]
    lives: tuple[VmaLife, ...]

    def findings(self, life: VmaLife) -> tuple[Finding, ...]:
        """Return the findings about what the VMA was when they were found."""
        found = []
        for finding in self.result.findings:
            if (finding.mm.id, finding.mm.generation) != life.space:
                continue
            area = life.as_of(finding.seq)
            if area and finding.start < area.end and area.start < finding.end:
                found.append(finding)
        return tuple(found)

    def losses(self, life: VmaLife) -> tuple[Gap, ...]:
        """Return what is missing that may have been about it, the earliest first."""
        trace = self.result.trace
        gaps = Gaps()
        for gap in [*([trace.before] if trace.before else []), *trace.gaps]:
            if gap.probe != _NAMES_ONLY:
                gaps.add(gap)
        first, last = life.moments[0].event.ts, life.moments[-1].event.ts
        return tuple(
            gap
            for gap in sorted(gaps.all, key=lambda gap: gap.since)
            if (not gap.mm or gap.mm in life.kin)
            and (life.open or gap.since <= last)
            and gap.until >= first
            and (len(life.places) > 1 or _meets(life, gap.start, gap.end))
        )


def _meets(life: VmaLife, start: int, end: int) -> bool:
    low, high = life.span
    return low < end and start < high


def follow(
    trace: Trace, pid: int, addr: int, *, profile: str, own: Sequence[Rule] = ()
) -> Timeline:
    """Return what the VMAs at an address of a process were, and all findings.

    pid: 0 where the recording does not tell it. own: rules beside those of this
    version. Raises KeyError for a profile that does not exist.
    """
    tracker = Tracker(trace, addr)
    result = check(trace, profile=profile, follower=tracker.take, own=own, bounds=NAMES)
    mms = {(life.mm.id, life.mm.generation): life.mm for life in result.lives}
    lives = [
        life
        for life in tracker.all
        if addr in life.places and mms[life.space].pid == pid
    ]
    for life in lives:
        began = life.moments[0].event.seq
        if life.ended == GOES_ON and any(seq > began for seq in trace.breaks):
            life.ended = MISSING
    return Timeline(result=result, mms=mms, lives=tuple(lives))


def lost(gap: Gap) -> str:
    """Return a loss in words."""
    if gap.probe == FOLLOWED:
        return "its address space is not followed from then on (record --map-size)"
    what = "all kinds" if gap.probe == ROWS else gap.probe
    rows = units.count(gap.count, f"row of {what}", f"rows of {what}")
    return f"LOST: {rows} ({gap.reason})"


def seconds(ts: int, terms: Terms) -> str:
    """Return a time (ns) as seconds since the recording began."""
    return units.seconds(max(ts - terms.started, 0))
