"""Faults in which an allocation sets a tag: does its page come to that VMA?"""

from __future__ import annotations

from typing import Final

from msgspec.structs import replace

from cdmtrace.analysis.frames import Event, Terms
from cdmtrace.analysis.notes import FaultEnded, Notes
from cdmtrace.analysis.state import State
from cdmtrace.events import EventKind

_WITHIN: Final = frozenset(
    {
        EventKind.UNMAP,
        EventKind.MIGRATE,
    }
)
"""Rows that a task can bring about while it is in a fault: to find room for a page it
reclaims and compacts, and what a page replaces goes when that page is there."""


def go_on(state: State, event: Event, terms: Terms) -> tuple[State, Notes]:
    """A row of a task ends its fault, unless it is one of the fault's own."""
    if event.tid not in state.tagging:
        return state, ()
    alloc, count = state.tagging[event.tid]
    mapped = _mapped(alloc, event, terms)
    if mapped is not None:
        return _ended(state, event, {event.tid: mapped})
    if event.kind == EventKind.ALLOC and terms.is_cdm(event.node):
        # Readahead, or a smaller page where there was no huge one.
        tagging = {**state.tagging, event.tid: (alloc, count + 1)}
        state = replace(state, tagging=tagging)
    return state, ()


def all_over(state: State, event: Event) -> tuple[State, Notes]:
    """The address space ends, and every fault in it has."""
    return _ended(state, event, dict.fromkeys(state.tagging, False))


def outside(state: State, event: Event) -> FaultEnded:
    """An allocation has set the tag of a VMA that is in no address space."""
    return FaultEnded(
        event=event, alloc=event, count=1, mapped=False, area=state.area(event.addr)
    )


def _ended(state: State, event: Event, mapped: dict[int, bool]) -> tuple[State, Notes]:
    notes = []
    for tid, there in mapped.items():
        alloc, count = state.tagging[tid]
        area = state.area(alloc.addr)
        notes.append(
            FaultEnded(event=event, alloc=alloc, count=count, mapped=there, area=area)
        )
    rest = {tid: row for tid, row in state.tagging.items() if tid not in mapped}
    return replace(state, tagging=rest), tuple(notes)


def _mapped(alloc: Event, event: Event, terms: Terms) -> bool | None:
    """Return whether the page is mapped, None if the fault may be going on."""
    end = event.addr + max(event.size, 1)
    meets = event.addr < alloc.addr + alloc.size and alloc.addr < end
    if event.kind == EventKind.MAP:
        return meets and terms.is_cdm(event.node)
    if event.kind == EventKind.ALLOC:
        return None if meets else False
    return None if event.kind in _WITHIN else False
