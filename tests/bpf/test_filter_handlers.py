"""Of whom and of what the handlers tell where a filter leaves something out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Final

import pytest
from bpfnumbers import CDM_NODES as CDM
from bpfnumbers import RECORDER, arguments_of
from nativemachine import (
    BIND,
    HUGE,
    NUMBERS,
    PAGE,
    START,
    TAG,
    TASK,
    Machine,
    ended,
)

from cdmtrace.events import (
    EventKind,
    Probe,
)
from cdmtrace.filters import Filters


def faults(machine: Machine, mm: int, **members: int) -> int:
    """Return how many rows a fault on the CDM node leaves, in a VMA of this mm."""
    before = len(machine.rows)
    vma = machine.vma(mm, **members)
    machine.enter("rmap_add_new_anon", machine.page(1), vma, START)
    return len(machine.rows) - before


def acts(machine: Machine, pid: int, mm: int) -> int:
    """Return how many rows a fault of a process in its own mm leaves."""
    machine.be(pid)
    machine.live_in(mm)
    return faults(machine, mm)


def new_task(machine: Machine, parent: int, tgid: int, pid: int = 0) -> None:
    machine.be(parent)
    machine.enter("task_new", machine.struct("task_struct", tgid=tgid, pid=pid or tgid))


def test_a_child_is_followed_and_a_sibling_is_not(boot: Callable[..., Machine]) -> None:
    machine = boot(FOLLOW_PIDS=1)
    machine.follow(TASK)
    machine.enable(False)
    # They are made before recording begins, too.
    new_task(machine, TASK, 72)
    new_task(machine, 72, 73)
    new_task(machine, 80, 81)
    machine.enable(True)
    followed = {pid: acts(machine, pid, machine.mm()) for pid in (TASK, 72, 73, 80, 81)}
    assert followed == {TASK: 1, 72: 1, 73: 1, 80: 0, 81: 0}


def test_a_page_of_a_file_for_which_there_is_no_vma_is_told_of_who_is_named(
    boot: Callable[..., Machine],
) -> None:
    """shmem_alloc_folio() has none: who acts is asked, or where the fault is."""
    machine = boot(FOLLOW_PIDS=1, ALL=1, **arguments_of("6.12"))
    machine.follow(TASK)

    def told(pid: int, *, mm: int, vma: int = 0) -> bool:
        before = len(machine.rows)
        machine.be(pid)
        machine.live_in(mm)
        if vma:
            fault = machine.struct("vm_fault", vma=vma, address=START)
            machine.enter("shmem_begin", fault)
        machine.enter("shmem_alloc_entry", 0, 0, 0, 0)
        machine.leave("shmem_alloc_return", machine.page(1))
        machine.leave("shmem_end")
        return any(row["kind"] == EventKind.ALLOC for row in machine.rows[before:])

    ours, theirs = machine.mm(), machine.mm()
    assert told(TASK, mm=ours)
    assert not told(80, mm=theirs)
    assert not told(80, mm=theirs, vma=machine.vma(theirs))
    # In a fault in what is followed, whoever has it.
    assert told(80, mm=theirs, vma=machine.vma(ours))


def test_a_number_that_is_given_anew_is_another_process(
    boot: Callable[..., Machine],
) -> None:
    """Not when a thread ends, which had a number of its own."""
    machine = boot(FOLLOW_PIDS=1)
    machine.follow(TASK)
    new_task(machine, TASK, 72)
    thread = machine.struct("task_struct", tgid=72, pid=79)
    machine.enter("task_gone", thread)
    assert acts(machine, 72, machine.mm()) == 1
    machine.enter("task_gone", machine.struct("task_struct", tgid=72, pid=72))
    assert acts(machine, 72, machine.mm()) == 0


def test_a_thread_s_number_is_no_process_s(boot: Callable[..., Machine]) -> None:
    machine = boot(FOLLOW_PIDS=1)
    machine.follow(TASK)
    new_task(machine, TASK, TASK, pid=79)
    assert acts(machine, 79, machine.mm()) == 0


def test_whoever_acts_in_a_followed_address_space_is_told(
    boot: Callable[..., Machine],
) -> None:
    machine = boot(FOLLOW_PIDS=1)
    machine.follow(TASK)
    mm, other = machine.mm(), machine.mm()
    machine.be(80)
    machine.live_in(other)
    assert faults(machine, mm) == 0
    assert acts(machine, TASK, mm) == 1
    # What the named one does to others is theirs.
    assert faults(machine, other) == 0
    machine.be(80)
    machine.live_in(other)
    assert (faults(machine, mm), faults(machine, other)) == (1, 0)
    # A kernel thread has none of its own.
    machine.live_in(0)
    assert (faults(machine, mm), faults(machine, other)) == (1, 0)


def test_it_is_followed_to_its_end_and_no_further(boot: Callable[..., Machine]) -> None:
    machine = boot(FOLLOW_PIDS=1)
    machine.follow(TASK)
    mm = machine.mm()
    assert acts(machine, TASK, mm) == 1
    machine.be(80)
    assert ended(machine, mm) == [machine.id(mm)]
    # Another one lies where it lay.
    assert acts(machine, 80, mm) == 0


def test_exec_s_arguments_are_told(boot: Callable[..., Machine]) -> None:
    """They come into an mm that is not the task's yet; a stranger's is not either."""
    machine = boot(FOLLOW_PIDS=1)
    machine.follow(TASK)
    machine.be(TASK)
    machine.live_in(machine.mm())
    new = machine.mm()
    assert faults(machine, new) == 0
    for flags, told in ((0x8000, 0), (0x10000, 0), (0x18000, 1), (0, 1)):
        assert faults(machine, new, vm_flags=flags) == told
    machine.be(80)
    assert faults(machine, machine.mm(), vm_flags=0x18000) == 0


# Each set of numbers is a program to compile: what goes together is in one.
ALONE: Final = {"FOLLOW_PIDS": 1, "FOLLOW_CHILDREN": 0, "STACKS": 0}


@pytest.mark.parametrize("children", [0, 1])
def test_a_fork_with_and_without_children(
    boot: Callable[..., Machine], children: int
) -> None:
    """The child's address space is one from the beginning, before it has acted."""
    machine = boot(FOLLOW_PIDS=1) if children else boot(**ALONE)
    machine.follow(TASK)
    mm, child = machine.mm(), machine.mm()
    assert acts(machine, TASK, mm) == 1
    machine.enter("copy_entry", machine.vma(child), machine.vma(mm))
    machine.leave("copy_return")
    copies = [row for row in machine.rows if row["kind"] == EventKind.COPY]
    assert len(copies) == children
    machine.be(80)
    assert faults(machine, child) == children


def test_a_stranger_s_call_is_told_if_it_moves_what_is_followed(
    boot: Callable[..., Machine],
) -> None:
    machine = boot(FOLLOW_PIDS=1)
    machine.follow(TASK)
    mm, other = machine.mm(), machine.mm(watched=True)
    assert acts(machine, TASK, mm) == 1
    machine.be(80)
    machine.live_in(other)
    for about, told in ((other, 0), (mm, 1)):
        before = len(machine.rows)
        machine.call("move_pages", TASK, 1)
        machine.enter("migrate_entry", 0, 0, 0, 0, 0, 3)
        assert faults(machine, about) == told
        machine.leave("migrate_return")
        machine.call_ends(0)
        rows = machine.rows[before:]
        kinds = [EventKind.MIGRATE, EventKind.CALL] if told else []
        assert [row["kind"] for row in rows] == kinds
        assert {int(row["call"]) for row in rows} <= {int(r["call"]) for r in rows} - {
            0
        }
    # Of what he does to himself nothing is told.
    machine.call("mmap", 0, PAGE)
    machine.call_ends(START)
    assert machine.rows[-1]["probe"] == Probe.SYS_MOVE_PAGES


ALL_KINDS: Final = Filters(
    pids=(72,), cgroup=Path("/x"), comm="fifteen_letters"
).numbers()


@pytest.mark.parametrize(
    ("comm", "told"),
    [
        (b"fifteen_letters", 1),
        (b"fifteen_letter", 0),
        (b"fifteen_letterz", 0),
        (b"", 0),
    ],
)
def test_a_name_is_compared_to_its_end(
    boot: Callable[..., Machine], comm: bytes, told: int
) -> None:
    machine = boot(**ALL_KINDS)
    machine.follow(80)
    machine.join_cgroup(True)
    machine.name(comm)
    assert acts(machine, 80, machine.mm()) == told


def test_filters_of_several_kinds_hold_together(boot: Callable[..., Machine]) -> None:
    machine = boot(**ALL_KINDS)
    machine.follow(72)
    told = set()
    for pid in (72, 80):
        for group in (False, True):
            for comm in (b"fifteen_letters", b"other"):
                machine.join_cgroup(group)
                machine.name(comm)
                if acts(machine, pid, machine.mm()):
                    told.add((pid, group, comm))
    assert told == {(72, True, b"fifteen_letters")}


def test_the_recorder_is_not_followed(boot: Callable[..., Machine]) -> None:
    machine = boot(ALL=1, FOLLOW_CGROUP=1)
    machine.join_cgroup(True)
    assert acts(machine, RECORDER, machine.mm()) == 0


RANGED: Final = {
    "ADDR_START": START + 2 * PAGE,
    "ADDR_END": START + 5 * PAGE,
    "STACKS": 1,
}


@pytest.fixture
def ranged(boot: Callable[..., Machine]) -> Machine:
    return boot(**RANGED)


def test_pages_outside_of_the_range_are_left_out(ranged: Machine) -> None:
    vma = ranged.vma(ranged.mm(), vm_end=START + 9 * PAGE)
    for page in range(9):
        ranged.enter("rmap_add_new_anon", ranged.page(1), vma, START + page * PAGE)
    inside = [START + page * PAGE for page in range(2, 5)]
    assert [row["addr"] for row in ranged.rows] == inside
    for page in range(9):
        there = ranged.page(1, mapping=8 | 1, index=page)
        ranged.enter("rmap_remove", there, vma, 0)
    assert [
        row["addr"] for row in ranged.rows if row["kind"] == EventKind.UNMAP
    ] == inside


def test_a_huge_page_that_reaches_into_the_range_is_told(ranged: Machine) -> None:
    vma = ranged.vma(ranged.mm(), vm_end=START + 9 * HUGE)
    head = 1 << NUMBERS["PG_HEAD"]
    for at in (START, START + HUGE):
        ranged.enter("rmap_add_new_anon", ranged.page(1, flags=head), vma, at)
    assert [(row["addr"], row["size"]) for row in ranged.rows] == [(START, HUGE)]


@pytest.mark.parametrize(
    ("first", "last", "told"), [(0, 2, 0), (0, 3, 1), (4, 9, 1), (5, 9, 0), (0, 9, 1)]
)
def test_vmas_outside_of_the_range_are_left_out(
    ranged: Machine, first: int, last: int, told: int
) -> None:
    mm = ranged.mm(watched=True)
    start, end = START + first * PAGE, START + last * PAGE
    vma = ranged.vma(mm, start, vm_end=end, vm_policy=ranged.policy(BIND, CDM))
    kept = ranged.words(vma)
    ranged.enter("mbind_range_entry", 0, vma, kept, start, end, 0)
    ranged.leave("mbind_range_return")
    ranged.enter("unmap_entry", 0, 0, vma, start, end)
    ranged.leave("unmap_return")
    ranged.enter("split_entry", mm, vma, start + PAGE)
    ranged.leave("split_return")
    ranged.enter("vma_new", vma)
    ranged.enter("numa_scan", vma, start, end)
    # What has merged is larger than what was asked for.
    ranged.enter("merge_entry", mm, 0, start, end - PAGE, 0)
    ranged.leave("merge_return", vma)
    kinds = [EventKind(row["kind"]) for row in ranged.rows]
    assert kinds == told * [
        *(EventKind.VMA_SEEN, EventKind.POLICY, EventKind.VMA_FREE),
        *(EventKind.VMA_SPLIT, EventKind.VMA_NEW, EventKind.NUMA_SCAN),
        EventKind.VMA_MERGE,
    ]


@pytest.mark.parametrize(
    ("old", "new", "told"), [(0, 9, 0), (1, 9, 1), (9, 4, 1), (9, 5, 0)]
)
def test_a_move_into_the_range_or_out_of_it_is_told(
    ranged: Machine, old: int, new: int, told: int
) -> None:
    mm = ranged.mm(watched=True)
    vma = ranged.vma(mm, vm_end=START + 20 * PAGE)
    at, to = START + old * PAGE, START + new * PAGE
    ranged.enter("move_entry", vma, at, vma, to, 2 * PAGE)
    ranged.leave("move_return", 2 * PAGE)
    assert len(ranged.rows) == told


@pytest.mark.parametrize("page", [1, 2, 4, 5])
def test_an_allocation_for_a_file_is_where_its_fault_is(
    ranged: Machine, page: int
) -> None:
    """The VMA that it is for stands on the stack, and has no addresses."""
    mm = ranged.mm(watched=True)
    vma = ranged.vma(mm, vm_end=START + 9 * PAGE)
    fault = ranged.struct("vm_fault", vma=vma, address=START + page * PAGE)
    ranged.enter("shmem_begin", fault)
    pseudo = ranged.struct("vm_area_struct")
    ranged.enter("alloc_entry", 0, 0, pseudo, 0)
    ranged.leave("alloc_return", ranged.page(1))
    assert [row["addr"] for row in ranged.rows] == (
        [START + page * PAGE] if 2 <= page < 5 else []
    )


def test_a_fault_outside_of_the_range_that_changes_flags_is_told(
    ranged: Machine,
) -> None:
    mm = ranged.mm(watched=True)
    vma = ranged.vma(mm, vm_end=START + 9 * PAGE)
    for flags in (0, TAG, TAG):
        ranged.enter("alloc_entry", 0, 0, vma, START)
        ranged.set(vma, "vm_area_struct", vm_flags=flags)
        ranged.leave("alloc_return", ranged.page(1))
    (row,) = ranged.rows
    assert (row["flags_before"], row["flags_after"]) == (0, TAG)


@pytest.mark.parametrize(
    ("numbers", "expected"), [({}, 2), (RANGED, 1), (ALONE, 0)], ids=["all", "1", "0"]
)
def test_of_what_stacks_are_taken(
    boot: Callable[..., Machine], numbers: dict[str, int], expected: int
) -> None:
    """An arrival has one, and an allocation that changes flags."""
    machine = boot(**numbers)
    mm, at = machine.mm(), START + 2 * PAGE
    if numbers is ALONE:
        machine.follow(TASK)
    machine.live_in(mm)
    vma = machine.vma(mm, at)
    machine.enter("rmap_add_new_anon", machine.page(1), vma, at)
    machine.enter("alloc_entry", 0, 0, vma, at)
    machine.set(vma, "vm_area_struct", vm_flags=TAG)
    machine.leave("alloc_return", machine.page(1))
    assert len(machine.rows) == 2
    assert machine.stacks == expected


def test_what_was_looked_at_is_followed(boot: Callable[..., Machine]) -> None:
    """Before its own process has done anything."""
    machine = boot(FOLLOW_PIDS=1)
    mm, other = machine.mm(), machine.mm()
    machine.be(RECORDER)
    machine.enter("snapshot_entry", machine.struct("seq_file"), machine.vma(mm))
    machine.leave("snapshot_return")
    machine.be(80)
    assert (faults(machine, mm), faults(machine, other)) == (1, 0)


def test_pages_that_services_move_are_where_they_are(ranged: Machine) -> None:
    """One of which that is not known is told."""
    vma = ranged.vma(ranged.mm(watched=True), vm_end=START + 9 * PAGE)
    for page in range(9):
        there = ranged.page(1, mapping=8 | 1, index=page)
        ranged.enter("numa_move_entry", there, vma, 0)
        ranged.leave("numa_move_return", 1)
        ranged.enter("ksm_merge_entry", vma, there, ranged.page(0))
        ranged.leave("ksm_merge_return")
    told = [START + page * PAGE for page in range(2, 5) for _ in range(2)]
    assert [row["addr"] for row in ranged.rows] == told
    ranged.enter("numa_move_entry", ranged.page(1, mapping=8 | 3), vma, 0)
    ranged.leave("numa_move_return", 1)
    assert ranged.rows[-1]["addr"] == 0


@pytest.mark.parametrize(("first", "last", "told"), [(0, 2, 0), (4, 6, 1), (5, 9, 0)])
def test_a_look_at_what_lies_outside_of_the_range(
    ranged: Machine, first: int, last: int, told: int
) -> None:
    mm = ranged.mm(watched=True)
    vma = ranged.vma(mm, START + first * PAGE, vm_end=START + last * PAGE)
    ranged.be(RECORDER)
    ranged.enter("snapshot_entry", ranged.struct("seq_file"), vma)
    ranged.leave("snapshot_return")
    assert len(ranged.rows) == told
