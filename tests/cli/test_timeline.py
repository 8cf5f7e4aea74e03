"""``timeline`` of a real recording: both levels, each format, and what is not there."""

from __future__ import annotations

import csv
import io
import json
import shlex
from pathlib import Path
from typing import Any

import pytest

from cdmtrace.cli import main

GOLDEN = str(Path(__file__).parents[1] / "golden/cdm-6.1-rfc.arrows")
VMA = ["--pid", "62", "--addr", "100040000000"]

Capture = pytest.CaptureFixture[str]


def run(capsys: Capture, *words: str, status: int = 0) -> str:
    assert main(["timeline", GOLDEN, *words]) == status
    said = capsys.readouterr()
    return said.err if status else said.out


def test_every_command_of_the_list_shows_a_life(capsys: Capture) -> None:
    listed = json.loads(run(capsys, "--format", "json"))
    (rows,) = listed.values()
    assert len(rows) > 20
    for row in rows[::4]:
        words = shlex.split(row["command"])
        assert words[0] == "cdmtrace"
        assert main(words[1:]) == 0
        shown = capsys.readouterr().out
        assert f"VMA {row['VMA']} (" in shown
        for rule in row["why"].split(", "):
            if rule.startswith("CDM"):
                assert f"{rule}, " in shown


def test_the_commands_of_the_text_are_those_of_the_list(capsys: Capture) -> None:
    (rows,) = json.loads(run(capsys, "--format", "json")).values()
    shown = [line.strip() for line in run(capsys).splitlines()]
    commands = [line for line in shown if line.startswith("cdmtrace timeline")]
    assert commands[:-1] == [row["command"] for row in rows[:20]]
    assert commands[-1].endswith(" --format csv")


def test_all_formats_have_the_same_rows(capsys: Capture) -> None:
    one = json.loads(run(capsys, *VMA, "--format", "json"))
    timeline: list[dict[str, Any]] = one["Timeline"]
    assert len(timeline) > 90
    assert [row["node 1"] for row in timeline if row["kind"] == "map"] == list(
        range(1, 24)
    )
    lines = run(capsys, *VMA, "--format", "ndjson").splitlines()
    loaded = [json.loads(line) for line in lines]
    assert [row for row in loaded if row.pop("table") == "Timeline"] == timeline
    table = list(csv.reader(io.StringIO(run(capsys, *VMA, "--format", "csv"))))
    assert sum(row[0] == "Timeline" for row in table) == len(timeline)
    pipes = run(capsys, *VMA, "--format", "markdown").splitlines()
    rows = [line for line in pipes[pipes.index("## Timeline") :] if "|" in line]
    assert len(rows) == len(timeline) + 2
    unfolded = run(capsys, *VMA, "--unfold").splitlines()
    assert sum("story/62" in line for line in unfolded) == len(timeline)


def test_a_part_of_the_list(capsys: Capture) -> None:
    def rows(*words: str) -> list[dict[str, Any]]:
        (found,) = json.loads(run(capsys, *words, "--format", "json")).values()
        return list(found)

    everything = rows()
    assert rows("--pid", "63") == [row for row in everything if row["pid"] == 63]
    assert {row["pid"] for row in rows("--addr", "100140000000")} == {62, 63, 64}
    assert "No VMA is worth a look" in run(capsys, "--addr", "1")


def test_options_have_variables(
    capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CDMTRACE_TIMELINE_PID", "62")
    monkeypatch.setenv("CDMTRACE_TIMELINE_ADDR", "0x100040000000")
    monkeypatch.setenv("CDMTRACE_TIMELINE_UNFOLD", "1")
    assert run(capsys) == run(capsys, *VMA, "--unfold")


def test_another_profile_marks_other_findings(capsys: Capture) -> None:
    shown = run(capsys, *VMA, "--profile", "rfc-v2")
    assert "^ " not in shown
    assert "other VMAs:" in shown
    assert "^ CDM001 " in run(capsys, *VMA)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--pid", "61"], "--pid 61: no process of"),
        (["--pid", "61"], "it has 62 (story), 63 (story), 64 (story)"),
        (["--pid", "61", "--addr", "1"], "hint: cdmtrace timeline"),
        (["--pid", "62", "--addr", "10003fffffff"], "no VMA of process 62"),
        (["--pid", "62", "--addr", "10003fffffff"], "  100040000000-100040017000"),
        (["--pid", "62", "--addr", "10003fffffff"], "--pid 62 --addr 100040000000"),
        ([*VMA, "--generation", "2"], "--generation 2: 1 VMA has held the address"),
        (["--generation", "1"], "--generation is of one address of one process"),
        (["--at", "1"], "--at is of one address of one process"),
        ([*VMA, "--at", "4"], "--at 4: no VMA held the address then"),
        ([*VMA, "--at", "4"], "4.723492 to 5.511196 s"),
        (["--pid", "62", "--addr", "-1"], "--addr -1: not an address"),
        (["--pid", "-1"], "Invalid value for '--pid'"),
    ],
)
def test_what_is_not_there(capsys: Capture, words: list[str], said: str) -> None:
    assert said in run(capsys, *words, status=2)


def test_one_generation_alone(capsys: Capture) -> None:
    whole = run(capsys, *VMA)
    alone = run(capsys, *VMA, "--generation", "1")
    assert alone.replace(" --generation 1", "") == whole


def test_a_file_that_cannot_be_read(capsys: Capture, tmp_path: Path) -> None:
    assert main(["timeline", str(tmp_path / "none.arrows")]) == 2
    assert "none.arrows" in capsys.readouterr().err


def test_a_recording_that_was_cut_says_so(capsys: Capture, tmp_path: Path) -> None:
    torn = tmp_path / "torn.arrows"
    data = Path(GOLDEN).read_bytes()
    torn.write_bytes(data[: len(data) * 2 // 3])
    assert main(["timeline", str(torn)]) == 0
    assert "cut: " in capsys.readouterr().err
