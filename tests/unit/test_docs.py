"""The pages that name rules, quirks, steps and tests: all of them exist, none lacks."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from cdmtrace.analysis.invariants import INVARIANTS
from cdmtrace.analysis.profiles import PROFILES
from cdmtrace.analysis.rules import BY_ID, RULES
from cdmtrace.cli import main
from cdmtrace.lab import quirks, scenarios

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"

CLAUSES = {clause.id for clause in PROFILES["intended"].clauses} | {
    f"rfc-v2: {clause.id}" for clause in PROFILES["rfc-v2"].clauses
}
REVIEW = (DOCS / "review.md").read_text()


def table_rows(first: str) -> list[list[str]]:
    """Return the cells of those rows of review.md that begin with such a cell."""
    return [
        [cell.strip() for cell in line[1:-1].split("|")]
        for line in REVIEW.splitlines()
        if re.match(rf"\| (?:{first}) ?\|(?! sentence )", line)
    ]


SENTENCES = table_rows(r"[HK]\d+|")
"""Number, sentence, clauses, rules, quirks, what shows it."""
REST = table_rows(r"CDM\d+|`[a-z-]+`")
"""Rule or quirk that is from no sentence, and why it is there."""


def code(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


# --- docs/rules.md ------------------------------------------------------------


def test_the_page_of_rules_is_what_explain_prints(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["explain", "--all", "--format", "markdown"]) == 0
    printed = capsys.readouterr().out
    written = (DOCS / "rules.md").read_text()
    assert written == printed, "docs/rules.md is not of these rules: make docs"


def test_every_form_has_every_rule_and_every_invariant(
    capsys: pytest.CaptureFixture[str],
) -> None:
    for form in ("table", "json", "ndjson", "csv", "markdown"):
        assert main(["explain", "--all", "--format", form]) == 0
        out = capsys.readouterr().out
        for rule in RULES:
            assert rule.id in out, form
            # In CSV and JSON as it is; elsewhere it is filled into lines.
            assert rule.limits[0].split()[0] in out, form
        for invariant in INVARIANTS:
            assert invariant.id in out, form
        if form == "table":
            assert max(map(len, out.splitlines())) < 80


def test_one_rule_and_the_list_have_forms_too(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["explain", "stale-tag", "--format", "json"]) == 0
    (one,) = json.loads(capsys.readouterr().out)["rules"]
    assert one["rule"] == "CDM001"
    assert one["needs"] == sorted(BY_ID["CDM001"].needs)
    assert main(["explain", "stale-tag", "--format", "markdown"]) == 0
    assert capsys.readouterr().out in (DOCS / "rules.md").read_text()
    assert main(["explain", "--format", "csv"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 1 + len(RULES)


@pytest.mark.parametrize(
    "words", [("CDM001", "--all"), ("x.arrows", "12ab", "--format", "json")]
)
def test_what_goes_together_with_nothing(
    words: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["explain", *words]) == 2
    assert words[0] in capsys.readouterr().err


# --- the invariants -----------------------------------------------------------


def test_all_invariants_are_there() -> None:
    assert [one.id for one in INVARIANTS] == [f"I{n:02}" for n in range(1, 65)]
    assert len({one.name for one in INVARIANTS}) == len(INVARIANTS)


@pytest.mark.parametrize("one", INVARIANTS, ids=lambda one: one.id)
def test_an_invariant_says_who_sees_to_it(one) -> None:
    assert one.statement.endswith(".")
    assert one.rules or one.seen_by or one.not_yet or one.why_not
    assert set(one.rules) <= BY_ID.keys()
    assert list(one.rules) == sorted(set(one.rules))
    for path in re.findall(r"tests/[\w/.]+", one.seen_by + one.why_not):
        assert (ROOT / path).is_file(), path


def test_every_rule_is_there_for_an_invariant() -> None:
    assert {rule for one in INVARIANTS for rule in one.rules} == BY_ID.keys()


# --- docs/review.md -----------------------------------------------------------


def test_every_sentence_has_its_row() -> None:
    numbers = [row[0] for row in SENTENCES if row[0]]
    hansen = [number for number in numbers if number.startswith("H")]
    khandual = [number for number in numbers if number.startswith("K")]
    assert hansen == [f"H{n}" for n in range(1, 19)]
    assert khandual == [f"K{n}" for n in range(1, 23)]
    for row in SENTENCES:
        assert len(row) == 6, row
        assert row[5], row


def parts(sentence: str) -> list[str]:
    """Return what is quoted, without quotation marks and what stands between."""
    return [
        " ".join(re.sub(r'["|\\]', "", part).split()).lower()
        for part in sentence.split("[...]")
    ]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.id)
def test_the_rows_of_what_a_rule_quotes_name_the_rule(rule) -> None:
    if rule.id in {row[0] for row in REST}:
        return
    quoted = {
        row[0]: rule.id in row[3].split()
        for row in SENTENCES
        for told in parts(row[1])
        for part in parts(rule.sentence)
        if told in part or part in told
    }
    assert quoted, f"no row of docs/review.md has a sentence of {rule.id}"
    assert all(quoted.values()), quoted


def test_every_clause_rule_and_quirk_exists() -> None:
    for row in SENTENCES:
        if row[2] != "all":
            assert set(code(row[2])) <= CLAUSES, row[0]
            assert set(row[3].split()) <= BY_ID.keys(), row[0]
        assert set(code(row[4])) <= quirks.BY_NAME.keys(), row[0]
    for name, _ in REST:
        assert set(code(name) or [name]) <= BY_ID.keys() | quirks.BY_NAME.keys()


def test_every_clause_rule_and_quirk_has_a_row() -> None:
    clauses = {clause for row in SENTENCES for clause in code(row[2])}
    assert clauses == CLAUSES - {"unknown", "rfc-v2: unknown"}
    rest = {word for name, _ in REST for word in (code(name) or [name])}
    rules = {rule for row in SENTENCES for rule in row[3].split()} - {"all"}
    named = {quirk for row in SENTENCES for quirk in code(row[4])}
    assert rules | rest >= BY_ID.keys()
    assert named | rest >= quirks.BY_NAME.keys()
    assert (rules | named) & rest == set()


def test_every_step_and_every_test_exists() -> None:
    programs = {
        name: one.source.read_text() for name, one in scenarios.scenarios().items()
    }
    seen = 0
    for word in code(REVIEW):
        path, _, name = word.partition("::")
        program, colon, step = word.partition(": ")
        if path.startswith("tests/"):
            seen += 1
            text = (ROOT / path).read_text()
            assert not name or f"\ndef {name}(" in text, word
        elif colon and program not in PROFILES:
            seen += 1
            assert f'{{ "{step}", "' in programs[program], word
    assert seen > 80


def test_both_pages_can_be_found_from_the_readme() -> None:
    readme = (ROOT / "README.md").read_text()
    for path in DOCS.glob("*.md"):
        assert f"(docs/{path.name})" in readme, path
    for page in (*DOCS.glob("*.md"), ROOT / "README.md"):
        for link in re.findall(r"\]\(([\w/.-]+)(?:#[\w-]+)?\)", page.read_text()):
            assert (page.parent / link).is_file(), f"{page.name}: {link}"
