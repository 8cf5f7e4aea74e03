"""Who writes vm_flags, and under what lock: CDM003, CDM004, CDM018."""

from __future__ import annotations

from typing import Final

from cdmtrace.analysis import names
from cdmtrace.analysis.frames import Event, Terms
from cdmtrace.analysis.notes import FlagsChanged, Note
from cdmtrace.analysis.rules.common import chain, writer
from cdmtrace.analysis.rules.rule import Judgement, Rule, Severity, Violation
from cdmtrace.events import Cause, EventKind, Lock, Probe, VmaLock

_BRACKETS: Final = frozenset(
    {
        *("mbind_range", "mlock_fixup", "mprotect_fixup", "mpol_rebind"),
        "remove_migration_pte",
    }
)
"""Besides the allocation: probes in which vm_flags may be written."""


def _unlocked(note: Note, terms: Terms, profile: str) -> Judgement | None:
    if not isinstance(note, FlagsChanged):
        return None
    event = note.event
    exact = event.kind == EventKind.WRITE
    changed = event.flags_before ^ event.flags_after
    tag_only = bool(terms.tag) and changed == terms.tag
    in_fault = event.kind == EventKind.ALLOC or (exact and event.cause == Cause.FAULT)
    if profile == "rfc-v2" and in_fault and tag_only:
        # 11/12 writes VM_CDM in the fault: so the patches say.
        return None
    states = {event.lock_entry & 15, event.lock_exit & 15}
    if (Lock.WRITE_OTHER in states and not exact) or note.explained:
        # Whoever holds it for write may have written, or another row has told it.
        return None
    if note.explained is None:
        why = "a migration saw a change while another task was in a call"
        return Judgement(unknown=why)
    if Lock.UNKNOWN in states:
        if event.cause == Cause.CPUSET and Lock.WRITE_SELF in states:
            # The last VMA of a rebinding can be told when the lock is given back only.
            return None
        return Judgement(unknown="the state of a lock was not read")
    inner = {event.lock_entry >> 4, event.lock_exit >> 4} - {VmaLock.UNKNOWN}
    held = states == {Lock.WRITE_SELF} and inner <= {VmaLock.WRITE}
    violation = None
    if not held:
        before, after = names.changed(event.flags_before, event.flags_after, terms)
        lock = names.locks(event.lock_entry, event.lock_exit)
        violation = Violation(
            cause=writer(event),
            start=event.start,
            end=event.end,
            expected="mmap lock held for write by the task that writes vm_flags",
            observed=f"mmap lock: {lock}; {before} -> {after} {_where(event, terms)}",
            witness=chain(event),
            shape=(
                names.locks(_shared(event.lock_entry), _shared(event.lock_exit)),
                before,
                after,
            ),
        )
    # A migration sees what others write, whose rows must all be there.
    sees_others = event.probe == Probe.REMOVE_MIGRATION_PTE
    window = (event.ts_entry, event.ts) if sees_others else None
    return Judgement(window=window, violation=violation)


def _shared(lock: int) -> int:
    """Return a state of the mmap lock that is the same one on any kernel.

    Since 6.4 ("x86/mm: try VMA lock-based page fault handling first") a fault may hold
    the lock of its VMA for read where it held mmap_lock before.
    """
    mmap, vma = lock & 15, lock >> 4
    return Lock.READ if (mmap, vma) == (Lock.NONE, VmaLock.READ) else mmap


def _where(event: Event, terms: Terms) -> str:
    if event.kind == EventKind.WRITE:
        by = names.instruction(event.payload)
        return f"written by {by}" if by else "written, of its writer no stack was taken"
    symbol = terms.probes.get(names.probe(event.probe)) or names.probe(event.probe)
    return f"inside {symbol}(), writer not seen"


UNLOCKED_WRITE: Final = Rule(
    id="CDM003",
    name="unlocked-write",
    severity=Severity.ERROR,
    statement="vm_flags of an attached VMA changed while the mmap lock of its mm "
    "was not held for write by the writer (from 6.4 on: and the VMA's own lock).",
    premise="a change of vm_flags of an attached VMA that was seen",
    source="Dave Hansen on [RFC V2 11/12], 30 Jan 2017; the lock rule of "
    "vm_flags in include/linux/mm.h, enforced by vm_flags_set() since 6.4",
    sentence='"This is happening with mmap_sem held for read. Correct? Is it OK '
    "that you're modifying the VMA? That vm_flags manipulation is non-atomic, so "
    'how can that even be safe?"',
    events=("ALLOC", "POLICY", "FLAGS", "WRITE"),
    needs=frozenset({"alloc"}),
    leans=_BRACKETS,
    threats=(
        (
            "held for read, a lock may be another's, or only tried: certain is "
            "that the task itself did not hold it for write"
        ),
        (
            "a change under a lock that another task holds for write is for "
            "that task to answer, and not judged, unless watch saw the write itself"
        ),
        "VMAs that are not attached (new, or being freed) may be written freely",
        "from 6.19 on a few bits may be set atomically under the read lock",
    ),
    limits=(
        (
            "a change is seen between entry and return of a function; the very "
            "instruction is only by watch, of the VMAs that it watches"
        ),
    ),
    judge=_unlocked,
    note=FlagsChanged,
    tagless=True,
    profiles=frozenset({"intended", "rfc-v2"}),
)


# --- CDM004 -------------------------------------------------------------------


def _lost_update(note: Note, terms: Terms, profile: str) -> Judgement | None:
    del profile
    if not isinstance(note, FlagsChanged):
        return None
    event = note.event
    violation = None
    if note.lost is not None:
        other, bits = note.lost
        gone = " ".join(names.flags(bits, terms))
        violation = Violation(
            cause=writer(event),
            start=event.start,
            end=event.end,
            expected=f"{gone} is set: {_told(other)} has set it, and nobody cleared it",
            observed=f"{gone} is gone when {_told(event)} returns, which began before "
            "it was set",
            witness=chain(other, event),
            shape=(gone, names.probe(other.probe)),
        )
    return Judgement(window=(event.ts_entry, event.ts), violation=violation)


def _told(event: Event) -> str:
    if event.kind == EventKind.WRITE:
        return f"{names.instruction(event.payload) or 'a write'} (tid {event.tid})"
    return f"{names.probe(event.probe)} (tid {event.tid})"


LOST_UPDATE: Final = Rule(
    id="CDM004",
    name="lost-update",
    severity=Severity.ERROR,
    statement="A bit of vm_flags that one task has set vanished by another task's "
    "read-modify-write, though nobody cleared it.",
    premise="a change of vm_flags, held against what others set meanwhile",
    source="Dave Hansen on [RFC V2 11/12], 30 Jan 2017; vm_flags are written as a "
    "whole word",
    sentence='"That vm_flags manipulation is non-atomic, so how can that even be '
    'safe?"',
    events=("ALLOC", "POLICY", "FLAGS", "WRITE"),
    needs=frozenset({"alloc"}),
    leans=_BRACKETS | {"vma_merge", "sys_madvise"},
    threats=(
        (
            "a bit that a function without a row clears (userfaultfd, clear_refs) "
            "between two rows that overlap would look the same"
        ),
        (
            "what madvise() gives is known when its call has returned: what another "
            "madvise() has taken back since looks lost to a writer without the lock"
        ),
    ),
    limits=(
        (
            "both writes must be bracketed by rows; what a bit was overwritten by "
            "between two rows is not seen"
        ),
    ),
    judge=_lost_update,
    note=FlagsChanged,
    tagless=True,
)

# --- CDM018 -------------------------------------------------------------------


def _racing(note: Note, terms: Terms, profile: str) -> Judgement | None:
    del profile, terms
    if not isinstance(note, FlagsChanged):
        return None
    event, other = note.event, note.raced
    violation = None
    # Where one has undone what the other did, CDM004 says so.
    if other is not None and note.lost is None:
        violation = Violation(
            cause=writer(event),
            start=event.start,
            end=event.end,
            expected="one writer of vm_flags at a time",
            observed=_overlap(event, other),
            witness=chain(other, event),
            shape=tuple(sorted(names.probe(e.probe) for e in (event, other))),
        )
    return Judgement(window=(event.ts_entry, event.ts), violation=violation)


def _overlap(event: Event, other: Event) -> str:
    if other.kind == EventKind.WRITE:
        return f"{_told(other)} writes in the midst of {_told(event)}"
    both = other.ts - max(event.ts_entry, other.ts_entry)
    return f"{_told(other)} and {_told(event)} overlap by {both / 1000:.0f} us"


RACING_WRITERS: Final = Rule(
    id="CDM018",
    name="racing-writers",
    severity=Severity.ERROR,
    statement="Two read-modify-writes of the same vm_flags overlapped in time, and "
    "both show a change.",
    premise="a change of vm_flags, held against those that were under way meanwhile",
    source="Dave Hansen on [RFC V2 11/12], 30 Jan 2017; ASSERT_EXCLUSIVE_WRITER() in "
    "vm_area_dup(), since 5.9",
    sentence='"That vm_flags manipulation is non-atomic, so how can that even be '
    'safe?"',
    events=("ALLOC", "POLICY", "FLAGS", "WRITE"),
    needs=frozenset({"alloc"}),
    leans=_BRACKETS,
    threats=(
        (
            "a row is as long as its function: that both were in it at once does not "
            "say that their loads and stores were interleaved. CDM004 does"
        ),
    ),
    limits=(
        "one that saw the other's bit set, and wrote nothing itself, is told as well",
    ),
    judge=_racing,
    note=FlagsChanged,
    tagless=True,
    once=True,
)
