"""Two results against each other: what is new, gone, unchanged, and what is neither."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import simstory
from comparisons import (
    broken,
    judged,
    kept,
    lossy,
    statuses,
    story,
    vacuous,
    with_filters,
)
from msgspec.structs import replace
from rulecases import CASES, INFO, LOCAL, run
from simkernel import CDM, SimKernel, Task

from cdmtrace.analysis import check, document
from cdmtrace.analysis.audit import Audit, Difference
from cdmtrace.analysis.compare import Status, Unlike, compare, not_judged
from cdmtrace.analysis.result import Result, Verdict
from cdmtrace.analysis.rules import BY_ID
from cdmtrace.analysis.status import compared
from cdmtrace.errors import ExitStatus
from cdmtrace.render import compare as render

# --- what becomes of a finding -------------------------------------------------


@pytest.mark.parametrize("rule", CASES)
def test_new_and_gone_where_it_could_be_found(rule: str) -> None:
    bad, good = judged(broken(rule), rule), judged(kept(rule), rule)
    forth, back = compare(good, bad), compare(bad, good)
    assert statuses(forth) == {Status.NEW}
    assert forth.as_expected == (rule in INFO)
    assert statuses(back) == {Status.GONE}
    assert back.as_expected
    for change in forth.findings:
        assert (change.a, change.why) == (0, None)
        assert change.b > 0
    for change in back.findings:
        assert (change.b, change.why) == (0, None)
        assert change.a > 0


@pytest.mark.parametrize("rule", CASES)
def test_unchanged_whatever_else_happened_to_it(rule: str) -> None:
    bad = judged(broken(rule), rule)
    same = compare(bad, judged(broken(rule), rule))
    assert statuses(same) == {Status.UNCHANGED}
    assert same.as_expected
    if rule in LOCAL:
        # It was found in spite of a loss, that is enough.
        less = judged(lossy(broken(rule), CASES[rule].probe), rule)
        assert statuses(compare(bad, less)) == {Status.UNCHANGED}
        assert statuses(compare(less, bad)) == {Status.UNCHANGED}


def inconclusive(rule: str) -> SimKernel:
    return lossy(kept(rule), CASES[rule].probe)


def unchecked(rule: str) -> SimKernel:
    kernel = kept(rule)
    kernel.probes[min(BY_ID[rule].needs)] = None
    return kernel


@pytest.mark.parametrize("rule", CASES)
@pytest.mark.parametrize("why", [inconclusive, unchecked, vacuous])
def test_where_a_rule_was_not_judged_nothing_is_new_or_gone(
    rule: str, why: Callable[[str], SimKernel]
) -> None:
    bad, blind = judged(broken(rule), rule), judged(why(rule), rule)
    (outcome,) = blind.rules
    assert outcome.verdict is Verdict(why.__name__)
    back, forth = compare(bad, blind), compare(blind, bad)
    assert statuses(back) == {Status.NOT_JUDGED_IN_B}
    assert back.as_expected
    assert statuses(forth) == {Status.NOT_JUDGED_IN_A}
    assert forth.as_expected == (rule in INFO)
    for change in (*back.findings, *forth.findings):
        assert change.why == outcome.why
    (pair,) = compare(judged(kept(rule), rule), blind).rules
    assert pair.blinder
    assert pair.changed


@pytest.mark.parametrize(
    ("loses", "status"), [(False, Status.GONE), (True, Status.NOT_JUDGED_IN_B)]
)
def test_a_rule_that_found_some_may_have_missed_others(
    loses: bool, status: Status
) -> None:
    def told(*comms: str) -> SimKernel:
        kernel = SimKernel(*CASES["CDM003"].quirks)
        for comm in comms:
            CASES["CDM003"].breaks(kernel.process(comm))
        return kernel

    kernel = told("one")
    both = judged(told("one", "two"), "CDM003")
    less = judged(lossy(kernel, "alloc") if loses else kernel, "CDM003")
    assert less.rules[0].verdict is Verdict.VIOLATED
    found = {c.finding.mm.comm: c.status for c in compare(both, less).findings}
    assert found == {"one": Status.UNCHANGED, "two": status}


def test_violated_and_open_is_not_judged() -> None:
    (outcome,) = judged(lossy(broken("CDM003"), "alloc"), "CDM003").rules
    assert outcome.verdict is Verdict.VIOLATED
    assert not_judged(outcome) == outcome.why
    assert outcome.why
    (whole,) = judged(broken("CDM003"), "CDM003").rules
    assert whole.verdict is Verdict.VIOLATED
    assert not_judged(whole) is None


def test_another_boot_is_no_change() -> None:
    other = SimKernel("rfc")
    other.now, other.next_tid, other.ids = 77_000_000_000, 4000, 900
    other.next_addr = 0x155500000000
    simstory.tell(other)
    comparison = compare(story("rfc"), check(other.trace()))
    assert statuses(comparison) == {Status.UNCHANGED}
    assert {id(c.finding) for c in comparison.findings} <= {
        id(finding) for finding in comparison.b.findings
    }
    assert comparison.unlike == ()
    assert not any(pair.changed for pair in comparison.rules)


def test_findings_of_one_id_are_one_and_are_counted() -> None:
    def twice(task: Task) -> None:
        CASES["CDM001"].breaks(task)
        CASES["CDM001"].breaks(task)

    once = judged(broken("CDM001"), "CDM001")
    more = judged(run(twice, *CASES["CDM001"].quirks), "CDM001")
    (change,) = compare(once, more).findings
    assert (change.status, change.a, change.b) == (Status.UNCHANGED, 1, 2)
    (change,) = compare(more, judged(kept("CDM001"), "CDM001")).findings
    assert (change.status, change.a, change.b) == (Status.GONE, 2, 0)


def test_they_come_by_status_and_then_in_their_order() -> None:
    comparison = compare(story("one-way", "fault-tag"), story("one-way", "bind-only"))
    order = list(Status)
    told = [order.index(change.status) for change in comparison.findings]
    assert told == sorted(told)
    assert {Status.NEW, Status.GONE, Status.UNCHANGED} <= statuses(comparison)
    for status, result in ((Status.NEW, comparison.b), (Status.GONE, comparison.a)):
        seqs = [c.finding.seq for c in comparison.findings if c.status is status]
        assert seqs == sorted(seqs)
        assert {f.seq for f in result.findings} >= {*seqs}


def test_what_was_not_asked_alike_is_not_compared() -> None:
    trace = story("rfc").trace
    others = (
        check(trace, rules={"CDM001"}),
        check(trace, profile="rfc-v2"),
    )
    for other in others:
        with pytest.raises(ValueError, match="not judged by the same"):
            compare(check(trace), other)


# --- are they alike? -----------------------------------------------------------


@pytest.mark.parametrize(
    ("terms", "told"),
    [
        ({}, None),
        # The bit is another one on another kernel, and so are symbols.
        ({"tag": 1 << 40, "kernel": "6.12.1"}, None),
        ({"cdm": CDM | 4}, ("CDM nodes", "1", "1-2")),
        ({"tag": 0}, ("VM_CDM", "there", "none (shadow mode)")),
        ({"page": 65536}, ("page size", "4096 bytes", "65536 bytes")),
        ({"departures": False}, ("stacks of departures", "taken", "not taken")),
        ({"filters": {"node": [1, 3]}}, ("--node", "not given", "1,3")),
        ({"filters": {"comm": "x"}}, ("--comm", "not given", "x")),
        ({"filters": {"pid": [7, 8]}}, ("--pid", "not given", "given")),
        ({"filters": {"stacks": "none"}}, ("--stacks", "all", "none")),
    ],
)
def test_in_what_recordings_differ(
    terms: dict[str, object], told: tuple[str, str, str] | None
) -> None:
    trace = story().trace
    other = replace(trace, terms=replace(trace.terms, **terms))
    expected = () if told is None else (Unlike(what=told[0], a=told[1], b=told[2]),)
    assert compare(check(trace), check(other)).unlike == expected


def test_a_process_has_another_number_after_a_reboot() -> None:
    assert compare(with_filters(pid=[7]), with_filters(pid=[9])).unlike == ()
    (one,) = compare(with_filters(comm="x"), with_filters(comm="y")).unlike
    assert (one.what, one.a, one.b) == ("--comm", "x", "y")


def test_probes_that_one_has_not() -> None:
    trace = story().trace
    less = {**trace.terms.probes, "ksm_merge": None, "alloc": None}
    # No rule looks at these.
    less |= {"watchpoint": "x", "nobody's": "y"}
    del less["numa_scan"]
    other = replace(trace, terms=replace(trace.terms, probes=less))
    (one,) = compare(check(trace), check(other)).unlike
    assert one.what == "probes that only it has"
    assert (one.a, one.b) == ("alloc, ksm_merge, numa_scan", "none")
    # Who asks for some rules only is not bothered with the probes of others.
    only = [check(t, rules={"CDM003"}) for t in (other, trace)]
    (one,) = compare(*only).unlike
    assert (one.a, one.b) == ("none", "alloc")


def test_programs_of_other_names_have_nothing_in_common() -> None:
    def named(*comms: str) -> Result:
        kernel = SimKernel("one-way")
        for comm in comms:
            CASES["CDM001"].breaks(kernel.process(comm))
        return check(kernel.trace())

    comparison = compare(named("postgres"), named("mysqld"))
    assert statuses(comparison) == {Status.NEW, Status.GONE}
    (one,) = comparison.unlike
    assert (one.what, one.a, one.b) == ("who has findings", "postgres", "mysqld")
    assert compare(named("postgres"), story()).unlike == ()
    assert compare(named("postgres", "x"), named("postgres")).unlike == ()


# --- the exit status -----------------------------------------------------------


def test_an_audit_that_finds_us_wrong_is_trouble() -> None:
    good, bad = story(), story("rfc")
    wrong = Difference(pid=1, mm=1, start=0, end=4096, model={}, kernel={1: 1}, seq=1)
    audit = Audit(looks=1, vmas=1, pages=1, moving=0, unknown=0, differences=(wrong,))
    assert compared(compare(good, good)) is ExitStatus.OK
    assert compared(compare(bad, bad)) is ExitStatus.OK
    assert compared(compare(good, bad)) is ExitStatus.FINDINGS
    audited = replace(good, audit=audit)
    assert compared(compare(audited, bad)) is ExitStatus.TROUBLE
    assert compared(compare(bad, audited)) is ExitStatus.TROUBLE
    shown = render.render(document.compare(compare(audited, good)), "table")
    assert "This is an error of cdmtrace" in shown
    sound = replace(audit, differences=())
    audited = replace(good, audit=sound)
    assert compared(compare(audited, good)) is ExitStatus.OK
