"""The rules, one object each: what is held against a kernel, and why.

A rule looks at one note of the model at a time and says: no business of mine
(None), all is well, violated, or cannot be known. It leans on nothing that only
one kernel has: no symbol of the tagging code, no debug switch.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from enum import Enum
from typing import Final

from cdmtrace.analysis import names
from cdmtrace.analysis.frames import Event, Terms
from cdmtrace.analysis.notes import (
    Arrived,
    FlagsChanged,
    MbindEnded,
    Note,
    OverTag,
    Settled,
)
from cdmtrace.analysis.profiles import Want
from cdmtrace.events import Cause, EventKind, Lock, Probe, VmaLock


class Severity(Enum):
    """How bad it is; info never sets an exit status."""

    ERROR = "error"
    WARNING = "warning"
    INFO = "info"


@dataclass(frozen=True, kw_only=True, slots=True)
class Violation:
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


@dataclass(frozen=True, kw_only=True, slots=True)
class Judgement:
    """One premise of a rule that held.

    since, until: the time that the answer rests on, ns; a loss in it makes the
    answer worthless. None where the rows at hand say it all. unknown: why it
    cannot be told. violation: None if all is well.
    """

    since: int | None
    until: int
    violation: Violation | None = None
    unknown: str | None = None


Judge = Callable[[Note, Terms, str], Judgement | None]


@dataclass(frozen=True, kw_only=True, slots=True)
class Rule:
    """A rule and everything that ``explain`` says of it.

    needs: probes without which the premise cannot be seen. leans: probes without
    which the answer may be wrong. once: one finding for a VMA and a cause, and not
    one for each event. sentence: the one of the review that a violation breaks.
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
    profiles: frozenset[str] = frozenset({"intended"})
    once: bool = False

    @property
    def probes(self) -> frozenset[str]:
        """Every probe whose losses matter."""
        return self.needs | self.leans


_LIFE: Final = frozenset(
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
_REQUESTS: Final = frozenset({"sys_mbind", "sys_move_pages", "sys_migrate_pages"})
_MIGRATION: Final = frozenset({"migrate_pages"})
_POLICIES: Final = frozenset({"mpol_rebind", "shared_policy"})
"""What tells of policies that no mbind() of this VMA has set."""

_PAST_ALLOCATION: Final = frozenset(
    {"move_pages", "migrate_pages", "migration", "compaction", "cpuset", "driver"}
)
"""By what a page gets into a VMA that did not come by alloc_pages_vma()."""
_DEFINITION: Final = (
    "\"Here's the flag definition: [...] Contains coherent device memory [...] But it "
    "doesn't match the implementation\""
)
"""Of 11/12 too: what to say of a page that did come by alloc_pages_vma()."""

_FIXUPS: Final = {
    int(Probe.MPROTECT_FIXUP): "mprotect",
    int(Probe.MLOCK_FIXUP): "mlock",
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

PART_OF: Final = {
    "remove_migration_pte": "migrate_pages",
    "move_page_tables": "sys_mremap",
    "vma_policy": "mbind_range",
}
"""Names under which losses may be counted -> the probe that they are part of, or
whose part they share: without either, the same may be wrong."""


def _chain(*events: Event | None) -> tuple[Event, ...]:
    """Return the events, each once, in the order of the ring."""
    return tuple(
        sorted(
            {e.seq: e for e in events if e is not None}.values(), key=lambda e: e.seq
        )
    )


def _closing(note: Settled) -> Event | None:
    """Return the row of the call whose return let the VMA settle."""
    return note.event if note.event.kind == EventKind.CALL else None


def _flags(note: Settled, terms: Terms) -> str:
    words = " ".join(names.flags(note.area.flags or 0, terms.tag)) or "-"
    return f"{'tagged' if note.facts.tag else 'not tagged'}: {words}"


def _called(event: Event) -> str:
    """Return the name of the call whose row this is."""
    if event.kind != EventKind.CALL:
        return "unknown"
    return names.probe(event.probe).removeprefix("sys_")


def _nodes(terms: Terms) -> str:
    return f"CDM: node {names.nodes(terms.cdm)}"


def _writer(event: Event) -> str:
    """Return in whose course the tag was set."""
    if event.kind == EventKind.ALLOC:
        return "fault"
    if event.cause == Cause.CPUSET:
        return "cpuset"
    if event.kind == EventKind.FLAGS:
        return _FIXUPS.get(event.probe, "unknown")
    if event.kind in _BY_MBIND:
        return "mbind" if event.call else "unknown"
    return "unknown"


# --- CDM001 -------------------------------------------------------------------


def _stale(note: Note, terms: Terms, profile: str) -> Judgement | None:
    del profile
    if not isinstance(note, Settled):
        return None
    facts = note.facts
    if facts.tag and facts.policy_names is False and not facts.pages_known:
        if facts.asked or facts.held:
            return None
        why = "a tagged VMA whose pages were not seen to come"
        return Judgement(since=note.since, until=note.event.ts, unknown=why)
    if note.demand.want is not Want.MUST_NOT:
        return None
    area = note.area
    violation = None
    # A tag that never had a reason is CDM010, CDM011 or CDM016, and told there.
    fresh = area.rise is not None or area.inherited or area.born_wrong
    if note.standing == "stale" and area.standing != "stale" and not fresh:
        cause = "unknown"
        if area.ended is not None:
            cause = _undone_by(area.ended, note.event)
        violation = Violation(
            cause=cause,
            start=area.start,
            end=area.end,
            expected=f"not tagged: {note.demand.why} ({_nodes(terms)})",
            observed=_flags(note, terms),
            witness=_chain(
                area.set_by,
                area.justified,
                area.policy_by,
                area.ended,
                _closing(note),
            )
            # A tag from before the recording: that it is there is all there is.
            or _chain(area.seen),
            shape=(note.demand.clause,),
        )
    return Judgement(since=note.since, until=note.event.ts, violation=violation)


def _undone_by(event: Event, closing: Event) -> str:
    """Return by what the last reason for a tag went."""
    if event.cause == Cause.CPUSET:
        return "cpuset"
    if event.call and closing.kind == EventKind.CALL and closing.call == event.call:
        return {
            Probe.SYS_MBIND: "mbind",
            Probe.SYS_MOVE_PAGES: "migration",
            Probe.SYS_MIGRATE_PAGES: "migration",
        }.get(Probe(closing.probe), "unmap")
    return "mbind" if event.kind == EventKind.POLICY else "unmap"


# --- CDM002 -------------------------------------------------------------------


def _missing(note: Note, terms: Terms, profile: str) -> Judgement | None:
    if not isinstance(note, Settled) or note.demand.want is not Want.MUST:
        return None
    if profile == "intended" and not note.facts.came:
        return None
    area, page = note.area, note.page
    violation = None
    if note.standing == "missing" and area.standing != "missing":
        cause = page.how if page else _called(note.event)
        mapped = page.event if page else None
        if profile != "intended" and area.cleared is not None:
            cause, mapped = "cleared", area.cleared
        reason = area.policy_by if note.facts.policy_names else None
        violation = Violation(
            cause=cause,
            start=area.start,
            end=area.end,
            expected=f"tagged: {note.demand.why} ({_nodes(terms)})",
            observed=_flags(note, terms),
            witness=_chain(reason, mapped, _closing(note)),
            shape=(note.demand.clause,),
            breaks=None if cause in _PAST_ALLOCATION else _DEFINITION,
        )
    return Judgement(since=note.since, until=note.event.ts, violation=violation)


# --- CDM003 -------------------------------------------------------------------


def _unlocked(note: Note, terms: Terms, profile: str) -> Judgement | None:
    if not isinstance(note, FlagsChanged):
        return None
    event = note.event
    tag_only = event.flags_before ^ event.flags_after == terms.tag
    if profile == "rfc-v2" and event.kind == EventKind.ALLOC and tag_only:
        # 11/12 writes VM_CDM in the fault: so the patches say.
        return None
    states = {event.lock_entry & 15, event.lock_exit & 15}
    if Lock.WRITE_OTHER in states or note.explained:
        # Whoever holds it for write may have written, or another row has told it.
        return None
    if Lock.UNKNOWN in states:
        if event.cause == Cause.CPUSET and Lock.WRITE_SELF in states:
            # The last VMA of a rebinding can be told when the lock is given back only.
            return None
        return Judgement(
            since=None, until=event.ts, unknown="the state of a lock was not read"
        )
    inner = {event.lock_entry >> 4, event.lock_exit >> 4} - {VmaLock.UNKNOWN}
    held = states == {Lock.WRITE_SELF} and inner <= {VmaLock.WRITE}
    violation = None
    if not held:
        before, after = names.changed(event.flags_before, event.flags_after, terms.tag)
        lock = names.locks(event.lock_entry, event.lock_exit)
        symbol = terms.probes.get(names.probe(event.probe)) or names.probe(event.probe)
        violation = Violation(
            cause=_writer(event),
            start=event.start,
            end=event.end,
            expected="mmap lock held for write by the task that writes vm_flags",
            observed=f"mmap lock: {lock}; {before} -> {after} inside {symbol}(), "
            "writer not seen",
            witness=_chain(event),
            shape=(lock, before, after),
        )
    return Judgement(since=None, until=event.ts, violation=violation)


# --- CDM005 -------------------------------------------------------------------


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
            cause=_writer(rise.event),
            start=area.start,
            end=area.end,
            expected="VM_MERGEABLE off and KSM's pages taken out where VM_CDM is set",
            observed=_flags(note, terms),
            witness=_chain(rise.before, rise.event, _closing(note)),
            shape=(),
        )
    return Judgement(
        since=rise.event.ts_entry, until=note.event.ts, violation=violation
    )


# --- CDM010 -------------------------------------------------------------------


def _implicit_tag(note: Note, terms: Terms, profile: str) -> Judgement | None:
    if not isinstance(note, Settled) or not note.facts.tag:
        return None
    area, rise, facts = note.area, note.area.rise, note.facts
    if rise is None or area.over:
        return None
    if profile == "intended":
        if facts.policy_names is None:
            return Judgement(
                since=note.since,
                until=note.event.ts,
                unknown="a tag was set where the policy could not be read",
            )
        wrong = not facts.policy_names and not facts.asked
        expected = (
            "not tagged: no policy of its own names a CDM node, "
            f"and no request put a page there ({_nodes(terms)})"
        )
    else:
        wrong = note.demand.want is Want.MUST_NOT
        expected = f"not tagged: {note.demand.why}"
    violation = None
    if wrong:
        violation = Violation(
            cause=_writer(rise.event),
            start=area.start,
            end=area.end,
            expected=expected,
            observed=_flags(note, terms),
            witness=_chain(
                rise.before if _writer(rise.event) == "unknown" else None,
                rise.event,
                note.event if note.event.kind == EventKind.MAP else _closing(note),
            ),
            shape=(note.demand.clause,),
        )
    return Judgement(since=note.since, until=note.event.ts, violation=violation)


# --- CDM011 -------------------------------------------------------------------


def _over_tag(note: Note, terms: Terms, profile: str) -> Judgement | None:
    del profile
    if not isinstance(note, MbindEnded):
        return None
    event = note.event
    violation = None
    if note.over:
        first = note.over[0]
        parts = ", ".join(_beside(over, event, terms) for over in note.over)
        inside = names.size(event.end - event.start, terms.page)
        violation = Violation(
            cause="mbind",
            start=min(over.before.start for over in note.over),
            end=max(over.before.end for over in note.over),
            expected=f"the tag set in mbind()'s range of {inside}, nowhere else",
            observed=f"tagged, too: {parts}",
            witness=_chain(
                first.before.seen, *(over.area.seen for over in note.over), event
            ),
            shape=tuple(sorted({_side(over, event) for over in note.over})),
        )
    return Judgement(since=event.ts_entry, until=event.ts, violation=violation)


def _side(over: OverTag, call: Event) -> str:
    return "below" if over.area.start < call.start else "above"


def _beside(over: OverTag, call: Event, terms: Terms) -> str:
    size = over.area.end - over.area.start
    return f"{names.size(size, terms.page)} {_side(over, call)} it"


# --- CDM014 -------------------------------------------------------------------


def _implicit_allocation(note: Note, terms: Terms, profile: str) -> Judgement | None:
    del terms, profile
    if not isinstance(note, Arrived) or not note.here or not note.page.came:
        return None
    event, page = note.event, note.page
    if not note.named and (note.named is None or note.asked is None):
        return Judgement(
            since=None,
            until=event.ts,
            unknown="who asked for a page, or under what policy, was not seen",
        )
    violation = None
    if not note.named and not note.asked:
        own = names.policy(event.policy, event.nodes)
        task = names.policy(event.other_policy, event.other)
        by = "" if task == "unread" else f", the task's {task}"
        violation = Violation(
            cause=page.how,
            start=event.start,
            end=event.end,
            expected=f"no page of node {page.node}: the VMA's own policy is {own}, "
            "and no request named the node",
            observed=f"a page of node {page.node} mapped, by {page.how}{by}",
            witness=_chain(note.task_policy, note.alloc, event, note.call),
            shape=(own.split(":")[0], task.split(":")[0]),
        )
    return Judgement(since=None, until=event.ts, violation=violation)


RULES: Final[tuple[Rule, ...]] = (
    Rule(
        id="CDM001",
        name="stale-tag",
        severity=Severity.ERROR,
        statement="A settled VMA is tagged, though no policy of its own names a CDM "
        "node any more, no page that was asked for is in it, and no page of a CDM "
        "node at all.",
        premise="a settled VMA that must not be tagged",
        source="Dave Hansen on [RFC V2 11/12], 30 Jan 2017; clr_vm_cdm() of 12/12 "
        "has no caller",
        sentence='"That flag is a one-way trip. Any VMA with that flag set on it '
        "will keep it for the life of the VMA, despite whether it has CDM pages in "
        'it now or not."',
        events=(
            *("POLICY", "VMA_SEEN", "VMA_NEW", "VMA_MERGE", "VMA_FREE", "FLAGS"),
            *("MAP", "MIGRATE", "UNMAP", "COPY", "CALL"),
        ),
        needs=frozenset({"mbind_range", "rmap_add", "rmap_remove", "sys_mbind"}),
        leans=(_LIFE | _REQUESTS | _MIGRATION | _POLICIES | {"alloc"}) - {"sys_mbind"},
        threats=(
            (
                "where not every process could be looked at first, a VMA from before "
                "the recording may hold pages that were never seen: if it is first "
                "seen with a tag or with such a policy it counts as unknown"
            ),
            (
                "pages in swap are not mapped: a policy keeps their VMA's tag, nothing "
                "else does"
            ),
            (
                "pages that others took (reclaim, another process, MADV_DONTNEED under "
                "the read lock): the VMA may keep the tag until it is next changed "
                "under the write lock"
            ),
        ),
        limits=(
            "a tag that never had a reason is CDM010, CDM011 or CDM016 instead",
            (
                "a VMA of a file that has the tag and no policy when it is first seen "
                "counts as tagged by its driver's mmap(), for good"
            ),
        ),
        judge=_stale,
    ),
    Rule(
        id="CDM002",
        name="missing-tag",
        severity=Severity.ERROR,
        statement="A settled VMA must be tagged, for its own policy names a CDM node "
        "or an explicit request put a page of one there; a page that came for this "
        "VMA is mapped; it is not tagged.",
        premise="a settled VMA that must be tagged and has such a page",
        source="Dave Hansen on [RFC V2 11/12], 30 Jan 2017; alloc_pages_vma() of "
        "4.10 leaves before mark_vma_cdm() for MPOL_INTERLEAVE and huge pages",
        sentence='"This also assumes that the only way to get a page mapped into a '
        'VMA is via alloc_pages_vma(). Do the NUMA migration APIs use this path?"',
        events=("MAP", "MIGRATE", "POLICY", "VMA_NEW", "VMA_MERGE", "VMA_FREE", "CALL"),
        needs=frozenset({"mbind_range", "rmap_add"}),
        leans=_LIFE | _REQUESTS | _MIGRATION | _POLICIES | {"alloc", "rmap_remove"},
        threats=(
            (
                "pages of a file that another mapping put there are leftovers here, "
                "unless this VMA's own policy names their node"
            ),
            (
                "the policy of a shmem file is known since a fault allocated by it; "
                "what another mapping has made of it since is not seen"
            ),
            "what a fork shares came for the parent",
            (
                "a driver that moves pages in an ioctl() and tags afterwards: no row "
                "says that the call goes on"
            ),
        ),
        limits=(
            (
                "a driver is known by a page that belongs to no file, and by a stack; "
                "a migration without one is what its reason says"
            ),
        ),
        judge=_missing,
        profiles=frozenset({"intended", "rfc-v2"}),
    ),
    Rule(
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
        events=("ALLOC", "POLICY", "FLAGS"),
        needs=frozenset({"alloc"}),
        leans=frozenset({"mbind_range", "mlock_fixup", "mprotect_fixup"}),
        threats=(
            (
                "held for read, a lock may be another's, or only tried: certain is "
                "that the task itself did not hold it for write"
            ),
            (
                "a change under a lock that another task holds for write is for "
                "that task to answer, and not judged"
            ),
            "VMAs that are not attached (new, or being freed) may be written freely",
            "from 6.19 on a few bits may be set atomically under the read lock",
        ),
        limits=(
            (
                "a change is seen between entry and return of a function; the very "
                "instruction is not"
            ),
        ),
        judge=_unlocked,
        profiles=frozenset({"intended", "rfc-v2"}),
    ),
    Rule(
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
        leans=_LIFE | {"alloc"},
        threats=("MADV_MERGEABLE on a VMA that is tagged already is CDM007",),
        limits=("whether KSM has merged a page in the meantime is CDM006",),
        judge=_ksm_left_on,
    ),
    Rule(
        id="CDM010",
        name="implicit-tag",
        severity=Severity.ERROR,
        statement="The tag went 0 -> 1, not by inheritance, and when the VMA settled "
        "neither its own policy named a CDM node nor had an explicit request put a "
        "page there.",
        premise="a tag that went 0 -> 1",
        source="Dave Hansen on [RFC V2 11/12], 30 Jan 2017",
        sentence="\"We need to ensure that when this flag gets set, it's never set on "
        'VMAs that are "normal" and will only be set on VMAs that were *explicitly* '
        'set up for accessing CDM."',
        events=("ALLOC", "POLICY", "FLAGS", "VMA_NEW", "VMA_MERGE", "MIGRATE", "CALL"),
        needs=frozenset({"alloc", "mbind_range"}),
        leans=_LIFE | _REQUESTS | _MIGRATION | _POLICIES,
        threats=(
            "a task policy is explicit for the task, and not for the VMA",
            "a tag from before the recording has no 0 -> 1",
        ),
        limits=(
            (
                "a write that no row brackets is found at the next row that shows the "
                "VMA; then its writer is unknown"
            ),
        ),
        judge=_implicit_tag,
        profiles=frozenset({"intended", "rfc-v2"}),
    ),
    Rule(
        id="CDM011",
        name="over-tag",
        severity=Severity.ERROR,
        statement="An address outside mbind()'s range, rounded to pages, was untagged "
        "before the call and is tagged after it, and has no reason of its own to be.",
        premise="an mbind() that named CDM nodes and reached a VMA",
        source="Dave Hansen on [RFC V2 11/12], 30 Jan 2017; set_vm_cdm() of 12/12 "
        "runs before split_vma(), which copies the flags",
        sentence="\"That means that you'll need to make sure that there's no "
        "possible way to get a CDM page faulted into a VMA unless it's via an "
        "explicitly assigned policy that would have cause the VMA to be split from "
        'any "normal" one in the system."',
        events=("VMA_SEEN", "VMA_SPLIT", "VMA_MERGE", "POLICY", "CALL"),
        needs=frozenset({"mbind_range", "sys_mbind"}),
        leans=frozenset({"vma_split"}),
        threats=(
            "a VMA that was tagged before, or that merges with its like, is left out",
        ),
        limits=(
            (
                "a part that is cut off by a merge, and not by a split, is seen only "
                "when a later row shows it, and then as CDM010"
            ),
        ),
        judge=_over_tag,
    ),
    Rule(
        id="CDM014",
        name="implicit-allocation",
        severity=Severity.ERROR,
        statement="A page of a CDM node was allocated and mapped, though neither the "
        "VMA's own policy nor an explicit request names its node.",
        premise="a page of a CDM node that was mapped, and allocated for that VMA",
        source="Dave Hansen on [RFC V2 11/12], 30 Jan 2017; 03/12 promises that "
        "nothing is allocated there implicitly",
        sentence="\"make sure that there's no possible way to get a CDM page faulted "
        "into a VMA unless it's via an explicitly assigned policy that would have "
        'cause the VMA to be split from any "normal" one in the system."',
        events=("MAP", "MIGRATE", "ALLOC", "CALL"),
        needs=frozenset({"rmap_add"}),
        leans=_REQUESTS | _MIGRATION | {"alloc", "shared_policy"},
        threats=(
            (
                "pages of files that somebody else had read in, and KSM's pages, were "
                "not allocated for this VMA"
            ),
            "a page that comes back from swap may have been allocated for its cousin",
        ),
        limits=("what a driver maps or moves counts as asked for",),
        judge=_implicit_allocation,
        once=True,
    ),
)
"""All rules of this version, by number."""

BY_ID: Final[dict[str, Rule]] = {rule.id: rule for rule in RULES}


def find(name: str) -> Rule | None:
    """Return the rule of this id or name, whatever its case."""
    for rule in RULES:
        if name.lower() in (rule.id.lower(), rule.name):
            return rule
    return None


def served_by(probe: str) -> tuple[str, ...]:
    """Return the ids of the rules that look at what a probe records."""
    return tuple(rule.id for rule in RULES if probe in rule.probes)


def uncheckable(missing: Collection[str]) -> dict[str, tuple[str, ...]]:
    """Return rule -> the missing probes without which it cannot be checked."""
    return {
        rule.id: tuple(name for name in missing if name in rule.needs)
        for rule in RULES
        if not rule.needs.isdisjoint(missing)
    }
