"""The reference model: what one mm holds after each event, and what follows.

    step(state, event, terms, profile) -> (state, notes)

is pure: no I/O, no clock, nothing is changed in place. A state belongs to one mm.
It knows *areas* (address ranges that were seen to be one VMA: flags, own policy,
where the tag came from) and *pages* (of CDM nodes, by address). Addresses, not
pointers, say what a VMA holds, so that split, merge and pointer reuse are no
special cases. Notes are what the rules judge; the model itself blames nobody.

Three decisions that the words of the specification leave open:

*Explicit requests supersede each other.* A page that move_pages() put there makes
G hold. A later mbind() of the range is an explicit request, too, and the newer
one: from then on the page counts as a leftover (H). Without this, a kernel whose
tag is just its policy, which the specification calls the simplest right one,
would break G: pages moved in under a policy that named the node stay behind,
asked for, when mbind() takes the policy away.

*What fork copies did not come for the child.* Pages that a fork shares are H in
the child, not G: no request put them into that VMA.

*A page's way is told by whoever returns.* What a system call migrated is known
to be asked for only when the call returns and says which call it was. Until then
nothing in its mm is judged, for it has not settled.
"""

from __future__ import annotations

import bisect
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

from cdmtrace.analysis import names
from cdmtrace.analysis.frames import Event, Terms
from cdmtrace.analysis.pages import Page, PageMap
from cdmtrace.analysis.profiles import (
    Demand,
    Facts,
    Mode,
    Profile,
    Want,
    fault_tags,
    mbind_tags,
)
from cdmtrace.events import Bit, Cause, EventKind, Lock, Mpol, Probe

_MREMAP_DONTUNMAP: Final = 4
_LIMBO: Final = 1024
_GONE: Final = 4096
_BEFORE: Final = "before"
_SNAPSHOT: Final = frozenset(
    {
        EventKind.SNAP_VMA,
        EventKind.SNAP_PAGES,
        EventKind.SNAP_MM,
        EventKind.SNAP_RANGES,
    }
)
_TOP: Final = 1 << 64


@dataclass(frozen=True, kw_only=True, slots=True)
class Policy:
    """A VMA's own memory policy: the byte of an event and its nodes."""

    byte: int
    nodes: int

    @classmethod
    def of(cls, byte: int, nodes: int) -> Policy | None:
        """Return it, None if it was not read."""
        return None if byte & 15 == Mpol.UNREAD else cls(byte=byte, nodes=nodes)

    @property
    def mode(self) -> Mode:
        """Its mode and nodes."""
        return Mode(number=self.byte & 15, nodes=self.nodes)

    def names(self, mask: int) -> bool:
        """Return whether it is none of DEFAULT and LOCAL and meets these nodes."""
        return self.byte & 15 not in (Mpol.DEFAULT, Mpol.LOCAL) and bool(
            self.nodes & mask
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Rise:
    """The tag went 0 -> 1 in [start, end).

    event: the row that showed the 1; before: the last row that showed the 0.
    """

    start: int
    end: int
    event: Event
    before: Event | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Area:
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
    by_driver: its driver's mmap() tagged it. patched: see Facts.
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

    def tagged(self, terms: Terms) -> bool | None:
        """Return whether it has the tag, None if not known."""
        return None if self.flags is None else bool(self.flags & terms.tag)


@dataclass(frozen=True, kw_only=True, slots=True)
class Open:
    """A system call (or, with call 0, a fault) that has not returned.

    before: the VMAs as rows inside it showed them first. arrived: pages that it
    migrated to CDM nodes. limbo: pages that it unmapped; unlocked: those of them
    that it took without the write lock. alloc: the last page it allocated.
    """

    since: int
    before: tuple[Area, ...] = ()
    arrived: PageMap = field(default_factory=PageMap)
    unlocked: PageMap = field(default_factory=PageMap)
    limbo: PageMap = field(default_factory=PageMap)
    alloc: Event | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class State:
    """One mm.

    pages: those of CDM nodes; ram: the others, where the recording tells of them.
    gone: what was unmapped that was not known to be there, for rows that say later
    how it was at an earlier time. last: by tid, what a task has just mapped: address,
    call, and whether on a CDM node. whole: its pages are known from the start; its
    life lies within the recording, or it was looked at when that began.
    """

    areas: tuple[Area, ...] = ()
    pages: PageMap = field(default_factory=PageMap)
    ram: PageMap = field(default_factory=PageMap)
    gone: PageMap = field(default_factory=PageMap)
    open: Mapping[tuple[int, int], Open] = field(default_factory=dict)
    limbo: PageMap = field(default_factory=PageMap)
    last: Mapping[int, tuple[int, int, bool]] = field(default_factory=dict)
    task_policy: Mapping[int, Event] = field(default_factory=dict)
    dirty: tuple[int, ...] = ()
    whole: bool = False
    ended: bool = False

    def area(self, addr: int) -> Area | None:
        """Return the area in which the address lies."""
        at = bisect.bisect_right(self.areas, addr, key=lambda area: area.start) - 1
        if at >= 0 and addr < self.areas[at].end:
            return self.areas[at]
        return None

    def overlapping(self, start: int, end: int) -> tuple[Area, ...]:
        """Return the areas that share an address with [start, end)."""
        first, last = _span(self.areas, start, end)
        return self.areas[first:last]


# --- what the rules get to see ------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True)
class FlagsChanged:
    """vm_flags of an attached VMA differ between entry and return of a row.

    explained: an overlapping row has shown the same change before.
    """

    event: Event
    explained: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Arrived:
    """A page of a CDM node was mapped.

    named: the VMA's own policy names its node; None: not known. asked: an explicit
    request named the node; None: not known. here: it was allocated for this VMA.
    """

    event: Event
    page: Page
    named: bool | None
    asked: bool | None
    here: bool
    alloc: Event | None
    task_policy: Event | None
    call: Event | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Left:
    """A page of a CDM node is no longer mapped; page: None if it was not known."""

    event: Event
    page: Page | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Settled:
    """A VMA has settled: nothing that has to do with it is under way.

    area: as it was found, its rise and standing those before the judgement.
    standing: the new one. page: the page that the demand leans on, or the one
    that is there without a tag. event: the row at which it settled.
    """

    event: Event
    area: Area
    facts: Facts
    demand: Demand
    standing: str
    page: Page | None
    since: int


@dataclass(frozen=True, kw_only=True, slots=True)
class OverTag:
    """Tagged after mbind(), untagged before, and not in its range."""

    area: Area
    before: Area


@dataclass(frozen=True, kw_only=True, slots=True)
class MbindEnded:
    """An mbind() that named CDM nodes returned; over: what it tagged beside."""

    event: Event
    over: tuple[OverTag, ...]


Note = FlagsChanged | Arrived | Left | Settled | MbindEnded
Notes = tuple[Note, ...]


# --- ranges -------------------------------------------------------------------


def _span(areas: Sequence[Area], start: int, end: int) -> tuple[int, int]:
    """Return the slice of areas that overlap [start, end)."""
    first = bisect.bisect_right(areas, start, key=lambda area: area.start)
    if first and areas[first - 1].end > start:
        first -= 1
    last = bisect.bisect_left(areas, end, key=lambda area: area.start)
    return first, max(first, last)


def _trim(area: Area, start: int, end: int) -> Area:
    return replace(area, start=max(area.start, start), end=min(area.end, end))


def _put(
    areas: tuple[Area, ...], start: int, end: int, new: Iterable[Area]
) -> tuple[Area, ...]:
    """Return areas with [start, end) cut out and new, which lie in it, put in."""
    first, last = _span(areas, start, end)
    rest = areas[first:last]
    left = [_trim(a, a.start, start) for a in rest[:1] if a.start < start]
    right = [_trim(a, end, a.end) for a in rest[-1:] if a.end > end]
    return (*areas[:first], *left, *new, *right, *areas[last:])


def _amend(state: State, start: int, end: int, **change: Any) -> State:
    """Change the areas that overlap [start, end), whole."""
    first, last = _span(state.areas, start, end)
    amended = tuple(replace(area, **change) for area in state.areas[first:last])
    return replace(state, areas=(*state.areas[:first], *amended, *state.areas[last:]))


def _latest(events: Iterable[Event | None]) -> Event | None:
    return max((e for e in events if e), key=lambda e: e.seq, default=None)


# --- seeing a VMA -------------------------------------------------------------


def _observe(
    state: State,
    event: Event,
    terms: Terms,
    *,
    start: int,
    end: int,
    flags: int | None,
    policy: Policy | None,
    ts: int,
) -> State:
    """[start, end) is one VMA with these flags and this policy at ts."""
    if start >= end:
        return state
    old = [_trim(area, start, end) for area in state.overlapping(start, end)]
    if len(old) == 1 and (old[0].start, old[0].end) == (start, end):
        same = state.area(start)
        assert same is not None
        if (same.start, same.end, same.flags, same.policy) == (
            start,
            end,
            flags,
            policy,
        ):
            seen = replace(same, seen=event, seen_ts=ts)
            return replace(state, areas=_put(state.areas, start, end, [seen]))
    tag = None if flags is None else bool(flags & terms.tag)
    had = [area for area in old if area.tagged(terms)]
    lacked = [area for area in old if area.tagged(terms) is False]
    names = policy.names(terms.cdm) if policy else None

    rise = next((area.rise for area in had if area.rise), None)
    set_by = _latest(area.set_by for area in had)
    if tag and lacked:
        rise = Rise(
            start=lacked[0].start,
            end=lacked[-1].end,
            event=event,
            before=lacked[0].seen,
        )
        set_by = event
    if not tag:
        rise = set_by = None
    # A VMA of which nothing was known: pages from before the recording can be in
    # it only where there was a reason for them.
    known = all(area.pages_known for area in old)
    if not old:
        known = state.whole or not (tag or names)
    new = Area(
        start=start,
        end=end,
        flags=flags,
        policy=policy,
        seen=event,
        seen_ts=ts,
        since=min((area.since for area in old), default=0),
        pages_known=known,
        set_by=set_by,
        policy_by=_latest(area.policy_by for area in old),
        justified=_latest(area.justified for area in old),
        ended=_latest(area.ended for area in old),
        cleared=(
            event if had and tag is False else _latest(area.cleared for area in old)
        ),
        rise=rise,
        inherited=bool(tag) and not lacked and any(area.inherited for area in had),
        over=bool(tag and had) and not lacked and all(area.over for area in had),
        born_wrong=bool(tag and had)
        and not lacked
        and all(area.born_wrong for area in had),
        excused=any(area.excused for area in old),
        standing=next((area.standing for area in old if area.standing), ""),
        by_driver=any(area.by_driver for area in old)
        or (
            all(area.seen is None for area in old)
            and _driver_tagged(event, bool(tag), policy)
        ),
        patched=_patched(old, tag),
    )
    fresh = (
        len(old) != 1
        or (old[0].start, old[0].end, old[0].policy) != (start, end, policy)
        or old[0].tagged(terms) is not tag
    )
    return replace(
        state,
        areas=_put(state.areas, start, end, [new]),
        dirty=(*state.dirty, start) if fresh else state.dirty,
    )


def _driver_tagged(event: Event, tag: bool, policy: Policy | None) -> bool:
    """Return whether the tag of a VMA that a row is the first to show is a driver's.

    What has a tag and no policy that could have brought it has it from its mmap():
    rows of mbind() and of faults show the VMA before they change it. From before the
    recording it may be a leftover, too; the doubt is in the kernel's favour.
    """
    plain = policy is not None and policy.byte & 15 == Mpol.DEFAULT
    return tag and plain and bool(event.bits & Bit.FILE)


def _patched(old: Sequence[Area], tag: bool | None) -> bool | None:
    known = [area.patched for area in old if area.patched is not None]
    return any(known) if known else tag


def _observe_row(state: State, event: Event, terms: Terms) -> State:
    """The VMA as a row shows it at its return."""
    return _observe(
        state,
        event,
        terms,
        start=event.start,
        end=event.end,
        flags=event.flags_after,
        policy=Policy.of(event.policy, event.nodes),
        ts=event.ts,
    )


def _observe_entry(
    state: State,
    event: Event,
    terms: Terms,
    start: int,
    end: int,
    policy: Policy | None,
) -> State:
    """The VMA as a row shows it at its entry, unless a later sight is known."""
    if any(a.seen_ts >= event.ts_entry for a in state.overlapping(start, end)):
        return state
    return _observe(
        state,
        event,
        terms,
        start=start,
        end=end,
        flags=event.flags_before,
        policy=policy,
        ts=event.ts_entry,
    )


def _forget(state: State, start: int, end: int, before: int) -> State:
    """Nothing that was known of [start, end) before this time (ns) holds."""
    keep = [
        _trim(area, start, end)
        for area in state.overlapping(start, end)
        if area.seen_ts >= before
    ]
    return replace(
        state,
        areas=_put(state.areas, start, end, keep),
        pages=_older_dropped(state.pages, start, end, before),
        ram=_older_dropped(state.ram, start, end, before),
    )


def _older_dropped(pages: PageMap, start: int, end: int, before: int) -> PageMap:
    for page in list(pages.within(start, end)):
        if page.event.ts < before:
            pages = pages.drop(page)
    return pages


# --- calls in flight ----------------------------------------------------------


def _touch(state: State, event: Event) -> State:
    """Note that the row's call is under way."""
    key = (event.tid, event.call)
    if not event.call or key in state.open:
        return state
    return replace(state, open={**state.open, key: Open(since=event.ts_entry)})


def _within(state: State, event: Event, **change: Any) -> State:
    """Change what is known of the row's call."""
    key = (event.tid, event.call)
    call = state.open.get(key) or Open(since=event.ts_entry)
    changed = replace(call, **change)
    return replace(state, open={**state.open, key: changed})


def _close(
    state: State, key: tuple[int, int], event: Event | None, terms: Terms
) -> tuple[State, Notes]:
    """A call has returned: event is its row, None if that was not recorded."""
    call = state.open.get(key)
    if call is None:
        return state, ()
    state = replace(state, open={k: v for k, v in state.open.items() if k != key})
    notes: list[Note] = []
    way = names.BY_CALL.get(Probe(event.probe)) if event and _is_probe(event) else None
    for moved in call.arrived.within(0, _TOP):
        addr, row = moved.addr, moved.event
        page = state.pages.get(addr)
        if page is None or page.event is not row:
            continue
        if way:
            asked = way != "mbind" and _asks(event, page.node)
            page = replace(page, how=way, explicit=asked)
            state = replace(state, pages=state.pages.put(page))
        state = _dirty(state, addr)
        area = state.area(addr)
        policy = Policy.of(row.policy, row.nodes) or (area.policy if area else None)
        notes.append(
            Arrived(
                event=row,
                page=page,
                named=policy.names(1 << page.node) if policy else None,
                asked=page.explicit or (None if event is None else way is not None),
                here=True,
                alloc=None,
                task_policy=None,
                call=event,
            )
        )
    if way is None:
        for taken in call.unlocked.within(0, _TOP):
            area = state.area(taken.addr)
            if area and not area.excused:
                state = _amend(state, area.start, area.end, excused=True)
    if event is not None and event.probe == Probe.SYS_MBIND:
        state, ended = _close_mbind(state, call, event, terms)
        notes += ended
    return state, tuple(notes)


def _is_probe(event: Event) -> bool:
    return event.probe in set(Probe)


def _asks(event: Event | None, node: int) -> bool:
    """Return whether the call asked for pages on the node. move_pages(2) names one
    node for each page, which no row can hold: what it moved was asked for."""
    if event is None or event.probe != Probe.SYS_MIGRATE_PAGES:
        return True
    return bool(event.other >> node & 1)


def _close_mbind(
    state: State, call: Open, event: Event, terms: Terms
) -> tuple[State, Notes]:
    """What lies beside the range of an mbind() and has the tag since."""
    asked = Policy.of(event.other_policy, event.other)
    if asked is None or not asked.names(terms.cdm) or not call.before:
        return state, ()
    over: list[OverTag] = []
    for before in call.before:
        if before.tagged(terms) is not False:
            continue
        for start, end in (
            (before.start, min(before.end, event.start)),
            (max(before.start, event.end), before.end),
        ):
            if start >= end:
                continue
            for area in state.overlapping(start, end):
                # Where it has a reason of its own, the tag had to be there.
                if area.tagged(terms) and not _reason(state, area, terms):
                    over.append(OverTag(area=area, before=before))
                    state = _amend(state, area.start, area.end, over=True)
    return state, (MbindEnded(event=event, over=tuple(over)),)


def _reason(state: State, area: Area, terms: Terms) -> bool:
    """Return whether P or G holds, or the policy is not known."""
    if area.policy is None or area.policy.names(terms.cdm):
        return True
    return state.pages.any_explicit(area.start, area.end)


# --- the kinds ----------------------------------------------------------------


def _dirty(state: State, addr: int) -> State:
    """Have the area of the address judged when the mm has settled."""
    area = state.area(addr)
    key = area.start if area else addr
    return state if key in state.dirty else replace(state, dirty=(*state.dirty, key))


def _on_seen(state: State, event: Event, terms: Terms) -> tuple[State, Notes]:
    state = _observe_row(state, event, terms)
    area = state.area(event.start)
    if event.call and area:
        call = state.open[event.tid, event.call]
        state = _within(state, event, before=(*call.before, area))
    return state, ()


def _on_policy(state: State, event: Event, terms: Terms) -> tuple[State, Notes]:
    start, end = event.addr, event.addr + event.size
    if event.bits & Bit.VMA_UNREAD:
        # Which VMA holds what is not known: neither flags nor policy are.
        return _dirty(
            _amend(state, start, end, flags=None, policy=None, rise=None), start
        ), ()
    before = Policy.of(event.other_policy, event.other)
    state = _observe_entry(state, event, terms, start, end, before)
    known = state.overlapping(start, end)
    explained = any(
        a.flags == event.flags_after and a.seen_ts > event.ts_entry
        for a in known
        if a.seen is None or a.seen.kind != EventKind.VMA_SEEN
    )
    named = any(a.policy and a.policy.names(terms.cdm) for a in known)
    state = _observe_row(state, event, terms)
    now = Policy.of(event.policy, event.nodes)
    change: dict[str, object] = {"policy_by": event}
    if event.lock_exit & 15 == Lock.WRITE_SELF:
        change["excused"] = False
    if named and now and not now.names(terms.cdm):
        # mbind() split it in order to do this: the tag is stale, not born stale.
        change |= {"ended": event, "inherited": False}
    state = _amend(state, event.start, event.end, **change)
    if now and mbind_tags(now.mode, terms.cdm):
        state = _amend(state, event.start, event.end, patched=True)
        call = state.open.get((event.tid, event.call))
        for area in call.before if call else ():
            if area.start < end and start < area.end:
                state = _amend(state, area.start, area.end, patched=True)
    if event.ret == 0:
        superseded = [
            replace(page, explicit=False)
            for page in state.pages.within(start, end)
            if page.explicit
        ]
        state = replace(state, pages=state.pages.put_all(superseded))
    return _dirty(state, start), _flags_changed(event, explained)


def _flags_changed(event: Event, explained: bool) -> Notes:
    if event.flags_before == event.flags_after:
        return ()
    return (FlagsChanged(event=event, explained=explained),)


def _on_split(state: State, event: Event, terms: Terms) -> tuple[State, Notes]:
    if not event.start < event.addr < event.end:
        return state, ()
    state = _observe_row(state, event, terms)
    whole = state.area(event.start)
    assert whole is not None
    inherited = whole.inherited or (bool(whole.tagged(terms)) and whole.rise is None)
    halves = [
        replace(whole, end=event.addr, inherited=inherited),
        replace(whole, start=event.addr, inherited=inherited),
    ]
    if event.lock_exit & 15 == Lock.WRITE_SELF:
        halves = [replace(half, excused=False) for half in halves]
    state = replace(
        state,
        areas=_put(state.areas, event.start, event.end, halves),
        pages=_cut(state.pages, event.addr, terms),
        ram=_cut(state.ram, event.addr, terms),
        dirty=(*state.dirty, event.start, event.addr),
    )
    return state, ()


def _on_alloc(state: State, event: Event, terms: Terms) -> tuple[State, Notes]:
    own = Policy.of(event.policy, event.nodes)
    state = _observe_entry(state, event, terms, event.start, event.end, own)
    area = state.area(event.addr)
    explained = bool(
        area
        and area.flags == event.flags_after
        and area.seen_ts > event.ts_entry
        and area.seen is not event
    )
    if not event.bits & Bit.VMA_UNREAD:
        state = _observe_row(state, event, terms)
    deciding = own
    if own is not None and own.byte & 15 == Mpol.DEFAULT:
        deciding = Policy.of(event.other_policy, event.other) or own
    if deciding and fault_tags(
        deciding.mode, event.node, terms.cdm, huge=event.size > terms.page
    ):
        state = _amend(state, event.start, event.end, patched=True)
    state = _within(state, event, alloc=event)
    return _dirty(state, event.addr), _flags_changed(event, explained)


def _on_flags(state: State, event: Event, terms: Terms) -> tuple[State, Notes]:
    own = Policy.of(event.policy, event.nodes)
    state = _observe_entry(state, event, terms, event.start, event.end, own)
    state = _observe_row(state, event, terms)
    return _dirty(state, event.start), _flags_changed(event, False)


def _how_mapped(event: Event, terms: Terms) -> str:
    """By what a page came that was mapped outside a migration."""
    if event.bits & Bit.KSM:
        return "ksm"
    told = names.BY_FAULT.get(Cause(event.cause)) if event.cause in set(Cause) else None
    if told:
        return told
    if event.cause == Cause.UNKNOWN:
        # Nothing but khugepaged maps huge pages into an mm of somebody else.
        foreign = event.bits & Bit.FOREIGN and event.size > terms.page
        return "khugepaged" if foreign else "unknown"
    for policy, nodes in (
        (event.policy, event.nodes),
        (event.other_policy, event.other),
    ):
        if policy & 15 in (Mpol.INTERLEAVE, Mpol.WEIGHTED_INTERLEAVE) and nodes:
            return "interleave"
        if policy & 15 not in (Mpol.DEFAULT, Mpol.UNREAD):
            break
    return "thp" if event.size > terms.page else "fault"


def _on_map(state: State, event: Event, terms: Terms) -> tuple[State, Notes]:
    call = state.open.get((event.tid, event.call))
    alloc = call.alloc if call else None
    if alloc and not alloc.addr <= event.addr < alloc.addr + alloc.size:
        alloc = None
    state = _observe_row(state, event, terms)
    pages = state.pages
    there = pages.covering(event.addr)
    if there and there.size > event.size:
        # Its entry is split into entries of its parts. Newer kernels tell of them,
        # one row each; what was allocated for this place is none of them.
        new = there.node != event.node or (alloc and alloc.size == event.size)
        pages = pages.fragment(there, terms.page, part=not new)
        there = pages.get(event.addr)
    if there and there.part and there.node == event.node:
        return replace(state, pages=pages.put(replace(there, part=False))), ()
    driver = event.cause == Cause.DRIVER
    page = Page(
        addr=event.addr,
        size=event.size,
        node=event.node,
        how=_how_mapped(event, terms),
        explicit=driver,
        event=event,
    )
    own = Policy.of(event.policy, event.nodes)
    if page.size > terms.page:
        # khugepaged has taken small pages out, and some it may have lost.
        pages = pages.drop_within(page.addr, page.addr + page.size)
    state = _dirty(replace(state, pages=pages.put(page)), event.addr)
    note = Arrived(
        event=event,
        page=page,
        named=own.names(1 << page.node) if own else None,
        asked=driver,
        here=not event.bits & Bit.KSM
        and (alloc is not None or not event.bits & Bit.FILE),
        alloc=alloc,
        task_policy=state.task_policy.get(event.tid),
        call=None,
    )
    return state, (note,)


def _on_migrate(state: State, event: Event, terms: Terms) -> tuple[State, Notes]:
    state = _observe_row(state, event, terms)
    call = state.open.get((event.tid, event.call)) if event.call else None
    limbo = call.limbo if call else state.limbo
    back = limbo.get(event.addr)
    if back is not None and back.node == event.node and back.size == event.size:
        # It is where it was: the migration failed, or it moved within its node.
        return _dirty(replace(state, pages=state.pages.put(back)), event.addr), ()
    cause = Cause(event.cause) if event.cause in set(Cause) else Cause.UNKNOWN
    how = names.BY_MIGRATION.get(cause) or names.BY_REASON.get(event.arg, "migration")
    page = Page(
        addr=event.addr,
        size=event.size,
        node=event.node,
        how=how,
        explicit=event.cause == Cause.DRIVER,
        event=event,
    )
    state = _dirty(replace(state, pages=state.pages.put(page)), event.addr)
    if call is not None:
        return _within(state, event, arrived=call.arrived.put(page)), ()
    own = Policy.of(event.policy, event.nodes)
    known = how != "migration" and event.src_node != event.node
    return state, (
        Arrived(
            event=event,
            page=page,
            named=own.names(1 << page.node) if own else None,
            asked=page.explicit if known or page.explicit else None,
            here=True,
            alloc=None,
            task_policy=None,
            call=None,
        ),
    )


def _on_unmap(
    state: State, event: Event, terms: Terms, replaced: bool
) -> tuple[State, Notes]:
    state = _observe_row(state, event, terms)
    gone = Left(event=event, page=None)
    if event.bits & Bit.KSM and not event.addr:
        # A KSM page has many addresses: which of them it was is not known.
        return _amend(state, event.start, event.end, pages_known=False), (gone,)
    page = state.pages.covering(event.addr)
    if page is None or not state.whole:
        state = _note_gone(state, event)
    if page is None:
        # Of a whole mm all pages are known, but what a fork or mremap brings is told
        # late; if it was missed, an audit must go on saying so.
        end = event.addr + 1
        if not state.whole:
            state = _amend(state, event.addr, end, pages_known=False)
        return _amend(state, event.addr, end, excused=True), (gone,)
    if replaced and page.size == event.size:
        # Copy on write maps the new page first: this was the old one.
        return state, (gone,)
    if page.size < event.size:
        # A huge page's own entry is gone; the entries of its parts are there, but
        # for what looked like small pages when the recording began.
        return replace(state, pages=_before_dropped(state.pages, event)), ()
    if page.size > event.size:
        state = replace(state, pages=state.pages.fragment(page, terms.page))
        page = state.pages.get(event.addr)
        assert page is not None
    state = replace(state, pages=state.pages.drop(page))
    area = state.area(event.addr)
    if area and not state.pages.any(area.start, area.end):
        state = _amend(state, area.start, area.end, ended=event)
    if event.call:
        call = state.open[event.tid, event.call]
        unlocked = call.unlocked
        if event.lock_exit & 15 != Lock.WRITE_SELF:
            unlocked = unlocked.put(page)
        state = _within(state, event, limbo=call.limbo.put(page), unlocked=unlocked)
    else:
        limbo = state.limbo if state.limbo.count < _LIMBO else PageMap()
        state = replace(state, limbo=limbo.put(page))
        state = _amend(state, event.addr, event.addr + 1, excused=True)
    return _dirty(state, event.addr), (Left(event=event, page=page),)


def _on_zap(state: State, event: Event, terms: Terms) -> tuple[State, Notes]:
    del terms
    notes: list[Note] = []
    pages = state.pages
    for page in list(pages.within(event.addr, event.addr + event.size)):
        pages = pages.drop(page)
        notes.append(Left(event=event, page=page))
    state = replace(state, pages=pages)
    if event.lock_exit & 15 != Lock.WRITE_SELF:
        state = _amend(state, event.addr, event.addr + event.size, excused=True)
    return _dirty(state, event.addr), tuple(notes)


def _on_copy(
    state: State, event: Event, terms: Terms, parent: State | None
) -> tuple[State, Notes]:
    """Fork: this VMA is a copy of its parent's, and shares the parent's pages."""
    parent = parent or State()
    model = parent.area(event.start)
    tag = bool(event.flags_after & terms.tag)
    policy = Policy.of(event.policy, event.nodes)
    if model is None:
        names = policy.names(terms.cdm) if policy else None
        model = Area(
            start=event.start,
            end=event.end,
            flags=event.flags_after,
            policy=policy,
            seen=event,
            seen_ts=event.ts,
            since=0,
            pages_known=parent.whole or not (tag or names),
            by_driver=_driver_tagged(event, tag, policy),
        )
    area = replace(
        model,
        start=event.start,
        end=event.end,
        flags=event.flags_after,
        policy=policy,
        seen=event,
        seen_ts=event.ts,
        rise=None,
        inherited=tag,
        over=False,
        excused=False,
        patched=tag if model.patched is None else model.patched,
    )
    end = event.addr + event.size
    copies = [
        replace(page, how="fork", explicit=False, event=event)
        for page in parent.pages.within(event.addr, end)
        if _lasts(state, page.addr, event.ts_entry)
    ]
    ram = [
        page
        for page in parent.ram.within(event.addr, end)
        if _lasts(state, page.addr, event.ts_entry)
    ]
    state = replace(
        state,
        areas=_put(state.areas, event.start, event.end, [area]),
        pages=state.pages.put_all(copies),
        ram=state.ram.put_all(ram),
        whole=parent.whole,
    )
    return _dirty(state, event.start), ()


def _on_move(
    state: State, event: Event, terms: Terms, start: int, size: int, to: int
) -> State:
    """[start, start + size) is at address to now, pages and all."""
    shift = to - start
    areas = [
        replace(
            _trim(area, start, start + size),
            start=max(area.start, start) + shift,
            end=min(area.end, start + size) + shift,
            inherited=bool(area.tagged(terms)),
            seen_ts=event.ts,
        )
        for area in state.overlapping(start, start + size)
    ]
    state = replace(
        state,
        pages=_shifted(state, state.pages, event, terms, start, size, shift),
        ram=_shifted(state, state.ram, event, terms, start, size, shift),
        areas=_put(state.areas, to, to + size, areas),
    )
    return replace(state, dirty=(*state.dirty, *(area.start for area in areas), start))


def _shifted(
    state: State,
    pages: PageMap,
    event: Event,
    terms: Terms,
    start: int,
    size: int,
    shift: int,
) -> PageMap:
    """Return pages with those of [start, start + size) at an address + shift."""
    pages = _cut(_cut(pages, start, terms), start + size, terms)
    for page in list(pages.within(start, start + size)):
        if shift % page.size:
            # At no other place than one aligned to its size can it stay whole.
            pages = pages.fragment(page, terms.page)
    moved = [
        replace(page, addr=page.addr + shift)
        for page in pages.within(start, start + size)
        if _lasts(state, page.addr + shift, event.ts_entry)
    ]
    return pages.drop_within(start, start + size).put_all(moved)


def _cut(pages: PageMap, at: int, terms: Terms) -> PageMap:
    """Return pages with no huge one across an address; no row tells of its split."""
    page = pages.covering(at)
    if page and page.addr < at:
        return pages.fragment(page, terms.page)
    return pages


def _lasts(state: State, addr: int, since: int) -> bool:
    """Return whether what is told to be at addr since a time (ns) still is.

    A fork, an mremap and the look at what was there before take their time, and are
    told of when they are done. What came and went at addr meanwhile is newer.
    """
    if state.pages.get(addr) or state.ram.get(addr):
        return False
    gone = state.gone.covering(addr)
    return gone is None or gone.event.ts < since


def _note_gone(state: State, event: Event) -> State:
    gone = state.gone if state.gone.count < _GONE else PageMap()
    page = Page(
        addr=event.addr,
        size=event.size,
        node=event.src_node,
        how="unknown",
        explicit=False,
        event=event,
    )
    return replace(state, gone=gone.put(page))


def _before_dropped(pages: PageMap, event: Event) -> PageMap:
    for page in list(pages.within(event.addr, event.addr + event.size)):
        if page.how == _BEFORE:
            pages = pages.drop(page)
    return pages


def _on_ram(state: State, event: Event, terms: Terms, replaced: bool) -> State:
    """A page that is on no CDM node: the account needs it, and no rule does."""
    if event.kind == EventKind.UNMAP:
        if not state.ram.covering(event.addr) or not state.whole:
            state = _note_gone(state, event)
        if replaced:
            return state
        return replace(state, ram=_unmapped(state.ram, event, terms.page))
    if event.kind == EventKind.MIGRATE:
        there = state.pages.get(event.addr)
        if there:
            # It left while a fork or an mremap that brought it here went on.
            state = replace(state, pages=state.pages.drop(there))
    if event.kind != EventKind.ALLOC and terms.all:
        page = Page(
            addr=event.addr,
            size=event.size,
            node=event.node,
            how="ram",
            explicit=False,
            event=event,
        )
        state = replace(state, ram=_mapped(state.ram, page, terms.page))
    return state


def _mapped(pages: PageMap, page: Page, unit: int) -> PageMap:
    if page.size > unit:
        pages = pages.drop_within(page.addr, page.addr + page.size)
    else:
        there = pages.covering(page.addr)
        if there and there.size > page.size:
            pages = pages.fragment(there, unit)
    return pages.put(page)


def _unmapped(pages: PageMap, event: Event, unit: int) -> PageMap:
    page = pages.covering(event.addr)
    if page is None:
        return pages
    if page.size < event.size:
        return _before_dropped(pages, event)
    if page.size > event.size:
        pages = pages.fragment(page, unit)
        page = pages.get(event.addr)
        assert page is not None
    return pages.drop(page)


# --- what was there before ----------------------------------------------------


def _on_snapshot(state: State, event: Event, terms: Terms) -> State:
    """What was there before: of an mm that is known whole, nothing is taken."""
    if state.whole:
        return state
    if event.kind == EventKind.SNAP_VMA:
        return replace(_observe_row(state, event, terms), dirty=state.dirty)
    if event.kind != EventKind.SNAP_RANGES:
        return state
    # Pages as they were at some time between ts_entry and ts.
    pairs = struct.iter_unpack("=QQ", event.payload or b"")
    pages = [
        Page(
            addr=addr,
            size=terms.page,
            node=event.node,
            how=_BEFORE,
            explicit=False,
            event=event,
        )
        for start, size in pairs
        for addr in range(start, start + size, terms.page)
        if _lasts(state, addr, event.ts_entry)
    ]
    if terms.is_cdm(event.node):
        return replace(state, pages=state.pages.put_all(pages))
    return replace(state, ram=state.ram.put_all(pages))


def looked_at(
    state: State, event: Event, terms: Terms, profile: Profile
) -> tuple[State, Notes]:
    """Every process has been looked at: this is all that was there before."""
    state = replace(
        state,
        whole=True,
        gone=PageMap(),
        areas=tuple(replace(area, pages_known=True) for area in state.areas),
        dirty=tuple(area.start for area in state.areas),
    )
    return _settle_if(state, event, terms, profile)


def _on_call(state: State, event: Event, terms: Terms) -> State:
    """What a system call that succeeded does to the address space."""
    if event.ret < 0:
        return state
    if event.probe == Probe.SYS_SET_MEMPOLICY:
        return replace(state, task_policy={**state.task_policy, event.tid: event})
    if event.probe == Probe.SYS_MUNMAP:
        return _forget(state, event.start, event.end, event.ts_entry)
    if event.probe == Probe.SYS_MMAP and event.other:
        start = event.other
        end = start + _round(event.size, terms)
        state = _forget(state, start, end, event.ts_entry)
        at = start
        for area in (*state.overlapping(start, end), None):
            until = area.start if area else end
            if at < until:
                new = Area(
                    start=at,
                    end=until,
                    flags=None,
                    policy=None,
                    seen=None,
                    seen_ts=event.ts_entry,
                    since=event.ts_entry,
                )
                state = replace(state, areas=_put(state.areas, at, until, [new]))
            at = area.end if area else end
        return state
    if event.probe == Probe.SYS_MREMAP and event.other:
        old, new_size = _round(event.size, terms), _round(event.nodes, terms)
        if event.other != event.addr:
            if not terms.probes.get("move_page_tables"):
                state = _on_move(
                    state, event, terms, event.addr, min(old, new_size), event.other
                )
            if not event.arg & _MREMAP_DONTUNMAP:
                state = _forget(state, event.addr, event.addr + old, event.ts + 1)
        elif new_size < old:
            state = _forget(
                state, event.addr + new_size, event.addr + old, event.ts_entry
            )
        return state
    if event.probe == Probe.SYS_MPROTECT and event.start < event.end:
        return _amend(state, event.start, event.end, excused=False)
    return state


def _round(size: int, terms: Terms) -> int:
    return (size + terms.page - 1) // terms.page * terms.page


# --- settling -----------------------------------------------------------------


def facts_of(state: State, area: Area, terms: Terms) -> Facts:
    """Return P, G, H and the rest for an area whose flags are known."""
    return Facts(
        tag=bool(area.tagged(terms)),
        policy_names=area.policy.names(terms.cdm) if area.policy else None,
        asked=area.by_driver or state.pages.any_explicit(area.start, area.end),
        held=state.pages.any(area.start, area.end),
        came=state.pages.any_came(area.start, area.end),
        pages_known=area.pages_known,
        excused=area.excused,
        patched=area.patched,
        by_driver=area.by_driver,
    )


def _settle(
    state: State, event: Event, terms: Terms, profile: Profile
) -> tuple[State, Notes]:
    """Judge what has changed since the mm was settled last."""
    notes: list[Note] = []
    done: set[int] = set()
    later: list[int] = []
    faults = [call.alloc.addr for call in state.open.values() if call.alloc]
    for addr in state.dirty:
        area = state.area(addr)
        if area is None or area.flags is None or area.start in done:
            continue
        if any(area.start <= fault < area.end for fault in faults):
            later.append(addr)
            continue
        done.add(area.start)
        facts = facts_of(state, area, terms)
        demand = profile.demand(facts)
        standing = ""
        if facts.tag and demand.want is Want.MUST_NOT:
            standing = "stale"
        elif (
            not facts.tag
            and demand.want is Want.MUST
            # Once missing it stays so, also in a child that has no such page yet.
            and (profile.missing(facts) or area.standing == "missing")
        ):
            standing = "missing"
        wrong, justified = area.born_wrong, area.justified
        if facts.policy_names or facts.asked:
            wrong = False
            if facts.policy_names:
                justified = area.policy_by or justified
        elif facts.tag and area.inherited:
            wrong = demand.want is Want.MUST_NOT
        elif facts.tag and area.rise:
            wrong = facts.policy_names is False
        page = None
        if standing == "missing" or facts.asked:
            page = _evidence(state, area, facts)
            if facts.asked and not facts.policy_names and page:
                justified = page.event
        notes.append(
            Settled(
                event=event,
                area=area,
                facts=facts,
                demand=demand,
                standing=standing,
                page=page,
                since=area.since,
            )
        )
        state = replace(
            state,
            areas=_put(
                state.areas,
                area.start,
                area.end,
                [
                    replace(
                        area,
                        rise=None,
                        inherited=False,
                        born_wrong=wrong,
                        justified=justified,
                        standing=standing,
                    )
                ],
            ),
        )
    return replace(state, dirty=tuple(later)), tuple(notes)


def _evidence(state: State, area: Area, facts: Facts) -> Page | None:
    """Return the page that a demand leans on: the newest of those that count."""
    by_policy = bool(facts.policy_names)
    return max(
        (
            page
            for page in state.pages.within(area.start, area.end)
            if (page.came if by_policy else page.explicit)
        ),
        key=lambda page: page.event.seq,
        default=None,
    )


# --- the step -----------------------------------------------------------------


def step(
    state: State,
    event: Event,
    terms: Terms,
    profile: Profile,
    parent: State | None = None,
    own: bool = True,
) -> tuple[State, Notes]:
    """Return the state of the mm after the event, and what there is to judge.

    parent: the state of the mm that a COPY copies from, as it is then. A CALL row
    must be given to every mm in which the call is open, whatever its own mm; own
    says whether this is the one.
    """
    if event.kind in _SNAPSHOT:
        return _on_snapshot(state, event, terms), ()
    event, replaced, state = _follow(state, event, terms)
    if _is_ram(event, terms):
        return _on_ram(state, event, terms, replaced), ()
    notes: list[Note] = []
    # A task does one thing at a time: what it was doing before has returned, even
    # where the row that says so was lost.
    for key in [k for k in state.open if k[0] == event.tid]:
        if key[1] != event.call or (not key[1] and event.kind == EventKind.ALLOC):
            state, more = _close(state, key, None, terms)
            notes += more
    state, more = _settle_if(state, event, terms, profile)
    notes += more

    if event.kind != EventKind.CALL:
        state = _touch(state, event)
    more = ()
    match event.kind:
        case EventKind.CALL:
            state, more = _close(state, (event.tid, event.call), event, terms)
            if own:
                state = _on_call(state, event, terms)
        case EventKind.VMA_SEEN:
            state, more = _on_seen(state, event, terms)
        case EventKind.POLICY:
            state, more = _on_policy(state, event, terms)
        case EventKind.VMA_SPLIT:
            state, more = _on_split(state, event, terms)
        case EventKind.ALLOC if not event.bits & Bit.UNLINKED:
            state, more = _on_alloc(state, event, terms)
        case EventKind.FLAGS | EventKind.WRITE if not event.bits & Bit.UNLINKED:
            state, more = _on_flags(state, event, terms)
        case EventKind.MAP | EventKind.COLLAPSE:
            state, more = _on_map(state, event, terms)
        case EventKind.MIGRATE:
            state, more = _on_migrate(state, event, terms)
        case EventKind.UNMAP:
            state, more = _on_unmap(state, event, terms, replaced)
        case EventKind.ZAP:
            state, more = _on_zap(state, event, terms)
        case EventKind.COPY:
            state, more = _on_copy(state, event, terms, parent)
        case EventKind.MOVE:
            state = _on_move(state, event, terms, event.addr, event.size, event.other)
        case EventKind.MM_EXIT:
            state = replace(
                state, ended=True, open={k: v for k, v in state.open.items() if k[1]}
            )
    notes += more
    if not event.call and event.kind != EventKind.ALLOC:
        state = replace(
            state, open={k: v for k, v in state.open.items() if k != (event.tid, 0)}
        )
    state, more = _settle_if(state, event, terms, profile)
    return state, (*notes, *more)


def _is_ram(event: Event, terms: Terms) -> bool:
    """Return whether a row is about a page on another node, and nothing else."""
    match event.kind:
        case EventKind.MAP | EventKind.MIGRATE:
            return not terms.is_cdm(event.node)
        case EventKind.UNMAP:
            return not terms.is_cdm(event.src_node)
        case EventKind.ALLOC:
            same = event.flags_before == event.flags_after
            return same and not terms.is_cdm(event.node)
    return False


def _follow(state: State, event: Event, terms: Terms) -> tuple[Event, bool, State]:
    """Note what a task maps: copy on write and KSM map the new page first.

    Return the row (with the address of a KSM page that has none, where the task has
    just mapped another page there), whether it unmaps what has been replaced in the
    same map of pages already, and the state.
    """
    if event.kind == EventKind.MAP:
        now = (event.addr, event.call, terms.is_cdm(event.node))
        return event, False, replace(state, last={**state.last, event.tid: now})
    last = state.last.get(event.tid)
    if last is None:
        return event, False, state
    state = replace(state, last={k: v for k, v in state.last.items() if k != event.tid})
    if event.kind != EventKind.UNMAP:
        return event, False, state
    if event.bits & Bit.KSM and not event.addr and event.start <= last[0] < event.end:
        event = replace(event, addr=last[0])
    on_cdm = terms.is_cdm(event.src_node)
    return event, last == (event.addr, event.call, on_cdm), state


def _settle_if(
    state: State, event: Event, terms: Terms, profile: Profile
) -> tuple[State, Notes]:
    # A fault (call 0) keeps only its own VMA from settling: one whose page was
    # never mapped leaves no row that says that it is over.
    if not state.dirty or any(call for _, call in state.open):
        return state, ()
    return _settle(state, event, terms, profile)


def abandon(
    state: State, key: tuple[int, int], event: Event, terms: Terms, profile: Profile
) -> tuple[State, Notes]:
    """The task of key has gone on to event, in another mm: its call has returned."""
    state, notes = _close(state, key, None, terms)
    state, more = _settle_if(state, event, terms, profile)
    return state, (*notes, *more)
