"""Random programs on the simulated kernel: right ones are silent, faults are found."""

from __future__ import annotations

import pytest
import simdefects
import simstory
from hypothesis import event, example, given
from hypothesis import strategies as st
from msgspec.structs import replace
from programs import HISTORY, LOSS, PAGES, World, gaps_of, history, relaxed
from simkernel import BIND, CDM, DEFAULT, PAGE, PREFERRED, RAM, SimKernel, Task

from cdmtrace.analysis import Gap, Trace, cdm_pages, check, status
from cdmtrace.analysis.book import LIVE, Bounds
from cdmtrace.analysis.replay import Replay
from cdmtrace.analysis.result import Result, Verdict

# An injected fault: the rules that it breaks, and those that it may break as well.
FAULTS = {
    "one-way": ({"CDM001"}, {"CDM016", "CDM017"}),
    "bind-only": ({"CDM002"}, set()),
    "migration-ungated": ({"CDM002"}, set()),
    # It tags neither what is moved in nor takes KSM off what it tags, which may merge.
    "fault-tag": ({"CDM003"}, {"CDM002", "CDM005", "CDM006", "CDM017"}),
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


@relaxed
@given(HISTORY)
def test_a_right_kernel_is_silent(ops) -> None:
    result = check(history(ops).kernel.trace())
    assert [(f.rule.id, f.observed) for f in result.findings] == []
    assert status.verdict(result, named=False) in (Verdict.CLEAN, Verdict.VACUOUS)


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


# --- without VM_CDM --------------------------------------------------------------


def read_with(trace: Trace, tag: int) -> Trace:
    """The trace, read as one of a kernel whose VM_CDM is this mask."""
    return replace(trace, terms=replace(trace.terms, tag=tag))


def holding(result: Result) -> dict[int, dict[int, int]]:
    """Return mm -> pages that would have to be tagged at the end -> those on node 1."""
    assert result.shadow
    assert result.shadow.why is None
    found: dict[int, dict[int, int]] = {}
    for mm, due in result.shadow.vmas:
        if due.ended or due.until:
            continue
        there = found.setdefault(mm.id, {})
        new = dict.fromkeys(range(due.start, due.end, PAGE), due.pages.get(1, 0))
        assert not there.keys() & new.keys(), "two at one address"
        there |= new
    return found


@relaxed
@given(HISTORY)
@example([*[("mbind", 0, 0, 0, 0)] * 7, ("fault", 0, 0, 0, 0), ("munmap", 0, 0, 0, 0)])
def test_what_would_have_to_be_tagged_is_what_a_right_kernel_tags(ops) -> None:
    """Its recording, read by one who does not know the bit, gives the same VMAs."""
    world = history(ops)
    result = check(read_with(world.kernel.trace(), 0))
    found = holding(result)
    # A child that has done nothing yet is not judged yet.
    unsettled = {life.mm.id for life in result.lives if life.state.dirty}
    for task, _ in world.tasks:
        mm, there = task.mm, found.get(task.mm.id, {})
        if mm.id in unsettled:
            continue
        tagged = [vma for vma in mm.vmas if vma.tag]
        event("some tagged" if tagged else "none tagged")
        assert there.keys() == {
            addr for vma in tagged for addr in range(vma.start, vma.end, PAGE)
        }


@relaxed
@given(HISTORY)
def test_in_shadow_the_rest_is_as_with_a_bit_that_means_nothing(ops) -> None:
    """And what lacks such a bit is in the table; it is judged at the same rows."""
    trace = history(ops, "stock").kernel.trace()
    result, unused = check(trace), check(read_with(trace, 1 << 45))
    assert result.shadow
    assert unused.shadow is None
    told = [(f.rule.id, f.fingerprint, f.seq) for f in result.findings]
    assert told == [
        (f.rule.id, f.fingerprint, f.seq) for f in unused.findings if f.rule.tagless
    ]
    lacking = [f for f in unused.findings if f.rule.id == "CDM002"]
    event("some lack it" if lacking else "none lacks it")
    for one in lacking:
        assert any(
            mm == one.mm
            and due.start < one.end
            and one.start < due.end
            and due.since.seq <= one.seq
            and (due.until is None or one.seq <= due.until.seq)
            for mm, due in result.shadow.vmas
        ), one


@relaxed
@given(HISTORY)
def test_their_pages_are_those_that_the_model_holds(ops) -> None:
    result = check(history(ops, "stock").kernel.trace())
    assert result.shadow
    lives = {life.mm: life.state for life in result.lives}
    for mm, due in result.shadow.vmas:
        state = lives[mm]
        if state.ended or due.ended or due.until or state.dirty or state.open:
            continue
        assert due.pages == state.pages.on_nodes(due.start, due.end)


# --- fed in parts, as a file that grows ----------------------------------------

EXACT = Bounds(pending=1 << 30, audit=False)


def summed(result: Result) -> tuple[object, ...]:
    return (
        status.verdict(result, named=False),
        result.rules,
        result.findings,
        [(life.mm, life.state) for life in result.lives],
    )


def fed(
    trace: Trace, gaps: list[Gap], cuts: list[int], bounds: Bounds
) -> tuple[Replay, Result]:
    """Feed the rows in parts, and between two of them some of the gaps."""
    events = list(trace.events)
    run = Replay(replace(trace, gaps=(), events=()), bounds=bounds)
    places = sorted({cut % (len(events) + 1) for cut in cuts} | {len(events)})
    begin, left = 0, list(gaps)
    for at, place in enumerate(places):
        for row in events[begin:place]:
            run.take(row)
        # Asking on the way changes nothing.
        run.result()
        due = len(gaps) * (at + 1) // len(places) - (len(gaps) - len(left))
        for gap in left[:due]:
            run.lose(gap)
        begin, left = place, left[due:]
    assert not left
    return run, run.result()


CUTS = st.lists(st.integers(0, 1 << 16), max_size=6)


@relaxed
@given(HISTORY, st.sampled_from([(), ("rfc",), ("one-way",)]), CUTS)
def test_the_same_findings_come_out(ops, quirks, cuts) -> None:
    trace = history(ops, *quirks).kernel.trace()
    _, result = fed(trace, [], cuts, EXACT)
    assert summed(result) == summed(check(trace))


@relaxed
@given(
    HISTORY,
    st.sampled_from([("rfc",), ("fault-tag",), ("ksm-left-on", "one-way")]),
    CUTS,
    st.lists(LOSS, min_size=1, max_size=5),
)
def test_a_loss_that_is_told_later_takes_the_same_findings_back(
    ops, quirks, cuts, losses
) -> None:
    trace = history(ops, *quirks).kernel.trace()
    gaps = gaps_of(trace, losses)
    whole = check(replace(trace, gaps=tuple(gaps)))
    _, result = fed(trace, gaps, cuts, EXACT)
    assert summed(result) == summed(whole)


@pytest.mark.parametrize("bounds", [LIVE, replace(LIVE, pending=2, findings=3)])
def test_what_is_bounded_counts_the_same_and_keeps_the_latest(bounds: Bounds) -> None:
    kernel = SimKernel("rfc")
    for _ in range(5):
        simstory.tell(kernel)
    trace = kernel.trace()
    whole = check(trace)
    run, result = fed(trace, [], list(range(0, 400, 23)), bounds)
    assert [(r.rule.id, r.verdict, r.checked, r.findings) for r in result.rules] == [
        (r.rule.id, r.verdict, r.checked, r.findings) for r in whole.rules
    ]
    for one in whole.rules:
        mine = [f for f in result.findings if f.rule is one.rule]
        theirs = [f for f in whole.findings if f.rule is one.rule]
        assert mine == theirs[len(theirs) - len(mine) :]
        assert bounds.findings is not None
        most = bounds.findings + bounds.pending
        assert min(len(theirs), bounds.findings) <= len(mine) <= most
    assert not result.lives
    assert {life.mm for life in run.living()} == {
        life.mm for life in whole.lives if not life.state.ended
    }
