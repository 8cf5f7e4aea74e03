"""What rows of many pages do to an address space: fork, mremap, the first look."""

from __future__ import annotations

import struct
from typing import Any

import pytest
from mappings import (
    BASE,
    BIG,
    BOUND,
    CDM,
    EVERYTHING,
    NO_POLICY,
    PAGE,
    PLAIN,
    TAG,
    TERMS,
    area,
    at,
    mm,
    page,
    pages,
    places,
    row,
)
from msgspec.structs import replace

from cdmtrace.analysis.account import (
    is_ram,
    on_copy,
    on_move,
    on_ram,
    on_snapshot,
)
from cdmtrace.analysis.frames import Event
from cdmtrace.analysis.pages import Page, PageMap
from cdmtrace.analysis.state import Area, Policy, Rise, State
from cdmtrace.events import Bit, EventKind, Mpol, MpolFlag

# --- fork --------------------------------------------------------------------------


def copied(parent: State | None, child: State | None = None, **columns: Any) -> State:
    """The VMA of pages [0, 16) is copied to a child."""
    given = {"size": 16 * PAGE, "node": -1, "other": 1} | columns
    event = row(9, EventKind.COPY, **given)
    state, notes = on_copy(child or State(whole=True), event, TERMS, parent)
    assert notes == ()
    return state


def test_what_a_child_gets() -> None:
    held = page(3, explicit=True)
    known = area(
        flags=PLAIN | TAG,
        policy=BOUND,
        set_by=row(3, EventKind.POLICY),
        rise=Rise(start=BASE, end=at(1), event=held.event, before=None),
        excused=True,
        patched=False,
        standing="missing",
        justified=held.event,
    )
    parent = mm(held, page(20), ram=(page(4), page(21)), areas=(known,))
    child = copied(parent, flags_after=PLAIN | TAG, policy=Mpol.BIND, nodes=CDM)
    (found,) = child.areas
    event = found.seen
    assert event
    assert found == replace(
        known, seen=event, seen_ts=event.ts, rise=None, inherited=True, excused=False
    )
    assert pages(child) == [replace(held, how="fork", explicit=False, event=event)]
    assert places(child.ram) == [4]
    assert child.whole
    assert child.dirty == (BASE,)


def test_a_child_gets_pages_where_there_are_any() -> None:
    child = copied(mm(page(3), ram=(page(4),)), size=0)
    assert (places(child.pages), places(child.ram)) == ([], [])


def test_a_child_knows_as_much_as_its_parent() -> None:
    assert not copied(mm(whole=False)).whole
    assert not copied(None).whole


@pytest.mark.parametrize(
    ("had", "has", "cleared"),
    [(True, False, 9), (True, True, 2), (False, False, 2), (False, True, 2)],
)
def test_a_tag_that_a_fork_drops(had: bool, has: bool, cleared: int) -> None:
    known = area(flags=PLAIN | TAG * had, cleared=row(2, EventKind.FLAGS))
    (found,) = copied(mm(areas=(known,)), flags_after=PLAIN | TAG * has).areas
    assert found.cleared
    assert found.cleared.seq == cleared
    assert found.inherited is has
    assert found.patched is has


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize(
    ("tag", "bound", "file"),
    [(0, 0, 0), (1, 0, 0), (0, 1, 0), (1, 1, 1), (1, 0, 1)],
)
def test_a_vma_of_which_nobody_knew_in_the_parent(whole, tag, bound, file) -> None:
    state = copied(
        State(whole=whole),
        flags_after=PLAIN | TAG * tag,
        policy=Mpol.BIND if bound else Mpol.DEFAULT,
        nodes=CDM * bound,
        bits=int(Bit.FILE) * file,
    )
    (found,) = state.areas
    event = found.seen
    assert event
    assert found == Area(
        start=BASE,
        end=at(16),
        flags=PLAIN | TAG * tag,
        policy=BOUND if bound else NO_POLICY,
        seen=event,
        seen_ts=event.ts,
        since=0,
        pages_known=whole or not (tag or bound),
        inherited=bool(tag),
        patched=bool(tag),
        by_driver=bool(tag and file and not bound),
    )


def test_a_child_has_the_vma_that_its_row_shows() -> None:
    """The parent's may have been split or merged since it was seen."""
    columns = {"start": at(4), "end": at(12), "policy": Mpol.BIND, "nodes": CDM}
    known = area(-4, 20, flags=PLAIN | TAG)
    (found,) = copied(mm(areas=(known,)), **columns).areas
    assert (found.start, found.end) == (at(4), at(12))
    assert (found.flags, found.policy) == (PLAIN, BOUND)


def test_a_policy_that_was_not_read_gives_a_child_no_doubts() -> None:
    (found,) = copied(State(), policy=Mpol.UNREAD).areas
    assert (found.policy, found.pages_known) == (None, True)


def test_the_policy_of_a_file_goes_to_the_child() -> None:
    """The row cannot tell of it."""
    shared = Policy(byte=Mpol.BIND | MpolFlag.SHARED, nodes=CDM)
    (found,) = copied(mm(areas=(area(policy=shared),))).areas
    assert found.policy == shared


# --- mremap ------------------------------------------------------------------------


def moved(state: State, first: int, count: int, to: int, **columns: Any) -> State:
    """Pages [first, first + count) are at page to now."""
    given = {
        "start": at(to),
        "end": at(to + count),
        "size": count * PAGE,
        "other": at(to),
        "node": -1,
    } | columns
    event = row(9, EventKind.MOVE, first, **given)
    return on_move(state, event, TERMS, event.addr, event.size, event.other)


def test_a_part_of_a_vma_that_moves() -> None:
    known = area(flags=PLAIN | TAG, set_by=row(3, EventKind.POLICY))
    beside = area(16, 20)
    state = mm(
        *(page(number) for number in (3, 4, 7, 8)),
        ram=(page(5), page(9)),
        areas=(known, beside),
    )
    state = moved(state, 4, 4, 104, flags_after=PLAIN | TAG)
    assert places(state.pages) == [3, 8, 104, 107]
    assert places(state.ram) == [9, 105]
    there = state.area(at(104))
    assert there
    assert (there.start, there.end) == (at(104), at(108))
    assert there.set_by is known.set_by
    assert there.inherited is True
    assert (there.seen_ts, there.seen and there.seen.seq) == (9000, 9)
    # What was there is told to be gone by others.
    assert state.areas[:2] == (known, beside)
    assert set(state.dirty) == {at(104), at(4)}


def test_what_moves_without_a_tag_inherits_none() -> None:
    state = moved(mm(page(4)), 4, 4, 104)
    there = state.area(at(104))
    assert there
    assert there.inherited is False


def test_a_move_that_its_call_alone_has_told_shows_no_vma() -> None:
    """The row of mremap() is about another range."""
    event = row(9, EventKind.CALL, 4, size=4 * PAGE, other=at(104))
    state = on_move(mm(page(4)), event, TERMS, at(4), 4 * PAGE, at(104))
    assert places(state.pages) == [104]
    assert [one.start for one in state.areas] == [BASE, at(104)]
    assert state.areas[1].seen
    assert (state.areas[1].seen.seq, state.areas[1].seen_ts) == (1, 9000)


@pytest.mark.parametrize(
    ("to", "count"), [(104, 1), (105, 4)], ids=["aligned", "not aligned"]
)
def test_a_huge_page_stays_one_where_it_can(to: int, count: int) -> None:
    big = page(4, size=BIG)
    state = moved(mm(big, ram=(page(8, size=BIG),)), 4, 8, to)
    assert state.pages.count == count
    assert state.ram.count == count
    assert state.pages.on_nodes(at(to), at(to + 8)) == {1: BIG}


def test_a_huge_page_of_which_a_part_moves() -> None:
    """At either end."""
    state = mm(page(0, size=BIG), page(4, size=BIG), page(8, size=BIG))
    state = moved(state, 2, 8, 102)
    assert places(state.pages) == [0, 1, 10, 11, 102, 103, 104, 108, 109]
    assert [one.size for one in pages(state)] == [PAGE] * 6 + [BIG] + [PAGE] * 2


@pytest.mark.parametrize("node", [0, 1])
def test_what_came_or_went_at_the_new_place_meanwhile_is_newer(node: int) -> None:
    """Between the entry of the move and its end."""
    newer = page(104, seq=8)
    gone = replace(page(105), event=replace(page(105).event, ts=8500))
    past = replace(page(106), event=replace(page(106).event, ts=8499))
    four = [page(number) for number in range(4, 8)]
    state = mm(
        *(four if node else [newer]),
        ram=(newer,) if node else tuple(four),
        gone=PageMap().put_all([gone, past]),
    )
    state = moved(state, 4, 4, 104)
    held, other = (state.pages, state.ram) if node else (state.ram, state.pages)
    assert places(held) == [106, 107]
    assert places(other) == [104]


# --- pages of other nodes ----------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "columns", "ram"),
    [
        (EventKind.MAP, {"node": 0}, True),
        (EventKind.MAP, {"node": 1}, False),
        (EventKind.MIGRATE, {"node": 0, "src_node": 1}, True),
        (EventKind.MIGRATE, {"node": 1, "src_node": 0}, False),
        (EventKind.UNMAP, {"node": 1, "src_node": 0}, True),
        (EventKind.UNMAP, {"node": 0, "src_node": 1}, False),
        (EventKind.ALLOC, {"node": 0}, True),
        (EventKind.ALLOC, {"node": 1}, False),
        (EventKind.ALLOC, {"node": 0, "flags_after": PLAIN | TAG}, False),
        (EventKind.POLICY, {"node": 0, "src_node": 0}, False),
    ],
)
def test_which_rows_are_about_pages_of_other_nodes(kind, columns, ram) -> None:
    assert is_ram(row(5, kind, **columns), TERMS) is ram


def other(number: int = 3, kind: EventKind = EventKind.MAP, **columns: Any) -> Event:
    given = {"node": 0, "src_node": 0} | columns
    return row(5, kind, number, **given)


def test_a_page_of_another_node_that_comes_and_goes() -> None:
    state = on_ram(mm(), other(), EVERYTHING, False)
    (held,) = state.ram.within(0, 1 << 64)
    assert held == Page.of(other(), "ram")
    state = on_ram(state, other(kind=EventKind.UNMAP), EVERYTHING, False)
    assert state == mm()
    # Where the recording does not tell of all of them it tells of none.
    assert on_ram(mm(), other(), TERMS, False) == mm()
    assert on_ram(mm(), other(kind=EventKind.ALLOC), EVERYTHING, False) == mm()


def test_one_that_was_replaced_is_gone_already() -> None:
    state = mm(ram=(page(3, node=0),))
    assert on_ram(state, other(kind=EventKind.UNMAP), EVERYTHING, True) == state


@pytest.mark.parametrize(
    ("whole", "there", "remembered"),
    [(True, True, []), (True, False, [3]), (False, True, [3]), (False, False, [3])],
)
def test_one_that_went_is_remembered(whole, there, remembered) -> None:
    state = mm(ram=(page(3, node=0),) if there else (), whole=whole)
    state = on_ram(state, other(kind=EventKind.UNMAP), EVERYTHING, False)
    assert places(state.gone) == remembered
    assert places(state.ram) == []


def test_a_page_that_migrates_to_another_node_has_left() -> None:
    """Also where a fork or an mremap brought it here meanwhile."""
    state = mm(page(3), page(4), limbo=PageMap().put_all([page(3), page(4)]))
    event = other(kind=EventKind.MIGRATE, src_node=1)
    state = on_ram(state, event, EVERYTHING, False)
    assert (places(state.pages), places(state.ram)) == ([4], [3])
    assert places(state.limbo) == [4]
    # Nothing of the kind is said of one that is mapped.
    state = on_ram(mm(page(3)), other(), EVERYTHING, False)
    assert places(state.pages) == [3]


def test_huge_and_small_pages_of_other_nodes() -> None:
    few = tuple(page(number, node=0) for number in (3, 4, 7, 8))
    big = other(4, size=BIG)
    state = on_ram(mm(ram=few), big, EVERYTHING, False)
    assert places(state.ram) == [3, 4, 8]
    part = on_ram(state, other(6), EVERYTHING, False)
    assert places(part.ram) == [3, 4, 5, 6, 7, 8]
    assert part.ram.on_nodes(at(4), at(8)) == {0: BIG}
    less = on_ram(state, other(6, EventKind.UNMAP), EVERYTHING, False)
    assert places(less.ram) == [3, 4, 5, 7, 8]
    again = on_ram(mm(ram=few), other(4), EVERYTHING, False)
    assert places(again.ram) == [3, 4, 7, 8]


def test_the_entry_of_a_huge_page_of_another_node() -> None:
    few = (page(4, node=0), page(5, node=0, how="before"), page(8, how="before"))
    event = other(4, EventKind.UNMAP, size=BIG)
    state = on_ram(mm(ram=few), event, EVERYTHING, False)
    assert places(state.ram) == [4, 8]


# --- what was there before ---------------------------------------------------------


def look(node: int, *spans: tuple[int, int]) -> Event:
    """Pages of a node that were found."""
    words = [n for a, b in spans for n in (at(a), (b - a) * PAGE)]
    payload = struct.pack(f"={len(words)}Q", *words)
    return row(5, EventKind.SNAP_RANGES, node=node, payload=payload)


@pytest.mark.parametrize("node", [0, 1])
def test_pages_that_are_found(node: int) -> None:
    event = look(node, (2, 4), (7, 8))
    state = on_snapshot(State(), event, TERMS)
    held, none = (state.pages, state.ram) if node else (state.ram, state.pages)
    assert list(held.within(0, 1 << 64)) == [
        Page(
            addr=at(number),
            size=PAGE,
            node=node,
            how="before",
            explicit=False,
            event=event,
        )
        for number in (2, 3, 7)
    ]
    assert none == PageMap()


def test_what_came_or_went_since_is_newer_than_what_is_found() -> None:
    came = page(2, how="cow")
    gone = replace(page(3), event=replace(page(3).event, ts=4500))
    past = replace(page(7), event=replace(page(7).event, ts=4499))
    state = mm(came, whole=False, gone=PageMap().put_all([gone, past]))
    state = on_snapshot(state, look(1, (2, 4), (7, 8)), TERMS)
    assert places(state.pages) == [2, 7]
    assert state.pages.get(at(2)) == came


def test_a_vma_that_is_found_is_judged_when_all_was_looked_at() -> None:
    event = row(5, EventKind.SNAP_VMA)
    state = on_snapshot(State(dirty=(7,)), event, TERMS)
    assert state.areas[0].seen is event
    assert state.dirty == (7,)


def test_of_what_is_whole_and_of_counts_nothing_is_taken() -> None:
    for event in (look(1, (2, 4)), row(5, EventKind.SNAP_VMA)):
        assert on_snapshot(State(whole=True), event, TERMS) == State(whole=True)
    for kind in (EventKind.SNAP_PAGES, EventKind.SNAP_MM):
        assert on_snapshot(State(), row(5, kind), TERMS) == State()
    assert on_snapshot(State(), replace(look(1), payload=None), TERMS) == State()
