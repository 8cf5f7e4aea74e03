"""What an event tells of a VMA: its range, its flags and its own policy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from msgspec.structs import replace

from cdmtrace.analysis.frames import Event, Terms
from cdmtrace.analysis.notes import FlagsChanged, Notes
from cdmtrace.analysis.profiles import fault_tags, mbind_tags
from cdmtrace.analysis.state import (
    Area,
    Open,
    Policy,
    Rise,
    State,
    amend,
    dirty,
    latest,
    put,
    trim,
    within,
)
from cdmtrace.events import Bit, Cause, EventKind, Lock, Mpol, Probe

_NO_CHANGE: Final = frozenset({EventKind.VMA_SEEN, EventKind.VMA_MERGE})
"""Rows that show a VMA, and not who has written its flags."""
_WRITES: Final = 64
"""How many changes of flags are held against those that overlap them: more than
threads can be in the middle of one."""

_OF_PAGES: Final = frozenset({EventKind.MAP, EventKind.MIGRATE, EventKind.UNMAP})
"""Rows that show a VMA in passing, whoever has written its flags."""


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
    old = [trim(area, start, end) for area in state.overlapping(start, end)]
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
            return replace(state, areas=put(state.areas, start, end, [seen]))
    tag = None if flags is None else bool(flags & terms.tag)
    had = [area for area in old if area.tagged(terms)]
    lacked = [area for area in old if area.tagged(terms) is False]
    names = policy.names(terms.cdm) if policy else None

    rise = next((area.rise for area in had if area.rise), None)
    set_by = latest(area.set_by for area in had)
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
        policy_by=latest(area.policy_by for area in old),
        justified=latest(area.justified for area in old),
        ended=latest(area.ended for area in old),
        cleared=(
            event if had and tag is False else latest(area.cleared for area in old)
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
            and driver_tagged(event, bool(tag), policy)
        ),
        patched=_patched(old, tag),
        due=min(
            (area.due for area in old if area.due),
            key=lambda row: row.seq,
            default=None,
        ),
    )
    fresh = (
        len(old) != 1
        or (old[0].start, old[0].end, old[0].policy) != (start, end, policy)
        or old[0].tagged(terms) is not tag
    )
    return replace(
        state,
        areas=put(state.areas, start, end, [new]),
        dirty=(*state.dirty, start) if fresh else state.dirty,
    )


def _patched(old: Sequence[Area], tag: bool | None) -> bool | None:
    known = [area.patched for area in old if area.patched is not None]
    return any(known) if known else tag


def driver_tagged(event: Event, tag: bool, policy: Policy | None) -> bool:
    """Return whether the tag of a VMA that a row is the first to show is a driver's.

    What has a tag and no policy that could have brought it has it from its mmap():
    rows of mbind() and of faults show the VMA before they change it. From before the
    recording it may be a leftover, too; the doubt is in the kernel's favour.
    """
    plain = policy is not None and policy.byte & 15 == Mpol.DEFAULT
    return tag and plain and bool(event.bits & Bit.FILE)


def shown_policy(area: Area | None, told: Policy | None) -> Policy | None:
    """Return the policy of an area of which a row tells this one.

    That of a shmem file is told where it decides, and stands in no other row: it
    holds until mbind() is called for this VMA. That another VMA of the file has
    changed it meanwhile is not seen.
    """
    known = area.policy if area else None
    if known and known.shared and not (told and told.shared):
        return known
    return told


def by_mbind(event: Event) -> bool:
    """Return whether a row tells of a policy that the VMA's owner has set."""
    by_owner = event.kind == EventKind.POLICY and event.cause != Cause.CPUSET
    return by_owner and not event.ret


def observe_row(state: State, event: Event, terms: Terms) -> State:
    """The VMA as a row shows it at its return."""
    policy = Policy.of(event.policy, event.nodes)
    if not by_mbind(event):
        policy = shown_policy(state.area(event.start), policy)
    return _observe(
        state,
        event,
        terms,
        start=event.start,
        end=event.end,
        flags=event.flags_after,
        policy=policy,
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
        policy=shown_policy(state.area(start), policy),
        ts=event.ts_entry,
    )


def on_seen(state: State, event: Event, terms: Terms) -> tuple[State, Notes]:
    """A VMA as it is before a call changes it."""
    state = observe_row(state, event, terms)
    area = state.area(event.start)
    if event.call and area:
        call = state.open[event.tid, event.call]
        state = within(state, event, before=(*call.before, area))
    return state, ()


def on_policy(state: State, event: Event, terms: Terms) -> tuple[State, Notes]:
    """mbind() has given [addr, addr + size) a policy, or failed to; or a cpuset has."""
    start, end = event.addr, event.addr + event.size
    if event.ret:
        call = state.open.get((event.tid, event.call))
        failed = (*(call.failed if call else ()), event)
        state = within(state, event, failed=failed)
    if event.bits & Bit.VMA_UNREAD:
        # Which VMA holds what is not known: neither flags nor policy are.
        return dirty(
            amend(state, start, end, flags=None, policy=None, rise=None), start
        ), ()
    before = Policy.of(event.other_policy, event.other)
    state = _observe_entry(state, event, terms, start, end, before)
    known = state.overlapping(start, end)
    explained = any(
        a.flags == event.flags_after and a.seen_ts > event.ts_entry
        for a in known
        if a.seen is None or a.seen.kind not in _NO_CHANGE
    )
    # Where it has merged, the model knows what it has become.
    named = bool(before and before.names(terms.cdm)) or any(
        a.policy and a.policy.names(terms.cdm) for a in known
    )
    state = observe_row(state, event, terms)
    if event.ret:
        return _flags_changed(dirty(state, start), event, explained, terms)
    now = Policy.of(event.policy, event.nodes)
    change: dict[str, object] = {"policy_by": event}
    locks = {event.lock_exit & 15}
    if event.cause == Cause.CPUSET:
        # Its last VMA can be told when the lock is given back only.
        locks.add(event.lock_entry & 15)
    if Lock.WRITE_SELF in locks:
        change["excused"] = False
    if now and now.names(terms.cdm):
        # Whatever tagged it before, from now on it has a reason.
        change["over"] = False
    if named and now and not now.names(terms.cdm):
        # mbind() split it in order to do this: the tag is stale, not born stale.
        change |= {"ended": event, "inherited": False}
    state = amend(state, event.start, event.end, **change)
    if by_mbind(event) and now and mbind_tags(now.mode, terms.cdm):
        state = amend(state, event.start, event.end, patched=True)
        call = state.open.get((event.tid, event.call))
        state = amend_whole(state, call, start, end, patched=True)
    superseded = [
        replace(page, explicit=False)
        for page in state.pages.within(start, end)
        if page.explicit
    ]
    state = replace(state, pages=state.pages.put_all(superseded))
    return _flags_changed(dirty(state, start), event, explained, terms)


def amend_whole(
    state: State, call: Open | None, start: int, end: int, **change: Any
) -> State:
    """Change what was one VMA with a part of [start, end) when the call came to it."""
    for area in call.before if call else ():
        if area.start < end and start < area.end:
            state = amend(state, area.start, area.end, **change)
    return state


def on_split(state: State, event: Event, terms: Terms) -> tuple[State, Notes]:
    """One VMA has become two, alike but for their ends."""
    if not event.start < event.addr < event.end:
        return state, ()
    state = observe_row(state, event, terms)
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
        areas=put(state.areas, event.start, event.end, halves),
        pages=state.pages.cut(event.addr, terms.page),
        ram=state.ram.cut(event.addr, terms.page),
        dirty=(*state.dirty, event.start, event.addr),
    )
    return state, ()


def on_alloc(state: State, event: Event, terms: Terms) -> tuple[State, Notes]:
    """A fault has allocated a page, and may have tagged the VMA for it."""
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
        state = observe_row(state, event, terms)
    deciding = Policy.of(event.other_policy, event.other) or own
    if deciding and fault_tags(
        deciding.mode, event.node, terms.cdm, huge=event.size > terms.page
    ):
        state = amend(state, event.start, event.end, patched=True)
    state = within(state, event, alloc=event)
    if not (event.call or explained) and sets_tag(event, terms):
        # Readahead allocates several in one fault: the first has set it.
        state = replace(state, tagging={event.tid: (event, 1), **state.tagging})
    return _flags_changed(dirty(state, event.addr), event, explained, terms)


def on_flags(state: State, event: Event, terms: Terms) -> tuple[State, Notes]:
    """vm_flags of a VMA were changed, or written, or will be if the call succeeds."""
    if event.bits & Bit.VMA_UNREAD:
        area = state.area(event.addr)
        had = area.flags if area else None
        call = state.open.get((event.tid, event.call))
        told = (*(call.told if call else ()), (event, had))
        return within(state, event, told=told), ()
    own = Policy.of(event.policy, event.nodes)
    start, end = event.start, event.end
    if event.size:
        start, end = event.addr, event.addr + event.size
    state = _observe_entry(state, event, terms, start, end, own)
    state = _written(observe_row(state, event, terms), event)
    area = state.area(event.start)
    rise = area.rise if area else None
    if (
        rise
        and rise.event.kind == EventKind.VMA_MERGE
        and _same_call(rise.event, event)
    ):
        # It was merged with what had the tag because it was given these flags.
        rise = replace(rise, event=event)
        state = amend(state, event.start, event.end, rise=rise, set_by=event)
    explained: bool | None = False
    if event.probe == Probe.REMOVE_MIGRATION_PTE:
        explained = _by_others(area, event, terms) or (
            None if _others_at_work(state, event) else False
        )
    return _flags_changed(dirty(state, event.start), event, explained, terms)


def on_write(state: State, event: Event, terms: Terms) -> tuple[State, Notes]:
    """A debug register saw vm_flags written.

    What a task of another address space has written no other row tells.
    """
    note = FlagsChanged(event=event, explained=False)
    if event.flags_before != event.flags_after:
        state = _note_write(state, event)
    if event.bits & Bit.FOREIGN:
        state = dirty(observe_row(state, event, terms), event.start)
    return state, (note,)


def _others_at_work(state: State, event: Event) -> bool:
    """Return whether another task has a call open in this mm that can change VMAs."""
    return any(call and tid != event.tid for tid, call in state.open)


def _by_others(area: Area | None, event: Event, terms: Terms) -> bool:
    """Return whether a change that was seen without a lock can be that of others.

    Whoever sets or clears the tag has a row of it, and comes before this one unless
    he has the lock still. Of other flags, madvise() tells when it returns.
    """
    if not (event.flags_before ^ event.flags_after) & terms.tag:
        return True
    rows = (area.set_by, area.cleared, area.policy_by) if area else ()
    return any(
        row is not None
        and row is not event
        and row.ts > event.ts_entry
        and row.kind not in _OF_PAGES
        for row in rows
    )


def _same_call(one: Event, other: Event) -> bool:
    return (one.tid, one.call) == (other.tid, other.call)


def on_grown(state: State, event: Event, terms: Terms) -> State:
    """A VMA is new, has grown, or has taken in what lay beside it."""
    return _written(observe_row(state, event, terms), event)


def _written(state: State, event: Event) -> State:
    """A change under the write lock is when pages that others took begin to count."""
    if event.lock_exit & 15 != Lock.WRITE_SELF:
        return state
    return amend(state, event.start, event.end, excused=False)


def flags_given(
    state: State,
    event: Event,
    terms: Terms,
    had: int | None,
    flags: int | None,
    ts: int,
) -> State:
    """The VMA of [addr, addr + size) was given these flags; None: which is not known.

    had: the flags when that was told. The lock was held for write until they were
    written, so that what shows others since is newer. ts: when they were, at the
    latest, ns.
    """
    area = state.area(event.addr)
    if area is None or area.flags != had:
        return state
    start, end = event.addr, event.addr + event.size
    state = _observe(
        state,
        event,
        terms,
        start=start,
        end=end,
        flags=flags,
        policy=area.policy,
        ts=event.ts,
    )
    if flags is None or event.lock_entry & 15 != Lock.WRITE_SELF:
        return state
    if had is not None and had != flags:
        written = replace(
            event, ts=ts, start=start, end=end, flags_before=had, flags_after=flags
        )
        state = _note_write(state, written)
    return dirty(amend(state, start, end, excused=False), start)


def on_free(state: State, event: Event) -> State:
    """No VMA is left in [addr, addr + size)."""
    end = event.addr + event.size
    return replace(state, areas=put(state.areas, event.addr, end, ()))


def sets_tag(event: Event, terms: Terms) -> bool:
    """Return whether the tag went 0 -> 1 between entry and return of a row."""
    return bool(event.flags_after & ~event.flags_before & terms.tag)


def _flags_changed(
    state: State, event: Event, explained: bool | None, terms: Terms
) -> tuple[State, Notes]:
    if event.flags_before == event.flags_after:
        return state, ()
    if _seen_written(state, event):
        explained = True
    meanwhile = [
        other
        for other in state.writes
        if other.ts > event.ts_entry
        and other.tid != event.tid
        and other.start < event.end
        and event.start < other.end
        # One of two that hold the lock for write is told late: it was over.
        and not (_locked(event) and _locked(other))
    ]
    wrote = _wrote(event, meanwhile, terms)
    writers = [
        other for other in meanwhile if _wrote(other, [event, *meanwhile], terms)
    ]
    # Of what madvise() gives, it is known only when its call is long over.
    rivals = [other for other in writers if wrote and _has_length(other)]
    note = FlagsChanged(
        event=event,
        explained=explained,
        raced=rivals[-1] if rivals else None,
        lost=_lost(event, writers) if wrote else None,
    )
    return _note_write(state, event), (note,)


def _seen_written(state: State, event: Event) -> bool:
    """Return whether the write that made a row's change has a row itself."""
    writes = [
        other
        for other in state.writes
        if other.kind == EventKind.WRITE
        and other.ts > event.ts_entry
        and other.start < event.end
        and event.start < other.end
    ]
    return bool(writes) and writes[-1].flags_after == event.flags_after


def _has_length(event: Event) -> bool:
    """Return whether a row can say that its change and another one overlapped.

    A write is a moment. The task's own rows say what it was in the midst of, but for
    one of another address space, of which nothing else is told.
    """
    if event.kind == EventKind.WRITE:
        return bool(event.bits & Bit.FOREIGN)
    return event.probe != Probe.VMA_MERGE


def _note_write(state: State, event: Event) -> State:
    return replace(state, writes=(*state.writes[1 - _WRITES :], event))


def _locked(event: Event) -> bool:
    """Return whether a row's task held the mmap lock for write all the time."""
    states = {event.lock_entry & 15, event.lock_exit & 15}
    if event.cause == Cause.CPUSET:
        # The last VMA of a rebinding can be told when the lock is given back only.
        states.discard(Lock.UNKNOWN)
    return states == {Lock.WRITE_SELF}


def _wrote(event: Event, meanwhile: Sequence[Event], terms: Terms) -> bool:
    """Return whether a row that shows a change has made it.

    A migration gives pages back without any lock, and may see what others do: its own
    can only be a change of the tag that none of them shows.
    """
    if event.probe != Probe.REMOVE_MIGRATION_PTE:
        return True
    mine = (event.flags_before ^ event.flags_after) & terms.tag
    for other in meanwhile:
        if other is not event:
            mine &= ~(other.flags_before ^ other.flags_after)
    return bool(mine)


def _lost(event: Event, meanwhile: Sequence[Event]) -> tuple[Event, int] | None:
    """Return who has set bits meanwhile that are gone with the row, and the bits.

    The row cannot have meant to clear what was not there when it began.
    """
    gone = ~event.flags_before & ~event.flags_after
    for at, other in enumerate(meanwhile):
        bits = other.flags_after & ~other.flags_before & gone
        for later in meanwhile[at + 1 :]:
            bits &= ~(later.flags_before & ~later.flags_after)
        if bits:
            return other, bits
    return None
