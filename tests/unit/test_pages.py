"""What rows of pages do to an address space, one row at a time."""

from __future__ import annotations

from typing import Any

import pytest
from mappings import (
    BASE,
    BIG,
    BOUND,
    CDM,
    PAGE,
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
    on_map,
    on_migrate,
    on_unmap,
)
from cdmtrace.analysis.frames import Event
from cdmtrace.analysis.notes import Arrived, Left
from cdmtrace.analysis.pages import Page, PageMap
from cdmtrace.analysis.state import Open, Policy
from cdmtrace.events import Bit, Cause, EventKind, Lock, Mpol, MpolFlag

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
