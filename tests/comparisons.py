"""Pairs of recordings to compare, in the world of SimKernel."""

from __future__ import annotations

import simstory
from msgspec.structs import replace
from rulecases import CASES, nothing, run
from simkernel import SimKernel

from cdmtrace.analysis import check
from cdmtrace.analysis.compare import Comparison, Status, compare
from cdmtrace.analysis.result import Result
from cdmtrace.analysis.rules import BY_ID


def story(*quirks: str) -> Result:
    kernel = SimKernel(*quirks)
    simstory.tell(kernel)
    return check(kernel.trace())


def judged(kernel: SimKernel, rule: str) -> Result:
    return check(kernel.trace(), profile=min(BY_ID[rule].profiles), rules={rule})


def broken(rule: str) -> SimKernel:
    case = CASES[rule]
    return run(case.breaks, *case.quirks)


def kept(rule: str) -> SimKernel:
    case = CASES[rule]
    return run(case.keeps, *case.kept)


def lossy(kernel: SimKernel, probe: str) -> SimKernel:
    kernel.lose(probe, kernel.events[0].ts)
    return kernel


def statuses(comparison: Comparison) -> set[Status]:
    return {change.status for change in comparison.findings}


def vacuous(rule: str) -> SimKernel:
    return run(nothing)


def with_filters(**filters: object) -> Result:
    trace = story().trace
    terms = replace(trace.terms, filters=filters)
    return check(replace(trace, terms=terms))


def comparisons() -> dict[str, Comparison]:
    """One for each status, and some with several."""
    rule = "CDM006"
    bad, blind = judged(broken(rule), rule), judged(vacuous(rule), rule)
    return {
        "nothing": compare(story(), story()),
        "new": compare(story(), story("rfc")),
        "gone": compare(story("rfc"), story()),
        "mixed": compare(story("one-way"), story("one-way", "bind-only")),
        "not in A": compare(blind, bad),
        "not in B": compare(bad, blind),
        "stock": compare(story("rfc"), story("stock")),
        "info": compare(
            judged(kept("CDM017"), "CDM017"), judged(broken("CDM017"), "CDM017")
        ),
    }
