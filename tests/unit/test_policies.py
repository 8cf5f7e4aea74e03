"""Policies that no mbind() of the VMA has set: a cpuset's, a shmem file's, a task's."""

from __future__ import annotations

import pytest
from simkernel import BIND, CDM, DEFAULT, INTERLEAVE, PAGE, RAM, TAG, SimKernel, Task

from cdmtrace.analysis import check, describe
from cdmtrace.analysis.result import Result, Verdict
from cdmtrace.events import Bit, Cause, EventKind, Lock, MpolFlag, Probe

SHARED = BIND | MpolFlag.SHARED


@pytest.fixture
def kernel() -> SimKernel:
    return SimKernel()


@pytest.fixture
def task(kernel: SimKernel) -> Task:
    return kernel.process()


def found(kernel: SimKernel, profile: str = "intended") -> list[tuple[str, str]]:
    result = check(kernel.trace(), profile=profile)
    return [(f.rule.id, f.cause) for f in result.findings]


def verdict(result: Result, rule: str) -> Verdict:
    return next(r.verdict for r in result.rules if r.rule.id == rule)


# --- cpusets


def rebind(by: Task, task: Task, start: int, nodes: int, *, retag: bool) -> None:
    """A cpuset gives the VMA at start other nodes; retag: and the tag that it has."""
    vma = task.vma(start)
    before, had = vma.flags, vma.policy
    vma.policy = vma.policy[0], nodes
    if retag:
        vma.flags = vma.flags | TAG if nodes & CDM else vma.flags & ~TAG
    by.lock = Lock.WRITE_SELF
    by.vma_row(
        EventKind.POLICY,
        vma,
        task.mm,
        probe=Probe.MPOL_REBIND,
        cause=Cause.CPUSET,
        addr=vma.start,
        size=vma.end - vma.start,
        flags_before=before,
        other_policy=had[0],
        other=had[1],
    )
    by.lock = Lock.NONE


@pytest.mark.parametrize("retag", [True, False])
def test_a_cpuset_takes_the_node_away(
    kernel: SimKernel, task: Task, retag: bool
) -> None:
    region = task.mmap(7)
    task.mbind(region.start, 7)
    rebind(kernel.process(), task, region.start, RAM, retag=retag)
    assert found(kernel) == ([] if retag else [("CDM001", "cpuset")])
    row = kernel.events[-1]
    assert describe.what(row, kernel.trace().terms) == (
        "policy BIND:1 -> BIND:0 by a cpuset"
    )


@pytest.mark.parametrize("retag", [True, False])
def test_a_cpuset_gives_the_node(kernel: SimKernel, task: Task, retag: bool) -> None:
    region = task.mmap(7)
    task.mbind(region.start, 7)
    task.mbind(region.start, 7, INTERLEAVE, RAM)
    rebind(kernel.process(), task, region.start, RAM | CDM, retag=retag)
    task.faults(region)
    assert found(kernel) == ([] if retag else [("CDM002", "interleave")])


def test_pages_that_stay_are_leftovers_even_if_they_were_asked_for(
    kernel: SimKernel, task: Task
) -> None:
    region = task.mmap(7)
    task.mbind(region.start, 7)
    task.move_pages([region.page(n) for n in range(7)], 1)
    rebind(kernel.process(), task, region.start, RAM, retag=True)
    assert found(kernel) == []


def test_a_tag_that_a_cpuset_should_not_have_set(kernel: SimKernel, task: Task) -> None:
    region = task.mmap(7)
    task.mbind(region.start, 7)
    task.mbind(region.start, 7, BIND, RAM)
    vma = task.vma(region.start)
    vma.flags |= TAG
    task.lock = Lock.WRITE_SELF
    task.vma_row(
        EventKind.POLICY,
        vma,
        probe=Probe.MPOL_REBIND,
        cause=Cause.CPUSET,
        addr=vma.start,
        size=vma.end - vma.start,
        flags_before=vma.flags & ~TAG,
        other_policy=BIND,
        other=RAM,
    )
    assert found(kernel) == [("CDM010", "cpuset")]


def test_the_patches_do_not_look_at_cpusets(kernel: SimKernel, task: Task) -> None:
    region = task.mmap(7)
    task.mbind(region.start, 7)
    task.mbind(region.start, 7, DEFAULT)
    vma = task.vma(region.start)
    vma.policy = BIND, RAM
    rebind(kernel.process(), task, region.start, CDM, retag=False)
    # mbind() has tagged it, in the patches for good; nothing has since.
    assert ("CDM002", "cleared") in found(kernel, "rfc-v2")
    other = kernel.process()
    region = other.mmap(7)
    other.mbind(region.start, 7, BIND, RAM)
    rebind(kernel.process(), other, region.start, CDM, retag=True)
    assert ("CDM010", "cpuset") in found(kernel, "rfc-v2")


def test_without_its_probe_a_stale_tag_is_not_excluded(
    kernel: SimKernel, task: Task
) -> None:
    region = task.mmap(7)
    task.mbind(region.start, 7)
    task.mbind(region.start, 7, BIND, RAM)
    assert verdict(check(kernel.trace()), "CDM001") is Verdict.CLEAN
    del kernel.probes["mpol_rebind"]
    assert verdict(check(kernel.trace()), "CDM001") is Verdict.INCONCLUSIVE


# --- shmem files


def file_fault(
    task: Task, addr: int, policy: int = SHARED, *, alloc: bool = True
) -> None:
    """A page of the CDM node is faulted in from a file; alloc: it was made for it."""
    vma = task.vma(addr)
    task.mm.watched = True
    nodes = CDM if policy & MpolFlag.SHARED else 0
    by_task = {"other_policy": task.policy[0], "other": task.policy[1]}
    columns = {"addr": addr, "size": PAGE, "node": 1}
    task.lock = Lock.READ
    if alloc:
        task.row(
            EventKind.ALLOC,
            probe=Probe.ALLOC,
            policy=policy,
            nodes=nodes,
            bits=Bit.UNLINKED,
            **columns,
            **({} if nodes else by_task),
        )
    task.vma_row(
        EventKind.MAP,
        vma,
        probe=Probe.RMAP_ADD,
        cause=Cause.FILE,
        bits=Bit.FILE,
        **columns,
        **by_task,
    )
    task.mm.pages[addr] = 1, PAGE
    task.lock = Lock.NONE


def test_a_page_by_the_policy_of_its_file(kernel: SimKernel, task: Task) -> None:
    region = task.mmap(7)
    for number in range(7):
        file_fault(task, region.page(number))
    assert found(kernel) == [("CDM002", "file")]


def test_a_vma_with_the_tag_that_its_file_asks_for(
    kernel: SimKernel, task: Task
) -> None:
    region = task.mmap(7)
    task.mbind(region.start, 7)
    file_fault(task, region.start)
    task.unmap(region.start)
    assert found(kernel) == []


def test_the_policy_of_a_file_outlives_the_page(kernel: SimKernel, task: Task) -> None:
    region = task.mmap(7)
    file_fault(task, region.start)
    task.unmap(region.start)
    vma = task.vma(region.start)
    vma.flags |= TAG
    task.vma_row(
        EventKind.FLAGS, vma, flags_before=vma.flags & ~TAG, lock_exit=Lock.WRITE_SELF
    )
    assert ("CDM010", "unknown") not in found(kernel)
    assert "CDM001" not in {rule for rule, _ in found(kernel)}


def test_mbind_of_the_vma_ends_what_was_known_of_the_file(
    kernel: SimKernel, task: Task
) -> None:
    region = task.mmap(7)
    file_fault(task, region.start)
    task.mbind(region.start, 7, BIND, RAM)
    task.unmap(region.start)
    vma = task.vma(region.start)
    vma.flags |= TAG
    task.vma_row(EventKind.FLAGS, vma, flags_before=vma.flags & ~TAG)
    assert ("CDM010", "unknown") in found(kernel)


def test_a_child_has_the_policy_of_the_file_too(kernel: SimKernel, task: Task) -> None:
    region = task.mmap(7)
    file_fault(task, region.start)
    child = task.fork()
    vma = child.vma(region.start)
    vma.flags |= TAG
    child.vma_row(EventKind.FLAGS, vma, flags_before=vma.flags & ~TAG)
    assert ("CDM010", "unknown") not in found(kernel)


def test_a_page_that_was_there_did_not_come_for_the_vma(
    kernel: SimKernel, task: Task
) -> None:
    region = task.mmap(7)
    file_fault(task, region.start, alloc=False)
    assert found(kernel) == []


def test_a_file_without_a_policy_takes_the_task_s(
    kernel: SimKernel, task: Task
) -> None:
    region = task.mmap(7)
    task.policy = BIND, CDM
    file_fault(task, region.start, DEFAULT)
    assert found(kernel) == [("CDM014", "file")]


@pytest.mark.parametrize("private", [False, True])
def test_the_policy_of_a_vma_does_not_name_what_its_file_leaves_to_the_task(
    kernel: SimKernel, task: Task, private: bool
) -> None:
    """Another process has set the file's policy to DEFAULT since."""
    region = task.mmap(7)
    task.mbind(region.start, 7)
    task.policy = INTERLEAVE, RAM | CDM
    task.mm.watched = True
    vma = task.vma(region.start)
    page = {"addr": region.start, "size": PAGE, "node": 1}
    task.lock = Lock.READ
    by_task = {"other_policy": INTERLEAVE, "other": RAM | CDM}
    if private:
        task.vma_row(EventKind.ALLOC, vma, probe=Probe.ALLOC, **page, **by_task)
    else:
        task.row(
            EventKind.ALLOC, probe=Probe.ALLOC, bits=Bit.UNLINKED, **page, **by_task
        )
    task.vma_row(EventKind.MAP, vma, probe=Probe.RMAP_ADD, cause=Cause.FAULT, **page)
    task.mm.pages[region.start] = 1, PAGE
    task.lock = Lock.NONE
    assert found(kernel) == [("CDM014", "interleave")]
