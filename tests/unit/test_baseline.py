"""Findings that are known: what their file may say, and what becomes of them."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import jsonschema
import pytest
from checkcalls import left_open, suppressing
from comparisons import judged, story, vacuous
from hypothesis import example, given
from hypothesis import strategies as st

from cdmtrace.analysis import document
from cdmtrace.analysis.baseline import (
    NONE,
    Baseline,
    Entry,
    drawn_up,
    parse,
    stale,
    text,
)
from cdmtrace.analysis.result import Verdict
from cdmtrace.analysis.status import exit_status
from cdmtrace.errors import UsageTrouble

ID, OTHER = "0123456789abcdef", "0000000000000001"
RFC, CLEAN = story("rfc"), story()
SCHEMA = json.loads(
    (Path(__file__).parents[2] / "cdmtrace/schemas/check-1.json").read_text()
)


def read(told: str) -> Baseline:
    return parse(tomllib.loads(told), "b.toml")


def entry(told: str, id_: str = ID) -> str:
    return f"[findings.{id_}]\n{told}\n"


def status(*results, known: Baseline = NONE) -> int:
    return exit_status(results, named=False, allow_inconclusive=False, known=known)


# --- the file ------------------------------------------------------------------


def test_what_a_file_says() -> None:
    known = read(entry('rule = "cdm001"\ncause = "mbind"\nreason = "why"'))
    assert known == Baseline(
        file="b.toml",
        entries={
            ID: Entry(fingerprint=ID, reason="why", rule="CDM001", cause="mbind"),
        },
    )
    assert read(entry('rule = "stale-tag"\nreason = "why"')).entries[ID].rule == (
        "CDM001"
    )
    assert read("") == Baseline(file="b.toml")


@pytest.mark.parametrize(
    ("told", "said"),
    [
        ('[finding.x]\nreason = ""', "b.toml: finding: no such key"),
        ("findings = 3", "b.toml: findings: is no table"),
        (entry('reason = "x"', "1b7f"), "b.toml: findings.1b7f: is no id of a finding"),
        (entry('reason = "x"', ID.upper()), f"findings.{ID.upper()}: is no id"),
        (f"[findings]\n{ID} = 1", f"b.toml: findings.{ID}: is no table"),
        (entry('why = "x"'), f"b.toml: findings.{ID}: why: no such key"),
        (entry("reason = 1"), f"findings.{ID}.reason: is no text"),
        (entry('rule = "CDM999"\nreason = "x"'), ".rule: CDM999: no such rule"),
        (entry(""), f"b.toml: {ID} has no reason"),
        (entry('reason = " \\n"'), f"b.toml: {ID} has no reason"),
        (
            entry('rule = "CDM001"\ncause = "mbind"\nprocess = "story"\nreason = ""'),
            f"b.toml: {ID} (CDM001 mbind story) has no reason",
        ),
        (
            entry("") + entry("", OTHER),
            f"b.toml: {ID} has no reason, nor have 1 more",
        ),
    ],
)
def test_what_a_file_may_not_say(told: str, said: str) -> None:
    with pytest.raises(UsageTrouble) as error:
        read(told)
    assert said in error.value.message
    assert error.value.hint


def test_what_is_written_is_read_again() -> None:
    found = drawn_up([RFC], "a reason", NONE)
    written = text(found)
    assert read(written).entries == found.entries
    assert '\nrule = "CDM001"  # stale-tag\n' in written
    with pytest.raises(UsageTrouble, match="has no reason, nor have"):
        read(text(drawn_up([RFC], "", NONE)))
    assert read(text(NONE)).entries == {}


@example("\x7f")
@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1))
def test_any_text_is_text_in_the_file(words: str) -> None:
    told = Entry(fingerprint=ID, reason=f"x{words}", process=words)
    assert read(text(Baseline(entries={ID: told}))).entries == {ID: told}


def test_a_byte_that_is_no_text_is_written_all_the_same() -> None:
    told = text(Baseline(entries={ID: Entry(fingerprint=ID, reason="a\udcffb")}))
    assert read(told).entries[ID].reason == "a?b"


# --- what it does --------------------------------------------------------------


def test_what_is_known_sets_no_status() -> None:
    assert status(RFC, known=suppressing(RFC)) == 0
    assert status(RFC, known=suppressing(story("one-way"))) == 1
    assert status(RFC, known=NONE) == 1


def test_what_is_open_is_open_all_the_same() -> None:
    assert status(RFC, left_open(), known=suppressing(RFC)) == 3


def test_it_is_in_the_document_with_its_reason() -> None:
    (first, *_) = RFC.findings
    known = Baseline(
        file="b.toml",
        entries={first.fingerprint: Entry(fingerprint=first.fingerprint, reason="why")},
    )
    shown = json.loads(json.dumps(document.check(RFC, known)))
    jsonschema.Draft202012Validator(SCHEMA).validate(shown)
    same = [f for f in RFC.findings if f.fingerprint == first.fingerprint]
    assert shown["baseline"] == {"file": "b.toml", "suppressed": len(same)}
    assert shown["verdict"] == "violated"
    assert [one["suppressed"] for one in shown["findings"]] == [
        {"reason": "why"} if f.fingerprint == first.fingerprint else None
        for f in RFC.findings
    ]
    for rule in shown["rules"]:
        own = first.rule.id == rule["rule"]
        assert rule["suppressed"] == (len(same) if own else 0)


def test_without_a_baseline_nothing_is_suppressed() -> None:
    shown = document.check(RFC)
    assert shown["baseline"] is None
    assert {one["suppressed"] for one in shown["findings"]} == {None}
    assert {one["suppressed"] for one in shown["rules"]} == {0}


@pytest.mark.parametrize(
    "damage",
    [
        lambda d: d["findings"][0].update(suppressed={}),
        lambda d: d["findings"][0].update(suppressed={"reason": " "}),
        lambda d: d["rules"][0].update(suppressed=-1),
        lambda d: d.update(baseline={"file": "x"}),
    ],
)
def test_the_schema_minds(damage) -> None:
    shown = json.loads(json.dumps(document.check(RFC, suppressing(RFC))))
    damage(shown)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.Draft202012Validator(SCHEMA).validate(shown)


# --- what is stale -------------------------------------------------------------


def known_of(rule: str, id_: str = OTHER) -> Baseline:
    return Baseline(
        file="b.toml",
        entries={id_: Entry(fingerprint=id_, reason="x", rule=rule)},
    )


def test_what_nothing_was_found_of_is_stale() -> None:
    assert stale(suppressing(RFC), [RFC]) == []
    assert len(stale(suppressing(RFC), [CLEAN])) == len(suppressing(RFC).entries)
    # It may be that of another recording of the same call.
    assert stale(suppressing(RFC), [CLEAN, RFC]) == []
    (one,) = stale(known_of("CDM001"), [CLEAN])
    assert str(one) == f"{OTHER} (CDM001)"


def test_what_could_not_be_found_is_not_stale() -> None:
    left = left_open()
    rules = [one.rule.id for one in left.rules if one.verdict is Verdict.INCONCLUSIVE]
    assert stale(known_of(rules[0]), [left]) == []
    unseen = judged(vacuous("CDM006"), "CDM006")
    assert stale(known_of("CDM006"), [unseen]) == []
    # Nobody asked for this one.
    assert stale(known_of("CDM001"), [unseen]) == []
    # Whose it is, the file does not say.
    assert len(stale(known_of(""), [unseen])) == 1


def test_a_new_one_keeps_reasons_and_drops_what_is_stale() -> None:
    (first, *_) = RFC.findings
    before = Baseline(
        entries={
            first.fingerprint: Entry(fingerprint=first.fingerprint, reason="old"),
            OTHER: Entry(fingerprint=OTHER, reason="gone", rule="CDM001"),
            ID: Entry(fingerprint=ID, reason="not judged", rule="CDM021"),
        }
    )
    after = drawn_up([RFC], "new", before).entries
    assert {one.fingerprint for one in RFC.findings} | {ID} == after.keys()
    reasons = {key: one.reason for key, one in after.items()}
    assert reasons.pop(first.fingerprint) == "old"
    assert reasons.pop(ID) == "not judged"
    assert set(reasons.values()) == {"new"}
