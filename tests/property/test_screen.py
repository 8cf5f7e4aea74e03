"""The screen makes no difference: all that is found is what the model alone finds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import groupby, pairwise
from pathlib import Path

import pytest
import simdefects
from hypothesis import event, given
from hypothesis import strategies as st
from msgspec.structs import replace
from programs import (
    CHANGES,
    HISTORY,
    LOSS,
    QUIRKS,
    changed,
    gaps_of,
    interleaved,
    relaxed,
    run,
    world_of,
)
from replays import GOLDEN, PROFILES, as_read, summed, with_losses
from simkernel import CDM, DEFAULT, HUGE, PAGE, SimKernel, Task

from cdmtrace.analysis import Trace, aggregate, check, load
from cdmtrace.analysis.frames import Event
from cdmtrace.analysis.replay import Replay
from cdmtrace.events import NO_NODE, Bit, Cause, EventKind


@contextmanager
def counted() -> Iterator[list[int]]:
    """Have written down which rows a replay is given."""
    given_: list[int] = []
    take = Replay.take

    def noted(self: Replay, row: Event) -> None:
        given_.append(row.seq)
        take(self, row)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Replay, "take", noted)
        yield given_


def agree(trace: Trace, *, profile: str = "intended", until: int | None = None) -> int:
    """Hold what is found with the screen against what is found without.

    Return how many rows the model was spared.
    """
    plain = check(trace, profile=profile, until=until, screened=False)
    with counted() as rows:
        result = check(trace, profile=profile, until=until)
    assert summed(result) == summed(plain)
    with counted() as every:
        check(trace, rules=(), until=until, screened=False)
    assert rows == sorted(set(rows)), "out of order"
    assert {*rows} <= {*every}
    return len(every) - len(rows)


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
def test_of_a_real_recording(path: Path, profile: str) -> None:
    trace = load(path)
    assert agree(trace, profile=profile) > trace.count // 3


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
def test_without_a_tag(path: Path) -> None:
    trace = load(path)
    assert agree(replace(trace, terms=replace(trace.terms, tag=0))) > 0


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
def test_until_any_row(path: Path) -> None:
    trace = load(path)
    for seq in range(0, trace.count, 61):
        agree(trace, until=seq)


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
def test_with_losses_in_it(path: Path) -> None:
    for losing in with_losses(load(path), 97):
        agree(losing)


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
def test_report_counts_the_same(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trace = load(path)
    with counted() as rows:
        tables = aggregate.report(trace)
    assert len(rows) < trace.count
    monkeypatch.setattr(
        aggregate,
        "check",
        lambda trace, **how: check(trace, **how, screened=False),
    )
    assert aggregate.report(trace) == tables


# --- programs ---------------------------------------------------------------------


@relaxed
@given(
    HISTORY,
    QUIRKS,
    st.booleans(),
    st.booleans(),
    CHANGES,
    st.lists(st.integers(0, 7), max_size=9),
    st.sampled_from(PROFILES),
)
def test_of_any_program(
    ops, quirks, everything, looked, changes, turns, profile
) -> None:
    world = world_of(quirks, everything=everything, looked=looked)
    run(world, ops)
    trace = world.kernel.trace()
    rows = changed(world.kernel.events, changes)
    if turns:
        rows = interleaved(rows, turns)
    spared = agree(as_read(trace, rows), profile=profile)
    event("some rows spared" if spared else "none spared")


@relaxed
@given(HISTORY, QUIRKS, st.lists(LOSS, min_size=1, max_size=5))
def test_of_any_program_with_losses(ops, quirks, losses) -> None:
    world = world_of(quirks, everything=False, looked=True)
    run(world, ops)
    trace = as_read(world.kernel.trace(), world.kernel.events)
    spared = agree(replace(trace, gaps=tuple(gaps_of(trace, losses))))
    event("some rows spared" if spared else "none spared")


# --- what has to be spared, and what must not be -----------------------------------


def faulted(pages: int) -> tuple[SimKernel, Task, int]:
    """Return a kernel, and a task that has faulted a region in, and where that is."""
    kernel = SimKernel()
    kernel.looked()
    task, start = bound(kernel, pages)
    for number in range(pages):
        task.fault(start + number * PAGE)
    return kernel, task, start


def bound(kernel: SimKernel, pages: int) -> tuple[Task, int]:
    task = kernel.process()
    region = task.mmap(pages)
    task.mbind(region.start, pages)
    return task, region.start


def test_pages_that_come_to_several_at_the_same_time_are_spared() -> None:
    kernel = SimKernel()
    kernel.looked()
    first, second = bound(kernel, 40), bound(kernel, 40)
    for number in range(40):
        for task, start in (first, second):
            task.fault(start + number * PAGE)
    trace = kernel.trace()
    rows = interleaved(kernel.events, [0, 0, 1, 2, 1])
    assert agree(as_read(trace, rows)) > 120


def test_pages_that_go_are_spared_but_for_the_last() -> None:
    kernel, task, start = faulted(20)
    at = len(kernel.events)
    task.dontneed(start, 20)
    trace = as_read(kernel.trace(), kernel.events)
    assert agree(trace) > 20
    with counted() as rows:
        check(trace)
    assert len([seq for seq in rows if at < seq <= at + 20]) == 3


@pytest.mark.parametrize("everything", [False, True], ids=["cdm", "all"])
@pytest.mark.parametrize("call", [True, False], ids=["call", "none"])
def test_pages_that_are_moved_there_and_back_are_spared(
    call: bool, everything: bool
) -> None:
    kernel = SimKernel()
    kernel.all = everything
    kernel.looked()
    task = kernel.process()
    task.mm.watched = everything
    region = task.mmap(40)
    task.faults(region)
    task.mbind(region.start, 40)
    addresses = [region.page(number) for number in range(40)]
    began = [len(kernel.events)]
    for node in (1, 0):
        if call:
            task.move_pages(addresses, node)
        else:
            for addr in addresses:
                task.migrate(addr, node)
        began.append(len(kernel.events))
    trace = as_read(kernel.trace(), kernel.events)
    moves = [row for row in trace.events if row.kind == EventKind.MIGRATE]
    assert Counter(row.node for row in moves) == {0: 40, 1: 40}
    agree(trace)
    with counted() as rows:
        check(trace)
    there, back = (
        sum(first < seq <= last for seq in rows) for first, last in pairwise(began)
    )
    assert there < 12
    # What leaves outside of any call is put aside for some time only.
    assert (back < 12) is call


MOVES = st.lists(
    st.tuples(
        st.sampled_from(["call", "call", "none", "away", "fault", "dontneed", "mbind"]),
        st.integers(0, 1),
        st.integers(0, 11),
        st.integers(6, 12),
    ),
    min_size=2,
    max_size=8,
)


def batched(rows: list[Event]) -> list[Event]:
    """Return rows of which those of each call that unmap come first, as on 6.12."""
    found: list[Event] = []
    for _, group in groupby(rows, lambda row: (row.tid, row.call)):
        found += sorted(group, key=lambda row: row.kind == EventKind.MIGRATE)
    return found


def blind(rows: list[Event]) -> list[Event]:
    """Return rows of which none says from where a page was moved."""
    moves = EventKind.MIGRATE
    return [
        replace(row, src_node=NO_NODE) if row.kind == moves else row for row in rows
    ]


def joined(rows: list[Event]) -> list[Event]:
    """Return rows of which system calls that follow each other are one."""
    call, found = 0, list[Event]()
    for row in reversed(rows):
        if not row.call:
            call = 0
        elif not call:
            call = row.call
        elif row.kind == EventKind.CALL and row.call != call:
            continue
        found.append(replace(row, call=call))
    return found[::-1]


@relaxed
@given(
    MOVES,
    CHANGES,
    st.sets(st.sampled_from([batched, blind, joined])),
    st.booleans(),
    st.booleans(),
    st.sampled_from(PROFILES),
)
def test_of_any_moves(ops, changes, told, everything, looked, profile) -> None:
    """Long ones, of which rows are lost, told twice, or told of another node."""
    kernel = SimKernel("migration-ungated")
    kernel.all = everything
    if looked:
        kernel.looked()
    task = kernel.process()
    task.mm.watched = everything
    region = task.mmap(20)
    task.faults(region)
    for what, node, first, pages in ops:
        last = min(first + pages, 20)
        addresses = [region.page(number) for number in range(first, last)]
        there = [addr for addr in addresses if addr in task.mm.pages]
        match what:
            case "call":
                task.move_pages(there, node)
            case "none" | "away":
                for addr in there:
                    task.migrate(addr, node)
                    if what == "away" and kernel.events[-1].kind == EventKind.MIGRATE:
                        # Nobody tells where it has gone.
                        kernel.events.pop()
            case "fault":
                task.faults(region, first, last - first)
            case "dontneed":
                task.dontneed(region.page(first), last - first)
            case "mbind":
                start = region.page(first)
                task.mbind(start, last - first, nodes=1 << node, move=True)
    rows = kernel.events
    for how in sorted(told, key=lambda how: how.__name__):
        rows = how(rows)
    spared = agree(as_read(kernel.trace(), changed(rows, changes)), profile=profile)
    event("some rows spared" if spared else "none spared")


def within_a_call(*what: str, before: str = "", mapped: str = "0-11") -> int:
    """Hold what comes of a call with and without the screen against each other; return
    how many of its rows the model was spared.

    what: "unmaps", "leaves", "comes" (from where is not told), "arrives", or two of
    them with a blank: of each page one after the other; and of which of twelve pages.
    mapped: which of them were; before: which were unmapped outside of the call.
    """
    kernel = SimKernel()
    kernel.looked()
    task, start = bound(kernel, 12)
    for number in pages_of(mapped):
        task.fault(start + number * PAGE)
    began = len(kernel.events)
    for number in set(range(12)) - set(pages_of(mapped)):
        task.fault(start + number * PAGE)
    untold = len(kernel.events)
    task.move_pages([start + number * PAGE for number in range(12)], 0)
    *rows, returned = kernel.events[untold:]
    unmaps, leaves = rows[::2], rows[1::2]
    assert {row.kind for row in unmaps} == {EventKind.UNMAP}
    comes = [replace(row, node=1, src_node=NO_NODE) for row in leaves]
    kinds = {
        "unmaps": unmaps,
        "leaves": leaves,
        "comes": comes,
        "arrives": [replace(row, src_node=0) for row in comes],
    }
    told = kernel.events[:began]
    told += [replace(unmaps[number], call=0) for number in pages_of(before)]
    for one in what:
        names, _, pages = one.partition(":")
        told += [
            kinds[name][number] for number in pages_of(pages) for name in names.split()
        ]
    faults = agree(as_read(kernel.trace(), kernel.events[:began]))
    return agree(as_read(kernel.trace(), [*told, returned])) - faults


def pages_of(text: str) -> range:
    first, _, last = text.partition("-")
    return range(int(first), int(last) + 1) if text else range(0)


def test_a_page_that_was_put_aside_may_come_back() -> None:
    assert within_a_call("unmaps leaves:0-11", "comes:0-11") == 18
    assert within_a_call("unmaps:0-11", "comes:0-11") == 9
    assert within_a_call("unmaps:6-11", "comes:0-11") == 3
    assert within_a_call("unmaps:6-11", "comes:0-11", mapped="6-11") == 3
    assert within_a_call("unmaps:0-11", "comes:0-5", "arrives:6-11") == 12


def test_so_may_one_that_went_before_the_call() -> None:
    assert within_a_call("unmaps:0-5", "arrives:0-11", before="6-11") == 3
    assert within_a_call("unmaps:0-11", "arrives:0-11") == 18


def test_a_page_that_nobody_has_told_to_go_is_not_there_any_more() -> None:
    assert within_a_call("unmaps:0-5", "leaves:0-11") == 3
    assert within_a_call("unmaps:0-11", "leaves:0-11") == 18


@pytest.mark.parametrize("everything", [False, True])
def test_pages_of_other_nodes_are_spared(everything: bool) -> None:
    kernel = SimKernel()
    kernel.all = everything
    kernel.looked()
    task = kernel.process()
    region = task.mmap(30)
    task.faults(region)
    task.dontneed(region.start, 30)
    spared = agree(as_read(kernel.trace(), kernel.events))
    assert spared > 20 if everything else spared == 0


def test_each_page_that_breaks_a_rule_is_judged() -> None:
    kernel = SimKernel("task-policy")
    kernel.looked()
    task = kernel.process()
    region = task.mmap(30)
    task.set_mempolicy(1, CDM)
    task.faults(region)
    trace = as_read(kernel.trace(), kernel.events)
    assert agree(trace) == 0
    (found,) = check(trace).findings
    assert found.count == 30


def test_what_is_counted_meanwhile_is_judged() -> None:
    kernel = SimKernel()
    kernel.looked()
    task, start = bound(kernel, 40)

    def busy(vma: object) -> None:
        for number in range(40):
            task.fault(start + number * PAGE)

    task.fault(start)
    kernel.look(task, busy)
    trace = as_read(kernel.trace(), kernel.events)
    assert agree(trace) == 0
    audit = check(trace).audit
    assert audit
    assert audit.moving == 1


@pytest.mark.parametrize("told", [True, False], ids=["told", "lost"])
@pytest.mark.parametrize("at", [*range(10), 20])
def test_another_tasks_call_that_has_to_do_with_it_is_waited_for(
    at: int, told: bool
) -> None:
    """migrate_pages() of another process returns in the midst of faults.

    Its return may be lost: then the next row of that process tells of it.
    """
    kernel = SimKernel()
    kernel.looked()
    task, start = bound(kernel, 40)
    for number in range(4):
        task.fault(start + number * PAGE)
    task.mbind(start, 4, 2, 1)
    other = kernel.process()
    began = len(kernel.events)
    other.migrate_pages(CDM, 1, task.mm)
    (returned,) = (row for row in kernel.events[began:] if row.kind == EventKind.CALL)
    rows = kernel.events[:]
    rows.remove(returned)
    began = len(kernel.events)
    for number in range(4, 40):
        task.fault(start + number * PAGE)
    faults = kernel.events[began:]
    began = len(kernel.events)
    other.mmap(1)
    later = [returned] if told else kernel.events[began:]
    agree(as_read(kernel.trace(), [*rows, *faults[:at], *later, *faults[at:]]))


def test_faults_of_which_the_allocations_are_lost() -> None:
    kernel = SimKernel()
    kernel.looked()
    task, start = bound(kernel, 40)
    began = len(kernel.events)
    for number in range(40):
        task.fault(start + number * PAGE)
    first = kernel.events[began + len(kernel.events[began:]) // 2].seq
    rows = [
        row for row in kernel.events if row.kind != EventKind.ALLOC or row.seq < first
    ]
    agree(as_read(kernel.trace(), rows))


def mapped(row: Event, start: int, pages: int, **other: int) -> list[Event]:
    """Return rows like one that maps a page, for pages beside each other."""
    return [
        replace(row, addr=start + number * PAGE, size=PAGE, **other)
        for number in range(pages)
    ]


def test_pages_that_were_asked_for_are_seen_to_be_replaced() -> None:
    """By pages of a file, which nobody has asked for: a tag has no reason any more."""
    kernel = SimKernel("migration-ungated")
    kernel.looked()
    task = kernel.process()
    region = task.mmap(40)
    task.mbind(region.start, 40)
    task.faults(region, 0, 1)
    (row,) = (row for row in kernel.events if row.kind == EventKind.MAP)
    task.mbind(region.start, 40, DEFAULT)
    task.faults(region)
    task.move_pages([region.page(number) for number in range(1, 30)], 1)
    rows = kernel.events + mapped(
        row, region.start, 40, bits=Bit.FILE, cause=Cause.FILE, policy=0, nodes=0
    )
    trace = as_read(kernel.trace(), rows)
    agree(trace)
    # Of all others, each is a place for itself.
    assert agree(as_read(trace, [*rows, *rows[-40:]])) > 30


def test_a_huge_page_that_is_split_is_split_entry_by_entry() -> None:
    kernel = SimKernel()
    kernel.looked()
    task = kernel.process()
    region = task.mmap(HUGE // PAGE * 2)
    task.mbind(region.start, region.pages)
    start = -(-region.start // HUGE) * HUGE
    task.fault(start, huge=True)
    row = kernel.events[-1]
    assert row.kind == EventKind.MAP
    rows = [*kernel.events, *mapped(row, start, 20)]
    assert agree(as_read(kernel.trace(), rows)) == 0


def test_the_last_parts_of_a_huge_page_are_no_model_of_new_pages() -> None:
    kernel = SimKernel()
    kernel.looked()
    task = kernel.process()
    region = task.mmap(HUGE // PAGE * 3)
    task.mbind(region.start, region.pages)
    start = -(-region.start // HUGE) * HUGE
    task.fault(start, huge=True)
    rows = [*kernel.events, *mapped(kernel.events[-1], start + HUGE - 2 * PAGE, 40)]
    agree(as_read(kernel.trace(), rows))


def test_a_task_that_goes_on_elsewhere_has_left_its_call() -> None:
    """A row of it in another mm says so, in the midst of pages that go."""
    kernel, task, start = faulted(40)
    other, there = bound(kernel, 1)
    other.fault(there)
    (row,) = (each for each in kernel.events[-2:] if each.kind == EventKind.MAP)
    at = len(kernel.events)
    task.dontneed(start, 40)
    gone = [each for each in kernel.events[at:] if each.kind == EventKind.UNMAP]
    elsewhere = replace(row, tid=task.tid)
    rows = [*kernel.events[:at], *gone[:30], elsewhere, *gone[30:39]]
    trace = as_read(kernel.trace(), rows)
    agree(trace)
    state = next(life.state for life in check(trace).lives if life.mm.id == task.mm.id)
    (call,) = state.open.values()
    assert call.limbo.count == 9


def test_a_fork_copies_what_is_there_by_then() -> None:
    kernel = SimKernel()
    kernel.looked()
    task, start = bound(kernel, 40)
    at = len(kernel.events)
    for number in range(40):
        task.fault(start + number * PAGE)
    faults = kernel.events[at:]
    del kernel.events[at:]
    child = simdefects.thread(task).fork()
    copies = [each for each in kernel.events[at:] if each.kind == EventKind.COPY]
    assert copies
    rows = [*kernel.events[:at], *faults[:50], *copies, *faults[50:]]
    trace = as_read(kernel.trace(), rows)
    assert agree(trace) > 20
    state = next(life.state for life in check(trace).lives if life.mm.id == child.mm.id)
    assert state.pages.count == 25


def test_where_rows_are_missing_all_begins_anew() -> None:
    kernel, _, _ = faulted(40)
    trace = as_read(kernel.trace(), kernel.events)
    assert agree(replace(trace, breaks=frozenset({trace.count - 30}))) > 20


def test_a_page_that_was_allocated_before_is_known_by_its_address() -> None:
    """Of many pages of a file, one was allocated for the VMA, in the same call."""
    kernel = SimKernel("task-policy")
    kernel.looked()
    task = kernel.process()
    region = task.mmap(40)
    task.set_mempolicy(1, CDM)
    task.fault(region.start)
    alloc, row = kernel.events[-2:]
    about = {"call": 99, "bits": Bit.FILE, "cause": Cause.FILE}
    rows = [
        *kernel.events,
        replace(alloc, addr=region.page(25), **about),
        *mapped(row, region.page(1), 39, **about),
    ]
    trace = as_read(kernel.trace(), rows)
    assert agree(trace) == 0
    (checked,) = (one.checked for one in check(trace).rules if one.rule.id == "CDM014")
    assert checked == 2


def test_a_page_goes_only_once() -> None:
    kernel, task, start = faulted(40)
    at = len(kernel.events)
    task.dontneed(start, 40)
    gone = kernel.events[at:]
    rows = [*kernel.events[:at], *gone[:20], gone[10], *gone[20:]]
    assert agree(as_read(kernel.trace(), rows)) > 20
