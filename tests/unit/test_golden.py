"""Real recordings and the text that they must produce, to the letter.

``make golden`` makes them anew.
"""

from __future__ import annotations

import lzma
import re
import shlex
from pathlib import Path

import pytest

from cdmtrace.analysis import check, load
from cdmtrace.analysis.rules import RULES
from cdmtrace.cli import main
from cdmtrace.render import sarif
from cdmtrace.render.check import FORMATS

GOLDEN = Path(__file__).parent.parent / "golden"
NAMES = sorted(path.stem for path in GOLDEN.glob("*.arrows"))
STATUS = {"cdm-6.1-rfc": 1, "cdm-6.1-none": 0, "foreign-6.1-rfc": 1}


ROWS = {
    "rfc": "CDM006,CDM009,CDM012,CDM013,CDM015,CDM016,CDM017",
    "numa-scanned": "CDM008",
    "mergeable-honoured": "CDM007",
    "unlocked-clear+slow-rmw": "CDM004",
    "task-policy+fault-tag+slow-rmw": "CDM018",
    "driver": "CDM019",
    "bit-taken": "CDM020",
    "services": "CDM014,CDM021",
}
"""Rows of the matrix, a recording with a bit that is VM_SYNC, and one of a scenario on
Debian's 6.1 -> the rules that they are kept for."""


def test_all_are_here() -> None:
    assert sorted(STATUS) == NAMES


def unpacked(row: str, directory: Path) -> Path:
    """Return a row's recording, as it was before it was packed."""
    trace = directory / f"{row}.arrows"
    trace.write_bytes(lzma.decompress((GOLDEN / f"rules/{row}.arrows.xz").read_bytes()))
    return trace


def profile_of(row: str) -> str:
    return "np" if row == "services" else "intended"


@pytest.mark.parametrize("row", ROWS)
def test_the_text_of_a_row(
    row: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    unpacked(row, tmp_path)
    monkeypatch.chdir(tmp_path)
    # Of the driver it is but told that it lies, which is no defect of the kernel's.
    profile = profile_of(row)
    words = ["check", "--profile", profile, "--rules", ROWS[row]]
    status = main([*words, f"{row}.arrows"])
    assert status == (0 if row == "driver" else 1)
    assert capsys.readouterr().out == (GOLDEN / f"rules/{row}.check.txt").read_text()


def test_every_rule_was_broken_by_a_real_kernel(tmp_path: Path) -> None:
    traces = [GOLDEN / f"{name}.arrows" for name in NAMES]
    broken = {f.rule.id for trace in traces for f in check(load(trace)).findings}
    for row in ROWS:
        result = check(load(unpacked(row, tmp_path)), profile=profile_of(row))
        broken |= {one.rule.id for one in result.findings}
    assert broken == {rule.id for rule in RULES}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("verb", ["check", "report", "timeline"])
def test_the_text(
    name: str,
    verb: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    # The texts name the file as somebody at the top of the checkout would.
    monkeypatch.chdir(GOLDEN.parent.parent)
    status = main([verb, f"tests/golden/{name}.arrows"])
    assert status == (STATUS[name] if verb == "check" else 0)
    expected = (GOLDEN / f"{name}.{verb}.txt").read_text()
    assert capsys.readouterr().out == expected


COMPARED = {"mended": ("rfc", "none", 0), "broken": ("none", "rfc", 1)}
"""Text of compare -> before, after, and the status that it ends with."""


@pytest.mark.parametrize("name", COMPARED)
def test_the_text_of_compare(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(GOLDEN.parent.parent)
    *sides, status = COMPARED[name]
    files = [f"tests/golden/cdm-6.1-{side}.arrows" for side in sides]
    assert main(["compare", *files]) == status
    expected = (GOLDEN / f"{name}.compare.txt").read_text()
    assert capsys.readouterr().out == expected


@pytest.mark.parametrize("form", FORMATS)
def test_the_text_of_each_format(
    form: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(GOLDEN.parent.parent)
    # It is told, and the texts are of this one.
    monkeypatch.setattr(sarif, "__version__", "0.1.0")
    words = ["check", "--rules", "CDM003,CDM005,CDM006", "--format", form]
    words += ["--baseline", "tests/golden/known.toml"]
    files = [f"tests/golden/cdm-6.1-{side}.arrows" for side in ("rfc", "none")]
    assert main([*words, *files]) == 1
    expected = (GOLDEN / f"forms.check.{form}").read_text()
    assert capsys.readouterr().out == expected


def life(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """Return the life of the VMA that is most worth a look; where none is, the list."""
    assert main(["timeline", *words]) == 0
    listed = capsys.readouterr().out
    command = re.search(r"(?m)^ +cdmtrace (timeline .* --pid .*)$", listed)
    if command is None:
        return listed
    assert main(shlex.split(command[1])) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("name", NAMES)
def test_the_life_of_a_vma(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(GOLDEN.parent.parent)
    shown = life(capsys, f"tests/golden/{name}.arrows", "--addr", "100040000000")
    assert shown == (GOLDEN / f"{name}.life.txt").read_text()


@pytest.mark.parametrize("row", ROWS)
def test_the_life_of_a_vma_of_a_row(
    row: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    unpacked(row, tmp_path)
    monkeypatch.chdir(tmp_path)
    shown = life(capsys, f"{row}.arrows")
    assert shown == (GOLDEN / f"rules/{row}.life.txt").read_text()


@pytest.mark.parametrize(
    ("name", "status"),
    [("cdm-6.1-rfc", 0), ("foreign-6.1-rfc", 0), ("cdm-6.1-none", 1)],
)
def test_the_patches_do_what_they_say(name: str, status: int) -> None:
    """With their defects a kernel is what they describe, and mended it is not."""
    assert main(["check", "--profile", "rfc-v2", str(GOLDEN / f"{name}.arrows")]) == (
        status
    )


def test_an_exception_that_nobody_expected_is_trouble(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Left to the interpreter it would end with 1, which is a finding."""

    def broken(*files: object, **options: object) -> None:
        raise ZeroDivisionError("by nothing")

    monkeypatch.setattr("cdmtrace.analysis.frames.load", broken)
    assert main(["report", str(GOLDEN / "cdm-6.1-none.arrows")]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "ZeroDivisionError: by nothing" in printed.err
    assert printed.err.endswith("cdmtrace: this is a fault of cdmtrace\n")
