"""Which VMAs of a recording are worth a look, the worst first."""

from __future__ import annotations

import bisect
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from cdmtrace.analysis.book import NAMES
from cdmtrace.analysis.collector import Collector, Vma
from cdmtrace.analysis.frames import Terms, Trace
from cdmtrace.analysis.replay import check
from cdmtrace.analysis.result import Finding, Mm, Result
from cdmtrace.analysis.rules import Rule, Severity
from cdmtrace.analysis.timeline import seconds
from cdmtrace.analysis.traffic import Space

_WORST_FIRST: Final = (Severity.ERROR, Severity.WARNING, Severity.INFO)


@dataclass(frozen=True, kw_only=True, slots=True)
class Candidates:
    """All VMAs of a recording, those that are worth most first, and the mms."""

    vmas: tuple[Vma, ...]
    mms: Mapping[Space, Mm]
    terms: Terms

    def pid(self, vma: Vma) -> int:
        """Return the process of a VMA, 0 if it is not known."""
        return self.mms[vma.space].pid

    def often(self) -> set[int]:
        """Return the ids of VMAs whose address others of the process have held, too."""
        by_pid: dict[int, list[Vma]] = defaultdict(list)
        for vma in self.vmas:
            by_pid[self.pid(vma)].append(vma)
        found = set()
        for vmas in by_pid.values():
            lows = sorted(low for vma in vmas for low, _ in vma.places)
            highs = sorted(high for vma in vmas for _, high in vma.places)
            for vma in vmas:
                began = bisect.bisect_right(lows, vma.start)
                if began - bisect.bisect_right(highs, vma.start) > 1:
                    found.add(id(vma))
        return found

    @property
    def processes(self) -> dict[int, str]:
        """Pid -> name of each process of which an address space was recorded."""
        return {mm.pid: mm.comm for mm in self.mms.values()}


def collect(trace: Trace, *, profile: str, own: Sequence[Rule] = ()) -> Candidates:
    """Return what there is. own: rules beside those of this version.

    Raises KeyError for a profile that does not exist.
    """
    collector = Collector(trace.terms)
    result = check(
        trace, profile=profile, follower=collector.take, own=own, bounds=NAMES
    )
    return judged(collector, result)


def judged(collector: Collector, result: Result) -> Candidates:
    """Return what a collector has seen, by what came of it."""
    vmas = collector.all
    by_space = by_spaces(vmas)
    for finding in result.findings:
        vma = owner(finding, by_space[finding.mm.id, finding.mm.generation])
        if vma:
            vma.findings.append(finding)
    return Candidates(
        vmas=tuple(ranked(vmas)),
        mms={(life.mm.id, life.mm.generation): life.mm for life in result.lives},
        terms=result.trace.terms,
    )


def by_spaces(vmas: Iterable[Vma]) -> Mapping[Space, list[Vma]]:
    """Return VMAs by address space: of one there are few, and of all may be many."""
    found: dict[Space, list[Vma]] = defaultdict(list)
    for vma in vmas:
        found[vma.space].append(vma)
    return found


def ranked(vmas: Iterable[Vma]) -> list[Vma]:
    """Return VMAs in the order in which they are worth a look."""
    return sorted(
        vmas,
        key=lambda vma: (*_weight(vma.findings), -vma.most, -vma.changes, vma.first),
    )


def _weight(findings: Iterable[Finding]) -> tuple[int, ...]:
    """Return a key by which what is worse comes first: errors, warnings, the others."""
    found = Counter(finding.rule.severity for finding in findings)
    return tuple(-found[severity] for severity in _WORST_FIRST)


def owner(finding: Finding, vmas: Iterable[Vma]) -> Vma | None:
    """Return the VMA that a finding is about: the one that has most of its range."""
    space = finding.mm.id, finding.mm.generation
    shares = [
        (vma.shares(finding.start, finding.end), vma.first, number, vma)
        for number, vma in enumerate(vmas)
        if vma.space == space and vma.first <= finding.seq <= vma.last
    ]
    best = max(shares, key=lambda share: share[:3], default=None)
    return best[3] if best and best[0] > 0 else None


def rows(
    found: Candidates, *, pid: int | None, addr: int | None
) -> list[dict[str, Any]]:
    """Return the VMAs that are worth a look, of a process or with an address if given.

    most: base pages of CDM nodes, the most at a time. at: when it held the address at
    which it starts, where others have held it at other times; else None.
    """
    often = found.often()
    return [
        {
            "pid": found.pid(vma),
            "comm": found.mms[vma.space].comm or None,
            "VMA": f"{vma.start:x}-{vma.end:x}",
            "findings": len(vma.findings),
            "most on CDM": vma.most,
            "changes": vma.changes,
            "since (s)": seconds(vma.since, found.terms),
            "at": seconds(vma.seen, found.terms) if id(vma) in often else None,
            "why": _why(vma),
        }
        for vma in found.vmas
        if vma.worth
        and pid in (None, found.pid(vma))
        and (addr is None or vma.holds(addr))
    ]


def _why(vma: Vma) -> str:
    if vma.findings:
        told = dict.fromkeys(f"{f.rule.id} {f.rule.name}" for f in vma.findings)
        return ", ".join(told)
    if vma.most:
        return "pages of CDM nodes"
    return "its flags or policy changed"
