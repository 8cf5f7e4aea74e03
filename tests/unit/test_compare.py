"""Two results against each other: what is new, gone, unchanged, and what is neither."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
from collections.abc import Callable
from pathlib import Path

import jsonschema
import pytest
import referencing
import simstory
from rulecases import CASES, INFO, LOCAL, nothing, run
from simkernel import CDM, SimKernel, Task

from cdmtrace.analysis import check, document
from cdmtrace.analysis.audit import Audit, Difference
from cdmtrace.analysis.compare import Comparison, Status, Unlike, compare, not_judged
from cdmtrace.analysis.replay import Result, Verdict
from cdmtrace.analysis.rules import BY_ID
from cdmtrace.analysis.status import compared
from cdmtrace.errors import ExitStatus
from cdmtrace.render import compare as render
from cdmtrace.render import divergence, tables

SCHEMAS = Path(__file__).resolve().parents[2] / "cdmtrace/schemas"


def schema(name: str) -> dict[str, object]:
    told: dict[str, object] = json.loads((SCHEMAS / name).read_text())
    return told


VALIDATOR = jsonschema.Draft202012Validator(
    schema("compare-1.json"),
    registry=referencing.Registry().with_resources(
        (str(one["$id"]), referencing.Resource.from_contents(one))
        for one in map(schema, ("check-1.json", "compare-1.json"))
    ),
)


def story(*quirks: str) -> Result:
    kernel = SimKernel(*quirks)
    simstory.tell(kernel)
    return check(kernel.trace())


def judged(kernel: SimKernel, rule: str) -> Result:
    return check(kernel.trace(), profile=min(BY_ID[rule].profiles), rules={rule})


def broken(rule: str) -> SimKernel:
    case = CASES[rule]
    return run(case.breaks, *case.quirks)


def kept(rule: str) -> SimKernel:
    case = CASES[rule]
    return run(case.keeps, *case.kept)


def lossy(kernel: SimKernel, probe: str) -> SimKernel:
    kernel.lose(probe, kernel.events[0].ts)
    return kernel


def statuses(comparison: Comparison) -> set[Status]:
    return {change.status for change in comparison.findings}


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


def vacuous(rule: str) -> SimKernel:
    return run(nothing)


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
    other = dataclasses.replace(trace, terms=dataclasses.replace(trace.terms, **terms))
    expected = () if told is None else (Unlike(what=told[0], a=told[1], b=told[2]),)
    assert compare(check(trace), check(other)).unlike == expected


def with_filters(**filters: object) -> Result:
    trace = story().trace
    terms = dataclasses.replace(trace.terms, filters=filters)
    return check(dataclasses.replace(trace, terms=terms))


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
    other = dataclasses.replace(
        trace, terms=dataclasses.replace(trace.terms, probes=less)
    )
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
    audited = dataclasses.replace(good, audit=audit)
    assert compared(compare(audited, bad)) is ExitStatus.TROUBLE
    assert compared(compare(bad, audited)) is ExitStatus.TROUBLE
    shown = render.render(document.compare(compare(audited, good)), "table")
    assert "This is an error of cdmtrace" in shown
    sound = dataclasses.replace(audit, differences=())
    audited = dataclasses.replace(good, audit=sound)
    assert compared(compare(audited, good)) is ExitStatus.OK


# --- the document, and what is printed -----------------------------------------


def comparisons() -> dict[str, Comparison]:
    """One for each status, and some with several."""
    rule = "CDM006"
    bad, blind = judged(broken(rule), rule), judged(vacuous(rule), rule)
    return {
        "nothing": compare(story(), story()),
        "new": compare(story(), story("rfc")),
        "gone": compare(story("rfc"), story()),
        "mixed": compare(story("one-way"), story("one-way", "bind-only")),
        "not in A": compare(blind, bad),
        "not in B": compare(bad, blind),
        "stock": compare(story("rfc"), story("stock")),
        "info": compare(
            judged(kept("CDM017"), "CDM017"), judged(broken("CDM017"), "CDM017")
        ),
    }


COMPARISONS = comparisons()


def test_every_status_is_there() -> None:
    seen = {one.status for c in COMPARISONS.values() for one in c.findings}
    assert seen == {*Status}


@pytest.mark.parametrize("name", COMPARISONS)
def test_the_document_obeys_its_schema(name: str) -> None:
    jsonschema.Draft202012Validator.check_schema(schema("compare-1.json"))
    shown = document.compare(COMPARISONS[name])
    VALIDATOR.validate(json.loads(json.dumps(shown)))


@pytest.mark.parametrize(
    "damage",
    [
        lambda d: d["findings"][0].update(status="better"),
        lambda d: d["findings"][0]["finding"].update(fingerprint="0x1"),
        lambda d: d["a"]["trace"].pop("kernel"),
        lambda d: d["rules"][0]["b"].update(verdict="good"),
        lambda d: d.update(profile="mine"),
        lambda d: d.pop("as_expected"),
    ],
)
def test_the_schema_minds(damage: Callable[[dict[str, object]], object]) -> None:
    """Also what it takes from that of check."""
    shown = json.loads(json.dumps(document.compare(COMPARISONS["new"])))
    damage(shown)
    with pytest.raises(jsonschema.ValidationError):
        VALIDATOR.validate(shown)


@pytest.mark.parametrize("name", COMPARISONS)
def test_the_text_says_what_there_is(name: str) -> None:
    shown = document.compare(COMPARISONS[name])
    text = render.render(shown, "table")
    assert max(map(len, text.splitlines())) < 80
    assert text.endswith("\n")
    for side in "ab":
        trace = shown[side]["trace"]
        assert f"{trace['events']} events, Linux {trace['kernel']}" in text
    for change in shown["findings"]:
        id_ = change["finding"]["fingerprint"]
        full = divergence.finding(change["finding"], alike=change["b"])
        assert (full in text) == (change["status"] in render.NEW)
        assert text.count(id_) == 1
    last = text.splitlines()[-1]
    expected = COMPARISONS[name].as_expected
    assert last.startswith(f"verdict: {'' if expected else 'not '}as expected: ")


def test_the_last_line_counts() -> None:
    def last(name: str) -> str:
        return render.text(document.compare(COMPARISONS[name])).splitlines()[-1]

    assert last("nothing") == "verdict: as expected: no finding in either"
    assert last("info") == "verdict: as expected: 1 new"
    assert last("not in A") == "verdict: not as expected: 1 not judged in A"
    assert last("not in B") == "verdict: as expected: 1 not judged in B"
    assert last("mixed") == "verdict: not as expected: 3 new, 1 unchanged"


def test_a_long_name_does_not_break_the_lines() -> None:
    shown = document.compare(COMPARISONS["gone"])
    for change in shown["findings"]:
        change["finding"]["comm"] = "x" * 60
    text = render.text(shown)
    assert max(map(len, text.splitlines())) == 79
    assert "xxx..\n" in text


def test_why_a_rule_was_not_judged_is_told() -> None:
    text = render.text(document.compare(COMPARISONS["not in B"]))
    assert "In A, and not judged in B: 1\n" in text
    assert "\nCDM006 in B: not once was there" in text
    assert "A could judge 1 rule that B could not: CDM006\n" in text
    text = render.text(document.compare(COMPARISONS["not in A"]))
    assert text.startswith("In B, and not judged in A: 1\n\nCDM006 in A: not once")
    assert "could judge" not in text


def test_several_of_one_id_are_shown_once() -> None:
    def thrice(task: Task) -> None:
        for _ in range(3):
            CASES["CDM001"].breaks(task)

    more = judged(run(thrice, "one-way"), "CDM001")
    text = render.text(document.compare(compare(judged(run(nothing), "CDM001"), more)))
    assert text.count("CDM001 stale-tag: error") == 1
    (line,) = [one for one in text.splitlines() if one.startswith("  id ")]
    assert line.endswith(", of 3 findings; the first one is shown")


def test_pages_of_what_is_new_are_those_of_b() -> None:
    shown = document.compare(COMPARISONS["new"])
    shown["b"]["trace"]["page_size"] = 512
    first = divergence.finding(shown["findings"][0]["finding"], page=512)
    assert first in render.text(shown)


def test_what_is_not_alike_is_told() -> None:
    shown = document.compare(compare(with_filters(comm="x"), with_filters(node=[1])))
    text = render.text(shown)
    assert "\nnot alike: what is new or gone" in text
    assert "\n  --comm: x in A, not given in B\n" in text
    assert "\n  --node: not given in A, 1 in B\n" in text
    assert "Not alike" in render.render(shown, "markdown")
    assert "not alike" not in render.text(document.compare(COMPARISONS["new"]))


@pytest.mark.parametrize("name", COMPARISONS)
def test_programs_get_all_rows(name: str) -> None:
    shown = document.compare(COMPARISONS[name])
    assert json.loads(render.render(shown, "json")) == json.loads(json.dumps(shown))
    lines = render.render(shown, "ndjson").splitlines()
    rows = [json.loads(line) for line in lines]
    ids = [c["finding"]["fingerprint"] for c in shown["findings"]]
    assert [r["fingerprint"] for r in rows if r["table"] == "findings"] == ids
    assert [r["rule"] for r in rows if r["table"] == "rules"] == [
        one["rule"] for one in shown["rules"]
    ]
    assert [r["trace"] for r in rows if r["table"] == "traces"] == ["A", "B"]
    cells = list(csv.reader(io.StringIO(render.render(shown, "csv"))))
    found = [row for row in cells if row[0] == "findings"]
    assert [row[7] for row in found] == ids
    assert [row[1] for row in found] == [c["status"] for c in shown["findings"]]
    assert [row[8:10] for row in found] == [
        [str(c["a"]), str(c["b"])] for c in shown["findings"]
    ]


def test_markdown_has_the_divergences_as_diffs() -> None:
    kernel = SimKernel("one-way")
    CASES["CDM001"].breaks(kernel.process("a```b"))
    shown = document.compare(compare(story(), check(kernel.trace())))
    text = render.render(shown, "markdown")
    # No name that a task gives itself ends the block.
    begin = text.index("````diff\n")
    end = text.index("\n````\n", begin)
    assert "- required" in text[begin:end]
    assert "```b" in text[begin:end]
    assert text.startswith("## New in B: 1\n")
    plain = render.render(document.compare(COMPARISONS["new"]), "markdown")
    assert "\n```diff\n" in plain
    assert "## Rules of another verdict\n" in plain
    assert "## Recordings\n" in plain
    gone = render.render(document.compare(COMPARISONS["gone"]), "markdown")
    assert "## Gone in B: " in gone
    assert "diff" not in gone


def test_every_form_there_is() -> None:
    shown = document.compare(COMPARISONS["mixed"])
    for form in tables.FORMATS:
        assert "CDM001" in render.render(shown, form)


@pytest.mark.parametrize(
    ("name", "side", "words"),
    [
        ("new", "b", "is new"),
        ("not in A", "b", "is new"),
        ("gone", "a", "is gone"),
        ("not in B", "a", "is gone"),
    ],
)
def test_the_next_command_explains_the_first(name: str, side: str, words: str) -> None:
    shown = document.compare(COMPARISONS[name])
    shown[side]["trace"]["files"] = ["one file.arrows", "two.arrows"]
    id_ = shown["findings"][0]["finding"]["fingerprint"]
    assert render.next_command(shown) == (
        f"the first one that {words} as an argument: cdmtrace explain "
        f"'one file.arrows' two.arrows {id_}"
    )


def test_the_next_command_of_what_is_unchanged_and_of_nothing() -> None:
    same = document.compare(compare(story("rfc"), story("rfc")))
    assert "that is in both as an argument: cdmtrace explain " in (
        render.next_command(same)
    )
    nothing_found = document.compare(COMPARISONS["nothing"])
    nothing_found["b"]["trace"]["files"] = ["b.arrows"]
    assert render.next_command(nothing_found) == (
        "what happened in B: cdmtrace report b.arrows"
    )


def test_the_next_command_names_the_profile() -> None:
    mended, bad = story().trace, story("rfc").trace
    results = (check(trace, profile="rfc-v2") for trace in (bad, mended))
    shown = document.compare(compare(*results))
    assert "cdmtrace explain --profile rfc-v2 " in render.next_command(shown)
