"""Services of the kernel that touch pages of a node: who it was, and what it did."""

from __future__ import annotations

import pytest
from notes import BASE, PAGE, PLAIN
from touching import (
    BOUND,
    MOVES,
    NO_REASON,
    TAKES,
    World,
    cell,
    pages,
    rule,
    scan,
    seen,
)

from cdmtrace.analysis.permissions import Permissions
from cdmtrace.analysis.result import Verdict
from cdmtrace.analysis.services import (
    BY_NAME,
    NOT_ALWAYS,
    SERVICES,
    Service,
    of_stack,
)
from cdmtrace.analysis.stacks import Stack
from cdmtrace.analysis.touched import VM_LOCKED
from cdmtrace.events import Bit, Cause, EventKind, Mpol, Probe

# --- who it was -----------------------------------------------------------------

MIGRATING = [one for one in SERVICES if one.functions and one.name != "reclaim"]


@pytest.mark.parametrize(
    ("service", "function"),
    [(one, name) for one in MIGRATING for name in sorted(one.functions)],
    ids=lambda value: value if isinstance(value, str) else value.name,
)
def test_who_moves_pages_is_told_by_its_function(
    service: Service, function: str
) -> None:
    world = World()
    world.moves(0, 0, 1, *MOVES, function, "kthread", arg=0)
    world.moves(1, 1, 0, *MOVES, function, "kthread", arg=0)
    world.moves(2, 1, 0, *MOVES, function, "kthread", arg=0)
    world.moves(3, 1, 1, *MOVES, function, "kthread", arg=0)
    assert seen(world.check()) == {service.name: (1, 2, 1)}


@pytest.mark.parametrize("function", sorted(BY_NAME["reclaim"].functions))
def test_reclaim_takes_pages_away_and_demotes_others(function: str) -> None:
    """What it moves, it demotes: demote_folio_list() is inlined as a rule."""
    world = World()
    world.page(0, EventKind.UNMAP, *TAKES, function, "kswapd", src_node=1)
    world.page(1, EventKind.UNMAP, *TAKES, function, "kswapd", src_node=1)
    world.moves(2, 1, 0, *MOVES, function, "kswapd", arg=8)
    assert seen(world.check()) == {"reclaim": (0, 2, 0), "demotion": (0, 1, 0)}


@pytest.mark.parametrize(
    ("stack", "expected"),
    [
        ((*MOVES, "compact_zone", "collapse_huge_page", "khugepaged"), "compaction"),
        ((*MOVES, "demote_folio_list", "shrink_folio_list", "kswapd"), "demotion"),
        ((*TAKES, "shrink_folio_list", "shrink_node", "khugepaged"), "reclaim"),
        ((*TAKES, "shrink_folio_list", "do_mbind"), "reclaim"),
    ],
)
def test_the_innermost_is_it(stack: tuple[str, ...], expected: str) -> None:
    service = of_stack(Stack(tuple(f"{name}+0x1" for name in stack)))
    assert service
    assert service.name == expected


def test_copies_that_the_compiler_made_are_the_function() -> None:
    service = of_stack(Stack(("compact_zone.isra.0+0x17",)))
    assert service is BY_NAME["compaction"]
    assert of_stack(Stack(("do_wp_page+0x1",))) is None
    assert of_stack(None) is None


def test_what_is_split_has_been_moved_by_nobody() -> None:
    """Its entries go and come back, the page stays: reclaim splits huge pages, too."""
    world = World()
    split = ("split_huge_page_to_list", "shrink_folio_list")
    world.page(
        0,
        EventKind.UNMAP,
        *("page_remove_rmap", "try_to_migrate_one", *split),
        src_node=1,
    )
    world.moves(0, 1, 1, "remove_migration_pte", *split, arg=NO_REASON)
    assert seen(world.check()) == {}


def test_what_a_task_takes_away_itself_is_no_service() -> None:
    world = World()
    world.maps(0)
    world.page(0, EventKind.UNMAP, "page_remove_rmap", "do_wp_page", src_node=1)
    world.page(1, EventKind.UNMAP, src_node=1)
    assert seen(world.check()) == {"mempolicy": (1, 0, 0)}


def test_a_driver_may_do_with_its_node_as_it_likes() -> None:
    world = World()
    world.moves(0, 0, 1, *MOVES, "cdm_demo_ioctl", arg=5)
    world.page(1, EventKind.MAP, node=1, cause=Cause.DRIVER)
    result = world.check(Permissions(nodes={None: frozenset()}))
    assert seen(result) == {"driver": (2, 0, 0)}
    assert cell(result, "driver").allowed
    assert rule(result).verdict is Verdict.CLEAN


@pytest.mark.parametrize("function", ["migrate_misplaced_folio", "damon_pa_migrate"])
def test_who_moves_on_newer_kernels_is_no_driver(function: str) -> None:
    assert Stack((*MOVES, function)).cause is not Cause.DRIVER


def test_who_it_was_may_not_be_known() -> None:
    """A stack for which there was no room is not told; the kernel's reason can lie."""
    world = World()
    world.moves(0, 1, 0, arg=0)
    world.moves(1, 1, 0, arg=0)
    result = world.check()
    assert seen(result) == {}
    assert result.services.why == "who moved or brought 2 pages was not seen"
    assert cell(result, "compaction").unchecked == NOT_ALWAYS
    assert cell(result, "oom-eligible").unchecked == BY_NAME["oom-eligible"].never
    assert rule(result).verdict is Verdict.INCONCLUSIVE
    assert rule(result).why == "2 times: who moved or brought a page was not seen"


CUT = "kretprobe_trampoline"


@pytest.mark.parametrize(
    ("reason", "expected"),
    [
        *((0, "compaction"), (1, "memory-failure"), (2, "offline"), (3, "migration")),
        *((4, "mempolicy"), (5, "numa-balancing"), (6, "contiguous")),
        *((7, "longterm-pin"), (8, "demotion"), (9, "damon")),
    ],
)
def test_where_a_stack_is_cut_there_is_the_reason(reason: int, expected: str) -> None:
    """On 5.10 it ends where a return is probed."""
    world = World()
    for number in range(2):
        world.moves(number, 1, 0, "do_page_add_anon_rmap", MOVES[0], CUT, arg=reason)
    result = world.check(Permissions(nodes={1: frozenset({"all"})}))
    assert seen(result) == {expected: (0, 2, 0)}
    assert result.services.why == (
        "of 2 pages only the kernel's reason says who moved them"
    )
    assert rule(result).verdict is Verdict.CLEAN


def test_a_reason_that_no_kernel_has() -> None:
    world = World()
    world.moves(0, 1, 0, MOVES[0], CUT, arg=10)
    assert world.check().services.why == "who moved or brought 1 page was not seen"


def test_who_takes_a_page_away_a_cut_stack_does_not_tell() -> None:
    world = World()
    world.page(0, EventKind.UNMAP, *TAKES[:2], CUT, src_node=1)
    split = ("page_remove_rmap", "__split_huge_pmd", "try_to_unmap_one")
    world.page(1, EventKind.UNMAP, *split, CUT, src_node=1)
    world.page(2, EventKind.UNMAP, *TAKES[:2], CUT, src_node=0)
    # Copy on write is nobody's service, and its return is probed there, too.
    world.page(3, EventKind.UNMAP, TAKES[0], "wp_page_copy", CUT, src_node=1)
    result = world.check()
    assert seen(result) == {}
    assert result.services.why == "who moved or brought 1 page was not seen"
    assert rule(result).verdict is Verdict.INCONCLUSIVE


def test_what_ksm_merges_is_its_own_where_the_stack_is_cut() -> None:
    world = World()
    world.page(0, EventKind.MAP, "try_to_merge_one_page", CUT, node=1, bits=Bit.KSM)
    world.page(0, EventKind.UNMAP, "try_to_merge_one_page", CUT, src_node=1)
    world.page(0, EventKind.KSM_PAGE, src_node=1, node=1, cause=Cause.KSM)
    assert seen(world.check()) == {"ksm": (0, 0, 1)}


def test_what_is_on_no_cdm_node_is_no_matter() -> None:
    world = World()
    world.moves(0, 0, 2, *MOVES, "compact_zone", arg=0)
    world.page(1, EventKind.UNMAP, *TAKES, "shrink_folio_list", src_node=0)
    world.page(2, EventKind.KSM_PAGE, src_node=0, node=2)
    assert seen(world.check()) == {}


# --- by what right a page came --------------------------------------------------


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        ({}, "mempolicy"),
        ({"policy": 0, "nodes": 0, "other_policy": 1, "other": 0b10}, "mempolicy"),
        ({"policy": 0, "nodes": 0, "other_policy": 1, "other": 0b01}, "fallback"),
        ({"policy": 0, "nodes": 0, "other_policy": 0, "other": 0b10}, "fallback"),
        ({"policy": 0, "nodes": 0, "other_policy": 4, "other": 0b10}, "fallback"),
        ({"policy": 0, "nodes": 0}, "fallback"),
        ({"policy": 2, "nodes": 0b01}, "fallback"),
        ({"cause": Cause.FILE, "bits": Bit.FILE}, "page-cache"),
        ({"cause": Cause.DRIVER}, "driver"),
        ({"cause": Cause.SWAP_IN}, "mempolicy"),
        ({"bits": Bit.KSM}, "ksm"),
    ],
)
def test_by_what_right_a_page_comes(columns: dict[str, int], expected: str) -> None:
    world = World()
    world.maps(0, **columns)
    assert seen(world.check()) == {expected: (1, 0, 0)}


def test_a_policy_that_was_not_read_says_nothing() -> None:
    world = World()
    world.maps(0, policy=Mpol.UNREAD, nodes=0)
    result = world.check()
    assert seen(result) == {}
    assert result.services.why == "who moved or brought 1 page was not seen"


def test_a_page_that_is_locked_is_so_whoever_brought_it() -> None:
    world = World()
    world.maps(0, policy=Mpol.UNREAD, nodes=0, flags_after=PLAIN | VM_LOCKED)
    assert seen(world.check()) == {"mlock": (0, 0, 1)}


def test_tasks_of_the_same_name_are_one() -> None:
    world = World()
    world.comm("story", 8)
    world.maps(0)
    world.maps(1, tid=8)
    world.maps(2, tid=9)
    assert cell(world.check(), "mempolicy").by == {"story": 2, "?": 1}


def test_khugepaged_takes_small_pages_and_brings_a_huge_one() -> None:
    world = World()
    world.comm("khugepaged", 35)
    by = {"pid": 35, "tid": 35, "bits": Bit.FOREIGN}
    stack = ("collapse_huge_page", "hpage_collapse_scan_pmd", "khugepaged")
    start = 0x100040200000
    for number in range(3):
        world.page(
            number,
            EventKind.UNMAP,
            *("page_remove_rmap", *stack),
            addr=start + number * PAGE,
            src_node=1,
            **by,
        )
    world.row(
        EventKind.MAP,
        *("page_add_new_anon_rmap", *stack),
        addr=start,
        size=512 * PAGE,
        start=start,
        end=start + 512 * PAGE,
        node=1,
        **BOUND,
        **by,
    )
    result = world.check()
    assert seen(result) == {"khugepaged": (512, 3, 0)}
    assert cell(result, "khugepaged").by == {"khugepaged": 515}
    first = cell(result, "khugepaged").first
    assert first
    assert first.seq == 3


# --- KSM -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "node", "expected"),
    [(1, 1, (0, 0, 1)), (0, 1, (1, 0, 0)), (1, 0, (0, 1, 0))],
)
def test_ksm_puts_one_page_for_another(
    source: int, node: int, expected: tuple[int, int, int]
) -> None:
    """Its own row counts, not those of the entry that goes and the one that comes."""
    world = World()
    merging = ("try_to_merge_one_page", "ksm_scan_thread")
    if node == 1:
        world.page(0, EventKind.MAP, *merging, node=1, bits=Bit.KSM)
    if source == 1:
        world.page(0, EventKind.UNMAP, *merging, src_node=1)
    world.page(0, EventKind.KSM_PAGE, src_node=source, node=node, cause=Cause.KSM)
    assert seen(world.check()) == {"ksm": expected}


def test_ksm_makes_pages_apart_again() -> None:
    world = World()
    apart = ("do_wp_page", "handle_mm_fault", "break_ksm", "ksm_madvise")
    world.page(0, EventKind.MAP, *apart, node=1, **BOUND)
    world.page(0, EventKind.UNMAP, *apart, src_node=1, bits=Bit.KSM)
    assert seen(world.check()) == {"ksm": (1, 1, 0)}


# --- what is worked on where it is ------------------------------------------------


def test_the_scanner_touches_what_is_there() -> None:
    world = World()
    for number in range(3):
        world.maps(number)
    scan(world, 0, 8)
    scan(world, 2, 8)
    scan(world, 3, 8)
    assert seen(world.check()) == {"mempolicy": (3, 0, 0), "numa-balancing": (0, 0, 4)}


def test_a_lazy_mbind_is_no_scanner() -> None:
    world = World()
    world.maps(0)
    scan(world, 0, 8, cause=Cause.CALL)
    assert seen(world.check()) == {"mempolicy": (1, 0, 0)}


def test_a_huge_page_that_begins_before_the_range_is_in_it() -> None:
    world = World()
    start = 0x100040200000
    place = {"start": start, "end": start + 512 * PAGE}
    world.row(EventKind.MAP, addr=start, size=512 * PAGE, node=1, **place, **BOUND)
    world.row(
        EventKind.NUMA_SCAN,
        addr=start + 500 * PAGE,
        size=12 * PAGE,
        cause=Cause.NUMA_BALANCING,
        **place,
    )
    assert pages(cell(world.check(), "numa-balancing")) == (0, 0, 12)


def locks(world: World, before: int, after: int, probe: Probe) -> None:
    world.row(
        EventKind.FLAGS,
        probe=probe,
        addr=BASE,
        size=8 * PAGE,
        flags_before=before,
        flags_after=after,
    )


def test_mlock_keeps_what_is_there_and_what_comes() -> None:
    world = World()
    world.maps(0)
    world.maps(1)
    locks(world, PLAIN, PLAIN | VM_LOCKED, Probe.MLOCK_FIXUP)
    world.maps(2, flags_after=PLAIN | VM_LOCKED)
    assert pages(cell(world.check(), "mlock")) == (0, 0, 3)


@pytest.mark.parametrize(
    ("before", "after", "probe"),
    [
        (PLAIN | VM_LOCKED, PLAIN, Probe.MLOCK_FIXUP),
        (PLAIN | VM_LOCKED, PLAIN | VM_LOCKED, Probe.MLOCK_FIXUP),
        (PLAIN, PLAIN | VM_LOCKED, Probe.MPROTECT_FIXUP),
    ],
)
def test_what_locks_nothing(before: int, after: int, probe: Probe) -> None:
    world = World()
    world.maps(0)
    locks(world, before, after, probe)
    assert seen(world.check()) == {"mempolicy": (1, 0, 0)}
