"""Options that a call has no use for: as they are typed, and as variables are set."""

from __future__ import annotations

from pathlib import Path

import pytest

from cdmtrace.analysis import recipes
from cdmtrace.cli import main

RFC = str(Path(__file__).parents[1] / "golden" / "cdm-6.1-rfc.arrows")
SQL = "SELECT count(*) FROM events"
ARRIVALS = str(Path(recipes.__file__).parent / "queries/arrivals.sql")

CALLS: list[tuple[list[str], list[str]]] = [
    (["export", "csv", RFC], ["--force"]),
    (["export", "csv", RFC], ["--profile", "np"]),
    (["check", RFC], ["--reason", "none"]),
    (["check", RFC], ["--force"]),
    (["check", RFC], ["--allow", "1:ksm"]),
    (["check", RFC], ["--permissions", "/nonexistent"]),
    (["compare", RFC, RFC], ["--allow", "1:ksm"]),
    (["report", RFC], ["--force"]),
    (["report", RFC], ["--profile", "np"]),
    (["explain", "CDM003"], ["--all"]),
    (["explain", RFC, "1b7f"], ["--format", "json"]),
    (["timeline", RFC], ["--at", "4.7"]),
    (["timeline", RFC], ["--generation", "1"]),
    (["query", RFC, SQL], ["--list"]),
    (["query", "--list"], ["--file", "/nonexistent"]),
    (["query", RFC, "--file", ARRIVALS], ["--recipe", "lost"]),
    (["query", RFC, "--recipe", "arrivals"], ["--file", "/nonexistent"]),
]
"""What is asked, and what is of no use to that."""

each = pytest.mark.parametrize(
    ("words", "useless"),
    CALLS,
    ids=lambda one: " ".join(one).replace(RFC, "FILE").replace(ARRIVALS, "SCRIPT"),
)


@each
def test_a_variable_that_is_of_no_use_does_nothing(
    words: list[str],
    useless: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    status = main(words)
    assert status != 2
    told = capsys.readouterr()
    option, *value = useless
    name = f"CDMTRACE_{words[0]}_{option[2:]}".upper()
    monkeypatch.setenv(name, value[0] if value else "1")
    assert main(words) == status
    assert capsys.readouterr() == told


@each
def test_what_is_typed_and_of_no_use_is_trouble(
    words: list[str], useless: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([words[0], *useless, *words[1:]]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("cdmtrace: ")
    assert "  hint: " in err
