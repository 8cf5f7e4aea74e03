"""What a rule is, and what it says of one note of the model."""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum

import msgspec

from cdmtrace.analysis.frames import Event, Terms
from cdmtrace.analysis.notes import Note


class Severity(Enum):
    """How bad it is; info never sets an exit status."""

    ERROR = "error"
    WARNING = "warning"
    INFO = "info"


class Violation(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A rule is broken in [start, end).

    expected, observed: what the model requires, what the kernel had, in words.
    witness: the shortest chain of rows that shows it, in order. shape: what makes
    two violations the same one across reboots; no address, pid or time. breaks:
    the sentence of the review, where it is not the rule's own.
    """

    cause: str
    start: int
    end: int
    expected: str
    observed: str
    witness: tuple[Event, ...]
    shape: tuple[str, ...]
    breaks: str | None = None


class Judgement(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One premise of a rule that held.

    window: the first and the last time that the answer rests on, ns; a loss between
    them makes it worthless. None where the rows at hand say it all. unknown: why it
    cannot be told. violation: None if all is well.
    """

    window: tuple[int, int] | None = None
    violation: Violation | None = None
    unknown: str | None = None


Judge = Callable[[Note, Terms, str], Judgement | None]


class Rule(msgspec.Struct, frozen=True, kw_only=True):
    """A rule and everything that ``explain`` says of it.

    needs: probes without which the premise cannot be seen. leans: probes without
    which the answer may be wrong. stacks: so are stacks, of "all" that has one, or of
    "changes" of vm_flags; "": none. once: one finding for a VMA and a cause, and not
    one for each event. tagless: it asks nothing of the tag, so that it is checked where
    the kernel has no VM_CDM, too. departures: it looks at stacks of what leaves a node,
    without which it may miss something. sentence: the one of the review that a
    violation breaks. note: the only class of notes that it judges; None: it may be any.
    """

    id: str
    name: str
    severity: Severity
    statement: str
    premise: str
    source: str
    sentence: str
    events: tuple[str, ...]
    needs: frozenset[str]
    leans: frozenset[str]
    threats: tuple[str, ...]
    limits: tuple[str, ...]
    judge: Judge
    note: type[Note] | None = None
    profiles: frozenset[str] = frozenset({"intended"})
    once: bool = False
    stacks: str = ""
    tagless: bool = False
    departures: bool = False

    @property
    def probes(self) -> frozenset[str]:
        """Every probe whose losses matter."""
        return self.needs | self.leans
