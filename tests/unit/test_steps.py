"""What a row does besides what it tells: it ends calls, and replaces pages."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace

from cdmtrace.analysis.frames import Event, Terms
from cdmtrace.analysis.model import looked_at, step
from cdmtrace.analysis.notes import FaultEnded, Left, Notes, Settled
from cdmtrace.analysis.pages import Page, PageMap
from cdmtrace.analysis.profiles import PROFILES
from cdmtrace.analysis.state import Area, Open, Policy, State, amend
from cdmtrace.events import Bit, EventKind, Lock, Mpol

PAGE, BASE, CDM, PLAIN, TAG = 4096, 0x100040000000, 1 << 1, 0x100073, 1 << 38
TERMS = Terms(cdm=CDM, tag=TAG, all=True)


def row(seq: int, kind: EventKind, number: int = 2, **columns: Any) -> Event:
    given: dict[str, Any] = {
        "ts": 1000 * seq,
        "ts_entry": 1000 * seq - 500,
        "mm": 1,
        "tid": 7,
        "start": BASE,
        "end": BASE + 8 * PAGE,
        "addr": BASE + number * PAGE,
        "size": PAGE,
        "flags_before": PLAIN,
        "flags_after": PLAIN,
        "lock_entry": Lock.READ,
        "lock_exit": Lock.READ,
    } | columns
    return Event(seq=seq, kind=kind, **given)


def mm(**known: Any) -> State:
    area = Area(
        start=BASE,
        end=BASE + 8 * PAGE,
        flags=PLAIN,
        policy=Policy(byte=Mpol.DEFAULT, nodes=0),
        seen=row(1, EventKind.VMA_NEW),
        seen_ts=1000,
        since=0,
    )
    return State(**{"areas": (area,), "whole": True, **known})


def after(state: State, *events: Event) -> tuple[State, Notes]:
    notes: Notes = ()
    for event in events:
        state, more = step(state, event, TERMS, PROFILES["intended"])
        notes += more
    return state, notes


@pytest.mark.parametrize(
    ("kind", "call", "left"),
    [
        # A task does one thing at a time, and a fault one allocation.
        (EventKind.VMA_SEEN, 6, {(7, 6), (8, 5)}),
        (EventKind.VMA_SEEN, 5, {(7, 5), (8, 5)}),
        (EventKind.UNMAP, 0, {(8, 5)}),
        (EventKind.ALLOC, 0, {(7, 0), (8, 5)}),
        (EventKind.ALLOC, 5, {(7, 5), (8, 5)}),
    ],
)
def test_what_a_task_was_doing_before_is_over(kind, call, left) -> None:
    calls = {(7, 5): Open(), (7, 0): Open(), (8, 5): Open()}
    columns = {"node": 1, "src_node": 1, "call": call}
    state, _ = after(mm(open=calls), row(5, kind, **columns))
    assert state.open.keys() == left


def test_a_second_allocation_is_of_another_fault() -> None:
    first, second = (
        row(seq, EventKind.ALLOC, seq, node=1, flags_after=PLAIN | TAG)
        for seq in (4, 5)
    )
    state, _ = after(mm(), first, second)
    assert state.open[7, 0].alloc is second


def test_an_address_space_that_ends() -> None:
    """Its faults are over; calls that were made in it return when they do."""
    alloc = row(3, EventKind.ALLOC, flags_after=TAG)
    calls = {(7, 5): Open(), (8, 0): Open(), (9, 4): Open()}
    event = row(5, EventKind.MM_EXIT, call=5)
    state, (note,) = after(mm(open=calls, tagging={8: (alloc, 1)}), event)
    assert state.ended
    assert state.open.keys() == {(7, 5), (9, 4)}
    assert isinstance(note, FaultEnded)
    assert (note.event, note.alloc) == (event, alloc)


@pytest.mark.parametrize(
    ("old", "new", "there", "whole", "replaced"),
    [
        # The old page was in the same map, so that it is gone from it.
        (1, 1, True, True, True),
        (0, 0, True, True, True),
        # It was in the other, and is there still.
        (1, 0, True, True, False),
        (0, 1, True, True, False),
        # None was there: what leaves is the one that has just come.
        (1, 1, False, True, False),
        (0, 0, False, True, False),
        # Where not all is known, one may have been there.
        (1, 1, False, False, True),
        (0, 0, False, False, True),
    ],
)
def test_a_page_that_is_unmapped_where_another_was_mapped(
    old, new, there, whole, replaced
) -> None:
    """Copy on write maps the new page, and then unmaps the old one."""
    page = Page(
        addr=BASE + 2 * PAGE,
        size=PAGE,
        node=old,
        how="fault",
        explicit=False,
        event=row(1, EventKind.MAP),
    )
    held = PageMap().put(page) if there else PageMap()
    state = mm(whole=whole, **{"pages" if old else "ram": held})
    came = row(5, EventKind.MAP, node=new)
    gone = row(6, EventKind.UNMAP, src_node=old)
    state, _ = after(state, came, gone)
    everything = [*state.pages.all(), *state.ram.all()]
    assert [one.event.seq for one in everything if one.event.seq == 5] == (
        [5] if replaced or old != new else []
    )
    # It is so for the very next row of the task only.
    assert state.last == {}


@pytest.mark.parametrize(
    "between",
    [
        [row(6, EventKind.MAP, 3, node=1)],
        [row(6, EventKind.VMA_SEEN)],
        [row(6, EventKind.UNMAP, 4, src_node=1)],
    ],
)
def test_a_page_that_goes_later_was_not_replaced(between: list[Event]) -> None:
    held = PageMap().put(Page.of(row(1, EventKind.MAP, node=1), "fault"))
    came = row(5, EventKind.MAP, node=1)
    gone = row(7, EventKind.UNMAP, src_node=1)
    state, notes = after(mm(pages=held), came, *between, gone)
    assert state.pages.get(came.addr) is None
    (*_, left) = (note for note in notes if isinstance(note, Left))
    assert left.page
    # Another task's row between them changes nothing.
    other = row(6, EventKind.VMA_SEEN, tid=8)
    state, _ = after(mm(pages=held), came, other, gone)
    assert state.pages.get(came.addr)


def test_nothing_settles_while_a_call_is_open_but_a_fault_keeps_only_its_own() -> None:
    dirty = {"dirty": (BASE,)}
    event = row(5, EventKind.VMA_SEEN, start=BASE + 8 * PAGE, end=BASE + 9 * PAGE)
    _, notes = after(mm(open={(9, 4): Open()}, **dirty), event)
    assert notes == ()
    _, notes = after(mm(open={(9, 0): Open()}, **dirty), event)
    assert [note.area.start for note in notes if isinstance(note, Settled)] == [
        BASE,
        BASE + 8 * PAGE,
    ]


@pytest.mark.parametrize(
    ("number", "known"), [(0, True), (7, True), (8, False), (-1, False)]
)
def test_a_ksm_page_goes_where_its_task_has_just_mapped_another(number, known) -> None:
    """Its row has no address, and is about one VMA."""
    came = row(5, EventKind.MAP, number, node=1)
    if not known:
        came = replace(came, start=BASE - 8 * PAGE, end=BASE + 16 * PAGE)
    gone = row(6, EventKind.UNMAP, addr=0, src_node=1, bits=int(Bit.KSM))
    old = PageMap().put(Page.of(row(1, EventKind.MAP, number, node=1), "ksm"))
    state, _ = after(mm(pages=old), came, gone)
    area = state.area(BASE)
    assert area
    assert area.pages_known is known
    assert [page.event.seq for page in state.pages.all()] == [5]


def test_when_every_process_was_looked_at_all_is_known() -> None:
    gone = PageMap().put(Page.of(row(1, EventKind.UNMAP), "unknown"))
    before = mm(whole=False, gone=gone)
    before = amend(before, BASE, BASE + PAGE, pages_known=False)
    event = row(5, EventKind.SNAP_MM)
    state, (note,) = looked_at(before, event, TERMS, PROFILES["intended"])
    assert (state.whole, state.gone) == (True, PageMap())
    assert [area.pages_known for area in state.areas] == [True]
    assert isinstance(note, Settled)
    assert (note.event, note.area.start) == (event, BASE)
