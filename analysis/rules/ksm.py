"""KSM and tagged VMAs: CDM005 to CDM007."""

from __future__ import annotations

from typing import Final

from cdmtrace.analysis import names
from cdmtrace.analysis.frames import Terms
from cdmtrace.analysis.notes import Advised, Note, Serviced, Settled
from cdmtrace.analysis.rules.common import (
    LIFE,
    chain,
    closing,
    flags_of,
    worked_on,
    writer,
)
from cdmtrace.analysis.rules.rule import Judgement, Rule, Severity, Violation
from cdmtrace.events import EventKind


def _ksm_left_on(note: Note, terms: Terms, profile: str) -> Judgement | None:
    del profile
    if not isinstance(note, Settled) or not note.facts.tag:
        return None
    area, rise = note.area, note.area.rise
    # What mbind() tagged by mistake is CDM011; with that mended, this is, too.
    if rise is None or area.over:
        return None
    violation = None
    if (area.flags or 0) & names.VM_MERGEABLE:
        violation = Violation(
            cause=writer(rise.event),
            start=area.start,
            end=area.end,
            expected="VM_MERGEABLE off and KSM's pages taken out where VM_CDM is set",
            observed=flags_of(note, terms),
            witness=chain(rise.before, rise.event, closing(note)),
            shape=(),
        )
    return Judgement(window=(rise.event.ts_entry, note.event.ts), violation=violation)


KSM_LEFT_ON: Final = Rule(
    id="CDM005",
    name="ksm-left-on",
    severity=Severity.WARNING,
    statement="VM_CDM and VM_MERGEABLE are both set when the write section, or "
    "the fault, that set VM_CDM ends.",
    premise="a tag that was set, at the end of its write section or fault",
    source="Dave Hansen on [RFC V2 11/12], 30 Jan 2017",
    sentence="\"When you *set* this flag, you don't go and turn off KSM merging, "
    "for instance. You keep it from being turned on from this point forward, but "
    "you don't turn it off.\"",
    events=("POLICY", "ALLOC", "FLAGS", "VMA_SPLIT", "VMA_MERGE", "CALL"),
    needs=frozenset({"mbind_range", "sys_mbind"}),
    leans=LIFE | {"alloc"},
    threats=("MADV_MERGEABLE on a VMA that is tagged already is CDM007",),
    limits=("whether KSM has merged a page in the meantime is CDM006",),
    judge=_ksm_left_on,
    note=Settled,
)


# --- CDM006 -------------------------------------------------------------------


def _ksm_merged(note: Note, terms: Terms, profile: str) -> Judgement | None:
    del profile
    return worked_on(
        note,
        terms,
        EventKind.KSM_PAGE,
        cause="ksm",
        expected="no page of a tagged VMA merged with others",
        observed=lambda event: (
            f"KSM put a page of node {event.node} for one of node {event.src_node}"
        ),
    )


KSM_MERGED: Final = Rule(
    id="CDM006",
    name="ksm-merged",
    severity=Severity.ERROR,
    statement="KSM replaced a page of a tagged VMA by another page.",
    premise="a page that KSM replaced where a tagged VMA is in the address space",
    source="Dave Hansen on [RFC V2 11/12], 30 Jan 2017; 10/12 means to keep KSM off",
    sentence='"You keep it from being turned on from this point forward, but you '
    "don't turn it off.\"",
    events=("KSM_PAGE",),
    needs=frozenset({"ksm_merge"}),
    leans=frozenset(),
    threats=("a page that KSM makes its own where it is has not been replaced",),
    limits=("why KSM could is CDM005 or CDM007",),
    judge=_ksm_merged,
    note=Serviced,
    once=True,
)

# --- CDM007 -------------------------------------------------------------------

_MADV_MERGEABLE: Final = 12


def _mergeable_honoured(note: Note, terms: Terms, profile: str) -> Judgement | None:
    del profile
    if not isinstance(note, Advised):
        return None
    event = note.event
    if event.arg != _MADV_MERGEABLE or not event.flags_before & terms.tag:
        return None
    violation = None
    if event.flags_after & ~event.flags_before & names.VM_MERGEABLE:
        violation = Violation(
            cause="madvise",
            start=event.start,
            end=event.end,
            expected="MADV_MERGEABLE without effect on a tagged VMA",
            observed="VM_MERGEABLE set by ksm_madvise()",
            witness=chain(event),
            shape=(),
        )
    return Judgement(violation=violation)


MERGEABLE_HONOURED: Final = Rule(
    id="CDM007",
    name="mergeable-honoured",
    severity=Severity.ERROR,
    statement="MADV_MERGEABLE took effect on a tagged VMA.",
    premise="MADV_MERGEABLE on a tagged VMA",
    source="10/12: ksm_madvise() leaves VMAs with VM_CDM alone",
    sentence='"You keep it from being turned on from this point forward"',
    events=("KSM_ADVICE",),
    needs=frozenset({"ksm_madvise"}),
    leans=frozenset(),
    threats=("advice for a VMA that is mergeable already changes nothing",),
    limits=("prctl(PR_SET_MEMORY_MERGE) of 6.4 and later does not come this way",),
    judge=_mergeable_honoured,
    note=Advised,
    profiles=frozenset({"intended", "rfc-v2"}),
)
