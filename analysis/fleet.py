"""Many recordings as a whole: what was found in which of them, and the worst of it.

Made of documents, one for each recording, which may come from other machines.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Final

from cdmtrace.analysis import baseline, document, status, sums
from cdmtrace.analysis.baseline import Baseline
from cdmtrace.analysis.frames import Trace
from cdmtrace.analysis.result import Verdict
from cdmtrace.analysis.rules import Severity
from cdmtrace.errors import ExitStatus

CHECK_SCHEMA: Final = "cdmtrace.fleet-check/1"
REPORT_SCHEMA: Final = "cdmtrace.fleet-report/1"

Document = dict[str, Any]
Documents = Sequence[Mapping[str, Any]]

_STATUSES: Final = (
    ExitStatus.TROUBLE,
    ExitStatus.FINDINGS,
    ExitStatus.INCONCLUSIVE,
    ExitStatus.OK,
)
"""Exit statuses of check, the worst first."""

_SEVERITIES: Final = [severity.value for severity in Severity]

# --- one recording ------------------------------------------------------------


def judged(found: Document, status: int, *, full: bool) -> Document:
    """Return what a fleet has to know of a recording that was checked.

    found: of ``cdmtrace.check/1``. status: the exit status of a check of this one.
    full: that document is in it, too; without, it grows with what differs only.
    """
    return {
        "status": status,
        "verdict": found["verdict"],
        "trace": found["trace"],
        "audit_differences": len(found["audit"]["differences"])
        if found["audit"]
        else None,
        "rules": found["rules"],
        "findings": _by_fingerprint(found["findings"]),
        **({"check": found} if full else {}),
    }


def _by_fingerprint(findings: Documents) -> list[Document]:
    number = Counter[str](one["fingerprint"] for one in findings)
    first: dict[str, Document] = {}
    keys = ("fingerprint", "rule", "name", "severity", "cause", "comm", "suppressed")
    for one in findings:
        id_ = one["fingerprint"]
        first.setdefault(
            id_, {**{key: one[key] for key in keys}, "findings": number[id_]}
        )
    return list(first.values())


def counted(trace: Trace, tables: Mapping[str, sums.Rows], *, full: bool) -> Document:
    """Return what a fleet has to know of a recording that was reported on.

    tables: of ``report``. full: they are in it, too.
    """
    probes = trace.terms.probes
    return {
        "trace": document.trace(trace),
        "not_attached": [name for name, symbol in probes.items() if symbol is None],
        "traffic": sums.of_one(tables),
        **({"tables": tables} if full else {}),
    }


# --- all of them --------------------------------------------------------------


def check(recordings: Documents, failed: Documents, profile: str) -> Document:
    """Return the document of ``cdmtrace.fleet-check/1``.

    recordings: as judged() has them, with their names. failed: those that could not be
    judged, with the reason.
    """
    verdicts = {Verdict(one["verdict"]) for one in recordings}
    return {
        "schema": CHECK_SCHEMA,
        "status": _worst([one["status"] for one in recordings], failed),
        "verdict": status.worst(verdicts).value,
        "profile": profile,
        "recordings": list(recordings),
        "rules": _rules(recordings),
        "findings": _findings(recordings),
        "failed": list(failed),
    }


def report(recordings: Documents, failed: Documents) -> Document:
    """Return the document of ``cdmtrace.fleet-report/1``.

    recordings: as counted() has them, with their names.
    """
    return {
        "schema": REPORT_SCHEMA,
        "status": _worst([], failed),
        "recordings": list(recordings),
        "tables": sums.added(one["traffic"] for one in recordings),
        "failed": list(failed),
    }


def stale(known: Baseline, told: Document) -> list[baseline.Entry]:
    """Return the entries of a baseline that nothing in a fleet was found of, though it
    could have been: none where a recording was not judged. told: of check().
    """
    if told["failed"]:
        return []
    return baseline.unmet(
        known,
        found={one["fingerprint"] for one in told["findings"]},
        profiles={told["profile"]} if told["recordings"] else (),
        judged={
            rule["rule"]
            for one in told["recordings"]
            for rule in one["rules"]
            if rule["verdict"] == Verdict.CLEAN.value or rule["why"] is None
        },
    )


def nodes(recordings: Documents) -> set[int]:
    """Return the CDM nodes that there are in any."""
    return {node for one in recordings for node in one["trace"]["cdm_nodes"]}


def _worst(statuses: Collection[int], failed: Documents) -> int:
    if failed:
        return int(ExitStatus.TROUBLE)
    return int(next((one for one in _STATUSES if one in statuses), ExitStatus.OK))


def _rules(recordings: Documents) -> list[Document]:
    found: dict[str, Document] = {}
    for rule in (rule for one in recordings for rule in one["rules"]):
        told = found.setdefault(
            rule["rule"],
            {
                "rule": rule["rule"],
                "name": rule["name"],
                "checked": 0,
                "findings": 0,
                "suppressed": 0,
                "recordings": {one.value: 0 for one in status.WORST_FIRST},
            },
        )
        for key in ("checked", "findings", "suppressed"):
            told[key] += rule[key]
        told["recordings"][rule["verdict"]] += 1
    return list(found.values())


def _findings(recordings: Documents) -> list[Document]:
    """Return what was found, once for each fingerprint; what is in most comes first."""
    found: dict[str, Document] = {}
    for one in recordings:
        for finding in one["findings"]:
            told = found.setdefault(
                finding["fingerprint"], {**finding, "findings": 0, "recordings": []}
            )
            told["findings"] += finding["findings"]
            told["recordings"].append(
                {"name": one["name"], "findings": finding["findings"]}
            )
    return sorted(found.values(), key=_turn)


def _turn(finding: Mapping[str, Any]) -> tuple[Any, ...]:
    return (
        finding["suppressed"] is not None,
        _SEVERITIES.index(finding["severity"]),
        -len(finding["recordings"]),
        finding["rule"],
        finding["fingerprint"],
    )
