"""What several rules share: sets of probes, and words for what was seen."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from cdmtrace.analysis import names
from cdmtrace.analysis.frames import Event, Terms
from cdmtrace.analysis.notes import Note, Serviced, Settled
from cdmtrace.analysis.rules.rule import Judgement, Violation
from cdmtrace.events import Cause, EventKind, Probe

LIFE: Final = frozenset(
    {
        "copy_page_range",
        "exit_mmap",
        "vma_free",
        "vma_merge",
        "vma_new",
        "vma_split",
        "sys_munmap",
        "sys_mmap",
        "sys_mremap",
    }
)

REQUESTS: Final = frozenset({"sys_mbind", "sys_move_pages", "sys_migrate_pages"})

MIGRATION: Final = frozenset({"migrate_pages"})

POLICIES: Final = frozenset({"mpol_rebind", "shared_policy"})
"""What tells of policies that no mbind() of this VMA has set."""

_FIXUPS: Final = {
    int(Probe.MPROTECT_FIXUP): "mprotect",
    int(Probe.MLOCK_FIXUP): "mlock",
    int(Probe.REMOVE_MIGRATION_PTE): "migration",
}
"""Probe of a change of flags -> who changed them."""

_BY_MBIND: Final = frozenset(
    {
        EventKind.POLICY,
        EventKind.VMA_SPLIT,
        EventKind.VMA_MERGE,
        EventKind.VMA_SEEN,
    }
)
"""Rows in which a tag shows first that mbind() has set."""


UNTOLD: Final = "what --node or --addr leaves out can be a reason for the tag"
"""Why a tag without a reason is not held against the kernel."""


def chain(*events: Event | None) -> tuple[Event, ...]:
    """Return the events, each once, in the order of the ring."""
    return tuple(
        sorted(
            {e.seq: e for e in events if e is not None}.values(), key=lambda e: e.seq
        )
    )


def worked_on(
    note: Note,
    terms: Terms,
    kind: EventKind,
    *,
    cause: str,
    expected: str,
    observed: Callable[[Event], str],
    done: Callable[[Event], bool] = lambda _: True,
) -> Judgement | None:
    """Judge a service that has to leave tagged VMAs alone.

    kind: the rows that say it has worked on a VMA. done: whether it has done there what
    it must not do. The premise holds where a tagged VMA is in the address space.
    """
    if not isinstance(note, Serviced) or note.event.kind != kind:
        return None
    event = note.event
    tagged = event.flags_after & terms.tag
    if not (tagged or note.near):
        return None
    violation = None
    if tagged and done(event):
        violation = Violation(
            cause=cause,
            start=event.start,
            end=event.end,
            expected=expected,
            observed=observed(event),
            witness=chain(event),
            shape=(),
        )
    return Judgement(violation=violation)


def closing(note: Settled) -> Event | None:
    """Return the row of the call whose return let the VMA settle."""
    return note.event if note.event.kind == EventKind.CALL else None


def flags_of(note: Settled, terms: Terms) -> str:
    """Return the flags that a VMA settled with, in words."""
    words = " ".join(names.flags(note.area.flags or 0, terms)) or "-"
    return f"{'tagged' if note.facts.tag else 'not tagged'}: {words}"


def called(event: Event) -> str:
    """Return the name of the call whose row this is."""
    if event.kind != EventKind.CALL:
        return "unknown"
    return names.probe(event.probe).removeprefix("sys_")


def cdm_nodes(terms: Terms) -> str:
    """Return which nodes are meant by "a CDM node"."""
    return f"CDM: node {names.nodes(terms.cdm)}"


def writer(event: Event) -> str:
    """Return in whose course the tag was set."""
    if event.kind == EventKind.ALLOC:
        return "fault"
    if event.kind == EventKind.WRITE:
        return names.function(event.payload) or "unknown"
    if event.cause == Cause.CPUSET:
        return "cpuset"
    if event.kind == EventKind.FLAGS:
        return _FIXUPS.get(event.probe, "unknown")
    if event.kind in _BY_MBIND:
        return "mbind" if event.call else "unknown"
    return "unknown"
