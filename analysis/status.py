"""From a verdict to the exit status of ``check``, and of ``compare``."""

from __future__ import annotations

from collections.abc import Iterable

from cdmtrace.analysis.baseline import NONE, Baseline
from cdmtrace.analysis.compare import Comparison
from cdmtrace.analysis.replay import Result, Verdict
from cdmtrace.analysis.rules import Severity
from cdmtrace.errors import ExitStatus


def exit_status(
    results: Iterable[Result],
    *,
    named: bool,
    allow_inconclusive: bool,
    known: Baseline = NONE,
) -> ExitStatus:
    """Return TROUBLE where an audit found the model wrong: then nothing else counts;
    FINDINGS for a finding of severity warning or error; else INCONCLUSIVE for a rule
    that losses or missing probes touch, or an audit that compared nothing; else OK.

    named, allow_inconclusive: as for open_verdicts(). known: findings that don't count.
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
    left_open = open_verdicts(named=named, allow_inconclusive=allow_inconclusive)
    if any(
        any(one.verdict in left_open for one in result.rules)
        or (left_open and result.audit and not result.audit.vmas)
        for result in several
    ):
        return ExitStatus.INCONCLUSIVE
    return ExitStatus.OK


def open_verdicts(*, named: bool, allow_inconclusive: bool) -> frozenset[Verdict]:
    """Return the verdicts of a rule that leave open whether all is well.

    named: the rules were asked for by name; then one that cannot be checked counts
    as inconclusive. allow_inconclusive: whatever is open is let pass.
    """
    if allow_inconclusive:
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
