"""What programs are told of a check, whatever the format: what passed and what failed.

Of one call all formats and the exit status say the same: something fails in the format
if and only if the status is not 0.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

from cdmtrace.render import divergence
from cdmtrace.units import count

Document = Mapping[str, Any]
LeftOpen = Mapping[str, Collection[str]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Call:
    """One call of check, and all that a format may tell of it.

    documents: of ``cdmtrace.check/1``, one for each recording. rules: id -> all that
    ``explain`` says of the rule. status: the exit status. left_open: id -> the
    verdicts of this rule that set it to 3; empty if nothing that is open does.
    """

    documents: Sequence[Document]
    rules: Mapping[str, Document]
    status: int
    left_open: LeftOpen


class Outcome(Enum):
    """What a format makes of a rule."""

    PASSED = "passed"
    FAILED = "failed"
    ERROR = "error"
    SKIPPED = "skipped"


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """A rule and what came of it in one recording, or the audit of one.

    why: a sentence, in one line; empty where it passed and there is nothing to say.
    checked: how often the premise held. told: in full what is to be read of it, empty
    if nothing is; no line of it is blank.
    """

    name: str
    outcome: Outcome
    why: str
    verdict: str
    checked: int
    findings: Sequence[Document] = ()
    told: str = ""

    @property
    def bad(self) -> bool:
        """Whether it sets an exit status."""
        return self.outcome in (Outcome.FAILED, Outcome.ERROR)


def cases(document: Document, left_open: LeftOpen) -> list[Case]:
    """Return a case for each rule, and one for the audit if there was one."""
    return list(_cases(document, left_open))


def _cases(document: Document, left_open: LeftOpen) -> Iterator[Case]:
    for rule in document["rules"]:
        yield _rule(document, rule, left_open)
    if document["audit"]:
        yield audited(document["audit"], left_open)


def _rule(document: Document, rule: Document, left_open: LeftOpen) -> Case:
    own = [one for one in document["findings"] if one["rule"] == rule["rule"]]
    shown = [one for one in own if not one["suppressed"]]
    outcome, why = _outcome(rule, own, left_open)
    page = document["trace"]["page_size"]
    return Case(
        name=f"{rule['rule']} {rule['name']}",
        outcome=outcome,
        why=line(why),
        verdict=rule["verdict"],
        checked=rule["checked"],
        findings=shown,
        told=clean("\n".join(divergence.finding(one, page=page) for one in shown)),
    )


def _outcome(
    rule: Document, own: Sequence[Document], left_open: LeftOpen
) -> tuple[Outcome, str]:
    """Return what becomes of a rule, and why. own: its findings.

    One that is only for information passes: it sets no exit status either.
    """
    reason = rule["why"] or ""
    counting = [one for one in own if one["severity"] != "info"]
    bad = [one for one in counting if not one["suppressed"]]
    if bad:
        causes = ", ".join(dict.fromkeys(one["cause"] for one in bad))
        also = f"; {reason}" if reason else ""
        return Outcome.FAILED, f"{count(len(bad), 'finding')}, cause: {causes}{also}"
    if rule["verdict"] in left_open.get(rule["rule"], ()):
        return Outcome.ERROR, f"{rule['verdict']}: {reason}"
    if counting:
        reasons = "; ".join(dict.fromkeys(o["suppressed"]["reason"] for o in counting))
        many = count(len(counting), "finding")
        return Outcome.SKIPPED, f"{many} suppressed by the baseline: {reasons}"
    if rule["verdict"] in ("clean", "violated"):
        return Outcome.PASSED, reason
    return Outcome.SKIPPED, f"{rule['verdict']}: {reason}"


def audited(audit: Document, left_open: LeftOpen) -> Case:
    """Return the case of the model itself, held against the kernel's own count."""
    if audit["differences"]:
        outcome, why = Outcome.ERROR, "the model is wrong; this is an error of cdmtrace"
    elif audit["vmas"]:
        outcome, why = Outcome.PASSED, ""
    else:
        outcome = Outcome.ERROR if left_open else Outcome.SKIPPED
        why = "the audit compared nothing"
    return Case(
        name="audit",
        outcome=outcome,
        why=why,
        verdict=outcome.value,
        checked=audit["vmas"],
        told=divergence.audit(audit) if audit["differences"] else "",
    )


def clean(text: str) -> str:
    """Return text in which nothing but the ends of lines moves a cursor.

    That leaves no character that XML 1.0, YAML or a log of CI cannot hold.
    """
    return "".join(c if c.isprintable() or c == "\n" else "?" for c in text)


def line(text: str) -> str:
    """Return the same in one line."""
    return clean(text).replace("\n", " ")
