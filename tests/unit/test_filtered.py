"""What check says of a recording that leaves something out because it was asked to."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace
from rulecases import CASES, bind_back, one, run
from simkernel import CDM, SimKernel

from cdmtrace.analysis import check, document
from cdmtrace.analysis.frames import Trace
from cdmtrace.analysis.result import RuleResult, Verdict
from cdmtrace.analysis.rules import BY_ID, RULES
from cdmtrace.events import EventKind
from cdmtrace.render import divergence

PAGES = (EventKind.MAP, EventKind.UNMAP, EventKind.MIGRATE)


def recorded(kernel: SimKernel, **terms: Any) -> Trace:
    """Return the trace as a recorder with these terms had made it.

    Rows of pages that --addr leaves out are not in it.
    """
    trace = kernel.trace()
    trace = replace(trace, terms=replace(trace.terms, **terms))
    events = tuple(
        event
        for event in trace.events
        if event.kind not in PAGES
        or trace.terms.sees(event.addr, event.addr + event.size)
    )
    return replace(trace, events=events, count=len(events))


def judge(rule: str, trace: Trace) -> RuleResult:
    return one(check(trace), rule)


@pytest.mark.parametrize("stacks", ["changes", "none"])
@pytest.mark.parametrize("rule", CASES)
def test_stacks_that_were_not_taken(rule: str, stacks: str) -> None:
    """A rule that leans on them is open, and keeps its findings back."""
    open_ = BY_ID[rule].stacks not in ("", stacks)
    case = CASES[rule]
    broken = judge(rule, recorded(run(case.breaks, *case.quirks), stacks=stacks))
    assert broken.verdict is (Verdict.INCONCLUSIVE if open_ else Verdict.VIOLATED)
    assert (f"recorded with --stacks {stacks}" in (broken.why or "")) is open_
    assert ("withheld" in (broken.why or "")) is open_
    kept = judge(rule, recorded(run(case.keeps, *case.kept), stacks=stacks))
    assert kept.verdict is (Verdict.INCONCLUSIVE if open_ else Verdict.CLEAN)


def test_which_rules_read_a_cause_off_a_stack() -> None:
    assert {rule.id: rule.stacks for rule in RULES if rule.stacks} == {
        **dict.fromkeys(("CDM001", "CDM002", "CDM010", "CDM011", "CDM012"), "all"),
        **dict.fromkeys(("CDM014", "CDM016", "CDM019", "CDM021"), "all"),
        **dict.fromkeys(("CDM013", "CDM015"), "changes"),
    }


REASONS = ("CDM001", "CDM010", "CDM011", "CDM016")
"""Rules that say that a tag has no reason: one that was left out may be it."""


@pytest.mark.parametrize("rule", REASONS)
def test_a_node_that_was_left_out(rule: str) -> None:
    """Its pages may be why there is a tag."""
    case = CASES[rule]
    kernel = run(case.breaks, *case.quirks)
    terms = {"cdm": CDM | 1 << 3}
    assert judge(rule, recorded(kernel, **terms)).verdict is Verdict.VIOLATED
    result = judge(rule, recorded(kernel, **terms, told=CDM))
    assert result.verdict is Verdict.INCONCLUSIVE
    assert result.findings == 0


@pytest.mark.parametrize("rule", CASES)
def test_nodes_that_are_all_there_are(rule: str) -> None:
    case = CASES[rule]
    result = judge(rule, recorded(run(case.breaks, *case.quirks), told=CDM))
    assert result.verdict is Verdict.VIOLATED


@pytest.mark.parametrize("rule", [*REASONS, "CDM012", "CDM013", "CDM015"])
def test_addresses_that_were_left_out(rule: str) -> None:
    """The first page of each VMA is told of, and no other one."""
    case = CASES[rule]
    kernel = run(case.breaks, *case.quirks)
    whole = check(kernel.trace())
    (finding, *_) = [f for f in whole.findings if f.rule.id == rule]
    page = (finding.start, finding.start + 4096)
    if finding.start + 4096 == finding.end or rule in ("CDM013", "CDM015"):
        page = (finding.start - 4096, finding.start)
    result = judge(rule, recorded(kernel, addr=page))
    assert result.verdict is not Verdict.VIOLATED
    if rule in REASONS and page[0] == finding.start:
        assert result.verdict is Verdict.INCONCLUSIVE


@pytest.mark.parametrize("rule", CASES)
def test_addresses_that_hold_everything(rule: str) -> None:
    case = CASES[rule]
    kernel = run(case.breaks, *case.quirks)
    everything = recorded(kernel, addr=(0, 1 << 64))
    assert judge(rule, everything).verdict is Verdict.VIOLATED


def test_a_range_that_ends_within_a_vma_is_no_reason_for_a_finding() -> None:
    """Pages beyond it are left; a kernel that keeps the tag for them is right."""
    kernel = run(bind_back, "one-way")
    (finding, *_) = check(kernel.trace()).findings
    cut = recorded(kernel, addr=(finding.start, finding.start + 11 * 4096))
    result = judge("CDM001", cut)
    assert result.verdict is Verdict.INCONCLUSIVE
    assert "were not seen to come" in (result.why or "")


def test_what_lies_outside_of_the_range_is_not_judged() -> None:
    kernel = run(bind_back, "one-way")
    (finding, *_) = check(kernel.trace()).findings
    beyond = recorded(kernel, addr=(finding.end, finding.end + 4096))
    result = judge("CDM001", beyond)
    assert (result.verdict, result.checked) == (Verdict.VACUOUS, 0)


def test_an_address_space_that_is_followed_late_is_not_known_whole() -> None:
    """As where what was there before could not be looked at."""
    kernel = run(bind_back)
    trace = kernel.trace()
    begin = trace.events[0]
    looked = replace(begin, kind=EventKind.SNAP_MM, probe=96, mm=0, pid=0)
    events = (looked, *trace.events)
    trace = replace(trace, events=events)
    for late in (False, True):
        terms = replace(trace.terms, late=late)
        (life,) = check(replace(trace, terms=terms)).lives
        assert life.state.whole is not late


def test_the_filters_are_told_with_the_verdict() -> None:
    filters = {"pid": [71, 72], "children": False, "addr": "1000-2000", "all": True}
    told = document.check(check(recorded(run(bind_back), filters=filters)))
    assert told["trace"]["filters"] == filters
    text = " ".join(divergence.check(told).split())
    words = "pid 71 72, addr 1000-2000, all, without children"
    assert f"recorded with filters: {words}" in text
    plain = document.check(check(run(bind_back).trace()))
    plain = document.check(check(run(bind_back).trace()))
    assert "filters" not in divergence.check(plain)
