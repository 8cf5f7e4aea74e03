"""What the pages say of queries and of one's own rules is so."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import get_args

import pytest
from asking import RFC, Asking

from cdmtrace.analysis import notes, relations
from cdmtrace.analysis.rules import Rule
from cdmtrace.cli import main

ROOT = Path(__file__).parents[2]
README, QUERY, OWN = (
    (ROOT / name).read_text()
    for name in ("README.md", "docs/query.md", "docs/own-rules.md")
)


@pytest.fixture
def ask(capsys: pytest.CaptureFixture[str]) -> Asking:
    return Asking(capsys)


def indented(text: str) -> str:
    return "".join(f"    {line}".rstrip() + "\n" for line in text.splitlines())


def commands(page: str) -> list[tuple[list[str], str]]:
    """Return the words of each query of a page that names a file, and what is below."""
    pattern = (
        r"(?m)^    cdmtrace query "
        r"((?:--recipe [\w-]+ )?(?:FILE|demo\S+)(?: \"[^\"]*\")?)\n\n"
    )
    return [
        (shlex.split(start[1]), page[start.end() :])
        for start in re.finditer(pattern, page)
    ]


@pytest.mark.parametrize("page", [README, QUERY], ids=["README", "query.md"])
def test_what_a_query_prints_is_below_it(page: str, ask: Asking) -> None:
    seen = 0
    for words, below in commands(page):
        files = {"FILE", "demo/cdm-6.1/rfc/story.arrows"}
        asked = [str(RFC) if word in files else word for word in words]
        assert below.startswith(indented(ask(*asked)))
        seen += 1
    assert seen == (2 if page is README else 1)


def test_the_recipes_are_those_that_there_are(ask: Asking) -> None:
    listed = ask("--list").partition("\n")[2]
    assert indented(listed) in QUERY
    assert len(listed.splitlines()) == 2 + 14
    assert "Fourteen recipes" in README


@pytest.mark.parametrize("name", relations.SCHEMAS)
def test_the_columns_of_a_table(name: str) -> None:
    (row,) = re.findall(rf"(?m)^\| `{name}` \|.*\|(.*)\|$", QUERY)
    words = re.findall(r"`(\w+)`", row)
    assert words == relations.SCHEMAS[name].names


def test_the_fields_of_a_rule_and_the_notes() -> None:
    rows = re.findall(r"(?m)^\| (`.*?) \|", OWN)
    fields = {word for row in rows for word in re.findall(r"`(\w+)`", row)}
    assert set(Rule.__struct_fields__) <= fields
    assert {note.__name__ for note in get_args(notes.Note)} <= fields


def test_the_example_of_a_rule(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--rules", "LAB001", "--rules-from", "examples/rules/slow_mbind.py"]
    assert f"cdmtrace check {' '.join(words)} FILE" in OWN
    words[-1] = str(ROOT / words[-1])
    assert main(["check", *words, str(RFC)]) == 1
    first, *_, table, _ = capsys.readouterr().out.split("\n\n")
    assert indented(first) in OWN
    assert indented(table) in OWN
