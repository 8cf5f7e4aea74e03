"""NUMA balancing, and what is said of why pages move: CDM008, CDM009, CDM019."""

from __future__ import annotations

from typing import Final

from cdmtrace.analysis import names
from cdmtrace.analysis.frames import Event, Terms
from cdmtrace.analysis.notes import Arrived, Note, Serviced
from cdmtrace.analysis.rules.common import chain, worked_on
from cdmtrace.analysis.rules.rule import Judgement, Rule, Severity, Violation
from cdmtrace.events import Cause, EventKind

# --- CDM008 -------------------------------------------------------------------


def _scanned(note: Note, terms: Terms, profile: str) -> Judgement | None:
    del profile
    return worked_on(
        note,
        terms,
        EventKind.NUMA_SCAN,
        cause="scan",
        expected="a tagged VMA left out by the scanner of NUMA balancing",
        observed=lambda event: f"{names.size(event.size, terms.page)} scanned",
    )


NUMA_SCANNED: Final = Rule(
    id="CDM008",
    name="numa-scanned",
    severity=Severity.ERROR,
    statement="The scanner of NUMA balancing worked on a tagged VMA.",
    premise="a scan in an address space that has a tagged VMA",
    source="09/12: task_numa_work() passes VMAs with VM_CDM by",
    sentence='"Disabled from auto NUMA migrations" (Anshuman Khandual, on how a '
    "tagged VMA is treated)",
    events=("NUMA_SCAN",),
    needs=frozenset({"numa_scan"}),
    leans=frozenset(),
    threats=("a tag that comes while the scanner is in the VMA is seen as there",),
    limits=(
        "entries that were scanned before the VMA was tagged are CDM009",
        (
            "a VMA with a policy of its own is passed by, tagged or not, unless it has "
            "MPOL_F_NUMA_BALANCING"
        ),
    ),
    judge=_scanned,
    note=Serviced,
    profiles=frozenset({"intended", "rfc-v2"}),
    once=True,
)

# --- CDM009 -------------------------------------------------------------------


def _moved(note: Note, terms: Terms, profile: str) -> Judgement | None:
    del profile
    return worked_on(
        note,
        terms,
        EventKind.NUMA_MOVE,
        cause="numa-balancing",
        expected="no page of a tagged VMA moved by NUMA balancing",
        observed=lambda event: f"a page moved, node {event.src_node} -> {event.node}",
        done=lambda event: event.ret > 0,
    )


NUMA_MIGRATED: Final = Rule(
    id="CDM009",
    name="numa-migrated",
    severity=Severity.ERROR,
    statement="NUMA balancing moved a page of a tagged VMA.",
    premise="a move by NUMA balancing in an address space that has a tagged VMA",
    source="09/12 changes the scanner alone; do_numa_page() goes on as before. "
    "Anshuman Khandual thought of a check there, too",
    sentence='"Disabled from auto NUMA migrations" (Anshuman Khandual, on how a '
    "tagged VMA is treated)",
    events=("NUMA_MOVE",),
    needs=frozenset({"numa_migrate"}),
    leans=frozenset(),
    threats=("a page that several VMAs share is moved for the one that faults",),
    limits=("that a page was to be moved, and was not, breaks nothing",),
    judge=_moved,
    note=Serviced,
    once=True,
)

# --- CDM019 -------------------------------------------------------------------

_REASONS: Final[dict[str, frozenset[int]]] = {
    "compaction": frozenset({0}),
    "hotplug": frozenset({1, 2, 6}),
    "numa-balancing": frozenset({5}),
    "demotion": frozenset({8}),
    "cpuset": frozenset({3}),
    "move_pages": frozenset({3}),
    "migrate_pages": frozenset({3}),
    "mbind": frozenset({4}),
    "driver": frozenset(),
}
"""By what a page was moved -> the reasons that say so: enum migrate_reason,
include/linux/migrate_mode.h of 6.1. None is a driver's."""

_NAMES: Final = (
    *("compaction", "memory failure", "hotplug", "a system call", "mbind"),
    *("NUMA balancing", "contiguous range", "long-term pin", "demotion"),
)
_NO_REASON: Final = 0xFFFF


def _lying(note: Note, terms: Terms, profile: str) -> Judgement | None:
    del profile, terms
    if not isinstance(note, Arrived) or note.event.kind != EventKind.MIGRATE:
        return None
    event, how = note.event, note.page.how
    told = note.call is not None or event.cause not in (Cause.UNKNOWN, Cause.CALL)
    if not told or event.arg == _NO_REASON or how not in _REASONS:
        return None
    violation = None
    if event.arg not in _REASONS[how]:
        said = _said(event)
        violation = Violation(
            cause=how,
            start=event.start,
            end=event.end,
            expected=f"a reason that says {how}",
            observed=f"migrate_pages() was told: {said}",
            witness=chain(event, note.call),
            shape=(said,),
        )
    return Judgement(violation=violation)


def _said(event: Event) -> str:
    return _NAMES[event.arg] if event.arg < len(_NAMES) else f"reason {event.arg}"


LYING_REASON: Final = Rule(
    id="CDM019",
    name="lying-reason",
    severity=Severity.INFO,
    statement="The reason that the kernel's tracepoint gives for a migration "
    "contradicts the stack of its caller.",
    premise="a page that came to a CDM node by a migration of which both are known",
    source="DEBUG 19 of the series calls migrate_pages() for a driver and says "
    "MR_NUMA_MISPLACED; its first version said MR_COMPACTION",
    sentence='"Wondering if I need to update for migrate_pages() kernel API also as it '
    'will be used by the driver" (Anshuman Khandual)',
    events=("MIGRATE", "CALL"),
    needs=frozenset({"rmap_add", "migrate_pages"}),
    leans=frozenset({"remove_migration_pte"}),
    threats=("a stack of which the end was cut off does not tell who called",),
    limits=("there is no reason that says driver: whatever one gives is wrong",),
    judge=_lying,
    note=Arrived,
    tagless=True,
    stacks="all",
    once=True,
)
