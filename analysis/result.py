"""What a replay has found out: findings with their witnesses, and verdicts."""

from __future__ import annotations

from enum import Enum

import msgspec

from cdmtrace.analysis.audit import Audit
from cdmtrace.analysis.frames import Trace
from cdmtrace.analysis.profiles import Profile
from cdmtrace.analysis.rules import Rule
from cdmtrace.analysis.shadow import Due
from cdmtrace.analysis.state import State
from cdmtrace.analysis.touched import Cell


class Verdict(Enum):
    """What a run says of a rule, or of everything."""

    CLEAN = "clean"
    VIOLATED = "violated"
    INCONCLUSIVE = "inconclusive"
    VACUOUS = "vacuous"
    UNCHECKED = "unchecked"


class Mm(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One address space of the recording.

    id: as in the trace. generation: how many had the same id before. pid, comm: of
    the process whose it is; 0 and empty as long as no row of its own says so.
    """

    id: int
    generation: int
    pid: int
    comm: str

    @property
    def label(self) -> str:
        """A name for it that is unique within the recording."""
        return f"{self.id:016x}" + (f".{self.generation}" if self.generation else "")


class Step(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One event of a witness, in words. Times in ns, CLOCK_MONOTONIC.

    stack: the kernel's functions at that time, innermost first; empty where no stack
    was taken.
    """

    seq: int
    ts: int
    since_start: int
    probe: str
    kind: str
    what: str
    cpu: int
    pid: int
    tid: int
    comm: str
    lock: str
    before: str
    after: str
    stack: tuple[str, ...]


class Finding(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One divergence between kernel and model.

    count: how many events the one finding stands for. seq: where it was found.
    """

    rule: Rule
    cause: str
    mm: Mm
    start: int
    end: int
    expected: str
    observed: str
    witness: tuple[Step, ...]
    fingerprint: str
    breaks: str
    seq: int
    count: int = 1


class RuleResult(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """What a run says of one rule; checked: how often its premise held."""

    rule: Rule
    verdict: Verdict
    checked: int
    findings: int
    why: str | None


class Life(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """An mm and its last state: at its exit, or where the replay ended."""

    mm: Mm
    state: State


class Shadowed(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """What would have to be tagged where there is no VM_CDM.

    vmas: each with the mm that it is of. why: what may make it wrong or incomplete,
    None if nothing does.
    """

    vmas: tuple[tuple[Mm, Due], ...]
    why: str | None


class Observed(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """What services of the kernel did to the pages of CDM nodes.

    cells: each service on each node. why: what may make it incomplete, None if nothing
    does.
    """

    cells: tuple[Cell, ...]
    why: str | None


class Result(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Everything a replay found out.

    lives: of what address spaces, and how much of each, is the replay's bounds' affair.
    shadow: None where the kernel has a VM_CDM, or nothing is asked of it.
    """

    trace: Trace
    profile: Profile
    rules: tuple[RuleResult, ...]
    findings: tuple[Finding, ...]
    lives: tuple[Life, ...]
    audit: Audit | None
    services: Observed
    shadow: Shadowed | None = None
