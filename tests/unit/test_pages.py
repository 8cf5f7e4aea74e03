"""What rows of pages do to an address space, one row at a time."""

from __future__ import annotations

import struct
from dataclasses import replace
from typing import Any

import pytest

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
from cdmtrace.analysis.frames import Event, Terms
from cdmtrace.analysis.notes import Arrived, Left
from cdmtrace.analysis.pages import Page, PageMap
from cdmtrace.analysis.state import Area, Open, Policy, Rise, State
from cdmtrace.events import Bit, Cause, EventKind, Lock, Mpol, MpolFlag

TAG, PLAIN, CDM, PAGE = 1 << 38, 0x100073, 1 << 1, 4096
BIG = 4 * PAGE
BASE = 0x100040000000
TERMS = Terms(cdm=CDM, tag=TAG)
EVERYTHING = replace(TERMS, all=True)
BOUND = Policy(byte=Mpol.BIND, nodes=CDM)
NO_POLICY = Policy(byte=Mpol.DEFAULT, nodes=0)


def at(number: int) -> int:
    return BASE + number * PAGE


def row(seq: int, kind: EventKind, number: int = 0, **columns: Any) -> Event:
    """A row about a page of the CDM node in the VMA of pages [0, 16)."""
    given: dict[str, Any] = {
        "ts": 1000 * seq,
        "ts_entry": 1000 * seq - 500,
        "tid": 7,
        "start": BASE,
        "end": at(16),
        "addr": at(number),
        "size": PAGE,
        "node": 1,
        "flags_before": PLAIN,
        "flags_after": PLAIN,
    }
    return Event(seq=seq, kind=kind, **{**given, **columns})


def area(first: int = 0, last: int = 16, **known: Any) -> Area:
    given = {
        "flags": PLAIN,
        "policy": NO_POLICY,
        "seen": row(1, EventKind.VMA_NEW),
        "seen_ts": 1000,
        "since": 0,
    } | known
    return Area(start=at(first), end=at(last), **given)


def page(number: int = 0, seq: int = 2, **known: Any) -> Page:
    given = {"size": PAGE, "node": 1, "how": "fault", "explicit": False} | known
    return Page(addr=at(number), event=row(seq, EventKind.MAP, number), **given)


def mm(*pages: Page, ram: tuple[Page, ...] = (), **known: Any) -> State:
    """A whole address space of one VMA with these pages."""
    return State(
        pages=PageMap().put_all(pages),
        ram=PageMap().put_all(ram),
        **{"areas": (area(),), "whole": True, **known},
    )


def pages(state: State) -> list[Page]:
    return list(state.pages.within(0, 1 << 64))


def places(held: PageMap) -> list[int]:
    """The numbers of the pages in a map."""
    return [(one.addr - BASE) // PAGE for one in held.within(0, 1 << 64)]


# --- pages that are mapped --------------------------------------------------------


def test_a_page_that_is_mapped() -> None:
    event = row(5, EventKind.MAP, 3, cause=Cause.FAULT)
    policy = row(2, EventKind.CALL)
    state, notes = on_map(mm(task_policy={7: policy, 8: event}), event, TERMS)
    (held,) = pages(state)
    assert held == Page.of(event, "fault")
    assert notes == (
        Arrived(
            event=event,
            page=held,
            named=False,
            asked=False,
            here=True,
            alloc=None,
            task_policy=policy,
            call=None,
        ),
    )
    assert state.dirty == (BASE,)
    assert state.areas[0].seen is event


@pytest.mark.parametrize(
    ("policy", "nodes", "named"),
    [
        (Mpol.BIND, CDM, True),
        (Mpol.BIND, 1, False),
        (Mpol.DEFAULT, 0, False),
        (Mpol.UNREAD, 0, None),
    ],
)
def test_whether_the_policy_names_the_node_of_a_page(policy, nodes, named) -> None:
    event = row(5, EventKind.MAP, policy=policy, nodes=nodes)
    for done in (on_map, on_migrate):
        _, (note,) = done(mm(), event, TERMS)
        assert note.named is named


def test_a_page_that_a_driver_maps_was_asked_for() -> None:
    state, (note,) = on_map(mm(), row(5, EventKind.MAP, cause=Cause.DRIVER), TERMS)
    assert note.asked is True
    assert pages(state)[0].explicit


@pytest.mark.parametrize(
    ("bits", "allocated", "here"),
    [
        (0, False, True),
        (0, True, True),
        (Bit.FILE, False, False),
        (Bit.FILE, True, True),
        (Bit.KSM, False, False),
        (Bit.KSM, True, False),
    ],
)
def test_whether_a_page_was_allocated_for_its_vma(bits, allocated, here) -> None:
    """A page of a file may be another one's; one that KSM shares is."""
    alloc = row(4, EventKind.ALLOC)
    fault = {(7, 0): Open(alloc=alloc if allocated else None)}
    _, (note,) = on_map(mm(open=fault), row(5, EventKind.MAP, bits=bits), TERMS)
    assert note.here is here
    assert note.alloc is (alloc if allocated else None)


@pytest.mark.parametrize(
    ("number", "own"), [(3, False), (4, True), (7, True), (8, False)]
)
def test_a_page_belongs_to_the_allocation_at_its_place(number: int, own: bool) -> None:
    alloc = row(4, EventKind.ALLOC, 4, size=BIG)
    fault = {(7, 0): Open(alloc=alloc)}
    _, (note,) = on_map(mm(open=fault), row(5, EventKind.MAP, number), TERMS)
    assert note.alloc is (alloc if own else None)
    # That of another thread is none of it.
    _, (note,) = on_map(mm(open=fault), row(5, EventKind.MAP, number, tid=8), TERMS)
    assert note.alloc is None


def test_the_policy_of_a_file_decides_where_its_allocation_says_so() -> None:
    shared = Mpol.BIND | MpolFlag.SHARED
    alloc = row(4, EventKind.ALLOC, policy=shared, nodes=CDM)
    fault = {(7, 0): Open(alloc=alloc)}
    state, (note,) = on_map(mm(open=fault), row(5, EventKind.MAP, bits=Bit.FILE), TERMS)
    assert note.named is True
    assert (note.event.policy, note.event.nodes) == (shared, CDM)
    assert state.areas[0].policy == Policy(byte=shared, nodes=CDM)
    # Any other allocation says nothing of the policy of the VMA.
    plain = replace(alloc, policy=Mpol.BIND)
    _, (note,) = on_map(
        mm(open={(7, 0): Open(alloc=plain)}), row(5, EventKind.MAP), TERMS
    )
    assert note.named is False


def test_the_policy_of_the_task_decides_where_its_allocation_says_so() -> None:
    """Also where the VMA has one: its file had none."""
    alloc = row(4, EventKind.ALLOC, other_policy=Mpol.PREFERRED, other=CDM)
    fault = {(7, 0): Open(alloc=alloc)}
    event = row(5, EventKind.MAP, policy=Mpol.BIND, nodes=CDM)
    state, (note,) = on_map(mm(open=fault), event, TERMS)
    assert note.named is False
    assert note.event == replace(
        event, policy=Mpol.DEFAULT, nodes=0, other_policy=Mpol.PREFERRED, other=CDM
    )
    assert state.areas[0].policy == BOUND


def test_the_row_of_a_part_of_a_huge_page() -> None:
    """Its entry is split: no page has come, and each part is told of in its turn."""
    big = page(4, size=BIG, explicit=True)
    state, notes = on_map(mm(big), row(5, EventKind.MAP, 6), TERMS)
    assert notes == ()
    assert places(state.pages) == [4, 5, 6, 7]
    assert [one.part for one in pages(state)] == [True, True, False, True]
    assert all(one.explicit and one.how == "fault" for one in pages(state))
    state, notes = on_map(state, row(6, EventKind.MAP, 5), TERMS)
    assert notes == ()
    assert [one.part for one in pages(state)] == [True, False, False, True]
    # Told once more, it is another page.
    state, (note,) = on_map(state, row(7, EventKind.MAP, 5), TERMS)
    assert note.page.addr == at(5)


@pytest.mark.parametrize("elsewhere", [True, False])
def test_a_new_page_in_the_place_of_a_part_of_a_huge_page(elsewhere: bool) -> None:
    """It is on another node, or an allocation of its size was for this place."""
    nodes = replace(TERMS, cdm=CDM | 1 << 2)
    big = page(4, size=BIG)
    alloc = None if elsewhere else row(4, EventKind.ALLOC, 6)
    state = mm(big, open={(7, 0): Open(alloc=alloc)})
    node = 2 if elsewhere else 1
    event = row(5, EventKind.MAP, 6, node=node, cause=Cause.FAULT)
    state, (note,) = on_map(state, event, nodes)
    assert note.page == Page.of(event, "fault")
    assert [one.part for one in pages(state)] == [False] * 4
    # One of another size was for the whole.
    state = mm(big, open={(7, 0): Open(alloc=row(4, EventKind.ALLOC, 4, size=BIG))})
    _, notes = on_map(state, row(5, EventKind.MAP, 6), nodes)
    assert notes == ()


def test_a_part_that_comes_from_another_node_is_a_page_that_came() -> None:
    nodes = replace(TERMS, cdm=CDM | 1 << 2)
    state = mm(page(6, part=True))
    _, (note,) = on_map(state, row(5, EventKind.MAP, 6, node=2), nodes)
    assert note.page.node == 2


def test_a_page_that_is_mapped_over_its_like_has_come() -> None:
    state, (note,) = on_map(mm(page(3)), row(5, EventKind.MAP, 3), TERMS)
    assert note.page.event.seq == 5
    assert state.pages.count == 1


def test_a_huge_page_leaves_no_room_for_small_ones() -> None:
    few = [page(number) for number in (3, 4, 7, 8)]
    state, _ = on_map(mm(*few), row(5, EventKind.MAP, 4, size=BIG), TERMS)
    assert places(state.pages) == [3, 4, 8]
    assert pages(state)[1].size == BIG


@pytest.mark.parametrize(
    ("columns", "how"),
    [
        ({"cause": Cause.FAULT}, "fault"),
        ({"cause": Cause.FAULT, "size": BIG}, "thp"),
        ({"cause": Cause.FAULT, "bits": Bit.KSM}, "ksm"),
        ({"cause": Cause.COW}, "cow"),
        ({"cause": Cause.DRIVER}, "driver"),
        ({"cause": Cause.COW, "bits": Bit.KSM}, "ksm"),
        # Of a newer format.
        ({"cause": 99}, "fault"),
        # No stack: huge pages in another one's address space are khugepaged's.
        ({}, "unknown"),
        ({"bits": Bit.FOREIGN}, "unknown"),
        ({"size": BIG}, "unknown"),
        ({"bits": Bit.FOREIGN, "size": BIG}, "khugepaged"),
        # The first policy that there is decides: the VMA's, else the task's.
        ({"cause": 2, "policy": Mpol.INTERLEAVE, "nodes": 3}, "interleave"),
        ({"cause": 2, "policy": Mpol.INTERLEAVE | 16, "nodes": 3}, "interleave"),
        ({"cause": 2, "policy": Mpol.WEIGHTED_INTERLEAVE, "nodes": 3}, "interleave"),
        ({"cause": 2, "policy": Mpol.INTERLEAVE, "nodes": 0}, "fault"),
        ({"cause": 2, "other_policy": Mpol.INTERLEAVE, "other": 3}, "interleave"),
        (
            {
                "cause": 2,
                "policy": Mpol.BIND,
                "nodes": 2,
                "other_policy": Mpol.INTERLEAVE,
                "other": 3,
            },
            "fault",
        ),
        (
            {
                "cause": 2,
                "policy": Mpol.UNREAD,
                "other_policy": Mpol.INTERLEAVE,
                "other": 3,
            },
            "interleave",
        ),
        (
            {"cause": 2, "size": BIG, "other_policy": Mpol.INTERLEAVE, "other": 3},
            "interleave",
        ),
    ],
)
def test_by_what_a_page_came(columns, how) -> None:
    columns = {"cause": Cause.UNKNOWN, **columns}
    state, (note,) = on_map(mm(), row(5, EventKind.MAP, **columns), TERMS)
    assert note.page.how == how
    assert pages(state) == [note.page]


# --- pages that are migrated -------------------------------------------------------


@pytest.mark.parametrize(
    ("columns", "how", "asked"),
    [
        # The stack says more than the kernel's reason.
        ({"cause": Cause.COMPACTION, "arg": 8}, "compaction", False),
        ({"cause": Cause.DRIVER, "arg": 5}, "driver", True),
        ({"cause": Cause.UNKNOWN, "arg": 8}, "demotion", False),
        ({"cause": Cause.UNKNOWN, "arg": 3}, "migration", None),
        ({"cause": 99, "arg": 5}, "numa-balancing", False),
        # Within its node nobody has named one.
        ({"cause": Cause.COMPACTION, "src_node": 1}, "compaction", None),
        ({"cause": Cause.DRIVER, "src_node": 1}, "driver", True),
    ],
)
def test_a_page_that_others_have_moved(columns, how, asked) -> None:
    event = row(5, EventKind.MIGRATE, 3, **{"src_node": 0, "arg": 3, **columns})
    state, notes = on_migrate(mm(), event, TERMS)
    (held,) = pages(state)
    assert held == Page.of(event, how, explicit=how == "driver")
    assert notes == (
        Arrived(
            event=event,
            page=held,
            named=False,
            asked=asked,
            here=True,
            alloc=None,
            task_policy=None,
            call=None,
        ),
    )
    assert state.dirty == (BASE,)
    assert state.areas[0].seen is event


def test_what_a_call_moves_is_told_when_it_returns() -> None:
    event = row(5, EventKind.MIGRATE, 3, call=9, src_node=0)
    state, notes = on_migrate(mm(open={(7, 9): Open()}), event, TERMS)
    assert notes == ()
    (held,) = pages(state)
    assert list(state.open[7, 9].arrived.within(0, 1 << 64)) == [held]
    assert state.dirty == (BASE,)
    # A call of which nothing is known is none.
    _, notes = on_migrate(mm(), event, TERMS)
    assert len(notes) == 1


@pytest.mark.parametrize("call", [0, 9])
@pytest.mark.parametrize(
    ("columns", "back"),
    [
        ({"src_node": 1}, True),
        ({"src_node": -1}, True),
        # It is another one, from elsewhere, or of another size, or elsewhere now.
        ({"src_node": 0}, False),
        ({"src_node": 1, "size": BIG}, False),
        ({"src_node": 2, "node": 2}, False),
    ],
)
def test_a_page_that_is_given_back(call: int, columns, back) -> None:
    was = page(3, how="cow", explicit=True)
    limbo = PageMap().put(was)
    state = mm(open={(7, 9): Open(limbo=limbo)}) if call else mm(limbo=limbo)
    event = row(5, EventKind.MIGRATE, 3, call=call, **columns)
    state, notes = on_migrate(state, event, TERMS)
    assert pages(state) == [was if back else Page.of(event, "compaction")]
    assert bool(notes) is (not back and not call)
    assert state.limbo == PageMap()
    assert state.dirty == (BASE,)


def test_what_a_fault_moves_to_find_room_came_by_no_call() -> None:
    """Compaction in its course is not what it asks for."""
    fault = {(7, 0): Open(limbo=PageMap().put(page(3)))}
    event = row(5, EventKind.MIGRATE, 3, src_node=1)
    state, notes = on_migrate(mm(open=fault), event, TERMS)
    assert len(notes) == 1
    assert state.open == fault


def test_a_call_gives_back_only_what_it_has_taken() -> None:
    was = page(3, how="cow")
    state = mm(open={(7, 9): Open()}, limbo=PageMap().put(was))
    event = row(5, EventKind.MIGRATE, 3, call=9, src_node=1)
    state, _ = on_migrate(state, event, TERMS)
    assert pages(state)[0].event is event
    assert state.limbo == PageMap()


# --- pages that leave --------------------------------------------------------------


def unmap(number: int = 3, **columns: Any) -> Event:
    """A row of the CDM node's page that is no more."""
    given = {"src_node": 1, "node": -1, "lock_exit": Lock.READ} | columns
    return row(5, EventKind.UNMAP, number, **given)


def test_a_page_that_leaves() -> None:
    gone, event = page(3), unmap()
    state, notes = on_unmap(mm(page(2), gone, page(4)), event, TERMS, False)
    assert notes == (Left(event=event, page=gone),)
    assert places(state.pages) == [2, 4]
    assert places(state.limbo) == [3]
    found = state.areas[0]
    assert (found.seen, found.excused, found.ended) == (event, True, None)
    assert found.pages_known
    assert state.dirty == (BASE,)
    assert state.gone == PageMap()


@pytest.mark.parametrize("number", [0, 15, 16])
def test_a_page_that_others_take_is_an_excuse_of_its_own_vma(number: int) -> None:
    areas = (area(), area(16, 20))
    event = replace(unmap(number), start=at(0), end=at(16))
    if number == 16:
        event = replace(event, start=at(16), end=at(20))
    state, _ = on_unmap(mm(page(number), areas=areas), event, TERMS, False)
    assert [one.excused for one in state.areas] == [number < 16, number == 16]


def test_a_page_at_address_0_is_one_like_any_other() -> None:
    low = replace(page(), addr=0)
    event = replace(unmap(), addr=0, start=0, end=PAGE)
    state, notes = on_unmap(mm(low), event, TERMS, False)
    assert notes == (Left(event=event, page=low),)
    assert state.pages == PageMap()


def test_the_last_page_of_a_vma_takes_its_reason_along() -> None:
    other = area(16, 20)
    event = unmap()
    state = mm(page(3), page(17), areas=(area(), other))
    state, _ = on_unmap(state, event, TERMS, False)
    assert [one.ended for one in state.areas] == [event, None]


@pytest.mark.parametrize("lock", [Lock.READ, Lock.WRITE_SELF])
def test_a_page_that_a_call_takes(lock: Lock) -> None:
    """What it took without the write lock is an excuse when it returns, not before."""
    gone = page(3)
    calls = {(7, 9): Open(limbo=PageMap().put(page(1)))}
    event = unmap(call=9, lock_exit=lock | 2 << 4)
    state, notes = on_unmap(mm(gone, open=calls), event, TERMS, False)
    assert notes == (Left(event=event, page=gone),)
    call = state.open[7, 9]
    assert places(call.limbo) == [1, 3]
    assert places(call.unlocked) == ([3] if lock == Lock.READ else [])
    assert state.limbo == PageMap()
    assert not state.areas[0].excused
    assert state.dirty == (BASE,)


def test_what_is_unmapped_is_remembered_for_a_while() -> None:
    state = mm(page(3), limbo=PageMap().put_all(page(n) for n in range(100, 1124)))
    state, _ = on_unmap(state, unmap(), TERMS, False)
    assert places(state.limbo) == [3]
    less = mm(page(3), limbo=PageMap().put_all(page(n) for n in range(100, 1123)))
    less, _ = on_unmap(less, unmap(), TERMS, False)
    assert less.limbo.count == 1024


@pytest.mark.parametrize("whole", [True, False])
def test_a_page_that_leaves_and_was_not_known(whole: bool) -> None:
    event = unmap()
    state, notes = on_unmap(
        mm(page(2), whole=whole, areas=(area(), area(16, 20))), event, TERMS, False
    )
    assert notes == (Left(event=event, page=None),)
    assert places(state.pages) == [2]
    assert [one.pages_known for one in state.areas] == [whole, True]
    assert [one.excused for one in state.areas] == [True, False]
    (gone,) = state.gone.within(0, 1 << 64)
    assert (gone.addr, gone.node, gone.how, gone.event) == (at(3), 1, "unknown", event)


def test_of_what_is_not_whole_every_page_that_left_is_remembered() -> None:
    state, _ = on_unmap(mm(page(3), whole=False), unmap(), TERMS, False)
    assert places(state.gone) == [3]
    full = PageMap().put_all(page(number) for number in range(100, 100 + 4096))
    state, _ = on_unmap(mm(whole=False, gone=full), unmap(), TERMS, False)
    assert places(state.gone) == [3]
    less = PageMap().put_all(page(number) for number in range(100, 100 + 4095))
    state, _ = on_unmap(mm(whole=False, gone=less), unmap(), TERMS, False)
    assert state.gone.count == 4096


def test_a_page_that_was_replaced_is_gone_already() -> None:
    new, event = page(3), unmap()
    state, notes = on_unmap(mm(new), event, TERMS, True)
    assert notes == (Left(event=event, page=None),)
    assert pages(state) == [new]
    # A huge page of which a part was replaced: not so.
    big = page(0, size=BIG)
    state, _ = on_unmap(mm(big), event, TERMS, True)
    assert places(state.pages) == [0, 1, 2]


def test_a_part_of_a_huge_page_that_leaves() -> None:
    event = unmap(2)
    state, (note,) = on_unmap(mm(page(0, size=BIG)), event, TERMS, False)
    assert note.page
    assert (note.page.addr, note.page.size) == (at(2), PAGE)
    assert places(state.pages) == [0, 1, 3]
    assert places(state.limbo) == [2]


def test_the_entry_of_a_huge_page_leaves_its_parts() -> None:
    """But for those from before: what looked like small pages was a huge one."""
    known, before, far = page(1), page(2, how="before"), page(4, how="before")
    event = unmap(0, size=BIG)
    state, notes = on_unmap(mm(page(0), known, before, far), event, TERMS, False)
    assert notes == ()
    assert places(state.pages) == [0, 1, 4]


def test_a_ksm_page_without_an_address() -> None:
    """It has many: which of them is meant is not known."""
    event = unmap(bits=Bit.KSM, addr=0)
    held = page(3)
    state, notes = on_unmap(mm(held, areas=(area(), area(16, 20))), event, TERMS, False)
    assert notes == (Left(event=event, page=None),)
    assert pages(state) == [held]
    assert [one.pages_known for one in state.areas] == [False, True]
    state, notes = on_unmap(mm(held), replace(event, addr=at(3)), TERMS, False)
    assert notes == (Left(event=replace(event, addr=at(3)), page=held),)


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
