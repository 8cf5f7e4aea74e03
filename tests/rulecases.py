"""For each rule of check: how it is broken and kept, in the world of SimKernel."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import simdefects
from simkernel import (
    BIND,
    CDM,
    DEFAULT,
    PREFERRED,
    RAM,
    SimKernel,
    Task,
)

from cdmtrace.analysis import check
from cdmtrace.analysis.result import Result, RuleResult
from cdmtrace.analysis.rules import BY_ID

Program = Callable[[Task], None]


def judge(kernel: SimKernel, rule: str, profile: str | None = None) -> RuleResult:
    """Judge by a profile, by default the first one that the rule is of."""
    chosen = profile or min(BY_ID[rule].profiles)
    return one(check(kernel.trace(), profile=chosen), rule)


def one(result: Result, rule: str) -> RuleResult:
    return next(r for r in result.rules if r.rule.id == rule)


def found(result: Result) -> list[tuple[str, str]]:
    return [(f.rule.id, f.cause) for f in result.findings]


def run(program: Program, *quirks: str) -> SimKernel:
    kernel = SimKernel(*quirks)
    program(kernel.process())
    return kernel


def bind_back(task: Task) -> None:
    vma = task.mmap(23)
    task.mbind(vma.start, 23)
    task.faults(vma)
    task.mbind(vma.start, 23, BIND, RAM, move=True)


def move_in(task: Task) -> None:
    vma = task.mmap(41)
    task.faults(vma)
    task.mbind(task.mmap(1).start, 1)
    task.move_pages([vma.page(n) for n in range(41)], 1)


def prefer(task: Task) -> None:
    vma = task.mmap(29)
    task.mbind(vma.start, 29, PREFERRED)
    task.faults(vma)


def merge_then_bind(task: Task) -> None:
    vma = task.mmap(47)
    task.mergeable(vma)
    task.mbind(vma.start, 47)


def task_policy(task: Task) -> None:
    task.mbind(task.mmap(1).start, 1)
    vma = task.mmap(37)
    task.set_mempolicy(PREFERRED, CDM)
    task.faults(vma)
    task.set_mempolicy(DEFAULT)


def bind_the_middle(task: Task) -> None:
    vma = task.mmap(53)
    task.mbind(vma.page(11), 19)
    task.faults(vma)


def nothing(task: Task) -> None:
    task.faults(task.mmap(7))


@dataclass(frozen=True, kw_only=True)
class Case:
    """How a rule is broken and kept, in the world of SimKernel.

    quirks: under which the program breaks it; others: what they break besides. probe:
    one whose losses leave the rule open. keeps: a program that keeps it, under kept
    (quirks that its premise needs).
    """

    breaks: Program
    quirks: tuple[str, ...]
    others: set[str] = field(default_factory=set)
    probe: str
    keeps: Program
    kept: tuple[str, ...] = ()


CASES: dict[str, Case] = {
    "CDM001": Case(
        breaks=bind_back, quirks=("one-way",), probe="rmap_add", keeps=bind_back
    ),
    "CDM002": Case(
        breaks=prefer, quirks=("bind-only",), probe="mbind_range", keeps=prefer
    ),
    "CDM003": Case(breaks=prefer, quirks=("fault-tag",), probe="alloc", keeps=prefer),
    "CDM004": Case(
        breaks=simdefects.migrate_while_locking,
        quirks=("unlocked-clear", "one-way"),
        others={"CDM003"},
        probe="mlock_fixup",
        keeps=simdefects.migrate_while_locking,
    ),
    "CDM005": Case(
        breaks=merge_then_bind,
        quirks=("ksm-left-on",),
        probe="vma_split",
        keeps=merge_then_bind,
    ),
    "CDM006": Case(
        breaks=simdefects.merge_pages,
        quirks=("ksm-left-on",),
        others={"CDM005"},
        probe="ksm_merge",
        keeps=simdefects.merge_pages,
    ),
    "CDM007": Case(
        breaks=simdefects.merge_after_tag,
        quirks=("mergeable-honoured",),
        probe="ksm_madvise",
        keeps=simdefects.merge_after_tag,
    ),
    "CDM008": Case(
        breaks=simdefects.scan,
        quirks=("numa-scanned",),
        probe="numa_scan",
        keeps=simdefects.scan,
    ),
    "CDM009": Case(
        breaks=simdefects.balance,
        quirks=("numa-residual",),
        probe="numa_migrate",
        keeps=simdefects.balance,
    ),
    "CDM010": Case(
        breaks=task_policy,
        quirks=("task-policy", "fault-tag"),
        others={"CDM003", "CDM014"},
        probe="migrate_pages",
        keeps=bind_back,
    ),
    "CDM011": Case(
        breaks=bind_the_middle,
        quirks=("whole-vma",),
        probe="vma_split",
        keeps=bind_the_middle,
    ),
    "CDM012": Case(
        breaks=simdefects.bind_in_vain,
        quirks=("whole-vma",),
        probe="vma_split",
        keeps=simdefects.bind_in_vain,
    ),
    "CDM013": Case(
        breaks=simdefects.fault_in_vain,
        quirks=("fault-tag",),
        others={"CDM003"},
        probe="rmap_add",
        keeps=simdefects.fault_and_map,
        kept=("fault-tag",),
    ),
    "CDM014": Case(
        breaks=task_policy,
        quirks=("task-policy",),
        probe="sys_move_pages",
        keeps=bind_back,
    ),
    "CDM015": Case(
        breaks=simdefects.read_ahead,
        quirks=("fault-tag",),
        others={"CDM003"},
        probe="rmap_add",
        keeps=simdefects.fault_and_map,
        kept=("fault-tag",),
    ),
    "CDM016": Case(
        breaks=simdefects.cut_a_tagged,
        quirks=("one-way",),
        probe="rmap_add",
        keeps=simdefects.cut_a_bound,
    ),
    "CDM017": Case(
        breaks=simdefects.neighbours,
        quirks=("one-way",),
        probe="vma_merge",
        keeps=simdefects.like_neighbours,
    ),
    "CDM018": Case(
        breaks=simdefects.fault_together,
        quirks=("fault-tag",),
        others={"CDM003"},
        probe="alloc",
        keeps=bind_back,
    ),
    "CDM019": Case(
        breaks=simdefects.drive_and_lie,
        quirks=(),
        probe="migrate_pages",
        keeps=simdefects.move_within_policy,
    ),
}
LOCAL = {
    *("CDM003", "CDM006", "CDM007", "CDM008", "CDM009", "CDM014", "CDM019"),
}
"""Rules whose rows say it all: a loss elsewhere does not undo what they found."""
INFO = {"CDM017", "CDM019"}
