from __future__ import annotations

import contextlib
import csv
import io
import json
import re
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import pytest

from cdmtrace import recorder
from cdmtrace.analysis.rules import RULES
from cdmtrace.errors import ExitStatus, GuestDied, LabError, RecordError, UnreadableFile
from cdmtrace.lab import (
    expectations,
    matrix,
    matrixrun,
    quirks,
    recordings,
    scenarios,
)
from cdmtrace.lab.expectations import ROWS, Row
from cdmtrace.lab.guestscript import STATUSES
from cdmtrace.lab.matrix import Found, Outcome, Recording
from cdmtrace.loader.program import ProgramLoader
from cdmtrace.options import Outcome as Ended
from cdmtrace.render import matrix as text
from cdmtrace.render.tables import FORMATS

BY_NAME = {row.name: row for row in ROWS}
CLEAN = Found(verdict="clean", checked=3)
VIOLATED = Found(verdict="violated", checked=3, findings=2, causes=("fault", "thp"))
VACUOUS = Found(verdict="vacuous")


def row(**more: Any) -> Row:
    """A row that must have CDM001, may have CDM002, and has no occasion for 3."""
    given: dict[str, Any] = {
        "name": "one-way",
        "asked": ("one-way",),
        "scenarios": ("story", "gates:swap,collapse"),
        "must": {"CDM001": "it says so"},
        "may": {"CDM002": "by chance"},
        "vacuous": {"CDM003": "nobody writes"},
        "judged": frozenset({"CDM004"}),
    }
    return Row(**(given | more))


def good() -> dict[str, Found]:
    return {
        "CDM001": VIOLATED,
        "CDM002": VIOLATED,
        "CDM003": VACUOUS,
        "CDM004": CLEAN,
        "CDM005": VACUOUS,
    }


def result(
    found: Mapping[str, Found] | None = None, status: int | None = 0, **more: Any
) -> matrix.Matrix:
    one = row(**more)
    where = Recording(trace=Path("dir/one-way.arrows"), status=status)
    told = good() | dict(found or {})
    return matrix.compare([one], {one.name: where}, {one.name: told})


# --- The table ----------------------------------------------------------------


def test_every_quirk_has_a_row_of_its_own_and_every_name_is_there_once() -> None:
    assert {quirk.name for quirk in quirks.QUIRKS} < BY_NAME.keys()
    assert len(BY_NAME) == len(ROWS)
    for quirk in quirks.QUIRKS:
        assert BY_NAME[quirk.name].quirks == quirks.resolve(quirk.name)
    assert BY_NAME["none"].quirks == ()
    assert BY_NAME["rfc"].quirks == quirks.resolve("rfc")


def test_the_table_is_about_the_rules_that_there_are() -> None:
    # One that only np asks for is about a node, and no quirk.
    listed = tuple(rule.id for rule in RULES if rule.profiles != {"np"})
    assert listed == expectations.RULES
    for one in ROWS:
        named = [*one.must, *one.may, *one.vacuous]
        assert len(set(named)) == len(named), one.name
        assert {*named, *one.judged} <= set(expectations.RULES), one.name
        assert all([*one.must.values(), *one.may.values(), *one.vacuous.values()])


def test_every_rule_must_be_found_somewhere_or_it_is_said_why_not() -> None:
    found = {rule for one in ROWS for rule in one.must}
    assert found | expectations.UNSHOWN.keys() == set(expectations.RULES)
    assert found.isdisjoint(expectations.UNSHOWN)


def test_without_quirks_nothing_may_be_found_and_all_is_judged_or_explained() -> None:
    none = BY_NAME["none"]
    assert not none.must
    assert not none.may
    assert none.judged == set(expectations.RULES) - none.vacuous.keys()


def test_a_row_that_expects_nothing_says_why() -> None:
    for one in ROWS:
        assert one.must or one.remark or one.name == "none", one.name


def test_rows_name_scenarios_and_steps_that_there_are() -> None:
    known = scenarios.scenarios()
    for one in ROWS:
        for scenario in one.scenarios:
            name, steps = matrixrun.split(scenario)
            source = known[name].source.read_text()
            for step in filter(None, steps.split(",")):
                assert f'{{ "{step}",' in source, f"{name} {step}"


def test_quirks_that_crash_are_alone() -> None:
    assert {one.name for one in ROWS if one.crashes} == {"default-oops", "null-vma"}


# --- The comparison -----------------------------------------------------------


@pytest.mark.parametrize(
    ("rule", "verdict", "expected"),
    [
        ("CDM001", "violated", Outcome.FOUND),
        ("CDM001", "clean", Outcome.MISSING),
        ("CDM001", "inconclusive", Outcome.MISSING),
        ("CDM001", "unchecked", Outcome.MISSING),
        ("CDM001", "vacuous", Outcome.MISSING),
        ("CDM002", "violated", Outcome.POSSIBLE),
        ("CDM002", "clean", Outcome.CLEAR),
        ("CDM002", "inconclusive", Outcome.CLEAR),
        ("CDM003", "vacuous", Outcome.CLEAR),
        ("CDM003", "clean", Outcome.OCCASION),
        ("CDM003", "violated", Outcome.SURPLUS),
        ("CDM003", "unchecked", Outcome.OPEN),
        ("CDM004", "clean", Outcome.CLEAR),
        ("CDM004", "vacuous", Outcome.IDLE),
        ("CDM004", "violated", Outcome.SURPLUS),
        ("CDM004", "inconclusive", Outcome.OPEN),
        ("CDM005", "vacuous", Outcome.CLEAR),
        ("CDM005", "unchecked", Outcome.OPEN),
        ("CDM005", "violated", Outcome.SURPLUS),
    ],
)
def test_a_cell(rule: str, verdict: str, expected: Outcome) -> None:
    found = Found(verdict=verdict)
    assert matrix.outcome(row(), rule, found) is expected
    compared = result({rule: found})
    (line,) = compared.lines
    assert line.as_expected == (expected in matrix.GOOD)
    assert compared.status == (0 if expected in matrix.GOOD else 1)


def test_what_was_not_recorded_is_trouble_whatever_the_rest_is() -> None:
    compared = matrix.compare([row(), row(name="rfc")], {}, {})
    assert compared.absent == ("one-way", "rfc")
    assert compared.status is ExitStatus.TROUBLE
    assert matrix.compare([], {}, {}).status is ExitStatus.TROUBLE


@pytest.mark.parametrize(
    ("status", "asked", "problem"),
    [
        (0, "one-way", None),
        (None, "one-way", None),
        (1, "one-way", "ended with 1"),
        (124, "one-way", "too long"),
        (134, "one-way", "ended with 134"),
        (134, "default-oops", None),
        (0, "default-oops", "did not die"),
        (1, "default-oops", "did not die"),
    ],
)
def test_how_a_recording_ended(
    status: int | None, asked: str, problem: str | None
) -> None:
    compared = result(status=status, asked=(asked,))
    (line,) = compared.lines
    assert (problem or "") in (line.problem or "")
    assert bool(line.problem) == bool(problem) == bool(compared.status)


# --- What is printed ----------------------------------------------------------


def everything() -> matrix.Matrix:
    """All rows; everywhere the same is found."""
    found = dict.fromkeys(expectations.RULES, CLEAN) | {"CDM001": VIOLATED}
    return matrix.compare(
        ROWS,
        {one.name: Recording(trace=Path("x.arrows"), status=1) for one in ROWS},
        {one.name: found for one in ROWS},
    )


def test_the_text_form_fits_in_80_columns_and_tells_what_is_otherwise() -> None:
    lines = text.render(everything(), "table").splitlines()
    assert max(map(len, lines)) < 80
    head = lines[:2]
    assert [a + b for a, b in zip(head[0], head[1], strict=True)][-1] == "20"
    (grid,) = (line for line in lines if re.match(r"one-way +[X.+?-]", line))
    assert grid.split() == ["one-way", "X", "-", "!"]
    told = " ".join(" ".join(lines).split())
    assert "one-way: CDM017 must be found, and is not: clean, checked 3 times" in told
    assert "none: CDM001 must not be found, and is: violated, 2 findings" in told
    assert "(fault, thp)" in told


def test_where_all_is_well_there_is_the_grid_and_a_sum() -> None:
    assert text.render(result(), "table") == (
        "CDM0..   0 0 0 0 0\n         1 2 3 4 5\none-way  X x      \n".replace(
            "      \n", "\n"
        )
        + "\n"
        "X  must be found, and is\n"
        "x  may be found, and is\n"
        "   blank: must not be found, and is not\n"
        "\n"
        "1 row, 1 as expected; 1 found, 0 missing, 0 surplus\n"
    )


def test_json_and_rows_have_every_cell() -> None:
    compared = result({"CDM004": VIOLATED})
    document = json.loads(text.render(compared, "json"))
    assert document["schema"] == "cdmtrace.matrix/1"
    assert document["as_expected"] is False
    (one,) = document["rows"]
    assert (one["row"], one["quirks"]) == ("one-way", ["one-way"])
    cells = {cell["rule"]: cell for cell in one["cells"]}
    assert cells["CDM004"]["outcome"] == "surplus"
    assert cells["CDM004"]["causes"] == ["fault", "thp"]
    assert cells["CDM001"]["expected"] == "must"
    assert cells["CDM001"]["because"] == "it says so"
    rows = [json.loads(line) for line in text.render(compared, "ndjson").splitlines()]
    assert [cell["rule"] for cell in rows] == list(cells)
    read = list(csv.DictReader(io.StringIO(text.render(compared, "csv"))))
    assert [cell["outcome"] for cell in read] == [c["outcome"] for c in cells.values()]


@pytest.mark.parametrize("form", FORMATS)
def test_nothing_at_all_can_be_printed(form: str) -> None:
    printed = text.render(matrix.compare([row()], {}, {}), form)
    assert ("one-way" in printed) == (form not in ("csv", "ndjson"))


def test_markdown_has_a_column_for_each_rule() -> None:
    printed = text.render(everything(), "markdown").splitlines()
    assert printed[0].count("|") == len(expectations.RULES) + 2
    assert len({line.count("|") for line in printed if line.startswith("|")}) == 1
    assert sum(line.startswith("| `") for line in printed) == len(ROWS)


# --- Guests -------------------------------------------------------------------


def programs(directory: Path, **scripts: str) -> dict[str, Path]:
    """Shell scripts in the place of scenarios."""
    made = {}
    for name, script in scripts.items():
        made[name] = directory / name
        made[name].write_text(f"#!/bin/sh\n{script}\n")
        made[name].chmod(0o700)
    return made


def test_the_script_runs_every_scenario_with_its_quirks_and_steps(
    tmp_path: Path,
) -> None:
    made = programs(tmp_path, story='echo "$*"; exit 3', gates='echo "$*"')
    words = ["sh", "-c", matrixrun.script(row(asked=("thp-untagged",)), made)]
    assert subprocess.run(words, cwd=tmp_path, check=False).returncode == 3
    told = "--quirks bind-only,fault-tag,thp-untagged"
    assert (tmp_path / "one-way.story.tap").read_text() == f"{told}\n"
    steps = (tmp_path / "one-way.gates.tap").read_text()
    assert steps == f"{told} --step swap,collapse\n"


def fake_boot(directory: Path, statuses: Mapping[str, int], dies: str = "") -> Any:
    """A guest that leaves a trace for each row of its orders."""
    booted = []

    def boot(run_dir: Path, command: tuple[str, ...], seconds: float) -> int:
        booted.append((run_dir.relative_to(directory), seconds))
        assert command[-2] == recordings.__name__
        noted = {}
        for order in json.loads(Path(command[-1]).read_text()):
            name = order["name"]
            (run_dir / f"{name}.arrows").write_text(name)
            if name == dies:
                raise GuestDied("it died")
            noted[name] = statuses.get(name, 0)
            (run_dir / STATUSES).write_text(json.dumps(noted))
        return 0

    return boot, booted


def test_one_guest_for_all_and_one_for_each_that_dies(tmp_path: Path) -> None:
    rows = [BY_NAME[name] for name in ("none", "default-oops", "one-way")]
    boot, booted = fake_boot(tmp_path, {"one-way": 1}, dies="default-oops")
    statuses = matrixrun.record(
        rows, tmp_path, boot=boot, compiled=lambda name: Path("/programs") / name
    )
    assert statuses == {"none": 0, "one-way": 1, "default-oops": 134}
    assert [str(where) for where, _ in booted] == [".", "default-oops"]
    assert booted[0][1] > booted[1][1]
    found = matrixrun.find([*rows, BY_NAME["rfc"]], tmp_path)
    assert {name: one.status for name, one in found.items()} == statuses
    assert found["default-oops"].trace.read_text() == "default-oops"
    assert found["none"].trace == tmp_path / "none.arrows"


def test_what_a_guest_had_noted_when_it_died_is_kept(tmp_path: Path) -> None:
    boot, _ = fake_boot(tmp_path, {}, dies="one-way")
    rows = [BY_NAME[name] for name in ("none", "one-way", "rfc")]
    with pytest.raises(GuestDied):
        matrixrun.record(rows, tmp_path, boot=boot, compiled=Path)
    found = matrixrun.find(rows, tmp_path)
    assert {name: one.status for name, one in found.items()} == {
        "none": 0,
        "one-way": None,
    }


def test_a_guest_that_records_nothing_is_trouble(tmp_path: Path) -> None:
    (tmp_path / "stderr").write_text("no bcc")
    with pytest.raises(LabError, match="ended with 1") as caught:
        matrixrun.record([BY_NAME["none"]], tmp_path, boot=lambda *_: 1, compiled=Path)
    assert caught.value.details == "no bcc"


@pytest.mark.parametrize("written", ["{", "[]"])
def test_notes_that_are_not_ours(tmp_path: Path, written: str) -> None:
    (tmp_path / STATUSES).write_text(written)
    with pytest.raises(UnreadableFile):
        matrixrun.find([row()], tmp_path)
    with pytest.raises(UnreadableFile, match="no directory"):
        matrixrun.find([row()], tmp_path / "none")


def test_scenarios_in_the_place_of_a_row_s_own() -> None:
    assert matrixrun.with_scenarios(row(), None) == row().scenarios
    chosen = matrixrun.with_scenarios(row(), "story, gates:swap/collapse")
    assert chosen == ("story", "gates:swap,collapse")
    with pytest.raises(LabError, match="unknown scenario"):
        matrixrun.with_scenarios(row(), "no-such")


class Program:
    """Stands in for the program: its methods take the place of ProgramLoader's.

    ``log`` has what was done, in order.
    """

    log: ClassVar[list[str]] = []

    @staticmethod
    def make(how: str, numbers: Mapping[str, int]) -> None:
        Program.log.append(f"compiled for {numbers['RECORDER']}")

    def attach(self, plans: tuple[Any, ...]) -> None:
        Program.log.append("attached")

    def close(self) -> None:
        Program.log.append("detached")

    def forget(self) -> None:
        Program.log.append("forgotten")


@pytest.fixture
def in_a_guest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """debugfs is a file, and the program none; record runs the command only."""

    def record(options: Any, *, say: Any, load: Any) -> Ended:
        if options.command == ("trouble",):
            raise RecordError("no room")
        keys = {"KEY0": len(Program.log), "RECORDER": 7}
        with contextlib.closing(load(keys)) as loader:
            loader.attach(())
            say("recording")
            options.output.write_text(Path("debugfs").read_text())
            status = subprocess.run(options.command, check=False).returncode
        return Ended(events=5, lost=1, size=0, reason="", status=status, missing=())

    Program.log.clear()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(recorder, "record", record)
    monkeypatch.setattr(recordings, "headers_for", lambda how: contextlib.nullcontext())
    monkeypatch.setattr(recordings, "make_program", Program.make)
    for name in ("attach", "forget", "close"):
        monkeypatch.setattr(ProgramLoader, name, getattr(Program, name))
    monkeypatch.setattr(quirks, "DEBUGFS_FILE", "debugfs")
    return tmp_path


def order(name: str, *command: str) -> dict[str, Any]:
    return {
        "name": name,
        "quirks": f"<{name}>",
        "cdm_nodes": None,
        "command": command,
    }


def run(directory: Path, *orders: dict[str, Any]) -> dict[str, int]:
    (directory / "orders").write_text(json.dumps(orders))
    recordings.run(directory / "orders")
    statuses: dict[str, int] = json.loads((directory / STATUSES).read_text())
    return statuses


def test_each_recording_has_its_quirks_its_words_and_its_status(
    in_a_guest: Path,
) -> None:
    statuses = run(
        in_a_guest,
        order("one", "sh", "-c", "exit 5"),
        order("two", "trouble"),
        order("three", "true"),
    )
    assert statuses == {"one": 5, "two": 125, "three": 0}
    assert (in_a_guest / "one.arrows").read_text() == "<one>"
    assert (in_a_guest / "three.arrows").read_text() == "<three>"
    assert (in_a_guest / "two.stderr").read_text() == "no room\n"
    assert (in_a_guest / "one.stderr").read_text() == "recording\n5 events, 1 lost\n"


def test_one_program_serves_all_and_forgets_between_them(in_a_guest: Path) -> None:
    run(in_a_guest, order("one", "true"), order("two", "true"))
    assert Program.log == [
        *("compiled for 7", "attached", "forgotten", "forgotten", "detached")
    ]


def test_a_program_for_another_machine_is_not_shared(in_a_guest: Path) -> None:
    kept = recordings.Kept()
    first = kept.load({"KEY0": 1, "CDM_NODES": 2, "RECORDER": 7})
    assert kept.load({"KEY0": 5, "CDM_NODES": 2, "RECORDER": 7}) is first
    with pytest.raises(LabError, match="changed"):
        kept.load({"KEY0": 1, "CDM_NODES": 3, "RECORDER": 7})
