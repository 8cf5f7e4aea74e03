"""When a fault in which an allocation has set the tag is over, and with what."""

from __future__ import annotations

from typing import Any

import pytest

from cdmtrace.analysis.faults import all_over, go_on, outside
from cdmtrace.analysis.frames import Event, Terms
from cdmtrace.analysis.notes import FaultEnded
from cdmtrace.analysis.state import Area, State
from cdmtrace.events import EventKind

PAGE, BASE, CDM, TAG = 4096, 0x100040000000, 1 << 1, 1 << 38
TERMS = Terms(cdm=CDM, tag=TAG)


def row(seq: int, kind: EventKind, number: int = 2, **columns: Any) -> Event:
    given = {"tid": 7, "addr": BASE + number * PAGE, "size": PAGE, "node": 1} | columns
    return Event(seq=seq, ts=seq, ts_entry=seq, kind=kind, **given)


ALLOC = row(1, EventKind.ALLOC, flags_after=TAG)
OTHER = row(2, EventKind.ALLOC, 5, tid=8, flags_after=TAG)
AREA = Area(
    start=BASE,
    end=BASE + 4 * PAGE,
    flags=TAG,
    policy=None,
    seen=None,
    seen_ts=0,
    since=0,
)
STATE = State(areas=(AREA,), tagging={7: (ALLOC, 1), 8: (OTHER, 3)})


@pytest.mark.parametrize(
    ("event", "mapped"),
    [
        (row(5, EventKind.MAP), True),
        (row(5, EventKind.MAP, 1, size=3 * PAGE), True),
        # Elsewhere, or no page of the CDM node.
        (row(5, EventKind.MAP, 1), False),
        (row(5, EventKind.MAP, 3), False),
        (row(5, EventKind.MAP, node=0), False),
        (row(5, EventKind.ALLOC, 3), False),
        (row(5, EventKind.ALLOC, 1), False),
        (row(5, EventKind.CALL), False),
        (row(5, EventKind.VMA_SEEN), False),
    ],
)
def test_what_ends_a_fault(event: Event, mapped: bool) -> None:
    state, notes = go_on(STATE, event, TERMS)
    assert notes == (
        FaultEnded(event=event, alloc=ALLOC, count=1, mapped=mapped, area=AREA),
    )
    assert state.tagging == {8: (OTHER, 3)}


@pytest.mark.parametrize(
    ("event", "count"),
    [
        # Readahead takes several, and a huge page may be too much.
        (row(5, EventKind.ALLOC), 2),
        (row(5, EventKind.ALLOC, size=0), 2),
        (row(5, EventKind.ALLOC, 1, size=3 * PAGE), 2),
        (row(5, EventKind.ALLOC, node=0), 1),
        # To find room it reclaims and compacts; what a page replaces goes.
        (row(5, EventKind.MIGRATE, 9), 1),
        (row(5, EventKind.UNMAP), 1),
    ],
)
def test_what_goes_on_within_a_fault(event: Event, count: int) -> None:
    state, notes = go_on(STATE, event, TERMS)
    assert notes == ()
    assert state.tagging == {7: (ALLOC, count), 8: (OTHER, 3)}


def test_a_row_of_another_task_ends_no_fault() -> None:
    assert go_on(STATE, row(5, EventKind.CALL, tid=9), TERMS) == (STATE, ())


def test_with_its_address_space_every_fault_is_over() -> None:
    event = row(5, EventKind.MM_EXIT)
    state, notes = all_over(STATE, event)
    assert notes == (
        FaultEnded(event=event, alloc=ALLOC, count=1, mapped=False, area=AREA),
        # Of its VMA nothing is known.
        FaultEnded(event=event, alloc=OTHER, count=3, mapped=False, area=None),
    )
    assert state.tagging == {}


def test_an_allocation_for_a_vma_of_no_address_space() -> None:
    note = FaultEnded(event=ALLOC, alloc=ALLOC, count=1, mapped=False, area=AREA)
    assert outside(STATE, ALLOC) == note
    assert note.outside
    assert not all_over(STATE, OTHER)[1][0].outside
