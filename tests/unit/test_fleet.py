"""Many recordings as a whole: documents, sums, and what is printed of them."""

from __future__ import annotations

import copy
import csv
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from fleets import FAILED, FOREIGN, NONE, RFC, done, validator

from cdmtrace.analysis import aggregate, baseline, fleet, frames, sums
from cdmtrace.fleet import work
from cdmtrace.render import fleet as render
from cdmtrace.render.tables import FORMATS

CHECK, REPORT = validator("fleet-check-1.json"), validator("fleet-report-1.json")
STALE_TAG = "1b7f4b7b2d775104"
FILES = (NONE, RFC, FOREIGN)


@pytest.fixture(scope="module")
def judged() -> list[Any]:
    return [done(work.check, path, full=True) for path in FILES]


@pytest.fixture(scope="module")
def counted() -> list[Any]:
    return [done(work.report, path, full=True) for path in FILES]


def plain(told: object) -> Any:
    return json.loads(json.dumps(told))


# --- check --------------------------------------------------------------------


def test_a_document_obeys_its_schema(judged: list[Any], counted: list[Any]) -> None:
    for failed in ([], [FAILED]):
        CHECK.validate(plain(fleet.check(judged, failed, "intended")))
        REPORT.validate(plain(fleet.report(counted, failed)))
    CHECK.validate(plain(fleet.check([], [FAILED], "np")))


@pytest.mark.parametrize(
    "damage",
    [
        lambda d: d.update(verdict="good"),
        lambda d: d.update(status=130),
        lambda d: d["recordings"][0].pop("check"),
        lambda d: d["recordings"][0]["check"].pop("trace"),
        lambda d: d["findings"][0].update(recordings=[]),
        lambda d: d["findings"][0].update(fingerprint="0x1"),
        lambda d: d["rules"][0]["recordings"].update(good=1),
        lambda d: d["failed"].append({"name": "x"}),
    ],
)
def test_the_schema_minds(
    judged: list[Any], damage: Callable[[dict[str, Any]], object]
) -> None:
    shown = plain(fleet.check(judged, [], "intended"))
    damage(shown)
    with pytest.raises(jsonschema.ValidationError):
        CHECK.validate(shown)


def test_a_finding_is_told_once_and_where_it_is(judged: list[Any]) -> None:
    told = fleet.check(judged, [], "intended")
    ids = [one["fingerprint"] for one in told["findings"]]
    assert len(ids) == len(set(ids)) == 10
    (stale,) = (one for one in told["findings"] if one["fingerprint"] == STALE_TAG)
    assert [one["name"] for one in stale["recordings"]] == [str(RFC), str(FOREIGN)]
    assert stale["findings"] == 2
    assert sum(one["findings"] for one in told["findings"]) == 30
    for rule in told["rules"]:
        assert sum(rule["recordings"].values()) == 3
    (missing,) = (one for one in told["rules"] if one["rule"] == "CDM002")
    assert missing["findings"] == 16
    assert missing["recordings"]["violated"] == 2
    assert missing["recordings"]["clean"] == 1


def test_what_most_have_comes_first() -> None:
    one, two = done(work.check, RFC, "one"), done(work.check, NONE, "two")
    alone = copy.deepcopy(one["findings"][0])
    alone.update(fingerprint="0" * 16)
    known = copy.deepcopy(one["findings"][1])
    known.update(fingerprint="1" * 16, suppressed={"reason": "known"})
    one["findings"] += [alone, known]
    two["findings"] = [*one["findings"][:1], known]
    ids = [f["fingerprint"] for f in fleet.check([one, two], [], "x")["findings"]]
    assert ids[0] == one["findings"][0]["fingerprint"]
    assert ids[-1] == "1" * 16
    assert "0" * 16 in ids[1:-1]


@pytest.mark.parametrize(
    ("statuses", "failed", "worst"),
    [
        ([], [], 0),
        ([0, 0], [], 0),
        ([0, 3], [], 3),
        ([3, 1, 0], [], 1),
        ([1, 2], [], 2),
        ([0], [FAILED], 2),
    ],
)
def test_the_status_is_the_worst(
    judged: list[Any], statuses: list[int], failed: list[Any], worst: int
) -> None:
    several = [{**judged[0], "status": one} for one in statuses]
    assert fleet.check(several, failed, "intended")["status"] == worst


@pytest.mark.parametrize(
    ("verdicts", "worst"),
    [
        (["clean", "violated", "inconclusive"], "violated"),
        (["clean", "inconclusive"], "inconclusive"),
        (["vacuous", "clean"], "clean"),
        (["unchecked", "vacuous"], "vacuous"),
        ([], "unchecked"),
    ],
)
def test_the_verdict_is_the_worst(
    judged: list[Any], verdicts: list[str], worst: str
) -> None:
    several = [{**judged[0], "verdict": one} for one in verdicts]
    assert fleet.check(several, [], "intended")["verdict"] == worst


def test_a_baseline_is_stale_where_none_has_it(judged: list[Any]) -> None:
    entries = {
        STALE_TAG: baseline.Entry(fingerprint=STALE_TAG, reason="x"),
        "0" * 16: baseline.Entry(fingerprint="0" * 16, reason="x", rule="CDM001"),
        "1" * 16: baseline.Entry(fingerprint="1" * 16, reason="x", rule="CDM008"),
    }
    known = baseline.Baseline(file="b", entries=entries)
    told = fleet.check(judged, [], "intended")
    # Nothing was there for CDM008 to judge.
    assert [one.fingerprint for one in fleet.stale(known, told)] == ["0" * 16]
    # What was not read may have it.
    told = fleet.check(judged, [FAILED], "intended")
    assert fleet.stale(known, told) == []
    assert fleet.stale(known, fleet.check([], [], "intended")) == []


def test_what_is_not_wanted_is_not_sent() -> None:
    told = done(work.check, RFC)
    assert "check" not in told
    assert "witness" not in json.dumps(told)
    assert "tables" not in done(work.report, RFC)


# --- report -------------------------------------------------------------------


def test_the_sums_are_those_of_the_tables(counted: list[Any]) -> None:
    told = fleet.report(counted, [])
    alone = [aggregate.report(frames.load(path)) for path in FILES]
    assert [one["tables"] for one in counted] == alone
    assert told["tables"].keys() >= {"Processes", "Nodes", "Migrations"}
    for title, key in (
        ("Nodes", "pages came"),
        ("Arrivals by cause", "bytes"),
        ("Migrations", "pages"),
        ("Pages that move to and fro", "moves"),
        ("Changes of vm_flags", "changes"),
        ("Processes", "pages left"),
    ):
        total = sum(row[key] for one in alone for row in one[title])
        assert total > 0
        assert sum(row[key] for row in told["tables"][title]) == total, title
    (story,) = told["tables"]["Processes"]
    assert story["processes"] == sum(len(one["Processes"]) for one in alone)
    assert story["recordings"] == 3


def test_rows_of_the_same_keys_are_one() -> None:
    row = {"cause": "mbind", "from": 0, "to": 1, "pages": 2, "bytes": 8}
    other = {**row, "to": 2, "pages": 9}
    one = sums.of_one({"Migrations": [row, {**row, "pages": 3}]})
    two = sums.of_one({"Migrations": [other, row]})
    assert sums.added([one, two])["Migrations"] == [
        {**other, "recordings": 1},
        {**row, "pages": 7, "bytes": 24, "recordings": 2},
    ]


def test_what_nobody_saw_is_no_zero() -> None:
    row = {"node": 1, "service": "ksm"}
    pages = {"pages came": 1, "pages left": 2, "pages stayed": 3}
    blind, seen = {**row, **dict.fromkeys(pages)}, {**row, **pages}

    def added(*rows: dict[str, Any]) -> list[dict[str, Any]]:
        return sums.added(sums.of_one({aggregate.SERVICES: [one]}) for one in rows)[
            aggregate.SERVICES
        ]

    assert added(blind, seen) == [{**seen, "recordings": 2, "not seen in": 1}]
    assert added(blind, blind) == [{**blind, "recordings": 2, "not seen in": 2}]


# --- what is printed ----------------------------------------------------------


def test_the_text_says_what_there_is(judged: list[Any]) -> None:
    told = fleet.check(judged, [FAILED], "intended")
    text = render.check(told, "table")
    assert max(map(len, text.splitlines())) < 80
    for one in told["findings"]:
        assert text.count(one["fingerprint"]) == 1
    assert "CDM001 1, CDM002 8, CDM003 2" in text
    assert "  bad.arrows: is not a trace file\n    hint: cdmtrace record\n" in text
    assert text.endswith("verdict: violated: 2 violated, 1 clean, 1 not read\n")
    # The worst comes first.
    assert text.rindex(str(RFC)) < text.rindex(str(NONE))
    nothing = render.check(fleet.check([], [FAILED], "intended"), "table")
    assert nothing.endswith("verdict: none: 1 not read\n")


def test_a_long_list_is_cut_and_says_so(judged: list[Any]) -> None:
    several = [{**judged[1], "name": f"{n}.arrows"} for n in range(25)]
    text = render.check(fleet.check(several, [], "intended"), "table")
    assert "0.arrows, 1.arrows, 2.arrows, and 22 more" in text
    assert "5 more, in --format csv" in text


@pytest.mark.parametrize("how", FORMATS)
def test_names_move_no_cursor(judged: list[Any], how: str) -> None:
    """Who lists a bucket is told whatever somebody has called a file."""
    one = copy.deepcopy(judged[1])
    one["name"] = one["trace"]["files"][0] = "a\x1b[2J\udcff.arrows"
    failed = {**FAILED, "name": "b\x1b", "message": "b\x1b: bad"}
    told = render.check(fleet.check([one], [failed], "intended"), how)
    told.encode()
    assert "\x1b" not in told
    report = done(work.report, RFC)
    report["name"] = one["name"]
    told = render.report(fleet.report([report], [failed]), how)
    told.encode()
    assert "\x1b" not in told


def test_programs_get_rows(judged: list[Any], counted: list[Any]) -> None:
    told = render.check(fleet.check(judged, [FAILED], "intended"), "ndjson")
    rows = [json.loads(row) for row in told.splitlines()]
    tables = [row["table"] for row in rows]
    assert tables.count("findings") == 10
    assert tables.count("found in") == 20
    assert tables.count("traces") == 3
    assert tables.count("Not read") == 1
    told = render.report(fleet.report(counted, []), "csv")
    heads = [row for row in csv.reader(io.StringIO(told)) if row[0] == "table"]
    assert [row[-1] for row in heads[1:3]] == ["recordings"] * 2
    assert "## Migrations" in render.report(fleet.report(counted, []), "markdown")


def test_the_report_says_what_a_recording_lacks(
    counted: list[Any], tmp_path: Path
) -> None:
    cut = tmp_path / "cut.arrows"
    cut.write_bytes(RFC.read_bytes()[:100_000])
    one = done(work.report, cut, "x" * 50)
    one["not_attached"] = ["ksm", "alloc"]
    text = render.report(fleet.report([*counted, one], []), "table")
    (line,) = (line for line in text.splitlines() if "xxx" in line)
    assert f"end, 2 probes  ..{'x' * 28}" in line
    # Those with the most pages are first.
    assert text.index(str(NONE)[-20:]) > text.index(str(RFC)[-20:])


def test_the_next_command_is_about_a_file_that_is_here(judged: list[Any]) -> None:
    far = copy.deepcopy(judged[1])
    far["name"] = far["trace"]["files"][0] = "s3://bucket/x.arrows"
    told = fleet.check([far], [], "intended")
    assert render.next_command(told, []) is None
    told = fleet.check([far, judged[2]], [], "intended")
    command = render.next_command(told, ["--profile", "rfc-v2"])
    assert command is not None
    assert command.startswith(f"cdmtrace explain --profile rfc-v2 {FOREIGN} ")
    strange = copy.deepcopy(judged[1])
    strange["trace"]["files"].append("a\x1b[2J.arrows")
    told = fleet.check([strange, judged[2]], [], "intended")
    assert str(FOREIGN) in (render.next_command(told, []) or "")
    assert render.next_command(fleet.check(judged[:1], [], "intended"), []) is None
