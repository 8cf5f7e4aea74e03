"""What the model knows of one mm: ranges with flags and policies, pages by address.

Addresses, not pointers, say what a VMA holds, so that split, merge and pointer reuse
are no special cases. Nothing here is changed in place: every function returns a new
state.
"""

from __future__ import annotations

import bisect
import operator
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import msgspec
from msgspec.structs import replace

from cdmtrace.analysis.frames import Event, Terms
from cdmtrace.analysis.pages import PageMap
from cdmtrace.analysis.profiles import Mode
from cdmtrace.events import Mpol, MpolFlag

_START: Final = operator.attrgetter("start")

Mapped = tuple[int, int, bool, bool]
"""What a task has just mapped: address, call, whether on a CDM node, and whether a page
may have been there."""


class Policy(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A VMA's own memory policy: the byte of an event and its nodes."""

    byte: int
    nodes: int

    @classmethod
    def of(cls, byte: int, nodes: int) -> Policy | None:
        """Return it, None if it was not read."""
        return None if byte & 15 == Mpol.UNREAD else cls(byte=byte, nodes=nodes)

    @property
    def shared(self) -> bool:
        """Whether it belongs to a shmem file."""
        return bool(self.byte & MpolFlag.SHARED)

    @property
    def mode(self) -> Mode:
        """Its mode and nodes."""
        return Mode(number=self.byte & 15, nodes=self.nodes)

    def names(self, mask: int) -> bool:
        """Return whether it is none of DEFAULT and LOCAL and meets these nodes."""
        return self.byte & 15 not in (Mpol.DEFAULT, Mpol.LOCAL) and bool(
            self.nodes & mask
        )


class Rise(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """The tag went 0 -> 1 in [start, end).

    event: the row that showed the 1; before: the last row that showed the 0.
    """

    start: int
    end: int
    event: Event
    before: Event | None


class Area(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """[start, end) as it was last seen to be one VMA, and the story of its tag.

    flags, policy: None where not known. seen: the row that showed it last, None
    for a new mapping that nothing has shown yet. seen_ts: when that was. since:
    from when on its pages are known, 0: from the start of the recording; ns.
    set_by: the row that showed the tag's last 0 -> 1; None: it was there before.
    policy_by, justified, ended, cleared: the rows that set its policy, that last
    gave the tag a reason, that took the last reason away, that showed 1 -> 0.
    rise: a 0 -> 1 that has not settled. inherited: the tag came by split, fork or
    mremap and has not settled. over: mbind() tagged it from beside its range.
    born_wrong: the tag never had a reason. standing: "stale", "missing" or "".
    by_driver: its driver's mmap() tagged it. patched: see Facts. due: the row since
    which it has to be tagged, as it has settled; None if it has not to be.
    """

    start: int
    end: int
    flags: int | None
    policy: Policy | None
    seen: Event | None
    seen_ts: int
    since: int
    pages_known: bool = True
    set_by: Event | None = None
    policy_by: Event | None = None
    justified: Event | None = None
    ended: Event | None = None
    cleared: Event | None = None
    rise: Rise | None = None
    inherited: bool = False
    over: bool = False
    born_wrong: bool = False
    excused: bool = False
    standing: str = ""
    by_driver: bool = False
    patched: bool | None = None
    due: Event | None = None

    def tagged(self, terms: Terms) -> bool | None:
        """Return whether it has the tag, None if not known."""
        return None if self.flags is None else bool(self.flags & terms.tag)


class Open(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A system call (or, with call 0, a fault) that has not returned.

    before: the VMAs as rows inside it showed them first. arrived: pages that it
    migrated to CDM nodes. limbo: pages that it unmapped; unlocked: those of them
    that it took without the write lock. alloc: the last page it allocated. told:
    rows of flags that it is about to give to a VMA, and may fail to, each with the
    flags that the VMA had then. failed: rows of policies that it could not set.
    """

    before: tuple[Area, ...] = ()
    arrived: PageMap = msgspec.field(default_factory=PageMap)
    unlocked: PageMap = msgspec.field(default_factory=PageMap)
    limbo: PageMap = msgspec.field(default_factory=PageMap)
    alloc: Event | None = None
    told: tuple[tuple[Event, int | None], ...] = ()
    failed: tuple[Event, ...] = ()


class State(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One mm.

    pages: those of CDM nodes; ram: the others, where the recording tells of them.
    gone: what was unmapped that was not known to be there, for rows that say later
    how it was at an earlier time. last: by tid, what a task has just mapped. whole: its
    pages are known from the start; its life lies within the recording, or it was
    looked at when that began. writes: the last rows that show a change of flags.
    tagging: by tid, the allocation by which a fault that goes on has set a tag, and how
    many it has made. near: whether one of these areas was tagged, found out for those
    that it names, and of no other areas.
    """

    areas: tuple[Area, ...] = ()
    pages: PageMap = msgspec.field(default_factory=PageMap)
    ram: PageMap = msgspec.field(default_factory=PageMap)
    gone: PageMap = msgspec.field(default_factory=PageMap)
    open: Mapping[tuple[int, int], Open] = msgspec.field(default_factory=dict)
    limbo: PageMap = msgspec.field(default_factory=PageMap)
    last: Mapping[int, Mapped] = msgspec.field(default_factory=dict)
    task_policy: Mapping[int, Event] = msgspec.field(default_factory=dict)
    dirty: tuple[int, ...] = ()
    whole: bool = False
    ended: bool = False
    writes: tuple[Event, ...] = ()
    tagging: Mapping[int, tuple[Event, int]] = msgspec.field(default_factory=dict)
    near: tuple[tuple[Area, ...], bool] = ((), False)

    def area(self, addr: int) -> Area | None:
        """Return the area in which the address lies."""
        at = bisect.bisect_right(self.areas, addr, key=_START) - 1
        if at >= 0 and addr < self.areas[at].end:
            return self.areas[at]
        return None

    def overlapping(self, start: int, end: int) -> tuple[Area, ...]:
        """Return the areas that share an address with [start, end)."""
        if start >= end:
            return ()
        first, last = _span(self.areas, start, end)
        return self.areas[first:last]


def _span(areas: Sequence[Area], start: int, end: int) -> tuple[int, int]:
    """Return the slice of areas that overlap [start, end)."""
    first = bisect.bisect_right(areas, start, key=_START)
    if first and areas[first - 1].end > start:
        first -= 1
    last = bisect.bisect_left(areas, end, key=_START)
    return first, max(first, last)


def trim(area: Area, start: int, end: int) -> Area:
    """Return what of the area lies in [start, end)."""
    return replace(area, start=max(area.start, start), end=min(area.end, end))


def put(
    areas: tuple[Area, ...], start: int, end: int, new: Iterable[Area]
) -> tuple[Area, ...]:
    """Return areas with [start, end) cut out and new, which lie in it, put in."""
    if start >= end:
        return areas
    first, last = _span(areas, start, end)
    rest = areas[first:last]
    left = [trim(a, a.start, start) for a in rest if a.start < start]
    right = [trim(a, end, a.end) for a in rest if a.end > end]
    return (*areas[:first], *left, *new, *right, *areas[last:])


def amend(state: State, start: int, end: int, **change: Any) -> State:
    """Change the areas that overlap [start, end), whole."""
    first, last = _span(state.areas, start, end)
    amended = tuple(replace(area, **change) for area in state.areas[first:last])
    return replace(state, areas=(*state.areas[:first], *amended, *state.areas[last:]))


def latest(events: Iterable[Event | None]) -> Event | None:
    """Return the one that was told last, None if there is none."""
    return max((e for e in events if e), key=lambda e: e.seq, default=None)


def dirty(state: State, addr: int) -> State:
    """Have the area of the address judged when the mm has settled."""
    area = state.area(addr)
    key = area.start if area else addr
    return state if key in state.dirty else replace(state, dirty=(*state.dirty, key))


def touch(state: State, event: Event) -> State:
    """Note that the row's call is under way."""
    key = (event.tid, event.call)
    if not event.call or key in state.open:
        return state
    return replace(state, open={**state.open, key: Open()})


def within(state: State, event: Event, **change: Any) -> State:
    """Change what is known of the row's call."""
    key = (event.tid, event.call)
    call = state.open.get(key) or Open()
    changed = replace(call, **change)
    return replace(state, open={**state.open, key: changed})
