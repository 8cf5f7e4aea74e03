"""What functions are told, and what they return, in Linux 6.12 and 7.2."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from nativemachine import (
    BIND,
    ENOMEM,
    NEWER,
    NEWEST,
    NUMBERS,
    PAGE,
    PLACES,
    START,
    TAG,
    Machine,
)
from signatures import OFFSETS

from cdmtrace.events import Bit, EventKind, Lock, Probe, VmaLock, lock_byte

CDM = NUMBERS["CDM_NODES"]
NODE = CDM.bit_length() - 1
READER, WRITER = 1 << 8, 1
"""What one of them adds to the count of an rw_semaphore."""


@pytest.fixture
def machine(boot: Callable[..., Machine]) -> Machine:
    return boot(**NEWER)


# --- the lock that a VMA has of its own -----------------------------------------


def locked(
    machine: Machine, *, mmap: int = 0, own: int = 0, seq: tuple[int, int] = (1, 2)
) -> int:
    """Return a VMA whose locks have these counts, and it and its mm these numbers."""
    mm = machine.mm(watched=True)
    sem = mm + PLACES["OFF_mm_struct_mmap_lock"]
    machine.write(sem + PLACES["OFF_rw_semaphore_count"], mmap)
    machine.write(sem + PLACES["OFF_rw_semaphore_owner"], machine.task)
    lock = machine.words()
    count = PLACES["OFF_vma_lock_lock"] + PLACES["OFF_rw_semaphore_count"]
    machine.write(lock + count, own)
    machine.set(mm, "mm_struct", mm_lock_seq=seq[1])
    return machine.vma(mm, vm_lock=lock, vm_lock_seq=seq[0], vm_flags=TAG)


@pytest.mark.parametrize(
    ("vma", "expected"),
    [
        ({"own": READER}, (Lock.NONE, VmaLock.READ)),
        ({"own": 3 * READER, "mmap": 2 * READER}, (Lock.READ, VmaLock.READ)),
        ({"mmap": READER}, (Lock.READ, VmaLock.NONE)),
        ({}, (Lock.NONE, VmaLock.NONE)),
        # That they are the same says nothing as long as nobody holds the other lock.
        ({"seq": (7, 7)}, (Lock.NONE, VmaLock.NONE)),
        ({"mmap": WRITER, "seq": (7, 7)}, (Lock.WRITE_SELF, VmaLock.WRITE)),
        # It may be about to be taken, or need not be.
        ({"mmap": WRITER, "seq": (6, 7)}, (Lock.WRITE_SELF, VmaLock.UNKNOWN)),
    ],
)
def test_both_locks_are_told(
    machine: Machine, vma: dict[str, int], expected: tuple[Lock, VmaLock]
) -> None:
    address = locked(machine, **vma)
    machine.enter("alloc_entry", 0, 0, address, START)
    machine.leave("alloc_return", machine.page(NODE))
    (row,) = machine.rows
    assert row["lock_entry"] == row["lock_exit"] == lock_byte(*expected)


@pytest.mark.parametrize(
    ("count", "expected"),
    [
        (0, VmaLock.NONE),
        (1, VmaLock.NONE),
        (2, VmaLock.READ),
        # Somebody waits to write, for a reader or for nobody.
        (1 << 30 | 1, VmaLock.NONE),
        (1 << 30 | 3, VmaLock.READ),
    ],
)
def test_readers_may_be_counted_in_the_vma(
    boot: Callable[..., Machine], count: int, expected: VmaLock
) -> None:
    machine = boot(**NEWEST)
    address = locked(machine)
    machine.set(address, "vm_area_struct", vm_refcnt=count)
    machine.enter("alloc_entry", 0, 0, address, START)
    machine.leave("alloc_return", machine.page(NODE))
    (row,) = machine.rows
    assert row["lock_entry"] == lock_byte(Lock.NONE, expected)
    machine.write(
        machine.vma_mm(address)
        + PLACES["OFF_mm_struct_mmap_lock"]
        + PLACES["OFF_rw_semaphore_count"],
        WRITER,
    )
    machine.set(address, "vm_area_struct", vm_lock_seq=2)
    machine.enter("alloc_entry", 0, 0, address, START)
    machine.leave("alloc_return", machine.page(NODE))
    assert machine.rows[1]["lock_exit"] == lock_byte(Lock.WRITE_SELF, VmaLock.WRITE)


def test_a_kernel_without_such_locks_tells_of_none(
    boot: Callable[..., Machine],
) -> None:
    machine = boot()
    address = locked(machine, own=READER)
    machine.enter("alloc_entry", 0, 0, address, START)
    machine.leave("alloc_return", machine.page(NODE))
    (row,) = machine.rows
    assert row["lock_entry"] == lock_byte(Lock.NONE, VmaLock.UNKNOWN)


# --- merges ---------------------------------------------------------------------


def asked(machine: Machine, mm: int, start: int, end: int) -> int:
    """Return a struct vma_merge_struct."""
    vmg = machine.words()
    for member, value in (("mm", mm), ("start", start), ("end", end), ("flags", TAG)):
        machine.write(vmg + OFFSETS["6.12"]["vma_merge_struct", member], value)
    return vmg


def test_what_is_larger_than_was_asked_for_has_merged(machine: Machine) -> None:
    mm = machine.mm(watched=True)
    vma = machine.vma(mm, vm_end=START + 3 * PAGE, vm_flags=TAG)
    machine.enter("merge_entry", asked(machine, mm, START + PAGE, START + 3 * PAGE))
    machine.leave("merge_return", vma)
    (row,) = machine.rows
    assert (row["kind"], row["probe"]) == (EventKind.VMA_MERGE, Probe.VMA_MERGE)
    assert (row["addr"], row["size"]) == (START + PAGE, 2 * PAGE)
    assert (row["start"], row["end"]) == (START, START + 3 * PAGE)


@pytest.mark.parametrize("error", [0, ENOMEM])
def test_what_is_as_it_was_asked_for_has_not(machine: Machine, error: int) -> None:
    mm = machine.mm(watched=True)
    vma = (1 << 64) - error if error else machine.vma(mm)
    machine.enter("merge_entry", asked(machine, mm, START, START + PAGE))
    machine.leave("merge_return", vma)
    assert machine.rows == []


@pytest.mark.parametrize(("named", "merged"), [(CDM, False), (1, False), (CDM, True)])
def test_a_failure_of_mbind_is_read_where_nothing_has_merged(
    machine: Machine, named: int, merged: bool
) -> None:
    """Also where the mm was not known to be worth watching when it tried."""
    mm = machine.mm()
    vma = machine.vma(mm)
    machine.set(vma, "vm_area_struct", vm_end=START + 3 * PAGE)
    start, end = START + PAGE, START + 2 * PAGE
    policy = machine.policy(BIND, named)
    machine.enter("mbind_range_entry", 0, vma, machine.words(), start, end, policy)
    machine.enter("merge_entry", asked(machine, mm, start, end))
    found = vma if merged else machine.vma(mm, start)
    machine.leave("merge_return", found)
    machine.set(vma, "vm_area_struct", vm_flags=TAG)
    machine.leave("mbind_range_return", (1 << 64) - ENOMEM)
    row = machine.rows[-1]
    assert row["kind"] == EventKind.POLICY
    assert bool(row["bits"] & Bit.VMA_UNREAD) == merged


def test_what_is_new_merges_by_a_function_of_its_own(machine: Machine) -> None:
    mm = machine.mm(watched=True)
    vma = machine.vma(mm, vm_end=START + 2 * PAGE)
    machine.enter("merge_new_entry", asked(machine, mm, START + PAGE, START + 2 * PAGE))
    machine.leave("merge_new_return", 0)
    assert machine.rows == []
    machine.enter("merge_new_entry", asked(machine, mm, START + PAGE, START + 2 * PAGE))
    machine.leave("merge_new_return", vma)
    (row,) = machine.rows
    assert (row["kind"], row["end"]) == (EventKind.VMA_MERGE, START + 2 * PAGE)


# --- what NUMA balancing moves --------------------------------------------------


@pytest.mark.parametrize(("returned", "told"), [(0, 1), ((1 << 64) - 11, 0)])
def test_a_page_that_was_moved_is_one(
    machine: Machine, returned: int, told: int
) -> None:
    vma = machine.vma(machine.mm(watched=True))
    machine.enter("numa_move_entry", machine.page(NODE), vma, 0)
    machine.leave("numa_move_return", returned)
    (row,) = machine.rows
    assert (row["kind"], row["ret"]) == (EventKind.NUMA_MOVE, told)


# --- NUMA balancing's moves, where no VMA is told -------------------------------


@pytest.mark.parametrize("asked", [True, False])
def test_the_vma_that_was_asked_is_the_page_s(
    boot: Callable[..., Machine], asked: bool
) -> None:
    machine = boot(**NEWEST)
    vma = machine.vma(machine.mm(watched=True))
    page, other = (machine.page(NODE, mapping=1) for _ in range(2))
    machine.enter("numa_move_look", page, vma)
    machine.enter("numa_move_looked", page if asked else other, 0)
    machine.leave("numa_move_return", 0)
    rows = [row for row in machine.rows if row["kind"] == EventKind.NUMA_MOVE]
    assert [
        (int(row["src_node"]), int(row["node"]), int(row["ret"])) for row in rows
    ] == [(NODE, 0, 1)] * asked
    # It was asked for that page, and once.
    machine.enter("numa_move_looked", page, 0)
    machine.leave("numa_move_return", 0)
    assert len(machine.rows) == asked
    assert machine.waiting == 0
