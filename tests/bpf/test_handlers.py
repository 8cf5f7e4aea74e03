"""What the handlers make of calls, and of returns that are missed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import bpfnumbers
import pytest
from bpfnumbers import CDM_NODES as CDM
from bpfnumbers import RECORDER, VIEWER
from nativemachine import (
    BIND,
    DEFAULT,
    EFAULT,
    ENOMEM,
    HUGE,
    NUMBERS,
    PAGE,
    PREFERRED,
    START,
    TAG,
    TASK,
    Machine,
    ended,
)

from cdmtrace.events import (
    EVENT_DTYPE,
    POLICY_UNREAD,
    Bit,
    Cause,
    EventKind,
    Lock,
    MpolFlag,
    Probe,
)

# --- returns that are missed ----------------------------------------------------


def called(machine: Machine, mm: int) -> dict[str, tuple[Probe, tuple[int, ...]]]:
    """Return handler -> its probe, and arguments about a VMA of this mm."""
    vma, end = machine.vma(mm), START + PAGE
    kept, flags, seq = machine.words(vma), machine.words(0), machine.words(0)
    page, other = machine.page(0), machine.page(0)
    return {
        "alloc": (Probe.ALLOC, (0, 0, vma, START)),
        "copy": (Probe.COPY_PAGE_RANGE, (vma, vma)),
        "exit": (Probe.EXIT_MMAP, (mm,)),
        "ksm": (Probe.KSM_MADVISE, (vma, START, end, 12, flags)),
        "ksm_merge": (Probe.KSM_MERGE, (vma, page, other)),
        "mbind_range": (Probe.MBIND_RANGE, (0, vma, kept, START, end, 0)),
        "merge": (Probe.VMA_MERGE, (mm, 0, START, end, 0)),
        "migrate": (Probe.MIGRATE_PAGES, (0, 0, 0, 0, 0, 3)),
        "mlock": (Probe.MLOCK_FIXUP, (vma, kept, START, end, 0)),
        "move": (Probe.MOVE_PAGE_TABLES, (vma, START, vma, START, PAGE)),
        "mprotect": (Probe.MPROTECT_FIXUP, (0, vma, kept, START, end, 0)),
        "numa_move": (Probe.NUMA_MIGRATE, (page, vma, 0)),
        "rebind": (Probe.MPOL_REBIND, (mm, 0)),
        "snapshot": (Probe.SNAPSHOT, (seq, vma)),
        "split": (Probe.VMA_SPLIT, (mm, vma, START, 0)),
        "unmap": (Probe.VMA_FREE, (0, 0, vma, START, end)),
    }


HANDLERS = (
    *("alloc", "copy", "exit", "ksm", "ksm_merge", "mbind_range", "merge", "migrate"),
    *("mlock", "move", "mprotect", "numa_move", "rebind", "snapshot", "split"),
    "unmap",
)
OF_WATCHED = (
    *("copy", "ksm_merge", "merge", "mlock", "move", "mprotect", "numa_move"),
    *("split", "unmap"),
)


def begin(machine: Machine, handler: str) -> tuple[Probe, tuple[int, ...]]:
    """A function is called and told of; return its probe and its arguments."""
    machine.be(RECORDER if handler == "snapshot" else TASK)
    probe, arguments = called(machine, machine.mm(watched=True))[handler]
    machine.enter(f"{handler}_entry", *arguments)
    assert machine.waiting == 1
    return probe, arguments


@pytest.mark.parametrize("handler", HANDLERS)
def test_a_return_ends_what_waits_for_it(machine: Machine, handler: str) -> None:
    probe, _ = begin(machine, handler)
    machine.leave(f"{handler}_return")
    assert machine.waiting == 0
    assert machine.unpaired(probe) == 0


@pytest.mark.parametrize("handler", HANDLERS)
def test_the_next_call_takes_the_place_of_one_whose_return_was_missed(
    machine: Machine, handler: str
) -> None:
    probe, arguments = begin(machine, handler)
    machine.enter(f"{handler}_entry", *arguments)
    assert machine.waiting == 1
    assert machine.unpaired(probe) == 1


@pytest.mark.parametrize("ours", [RECORDER, VIEWER])
@pytest.mark.parametrize("handler", HANDLERS)
def test_so_does_one_of_a_task_that_is_not_told_of(
    machine: Machine, handler: str, ours: int
) -> None:
    probe, arguments = begin(machine, handler)
    if handler == "exit" and ours == RECORDER:
        # It may be the last to let go of an mm that it looked at.
        machine.enable(False)
    if handler == "numa_move":
        # Of the recorder's own memory, nothing is told.
        machine.set(machine.task, "task_struct", mm=machine.vma_mm(arguments[1]))
    machine.be(TASK if handler == "snapshot" else ours)
    machine.enter(f"{handler}_entry", *arguments)
    assert machine.waiting == 0
    assert machine.unpaired(probe) == 1


@pytest.mark.parametrize("handler", OF_WATCHED)
def test_so_does_one_of_an_mm_that_is_not_told_of(
    machine: Machine, handler: str
) -> None:
    probe, _ = begin(machine, handler)
    machine.enter(f"{handler}_entry", *called(machine, machine.mm())[handler][1])
    assert machine.waiting == 0
    assert machine.unpaired(probe) == 1
    machine.leave(f"{handler}_return")
    assert machine.rows == []


def test_so_does_an_allocation_for_no_vma(machine: Machine) -> None:
    begin(machine, "alloc")
    machine.enter("alloc_entry", 0, 0, 0, START)
    assert machine.waiting == 0
    assert machine.unpaired(Probe.ALLOC) == 1
    machine.leave("alloc_return", machine.page(1))
    assert machine.rows == []


@pytest.mark.parametrize("told", [True, False])
def test_a_migration_within_one_ends_before_it(machine: Machine, told: bool) -> None:
    """Also where recording stops meanwhile."""
    machine.enter("migrate_entry", 0, 0, 0, 0, 0, 3, sp=0x2000)
    machine.enable(told)
    machine.enter("migrate_entry", 0, 0, 0, 0, 0, 0, sp=0x1000)
    machine.leave("migrate_return")
    assert machine.waiting == 1
    machine.leave("migrate_return")
    assert machine.waiting == 0
    assert machine.unpaired(Probe.MIGRATE_PAGES) == 0


def test_so_does_the_unmapping_of_an_mm_that_ends(machine: Machine) -> None:
    _, arguments = begin(machine, "unmap")
    machine.enter("exit_entry", machine.vma_mm(arguments[2]))
    machine.enter("unmap_entry", *arguments)
    assert machine.waiting == 1
    assert machine.unpaired(Probe.VMA_FREE) == 1


def test_so_does_a_system_call_that_is_not_told_of(machine: Machine) -> None:
    mm = machine.mm(watched=True)
    machine.set(machine.task, "task_struct", mm=mm)
    machine.call("mmap", 0, PAGE)
    assert machine.waiting == 1
    machine.set(machine.task, "task_struct", mm=machine.mm())
    machine.call("mmap", 0, PAGE)
    assert machine.waiting == 0
    assert machine.unpaired(Probe.SYS_MMAP) == 1


# --- whose page it is -----------------------------------------------------------


def allocate_for_file(machine: Machine) -> Any:
    """A page is allocated for a VMA on the stack; return its row."""
    machine.enter("alloc_entry", 0, 0, machine.vma(0), 0)
    machine.leave("alloc_return", machine.page(1))
    assert machine.rows[-1]["kind"] == EventKind.ALLOC
    return machine.rows[-1]


def fault_on_file(machine: Machine) -> int:
    """A fault on a shmem file begins; return its VMA."""
    vma = machine.vma(machine.mm())
    fault = machine.struct("vm_fault", vma=vma, address=START)
    machine.enter("shmem_begin", fault)
    return vma


@pytest.fixture
def faulting(machine: Machine) -> int:
    """Return the VMA in which there is a fault on a shmem file."""
    return fault_on_file(machine)


@pytest.mark.parametrize("kernel", ["6.12", "7.2"])
def test_a_page_of_a_file_for_which_there_is_no_vma(
    boot: Callable[..., Machine], kernel: str
) -> None:
    """Since folio_alloc_mpol() is told of a policy, and of no VMA."""
    machine = boot(**bpfnumbers.arguments_of(kernel))

    def allocate() -> Any:
        machine.enter("shmem_alloc_entry", 0, 2, 0, 0)
        machine.leave("shmem_alloc_return", machine.page(1))
        return machine.rows[-1]

    vma = fault_on_file(machine)
    row = allocate()
    assert (row["kind"], row["node"]) == (EventKind.ALLOC, 1)
    assert (row["mm"], row["vma"]) == (machine.id(machine.vma_mm(vma)), 0)
    assert (row["addr"], row["size"]) == (START, 4 * PAGE)
    machine.leave("shmem_end")
    assert allocate()["mm"] == 0


def test_a_page_of_a_file_is_for_the_fault_that_it_is_allocated_in(
    machine: Machine, faulting: int
) -> None:
    row = allocate_for_file(machine)
    assert (row["mm"], row["addr"]) == (machine.id(machine.vma_mm(faulting)), START)
    machine.leave("shmem_end")
    assert allocate_for_file(machine)["mm"] == 0


@pytest.mark.parametrize("changed", ["mm", "start", "end"])
def test_a_fault_whose_return_was_missed_is_not_that_of_another_vma(
    machine: Machine, faulting: int, changed: str
) -> None:
    other = {
        "mm": {"vm_mm": machine.mm()},
        "start": {"vm_start": START + PAGE, "vm_end": START + 2 * PAGE},
        "end": {"vm_start": START - PAGE, "vm_end": START},
    }
    machine.set(faulting, "vm_area_struct", **other[changed])
    row = allocate_for_file(machine)
    assert (row["mm"], row["addr"]) == (0, 0)


# --- pages that the kernel moves of its own accord -----------------------------


def mapped(machine: Machine, node: int, place: int = 0, **members: int) -> int:
    """Return an anonymous page that is the place-th of its VMA."""
    return machine.page(node, mapping=0x1001, index=place, **members)


def moving(machine: Machine, vma: int, page: int, node: int, ret: int = 1) -> list[Any]:
    """NUMA balancing would move a page; return the rows of that."""
    before = len(machine.rows)
    machine.enter("numa_move_entry", page, vma, node)
    # It may be freed when it has been moved.
    machine.set(page, "page", flags=0, mapping=0, index=99)
    machine.leave("numa_move_return", ret)
    return machine.rows[before:]


def scanned(machine: Machine, vma: int) -> list[Any]:
    before = len(machine.rows)
    machine.enter("numa_scan", vma, START, START + 3 * PAGE)
    return machine.rows[before:]


@pytest.mark.parametrize(
    ("watched", "flags"), [(True, 0), (False, TAG), (False, 0), (True, TAG)]
)
def test_what_has_to_do_with_cdm_is_told_of_numa_balancing(
    machine: Machine, watched: bool, flags: int
) -> None:
    vma = machine.vma(machine.mm(watched=watched), vm_flags=flags)
    told = int(watched or bool(flags))
    assert len(moving(machine, vma, mapped(machine, 0), 0)) == told
    assert len(scanned(machine, vma)) == told


def test_a_range_that_is_scanned(machine: Machine) -> None:
    vma = machine.vma(machine.mm(watched=True))
    (row,) = scanned(machine, vma)
    assert (row["kind"], row["probe"]) == (EventKind.NUMA_SCAN, Probe.NUMA_SCAN)
    assert (row["addr"], row["size"]) == (START, 3 * PAGE)
    assert (row["start"], row["cause"]) == (START, Cause.NUMA_BALANCING)
    machine.be(RECORDER)
    assert scanned(machine, vma) == []


def test_a_lazy_mbind_scans_as_well(machine: Machine) -> None:
    mm = machine.mm(watched=True)
    machine.set(machine.task, "task_struct", mm=mm)
    machine.call("mprotect", START, PAGE)
    (row,) = scanned(machine, machine.vma(mm))
    assert row["cause"] == Cause.CALL


@pytest.mark.parametrize("ret", [0, 1])
def test_a_page_that_is_to_be_moved(machine: Machine, ret: int) -> None:
    vma = machine.vma(machine.mm(), vm_flags=TAG)
    machine.enter("numa_move_entry", mapped(machine, 1, 2), vma, 0)
    machine.set(vma, "vm_area_struct", vm_flags=0)
    machine.leave("numa_move_return", ret)
    (row,) = machine.rows
    assert (row["kind"], row["probe"]) == (EventKind.NUMA_MOVE, Probe.NUMA_MIGRATE)
    assert (row["src_node"], row["node"], row["ret"]) == (1, 0, ret)
    assert (row["addr"], row["size"]) == (START + 2 * PAGE, PAGE)
    assert (row["flags_before"], row["flags_after"]) == (TAG, 0)
    assert row["ts_entry"] < row["ts"]
    assert row["cause"] == Cause.NUMA_BALANCING


def test_a_page_that_is_to_go_to_a_cdm_node_is_told_of_anybody(
    machine: Machine,
) -> None:
    (row,) = moving(machine, machine.vma(machine.mm()), mapped(machine, 0), 1)
    assert (row["src_node"], row["node"]) == (0, 1)


def test_a_huge_page_is_one_move(machine: Machine) -> None:
    vma = machine.vma(machine.mm(watched=True))
    page = mapped(machine, 0, flags=1 << NUMBERS["PG_HEAD"])
    (row,) = moving(machine, vma, page, 1)
    assert (row["addr"], row["size"]) == (START, HUGE)


@pytest.mark.parametrize("mapping", [0, 0x1003])
def test_of_a_page_whose_index_does_not_tell_the_address_is_not_known(
    machine: Machine, mapping: int
) -> None:
    vma = machine.vma(machine.mm(watched=True))
    (row,) = moving(machine, vma, machine.page(0, mapping=mapping, index=2), 1)
    assert row["addr"] == 0


@pytest.mark.parametrize("ours", [RECORDER, VIEWER])
def test_the_recorder_can_have_the_page_of_another_moved(
    machine: Machine, ours: int
) -> None:
    vma = machine.vma(machine.mm(watched=True))
    machine.be(ours)
    machine.set(machine.task, "task_struct", mm=machine.mm())
    assert len(moving(machine, vma, mapped(machine, 1), 0)) == 1
    # Its own; and where it ends, it has none, and unmaps its own.
    for mm in (machine.vma_mm(vma), 0):
        machine.set(machine.task, "task_struct", mm=mm)
        assert moving(machine, vma, mapped(machine, 1), 0) == []


def merged(
    machine: Machine, vma: int, page: int, kpage: int, ret: int = 0
) -> list[Any]:
    """KSM tries to put kpage in the place of a page; return the rows of that."""
    before = len(machine.rows)
    machine.enter("ksm_merge_entry", vma, page, kpage)
    machine.set(page, "page", flags=0, mapping=0, index=99)
    machine.leave("ksm_merge_return", ret)
    return machine.rows[before:]


@pytest.mark.parametrize(
    ("watched", "flags", "nodes", "told"),
    [
        (True, 0, (0, 0), True),
        (False, TAG, (0, 0), True),
        (False, 0, (1, 0), True),
        (False, 0, (0, 1), True),
        (False, 0, (0, 0), False),
    ],
)
def test_what_has_to_do_with_cdm_is_told_of_ksm(
    machine: Machine, watched: bool, flags: int, nodes: tuple[int, int], told: bool
) -> None:
    vma = machine.vma(machine.mm(watched=watched), vm_flags=flags)
    old, new = (mapped(machine, node) for node in nodes)
    assert len(merged(machine, vma, old, new)) == told


@pytest.mark.parametrize(("mapping", "bit"), [(0x1003, Bit.KSM), (0, 0)])
def test_a_page_that_ksm_has_replaced(machine: Machine, mapping: int, bit: int) -> None:
    """By another, or by the page of zeros."""
    vma = machine.vma(machine.mm())
    kpage = machine.page(1, mapping=mapping)
    (row,) = merged(machine, vma, mapped(machine, 0, 2), kpage)
    assert (row["kind"], row["probe"]) == (EventKind.KSM_PAGE, Probe.KSM_MERGE)
    assert (row["src_node"], row["node"]) == (0, 1)
    assert (row["addr"], row["size"]) == (START + 2 * PAGE, PAGE)
    assert (row["cause"], row["bits"]) == (Cause.KSM, bit | Bit.FOREIGN)


def test_what_ksm_has_not_replaced_is_not_told(machine: Machine) -> None:
    vma = machine.vma(machine.mm(watched=True))
    page, other = mapped(machine, 1), mapped(machine, 1)
    assert merged(machine, vma, page, 0) == []
    assert merged(machine, vma, page, page) == []
    assert merged(machine, vma, page, other, ret=(1 << 64) - EFAULT) == []
    machine.be(RECORDER)
    assert merged(machine, vma, page, other) == []


# --- what a migration does to flags ---------------------------------------------


def remigrating(machine: Machine, vma: int, old: int, new: int) -> None:
    """An entry gets its page back: it was on node old, and is on node new."""
    pages = machine.page(new), machine.page(old)
    machine.enter("remigrate_entry", pages[0], vma, START, pages[1])


@pytest.mark.parametrize(("old", "new"), [(0, 1), (1, 0), (1, 1)])
def test_flags_that_a_migration_has_changed(
    machine: Machine, old: int, new: int
) -> None:
    vma = machine.vma(machine.mm(), vm_flags=TAG | 3)
    remigrating(machine, vma, old, new)
    machine.set(vma, "vm_area_struct", vm_flags=3)
    machine.leave("remigrate_return")
    (row,) = machine.rows
    assert (row["kind"], row["probe"]) == (EventKind.FLAGS, Probe.REMOVE_MIGRATION_PTE)
    assert (row["flags_before"], row["flags_after"]) == (TAG | 3, 3)
    assert (row["addr"], row["size"]) == (START, PAGE)
    assert (row["start"], row["end"]) == (START, START + PAGE)
    assert row["lock_entry"] == row["lock_exit"] == Lock.NONE
    assert row["ts_entry"] < row["ts"]


@pytest.mark.parametrize("given_back", [False, True])
def test_locks_of_a_migration_are_those_of_its_ends(
    machine: Machine, given_back: bool
) -> None:
    """Who gives his back while room is taken may have changed the flags before."""
    mm = machine.mm()
    vma = machine.vma(mm, vm_flags=TAG)
    sem = NUMBERS["OFF_mm_struct_mmap_lock"]
    count, owner = (NUMBERS[f"OFF_rw_semaphore_{x}"] for x in ("count", "owner"))
    remigrating(machine, vma, 1, 0)
    machine.write(mm + sem + count, 1)
    machine.write(mm + sem + owner, machine.words())
    if given_back:
        machine.clear_meanwhile(mm + sem + count)
    machine.set(vma, "vm_area_struct", vm_flags=0)
    machine.leave("remigrate_return")
    (row,) = machine.rows
    assert (row["lock_entry"], row["lock_exit"]) == (Lock.NONE, Lock.WRITE_OTHER)


def test_of_a_migration_that_changes_no_flags_nothing_is_told(machine: Machine) -> None:
    remigrating(machine, machine.vma(machine.mm(), vm_flags=TAG), 1, 0)
    machine.leave("remigrate_return")
    assert machine.rows == []


def test_pages_that_are_not_followed_tell_of_no_flags(machine: Machine) -> None:
    vma = machine.vma(machine.mm(watched=True), vm_flags=TAG)
    remigrating(machine, vma, 0, 0)
    machine.set(vma, "vm_area_struct", vm_flags=0)
    machine.leave("remigrate_return")
    assert machine.rows == []


@pytest.mark.parametrize("told", [True, False])
def test_a_migration_whose_return_was_missed_is_not_the_next_one(
    machine: Machine, told: bool
) -> None:
    """Its VMA may be gone, and another one where it was."""
    vma = machine.vma(machine.mm(), vm_flags=TAG)
    remigrating(machine, vma, 1, 0)
    machine.set(vma, "vm_area_struct", vm_flags=0)
    remigrating(machine, machine.vma(machine.mm()), int(told), 0)
    machine.leave("remigrate_return")
    assert machine.rows == []


@pytest.mark.parametrize("whole", [True, False])
def test_what_is_mapped_while_an_entry_gets_its_page_back_is_that_page(
    machine: Machine, whole: bool
) -> None:
    """Or a part of it; in the same VMA, and nothing else."""
    vma, other = (machine.vma(machine.mm()) for _ in range(2))
    folio = machine.page(1)
    page = folio if whole else machine.page(1, compound_head=folio + 1)
    machine.enter("remigrate_entry", folio, vma, START, machine.page(0))
    for what, where in ((page, vma), (page, other), (machine.page(1), vma)):
        machine.enter("rmap_add_anon", what, where, START, 0)
    assert [(row["kind"], row["src_node"], row["node"]) for row in machine.rows] == [
        (EventKind.MIGRATE, 0, 1),
        (EventKind.MAP, -1, 1),
        (EventKind.MAP, -1, 1),
    ]


# --- an mbind() that fails ------------------------------------------------------


class Range:
    """One VMA of a range that mbind() is called for, in an address space of its own."""

    def __init__(self, machine: Machine, asked: int = CDM) -> None:
        self.machine = machine
        self.mm = machine.mm()
        self.vma = machine.vma(self.mm)
        machine.set(self.vma, "vm_area_struct", vm_end=START + 3 * PAGE)
        arguments = START + PAGE, START + 2 * PAGE, machine.policy(BIND, asked)
        kept = machine.words()
        machine.enter("mbind_range_entry", 0, self.vma, kept, *arguments)

    def merge(self, found: int, *, seen: bool = True) -> None:
        """It asks for a merge; found: what it has become part of, or 0."""
        ends = START + PAGE, START + 2 * PAGE
        self.machine.enter("merge_entry", self.mm, 0, *ends, 0)
        if seen:
            self.machine.leave("merge_return", found)

    def fail(self) -> Any:
        """It fails when it has split off what lies before; return its row."""
        start = {"vm_start": START + PAGE}
        self.machine.set(self.vma, "vm_area_struct", vm_flags=TAG, **start)
        self.machine.leave("mbind_range_return", (1 << 64) - ENOMEM)
        row = self.machine.rows[-1]
        assert (row["kind"], row["ret"]) == (EventKind.POLICY, -ENOMEM)
        assert (row["addr"], row["size"]) == (START + PAGE, PAGE)
        return row


@pytest.mark.parametrize("asked", [CDM, 1])
def test_what_has_not_merged_is_told_as_a_failure_leaves_it(
    machine: Machine, asked: int
) -> None:
    """Also where nobody knew that the mm is worth watching when it tried to merge."""
    attempt = Range(machine, asked)
    attempt.merge(0)
    row = attempt.fail()
    assert not row["bits"] & Bit.VMA_UNREAD
    assert row["vma"] == machine.id(attempt.vma) >> 32
    assert (row["start"], row["end"]) == (START + PAGE, START + 3 * PAGE)
    assert (row["flags_before"], row["flags_after"]) == (0, TAG)
    assert (row["policy"], row["other_policy"]) == (DEFAULT, DEFAULT)


@pytest.mark.parametrize("seen", [True, False])
def test_what_may_have_merged_is_not_read(machine: Machine, seen: bool) -> None:
    attempt = Range(machine)
    attempt.merge(machine.vma(attempt.mm), seen=seen)
    row = attempt.fail()
    assert row["bits"] & Bit.VMA_UNREAD
    assert row["policy"] == POLICY_UNREAD


def test_a_merge_in_an_mbind_before_is_not_that_of_the_next(machine: Machine) -> None:
    """The return of the one before was missed."""
    Range(machine).merge(0)
    row = Range(machine).fail()
    assert row["bits"] & Bit.VMA_UNREAD


# --- the end of an mm -----------------------------------------------------------


@pytest.mark.parametrize("everything", [0, 1])
@pytest.mark.parametrize("only", [0, 1])
def test_the_end_of_what_was_told_of_is_told_whoever_it_is_that_ends_it(
    boot: Callable[..., Machine], everything: int, only: int
) -> None:
    machine = boot(ALL=everything, FOLLOW_CGROUP=only)
    mm, other = machine.mm(), machine.mm()
    machine.live_in(mm)
    machine.join_cgroup(True)
    machine.enter("rmap_add_new_anon", machine.page(1), machine.vma(mm), START)
    machine.be(TASK + 1)
    assert ended(machine, mm) == [machine.id(mm)]
    # Everything, and of everybody.
    assert bool(ended(machine, other)) is bool(everything and not only)


def test_an_mm_without_a_vma_ends_when_the_function_returns(machine: Machine) -> None:
    mm = machine.mm(watched=True)
    machine.enter("exit_entry", mm)
    machine.leave("exit_return")
    assert [row["kind"] for row in machine.rows] == [EventKind.MM_EXIT]


def test_if_that_return_is_missed_no_other_unmapping_ends_it(machine: Machine) -> None:
    machine.enter("exit_entry", machine.mm(watched=True))
    gather = machine.words()
    machine.enter("exit_unmaps", gather, 0, machine.vma(machine.mm(watched=True)))
    machine.enter("exit_unmapped", gather)
    assert machine.waiting == 1
    assert machine.rows == []


def test_an_mm_ends_once(boot: Callable[..., Machine]) -> None:
    machine = boot(ALL=1, FOLLOW_CGROUP=1)
    mm = machine.mm()
    machine.live_in(mm)
    machine.join_cgroup(True)
    machine.enter("rmap_add_new_anon", machine.page(1), machine.vma(mm), START)
    assert ended(machine, mm) == [machine.id(mm)]
    # Another one lies where it lay.
    assert ended(machine, mm) == []


# --- a cpuset's loop over VMAs --------------------------------------------------


def looping(machine: Machine, mm: int, vma: int, *above: int) -> int:
    """Return a stack on which a loop has come to a VMA, behind these words."""
    words = NUMBERS["OFF_maple_range_64_slot"] // 8 + 3
    node = (machine.words(room=512) + 255) & ~255
    machine.write(node + 8 * words, vma)
    state = [0] * 4
    for member, value in (("tree", mm), ("node", node | 0x1E), ("offset", 3)):
        state[NUMBERS[f"OFF_ma_state_{member}"] // 8] = value
    return machine.words(*above, *state)


@pytest.mark.parametrize("above", [(), ("mm",), ("mm", "mm", "stray", "mm")])
def test_the_mm_on_the_stack_is_not_the_loop_s_place(
    machine: Machine, above: tuple[str, ...]
) -> None:
    mm = machine.mm()
    policy = machine.policy(BIND, CDM)
    vma = machine.vma(mm, vm_policy=policy)
    stray = machine.vma(machine.mm(), vm_policy=policy)
    words = {"mm": mm, "stray": stray}
    sp = looping(machine, mm, vma, 23, *(words[name] for name in above), 7)
    machine.enter("rebind_entry", mm, 0)
    machine.enter("rebind_next", policy, 0, sp=sp)
    machine.set(policy, "mempolicy", nodes=1)
    machine.leave("rebind_return")
    assert machine.unread(Probe.MPOL_REBIND) == 0
    (row,) = machine.rows
    assert (row["start"], row["other"], row["nodes"]) == (START, CDM, 1)


def test_a_loop_that_is_not_found_is_told(machine: Machine) -> None:
    mm, policy = machine.mm(), machine.policy(BIND, CDM)
    sp = looping(machine, mm, machine.vma(machine.mm(), vm_policy=policy))
    machine.enter("rebind_entry", mm, 0)
    machine.enter("rebind_next", policy, 0, sp=sp)
    assert machine.unread(Probe.MPOL_REBIND) == 1


# --- whose policy it is ---------------------------------------------------------


@pytest.mark.parametrize("own", [DEFAULT, BIND])
@pytest.mark.parametrize(
    ("file", "told", "of_task"),
    [
        # Without get_policy(), there is nobody to ask.
        (None, None, False),
        ((BIND, 1), (BIND | MpolFlag.SHARED, 1), False),
        ((DEFAULT, 0), None, True),
    ],
)
def test_whose_policy_an_allocation_is_by(
    machine: Machine,
    own: int,
    file: tuple[int, int] | None,
    told: tuple[int, int] | None,
    of_task: bool,
) -> None:
    mode, nodes = own, CDM if own else 0
    task = machine.policy(PREFERRED, 1)
    machine.set(machine.task, "task_struct", mempolicy=task)
    policy = machine.policy(own, nodes) if own else 0
    vma = machine.vma(machine.mm(), vm_policy=policy)
    machine.enter("alloc_entry", 0, 0, vma, START)
    if file:
        shared = machine.policy(*file) if file[0] else 0
        machine.set(shared, "mempolicy", flags=1) if shared else None
        machine.leave("shared_policy_return", shared)
    machine.leave("alloc_return", machine.page(1))
    (row,) = machine.rows
    assert (row["policy"], row["nodes"]) == (told or (mode, nodes))
    by_task = of_task or (own == DEFAULT and not told)
    expected = (PREFERRED, 1) if by_task else (POLICY_UNREAD, 0)
    assert (row["other_policy"], row["other"]) == expected


# --- system calls ---------------------------------------------------------------


@pytest.mark.parametrize("name", ["mprotect", "pkey_mprotect"])
def test_a_protection_s_change_is_told_once(machine: Machine, name: str) -> None:
    """mprotect_fixup() calls perf_event_mmap(): no VMA is new, or has grown."""
    mm = machine.mm(watched=True)
    machine.set(machine.task, "task_struct", mm=mm)
    machine.call(name, START, PAGE, 1, 5)
    machine.enter("vma_new", machine.vma(mm))
    assert machine.rows == []
    machine.call_ends(0)
    (row,) = machine.rows
    assert (row["kind"], row["probe"]) == (EventKind.CALL, Probe.SYS_MPROTECT)
    assert (row["addr"], row["size"], row["arg"]) == (START, PAGE, 1)


# --- who takes a page away ----------------------------------------------------------


@pytest.mark.parametrize(
    ("inside", "taken"),
    [
        ((), 1),
        (("gather",), 0),
        (("gather of another",), 1),
        (("gather", "walk"), 1),
        (("gather", "walk of another page"), 0),
        (("gather", "over"), 1),
        (("migration",), 0),
        (("walk", "migration"), 0),
    ],
)
def test_whose_stack_says_who_takes_a_page_away(
    machine: Machine, inside: tuple[str, ...], taken: int
) -> None:
    """Not where a range is unmapped, and not where it comes back by a migration.

    madvise(PAGEOUT) gathers the range that it reclaims, and walks the reverse map.
    """
    mm, page = machine.mm(), mapped(machine, 1)
    vma = machine.vma(mm)
    for what in inside:
        match what:
            case "gather":
                machine.enter("rmap_add_new_anon", mapped(machine, 1), vma, START)
                machine.enter("gather_begin", machine.words(), mm)
            case "gather of another":
                machine.enter("gather_begin", machine.words(), machine.mm(watched=True))
            case "walk":
                machine.enter("walk_entry", page, vma, START)
            case "walk of another page":
                machine.enter("walk_entry", mapped(machine, 1), vma, START)
            case "over":
                machine.enter("gather_end")
            case "migration":
                machine.enter("migrate_entry", 0, 0, 0, 0, 0, 3)
    before = machine.stacks
    machine.enter("rmap_remove", page, vma)
    assert machine.rows[-1]["kind"] == EventKind.UNMAP
    assert machine.stacks - before == taken


def test_what_leaves_another_node_has_no_stack(boot: Callable[..., Machine]) -> None:
    machine = boot(ALL=1)
    vma = machine.vma(machine.mm())
    machine.enter("rmap_remove", mapped(machine, 0), vma)
    assert machine.rows[-1]["kind"] == EventKind.UNMAP
    assert machine.stacks == 0


# --- room in the ring -------------------------------------------------------------

RING_BYTES = bpfnumbers.NUMBERS["RING_PAGES"] * PAGE


def allocate(machine: Machine, vma: int, flags: int | None = None) -> None:
    """A page of the CDM node is allocated, and vm_flags become others meanwhile."""
    machine.enter("alloc_entry", 0, 0, vma, START)
    if flags is not None:
        machine.set(vma, "vm_area_struct", vm_flags=flags)
    machine.leave("alloc_return", machine.page(1))


@pytest.mark.parametrize(
    ("used", "told"), [(RING_BYTES // 4 * 3 - 1, True), (RING_BYTES // 4 * 3, False)]
)
def test_pages_leave_the_last_quarter_of_the_ring_alone(
    machine: Machine, used: int, told: bool
) -> None:
    vma = machine.vma(machine.mm())
    machine.fill(used)
    allocate(machine, vma)
    machine.enter("rmap_add_new_anon", mapped(machine, 1), vma, START)
    machine.enter("rmap_remove", mapped(machine, 1), vma)
    probes = [Probe.ALLOC, Probe.RMAP_ADD, Probe.RMAP_REMOVE]
    assert [row["probe"] for row in machine.rows] == (probes if told else [])
    assert [machine.full(probe) for probe in probes] == [0 if told else 1] * 3


def test_what_changes_a_vma_finds_room_in_it(machine: Machine) -> None:
    mm = machine.mm(watched=True)
    machine.set(machine.task, "task_struct", mm=mm)
    vma = machine.vma(mm)
    machine.fill(RING_BYTES - PAGE)
    allocate(machine, vma, TAG)
    machine.call("mprotect", START, PAGE, 1)
    machine.enter("mprotect_entry", 0, vma, machine.words(vma), START, START + PAGE)
    machine.set(vma, "vm_area_struct", vm_flags=0)
    machine.leave("mprotect_return")
    machine.call_ends(0)
    kinds = [EventKind.ALLOC, EventKind.FLAGS, EventKind.CALL]
    assert [row["kind"] for row in machine.rows] == kinds
    assert machine.full(Probe.ALLOC) == 0


@pytest.mark.parametrize(
    ("used", "woken"),
    [
        (0, False),
        (RING_BYTES // 4 - 1, False),
        (RING_BYTES // 4, True),
        (RING_BYTES // 4 + 63 * EVENT_DTYPE.itemsize, True),
        (RING_BYTES // 4 + 64 * EVENT_DTYPE.itemsize, False),
    ],
)
def test_whoever_drains_is_woken_at_a_quarter(
    machine: Machine, used: int, woken: bool
) -> None:
    """And not for each event after that: he is awake, or looks again by himself."""
    vma = machine.vma(machine.mm())
    machine.fill(used)
    allocate(machine, vma)
    assert machine.woken[-1] is woken
