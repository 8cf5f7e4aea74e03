"""Rules from files of one's own: with all the machinery; whose fault it is."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from asking import NONE, RFC
from jsonschema import Draft202012Validator
from msgspec.structs import replace
from simfile import save
from simkernel import BIND, SimKernel, Task

from cdmtrace.analysis import check, load, ownrules, wellformed
from cdmtrace.analysis.frames import Gap, Trace
from cdmtrace.analysis.notes import Began
from cdmtrace.analysis.result import Result, RuleResult, Verdict
from cdmtrace.analysis.rules import RULES, Judgement, Rule
from cdmtrace.cli import main
from cdmtrace.errors import RuleFault, UnreadableFile
from cdmtrace.events import EventKind, Probe
from cdmtrace.render.check import FORMATS

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples/rules"
SLOW, MIXED = EXAMPLES / "slow_mbind.py", EXAMPLES / "mixed_nodes.py"

HEAD = """
from cdmtrace.analysis.notes import *
from cdmtrace.analysis.rules import *

def judge(note, terms, profile):
    if not isinstance(note, MbindEnded):
        return None
    event = note.event
    {body}

def a_rule(**more):
    return Rule(**dict(
        id="LAB007", name="mine", severity=Severity.ERROR, statement="It is.",
        premise="a thing", source="me", sentence="So be it.", events=("CALL",),
        needs=frozenset({{"sys_mbind"}}), leans=frozenset(), threats=(), limits=(),
        judge=judge) | more)

{tail}
"""
WRONG = (
    "return Judgement(violation=Violation(**dict(cause='x', start=event.start, "
    "end=event.end, expected='a', observed='b', witness=(event,), shape=()) | dict("
)


def written(
    directory: Path,
    body: str = "return Judgement()",
    tail: str = "RULES = (a_rule(),)",
    name: str = "mine.py",
) -> Path:
    path = directory / name
    path.write_text(HEAD.format(body=body, tail=tail))
    return path


def one(result: Result, rule: str) -> RuleResult:
    return next(r for r in result.rules if r.rule.id == rule)


# --- all the machinery ----------------------------------------------------------


@pytest.mark.parametrize(
    "path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.stem
)
def test_an_example_can_be_read_and_says_what_it_is(path: Path) -> None:
    (rule,) = ownrules.read([path])
    text = path.read_text()
    assert text.startswith(f'"""{rule.id}: ')
    assert f"--rules-from {path.name} " in text
    assert f"examples/rules/{path.name}" in (ROOT / "docs/own-rules.md").read_text()


def test_what_the_examples_find() -> None:
    trace = load(RFC)
    result = check(trace, own=ownrules.read([SLOW, MIXED]), rules={"LAB001", "LAB002"})
    slow, mixed = one(result, "LAB001"), one(result, "LAB002")
    calls = [
        event
        for event in trace.events
        if (event.kind, event.probe) == (EventKind.CALL, Probe.SYS_MBIND)
        and event.other & trace.terms.cdm
    ]
    assert slow.checked == len(calls) == 11
    assert slow.findings == sum(call.ts - call.ts_entry > 10**6 for call in calls) == 3
    assert mixed.verdict is Verdict.VIOLATED
    found = [finding for finding in result.findings if finding.rule.id == "LAB002"]
    # Parent and children have the same policy, and so the same finding.
    assert len({finding.mm.id for finding in found}) == len(found) == 3
    assert len({finding.fingerprint for finding in found}) == 1
    assert {finding.observed[:14] for finding in found} == {"INTERLEAVE:0-1"}


def test_beside_the_others_they_change_nothing() -> None:
    trace = load(RFC)
    alone, both = check(trace), check(trace, own=ownrules.read([SLOW, MIXED]))
    assert both.rules[: len(alone.rules)] == alone.rules
    assert [f for f in both.findings if f.rule in RULES] == [*alone.findings]
    assert len(both.findings) == len(alone.findings) + 6


def mix(task: Task) -> None:
    vma = task.mmap(31)
    task.mbind(vma.start, 31, BIND, 3)
    task.faults(vma)


def mixing() -> Trace:
    kernel = SimKernel()
    mix(kernel.process())
    return kernel.trace()


def test_without_its_premise_a_rule_is_vacuous() -> None:
    kernel = SimKernel()
    kernel.process().mmap(3)
    result = check(kernel.trace(), own=ownrules.read([SLOW, MIXED]))
    for rule in ("LAB001", "LAB002"):
        assert one(result, rule).verdict is Verdict.VACUOUS
    assert one(result, "LAB001").why == (
        "not once was there an mbind() that names a CDM node"
    )


def test_what_is_lost_in_its_window_makes_it_inconclusive() -> None:
    own = ownrules.read([MIXED])
    trace = mixing()
    assert one(check(trace, own=own), "LAB002").verdict is Verdict.VIOLATED
    last = max(event.ts for event in trace.events)
    gap = Gap(probe="vma_merge", reason="ring", count=1, since=0, until=last)
    lossy = one(check(replace(trace, gaps=(gap,)), own=own), "LAB002")
    assert (lossy.verdict, lossy.findings) == (Verdict.INCONCLUSIVE, 0)
    assert "1 finding withheld" in (lossy.why or "")
    # What it does not lean on does not matter.
    other = replace(gap, probe="numa_scan")
    assert one(check(replace(trace, gaps=(other,)), own=own), "LAB002").findings == 1


@pytest.mark.parametrize(
    ("probe", "verdict"),
    [("sys_mbind", Verdict.UNCHECKED), ("vma_merge", Verdict.INCONCLUSIVE)],
)
def test_a_probe_that_it_needs_or_leans_on(probe: str, verdict: Verdict) -> None:
    trace = mixing()
    probes = {**trace.terms.probes, probe: None}
    blind = replace(trace, terms=replace(trace.terms, probes=probes))
    result = check(blind, own=ownrules.read([MIXED]))
    assert one(result, "LAB002").verdict is verdict
    assert one(result, "LAB002").why == f"probe not attached: {probe}" + (
        "; 1 finding withheld for that" if verdict is Verdict.INCONCLUSIVE else ""
    )


def test_its_profile_and_a_kernel_without_the_tag() -> None:
    trace, own = mixing(), ownrules.read([SLOW, MIXED])
    listed = {rule.rule.id for rule in check(trace, profile="np", own=own).rules}
    assert listed.isdisjoint({"LAB001", "LAB002"})
    untagged = replace(trace, terms=replace(trace.terms, tag=0))
    result = check(untagged, own=own)
    assert one(result, "LAB001").verdict is Verdict.UNCHECKED
    assert one(result, "LAB002").verdict is Verdict.VIOLATED


# --- on the command line --------------------------------------------------------

FROM = ["--rules-from", str(SLOW), "--rules-from", str(MIXED)]


def test_check_and_explain(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["check", "--rules", "LAB001,mixed-nodes", *FROM, str(RFC)]
    assert main(words) == 1
    printed = capsys.readouterr()
    assert printed.out.count("\n+ kernel     it took ") == 3
    assert printed.out.endswith("verdict: violated, 6 findings\n")
    assert max(map(len, printed.out.splitlines())) < 80
    command = printed.err.rstrip().partition("as an argument: cdmtrace ")[2].split()
    assert command[1:5] == FROM
    assert main(command) == 0
    told = capsys.readouterr().out
    assert "For        mbind() of a CDM node takes longer than 1 ms." in told
    assert main(["explain", *FROM, "lab002"]) == 0
    assert "leans on   copy_page_range" in capsys.readouterr().out
    assert main(["explain", *FROM]) == 0
    assert "LAB002  mixed-nodes" in capsys.readouterr().out
    assert main(["explain", "LAB002"]) == 2


@pytest.mark.parametrize("form", FORMATS)
def test_every_format_has_them(form: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--rules-from", str(SLOW), "--rules", "LAB001", "--format", form]
    assert main(["check", *words, str(RFC)]) == 1
    assert "LAB001" in capsys.readouterr().out


def test_what_they_find_may_be_known(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    known = tmp_path / "known.toml"
    words = ["check", "--rules-from", str(SLOW), "--rules", "LAB001", str(RFC)]
    assert (
        main([*words, "--write-baseline", str(known), "--reason", "a slow disk"]) == 1
    )
    assert main([*words, "--baseline", str(known)]) == 0
    assert "all of them suppressed" in capsys.readouterr().out


def test_the_document_is_one_of_the_schema(capsys: pytest.CaptureFixture[str]) -> None:
    main(["check", "--format", "json", *FROM, str(RFC)])
    shown = json.loads(capsys.readouterr().out)
    schema = json.loads((ROOT / "cdmtrace/schemas/check-1.json").read_text())
    Draft202012Validator(schema).validate(shown)
    assert [rule["rule"] for rule in shown["rules"]][-2:] == ["LAB001", "LAB002"]


def test_compare_and_query(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--rules", "LAB002", *FROM]
    assert main(["compare", *words, "--format", "json", str(NONE), str(RFC)]) == 0
    (change,) = json.loads(capsys.readouterr().out)["findings"]
    assert (change["status"], change["finding"]["rule"]) == ("unchanged", "LAB002")
    sql = "SELECT count(*) AS n FROM findings"
    assert main(["query", *words, "--format", "csv", str(RFC), sql]) == 0
    assert capsys.readouterr().out == "n\n3\n"


def test_timeline_marks_what_they_find(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["timeline", *FROM, str(RFC)]
    assert main(words) == 0
    assert "LAB002 mixed-nodes, CDM002 missing-tag" in capsys.readouterr().out
    assert main([*words, "--pid", "62", "--addr", "100100000000"]) == 0
    assert "^ LAB002 " in capsys.readouterr().out


def test_one_that_is_only_told_sets_no_status(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    body = f"{WRONG})))"
    for severity, status in (("INFO", 0), ("WARNING", 1)):
        tail = f"RULES = [a_rule(severity=Severity.{severity})]"
        path = written(tmp_path, body, tail)
        words = ["check", "--rules", "mine", "--rules-from", str(path), str(RFC)]
        assert main(words) == status
    capsys.readouterr()


def test_several_files_from_the_environment(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CDMTRACE_CHECK_RULES_FROM", f"{SLOW}:{MIXED}")
    assert main(["check", "--rules", "LAB001,LAB002", str(RFC)]) == 1
    assert "verdict: violated, 6 findings" in capsys.readouterr().out


# --- files that are wrong -------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("import nothing_of_this_name", "ModuleNotFoundError: No module named 'noth"),
        ("x = 1\nraise ValueError('no')", "ValueError: no\n  line 2: raise Value"),
        ("def x(:", "SyntaxError: invalid syntax"),
        ("raise SystemExit(0)", "SystemExit: 0"),
        ("x = '\0'", "is no file of rules"),
        ("RULES = 1", "has no rules in its RULES"),
        ("RULES = ()", "has no rules in its RULES"),
        ("x = 1", "has no RULES"),
        ("RULES = ('CDM001',)", "CDM001: it is no Rule"),
    ],
)
def test_a_file_that_is_none(
    text: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "mine.py"
    path.write_text(text)
    assert main(["check", "--rules-from", str(path), str(RFC)]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith(f"cdmtrace: {path}: ")
    assert said in printed.err
    assert "hint: " in printed.err


def test_a_file_that_is_not_there_and_one_that_is_none_of_python() -> None:
    with pytest.raises(UnreadableFile, match="cannot be read: No such file"):
        ownrules.read([Path("/nonexistent/rules.py")])
    with pytest.raises(UnreadableFile, match="is no file of rules"):
        ownrules.read([RFC])


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ("id='CDM001'", "'CDM001', and not two to eight capitals, but CDM,"),
        ("id='CDM099'", "not two to eight capitals, but CDM,"),
        ("id='lab001'", "not two to eight capitals"),
        ("id='LAB1'", "not two to eight capitals"),
        ("id=7", "its id is 7"),
        ("name='stale-tag'", "there is a rule CDM001 stale-tag already"),
        ("name='My rule'", "not small letters with hyphens"),
        ("severity='error'", "its severity is 'error', and not a Severity"),
        ("statement=''", "its statement is '', and not a text"),
        ("sentence=None", "its sentence is None"),
        ("events=('CALLS',)", "its events has 'CALLS', which there is not"),
        ("events='CALL'", "its events is 'CALL', and not a tuple of texts"),
        ("needs=frozenset({'sys_mbnd'})", "its needs has 'sys_mbnd', which"),
        ("needs={'sys_mbind'}", "not a frozenset of texts"),
        ("leans=frozenset({1})", "its leans is frozenset({1})"),
        ("profiles=frozenset({'x'})", "its profiles has 'x'"),
        ("stacks='some'", "its stacks is 'some', and not '', 'changes' or 'all'"),
        ("judge=None", "its judge is None, and not a function"),
        ("once=1", "its once is 1, and not True or False"),
        ("name='\\x1b[2J'", "its name is '?[2J'"),
    ],
)
def test_a_rule_that_is_wrong(more: str, said: str, tmp_path: Path) -> None:
    path = written(tmp_path, tail=f"RULES = (a_rule({more}),)")
    with pytest.raises(UnreadableFile) as error:
        ownrules.read([path])
    assert said.replace("?[2J", "\\x1b[2J") in error.value.message
    assert error.value.message.startswith(f"{path}: ")
    assert "\x1b" not in error.value.message


def test_an_id_that_is_there_twice(tmp_path: Path) -> None:
    twice = written(tmp_path, tail="RULES = (a_rule(), a_rule(name='other'))")
    with pytest.raises(UnreadableFile, match="LAB007: there is a rule LAB007 mine"):
        ownrules.read([twice])
    one = written(tmp_path)
    other = written(tmp_path, tail="RULES = (a_rule(name='x'),)", name="other.py")
    with pytest.raises(UnreadableFile, match=r"other\.py: LAB007: there is a rule"):
        ownrules.read([one, other])


def test_nothing_is_written_beside_it_and_it_is_run_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    tail = (
        "from dataclasses import dataclass\n"
        "@dataclass\nclass Mine:\n    x: 'int' = 1\n"
        "with open(__file__ + '.ran', 'a') as ran:\n    ran.write('x')\n"
        "RULES = (a_rule(limits=(str(Mine().x),)),)"
    )
    path = written(tmp_path, tail=tail)
    (rule,) = ownrules.read([path])
    assert rule.limits == ("1",)
    assert {file.name for file in tmp_path.iterdir()} == {"mine.py", "mine.py.ran"}
    assert (tmp_path / "mine.py.ran").read_text() == "x"


# --- rules that fail ------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("return event.nonsense", "AttributeError: 'Event' object has no attribute"),
        ("return 1 / 0", "ZeroDivisionError: division by zero"),
        ("raise SystemExit(3)", "SystemExit: 3"),
        ("return True", "True is no Judgement"),
        ("return Judgement(window=(1, None))", "its window is (1, None), and not a"),
        ("return Judgement(window=[1, 2])", "its window is [1, 2]"),
        ("return Judgement(unknown='')", "its unknown is '', and not a text or None"),
        ("return Judgement(violation='x')", "not a Violation or None"),
        (f"{WRONG}witness=())))", "a violation without a witness shows nothing"),
        (f"{WRONG}witness=[event])))", "the violation's witness is [Event("),
        (f"{WRONG}witness=(1,))))", "not a tuple of Event"),
        (f"{WRONG}start=-1)))", "the violation's start is -1, and not an address"),
        (f"{WRONG}start=1.5)))", "start is 1.5"),
        (f"{WRONG}end=0)))", "the violation ends before it starts"),
        (f"{WRONG}shape='x')))", "shape is 'x', and not a tuple of texts"),
        (f"{WRONG}cause=None)))", "cause is None, and not a text"),
        (f"{WRONG}breaks=1)))", "breaks is 1, and not a text or None"),
    ],
)
def test_it_is_told_whose_fault_it_is(
    body: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = written(tmp_path, body)
    assert main(["check", "--rules-from", str(path), str(RFC)]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    first = next(
        event.seq
        for event in load(RFC).events
        if (event.kind, event.probe) == (EventKind.CALL, Probe.SYS_MBIND)
    )
    expected = f"{path}: LAB007 mine failed to judge row {first} (MbindEnded): "
    assert printed.err.startswith(f"cdmtrace: {expected}")
    assert said in printed.err
    assert "it is the rule that is wrong, not the kernel" in printed.err
    if "return 1 / 0" in body:
        assert "line 9: return 1 / 0" in printed.err


def test_what_a_rule_quotes_moves_no_cursor(tmp_path: Path) -> None:
    body = f"{WRONG}cause='\\x1b[2J', observed='a\\x1b', expected='\\nb')))"
    (rule,) = ownrules.read([written(tmp_path, body)])
    result = check(load(RFC), own=[rule], rules={"LAB007"})
    found = result.findings[0]
    assert (found.cause, found.observed, found.expected) == ("?[2J", "a?", "?b")


def test_rules_of_our_own_would_pass(tmp_path: Path) -> None:
    """What is asked of others, ours have: but for the id."""
    for rule in RULES:
        mine = replace(rule, id="LAB001", name="x")
        assert [*wellformed.flaws(mine, ())] == [], rule.id

    def judged(judge: Any) -> Any:
        def check_it(*words: Any) -> Judgement | None:
            judgement: Judgement | None = judge(*words)
            assert judgement is None or not [*wellformed.wrongs(judgement)]
            return judgement

        return check_it

    others = [
        replace(rule, id=f"LAB{n:03}", name=f"x{n}", judge=judged(rule.judge))
        for n, rule in enumerate(RULES)
    ]
    result = check(load(RFC), own=others)
    ours = [one.findings for one in result.rules if one.rule.id.startswith("CDM")]
    theirs = [one.findings for one in result.rules if one.rule.id.startswith("LAB")]
    assert ours == theirs
    assert sum(ours) == 15


def test_a_fault_is_raised_by_whoever_judges(tmp_path: Path) -> None:
    (rule,) = ownrules.read([written(tmp_path, "return 1 / 0")])
    assert isinstance(rule, Rule)
    trace = mixing()
    with pytest.raises(RuleFault) as error:
        check(trace, own=[rule])
    assert error.value.exit_status == 2
    path = save(trace, tmp_path / "x.arrows")
    with pytest.raises(RuleFault):
        check(load(path), own=[rule])
    began = Began(event=next(iter(trace.events)))
    assert rule.judge(began, trace.terms, "intended") is None
