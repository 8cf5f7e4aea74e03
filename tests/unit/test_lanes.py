"""Lanes: what each VMA was in the course of time, and that they do not grow."""

from __future__ import annotations

import itertools
import json

import pytest
from lives import forked_locked
from msgspec.structs import replace
from simkernel import BIND, CDM, DEFAULT, RAM, SimKernel, Task

from cdmtrace.analysis import page
from cdmtrace.analysis.collector import Collector, Vma
from cdmtrace.analysis.frames import Event, Terms
from cdmtrace.analysis.history import Comms
from cdmtrace.analysis.lanes import MARKS, POINTS, SORTS, STRETCHES, Lane, sort_of
from cdmtrace.analysis.replay import check
from cdmtrace.analysis.state import Area, Policy
from cdmtrace.events import EventKind, Lock, Probe

TERMS = Terms(cdm=CDM, tag=1 << 38)


def lanes(kernel: SimKernel, apart: int = 0) -> list[Vma]:
    trace = kernel.trace()
    collector = Collector(trace.terms, apart=apart)
    check(trace, follower=collector.take)
    return collector.all


def of(kernel: SimKernel, start: int, apart: int = 0) -> Vma:
    (found,) = (vma for vma in lanes(kernel, apart) if vma.start == start)
    assert found.lane is not None
    return found


def process(*quirks: str) -> tuple[SimKernel, Task]:
    kernel = SimKernel(*quirks)
    task = kernel.process()
    task.mbind(task.mmap(1).start, 1)
    return kernel, task


def kinds(lane: Lane | None) -> set[str]:
    """Return what happened: the sort, and the kind of row or the call."""
    assert lane is not None
    rows = [
        (sort, event)
        for sort, marks in lane.marks.items()
        for mark in marks
        for event, _ in mark.rows.values()
    ]
    return {
        f"{sort} {(Probe(one.probe) if sort == 'call' else EventKind(one.kind)).name}"
        for sort, one in rows
    }


def test_a_lane_tells_tag_policy_and_pages_in_their_order() -> None:
    kernel, task = process()
    vma = task.mmap(7)
    task.mbind(vma.start, 7, BIND, CDM)
    task.faults(vma, pages=3)
    task.dontneed(vma.start, 2)
    task.mbind(vma.start, 7, BIND, RAM)
    lane = of(kernel, vma.start).lane
    assert lane
    told = [(one.tagged, one.policy) for one in lane.stretches]
    # Nobody tells what a new mapping is, until something is done to it.
    assert told[:2] == [(None, None), (False, (DEFAULT, 0))]
    assert told[2:] == [(True, (BIND, CDM)), (False, (BIND, RAM))]
    assert [pages.get(1, 0) for _, pages in lane.points] == [0, 1, 2, 3, 2, 1]
    times = [one[0] for one in lane.points]
    assert times == sorted(set(times))
    assert {"call SYS_MBIND", "flags POLICY", "pages MAP"} <= kinds(lane)
    assert "pages ALLOC" in kinds(lane)


def test_a_change_of_flags_has_the_lock_that_was_held() -> None:
    kernel, task = process("rfc")
    vma = task.mmap(3)
    task.set_mempolicy(BIND, CDM)
    task.faults(vma)
    lane = of(kernel, vma.start).lane
    assert lane
    (mark,) = lane.marks["flags"]
    ((event, times),) = mark.rows.values()
    assert (event.kind, event.lock_entry, times) == (EventKind.ALLOC, Lock.READ, 1)


def test_what_a_fork_does_not_hand_on_is_marked_as_a_fork_alone() -> None:
    kernel, _, start = forked_locked()
    both = [kinds(vma.lane) for vma in lanes(kernel) if vma.start == start]
    assert both == [{"call SYS_MMAP"}, {"vma COPY"}]


def test_a_call_is_marked_where_rows_inside_it_were() -> None:
    kernel, task = process("migration-ungated")
    one, other = task.mmap(3), task.mmap(4)
    for vma in (one, other):
        task.faults(vma)
    task.move_pages([one.page(n) for n in range(3)], 1)
    assert "call SYS_MOVE_PAGES" in kinds(of(kernel, one.start).lane)
    assert "call SYS_MOVE_PAGES" not in kinds(of(kernel, other.start).lane)


def test_halves_of_a_split_begin_apart_and_merged_they_are_one() -> None:
    kernel, task = process()
    vma = task.mmap(10)
    task.faults(vma)
    before = of(kernel, vma.start)
    task.mbind(vma.page(4), 6, BIND, CDM)
    half = of(kernel, vma.page(4))
    assert half.lane
    assert half.lane.stretches[0].since > before.since
    task.mbind(vma.page(4), 6, DEFAULT, 0)
    (whole,) = (one for one in lanes(kernel) if one.holds(vma.page(4)))
    assert whole.lane
    assert whole.lane.stretches[0].since <= before.since
    since = [one.since for one in whole.lane.stretches]
    assert since == sorted(since)
    assert whole.end - whole.start == 10 * 4096


def test_what_is_unmapped_or_ends_has_an_end() -> None:
    kernel, task = process()
    one, other = task.mmap(3), task.mmap(5)
    for vma in (one, other):
        task.mbind(vma.start, vma.pages)
    assert of(kernel, one.start).until is None
    task.munmap(one.start, 3)
    ended = of(kernel, one.start).until
    assert ended is not None
    assert of(kernel, other.start).until is None
    task.exit()
    assert of(kernel, one.start).until == ended
    assert (of(kernel, other.start).until or 0) > ended


# --- bounds -------------------------------------------------------------------


PLAIN = Area(start=4096, end=8192, flags=0, policy=None, seen=None, seen_ts=0, since=0)


def row(seq: int, **columns: int) -> Event:
    return Event(seq=seq, ts=seq * 1000, ts_entry=seq * 1000 - 1, **columns)


MANY = 5000


def test_marks_do_not_grow_and_every_row_is_counted() -> None:
    lane = Lane(apart=0)
    for seq in range(MANY):
        lane.mark(row(seq, kind=EventKind.MAP, node=1, tid=seq % 50))
        lane.mark(row(seq, kind=EventKind.POLICY, flags_after=seq % 3, tid=seq % 7))
        for marks in lane.marks.values():
            assert len(marks) <= 2 * MARKS
    lane.bound()
    for sort in ("pages", "flags", "policy"):
        marks = lane.marks[sort]
        assert MARKS // 4 < len(marks) <= MARKS
        assert all(len(mark.rows) <= SORTS for mark in marks)
        for one, after in itertools.pairwise(marks):
            assert one.since <= one.until <= after.since
    total = {
        sort: sum(mark.count for mark in marks) for sort, marks in lane.marks.items()
    }
    assert total["pages"] == total["flags"] + total["policy"] == MANY
    for marks in lane.marks.values():
        for mark in marks:
            assert mark.count == mark.more + sum(n for _, n in mark.rows.values())


def test_what_is_close_is_one_mark_and_what_is_not_is_none() -> None:
    lane = Lane(apart=1000)
    rows = [row(seq, kind=EventKind.MAP, node=1) for seq in (1, 2, 3, 9)]
    lane.mark(rows[0])
    for one in rows[1:]:
        lane.mark(one)
    assert [(m.since, m.until, m.count) for m in lane.marks["pages"]] == [
        (1000, 3000, 3),
        (9000, 9000, 1),
    ]
    # Calls that differ are never one, however close.
    for seq, ret in ((10, 0), (10, -22)):
        lane.mark(row(seq, kind=EventKind.CALL, probe=Probe.SYS_MBIND, ret=ret))
    assert [mark.count for mark in lane.marks["call"]] == [1, 1]


def test_the_greatest_number_of_pages_is_kept() -> None:
    lane = Lane(apart=0)
    for at in range(MANY):
        held = 999 if at == 1234 else at % 2
        lane.show(at, PLAIN, {1: held}, TERMS)
        assert len(lane.points) <= 2 * POINTS
    lane.bound()
    assert POINTS // 4 < len(lane.points) <= POINTS
    assert max(pages[1] for _, pages in lane.points) == 999
    # The last one stays what it was.
    assert lane.points[-1] == (MANY - 1, {1: (MANY - 1) % 2})


def test_what_changes_too_often_to_be_drawn_is_said_to() -> None:
    lane = Lane(apart=0)
    for at in range(MANY):
        lane.show(at, replace(PLAIN, flags=TERMS.tag * (at % 2)), {}, TERMS)
        assert len(lane.stretches) <= 2 * STRETCHES
    lane.bound()
    assert len(lane.stretches) <= STRETCHES
    assert lane.stretches[0].since == 0
    assert all(one.mixed for one in lane.stretches[:-1])
    few = Lane(apart=0)
    for at in range(10):
        few.show(at, replace(PLAIN, policy=Policy(byte=BIND, nodes=at % 2)), {}, TERMS)
    assert not any(one.mixed for one in few.stretches)
    assert len(few.stretches) == 10


@pytest.mark.parametrize(
    ("kind", "sort"),
    [
        (EventKind.CALL, "call"),
        (EventKind.POLICY, "policy"),
        (EventKind.UNMAP, "pages"),
        (EventKind.VMA_SPLIT, "vma"),
        (EventKind.KSM_ADVICE, "flags"),
        (EventKind.VMA_SEEN, None),
        (EventKind.SNAP_VMA, None),
    ],
)
def test_what_a_row_is_about(kind: EventKind, sort: str | None) -> None:
    quiet = row(1, kind=kind)
    assert sort_of(quiet) == sort
    changed = sort_of(replace(quiet, flags_after=1))
    assert changed == (sort if kind == EventKind.CALL or sort is None else "flags")


def test_a_page_has_a_size_that_nothing_can_exceed() -> None:
    """As many lanes as there may be, each as full as it can be."""
    lane = Lane(apart=0)
    for seq in range(MANY):
        for kind in (EventKind.MAP, EventKind.POLICY, EventKind.VMA_SPLIT):
            lane.mark(row(seq, kind=kind, node=1, tid=seq, start=4096, end=8192))
        lane.mark(row(seq, kind=EventKind.FLAGS, flags_after=seq, tid=seq))
        lane.mark(row(seq, kind=EventKind.CALL, probe=Probe.SYS_MBIND, tid=seq))
        now = replace(PLAIN, flags=TERMS.tag * (seq % 2))
        lane.show(seq, now, {1: seq, 2: seq}, TERMS)
    kernel, task = process()
    task.mmap(1)
    vma = of(kernel, task.mmap(2).start)
    vma.lane = lane
    vma.changes = 1
    told = page.lane(vma, TERMS, Comms(kernel.trace()))
    assert len(json.dumps(told)) * page.LANES < 16 << 20
