"""KSM and tagged VMAs: CDM005."""

from __future__ import annotations

from typing import Final

from cdmtrace.analysis import names
from cdmtrace.analysis.frames import Terms
from cdmtrace.analysis.notes import Note, Settled
from cdmtrace.analysis.rules.common import LIFE, chain, closing, flags_of, writer
from cdmtrace.analysis.rules.rule import Judgement, Rule, Severity, Violation


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
    return Judgement(
        since=rise.event.ts_entry, until=note.event.ts, violation=violation
    )


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
)
