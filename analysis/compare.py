"""Two results of the same questions, held against each other by fingerprints.

A is what was before, B what is now: two kernels, or two versions of a patch. What is
not found in one of them says something only if it could have been found there: where a
rule could not be judged, it is neither new nor gone.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any, Final

from cdmtrace.analysis import names
from cdmtrace.analysis.frames import Terms
from cdmtrace.analysis.result import Finding, Result, RuleResult, Verdict
from cdmtrace.analysis.rules import Rule, Severity

NONE: Final = "none"
"""Instead of an empty list."""


class Status(Enum):
    """What became of a finding from A to B."""

    NEW = "new"
    NOT_JUDGED_IN_A = "not judged in A"
    GONE = "gone"
    NOT_JUDGED_IN_B = "not judged in B"
    UNCHANGED = "unchanged"


@dataclass(frozen=True, kw_only=True, slots=True)
class Change:
    """All findings of one fingerprint.

    finding: the first one in B, or in A where B has none. a, b: how many there are in
    each. why: why the one that has none could not be judged, None if it could.
    """

    status: Status
    finding: Finding
    a: int
    b: int
    why: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class RulePair:
    """What both say of one rule."""

    rule: Rule
    a: RuleResult
    b: RuleResult

    @property
    def changed(self) -> bool:
        """Whether the verdict is another one."""
        return self.a.verdict is not self.b.verdict

    @property
    def blinder(self) -> bool:
        """Whether A could judge the rule, and B could not."""
        return not_judged(self.a) is None and not_judged(self.b) is not None


@dataclass(frozen=True, kw_only=True, slots=True)
class Unlike:
    """Something in which two recordings have to be alike, to be compared, and are not.

    a, b: what it is in each, in words.
    """

    what: str
    a: str
    b: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """What differs between two results.

    findings: by status, in the order of Status. rules: all that were judged.
    """

    a: Result
    b: Result
    findings: tuple[Change, ...]
    rules: tuple[RulePair, ...]
    unlike: tuple[Unlike, ...]

    @property
    def as_expected(self) -> bool:
        """Whether B has no warning and no error that A has not.

        One that A could not judge counts: nobody has seen it be there before.
        """
        return not any(
            change.status in (Status.NEW, Status.NOT_JUDGED_IN_A)
            and change.finding.rule.severity is not Severity.INFO
            for change in self.findings
        )


def compare(a: Result, b: Result) -> Comparison:
    """Compare what was found in two recordings.

    Raises ValueError if they were not judged by the same profile and the same rules.
    """
    first, second = ({one.rule.id: one for one in r.rules} for r in (a, b))
    if first.keys() != second.keys() or a.profile.name != b.profile.name:
        raise ValueError("not judged by the same profile and rules")
    before, after = _by_fingerprint(a.findings), _by_fingerprint(b.findings)
    changes = [
        _change(before.get(one, []), after.get(one, []), first, second)
        for one in (*after, *(one for one in before if one not in after))
    ]
    return Comparison(
        a=a,
        b=b,
        findings=tuple(
            change for status in Status for change in changes if change.status is status
        ),
        rules=tuple(
            RulePair(rule=one.rule, a=one, b=second[id_]) for id_, one in first.items()
        ),
        unlike=tuple(_unlike(a, b)),
    )


def not_judged(result: RuleResult) -> str | None:
    """Return why it proves nothing that a rule has not found something; else None.

    A rule that found some and is open for others may have missed this one.
    """
    if result.verdict is Verdict.CLEAN:
        return None
    return result.why


def _by_fingerprint(findings: Iterable[Finding]) -> dict[str, list[Finding]]:
    found: dict[str, list[Finding]] = {}
    for one in findings:
        found.setdefault(one.fingerprint, []).append(one)
    return found


def _change(
    before: list[Finding],
    after: list[Finding],
    first: Mapping[str, RuleResult],
    second: Mapping[str, RuleResult],
) -> Change:
    finding = (after or before)[0]
    why = None
    if before and after:
        status = Status.UNCHANGED
    elif after:
        why = not_judged(first[finding.rule.id])
        status = Status.NOT_JUDGED_IN_A if why else Status.NEW
    else:
        why = not_judged(second[finding.rule.id])
        status = Status.NOT_JUDGED_IN_B if why else Status.GONE
    return Change(status=status, finding=finding, a=len(before), b=len(after), why=why)


def _unlike(a: Result, b: Result) -> Iterable[Unlike]:
    """Yield in what the recordings differ, and what could be found with it."""
    first, second = a.trace.terms, b.trace.terms
    told = [
        ("CDM nodes", *(names.nodes(terms.cdm) for terms in (first, second))),
        ("VM_CDM", *(_tag(terms) for terms in (first, second))),
        ("page size", *(f"{terms.page} bytes" for terms in (first, second))),
        *(
            (f"--{name}", *(_filter(terms, name) for terms in (first, second)))
            for name in dict.fromkeys((*first.filters, *second.filters))
        ),
        ("probes that only it has", *_probes(a, b)),
        ("stacks of departures", *(_taken(terms) for terms in (first, second))),
        ("who has findings", *_whose(a, b)),
    ]
    return (Unlike(what=what, a=one, b=two) for what, one, two in told if one != two)


def _tag(terms: Terms) -> str:
    return "there" if terms.tag else "none (shadow mode)"


def _taken(terms: Terms) -> str:
    return "taken" if terms.departures else "not taken"


def _filter(terms: Terms, name: str) -> str:
    """Return what a recording was asked to be restricted to, in words.

    A process has another number each time, so it only counts that there was one.
    """
    value: Any = terms.filters.get(name, "all" if name == "stacks" else None)
    if value is None:
        return "not given"
    if name in ("pid", "all"):
        return "given"
    if isinstance(value, list):
        return ",".join(map(str, value))
    return str(value)


def _probes(a: Result, b: Result) -> tuple[str, str]:
    """Return the probes that matter to a rule and are attached in one only."""
    used = {name for one in a.rules for name in one.rule.probes}
    first, second = (
        {name for name, symbol in terms.probes.items() if symbol} & used
        for terms in (a.trace.terms, b.trace.terms)
    )
    return _listed(first - second), _listed(second - first)


def _whose(a: Result, b: Result) -> tuple[str, str]:
    """Return who has findings, where both have some, and of nobody in common.

    Names of tasks are in a fingerprint, so that nothing can be unchanged then.
    """
    first, second = ({f.mm.comm for f in r.findings if f.end} for r in (a, b))
    if not (first and second) or first & second:
        return NONE, NONE
    return _listed(first), _listed(second)


def _listed(words: Iterable[str]) -> str:
    return ", ".join(word or "?" for word in sorted(words)) or NONE
