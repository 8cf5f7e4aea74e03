"""Losses: what is fresh since the last look, and which findings they put in doubt."""

from __future__ import annotations

from pathlib import Path

import pytest
from simfile import save
from simkernel import BIND, PAGE, RAM, Region, SimKernel, Task

from cdmtrace.analysis import check, load
from cdmtrace.analysis.result import Result, Verdict
from cdmtrace.events import Lost, Probe
from cdmtrace.format.schema import ANYWHERE, Shortfall
from cdmtrace.losses import Missing, Where, fresh

ALLOC = Where(Probe.ALLOC, Lost.RING, 7)


def test_the_difference_of_two_looks_with_the_range_of_the_second() -> None:
    before = {ALLOC: Missing(5, 4096, 8192), Where(Probe.ZAP, Lost.MAP): Missing(3)}
    now = {
        ALLOC: Missing(7, 4096, 12288),
        Where(Probe.ZAP, Lost.MAP): Missing(3),
        Where(Probe.SYS_MBIND, Lost.UNPAIRED): Missing(1),
    }
    assert fresh(now, before) == (
        Shortfall(probe="alloc", reason="ring", count=2, mm=7, start=4096, end=12288),
        Shortfall(probe="sys_mbind", reason="unpaired", count=1, end=ANYWHERE),
    )
    assert fresh(now, now) == ()


def test_a_probe_without_a_name_is_called_by_its_number() -> None:
    (entry,) = fresh({Where(99, Lost.MAP): Missing(2)}, {})
    assert (entry.probe, entry.reason, entry.count) == ("99", "map", 2)


def test_a_reason_that_nobody_knows() -> None:
    with pytest.raises(ValueError, match="6"):
        fresh({Where(Probe.ZAP, 6): Missing(1)}, {})


# --- which findings a loss puts in doubt ---------------------------------------


def leave_stale(task: Task) -> Region:
    """A VMA that keeps its tag though nothing is left that it could be for."""
    vma = task.mmap(23)
    task.mbind(vma.start, 23)
    task.faults(vma)
    task.mbind(vma.start, 23, BIND, RAM, move=True)
    return vma


def stale(result: Result) -> list[tuple[int, int]]:
    return [(f.mm.id, f.start) for f in result.findings if f.rule.id == "CDM001"]


def two() -> tuple[SimKernel, tuple[Task, Region], tuple[Task, Region]]:
    kernel = SimKernel("one-way")
    first, second = kernel.process(), kernel.process()
    return kernel, (first, leave_stale(first)), (second, leave_stale(second))


def test_a_loss_without_a_place_touches_all() -> None:
    kernel, _, _ = two()
    kernel.lose("rmap_add", 0)
    assert stale(check(kernel.trace())) == []


def test_a_loss_touches_its_address_space_only() -> None:
    kernel, (task, _), (other, region) = two()
    kernel.lose("rmap_add", 0, mm=task.mm.id)
    result = check(kernel.trace())
    assert stale(result) == [(other.mm.id, region.start)]
    (rule,) = [r for r in result.rules if r.rule.id == "CDM001"]
    assert rule.verdict is Verdict.VIOLATED
    assert rule.why
    assert "1 of rmap_add (in 1 of 2 address spaces)" in rule.why


def test_a_loss_touches_its_addresses_only() -> None:
    kernel = SimKernel("one-way")
    task = kernel.process()
    left, right = leave_stale(task), leave_stale(task)
    kernel.lose("rmap_add", 0, mm=task.mm.id, start=right.end - PAGE, end=right.end)
    assert stale(check(kernel.trace())) == [(task.mm.id, left.start)]
    kernel.gaps.clear()
    kernel.lose("rmap_add", 0, mm=task.mm.id, start=right.end, end=right.end + PAGE)
    assert len(stale(check(kernel.trace()))) == 2


def test_without_findings_a_placed_loss_leaves_the_rule_open() -> None:
    """What is missing may be what broke it."""
    kernel = SimKernel()
    task = kernel.process()
    leave_stale(task)
    kernel.lose("rmap_add", 0, mm=task.mm.id + 1)
    (rule,) = [r for r in check(kernel.trace()).rules if r.rule.id == "CDM001"]
    assert rule.verdict is Verdict.INCONCLUSIVE


def test_a_child_inherits_what_its_parent_lost() -> None:
    kernel = SimKernel("one-way")
    parent = kernel.process()
    parent.mbind(parent.mmap(1).start, 1)
    child = parent.fork()
    leave_stale(child)
    grandchild = child.fork()
    leave_stale(grandchild)
    kernel.lose("rmap_add", 0, mm=parent.mm.id)
    assert stale(check(kernel.trace())) == []
    kernel.gaps.clear()
    kernel.lose("rmap_add", 0, mm=grandchild.mm.id)
    assert {mm for mm, _ in stale(check(kernel.trace()))} == {child.mm.id}


def test_where_pages_have_moved_addresses_say_nothing() -> None:
    kernel = SimKernel("one-way")
    task = kernel.process()
    vma = leave_stale(task)
    before = check(kernel.trace())
    task.mremap(vma, 23, to=vma.start + (1 << 33))
    assert stale(before) == [(task.mm.id, vma.start)]
    # What was found before the move stands; what came after it does not.
    leave_stale(task)
    kernel.lose("rmap_add", 0, mm=task.mm.id, start=0, end=PAGE)
    assert stale(check(kernel.trace())) == [(task.mm.id, vma.start)]


def test_an_address_space_that_was_not_followed(tmp_path: Path) -> None:
    """Whatever it did later is unknown, to every rule."""
    kernel = SimKernel("one-way")
    task, other = kernel.process(), kernel.process()
    kernel.lose("watch", kernel.now, kernel.now + 1, mm=task.mm.id)
    leave_stale(task)
    region = leave_stale(other)
    result = check(load(save(kernel.trace(), tmp_path / "x.arrows")))
    assert stale(result) == [(other.mm.id, region.start)]
    for rule in result.rules:
        if rule.rule.id == "CDM020":
            # It is about the recording, and no address space.
            assert rule.verdict is Verdict.CLEAN
            continue
        assert rule.verdict in (Verdict.INCONCLUSIVE, Verdict.VIOLATED)
        assert rule.why
        assert "1 address space not followed" in rule.why
