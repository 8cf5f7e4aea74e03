"""A timeline as data: losses, findings, and the pages that the model has."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import simstory
from lives import FAR, at, watched
from msgspec.structs import replace
from simkernel import PAGE, PREFERRED, SimKernel, Task

from cdmtrace.analysis import Trace, check, load
from cdmtrace.analysis.frames import FOLLOWED, ROWS, Gap
from cdmtrace.analysis.history import document, tables
from cdmtrace.analysis.holding import count_pages
from cdmtrace.analysis.timeline import follow, lost, places

GOLDEN = Path(__file__).parents[1] / "golden"


# --- what is missing ------------------------------------------------------------


def lossy() -> tuple[SimKernel, Task, Trace, int]:
    kernel, task = watched()
    vma = task.mmap(5)
    task.mbind(vma.start, 5)
    task.faults(vma)
    task.munmap(vma.start, 5)
    task.faults(task.mmap(5))
    return kernel, task, kernel.trace(), vma.start


def losses(trace: Trace, pid: int, addr: int, **more: object) -> int:
    gap = {"probe": "rmap_add", "reason": "ring", "count": 3, "since": 0, **more}
    gap.setdefault("until", trace.events[-1].ts)
    lacking = replace(trace, gaps=(Gap(**gap),))
    found = follow(lacking, pid, addr, profile="intended")
    (life,) = found.lives
    return len(found.losses(life))


def test_a_loss_that_may_be_of_the_vma_is_in_its_life() -> None:
    _, task, trace, addr = lossy()
    (life,) = follow(trace, task.pid, addr, profile="intended").lives
    first, last = life.moments[0].event.ts, life.moments[-1].event.ts
    mm = life.space[0]

    def count(**more: object) -> int:
        return losses(trace, task.pid, addr, **more)

    assert count() == 1
    assert count(mm=mm) == 1
    assert count(mm=mm + 1) == 0
    assert count(start=addr + 4 * PAGE, end=addr + 6 * PAGE) == 1
    assert count(start=addr + 5 * PAGE, end=addr + 6 * PAGE) == 0
    assert count(until=first) == 1
    assert count(until=first - 1) == 0
    assert count(since=last) == 1
    assert count(since=last + 1) == 0
    assert count(probe="task") == 0


def test_a_loss_of_its_parent_is_its_own() -> None:
    kernel, task = watched()
    vma = task.mmap(5)
    task.mbind(vma.start, 5)
    child = task.fork()
    child.fault(vma.start)
    trace = kernel.trace()
    assert losses(trace, child.pid, vma.start, mm=task.mm.id) == 1
    assert losses(trace, task.pid, vma.start, mm=child.mm.id) == 0


def test_one_that_has_moved_may_have_lost_rows_anywhere() -> None:
    kernel, task = watched()
    vma = task.mmap(5)
    task.mbind(vma.start, 5)
    task.mremap(vma, 5, to=FAR)
    assert losses(kernel.trace(), task.pid, FAR, start=1, end=2) == 1


def test_a_loss_is_a_row_where_it_began() -> None:
    _, task, trace, addr = lossy()
    (life,) = follow(trace, task.pid, addr, profile="intended").lives
    since = life.moments[3].event.ts
    gap = Gap(probe="rmap_add", reason="ring", count=1000, since=since, until=since + 5)
    late = Gap(probe=FOLLOWED, reason="map", count=1, since=since + 9, until=1 << 64)
    found = follow(replace(trace, gaps=(late, gap)), task.pid, addr, profile="intended")
    (one,) = document(found, addr)["generations"]
    rows = one["rows"]
    assert [row["kind"] for row in rows].index("loss") == 4
    assert rows[4]["what"].startswith("LOST: 1,000 rows of rmap_add (ring), until ")
    assert rows[4]["findings"] == ""
    whats = [row["what"] for row in rows if row["kind"] == "loss"]
    assert whats[1:] == [lost(late)]
    assert {*rows[4]} == {*rows[0]}


def test_rows_that_are_missing_end_a_life() -> None:
    kernel, task = watched()
    vma = task.mmap(5)
    task.mbind(vma.start, 5)
    seq = kernel.events[-1].seq
    task.faults(vma)
    trace = kernel.trace()
    gap = Gap(probe=ROWS, reason="before part 2", count=9, since=0, until=trace.count)
    broken = replace(trace, gaps=(gap,), breaks=frozenset({seq + 1}))
    found = follow(broken, task.pid, vma.start, profile="intended")
    assert [life.ended for life in found.lives] == [
        "rows are missing from then on",
        "is there when the recording ends",
    ]


# --- what the model and the rules say --------------------------------------------


@pytest.mark.parametrize("name", ["cdm-6.1-rfc", "cdm-6.1-none", "foreign-6.1-rfc"])
def test_at_its_end_it_has_the_pages_that_the_model_has(name: str) -> None:
    trace = load(GOLDEN / f"{name}.arrows")
    lives = check(trace, rules=()).lives
    compared = 0
    for life in lives:
        for area in life.state.areas[::3]:
            held = count_pages(life.state, trace.terms, area.start, area.end)
            found = follow(trace, life.mm.pid, area.start, profile="intended")
            last = [one for one in found.lives if one.space == (life.mm.id, 0)][-1]
            shown = next(m for m in reversed(last.moments) if m.area)
            assert shown.area
            assert (shown.area.start, shown.area.end) == (area.start, area.end)
            assert {n: c for n, c in shown.pages.items() if c} == held
            compared += bool(held)
    assert compared > 5


def test_findings_are_at_their_witnesses_and_no_others() -> None:
    kernel = SimKernel("rfc")
    simstory.tell(kernel)
    trace = kernel.trace()
    result = check(trace)
    assert len(result.findings) > 10
    for finding in result.findings:
        found = follow(trace, finding.mm.pid, finding.start, profile="intended")
        marked = {
            row["row"]
            for one in document(found, finding.start)["generations"]
            for row in one["rows"]
            if f"{finding.rule.id}:{finding.fingerprint}" in row["findings"].split()
        }
        steps = {step.seq for step in finding.witness}
        same = {
            step.seq
            for other in result.findings
            if other.fingerprint == finding.fingerprint
            for step in other.witness
        }
        assert marked
        assert steps & marked
        assert marked <= same


def test_one_id_marks_a_row_once() -> None:
    kernel, task = watched("bind-only")
    vma = task.mmap(5)
    task.mbind(vma.start, 5, PREFERRED)
    task.faults(vma)
    found = at(kernel, task, vma.start)
    twice = replace(found.result, findings=found.result.findings * 2)
    found = dataclasses.replace(found, result=twice)
    shown = tables(document(found, vma.start))
    marks = [row["findings"] for row in shown["Timeline"] if row["findings"]]
    assert marks
    assert {len(mark.split()) for mark in marks} == {1}
    assert shown["VMAs"][0]["findings"] == marks[0]


def test_a_finding_about_the_other_half_is_not_its_own() -> None:
    kernel, task = watched("bind-only")
    vma = task.mmap(53)
    task.mbind(vma.page(11), 19, PREFERRED)
    task.faults(vma)
    asked, beside = at(kernel, task, vma.page(15)), at(kernel, task, vma.start)
    assert [f.rule.id for f in asked.findings(asked.lives[0])] == ["CDM002"]
    assert beside.findings(beside.lives[0]) == ()


def test_every_table_has_rows_alike() -> None:
    _, task, trace, addr = lossy()
    shown = tables(document(follow(trace, task.pid, addr, profile="intended"), addr))
    assert list(shown) == ["VMAs", "Timeline"]
    for rows in shown.values():
        assert len({tuple(row) for row in rows}) == 1
    assert shown["VMAs"][0]["findings"] == ""


def test_an_address_comes_from_where_all_moves_took_it() -> None:
    kernel, task = watched()
    vma = task.mmap(5)
    task.mbind(vma.start, 5)
    moved = task.mremap(vma, 5, to=FAR)
    task.mremap(moved, 5, to=2 * FAR)
    assert places(kernel.trace(), 2 * FAR + PAGE)[task.mm.id] == {
        vma.page(1),
        FAR + PAGE,
        2 * FAR + PAGE,
    }
