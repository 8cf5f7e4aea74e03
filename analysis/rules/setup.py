"""Is the recording about what it says it is: CDM020."""

from __future__ import annotations

from typing import Final

from cdmtrace.analysis.frames import Terms
from cdmtrace.analysis.notes import Began, Note
from cdmtrace.analysis.rules.common import chain
from cdmtrace.analysis.rules.rule import Judgement, Rule, Severity, Violation


def _bit_taken(note: Note, terms: Terms, profile: str) -> Judgement | None:
    del profile
    if not isinstance(note, Began):
        return None
    violation = None
    if terms.taken_by is not None:
        violation = Violation(
            cause="configuration",
            start=0,
            end=0,
            expected=f"bit {terms.tag.bit_length() - 1} of vm_flags free, or VM_CDM",
            observed=f"it is {terms.taken_by} on {terms.kernel}",
            witness=chain(note.event),
            shape=(terms.taken_by,),
        )
    return Judgement(violation=violation)


BIT_TAKEN: Final = Rule(
    id="CDM020",
    name="bit-taken",
    severity=Severity.ERROR,
    statement="The bit that is taken for VM_CDM means something else on the traced "
    "kernel.",
    premise="a recording that says which bit it took for VM_CDM",
    source="08/12 takes 0x00800000, which is VM_SYNC since 4.15 (include/linux/mm.h)",
    sentence='"Here\'s the flag definition: [...] #define VM_CDM 0x00800000"',
    events=("the recording's header",),
    needs=frozenset(),
    leans=frozenset(),
    threats=(
        "what the flags of a kernel are is read in the headers it was built with",
        "without these it is looked up by release, and what was added is not known",
    ),
    limits=("record refuses such a bit unless it is forced to take it",),
    judge=_bit_taken,
    note=Began,
    profiles=frozenset({"intended", "rfc-v2"}),
)
