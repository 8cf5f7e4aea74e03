"""Which VMAs are worth a look, and what an error says is close."""

from __future__ import annotations

import pytest
import simstory
from lives import FAR, forked_locked, freed, watched
from msgspec.structs import replace
from simkernel import BIND, DEFAULT, PAGE, PREFERRED, RAM, SimKernel, Task

from cdmtrace.analysis import check
from cdmtrace.analysis.candidates import Candidates, collect, rows
from cdmtrace.analysis.collector import Collector, Vma
from cdmtrace.analysis.frames import Event
from cdmtrace.analysis.nearby import command, no_process, no_vma
from cdmtrace.analysis.state import State
from cdmtrace.analysis.timeline import follow
from cdmtrace.events import EventKind


def found(kernel: SimKernel) -> Candidates:
    return collect(kernel.trace(), profile="intended")


def listed(kernel: SimKernel, **which: int) -> list[tuple[str, int, int, int]]:
    """Return range, findings, most pages and changes of each."""
    pid, addr = which.get("pid"), which.get("addr")
    return [
        (row["VMA"], row["findings"], row["most on CDM"], row["changes"])
        for row in rows(found(kernel), pid=pid, addr=addr)
    ]


def listed_at(kernel: SimKernel, start: int) -> list[Vma]:
    """Return the VMAs that began there, the first one first."""
    vmas = (one for one in found(kernel).vmas if one.start == start)
    return sorted(vmas, key=lambda one: one.number)


def mapped_at(kernel: SimKernel, task: Task, start: int) -> int:
    """Map a VMA there; return how many rows there were before."""
    rows = len(kernel.events)
    task.mmap(6, at=start)
    return rows


def span(start: int, pages: int) -> str:
    return f"{start:x}-{start + pages * PAGE:x}"


def test_findings_come_first_then_pages_then_changes() -> None:
    kernel, task = watched("bind-only")
    few, many, wrong = task.mmap(3), task.mmap(9), task.mmap(2)
    task.mbind(few.start, 3)
    task.mbind(few.start, 3, BIND, RAM)
    task.mbind(few.start, 3)
    task.faults(few)
    task.mbind(many.start, 9)
    task.faults(many)
    task.faults(task.mmap(11))
    task.mbind(wrong.start, 2, PREFERRED)
    task.faults(wrong)
    first = next(e.start for e in kernel.events if e.kind == EventKind.POLICY)
    assert listed(kernel) == [
        (span(wrong.start, 2), 1, 2, 1),
        (span(many.start, 9), 0, 9, 1),
        (span(few.start, 3), 0, 3, 3),
        (span(first, 1), 0, 0, 1),
    ]


def test_errors_are_worse_than_warnings() -> None:
    kernel = SimKernel("rfc")
    simstory.tell(kernel)
    ranked = [
        [finding.rule.severity.value for finding in vma.findings]
        for vma in found(kernel).vmas
    ]
    counts = [(one.count("error"), one.count("warning")) for one in ranked]
    assert counts == sorted(counts, reverse=True)
    assert {"error", "warning"} == {one for severities in ranked for one in severities}


def test_every_finding_is_about_one_of_them() -> None:
    for quirks in (("rfc",), ("whole-vma",), ("one-way", "ksm-left-on")):
        kernel = SimKernel(*quirks)
        simstory.tell(kernel)
        theirs = [f.fingerprint for vma in found(kernel).vmas for f in vma.findings]
        assert sorted(theirs) == sorted(
            finding.fingerprint for finding in check(kernel.trace()).findings
        )


def test_the_most_that_it_had_counts_and_not_what_is_left() -> None:
    kernel, task = watched()
    vma = task.mmap(5)
    task.mbind(vma.start, 5)
    task.faults(vma)
    task.munmap(vma.start, 5)
    assert listed(kernel)[0] == (span(vma.start, 5), 0, 5, 1)


def test_a_part_that_is_split_off_is_another_and_a_merge_is_one() -> None:
    kernel, task = watched()
    vma = task.mmap(10)
    task.mbind(vma.page(4), 6)
    task.faults(vma)
    assert listed(kernel)[0] == (span(vma.page(4), 6), 0, 6, 1)
    task.mbind(vma.page(4), 6, DEFAULT)
    task.faults(vma)
    assert listed(kernel)[0] == (span(vma.start, 10), 0, 6, 2)
    assert not [one for one in found(kernel).vmas if one.end == vma.page(4)]


def test_what_was_merged_counts_for_what_is_left() -> None:
    kernel, task = watched("bind-only")
    vma = task.mmap(10)
    task.mbind(vma.start, 4, PREFERRED)
    task.faults(vma, pages=1)
    task.mbind(vma.start, 4, DEFAULT)
    task.dontneed(vma.start, 1)
    task.faults(vma)
    (row,) = rows(found(kernel), pid=None, addr=vma.start)
    assert (row["VMA"], row["findings"]) == (span(vma.start, 10), 1)
    assert (row["most on CDM"], row["changes"]) == (1, 2)


def test_one_that_has_moved_is_the_same() -> None:
    kernel, task = watched()
    vma = task.mmap(5)
    task.mbind(vma.start, 5)
    task.faults(vma)
    task.mremap(vma, 5, to=FAR)
    task.dontneed(FAR, 1)
    assert listed(kernel)[0] == (span(FAR, 5), 0, 5, 1)
    assert listed(kernel, addr=FAR)[0] == listed(kernel)[0]
    assert [one for one in listed(kernel) if one[0] == span(vma.start, 5)] == []


def test_those_of_a_process_or_of_an_address_alone() -> None:
    kernel, task = watched()
    vma = task.mmap(5)
    task.mbind(vma.start, 5)
    task.faults(vma)
    child = task.fork()
    child.fault(vma.start, cow=True)
    child.exit()
    both = listed(kernel, addr=vma.page(4))
    assert len(both) == 2
    assert listed(kernel, addr=vma.page(5)) == []
    assert [one[2] for one in listed(kernel, pid=child.pid)] == [5]
    assert found(kernel).processes == {task.pid: "story", child.pid: "story"}


def test_what_a_fork_does_not_hand_on_is_no_change() -> None:
    kernel, child, start = forked_locked()
    assert listed(kernel, pid=child.pid, addr=start) == []
    (copied,) = (event for event in kernel.events if event.start == start)
    assert copied.flags_before != copied.flags_after
    both = [vma.changes for vma in found(kernel).vmas if vma.start == start]
    assert both == [0, 0]


def test_why_says_what_is_known() -> None:
    kernel, task = watched("bind-only")
    wrong, full = task.mmap(2), task.mmap(3)
    task.mbind(wrong.start, 2, PREFERRED)
    task.faults(wrong)
    task.mbind(full.start, 3)
    task.faults(full)
    assert [row["why"] for row in rows(found(kernel), pid=None, addr=None)] == [
        "CDM002 missing-tag",
        "pages of CDM nodes",
        "its flags or policy changed",
    ]


# --- errors -----------------------------------------------------------------------


def test_a_command_is_what_a_shell_takes() -> None:
    assert command(["a b"], pid=3, addr=0x7F) == (
        "cdmtrace timeline 'a b' --pid 3 --addr 7f"
    )


def test_processes_that_are_close_are_named() -> None:
    many = dict.fromkeys([*range(10, 18), *range(19, 30)], "x")
    error = no_process(["f"], 18, many, {})
    assert error.message == "--pid 18: no process of f has this pid"
    assert error.details == "it has 17 (x), 19 (x), 16 (x), 20 (x), 15 (x) and 14 more"
    assert error.hint == "cdmtrace timeline f --pid 17"


def test_a_thread_names_its_process() -> None:
    error = no_process(["f"], 18, {7: "x", 19: "y"}, {18: 7})
    assert error.message == "--pid 18: is a thread of process 7"
    assert error.hint == "cdmtrace timeline f --pid 7"
    # Of one whose process was not recorded nothing helps.
    error = no_process(["f"], 18, {19: "y"}, {18: 7})
    assert error.hint == "cdmtrace timeline f --pid 19"
    assert no_process(["f"], 18, {}, {}).hint == "cdmtrace timeline f"


def test_vmas_that_are_close_are_named() -> None:
    kernel, task = watched()
    for _ in range(7):
        task.mbind(task.mmap(3).start, 3)
    all_of_it = found(kernel)
    starts = sorted(vma.start for vma in all_of_it.vmas)
    error = no_vma(["f"], task.pid, starts[3] - PAGE, all_of_it)
    close = str(error.details).splitlines()[1:]
    assert close[0] == span(starts[3], 3)
    assert len(close) == 5
    assert error.hint == f"cdmtrace timeline f --pid {task.pid} --addr {starts[3]:x}"
    above = no_vma(["f"], task.pid, starts[3] + 3 * PAGE, all_of_it)
    assert above.hint == error.hint
    assert no_vma(["f"], 99, 1, all_of_it).details is None


def test_what_an_address_is_in() -> None:
    vma = Vma(space=(1, 0), start=8, end=9, first=1, since=1, seen=1)
    assert not vma.holds(8)
    for place in ((4, 8), (7, 10), (20, 22), (22, 24), (3, 4)):
        vma.extend(*place)
    held = [*range(3, 10), *range(20, 24)]
    assert [n for n in range(30) if vma.holds(n)] == held
    assert vma.shares(8, 21) == 2
    assert vma.shares(12, 18) <= 0


def test_what_lies_between_two_places_is_not_in_it() -> None:
    kernel, task = watched("bind-only")
    moved = task.mmap(5)
    task.mbind(moved.start, 5)
    wrong = task.mmap(2)
    task.mbind(wrong.start, 2, PREFERRED)
    task.mremap(moved, 5, to=FAR)
    task.faults(wrong)
    assert moved.start < wrong.start < FAR
    assert [one[:2] for one in listed(kernel, addr=wrong.start)] == [
        (span(wrong.start, 2), 1)
    ]


def test_where_an_address_was_used_again_a_time_tells_them_apart() -> None:
    kernel, task = watched()
    alone = task.mmap(5)
    task.mbind(alone.start, 5)
    vma = task.mmap(5)
    task.mbind(vma.start, 5)
    task.munmap(vma.start, 5)
    kernel.events.append(freed(kernel, task, vma.start, 5))
    task.mmap(5, at=vma.start)
    task.mbind(vma.start, 5)
    shown = {
        (row["VMA"], row["at"]) for row in rows(found(kernel), pid=None, addr=None)
    }
    times = {at for range_, at in shown if range_ == span(vma.start, 5)}
    assert len(times) == 2
    assert None not in times
    assert (span(alone.start, 5), None) in shown


@pytest.mark.parametrize("again", ["mmap", "touched", "over", "split", "none"])
def test_a_call_that_unmaps_is_an_end_where_no_row_tells_of_one(again: str) -> None:
    """As where nothing was attached to what frees VMAs; a timeline knows it, too."""
    kernel, task = watched()
    vma = task.mmap(6)
    task.mbind(vma.start, 6)
    task.faults(vma)
    start, pages = vma.start, 6
    if again == "split":
        start, pages = vma.page(2), 3
    if again != "over":
        task.munmap(start, pages)
    before = [(one.start, one.until is None) for one in listed_at(kernel, start)]
    assert before == [(start, again == "over")]
    if again == "touched":
        # Nobody told of its mmap().
        kernel.events = kernel.events[: mapped_at(kernel, task, start)]
    elif again != "none":
        task.mmap(pages, at=start)
    if again != "none":
        # Else it would be one with its neighbours.
        task.mbind(start, pages, PREFERRED)
    old, *new = listed_at(kernel, start)
    generations = follow(kernel.trace(), task.pid, start, profile="intended").lives
    if again != "touched":
        assert len([old, *new]) == len(generations)
    assert (old.start, old.changes) == (start, 0 if again == "split" else 1)
    assert old.until == generations[0].moments[-1].event.ts
    assert [(one.changes, one.most, one.until) for one in new] == (
        [] if again == "none" else [(1, 0, None)]
    )


def test_vmas_that_change_between_two_rows_are_noticed() -> None:
    """As where a call is given up: its task was seen to do something else."""
    kernel, task = watched()
    vma = task.mmap(5)
    task.mbind(vma.start, 5)
    seen: list[tuple[Event, State]] = []
    check(
        kernel.trace(), follower=lambda _, event, __, after: seen.append((event, after))
    )
    collector = Collector(kernel.trace().terms)
    event, state = seen[-1]
    policy = next(e for e, _ in seen if e.kind == EventKind.POLICY)
    collector.take((event.mm, 0), replace(policy, start=vma.start), state, state)
    (one,) = (one for one in collector.all if one.holds(vma.start))
    assert one.changes == 1


def test_a_finding_is_about_what_was_there_then() -> None:
    kernel, task = watched("bind-only")
    vma = task.mmap(5)
    task.mbind(vma.start, 5, PREFERRED)
    task.faults(vma)
    task.munmap(vma.start, 5)
    kernel.events.append(freed(kernel, task, vma.start, 5))
    task.mmap(5, at=vma.start)
    task.mbind(vma.start, 5)
    old, new = sorted(
        (one for one in found(kernel).vmas if one.holds(vma.start)),
        key=lambda one: one.first,
    )
    assert [f.rule.id for f in old.findings] == ["CDM002"]
    assert (new.findings, new.changes) == ([], 1)


def test_a_part_that_is_split_off_has_the_pages_that_are_in_it() -> None:
    kernel, task = watched()
    vma = task.mmap(30)
    task.mbind(vma.start, 30)
    task.faults(vma)
    task.munmap(vma.start, 8)
    assert listed(kernel)[:2] == [
        (span(vma.start, 8), 0, 30, 1),
        (span(vma.page(8), 22), 0, 22, 0),
    ]
