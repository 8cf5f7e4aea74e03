"""What is known of a system call only when it returns."""

from __future__ import annotations

from typing import Final

from msgspec.structs import replace

from cdmtrace.analysis import names
from cdmtrace.analysis.account import on_move
from cdmtrace.analysis.frames import Event, Terms
from cdmtrace.analysis.notes import (
    Arrived,
    CallFailed,
    MbindEnded,
    Note,
    Notes,
    OverTag,
)
from cdmtrace.analysis.pages import PageMap
from cdmtrace.analysis.profiles import mbind_tags
from cdmtrace.analysis.state import (
    Area,
    Open,
    Policy,
    State,
    amend,
    dirty,
    put,
    trim,
)
from cdmtrace.analysis.vmas import amend_whole, flags_given
from cdmtrace.events import Cause, Probe

_MREMAP_DONTUNMAP: Final = 4
_EAGAIN: Final = 11


def close(
    state: State, key: tuple[int, int], event: Event | None, terms: Terms
) -> tuple[State, Notes]:
    """A call has returned: event is its row, None if that was not recorded."""
    call = state.open.get(key)
    if call is None:
        return state, ()
    state = replace(state, open={k: v for k, v in state.open.items() if k != key})
    notes: list[Note] = []
    way = names.BY_CALL.get(event.probe) if event else None
    for moved in call.arrived.all():
        addr, row = moved.addr, moved.event
        page = state.pages.get(addr)
        if page is None or page.event is not row:
            continue
        # What reclaim or compaction moved meanwhile, the call has not asked for.
        if way and row.cause in (Cause.CALL, Cause.UNKNOWN):
            asked = way != "mbind" and _asks(event, page.node)
            page = replace(page, how=way, explicit=asked)
            state = replace(state, pages=state.pages.put(page))
        state = dirty(state, addr)
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
        for taken in call.unlocked.all():
            area = state.area(taken.addr)
            if area and not area.excused:
                state = amend(state, area.start, area.end, excused=True)
    for row in call.failed:
        state = _policy_failed(state, call, row, event, terms)
    if event is not None and event.ret < 0 and call.before:
        state, note = _close_failed(state, call, event, terms)
        notes.append(note)
    elif event is not None and event.probe == Probe.SYS_MBIND:
        state, ended = _close_mbind(state, call, event, terms)
        notes += ended
    for told, had in call.told:
        # It stops at the VMA that it could not split or had no memory for.
        last = told is call.told[-1][0]
        failed = last and (event is None or event.ret == -_EAGAIN)
        flags = None if failed else told.flags_after
        ts = event.ts if event is not None else told.ts
        state = flags_given(state, told, terms, had, flags, ts)
    return state, tuple(notes)


def _asks(event: Event | None, node: int) -> bool:
    """Return whether the call asked for pages on the node. move_pages(2) names one
    node for each page, which no row can hold: what it moved was asked for."""
    if event is None or event.probe != Probe.SYS_MIGRATE_PAGES:
        return True
    return bool(event.other >> node & 1)


def _close_failed(
    state: State, call: Open, event: Event, terms: Terms
) -> tuple[State, CallFailed]:
    """What has another tag since a call that failed, and the same policy."""
    retagged = []
    for before in call.before:
        had = before.tagged(terms)
        for area in state.overlapping(before.start, before.end):
            if None in (had, area.tagged(terms)) or area.tagged(terms) is had:
                continue
            # Another thread may have mapped anew what lay there.
            if area.policy != before.policy or area.since != before.since:
                continue
            if area.policy is None or _right(state, area, terms):
                continue
            retagged.append((before, area))
            # It is told here, and not once more as a tag without a reason.
            state = amend(state, area.start, area.end, over=not had)
    return state, CallFailed(event=event, retagged=tuple(retagged))


def _right(state: State, area: Area, terms: Terms) -> bool:
    """Return whether the tag of an area is what its policy and pages ask for."""
    if area.tagged(terms):
        return _reason(state, area, terms)
    return not _reason(state, area, terms) and not state.pages.any(area.start, area.end)


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
            for area in state.overlapping(start, end):
                # Where it has a reason of its own, the tag had to be there.
                if area.tagged(terms) and not _reason(state, area, terms):
                    over.append(OverTag(area=area, before=before))
                    state = amend(state, area.start, area.end, over=True)
    return state, (MbindEnded(event=event, over=tuple(over)),)


def _policy_failed(
    state: State, call: Open, row: Event, event: Event | None, terms: Terms
) -> State:
    """RFC V2 tags before mbind() can fail; what for, the call's own row says."""
    tags: bool | None = None
    if event is not None:
        asked = Policy.of(event.other_policy, event.other)
        tags = bool(asked and mbind_tags(asked.mode, terms.cdm))
    if tags is False:
        return state
    return amend_whole(state, call, row.addr, row.addr + row.size, patched=tags)


def _reason(state: State, area: Area, terms: Terms) -> bool:
    """Return whether P or G holds, or the policy is not known."""
    if area.policy is None or area.policy.names(terms.cdm):
        return True
    return state.pages.any_explicit(area.start, area.end)


def on_call(state: State, event: Event, terms: Terms) -> State:
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
            if area and start <= area.start and area.end <= end:
                # New as a whole: no page of it can have been there before.
                state = amend(
                    state,
                    area.start,
                    area.end,
                    since=event.ts_entry,
                    pages_known=True,
                )
            until = area.start if area else end
            new = Area(
                start=at,
                end=until,
                flags=None,
                policy=None,
                seen=None,
                seen_ts=event.ts_entry,
                since=event.ts_entry,
            )
            state = replace(state, areas=put(state.areas, at, until, [new]))
            at = area.end if area else end
        return state
    if event.probe == Probe.SYS_MREMAP and event.other:
        old, new_size = _round(event.size, terms), _round(event.nodes, terms)
        if event.other != event.addr:
            if not terms.probes.get("move_page_tables"):
                state = on_move(
                    state, event, terms, event.addr, min(old, new_size), event.other
                )
            if not event.arg & _MREMAP_DONTUNMAP:
                # The rows of the move and of the unmapping have said so in time.
                # Without them, what others have mapped there since goes, too.
                known = map(terms.probes.get, ("move_page_tables", "vma_free"))
                before = event.ts_entry if all(known) else event.ts + 1
                state = _forget(state, event.addr, event.addr + old, before)
        elif new_size < old:
            state = _forget(
                state, event.addr + new_size, event.addr + old, event.ts_entry
            )
        return state
    if event.probe == Probe.SYS_MPROTECT and event.start < event.end:
        return amend(state, event.start, event.end, excused=False)
    return state


def _forget(state: State, start: int, end: int, before: int) -> State:
    """Nothing that was known of [start, end) before this time (ns) holds."""
    areas = state.areas
    for area in state.overlapping(start, end):
        if area.seen_ts < before:
            old = trim(area, start, end)
            areas = put(areas, old.start, old.end, ())
    return replace(
        state,
        areas=areas,
        pages=_older_dropped(state.pages, start, end, before),
        ram=_older_dropped(state.ram, start, end, before),
    )


def _older_dropped(pages: PageMap, start: int, end: int, before: int) -> PageMap:
    older = [page for page in pages.within(start, end) if page.event.ts < before]
    return pages.drop_all(older) if older else pages


def _round(size: int, terms: Terms) -> int:
    return (size + terms.page - 1) // terms.page * terms.page
