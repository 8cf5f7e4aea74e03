"""A result as plain data: what ``check --format json`` prints, and what is rendered."""

from __future__ import annotations

from typing import Any, Final

from cdmtrace.analysis import status
from cdmtrace.analysis.audit import Audit
from cdmtrace.analysis.baseline import NONE, Baseline
from cdmtrace.analysis.compare import Change, Comparison, RulePair
from cdmtrace.analysis.frames import Terms, Trace
from cdmtrace.analysis.invariants import Invariant
from cdmtrace.analysis.result import (
    Finding,
    Observed,
    Result,
    RuleResult,
    Shadowed,
    Step,
)
from cdmtrace.analysis.rules import Rule
from cdmtrace.analysis.touched import Cell
from cdmtrace.events import Probe

SCHEMA: Final = "cdmtrace.check/1"
COMPARE_SCHEMA: Final = "cdmtrace.compare/1"

Document = dict[str, Any]


def check(result: Result, known: Baseline = NONE, *, named: bool = False) -> Document:
    """Return the document of ``cdmtrace.check/1``. known: what is suppressed. named:
    the rules were asked for by name.

    Times in ns; addresses and masks are text in hexadecimal, for they may pass
    2**53, beyond which JSON's readers round.
    """
    terms = result.trace.terms
    suppressed = [one.rule.id for one in result.findings if known.suppresses(one)]
    return {
        "schema": SCHEMA,
        "verdict": status.verdict(result, named=named).value,
        "profile": result.profile.name,
        "trace": trace(result.trace),
        "baseline": {"file": known.file, "suppressed": len(suppressed)}
        if known.file
        else None,
        "rules": [
            {
                "rule": one.rule.id,
                "name": one.rule.name,
                **_outcome(one),
                "suppressed": suppressed.count(one.rule.id),
            }
            for one in result.rules
        ],
        "findings": [
            {**_finding(finding), "suppressed": _suppressed(finding, known)}
            for finding in result.findings
        ],
        "audit": _audit(result.audit) if result.audit else None,
        "shadow": shadow(result.shadow, terms) if result.shadow else None,
        "services": services(result.services, terms)
        if result.profile.name == "np"
        else None,
    }


def _suppressed(finding: Finding, known: Baseline) -> Document | None:
    entry = known.entries.get(finding.fingerprint)
    return {"reason": entry.reason} if entry else None


def trace(one: Trace) -> Document:
    """Return what there is to say of a recording itself, and what it lacks."""
    terms = one.terms
    return {
        "path": one.path,
        "files": list(one.files or (one.path,)),
        "rows_before": one.before.count if one.before else 0,
        "kernel": terms.kernel,
        "events": one.count,
        "lost": one.lost,
        "clean_end": one.clean_end,
        "cut": one.cut,
        "cdm_nodes": list(terms.nodes),
        "vm_cdm_mask": hex(terms.tag),
        "page_size": terms.page,
        "filters": dict(terms.filters),
    }


def _outcome(one: RuleResult) -> Document:
    return {
        "verdict": one.verdict.value,
        "checked": one.checked,
        "why": one.why,
        "findings": one.findings,
    }


def compare(comparison: Comparison, *, named: bool = False) -> Document:
    """Return the document of ``cdmtrace.compare/1``; units and named as in check()."""
    both = comparison.a, comparison.b
    a, b = (
        {
            "verdict": status.verdict(result, named=named).value,
            "findings": len(result.findings),
            "trace": trace(result.trace),
            "audit": _audit(result.audit) if result.audit else None,
        }
        for result in both
    )
    return {
        "schema": COMPARE_SCHEMA,
        "as_expected": comparison.as_expected,
        "profile": comparison.a.profile.name,
        "a": a,
        "b": b,
        "unlike": [
            {"what": one.what, "a": one.a, "b": one.b} for one in comparison.unlike
        ],
        "rules": [_pair(one) for one in comparison.rules],
        "findings": [_change(one) for one in comparison.findings],
    }


def _pair(one: RulePair) -> Document:
    return {
        "rule": one.rule.id,
        "name": one.rule.name,
        "changed": one.changed,
        "blinder": one.blinder,
        "a": _outcome(one.a),
        "b": _outcome(one.b),
    }


def _change(one: Change) -> Document:
    return {
        "status": one.status.value,
        "a": one.a,
        "b": one.b,
        "why": one.why,
        "finding": _finding(one.finding),
    }


def services(observed: Observed, terms: Terms) -> Document:
    """Return what each service did to the pages of each node, and whether it may."""
    return {
        "why": observed.why,
        "cells": [_cell(cell, terms) for cell in observed.cells],
    }


def _cell(cell: Cell, terms: Terms) -> Document:
    first = cell.first
    return {
        "node": cell.node,
        "service": cell.service.name,
        "flag": cell.service.flag,
        "does": cell.service.does,
        "allowed": cell.allowed,
        "observed": cell.pages > 0,
        "unchecked": cell.unchecked,
        "pages": {"came": cell.came, "left": cell.left, "stayed": cell.stayed},
        "first": {
            "seq": first.seq,
            "ts": first.ts,
            "since_start": first.ts - terms.started,
        }
        if first
        else None,
        "by": [{"comm": comm, "pages": pages} for comm, pages in cell.by.items()],
    }


def shadow(found: Shadowed, terms: Terms) -> Document:
    """Return which VMAs would have to be tagged, where there is no VM_CDM."""
    return {
        "why": found.why,
        "vmas": [
            {
                "pid": mm.pid,
                "comm": mm.comm,
                "mm": mm.label,
                "vma": {"start": hex(due.start), "end": hex(due.end)},
                "clause": due.clause,
                "because": due.why,
                "pages": {
                    f"N{node}": size // terms.page for node, size in due.pages.items()
                },
                "since": {
                    "seq": due.since.seq,
                    "ts": due.since.ts,
                    "since_start": due.since.ts - terms.started,
                    "before": due.since.probe == Probe.SNAPSHOT,
                },
                "until": {
                    "seq": due.until.seq,
                    "ts": due.until.ts,
                    "since_start": due.until.ts - terms.started,
                }
                if due.until
                else None,
                "holds": not due.until and not due.ended,
            }
            for mm, due in found.vmas
        ],
    }


def _audit(audit: Audit) -> Document:
    return {
        "looks": audit.looks,
        "vmas": audit.vmas,
        "pages": audit.pages,
        "moving": audit.moving,
        "unknown": audit.unknown,
        "differences": [
            {
                "pid": one.pid,
                "mm": f"{one.mm:016x}",
                "vma": {"start": hex(one.start), "end": hex(one.end)},
                "model": {f"N{node}": n for node, n in sorted(one.model.items())},
                "kernel": {f"N{node}": n for node, n in sorted(one.kernel.items())},
                "seq": one.seq,
            }
            for one in audit.differences
        ],
    }


def _finding(finding: Finding) -> Document:
    return {
        "rule": finding.rule.id,
        "name": finding.rule.name,
        "severity": finding.rule.severity.value,
        "cause": finding.cause,
        "pid": finding.mm.pid,
        "comm": finding.mm.comm,
        "mm": finding.mm.label,
        "vma": {"start": hex(finding.start), "end": hex(finding.end)},
        "expected": finding.expected,
        "observed": finding.observed,
        "witness": [_step(step) for step in finding.witness],
        "fingerprint": finding.fingerprint,
        "count": finding.count,
        "breaks": finding.breaks,
    }


def _step(step: Step) -> Document:
    return {
        "seq": step.seq,
        "ts": step.ts,
        "since_start": step.since_start,
        "probe": step.probe,
        "kind": step.kind,
        "what": step.what,
        "cpu": step.cpu,
        "pid": step.pid,
        "tid": step.tid,
        "comm": step.comm,
        "lock": step.lock,
        "before": step.before,
        "after": step.after,
        "stack": list(step.stack),
    }


def rule(one: Rule) -> Document:
    """Return what ``explain`` says of a rule."""
    return {
        "rule": one.id,
        "name": one.name,
        "severity": one.severity.value,
        "statement": one.statement,
        "premise": one.premise,
        "source": one.source,
        "breaks": one.sentence,
        "events": list(one.events),
        "needs": sorted(one.needs),
        "leans": sorted(one.leans),
        "stacks": one.stacks,
        "tagless": one.tagless,
        "threats": list(one.threats),
        "limits": list(one.limits),
        "profiles": sorted(one.profiles),
    }


def invariant(one: Invariant) -> Document:
    """Return what ``explain --all`` says of an invariant."""
    return {
        "invariant": one.id,
        "name": one.name,
        "statement": one.statement,
        "rules": list(one.rules),
        "seen by": one.seen_by,
        "not yet": one.not_yet,
        "why not": one.why_not,
    }
