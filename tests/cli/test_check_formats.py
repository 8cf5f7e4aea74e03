"""``check`` for machines: the same status in every format, results on stdout only."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from xml.etree import ElementTree

import pytest
from simfile import save
from simkernel import SimKernel

from cdmtrace.cli import main
from cdmtrace.render.check import FORMATS

GOLDEN = Path(__file__).parents[1] / "golden"
NONE, RFC = (str(GOLDEN / f"cdm-6.1-{name}.arrows") for name in ("none", "rfc"))
STALE_TAG, UNLOCKED = "1b7f4b7b2d775104", "16806edb4edb87e7"
GONE = "0123456789abcdef"
CHECK = ["check", "--rules", "CDM001,CDM003,CDM006"]

Captured = pytest.CaptureFixture[str]


def written(path: Path, reasons: dict[str, str]) -> str:
    """Write a baseline: an id and its reason each."""
    path.write_text(
        "".join(
            f"[findings.{id_}]\nreason = {json.dumps(reason)}\n"
            for id_, reason in reasons.items()
        )
    )
    return str(path)


@pytest.fixture
def known(tmp_path: Path) -> str:
    """A baseline of all that is found in the recording with defects."""
    return written(tmp_path / "known.toml", {STALE_TAG: "one", UNLOCKED: "two"})


# --- status and streams --------------------------------------------------------


@pytest.mark.parametrize("form", FORMATS)
def test_the_status_is_the_same_in_every_format(
    form: str, tmp_path: Path, known: str, capsys: Captured
) -> None:
    kernel = SimKernel()
    kernel.process()
    kernel.lose("vma_split", 0)
    lossy = str(save(kernel.trace(), tmp_path / "lossy.arrows"))
    for status, words in (
        (0, [NONE]),
        (1, [RFC]),
        (1, [NONE, RFC]),
        (0, ["--baseline", known, RFC]),
        (3, ["--rules", "CDM011", lossy]),
        (0, ["--rules", "CDM011", "--allow-inconclusive", lossy]),
    ):
        assert main([*CHECK, "--format", form, *words]) == status, words
    assert capsys.readouterr().out
    assert main([*CHECK, "--format", form, "/nonexistent.arrows"]) == 2
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("form", FORMATS[1:])
def test_programs_are_told_nothing_on_stderr(form: str, capsys: Captured) -> None:
    assert main([*CHECK, "--format", form, RFC, NONE]) == 1
    assert capsys.readouterr().err == ""


def test_the_next_command_is_for_people(known: str, capsys: Captured) -> None:
    main([*CHECK, RFC])
    printed = capsys.readouterr()
    command = printed.err.rstrip().partition("as an argument: cdmtrace ")[2].split()
    assert command[-1] == STALE_TAG
    assert main(command) == 0
    capsys.readouterr()
    # Of what is suppressed nobody needs to be told how it is explained.
    main([*CHECK, "--baseline", known, RFC])
    assert capsys.readouterr().err == ""


def test_sarif_has_the_status(known: str, capsys: Captured) -> None:
    for words, status in (([RFC, NONE], 1), (["--baseline", known, RFC], 0)):
        main([*CHECK, "--format", "sarif", *words])
        runs = json.loads(capsys.readouterr().out)["runs"]
        codes = [one["exitCode"] for run in runs for one in run["invocations"]]
        assert codes == [status] * len(runs)


def test_format_and_baseline_are_variables_too(
    known: str, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    monkeypatch.setenv("CDMTRACE_CHECK_FORMAT", "junit")
    monkeypatch.setenv("CDMTRACE_CHECK_BASELINE", known)
    assert main([*CHECK, RFC]) == 0
    root = ElementTree.fromstring(capsys.readouterr().out)
    assert (root.get("failures"), root.get("skipped")) == ("0", "3")


def test_there_is_no_other_format(capsys: Captured) -> None:
    assert main(["check", "--format", "yaml", RFC]) == 2
    assert "sarif" in capsys.readouterr().err


# --- baselines -----------------------------------------------------------------


def test_some_of_it_is_known(tmp_path: Path, capsys: Captured) -> None:
    known = written(tmp_path / "b.toml", {UNLOCKED: "the next series"})
    assert main([*CHECK, "--baseline", known, "--format", "json", RFC]) == 1
    shown = json.loads(capsys.readouterr().out)
    assert shown["baseline"] == {"file": known, "suppressed": 2}
    assert [one["suppressed"] for one in shown["findings"]] == [
        None,
        {"reason": "the next series"},
        {"reason": "the next series"},
    ]


def test_what_is_stale_is_told_always(tmp_path: Path, capsys: Captured) -> None:
    known = written(tmp_path / "b.toml", {STALE_TAG: "x", GONE: "y"})
    for form in FORMATS:
        main([*CHECK, "--baseline", known, "--format", form, RFC, NONE])
        assert capsys.readouterr().err == (
            f"cdmtrace: {known}: stale, nothing was found of {GONE}\n"
        )


def test_it_is_drawn_up_and_used(tmp_path: Path, capsys: Captured) -> None:
    file = tmp_path / "b.toml"
    drawing = [*CHECK, "--write-baseline", str(file), RFC]
    # What it finds is no less found for being written down.
    assert main(drawing) == 1
    assert f"{file}: 2 entries, of which 2 want a reason\n" in capsys.readouterr().err
    using = [*CHECK, "--baseline", str(file), RFC]
    assert main(using) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert f"{file}: {STALE_TAG} (CDM001 mbind story) has no reason" in printed.err
    assert ", nor have 1 more\n" in printed.err
    file.write_text(file.read_text().replace('reason = ""', 'reason = "known"'))
    assert main(using) == 0
    capsys.readouterr()


def test_a_file_that_is_there_is_replaced_by_force_only(
    tmp_path: Path, capsys: Captured
) -> None:
    file = tmp_path / "b.toml"
    file.write_text("mine")
    drawing = [*CHECK, "--write-baseline", str(file), "--reason", "all of it", RFC]
    assert main(drawing) == 2
    printed = capsys.readouterr()
    assert (printed.out, file.read_text()) == ("", "mine")
    assert "--force replaces it" in printed.err
    assert main([*drawing, "--force"]) == 1
    assert f"2 entries: check --baseline {file}\n" in capsys.readouterr().err
    reasons = [
        one["reason"] for one in tomllib.loads(file.read_text())["findings"].values()
    ]
    assert reasons == ["all of it"] * 2
    assert main([*CHECK, "--baseline", str(file), RFC]) == 0
    capsys.readouterr()


def test_it_is_brought_up_to_date_by_itself(tmp_path: Path, capsys: Captured) -> None:
    file = tmp_path / "b.toml"
    written(file, {UNLOCKED: "mine", GONE: "gone"})
    words = ["--baseline", str(file), "--write-baseline", str(file), "--force"]
    main([*CHECK, *words, "--reason", "new", RFC])
    capsys.readouterr()
    told = tomllib.loads(file.read_text())["findings"]
    assert {id_: one["reason"] for id_, one in told.items()} == {
        UNLOCKED: "mine",
        STALE_TAG: "new",
    }


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--reason", "x"], "--reason is about --write-baseline"),
        (["--force"], "--force is about --write-baseline"),
        (["--baseline", "/nonexistent.toml"], "/nonexistent.toml: cannot be read"),
        (["--baseline", RFC], "not TOML"),
        (["--write-baseline", "/nonexistent/b.toml"], "cannot be made"),
    ],
)
def test_trouble(words: list[str], said: str, capsys: Captured) -> None:
    assert main([*CHECK, *words, RFC]) == 2
    printed = capsys.readouterr()
    assert said in printed.err
    assert "hint: " in printed.err
    assert printed.out == ""
