"""Random programs on the simulated kernel: right ones are silent, faults are found."""

from __future__ import annotations

import os

import pytest
import simdefects
from hypothesis import HealthCheck, Phase, event, given, settings
from hypothesis import strategies as st
from simkernel import (
    BIND,
    CDM,
    DEFAULT,
    INTERLEAVE,
    PAGE,
    PREFERRED,
    RAM,
    Region,
    SimKernel,
    Task,
)

from cdmtrace.analysis import cdm_pages, check
from cdmtrace.analysis.replay import Verdict

PAGES = 12
MODES = [
    (BIND, CDM),
    (BIND, RAM),
    (BIND, RAM | CDM),
    (PREFERRED, CDM),
    (INTERLEAVE, RAM | CDM),
    (DEFAULT, 0),
]
Op = tuple[int, ...]
OPS: list[tuple[str, int]] = [
    ("mbind", 6),
    ("fault", 8),
    ("move_pages", 3),
    ("migrate_pages", 1),
    ("mergeable", 1),
    ("set_mempolicy", 2),
    ("dontneed", 2),
    ("mprotect", 2),
    ("munmap", 1),
    ("mremap", 1),
    ("fork", 1),
    ("cow", 2),
    ("exit", 1),
    ("thread", 1),
    ("mlock", 1),
    ("ksm", 1),
    ("scan", 1),
    ("balance", 1),
]
NAMES = [name for name, weight in OPS for _ in range(weight)]
NUMBER = st.integers(0, 1 << 16)
HISTORY = st.lists(
    st.tuples(st.sampled_from(NAMES), NUMBER, NUMBER, NUMBER, NUMBER),
    min_size=5,
    max_size=60,
)

# An injected fault: the rules that it breaks, and those that it may break as well.
FAULTS = {
    "one-way": ({"CDM001"}, {"CDM016", "CDM017"}),
    "bind-only": ({"CDM002"}, set()),
    "migration-ungated": ({"CDM002"}, set()),
    # It tags neither what is moved in nor takes KSM off what it tags.
    "fault-tag": ({"CDM003"}, {"CDM002", "CDM005", "CDM017"}),
    "read-lock": ({"CDM003"}, set()),
    "ksm-left-on": ({"CDM005"}, {"CDM006"}),
    "mergeable-honoured": ({"CDM007"}, {"CDM006"}),
    "numa-scanned": ({"CDM008"}, set()),
    "numa-residual": ({"CDM009"}, set()),
    # Whoever tags at any mbind() does not take the tag back at the next.
    "any-mbind-tags": ({"CDM010"}, {"CDM001", "CDM016", "CDM017"}),
    "whole-vma": ({"CDM011"}, {"CDM017"}),
    "task-policy": ({"CDM014"}, set()),
}


class World:
    """A program of one or more processes that share a list of regions."""

    def __init__(self, *quirks: str) -> None:
        self.kernel = SimKernel(*quirks)
        first = self.kernel.process()
        self.tasks: list[tuple[Task, list[Region]]] = [
            (first, [first.mmap(PAGES) for _ in range(3)])
        ]
        self.spare = 0x300000000000

    def run(self, name: str, *numbers: int) -> None:
        task, regions = self.tasks[numbers[0] % len(self.tasks)]
        if not regions:
            return
        region = regions[numbers[1] % len(regions)]
        first = numbers[2] % region.pages
        count = 1 + numbers[3] % (region.pages - first)
        getattr(self, f"do_{name}")(task, regions, region, first, count, numbers[3])

    def do_mbind(self, task, regions, region, first, count, number):
        mode, nodes = MODES[number % len(MODES)]
        task.mbind(region.page(first), count, mode, nodes, move=number % 2 == 0)

    def do_fault(self, task, regions, region, first, count, number):
        task.faults(region, first, count)

    def do_cow(self, task, regions, region, first, count, number):
        if region.page(first) in task.mm.pages:
            task.fault(region.page(first), cow=True)

    def do_move_pages(self, task, regions, region, first, count, number):
        task.move_pages([region.page(first + n) for n in range(count)], number % 2)

    def do_migrate_pages(self, task, regions, region, first, count, number):
        task.migrate_pages(*((RAM, CDM) if number % 2 else (CDM, RAM)))

    def do_mergeable(self, task, regions, region, first, count, number):
        task.mergeable(region)

    def do_set_mempolicy(self, task, regions, region, first, count, number):
        task.set_mempolicy(*MODES[number % len(MODES)])

    def do_dontneed(self, task, regions, region, first, count, number):
        task.dontneed(region.page(first), count)

    def do_mprotect(self, task, regions, region, first, count, number):
        task.mprotect(region.page(first), count, bool(number % 2))

    def do_munmap(self, task, regions, region, first, count, number):
        task.munmap(region.start, region.pages)
        regions.remove(region)
        regions.append(task.mmap(PAGES, at=region.start if number % 2 else None))

    def do_mremap(self, task, regions, region, first, count, number):
        if len(task.overlapping(region.start, region.end)) > 1:
            return
        regions.remove(region)
        self.spare += 1 << 30
        regions.append(task.mremap(region, region.pages, to=self.spare))

    def do_fork(self, task, regions, region, first, count, number):
        if len(self.tasks) < 3:
            self.tasks.append((task.fork(), list(regions)))

    def do_thread(self, task, regions, region, first, count, number):
        if len(self.tasks) < 4:
            self.tasks.append((simdefects.thread(task), regions))

    def do_mlock(self, task, regions, region, first, count, number):
        simdefects.mlock(task, task.vma(region.page(first)))

    def do_ksm(self, task, regions, region, first, count, number):
        simdefects.ksm_runs(task, task.vma(region.page(first)))

    def do_scan(self, task, regions, region, first, count, number):
        simdefects.scan_vma(task, task.vma(region.page(first)))

    def do_balance(self, task, regions, region, first, count, number):
        simdefects.balance_vma(task, task.vma(region.page(first)))

    def do_exit(self, task, regions, region, first, count, number):
        if len(self.tasks) > 1 and task is not self.tasks[0][0]:
            if sum(other.mm is task.mm for other, _ in self.tasks) == 1:
                task.exit()
            self.tasks = [pair for pair in self.tasks if pair[0] is not task]


def history(ops: list[tuple[str, int, int, int, int]], *quirks: str) -> World:
    world = World(*quirks)
    for name, *numbers in ops:
        world.run(name, *numbers)
    return world


def provoke(task: Task, fault: str) -> None:
    """Do what shows the fault, on memory that nothing else has touched."""
    task.set_mempolicy(DEFAULT)
    vma = task.mmap(PAGES)
    if fault in ("bind-only", "fault-tag"):
        task.mbind(vma.start, PAGES, PREFERRED, CDM)
        task.faults(vma)
    elif fault == "migration-ungated":
        task.faults(vma)
        task.move_pages([vma.page(3)], 1)
    elif fault == "ksm-left-on":
        task.mergeable(vma)
        task.mbind(vma.start, PAGES)
    elif fault == "mergeable-honoured":
        task.mbind(vma.start, PAGES)
        task.mergeable(vma)
    elif fault in ("numa-scanned", "numa-residual"):
        task.mbind(vma.start, PAGES)
        simdefects.scan_vma(task, task.vma(vma.start))
        simdefects.balance_vma(task, task.vma(vma.start))
    elif fault == "any-mbind-tags":
        task.mbind(task.mmap(1).start, 1)
        task.mbind(vma.start, PAGES, BIND, RAM)
    elif fault == "task-policy":
        task.set_mempolicy(PREFERRED, CDM)
        task.faults(vma)
    else:
        task.mbind(vma.page(3), 5)
        task.faults(vma)
        task.mbind(vma.page(3), 5, BIND, RAM, move=True)


relaxed = settings(
    # `make histories` has more, and takes as long.
    max_examples=int(os.environ.get("CDMTRACE_HISTORIES", "60")),
    deadline=None,
    phases=(Phase.explicit, Phase.reuse, Phase.generate, Phase.shrink),
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


@relaxed
@given(HISTORY)
def test_a_right_kernel_is_silent(ops) -> None:
    result = check(history(ops).kernel.trace())
    assert [(f.rule.id, f.observed) for f in result.findings] == []
    assert result.verdict in (Verdict.CLEAN, Verdict.VACUOUS)


@pytest.mark.parametrize("fault", FAULTS)
@relaxed
@given(HISTORY)
def test_a_fault_breaks_its_rule_and_no_other(fault, ops) -> None:
    world = history(ops, fault)
    provoke(world.tasks[0][0], fault)
    found = {f.rule.id for f in check(world.kernel.trace()).findings}
    breaks, may_break = FAULTS[fault]
    assert breaks <= found <= breaks | may_break


@pytest.mark.parametrize("fault", FAULTS)
@relaxed
@given(HISTORY)
def test_a_fault_is_found_where_it_shows(fault, ops) -> None:
    world = history(ops, fault)
    found = {f.rule.id for f in check(world.kernel.trace()).findings}
    breaks, may_break = FAULTS[fault]
    shown = set(world.kernel.wrongs) & breaks
    event("shows" if shown else "does not show")
    assert shown <= found <= breaks | may_break


def pages(world: World) -> dict[int, dict[int, int]]:
    return {
        task.mm.id: {a: n for a, (n, _) in sorted(task.mm.pages.items()) if n == 1}
        for task, _ in world.tasks
    }


@relaxed
@given(HISTORY, st.sampled_from([(), ("rfc",)]))
def test_the_model_knows_every_page(ops, quirks) -> None:
    world = history(ops, *quirks)
    result = check(world.kernel.trace(), rules=())
    held = {
        life.mm.id: {
            page.addr: page.node for page in life.state.pages.within(0, 1 << 64)
        }
        for life in result.lives
        if not life.state.ended
    }
    for mm, expected in pages(world).items():
        assert held.get(mm, {}) == expected


@relaxed
@given(HISTORY)
def test_the_patches_keep_to_the_patches(ops) -> None:
    world = history(
        ops,
        "fault-tag",
        "interleave-untagged",
        "thp-untagged",
        "one-way",
        "whole-vma",
        "migration-ungated",
        "task-policy",
        "ksm-left-on",
    )
    result = check(world.kernel.trace(), profile="rfc-v2")
    assert [(f.rule.id, f.observed) for f in result.findings] == []


@relaxed
@given(HISTORY, st.integers(0, 400), st.sampled_from(["rmap_remove", "mbind_range"]))
def test_a_loss_never_makes_a_right_kernel_guilty(ops, at, probe) -> None:
    """Rows that are lost, and said to be, leave rules open and accuse nobody."""
    kernel = history(ops).kernel
    from cdmtrace.analysis import names

    hit = [e for e in kernel.events if names.probe(e.probe) == probe]
    if not hit:
        return
    row = hit[at % len(hit)]
    kernel.events = [e for e in kernel.events if e.seq != row.seq]
    kernel.lose(probe, row.ts - 1, row.ts)
    result = check(kernel.trace())
    assert [(f.rule.id, f.observed) for f in result.findings] == []


@relaxed
@given(HISTORY)
def test_cdm_pages_counts_base_pages_by_vma(ops) -> None:
    world = history(ops)
    for mm, ranges in cdm_pages(world.kernel.trace()).items():
        for (start, end), nodes in ranges.items():
            assert 0 < sum(nodes.values()) <= (end - start) // PAGE
            assert set(nodes) == {1}
        assert mm.id
