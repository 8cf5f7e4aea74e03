"""Services of the kernel that touch pages of a node: observed, allowed, not seen."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from msgspec.structs import replace
from notes import BASE, PAGE, PLAIN, row
from simfile import header_of
from simkernel import PROBES

from cdmtrace.analysis import aggregate, check, document
from cdmtrace.analysis.frames import Event, Gap, Terms, Trace, terms_of
from cdmtrace.analysis.permissions import DEFAULT, Permissions
from cdmtrace.analysis.result import Result, RuleResult, Verdict
from cdmtrace.analysis.services import (
    BY_NAME,
    NO_DEPARTURES,
    NOT_ALWAYS,
    SERVICES,
    Service,
    of_stack,
)
from cdmtrace.analysis.stacks import Stack
from cdmtrace.analysis.touched import VM_LOCKED, Cell
from cdmtrace.events import Bit, Cause, EventKind, Mpol, Probe
from cdmtrace.render import divergence

ROOT = Path(__file__).resolve().parents[2]
SCHEMA = json.loads((ROOT / "cdmtrace/schemas/check-1.json").read_text())

NO_REASON = 0xFFFF
MOVES = ("remove_migration_pte", "migrate_pages_batch", "migrate_pages")
TAKES = ("page_remove_rmap", "try_to_unmap_one", "try_to_unmap")
FAULT = ("__handle_mm_fault", "handle_mm_fault", "asm_exc_page_fault")
TERMS = Terms(cdm=0b10, tag=0, probes=PROBES)
BOUND = {"policy": Mpol.BIND, "nodes": 0b10}


class World:
    """Rows of one address space, and their stacks."""

    def __init__(self, terms: Terms = TERMS) -> None:
        self.terms = terms
        self.events: list[Event] = []
        self.stacks: dict[int, Stack] = {}
        self.gaps: tuple[Gap, ...] = ()
        self.comm("story", 7)

    def comm(self, name: str, tid: int) -> None:
        self.row(EventKind.COMM, mm=0, pid=tid, tid=tid, payload=name.encode())

    def row(self, kind: EventKind, *stack: str, **columns: Any) -> Event:
        if stack:
            found = Stack(tuple(f"{name}+0x1" for name in stack))
            number = len(self.stacks) + 1
            self.stacks[number] = found
            columns["stack"] = number
            # As the reader of a file does it.
            if found.cause is not None:
                columns.setdefault("cause", found.cause)
        given = {"mm": 1, "pid": 7, "tid": 7, "flags_after": PLAIN, **columns}
        event = row(len(self.events) + 1, kind, **given)
        self.events.append(event)
        return event

    def page(self, number: int, kind: EventKind, *stack: str, **columns: Any) -> Event:
        given = {"addr": BASE + number * PAGE, "size": PAGE, **columns}
        return self.row(kind, *stack, **given)

    def maps(self, number: int, **columns: Any) -> Event:
        given = {"node": 1, "cause": Cause.FAULT, **BOUND, **columns}
        return self.page(number, EventKind.MAP, **given)

    def moves(self, number: int, src: int, to: int, *stack: str, **more: Any) -> Event:
        return self.page(
            number, EventKind.MIGRATE, *stack, src_node=src, node=to, **more
        )

    def trace(self) -> Trace:
        return Trace(
            path="services.arrows",
            terms=self.terms,
            events=tuple(self.events),
            count=len(self.events),
            stacks=self.stacks,
            gaps=self.gaps,
        )

    def check(self, permissions: Permissions = DEFAULT) -> Result:
        return check(self.trace(), profile="np", permissions=permissions)


def cell(result: Result, name: str, node: int = 1) -> Cell:
    return next(
        one
        for one in result.services.cells
        if (one.node, one.service.name) == (node, name)
    )


def pages(one: Cell) -> tuple[int, int, int]:
    return one.came, one.left, one.stayed


def seen(result: Result) -> dict[str, tuple[int, int, int]]:
    """Return service -> pages that came, left and stayed, where there are any."""
    return {one.service.name: pages(one) for one in result.services.cells if one.pages}


def rule(result: Result) -> RuleResult:
    return next(one for one in result.rules if one.rule.id == "CDM021")


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


def scan(world: World, first: int, last: int, **columns: Any) -> None:
    world.row(
        EventKind.NUMA_SCAN,
        addr=BASE + first * PAGE,
        size=(last - first) * PAGE,
        **{"cause": Cause.NUMA_BALANCING, **columns},
    )


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


# --- what is allowed ---------------------------------------------------------------


def reclaimed(number: int = 2) -> World:
    world = World()
    for page in range(number):
        world.maps(page)
        world.page(page, EventKind.UNMAP, *TAKES, "shrink_folio_list", src_node=1)
    return world


def test_nothing_but_mempolicy_is_allowed_by_default() -> None:
    allowed = {
        one.service.name for one in reclaimed().check().services.cells if one.allowed
    }
    assert allowed == {"mempolicy", "driver"}


def test_a_finding_for_a_vma_and_a_service() -> None:
    result = reclaimed().check()
    assert rule(result).verdict is Verdict.VIOLATED
    assert rule(result).checked == 4
    (found,) = result.findings
    assert (found.rule.id, found.cause, found.count) == ("CDM021", "reclaim", 2)
    assert found.expected == (
        "pages of node 1 left alone by reclaim; allowed there: mempolicy"
    )
    assert found.observed == "1 page of node 1 taken away, by reclaim"
    (step,) = found.witness
    assert step.kind == "unmap"
    assert step.stack == (*TAKES, "shrink_folio_list")


@pytest.mark.parametrize(
    ("source", "node", "said"),
    [
        (1, 0, "1 page of node 1 taken away, by compaction, to node 0"),
        (0, 1, "1 page of node 1 mapped, by compaction, from node 0"),
        (-1, 1, "1 page of node 1 mapped, by compaction"),
        (1, 1, "1 page of node 1 worked on by compaction"),
    ],
)
def test_what_it_did(source: int, node: int, said: str) -> None:
    world = World()
    world.moves(0, source, node, *MOVES, "compact_zone", arg=0)
    found = [one for one in world.check().findings if one.rule.id == "CDM021"]
    assert [one.observed for one in found] == [said]


@pytest.mark.parametrize(
    "permissions",
    [
        Permissions(more={1: frozenset({"reclaim"})}),
        Permissions(more={None: frozenset({"reclaim"})}),
        Permissions(more={1: frozenset({"all"})}),
        Permissions(nodes={1: frozenset({"mempolicy", "reclaim"})}),
        Permissions(nodes={None: frozenset({"all"})}),
    ],
)
def test_what_is_allowed_is_no_finding(permissions: Permissions) -> None:
    result = reclaimed().check(permissions)
    assert cell(result, "reclaim").allowed
    assert result.findings == ()
    assert (rule(result).verdict, rule(result).checked) == (Verdict.CLEAN, 4)


def test_each_node_has_its_own_permissions() -> None:
    world = World(replace(TERMS, cdm=0b110))
    world.moves(0, 1, 2, *MOVES, "kernel_move_pages", arg=3)
    result = world.check(Permissions(more={2: frozenset({"migration"})}))
    assert pages(cell(result, "migration", 1)) == (0, 1, 0)
    assert pages(cell(result, "migration", 2)) == (1, 0, 0)
    (found,) = result.findings
    assert found.expected.startswith("pages of node 1 left alone by migration; ")
    assert found.expected.endswith("allowed there: mempolicy")
    result = world.check(Permissions(more={1: frozenset({"ksm", "damon"})}))
    assert [
        (one.count, one.expected.partition("; ")[2]) for one in result.findings
    ] == [
        (1, "allowed there: damon, ksm, mempolicy"),
        (1, "allowed there: mempolicy"),
    ]
    assert len({one.fingerprint for one in result.findings}) == 2


def test_a_policy_may_be_forbidden_too() -> None:
    world = World()
    world.maps(0)
    (found,) = world.check(Permissions(nodes={1: frozenset()})).findings
    assert found.cause == "mempolicy"
    assert found.expected.endswith("allowed there: none")


def test_a_leak_is_the_other_rules() -> None:
    world = World()
    world.maps(0, policy=0, nodes=0)
    result = world.check()
    assert [one.rule.id for one in result.findings] == ["CDM014"]
    assert rule(result).verdict is Verdict.VACUOUS
    assert not cell(result, "fallback").allowed


def test_a_fingerprint_has_no_address() -> None:
    world, other = reclaimed(), World()
    place = {"start": BASE + 64 * PAGE, "end": BASE + 72 * PAGE, "pid": 9, "tid": 9}
    other.comm("story", 9)
    other.maps(65, **place)
    other.page(65, EventKind.UNMAP, *TAKES, "shrink_folio_list", src_node=1, **place)
    (one,), (two,) = world.check().findings, other.check().findings
    assert one.fingerprint == two.fingerprint
    assert one.start != two.start


# --- what could not be seen ----------------------------------------------------------


def test_without_occasion_it_is_vacuous() -> None:
    world = World()
    result = world.check()
    assert (rule(result).verdict, rule(result).findings) == (Verdict.VACUOUS, 0)
    assert {
        one.service.name: one.unchecked
        for one in result.services.cells
        if one.unchecked
    } == {
        "longterm-pin": BY_NAME["longterm-pin"].partly,
        "protect-write": BY_NAME["protect-write"].never,
        "oom-eligible": BY_NAME["oom-eligible"].never,
        "page-cache": BY_NAME["page-cache"].partly,
    }


@pytest.mark.parametrize("probe", sorted(rule(World().check()).rule.probes))
def test_without_its_probe_a_service_is_not_seen(probe: str) -> None:
    world = World(replace(TERMS, probes={**PROBES, probe: None}))
    for one in world.check().services.cells:
        if probe in one.service.probes:
            assert one.unchecked == f"probe not attached: {probe}"


def test_what_was_seen_is_not_unchecked() -> None:
    world = World(replace(TERMS, probes={**PROBES, "numa_scan": None}))
    world.moves(0, 1, 0, *MOVES, "migrate_misplaced_page", arg=5)
    assert cell(world.check(), "numa-balancing").unchecked is None


@pytest.mark.parametrize("stacks", ["changes", "none"])
def test_without_stacks_most_are_not_seen(stacks: str) -> None:
    result = World(replace(TERMS, stacks=stacks)).check()
    told = {
        one.service.name
        for one in result.services.cells
        if one.unchecked == f"recorded with --stacks {stacks}"
    }
    assert told == {one.name for one in SERVICES if one.stacks or one.departures}
    assert {"reclaim", "compaction", "khugepaged"} < told
    assert rule(result).verdict is Verdict.INCONCLUSIVE


def test_an_old_recording_has_no_stacks_of_what_leaves() -> None:
    world = World(replace(TERMS, departures=False))
    world.moves(0, 1, 0, *MOVES, "compact_zone", arg=0)
    result = world.check(Permissions(more={1: frozenset({"compaction"})}))
    told = {
        one.service.name
        for one in result.services.cells
        if one.unchecked == NO_DEPARTURES
    }
    assert told == {"reclaim", "khugepaged", "memory-failure"}
    assert (rule(result).verdict, rule(result).why) == (
        Verdict.INCONCLUSIVE,
        NO_DEPARTURES,
    )
    # What was seen is true all the same.
    assert rule(world.check()).verdict is Verdict.VIOLATED


@pytest.mark.parametrize(
    ("extra", "expected"),
    [
        ({}, False),
        ({"stacks_of": ["arrivals"]}, False),
        ({"stacks_of": "departures"}, False),
        ({"stacks_of": ["changes", "arrivals", "departures"]}, True),
    ],
)
def test_the_header_says_whether_it_has(extra: dict[str, Any], expected: bool) -> None:
    header = dataclasses.replace(header_of(World().trace()), extra=extra)
    assert terms_of(header, "x").departures is expected


def test_a_node_that_was_left_out() -> None:
    world = World(replace(TERMS, cdm=0b110, told=0b10))
    result = world.check()
    assert cell(result, "ksm", 2).unchecked == "recorded without this node (--node)"
    assert cell(result, "ksm", 1).unchecked is None


@pytest.mark.parametrize("probe", ["rmap_remove", "ksm_merge", "watch"])
def test_a_loss_leaves_it_open(probe: str) -> None:
    world = World()
    world.maps(0)
    world.gaps = (Gap(probe=probe, reason="ring", count=3, since=1, until=9000),)
    result = world.check()
    assert rule(result).verdict is Verdict.INCONCLUSIVE
    assert result.services.why
    world.gaps = (replace(world.gaps[0], probe="vma_new"),)
    assert world.check().services.why is None
    assert rule(world.check()).verdict is Verdict.CLEAN


def test_a_loss_may_have_taken_the_pages_that_a_scan_is_said_to_touch() -> None:
    world = World()
    world.maps(0)
    scan(world, 0, 8)
    assert rule(world.check()).verdict is Verdict.VIOLATED
    world.gaps = (
        Gap(probe="rmap_remove", reason="ring", count=1, since=2500, until=2600),
    )
    result = rule(world.check())
    assert result.verdict is Verdict.INCONCLUSIVE
    assert result.findings == 0
    assert "withheld" in str(result.why)


# --- which rules are asked for, and what is printed ---------------------------------


def test_which_rules_np_asks_for() -> None:
    assert [one.rule.id for one in reclaimed().check().rules] == ["CDM014", "CDM021"]


@pytest.mark.parametrize("profile", ["intended", "rfc-v2"])
def test_the_other_profiles_do_not_ask_for_it(profile: str) -> None:
    result = check(reclaimed().trace(), profile=profile)
    assert "CDM021" not in {one.rule.id for one in result.rules}
    assert document.check(result)["services"] is None
    (one,) = check(reclaimed().trace(), profile=profile, rules={"CDM021"}).rules
    assert (one.verdict, one.why) == (
        Verdict.UNCHECKED,
        f"{profile} promises nothing like it",
    )


def test_np_asks_nothing_of_the_tag() -> None:
    world = World()
    world.maps(0)
    result = world.check()
    assert result.shadow is None
    assert check(world.trace()).shadow is not None


def test_the_document_keeps_to_its_schema() -> None:
    told = document.check(reclaimed().check())
    jsonschema.validate(told, SCHEMA)
    (one,) = [c for c in told["services"]["cells"] if c["service"] == "reclaim"]
    assert one == {
        "node": 1,
        "service": "reclaim",
        "flag": "NP_OPS_RECLAIM",
        "does": BY_NAME["reclaim"].does,
        "allowed": False,
        "observed": True,
        "unchecked": None,
        "pages": {"came": 0, "left": 2, "stayed": 0},
        "first": {"seq": 3, "ts": 3000, "since_start": 3000},
        "by": [{"comm": "story", "pages": 2}],
    }


def test_the_text() -> None:
    world = reclaimed()
    world.comm("kswapd1", 44)
    world.page(
        7, EventKind.UNMAP, *TAKES, "shrink_folio_list", src_node=1, pid=44, tid=44
    )
    world.gaps = (Gap(probe="ksm_merge", reason="ring", count=3, since=1, until=9),)
    text = divergence.check(document.check(world.check()))
    lines = [" ".join(line.split()) for line in text.splitlines()]
    assert "1 mempolicy yes 2 0 0 0.000002 story" in lines
    assert "1 reclaim NO 0 3 0 0.000003 story +1" in lines
    assert "1 compaction no 0 0 0 - -" in lines
    assert "1 oom-eligible no ? ? ? - -" in lines
    assert "? oom-eligible: no probe tells what the OOM killer counts" in lines
    assert "not certain: events lost: 3 of ksm_merge" in lines
    assert max(map(len, text.splitlines())) < 80


def test_no_node_no_table() -> None:
    world = World(replace(TERMS, cdm=0))
    assert "(no CDM node)" in divergence.check(document.check(world.check()))
    assert aggregate.SERVICES not in aggregate.report(world.trace())


def test_the_report_has_what_was_observed() -> None:
    rows = aggregate.report(reclaimed().trace())[aggregate.SERVICES]
    assert [row["service"] for row in rows] == [
        *("mempolicy", "reclaim", "longterm-pin", "protect-write", "oom-eligible"),
        "page-cache",
    ]
    assert rows[1] == {
        "node": 1,
        "service": "reclaim",
        "pages came": 0,
        "pages left": 2,
        "pages stayed": 0,
        "since": "0.000003",
        "by": "story",
    }
    assert rows[2]["pages left"] is None


# --- the table of services ------------------------------------------------------------


def test_every_flag_of_private_nodes_has_its_service() -> None:
    flags = [one.flag for one in SERVICES if one.flag]
    assert sorted(flags) == sorted(
        f"NP_OPS_{name}"
        for name in (
            *("MIGRATION", "MEMPOLICY", "DEMOTION", "PROTECT_WRITE", "RECLAIM"),
            *("NUMA_BALANCING", "COMPACTION", "LONGTERM_PIN", "OOM_ELIGIBLE"),
        )
    )


def test_no_function_is_of_two_services() -> None:
    functions = [name for one in SERVICES for name in one.functions]
    assert len(functions) == len(set(functions))
    assert len(BY_NAME) == len(SERVICES)
    for one in SERVICES:
        assert one.probes or one.never, one.name
