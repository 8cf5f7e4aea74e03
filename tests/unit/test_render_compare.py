"""What ``compare`` prints, and the document that it is made of."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable
from pathlib import Path

import jsonschema
import pytest
import referencing
from comparisons import comparisons, judged, story, with_filters
from rulecases import CASES, nothing, run
from simkernel import SimKernel, Task

from cdmtrace.analysis import check, document
from cdmtrace.analysis.compare import Status, compare
from cdmtrace.render import compare as render
from cdmtrace.render import divergence, tables
from cdmtrace.units import count

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
        assert f"{count(trace['events'], 'event')}, Linux {trace['kernel']}" in text
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


def test_markdown_says_why_where_there_is_a_reason() -> None:
    for name, told in (("gone", False), ("not in B", True)):
        text = render.render(document.compare(COMPARISONS[name]), "markdown")
        assert ("why" in text) == told
        assert ("not once was there a page that KSM" in text) == told
        assert " ? " not in text


def test_no_name_ends_a_cell_of_markdown() -> None:
    kernel = SimKernel("one-way")
    CASES["CDM001"].breaks(kernel.process("a|b"))
    shown = document.compare(compare(check(kernel.trace()), story()))
    (line,) = [
        line
        for line in render.render(shown, "markdown").splitlines()
        if shown["findings"][0]["finding"]["fingerprint"] in line
    ]
    assert r" a\|b " in line
    assert len(re.findall(r"(?<!\\)\|", line)) == 1 + len(
        ("rule", "name", "severity", "cause", "comm", "fingerprint", "A", "B")
    )


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
    assert render.next_command(shown, ()) == (
        f"the first one that {words} as an argument: cdmtrace explain "
        f"'one file.arrows' two.arrows {id_}"
    )


def test_the_next_command_of_what_is_unchanged_and_of_nothing() -> None:
    same = document.compare(compare(story("rfc"), story("rfc")))
    assert "that is in both as an argument: cdmtrace explain " in (
        render.next_command(same, ())
    )
    nothing_found = document.compare(COMPARISONS["nothing"])
    nothing_found["b"]["trace"]["files"] = ["b.arrows"]
    assert render.next_command(nothing_found, ()) == (
        "what happened in B: cdmtrace report b.arrows"
    )


def test_the_next_command_has_the_options() -> None:
    mended, bad = story().trace, story("rfc").trace
    results = (check(trace, profile="rfc-v2") for trace in (bad, mended))
    shown = document.compare(compare(*results))
    assert "cdmtrace explain --profile rfc-v2 " in render.next_command(
        shown, ("--profile", "rfc-v2")
    )
