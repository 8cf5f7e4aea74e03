"""The account of pages: what each event brings into a VMA and takes out of it."""

from __future__ import annotations

import struct
from typing import Any, Final

from msgspec.structs import replace

from cdmtrace.analysis import names
from cdmtrace.analysis.frames import Event, Terms
from cdmtrace.analysis.notes import Arrived, Left, Notes
from cdmtrace.analysis.pages import Page, PageMap
from cdmtrace.analysis.state import (
    Area,
    Policy,
    State,
    amend,
    dirty,
    put,
    within,
)
from cdmtrace.analysis.vmas import driver_tagged, observe_row, shown_policy
from cdmtrace.events import NO_NODE, Bit, Cause, EventKind, Lock, Mpol, MpolFlag

_LIMBO: Final = 1024
_GONE: Final = 4096
_BEFORE: Final = "before"


def on_map(state: State, event: Event, terms: Terms) -> tuple[State, Notes]:
    """A page is mapped, by a fault or by who makes one of several."""
    call = state.open.get((event.tid, event.call))
    alloc = call.alloc if call else None
    if alloc and not alloc.addr <= event.addr < alloc.addr + alloc.size:
        alloc = None
    if alloc and alloc.policy & MpolFlag.SHARED:
        # The policy of the file has decided, of which only the allocation tells.
        event = replace(event, policy=alloc.policy, nodes=alloc.nodes)
    state = observe_row(state, event, terms)
    if alloc and alloc.other_policy & 15 != Mpol.UNREAD:
        # The task's has decided, also where the VMA has one: its file had none.
        event = replace(
            event,
            policy=Mpol.DEFAULT,
            nodes=0,
            other_policy=alloc.other_policy,
            other=alloc.other,
        )
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
    page = Page.of(event, _how_mapped(event, terms), explicit=driver)
    own = Policy.of(event.policy, event.nodes)
    if page.size > terms.page:
        # khugepaged has taken small pages out, and some it may have lost.
        pages = pages.drop_within(page.addr, page.addr + page.size)
    state = dirty(replace(state, pages=pages.put(page)), event.addr)
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


def _how_mapped(event: Event, terms: Terms) -> str:
    """By what a page came that was mapped outside a migration."""
    if event.bits & Bit.KSM:
        return "ksm"
    told = names.BY_FAULT.get(event.cause)
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


def on_migrate(state: State, event: Event, terms: Terms) -> tuple[State, Notes]:
    """An entry gets its page back after a migration, in the same place or not."""
    state = observe_row(state, event, terms)
    call = state.open.get((event.tid, event.call)) if event.call else None
    limbo = call.limbo if call else state.limbo
    back = limbo.get(event.addr)
    state = _returned(state, event)
    if back is not None and _is_back(back, event):
        # It is where it was: the migration failed, or it moved within its node.
        return dirty(replace(state, pages=state.pages.put(back)), event.addr), ()
    how = names.BY_MIGRATION.get(event.cause)
    how = how or names.BY_REASON.get(event.arg, "migration")
    page = Page.of(event, how, explicit=event.cause == Cause.DRIVER)
    state = dirty(replace(state, pages=state.pages.put(page)), event.addr)
    if call is not None:
        return within(state, event, arrived=call.arrived.put(page)), ()
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


def _is_back(page: Page, event: Event) -> bool:
    """Return whether a page that was unmapped is what a migration has mapped there.

    It may have gone elsewhere before: then the row tells of another node.
    """
    here = event.src_node in (NO_NODE, event.node)
    return here and page.node == event.node and page.size == event.size


def _returned(state: State, event: Event) -> State:
    """Forget that a page of the address was unmapped outside of any call."""
    page = state.limbo.get(event.addr)
    return state if page is None else replace(state, limbo=state.limbo.drop(page))


def on_unmap(
    state: State, event: Event, terms: Terms, replaced: bool
) -> tuple[State, Notes]:
    """One page is mapped no more; replaced: another has been mapped there before."""
    state = observe_row(state, event, terms)
    gone = Left(event=event, page=None)
    if event.bits & Bit.KSM and not event.addr:
        # A KSM page has many addresses: which of them it was is not known.
        return amend(state, event.start, event.end, pages_known=False), (gone,)
    page = state.pages.covering(event.addr)
    if page is None or not state.whole:
        state = _note_gone(state, event)
    if page is None:
        # Of a whole mm all pages are known, but what a fork or mremap brings is told
        # late; if it was missed, an audit must go on saying so.
        end = event.addr + 1
        if not state.whole:
            state = amend(state, event.addr, end, pages_known=False)
        return amend(state, event.addr, end, excused=True), (gone,)
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
        state = amend(state, area.start, area.end, ended=event)
    if event.call:
        call = state.open[event.tid, event.call]
        unlocked = call.unlocked
        if event.lock_exit & 15 != Lock.WRITE_SELF:
            unlocked = unlocked.put(page)
        state = within(state, event, limbo=call.limbo.put(page), unlocked=unlocked)
    else:
        limbo = state.limbo if state.limbo.count < _LIMBO else PageMap()
        state = replace(state, limbo=limbo.put(page))
        state = amend(state, event.addr, event.addr + 1, excused=True)
    return dirty(state, event.addr), (Left(event=event, page=page),)


def on_copy(
    state: State, event: Event, terms: Terms, parent: State | None
) -> tuple[State, Notes]:
    """Fork: this VMA is a copy of its parent's, and shares the parent's pages."""
    parent = parent or State()
    model = parent.area(event.start)
    tag = bool(event.flags_after & terms.tag)
    policy = shown_policy(model, Policy.of(event.policy, event.nodes))
    shown: dict[str, Any] = {
        "start": event.start,
        "end": event.end,
        "flags": event.flags_after,
        "policy": policy,
        "seen": event,
        "seen_ts": event.ts,
    }
    if model is None:
        names = policy.names(terms.cdm) if policy else None
        model = Area(
            **shown,
            since=0,
            pages_known=parent.whole or not (tag or names),
            by_driver=driver_tagged(event, tag, policy),
        )
    area = replace(
        model,
        **shown,
        rise=None,
        inherited=tag,
        cleared=event if model.tagged(terms) and not tag else model.cleared,
        excused=False,
        patched=tag if model.patched is None else model.patched,
        due=None,
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
        areas=put(state.areas, event.start, event.end, [area]),
        pages=state.pages.put_all(copies),
        ram=state.ram.put_all(ram),
        whole=parent.whole,
    )
    return dirty(state, event.start), ()


def on_move(
    state: State, event: Event, terms: Terms, start: int, size: int, to: int
) -> State:
    """[start, start + size) is at address to now, pages and all."""
    shift = to - start
    areas = [
        replace(
            area,
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
        areas=put(state.areas, to, to + size, areas),
    )
    if event.kind == EventKind.MOVE:
        # It may have grown on the way, or be part of a neighbour now.
        state = observe_row(state, event, terms)
    if not terms.sees_all(start, start + size):
        # With pages that nobody has told of.
        state = amend(state, to, to + size, pages_known=False)
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
    pages = pages.cut(start, terms.page).cut(start + size, terms.page)
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
    page = replace(Page.of(event, "unknown"), node=event.src_node)
    return replace(state, gone=gone.put(page))


def _before_dropped(pages: PageMap, event: Event) -> PageMap:
    for page in list(pages.within(event.addr, event.addr + event.size)):
        if page.how == _BEFORE:
            pages = pages.drop(page)
    return pages


def on_ram(state: State, event: Event, terms: Terms, replaced: bool) -> State:
    """A page that is on no CDM node: the account needs it, and no rule does."""
    if event.kind == EventKind.UNMAP:
        if not state.ram.covering(event.addr) or not state.whole:
            state = _note_gone(state, event)
        if replaced:
            return state
        return replace(state, ram=_unmapped(state.ram, event, terms.page))
    if event.kind == EventKind.MIGRATE:
        state = _returned(state, event)
        there = state.pages.get(event.addr)
        if there:
            # It left while a fork or an mremap that brought it here went on.
            state = replace(state, pages=state.pages.drop(there))
    if event.kind != EventKind.ALLOC and terms.all:
        ram = _mapped(state.ram, Page.of(event, "ram"), terms.page)
        state = replace(state, ram=ram)
    return state


def is_ram(event: Event, terms: Terms) -> bool:
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


def on_snapshot(state: State, event: Event, terms: Terms) -> State:
    """What was there before: of an mm that is known whole, nothing is taken."""
    if state.whole:
        return state
    if event.kind == EventKind.SNAP_VMA:
        return replace(observe_row(state, event, terms), dirty=state.dirty)
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
