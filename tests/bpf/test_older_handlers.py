"""The handlers for functions that are told no VMA: Linux 5.10."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import pytest
from nativemachine import (
    BIND,
    ENOMEM,
    HUGE,
    NUMBERS,
    OLDEST,
    PAGE,
    PLACES,
    PREFERRED,
    START,
    Machine,
)

from cdmtrace.events import EventKind, Mpol, Probe

CDM = NUMBERS["CDM_NODES"]
NODE = CDM.bit_length() - 1
LOCK = PLACES["OFF_mm_struct_mmap_lock"]


@pytest.fixture
def machine(boot: Callable[..., Machine]) -> Machine:
    return boot(**OLDEST)


def anon_page(machine: Machine, at: int = START, node: int = NODE) -> int:
    """Return a page of its VMA's own, whose index says where it is."""
    return machine.page(node, mapping=1, index=(at - START) // PAGE)


def kinds(machine: Machine) -> list[EventKind]:
    return [EventKind(int(row["kind"])) for row in machine.rows]


# --- which VMA a page is unmapped from ------------------------------------------


@pytest.mark.parametrize(
    ("handler", "before"),
    [("work_zap", 1), ("work_cow_huge", 1), ("work_merge", 0)],
)
def test_a_page_leaves_the_vma_that_is_worked_in(
    machine: Machine, handler: str, before: int
) -> None:
    mm = machine.mm()
    vma = machine.vma(mm)
    machine.enter(handler, *[0] * before, vma)
    machine.enter("rmap_remove_untold", anon_page(machine), 0)
    machine.leave("work_end")
    (row,) = machine.rows
    assert (row["kind"], row["mm"]) == (EventKind.UNMAP, machine.id(mm))
    assert (row["addr"], row["size"], row["src_node"]) == (START, PAGE, NODE)
    # It is over: the next one has nobody to tell of its VMA, and that is told.
    machine.enter("rmap_remove_untold", anon_page(machine), 0)
    assert len(machine.rows) == 1
    assert machine.unread(Probe.RMAP_REMOVE) == 1


def test_a_page_of_another_node_is_nobody_s_business(machine: Machine) -> None:
    machine.enter("rmap_remove_untold", anon_page(machine, node=0), 0)
    assert (machine.rows, machine.unread(Probe.RMAP_REMOVE)) == ([], 0)


def test_what_is_copied_leaves_the_vma_of_the_fault(machine: Machine) -> None:
    vma = machine.vma(machine.mm())
    machine.enter("work_cow", machine.struct("vm_fault", vma=vma))
    machine.enter("rmap_remove_untold", anon_page(machine), 1)
    (row,) = machine.rows
    assert (row["start"], row["size"]) == (START, HUGE)


def test_a_walk_within_goes_first(machine: Machine) -> None:
    """A copy allocates, and may have to reclaim for that."""
    mm, other = machine.mm(), machine.mm()
    here = machine.vma(mm)
    there = machine.vma(other, START + 64 * PAGE, vm_pgoff=64)
    machine.enter("work_cow", machine.struct("vm_fault", vma=here))
    page = anon_page(machine, START + 64 * PAGE)
    machine.enter("walk_entry", page, there, START + 64 * PAGE)
    machine.enter("rmap_remove_untold", page, 0)
    machine.leave("walk_return")
    machine.enter("rmap_remove_untold", anon_page(machine), 0)
    assert [int(row["mm"]) for row in machine.rows] == [
        machine.id(other),
        machine.id(mm),
    ]


def test_a_walk_of_another_page_says_nothing(machine: Machine) -> None:
    machine.enter("walk_entry", anon_page(machine), machine.vma(machine.mm()), START)
    machine.enter("rmap_remove_untold", anon_page(machine), 0)
    assert machine.rows == []
    assert machine.unread(Probe.RMAP_REMOVE) == 1


@pytest.mark.parametrize("result", [0, 1])
def test_khugepaged_goes_on_with_the_vma_that_it_finds(
    machine: Machine, result: int
) -> None:
    vma = machine.vma(machine.mm())
    found = machine.words(0)
    machine.enter("collapse_look", 0, START, found)
    machine.write(found, vma)
    machine.leave("collapse_found", result)
    machine.enter("rmap_remove_untold", anon_page(machine), 0)
    assert len(machine.rows) == (not result)
    assert machine.unread(Probe.RMAP_REMOVE) == result


def test_a_file_s_huge_page_is_not_khugepaged_s_last_one(machine: Machine) -> None:
    """collapse_pte_mapped_thp() looks for a VMA of its own, and tells nobody."""
    found, vma = machine.words(0), machine.vma(machine.mm())
    machine.enter("collapse_look", 0, START, found)
    machine.write(found, vma)
    machine.leave("collapse_found")
    machine.enter("work_over", machine.vma_mm(vma), START)
    machine.enter("rmap_remove_untold", anon_page(machine), 0)
    assert machine.rows == []
    assert machine.unread(Probe.RMAP_REMOVE) == 1


def test_a_vma_that_is_another_s_by_now_is_not_believed(machine: Machine) -> None:
    found, vma = machine.words(0), machine.vma(machine.mm())
    machine.enter("collapse_look", 0, START, found)
    machine.write(found, vma)
    machine.leave("collapse_found")
    machine.set(vma, "vm_area_struct", vm_mm=machine.mm())
    machine.enter("rmap_remove_untold", anon_page(machine), 0)
    assert machine.rows == []
    assert machine.unread(Probe.RMAP_REMOVE) == 1


# --- which VMA a page of a file is mapped in ------------------------------------


def file_page(machine: Machine) -> int:
    return machine.page(NODE, mapping=machine.words(), index=0)


@pytest.mark.parametrize("how", ["file_fault", "file_remigrate", "file_insert"])
def test_a_page_of_a_file_is_mapped_where_it_was_to_be(
    machine: Machine, how: str
) -> None:
    mm, page = machine.mm(), file_page(machine)
    vma = machine.vma(mm)
    arguments = {
        "file_fault": (machine.struct("vm_fault", vma=vma), page),
        "file_remigrate": (page, vma),
        "file_insert": (vma, 0, page),
    }[how]
    machine.enter(how, *arguments)
    machine.enter("rmap_add_file_untold", page, 0)
    (row,) = machine.rows
    assert (row["kind"], row["addr"], row["mm"]) == (
        EventKind.MAP,
        START,
        machine.id(mm),
    )
    machine.enter("rmap_add_file_untold", file_page(machine), 0)
    assert len(machine.rows) == 1
    assert machine.unread(Probe.RMAP_ADD) == 1


def test_what_is_filled_in_is_any_page_until_that_is_over(machine: Machine) -> None:
    vma = machine.vma(machine.mm())
    machine.enter("file_fill", 0, 0, vma)
    machine.enter("rmap_add_file_untold", file_page(machine), 0)
    assert len(machine.rows) == 1
    machine.leave("file_filled")
    machine.enter("rmap_add_file_untold", file_page(machine), 0)
    assert len(machine.rows) == 1
    assert machine.unread(Probe.RMAP_ADD) == 1


# --- a huge page that NUMA balancing moves --------------------------------------


def test_a_huge_page_s_move_is_no_fault(machine: Machine) -> None:
    mm = machine.mm(watched=True)
    vma = machine.vma(mm, vm_end=START + HUGE)
    old, new = anon_page(machine), anon_page(machine, node=0)
    # The seventh argument is on the stack, above the return address.
    stack = machine.words(0, 0)
    machine.enter("numa_huge_entry", mm, vma, 0, 0, START, old, sp=stack)
    machine.enter("rmap_add_anon", new, vma, START, 2)
    machine.enter("rmap_remove_untold", old, 1)
    machine.leave("numa_huge_return", 1)
    assert kinds(machine) == [EventKind.UNMAP, EventKind.NUMA_MOVE]
    assert machine.waiting == 0
    moved = machine.rows[-1]
    assert (moved["src_node"], moved["node"], moved["ret"]) == (NODE, 0, 1)
    # The other way, the page that comes is told, too.
    machine.write(stack, 0, NODE)
    machine.enter("numa_huge_entry", mm, vma, 0, 0, START, new, sp=stack)
    machine.enter("rmap_add_anon", old, vma, START, 2)
    machine.leave("numa_huge_return", 1)
    came = machine.rows[2]
    assert (came["kind"], came["arg"], came["size"]) == (EventKind.MIGRATE, 5, HUGE)


# --- mbind(), VMA by VMA --------------------------------------------------------


def listed(machine: Machine, mm: int, *vmas: int) -> None:
    """The mm has these VMAs, in this order."""
    machine.set(mm, "mm_struct", mmap=vmas[0])
    for vma, following in pairwise(vmas):
        machine.set(vma, "vm_area_struct", vm_next=following)


def bind(machine: Machine, mm: int) -> None:
    """mbind() of everything to the CDM node begins."""
    machine.live_in(mm)
    mask = machine.words(CDM)
    machine.call("mbind", START, 64 * PAGE, BIND, mask, 64, 0)


def bound(machine: Machine) -> int:
    """Return a policy that binds to the CDM node."""
    policy = machine.policy(BIND, 0)
    machine.set(policy, "mempolicy", v=CDM)
    return policy


def merge(machine: Machine, mm: int, prev: int, start: int, end: int) -> None:
    stack = machine.words(0, 0, 0, bound(machine))
    machine.enter("range_next", mm, prev, start, end, sp=stack)


@pytest.mark.parametrize("first", [True, False])
def test_each_vma_of_an_mbind_is_told(machine: Machine, first: bool) -> None:
    mm = machine.mm()
    before = machine.vma(mm, START - 8 * PAGE, vm_end=START - 4 * PAGE)
    one = machine.vma(mm, START, vm_end=START + 4 * PAGE)
    two = machine.vma(mm, START + 4 * PAGE, vm_end=START + 9 * PAGE)
    listed(machine, mm, *((one, two) if first else (before, one, two)))
    bind(machine, mm)
    merge(machine, mm, 0 if first else before, START, START + 4 * PAGE)
    machine.leave("range_merged", 0)
    machine.set(one, "vm_area_struct", vm_policy=bound(machine))
    merge(machine, mm, one, START + 4 * PAGE, START + 7 * PAGE)
    machine.leave("range_merged", 0)
    # Neither of these semaphores is the mm's.
    machine.enter("range_last", mm)
    machine.enter("range_last", two + LOCK)
    told = [row for row in machine.rows if row["kind"] == EventKind.POLICY]
    assert [int(row["start"]) for row in told] == [START]
    machine.enter("range_last", mm + LOCK)
    told = [row for row in machine.rows if row["kind"] == EventKind.POLICY]
    assert [(int(row["addr"]), int(row["size"])) for row in told] == [
        (START, 4 * PAGE),
        (START + 4 * PAGE, 3 * PAGE),
    ]
    assert [int(row["other_policy"]) for row in told] == [0, 0]
    assert [int(row["policy"]) for row in told] == [BIND, 0]
    # The second one was not set: there was no memory to split it.
    assert [int(row["ret"]) for row in told] == [0, -ENOMEM]
    assert machine.waiting == 1


def test_the_vma_before_may_hold_the_range(machine: Machine) -> None:
    mm = machine.mm()
    vma = machine.vma(mm, START, vm_end=START + 9 * PAGE)
    listed(machine, mm, vma)
    bind(machine, mm)
    merge(machine, mm, vma, START + 2 * PAGE, START + 4 * PAGE)
    machine.leave("range_merged", 0)
    machine.enter("range_last", mm + LOCK)
    assert kinds(machine)[:2] == [EventKind.VMA_SEEN, EventKind.POLICY]
    row = machine.rows[1]
    assert (row["addr"], row["size"]) == (START + 2 * PAGE, 2 * PAGE)
    assert row["start"] == START


def test_what_it_was_merged_with_is_what_holds_it(machine: Machine) -> None:
    mm = machine.mm()
    whole = machine.vma(mm, START - PAGE, vm_end=START + 4 * PAGE)
    vma = machine.vma(mm, START, vm_end=START + 4 * PAGE)
    listed(machine, mm, vma)
    bind(machine, mm)
    merge(machine, mm, 0, START, START + 4 * PAGE)
    machine.leave("range_merged", whole)
    machine.set(vma, "vm_area_struct", vm_mm=0)
    machine.enter("range_last", mm + LOCK)
    row = machine.rows[-1]
    assert (row["kind"], row["start"]) == (EventKind.POLICY, START - PAGE)


def test_a_vma_that_a_merge_may_have_freed_is_not_read(machine: Machine) -> None:
    """What vma_merge() has returned was missed."""
    mm = machine.mm()
    vma = machine.vma(mm)
    listed(machine, mm, vma)
    bind(machine, mm)
    merge(machine, mm, 0, START, START + PAGE)
    machine.enter("range_last", mm + LOCK)
    assert kinds(machine) == [EventKind.VMA_SEEN]
    assert machine.unpaired(Probe.MBIND_RANGE) == 1


def test_a_merge_of_another_call_is_none_of_it(machine: Machine) -> None:
    mm = machine.mm(watched=True)
    machine.live_in(mm)
    vma = machine.vma(mm)
    listed(machine, mm, vma)
    machine.call("mprotect", START, PAGE, 1)
    merge(machine, mm, 0, START, START + PAGE)
    machine.enter("range_last", mm + LOCK)
    machine.enter("range_look", START, START + PAGE, machine.struct("mm_walk", vma=vma))
    assert machine.rows == []


def test_vmas_are_seen_as_they_were(machine: Machine) -> None:
    mm = machine.mm()
    vma = machine.vma(mm)
    bind(machine, mm)
    machine.enter("range_look", START, START + PAGE, machine.struct("mm_walk", vma=vma))
    (row,) = machine.rows
    assert (row["kind"], row["addr"]) == (EventKind.VMA_SEEN, START)


# --- policies -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mode", "flags", "word", "told"),
    [
        (BIND, 0, 0b110, (Mpol.BIND, 0b110)),
        (PREFERRED, 0, 1, (Mpol.PREFERRED, 0b10)),
        # A node, and MPOL_F_LOCAL.
        (PREFERRED, 2, 0, (Mpol.LOCAL, 0)),
        (PREFERRED, 0, 0xFFFF, (Mpol.PREFERRED, 0)),
    ],
)
def test_where_nodes_of_a_policy_were(
    machine: Machine, mode: int, flags: int, word: int, told: tuple[Mpol, int]
) -> None:
    policy = machine.struct("mempolicy", mode=mode)
    machine.set(policy, "mempolicy", flags=flags)
    machine.set(policy, "mempolicy", v=word)
    vma = machine.vma(machine.mm(), vm_policy=policy)
    machine.enter("work_zap", 0, vma)
    machine.enter("rmap_remove_untold", anon_page(machine), 0)
    (row,) = machine.rows
    assert (row["policy"], row["nodes"]) == told


def test_a_cpuset_comes_to_vmas_by_their_list(machine: Machine) -> None:
    mm = machine.mm()
    policies = [machine.policy(BIND, 0) for _ in range(2)]
    for policy in policies:
        machine.set(policy, "mempolicy", v=CDM)
    vmas = [
        machine.vma(mm, START + at * PAGE, vm_policy=policy)
        for at, policy in enumerate((policies[0], 0, policies[1]))
    ]
    listed(machine, mm, *vmas)
    machine.enter("rebind_entry", mm, 0)
    for policy in policies:
        machine.enter("rebind_next", policy, 0)
        machine.set(policy, "mempolicy", v=1)
    machine.leave("rebind_return")
    assert machine.unread(Probe.MPOL_REBIND) == 0
    assert [
        (int(r["start"]), int(r["other"]), int(r["nodes"])) for r in machine.rows
    ] == [
        (START, CDM, 1),
        (START + 2 * PAGE, CDM, 1),
    ]


# --- new VMAs -------------------------------------------------------------------


@pytest.mark.parametrize(("call", "told"), [("mmap", 1), ("mremap", 0)])
def test_a_vma_is_new_when_it_is_linked(machine: Machine, call: str, told: int) -> None:
    mm = machine.mm(watched=True)
    machine.live_in(mm)
    machine.call(call, START, PAGE)
    machine.enter("vma_linked", mm, machine.vma(mm))
    assert kinds(machine) == [EventKind.VMA_NEW] * told


@pytest.mark.parametrize("result", [0, -12])
def test_a_stack_has_grown_if_it_was_let(machine: Machine, result: int) -> None:
    vma = machine.vma(machine.mm(watched=True))
    machine.enter("grow_begin", vma, START - PAGE)
    machine.set(vma, "vm_area_struct", vm_start=START - PAGE)
    machine.leave("grow_end", result & (1 << 64) - 1)
    assert [int(row["start"]) for row in machine.rows] == [START - PAGE] * (not result)
