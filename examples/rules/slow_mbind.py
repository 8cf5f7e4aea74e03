"""LAB001: mbind() on a CDM node keeps the mmap lock for too long.

    cdmtrace check --rules-from slow_mbind.py my.arrows

The smallest rule that there can be: it looks at one kind of note, and all that it needs
is in the row of that note.
"""

from __future__ import annotations

from typing import Final

from cdmtrace.analysis.frames import Terms
from cdmtrace.analysis.notes import MbindEnded, Note
from cdmtrace.analysis.rules import Judgement, Rule, Severity, Violation

LIMIT: Final = 1_000_000
"""What an mbind() may take here, ns. A machine that is emulated needs more."""


def judge(note: Note, terms: Terms, profile: str) -> Judgement | None:
    """Judge each mbind() that named a CDM node, once it has returned."""
    if not isinstance(note, MbindEnded):
        return None
    call = note.event
    took = call.ts - call.ts_entry
    if took <= LIMIT:
        return Judgement()
    return Judgement(
        violation=Violation(
            cause="mbind",
            start=call.start,
            end=call.end,
            expected=f"mbind() returns within {LIMIT / 1e6:g} ms",
            # The time is another one in each run. It may be here, but not in shape:
            # what is there makes the id of a finding, which has to stay the same.
            observed=f"it took {took / 1e6:.3f} ms",
            witness=(call,),
            shape=(),
        )
    )


SLOW_MBIND: Final = Rule(
    id="LAB001",
    name="slow-mbind",
    severity=Severity.WARNING,
    statement=f"mbind() of a CDM node takes longer than {LIMIT / 1e6:g} ms.",
    premise="an mbind() that names a CDM node",
    source="the service level of our laboratory",
    sentence="Nobody waits for the mmap lock longer than a fault takes.",
    events=("CALL",),
    needs=frozenset({"sys_mbind"}),
    leans=frozenset(),
    threats=("a guest that is emulated is some twenty times as slow",),
    limits=("what it waited for is not told",),
    judge=judge,
)

RULES: Final = (SLOW_MBIND,)
