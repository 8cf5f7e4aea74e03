"""``explain`` of findings, by what check prints of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from cdmtrace.cli import main

GOLDEN = str(Path(__file__).parents[1] / "golden/cdm-6.1-rfc.arrows")


@pytest.fixture
def ids(capsys: pytest.CaptureFixture[str]) -> list[str]:
    """Every id that check prints, as often as it does."""
    main(["check", GOLDEN])
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    return [words[1] for words in lines if words[:1] == ["id"]]


def test_all_findings_that_have_an_id_are_told(
    ids: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    often = max(set(ids), key=ids.count)
    assert ids.count(often) > 1
    assert main(["explain", GOLDEN, often]) == 0
    assert capsys.readouterr().out.count(f"{often}") == ids.count(often)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([GOLDEN], "is a file, and which of its findings is not said"),
        (["nosuch"], "nosuch: neither a rule nor a file"),
        ([GOLDEN, "CDM003"], "CDM003: no finding of"),
        ([GOLDEN, "zz"], "zz: no finding of"),
    ],
)
def test_what_names_no_finding(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["explain", *words]) == 2
    assert said in capsys.readouterr().err


def test_a_beginning_that_two_ids_have(
    ids: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    first = [one[0] for one in set(ids)]
    begin = max(set(first), key=first.count)
    assert first.count(begin) > 1
    assert main(["explain", GOLDEN, begin]) == 2
    err = capsys.readouterr().err
    assert f"{first.count(begin)} ids begin so" in err
    assert "give more of the one that is meant" in err
