"""What the model knows of one mm, and how a part of it is changed."""

from __future__ import annotations

import pytest

from cdmtrace.analysis.frames import Event
from cdmtrace.analysis.state import (
    Area,
    Open,
    Policy,
    State,
    amend,
    dirty,
    latest,
    touch,
    trim,
    within,
)
from cdmtrace.events import EventKind, Mpol, MpolFlag

CDM = 1 << 1


def area(start: int, end: int) -> Area:
    return Area(
        start=start, end=end, flags=1, policy=None, seen=None, seen_ts=0, since=0
    )


def row(seq: int, **columns: int) -> Event:
    return Event(seq=seq, ts=seq, ts_entry=seq, kind=EventKind.CALL, tid=7, **columns)


@pytest.mark.parametrize(
    ("byte", "nodes", "names"),
    [
        (Mpol.BIND, CDM, True),
        (Mpol.BIND | MpolFlag.SHARED, CDM | 1, True),
        (Mpol.BIND, 1, False),
        # These go by no node, whatever stands there.
        (Mpol.DEFAULT, CDM, False),
        (Mpol.LOCAL, CDM, False),
        (Mpol.LOCAL | MpolFlag.SHARED, CDM, False),
    ],
)
def test_a_policy_that_names_a_node(byte: int, nodes: int, names: bool) -> None:
    policy = Policy.of(byte, nodes)
    assert policy
    assert policy.names(CDM) is names
    assert policy.shared is bool(byte & MpolFlag.SHARED)
    assert (policy.mode.number, policy.mode.nodes) == (byte & 15, nodes)


def test_a_policy_that_was_not_read_is_none() -> None:
    assert Policy.of(Mpol.UNREAD, CDM) is None
    assert Policy.of(Mpol.UNREAD | MpolFlag.SHARED, CDM) is None


def test_what_is_to_be_judged_is_noted_once() -> None:
    """By the start of its VMA, or by itself where that is not known."""
    state = State(areas=(area(10, 20),), dirty=(3,))
    state = dirty(dirty(state, 19), 10)
    assert state.dirty == (3, 10)
    assert dirty(dirty(state, 20), 20).dirty == (3, 10, 20)


def test_a_call_is_under_way_from_its_first_row_on() -> None:
    event = row(4, call=9)
    state = touch(State(), event)
    assert state.open == {(7, 9): Open()}
    known = within(state, event, alloc=event)
    assert known.open == {(7, 9): Open(alloc=event)}
    # What is known of it stays, and a fault is no call.
    assert touch(known, row(5, call=9)) is known
    assert touch(known, row(5)) is known
    assert within(State(), event, alloc=event) == known
    more = within(known, row(5), failed=(event,))
    assert more.open == {(7, 9): Open(alloc=event), (7, 0): Open(failed=(event,))}


def test_an_area_is_changed_as_a_whole() -> None:
    state = State(areas=(area(0, 10), area(10, 20), area(20, 30)))
    changed = amend(state, 9, 11, excused=True)
    assert [one.excused for one in changed.areas] == [True, True, False]
    changed = amend(state, 10, 20, excused=True)
    assert [one.excused for one in changed.areas] == [False, True, False]


def test_what_of_an_area_lies_in_a_range() -> None:
    assert trim(area(10, 20), 5, 15) == area(10, 15)
    assert trim(area(10, 20), 15, 25) == area(15, 20)


def test_the_latest_is_the_one_that_was_told_last() -> None:
    early, late = row(3), row(4)
    assert latest([early, None, late, None]) is late
    assert latest([late, early]) is late
    assert latest([None]) is None
    assert latest([]) is None
