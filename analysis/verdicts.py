"""What a recording comes to: verdicts, of what was counted while it was replayed.

A replay may be of the whole recording, or of some of its address spaces (partition.py):
what several have counted, each of its own, is put together here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Final

import msgspec
from msgspec.structs import replace

from cdmtrace import units
from cdmtrace.analysis import audit, names, touched
from cdmtrace.analysis.audit import Audit
from cdmtrace.analysis.frames import FOLLOWED, ROWS, Gap, Terms, Trace
from cdmtrace.analysis.permissions import Permissions
from cdmtrace.analysis.profiles import Profile
from cdmtrace.analysis.result import (
    Finding,
    Life,
    Mm,
    Observed,
    Result,
    RuleResult,
    Shadowed,
    Verdict,
)
from cdmtrace.analysis.rules import PART_OF, Rule
from cdmtrace.analysis.rules.tag import MISSING_TAG
from cdmtrace.analysis.services import NO_DEPARTURES
from cdmtrace.analysis.shadow import Due
from cdmtrace.analysis.touched import Touches
from cdmtrace.events import EventKind, Probe

WITHOUT_TAG: Final = "this kernel has no VM_CDM (shadow mode)"
"""Why a rule about the tag is unchecked."""

_WATCHPOINT: Final = Probe.WATCHPOINT.name.lower()
"""No rule needs it, or leans on it: record has none."""


class RuleCount(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """What was counted for one rule.

    applies: it is asked of this recording under this profile. checked: how often its
    premise held. unknown: why it could not be told, and how often. withheld: findings
    that a loss has taken back. count: findings, those that are not kept among them.
    gaps: what is missing that matters to it.
    """

    rule: Rule
    applies: bool
    checked: int
    unknown: Mapping[str, int]
    withheld: int
    count: int
    findings: tuple[Finding, ...]
    gaps: tuple[Gap, ...]


class Counted(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """What a replay has counted.

    lives: what is kept of address spaces; spaces: how many there were. touches: what
    services did; shadow: VMAs that would have to be tagged, None where nobody asks;
    serviceless, shadowless: what is missing that matters to these two.
    """

    rules: tuple[RuleCount, ...]
    lives: tuple[Life, ...]
    spaces: int
    audit: Audit | None
    touches: Touches
    serviceless: tuple[Gap, ...]
    shadow: tuple[tuple[Mm, Due], ...] | None
    shadowless: tuple[Gap, ...]


def result_of(
    trace: Trace,
    profile: Profile,
    permissions: Permissions,
    parts: Sequence[Counted],
) -> Result:
    """Return what a recording comes to.

    parts: what was counted of its address spaces, each of which is in one of these. All
    were asked the same, and told of the same losses.
    """
    one = parts[0]
    if len(parts) > 1:
        one = _together(parts)
    return Result(
        trace=trace,
        profile=profile,
        rules=tuple(_judged(count, one, trace, profile) for count in one.rules),
        findings=tuple(
            sorted(
                (found for count in one.rules for found in count.findings),
                # One row may end a call that has to do with several address spaces.
                key=lambda one: (
                    *(one.seq, one.rule.id, one.mm.id, one.mm.generation),
                    *(one.start, one.cause),
                ),
            )
        ),
        lives=tuple(
            sorted(
                one.lives,
                key=lambda life: (life.mm.pid, life.mm.id, life.mm.generation),
            )
        ),
        audit=one.audit if one.audit and one.audit.asked else None,
        services=_observed(one, trace, permissions),
        shadow=_shadowed(one, trace),
    )


def _together(parts: Sequence[Counted]) -> Counted:
    shadows = [one.shadow for one in parts if one.shadow is not None]
    return replace(
        parts[0],
        rules=tuple(map(_added, zip(*(one.rules for one in parts), strict=True))),
        lives=tuple(life for one in parts for life in one.lives),
        spaces=sum(one.spaces for one in parts),
        audit=audit.together(one.audit for one in parts if one.audit),
        touches=touched.together(one.touches for one in parts),
        shadow=tuple(
            sorted(
                (due for shadow in shadows for due in shadow),
                key=lambda due: (due[1].since.seq, due[1].start, *due[1].space),
            )
        )
        if shadows
        else None,
    )


def _added(counts: Sequence[RuleCount]) -> RuleCount:
    """Return what was counted for one rule, all together."""
    unknown = Counter[str]()
    for one in counts:
        unknown.update(one.unknown)
    return replace(
        counts[0],
        checked=sum(one.checked for one in counts),
        unknown=unknown,
        withheld=sum(one.withheld for one in counts),
        count=sum(one.count for one in counts),
        findings=tuple(found for one in counts for found in one.findings),
    )


def _observed(one: Counted, trace: Trace, permissions: Permissions) -> Observed:
    reasons, touches, terms = [], one.touches, trace.terms
    if touches.unknown:
        pages = names.size(touches.unknown, terms.page)
        reasons.append(f"who moved or brought {pages} was not seen")
    if touches.by_reason:
        pages = names.size(touches.by_reason, terms.page)
        reasons.append(f"of {pages} only the kernel's reason says who moved them")
    if one.serviceless:
        reasons.append(_told(one.serviceless, one.spaces))
    reasons += _cut_off(trace)
    return Observed(
        cells=touched.cells(touches, terms, permissions),
        why="; ".join(reasons) or None,
    )


def _shadowed(one: Counted, trace: Trace) -> Shadowed | None:
    if one.shadow is None:
        return None
    absent = missing(MISSING_TAG.probes, trace.terms)
    reasons = [f"probe not attached: {', '.join(absent)}"] if absent else []
    if stackless(MISSING_TAG, trace.terms):
        reasons.append(f"recorded with --stacks {trace.terms.stacks}")
    if one.shadowless:
        reasons.append(_told(one.shadowless, one.spaces))
    reasons += _cut_off(trace)
    return Shadowed(vmas=one.shadow, why="; ".join(reasons) or None)


def _judged(
    count: RuleCount, counted: Counted, trace: Trace, profile: Profile
) -> RuleResult:
    verdict, why = _verdict(count, counted, trace, profile)
    return RuleResult(
        rule=count.rule,
        verdict=verdict,
        checked=count.checked,
        findings=count.count,
        why=why,
    )


def _verdict(
    count: RuleCount, counted: Counted, trace: Trace, profile: Profile
) -> tuple[Verdict, str | None]:
    rule, terms = count.rule, trace.terms
    if not (terms.tag or rule.tagless):
        return Verdict.UNCHECKED, WITHOUT_TAG
    if not count.applies:
        return Verdict.UNCHECKED, f"{profile.name} promises nothing like it"
    absent = missing(rule.needs, terms)
    if absent:
        return Verdict.UNCHECKED, f"probe not attached: {', '.join(absent)}"
    reasons = []
    absent = missing(rule.leans, terms)
    if absent:
        reasons.append(f"probe not attached: {', '.join(absent)}")
    if stackless(rule, terms):
        reasons.append(f"recorded with --stacks {terms.stacks}")
    if count.gaps:
        reasons.append(_told(count.gaps, counted.spaces))
    if rule.departures and not terms.departures:
        reasons.append(NO_DEPARTURES)
    if count.withheld:
        reasons += _cut_off(trace)
        reasons.append(f"{units.count(count.withheld, 'finding')} withheld for that")
    reasons += [f"{times:,} times: {why}" for why, times in _most_first(count.unknown)]
    why = "; ".join(reasons) or None
    if count.count:
        return Verdict.VIOLATED, why
    if reasons:
        return Verdict.INCONCLUSIVE, why
    if not count.checked:
        return Verdict.VACUOUS, f"not once was there {rule.premise}"
    return Verdict.CLEAN, None


def _most_first(counts: Mapping[str, int]) -> list[tuple[str, int]]:
    return sorted(counts.items(), key=lambda one: (-one[1], one[0]))


def _cut_off(trace: Trace) -> list[str]:
    """Return that the recording's beginning is not here, if that is so."""
    if trace.before is None:
        return []
    return [f"{trace.before.count:,} rows came before, and are missing"]


# --- why a rule is not judged, or not for sure --------------------------------------


def listed(rule: Rule, profile: Profile) -> bool:
    """Return whether a rule is judged where nobody says which."""
    return not rule.profiles.isdisjoint(profile.kin)


def applies(rule: Rule, profile: Profile, terms: Terms) -> bool:
    """Return whether a rule asks anything of a recording under a profile."""
    return profile.name in rule.profiles and bool(terms.tag or rule.tagless)


def asks_of_tag(profile: Profile) -> bool:
    """Return whether a profile is about the tag at all."""
    return "intended" in profile.kin


def concerns(gap: Gap, rule: Rule) -> bool:
    """Return whether what is missing matters to a rule."""
    if gap.probe in (FOLLOWED, ROWS):
        return bool(rule.probes)
    if gap.probe == _WATCHPOINT and EventKind.WRITE.name in rule.events:
        return True
    return PART_OF.get(gap.probe, gap.probe) in rule.probes


def stackless(rule: Rule, terms: Terms) -> bool:
    """Return whether stacks that the rule leans on were not taken."""
    taken = {"all": {"all", "changes"}, "changes": {"changes"}}
    return bool(rule.stacks) and rule.stacks not in taken.get(terms.stacks, ())


def missing(probes: Iterable[str], terms: Terms) -> list[str]:
    """Return the probes that were not attached."""
    return sorted(name for name in probes if not terms.probes.get(name))


def _told(gaps: Collection[Gap], mms: int) -> str:
    """Return what is missing, in words; mms: address spaces in the trace."""
    lost: dict[str, int] = {}
    for gap in gaps:
        lost[gap.probe] = lost.get(gap.probe, 0) + gap.count
    rows = [f"{gap.count:,} {gap.reason}" for gap in gaps if gap.probe == ROWS]
    gaps = [gap for gap in gaps if gap.probe != ROWS]
    lost.pop(ROWS, None)
    blind = {gap.mm for gap in gaps if gap.probe == FOLLOWED}
    told = [f"{n:,} of {probe}" for probe, n in lost.items() if probe != FOLLOWED]
    words = [f"events lost: {', '.join(told)}"] if told else []
    if told and all(gap.mm for gap in gaps):
        words[0] += f" (in {len({gap.mm for gap in gaps})} of {mms} address spaces)"
    if blind:
        spaces = "address space" if len(blind) == 1 else "address spaces"
        words.append(f"{len(blind)} {spaces} not followed (record --map-size)")
    if rows:
        words.append(f"rows missing: {', '.join(rows)}")
    return "; ".join(words)
