"""From a verdict to the exit status of ``check``, and of ``compare``."""

from __future__ import annotations

from collections.abc import Iterable

from cdmtrace.analysis.compare import Comparison
from cdmtrace.analysis.replay import Result, Verdict
from cdmtrace.analysis.rules import Severity
from cdmtrace.errors import ExitStatus


def exit_status(
    results: Iterable[Result], *, named: bool, allow_inconclusive: bool
) -> ExitStatus:
    """Return TROUBLE where an audit found the model wrong: then nothing else counts;
    FINDINGS for a finding of severity warning or error; else INCONCLUSIVE for a rule
    that losses or missing probes touch, or an audit that compared nothing; else OK.

    named: the rules were asked for by name; then one that cannot be checked counts
    as inconclusive.
    """
    several = list(results)
    if any(map(_wrong, several)):
        return ExitStatus.TROUBLE
    if any(
        finding.rule.severity is not Severity.INFO
        for result in several
        for finding in result.findings
    ):
        return ExitStatus.FINDINGS
    open_verdicts = {Verdict.INCONCLUSIVE} | ({Verdict.UNCHECKED} if named else set())
    if not allow_inconclusive and any(
        any(one.verdict in open_verdicts for one in result.rules)
        or (result.audit and not result.audit.vmas)
        for result in several
    ):
        return ExitStatus.INCONCLUSIVE
    return ExitStatus.OK


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
