"""From a verdict to the exit status of ``check``, and of ``compare``."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Final

from cdmtrace.analysis.baseline import NONE, Baseline
from cdmtrace.analysis.compare import Comparison
from cdmtrace.analysis.result import Result, Verdict
from cdmtrace.analysis.rules import Rule, Severity
from cdmtrace.errors import ExitStatus

LeftOpen = Mapping[str, frozenset[Verdict]]
"""By the id of a rule, the verdicts of it that leave open whether all is well."""

WORST_FIRST: Final = (
    Verdict.VIOLATED,
    Verdict.INCONCLUSIVE,
    Verdict.CLEAN,
    Verdict.VACUOUS,
    Verdict.UNCHECKED,
)
"""That of a run is the first of these that one of its rules has, and that of a fleet
the first that one of its recordings has."""


def worst(verdicts: Collection[Verdict]) -> Verdict:
    """Return the worst of some verdicts; of none, that nothing was checked."""
    return next((one for one in WORST_FIRST if one in verdicts), Verdict.UNCHECKED)


def verdict(result: Result, *, named: bool) -> Verdict:
    """Return the verdict of a run: the worst of the rules that count for it.

    A rule for information does not count: whatever it could have found would set no
    exit status, so neither does that it is open. If it was asked for by name, it counts
    as all others do; but what it has found violates nothing.
    """
    verdicts = {
        Verdict.CLEAN
        if one.verdict is Verdict.VIOLATED and one.rule.severity is Severity.INFO
        else one.verdict
        for one in result.rules
        if _counts(one.rule, named=named)
    }
    return worst(verdicts)


def _counts(rule: Rule, *, named: bool) -> bool:
    return named or rule.severity is not Severity.INFO


def exit_status(
    results: Iterable[Result],
    *,
    named: bool,
    allow_inconclusive: bool,
    known: Baseline = NONE,
) -> ExitStatus:
    """Return TROUBLE where an audit found the model wrong: then nothing else counts;
    FINDINGS for a finding of severity warning or error; else INCONCLUSIVE for a rule
    that counts and is left open, or an audit that compared nothing; else OK.

    named, allow_inconclusive: as for left_open(). known: findings that don't count.
    """
    several = list(results)
    if any(map(_wrong, several)):
        return ExitStatus.TROUBLE
    if any(
        finding.rule.severity is not Severity.INFO and not known.suppresses(finding)
        for result in several
        for finding in result.findings
    ):
        return ExitStatus.FINDINGS
    if allow_inconclusive:
        return ExitStatus.OK
    if any(
        any(one.verdict in _open(one.rule, named=named) for one in result.rules)
        or (result.audit and not result.audit.vmas)
        for result in several
    ):
        return ExitStatus.INCONCLUSIVE
    return ExitStatus.OK


def left_open(
    rules: Iterable[Rule], *, named: bool, allow_inconclusive: bool
) -> LeftOpen:
    """Return by which verdicts of which rules check ends with 3.

    named: the rules were asked for by name; then one that cannot be checked counts
    as inconclusive, and one for information counts. allow_inconclusive: whatever is
    open is let pass.
    """
    if allow_inconclusive:
        return {}
    return {rule.id: _open(rule, named=named) for rule in rules}


def _open(rule: Rule, *, named: bool) -> frozenset[Verdict]:
    if not _counts(rule, named=named):
        return frozenset()
    return frozenset({Verdict.INCONCLUSIVE} | ({Verdict.UNCHECKED} if named else set()))


def compared(comparison: Comparison) -> ExitStatus:
    """Return TROUBLE where an audit found the model wrong, as above; FINDINGS where not
    all is as expected; else OK.
    """
    if _wrong(comparison.a) or _wrong(comparison.b):
        return ExitStatus.TROUBLE
    return ExitStatus.OK if comparison.as_expected else ExitStatus.FINDINGS


def _wrong(result: Result) -> bool:
    """Return whether an audit found the model wrong."""
    return bool(result.audit and result.audit.differences)
