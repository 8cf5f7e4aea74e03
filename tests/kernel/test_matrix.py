"""The matrix from end to end, in one guest: rows in which every rule is found once.

``cdmtrace lab matrix`` with no more words is all of it, and takes half an hour in an
emulated guest.

That each step of a scenario comes out as it says, the program judges itself, by what
user space can see. The lines of ``defects`` name a rule, a place, and whether the
kernel has done there what the rule forbids. The recordings are held against them: a
finding of that rule in that place, or none.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from places import Place, places
from scenariotap import failures

from cdmtrace.analysis import check, load
from cdmtrace.analysis.result import Result
from cdmtrace.lab.expectations import RULES

pytestmark = pytest.mark.timeout(7200)

ROWS = (
    *("none", "rfc", "numa-scanned", "mergeable-honoured", "workqueue-tag"),
    *("mprotect-drop", "fork-drop", "split-drop"),
    *("unlocked-clear+slow-rmw", "task-policy+fault-tag+slow-rmw"),
)

TOLD_BEFORE = {"stale-fork": ("CDM016", "CDM001")}
"""Step -> its rule, and the one that has told of the same tag in the parent."""
ONE_IS_ENOUGH = {"ksm", "two-faults"}
"""Steps that do the same in several places. Of two VMAs with the same pages, KSM puts
those of the one into the other; and two threads need not meet each time."""
NO_QUIRK_FOR_IT = {"CDM020"}
"""Rules that are no matter of the kernel's: no quirk makes the tag's bit another's."""


def matrix(*words: str) -> tuple[int, dict[str, Any], str]:
    """Return the exit status, the document, and what was said."""
    command = [sys.executable, "-m", "cdmtrace", "lab", "matrix", "--format", "json"]
    command += ["--quirks", ",".join(ROWS), *words]
    result = subprocess.run(command, text=True, capture_output=True, check=False)
    return result.returncode, json.loads(result.stdout), result.stderr


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory with the recordings of one run, which was as expected."""
    directory = tmp_path_factory.mktemp("matrix") / "kept"
    status, document, said = matrix("--keep", str(directory))
    assert status == 0, json.dumps(document, indent=2) + said
    return directory


@pytest.fixture(scope="module")
def results(recorded: Path) -> dict[str, Result]:
    """Row -> what its recording shows."""
    return {row: check(load(recorded / f"{row}.arrows")) for row in ROWS}


def told_by_defects(recorded: Path, row: str) -> list[Place]:
    """Return what the lines of ``defects`` say."""
    return places((recorded / f"{row}.defects.tap").read_text().splitlines())


def test_what_is_found_is_what_must_be(recorded: Path) -> None:
    status, document, _ = matrix("--from", str(recorded))
    assert status == 0
    assert [row["row"] for row in document["rows"]] == list(ROWS)
    for row in document["rows"]:
        assert row["problem"] is None
        assert [cell["rule"] for cell in row["cells"]] == list(RULES)
    none, rfc, *_ = document["rows"]
    assert {cell["findings"] for cell in none["cells"]} == {0}
    assert sum(cell["findings"] > 0 for cell in rfc["cells"]) > 12


@pytest.mark.parametrize("row", ROWS)
def test_every_step_comes_out(recorded: Path, row: str) -> None:
    for tap in recorded.glob(f"{row}.*.tap"):
        lines = tap.read_text().splitlines()
        assert failures(lines) == []
    assert len(told_by_defects(recorded, row)) > 20


@pytest.mark.parametrize("row", ROWS)
def test_each_rule_finds_what_was_done_and_nothing_else(
    recorded: Path, results: dict[str, Result], row: str
) -> None:
    """In the places that the program names; elsewhere, other rules have their say."""
    told, findings = told_by_defects(recorded, row), results[row].findings
    wrong = []
    for place in told:
        if place.shown is None:
            continue
        rule, stands_for = TOLD_BEFORE.get(place.step, (place.rule, place.rule))
        assert rule == place.rule
        here = [place]
        if place.step in ONE_IS_ENOUGH:
            here = [one for one in told if one.step == place.step]
        found = any(one.met_by(f, stands_for) for one in here for f in findings)
        if found is not place.shown:
            wrong.append(place)
    assert wrong == []


def test_every_rule_has_fired(results: dict[str, Result]) -> None:
    fired = {f.rule.id for result in results.values() for f in result.findings}
    assert set(RULES) - fired == NO_QUIRK_FOR_IT


def test_each_recording_says_which_quirks_were_on_by_what_it_holds(
    recorded: Path, tmp_path: Path
) -> None:
    """Under another row's name a recording is not as expected."""
    names = {row: row for row in ROWS} | {"none": "rfc", "rfc": "none"}
    for row, other in names.items():
        (tmp_path / f"{row}.arrows").symlink_to(recorded / f"{other}.arrows")
        for tap in recorded.glob(f"{row}.*.tap"):
            (tmp_path / tap.name).symlink_to(tap)
    status, document, _ = matrix("--from", str(tmp_path))
    assert status == 1
    expected = [row not in ("none", "rfc") for row in ROWS]
    assert [row["as_expected"] for row in document["rows"]] == expected
