"""The reference model: what one mm holds after each event, and what follows.

    step(state, event, terms, profile) -> (state, notes)

is pure: no I/O, no clock, nothing is changed in place. A state belongs to one mm.
It knows *areas* (address ranges that were seen to be one VMA: flags, own policy,
where the tag came from) and *pages* (by address): see state.py. What an event tells
of them is in vmas.py and account.py, what a system call tells when it returns in
calls.py, and when a VMA is judged in settling.py. Notes (notes.py) are what the rules
judge; the model itself blames nobody.

Three decisions that the words of the specification leave open:

*Explicit requests supersede each other.* A page that move_pages() put there makes
G hold. A later mbind() of the range is an explicit request, too, and the newer
one, and so is a cpuset that gives its VMA other nodes: from then on the page counts
as a leftover (H). Without this, a kernel whose tag is just its policy, which the
specification calls the simplest right one, would break G: pages moved in under a
policy that named the node stay behind, asked for, when mbind() takes the policy away.

*What fork copies did not come for the child.* Pages that a fork shares are H in
the child, not G: no request put them into that VMA.

*A page's way is told by whoever returns.* What a system call migrated is known
to be asked for only when the call returns and says which call it was. Until then
nothing in its mm is judged, for it has not settled.
"""

from __future__ import annotations

from typing import Final

from msgspec.structs import replace

from cdmtrace.analysis.account import (
    is_ram,
    on_copy,
    on_map,
    on_migrate,
    on_move,
    on_ram,
    on_snapshot,
    on_unmap,
)
from cdmtrace.analysis.calls import close, on_call
from cdmtrace.analysis.faults import all_over, go_on, outside
from cdmtrace.analysis.frames import Event, Terms
from cdmtrace.analysis.notes import Advised, Note, Notes, Serviced
from cdmtrace.analysis.pages import PageMap
from cdmtrace.analysis.profiles import Profile
from cdmtrace.analysis.settling import settle
from cdmtrace.analysis.state import State, touch, within
from cdmtrace.analysis.vmas import (
    on_alloc,
    on_flags,
    on_free,
    on_grown,
    on_policy,
    on_seen,
    on_split,
    on_write,
    sets_tag,
)
from cdmtrace.events import Bit, EventKind

_SERVICES: Final = frozenset(
    {EventKind.NUMA_SCAN, EventKind.NUMA_MOVE, EventKind.KSM_PAGE}
)
"""Rows of which the model keeps nothing: what they do to pages, other rows tell."""

_SNAPSHOT: Final = frozenset(
    {
        EventKind.SNAP_VMA,
        EventKind.SNAP_PAGES,
        EventKind.SNAP_MM,
        EventKind.SNAP_RANGES,
    }
)


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
        return on_snapshot(state, event, terms), ()
    if event.kind == EventKind.WRITE:
        return _written(state, event, terms, profile)
    if event.kind in _SERVICES:
        state, note = _serviced(state, event, terms)
        return state, (note,)
    event, replaced, state = _follow(state, event, terms)
    state, over = go_on(state, event, terms)
    if is_ram(event, terms):
        return on_ram(state, event, terms, replaced), over
    notes: list[Note] = [*over]
    # A task does one thing at a time: what it was doing before has returned, even
    # where the row that says so was lost.
    for key in [k for k in state.open if k[0] == event.tid]:
        if key[1] != event.call or (not key[1] and event.kind == EventKind.ALLOC):
            state, more = close(state, key, None, terms)
            notes += more
    # A fork holds the lock until it has copied all VMAs: its child settles later.
    forking = event.kind == EventKind.COPY
    if not forking:
        state, more = _settle_if(state, event, terms, profile)
        notes += more

    if event.kind != EventKind.CALL:
        state = touch(state, event)
    more = ()
    match event.kind:
        case EventKind.CALL:
            state, more = close(state, (event.tid, event.call), event, terms)
            if own:
                state = on_call(state, event, terms)
        case EventKind.VMA_SEEN:
            state, more = on_seen(state, event, terms)
        case EventKind.POLICY:
            state, more = on_policy(state, event, terms)
        case EventKind.VMA_SPLIT:
            state, more = on_split(state, event, terms)
        case EventKind.VMA_NEW | EventKind.VMA_MERGE:
            state = on_grown(state, event, terms)
        case EventKind.VMA_FREE:
            state = on_free(state, event)
        case EventKind.ALLOC if not event.bits & Bit.UNLINKED:
            state, more = on_alloc(state, event, terms)
        case EventKind.ALLOC:
            # For a file, in a fault: which VMA it is for, the next row says.
            state = within(state, event, alloc=event)
            if sets_tag(event, terms):
                more = (outside(state, event),)
        case EventKind.FLAGS if not event.bits & Bit.UNLINKED:
            state, more = on_flags(state, event, terms)
        case EventKind.MAP:
            state, more = on_map(state, event, terms)
        case EventKind.MIGRATE:
            state, more = on_migrate(state, event, terms)
        case EventKind.UNMAP:
            state, more = on_unmap(state, event, terms, replaced)
        case EventKind.COPY:
            state, more = on_copy(state, event, terms, parent)
        case EventKind.MOVE:
            state = on_move(state, event, terms, event.addr, event.size, event.other)
        case EventKind.KSM_ADVICE:
            more = (Advised(event=event),)
        case EventKind.MM_EXIT:
            state, more = all_over(state, event)
            state = replace(
                state, ended=True, open={k: v for k, v in state.open.items() if k[1]}
            )
    notes += more
    if not event.call and event.kind != EventKind.ALLOC:
        state = replace(
            state, open={k: v for k, v in state.open.items() if k != (event.tid, 0)}
        )
    more = ()
    if not forking:
        state, more = _settle_if(state, event, terms, profile)
    return state, (*notes, *more)


def _follow(state: State, event: Event, terms: Terms) -> tuple[Event, bool, State]:
    """Note what a task maps: copy on write and KSM map the new page first.

    Return the row (with the address of a KSM page that has none, where the task has
    just mapped another page there), whether it unmaps what has been replaced in the
    same map of pages already, and the state.
    """
    if event.kind == EventKind.MAP:
        on_cdm = terms.is_cdm(event.node)
        there = (state.pages if on_cdm else state.ram).covering(event.addr)
        now = (event.addr, event.call, on_cdm, bool(there) or not state.whole)
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
    return event, last == (event.addr, event.call, on_cdm, True), state


def _written(
    state: State, event: Event, terms: Terms, profile: Profile
) -> tuple[State, Notes]:
    # In the midst of a call or a fault, whose own rows say what has come of it: so it
    # ends nothing, and nothing settles.
    if event.bits & Bit.UNLINKED:
        return state, ()
    state, notes = on_write(state, event, terms)
    if not event.bits & Bit.FOREIGN:
        return state, notes
    state, more = _settle_if(state, event, terms, profile)
    return state, (*notes, *more)


def _serviced(state: State, event: Event, terms: Terms) -> tuple[State, Serviced]:
    # Services come by many times in between two changes.
    if state.near[0] is not state.areas:
        near = any(area.tagged(terms) for area in state.areas)
        state = replace(state, near=(state.areas, near))
    return state, Serviced(event=event, near=state.near[1])


def _settle_if(
    state: State, event: Event, terms: Terms, profile: Profile
) -> tuple[State, Notes]:
    # A fault (call 0) keeps only its own VMA from settling: one whose page was
    # never mapped leaves no row that says that it is over.
    if not state.dirty or any(call for _, call in state.open):
        return state, ()
    return settle(state, event, terms, profile)


def abandon(
    state: State, key: tuple[int, int], event: Event, terms: Terms, profile: Profile
) -> tuple[State, Notes]:
    """The task of key has gone on to event, in another mm: its call has returned."""
    state, notes = close(state, key, None, terms)
    state, more = _settle_if(state, event, terms, profile)
    return state, (*notes, *more)


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
