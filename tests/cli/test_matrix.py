from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import simstory
from simfile import save
from simkernel import SimKernel

from cdmtrace.cli import main
from cdmtrace.errors import LabError
from cdmtrace.lab import matrix, matrixrun
from cdmtrace.lab.expectations import ROWS, RULES, Row

GOLDEN = Path(__file__).parent.parent / "golden"
FOUND = ("CDM001", "CDM002", "CDM003", "CDM005", "CDM010", "CDM011", "CDM014")
RFC = Row(
    name="rfc",
    asked=("rfc",),
    scenarios=("story",),
    must=dict.fromkeys(FOUND, "the story tells it"),
)
NONE = Row(
    name="none",
    asked=(),
    scenarios=("story",),
    vacuous={"CDM012": "no call fails"},
    judged=frozenset({"CDM001", "CDM002", "CDM003"}),
)


def table(monkeypatch: pytest.MonkeyPatch, *rows: Row) -> None:
    monkeypatch.setattr(matrix, "ROWS", rows)


@pytest.fixture
def recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The story without quirks and with the RFC's, as it was recorded once."""
    table(monkeypatch, NONE, RFC)
    for name in ("none", "rfc"):
        shutil.copy(GOLDEN / f"cdm-6.1-{name}.arrows", tmp_path / f"{name}.arrows")
    return tmp_path


def test_recordings_that_are_as_expected(
    recorded: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["lab", "matrix", "--from", str(recorded)]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert "2 rows, 2 as expected; 7 found, 0 missing, 0 surplus" in out


@pytest.mark.parametrize(
    ("row", "told"),
    [
        (replace(RFC, must={**RFC.must, "CDM004": "?"}), "CDM004 must be found"),
        (replace(RFC, must=dict.fromkeys(FOUND[1:], "?")), "CDM001 must not be found"),
        (replace(NONE, vacuous={}, judged=frozenset(RULES)), "CDM012 must be judged"),
        (replace(NONE, vacuous={"CDM001": "?"}), "CDM001 should have no occasion"),
    ],
)
def test_what_is_not_as_expected(
    recorded: Path,
    row: Row,
    told: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    table(monkeypatch, row)
    assert main(["lab", "matrix", "--from", str(recorded)]) == 1
    out = capsys.readouterr().out
    assert f"{row.name}: {told}" in out
    assert "1 row, 0 as expected" in out


def test_what_could_not_be_judged_is_not_as_expected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    kernel = SimKernel()
    kernel.probes["ksm_merge"] = None
    simstory.tell(kernel)
    save(kernel.trace(), tmp_path / "none.arrows")
    table(monkeypatch, NONE)
    assert main(["lab", "matrix", "--from", str(tmp_path)]) == 1
    told = "none: CDM006 must not be found, and could not be judged"
    assert told in capsys.readouterr().out


def test_what_may_be_found_decides_nothing(
    recorded: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table(monkeypatch, replace(RFC, must={}, may=dict.fromkeys(RULES, "?")))
    assert main(["lab", "matrix", "--from", str(recorded)]) == 0


def test_rows_can_be_chosen(recorded: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (recorded / "none.arrows").unlink()
    words = ["lab", "matrix", "--from", str(recorded), "--format", "json"]
    assert main([*words, "--quirks", "rfc"]) == 0
    (row,) = json.loads(capsys.readouterr().out)["rows"]
    assert row["trace"] == str(recorded / "rfc.arrows")
    assert main(words) == 2
    assert json.loads(capsys.readouterr().out)["not_recorded"] == ["none"]


def test_a_status_that_was_noted_counts(
    recorded: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (recorded / "statuses.json").write_text('{"none": 0, "rfc": 1}')
    assert main(["lab", "matrix", "--from", str(recorded)]) == 1
    assert "rfc: a scenario, or record, ended with 1" in capsys.readouterr().out


def test_a_file_of_which_nothing_can_be_read_is_trouble(
    recorded: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (recorded / "rfc.arrows").write_bytes(b"no trace")
    assert main(["lab", "matrix", "--from", str(recorded)]) == 2
    out, err = capsys.readouterr()
    assert "not recorded: rfc" in out
    assert "rfc.arrows" in err


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--quirks", "one-way"], "no such row"),
        (["--quirks", ","], "names no row"),
        (["--keep", "elsewhere"], "--keep has no meaning"),
        (["--scenarios", "story"], "--scenarios has no meaning"),
        (["--format", "tap"], "tap"),
    ],
)
def test_trouble(
    recorded: Path, words: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["lab", "matrix", "--from", str(recorded), *words]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert told in err


def test_a_directory_that_is_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["lab", "matrix", "--from", "no-such"]) == 2
    assert "no directory" in capsys.readouterr().err


def test_the_recordings_are_made_and_kept_where_they_are_asked_for(
    recorded: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A guest that comes as far as the second row."""

    def record(
        rows: Sequence[Row], directory: Path, kernel: str, timeout: float | None
    ) -> None:
        recorded_scenarios.append([row.scenarios for row in rows])
        assert (kernel, timeout) == ("cdm-6.1", 30)
        shutil.copy(recorded / "none.arrows", directory)
        raise LabError("the guest went away")

    recorded_scenarios: list[Any] = []
    monkeypatch.setattr("cdmtrace.cli.labmatrix._record_rows", record)
    kept = recorded / "kept"
    words = ["lab", "matrix", "--keep", str(kept), "--timeout", "30"]
    assert main([*words, "--scenarios", "story,gates:swap/collapse"]) == 2
    out, err = capsys.readouterr()
    assert "the guest went away" in err
    assert f"kept in {kept}" in err
    assert "1 row, 1 as expected" in out
    assert "not recorded: rfc" in out
    assert recorded_scenarios == [[("story", "gates:swap,collapse")] * 2]
    assert main(words) == 2
    assert "is not empty" in capsys.readouterr().err
    assert matrixrun.find([NONE], kept).keys() == {"none"}


def test_a_kernel_has_no_row_of_what_it_lacks_unless_that_is_asked_for(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def record(
        rows: Sequence[Row], directory: Path, kernel: str, timeout: float | None
    ) -> None:
        asked.append({row.name for row in rows})

    def provide(*_: Any, **__: Any) -> None:
        raise AssertionError("a kernel was built or booted")

    asked: list[set[str]] = []
    all_names = {row.name for row in ROWS}
    words = ["lab", "matrix", "--kernel"]
    with monkeypatch.context() as patch:
        patch.setattr("cdmtrace.cli.labmatrix._record_rows", record)
        for kernel in ("cdm-6.12", "cdm-6.1"):
            main([*words, kernel, "--keep", str(tmp_path / kernel)])
    assert asked == [all_names - {"null-vma"}, all_names]
    monkeypatch.setattr("cdmtrace.cli.guests.built", provide)
    capsys.readouterr()
    more = ["--quirks", "null-vma", "--keep", str(tmp_path / "one")]
    assert main([*words, "cdm-6.12", *more]) == 2
    assert "cdm-6.12 has no quirk null-vma" in capsys.readouterr().err
    run = ["lab", "run", "--kernel", "cdm-6.12", "--quirks", "null-vma", "--", "true"]
    assert main(run) == 125
    assert "cdm-6.12 has no quirk null-vma" in capsys.readouterr().err
