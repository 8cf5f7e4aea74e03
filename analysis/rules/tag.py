"""Is the tag where it has to be, once a VMA has settled: CDM001, 002, 016, 017."""

from __future__ import annotations

from typing import Final

from cdmtrace.analysis import names
from cdmtrace.analysis.frames import Event, Terms
from cdmtrace.analysis.notes import Note, Settled
from cdmtrace.analysis.profiles import Want
from cdmtrace.analysis.rules.common import (
    LIFE,
    MIGRATION,
    POLICIES,
    REQUESTS,
    UNTOLD,
    called,
    cdm_nodes,
    chain,
    closing,
    flags_of,
)
from cdmtrace.analysis.rules.rule import Judgement, Rule, Severity, Violation
from cdmtrace.analysis.state import Area
from cdmtrace.events import Cause, EventKind, Probe

_PAST_ALLOCATION: Final = frozenset(
    {"move_pages", "migrate_pages", "migration", "compaction", "cpuset", "driver"}
)
"""By what a page gets into a VMA that did not come by alloc_pages_vma()."""
_DEFINITION: Final = (
    "\"Here's the flag definition: [...] Contains coherent device memory [...] But it "
    "doesn't match the implementation\""
)
"""Of 11/12 too: what to say of a page that did come by alloc_pages_vma()."""


def _stale(note: Note, terms: Terms, profile: str) -> Judgement | None:
    del profile
    if not isinstance(note, Settled):
        return None
    facts = note.facts
    if facts.tag and facts.policy_names is False and not facts.pages_known:
        if facts.asked or facts.held:
            return None
        why = "a tagged VMA whose pages were not seen to come"
        return Judgement(unknown=why)
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
            expected=f"not tagged: {note.demand.why} ({cdm_nodes(terms)})",
            observed=flags_of(note, terms),
            witness=chain(
                area.set_by,
                area.justified,
                area.policy_by,
                area.ended,
                closing(note),
            )
            # A tag from before the recording: that it is there is all there is.
            or chain(area.seen),
            shape=(note.demand.clause,),
        )
    return Judgement(window=(note.since, note.event.ts), violation=violation)


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


STALE_TAG: Final = Rule(
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
    leans=(LIFE | REQUESTS | MIGRATION | POLICIES | {"alloc"}) - {"sys_mbind"},
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
    note=Settled,
    stacks="all",
)


def _missing(note: Note, terms: Terms, profile: str) -> Judgement | None:
    if not isinstance(note, Settled) or note.demand.want is not Want.MUST:
        return None
    if profile == "intended" and not note.facts.came:
        return None
    area, page = note.area, note.page
    violation = None
    if note.standing == "missing" and area.standing != "missing":
        cause = page.how if page else called(note.event)
        mapped = page.event if page else None
        dropped = area.cleared
        if dropped is not None and (
            profile != "intended" or (mapped and mapped.seq < dropped.seq)
        ):
            # It had the tag: what is missing went, and the page is as it should be.
            cause, mapped = "cleared", dropped
        reason = area.policy_by if note.facts.policy_names else None
        violation = Violation(
            cause=cause,
            start=area.start,
            end=area.end,
            expected=f"tagged: {note.demand.why} ({cdm_nodes(terms)})",
            observed=flags_of(note, terms),
            witness=chain(reason, mapped, closing(note)),
            shape=(note.demand.clause,),
            breaks=None if cause in _PAST_ALLOCATION else _DEFINITION,
        )
    return Judgement(window=(note.since, note.event.ts), violation=violation)


MISSING_TAG: Final = Rule(
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
    leans=LIFE | REQUESTS | MIGRATION | POLICIES | {"alloc", "rmap_remove"},
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
    note=Settled,
    stacks="all",
    profiles=frozenset({"intended", "rfc-v2"}),
)


# --- CDM016 -------------------------------------------------------------------


def _born_stale(note: Note, terms: Terms, profile: str) -> Judgement | None:
    del profile
    if not isinstance(note, Settled) or not note.facts.tag or not note.area.inherited:
        return None
    area = note.area
    # Where the tag was wrong before, it was told then: CDM001, CDM010, CDM011.
    if area.over or area.standing == "stale":
        return None
    facts = note.facts
    reason = facts.policy_names or facts.asked or facts.held
    if not reason and not terms.sees_all(area.start, area.end):
        return Judgement(unknown=UNTOLD)
    violation = None
    if note.demand.want is Want.MUST_NOT:
        by = area.seen
        violation = Violation(
            cause=_HEIRS.get(by.kind, "unknown") if by else "unknown",
            start=area.start,
            end=area.end,
            expected=f"not tagged: {note.demand.why} ({cdm_nodes(terms)})",
            observed=flags_of(note, terms),
            witness=chain(area.set_by, by, closing(note)),
            shape=(note.demand.clause,),
        )
    return Judgement(window=(note.since, note.event.ts), violation=violation)


_HEIRS: Final[dict[int, str]] = {
    EventKind.COPY: "fork",
    EventKind.MOVE: "mremap",
    EventKind.VMA_SPLIT: "split",
    EventKind.FLAGS: "split",
    EventKind.VMA_MERGE: "split",
}
"""Kind of the row that showed an inherited tag -> by what it was inherited. Where a
call splits a VMA in order to change it, the change is the last to show it."""

BORN_STALE: Final = Rule(
    id="CDM016",
    name="born-stale",
    severity=Severity.ERROR,
    statement="A tag was inherited by split, fork or mremap, and at the end of that "
    "write section the VMA has neither a policy of its own that names a CDM node nor "
    "a page of one.",
    premise="a tag that a VMA has inherited, at the end of its write section",
    source="__split_vma(), dup_mmap() and copy_vma() copy vm_flags, the tag included; "
    "Anshuman Khandual in the thread: static and runtime re-evaluation of the flag",
    sentence='"Any VMA with that flag set on it will keep it for the life of the VMA, '
    'despite whether it has CDM pages in it now or not."',
    events=("VMA_SPLIT", "COPY", "MOVE", "FLAGS", "MAP", "UNMAP", "CALL"),
    needs=frozenset({"rmap_add", "rmap_remove"}),
    leans=(LIFE | REQUESTS | MIGRATION | POLICIES | {"alloc", "mbind_range"}),
    threats=(
        "a page on its way (in swap, or being migrated) is in no VMA meanwhile",
        "a VMA from before the recording may hold pages that were never seen",
    ),
    limits=(
        (
            "a tag that was wrong in the VMA that it was inherited from is told there: "
            "CDM001, CDM010, CDM011"
        ),
    ),
    judge=_born_stale,
    note=Settled,
    stacks="all",
)

# --- CDM017 -------------------------------------------------------------------

_SOFTDIRTY: Final = 0x08000000
"""VM_SOFTDIRTY, which is_mergeable_vma() of 6.1 does not look at (mm/mmap.c)."""


def _merge_blocked(note: Note, terms: Terms, profile: str) -> Judgement | None:
    del profile
    if not isinstance(note, Settled) or not note.beside:
        return None
    area = note.area
    for other in note.beside:
        differ = ((area.flags or 0) ^ (other.flags or 0)) & ~_SOFTDIRTY
        if differ == terms.tag:
            start, end = min(area.start, other.start), max(area.end, other.end)
            violation = Violation(
                cause="fault" if _by_fault(area, other) else "leftover",
                start=start,
                end=end,
                expected=f"one VMA of {names.size(end - start, terms.page)}",
                observed="two VMAs that differ in nothing but the tag",
                witness=chain(area.set_by or other.set_by, area.seen, other.seen),
                shape=(),
            )
            break
    else:
        violation = None
    return Judgement(window=(note.since, note.event.ts), violation=violation)


def _by_fault(*areas: Area) -> bool:
    return any(a.set_by and a.set_by.kind == EventKind.ALLOC for a in areas)


MERGE_BLOCKED: Final = Rule(
    id="CDM017",
    name="merge-blocked",
    severity=Severity.INFO,
    statement="Two neighbouring VMAs of anonymous memory have the same policy and the "
    "same flags but for the tag, so that the kernel cannot make them one.",
    premise="a settled VMA beside another one of the same policy",
    source="is_mergeable_vma() of 4.10 and 6.1 ignores no difference but VM_SOFTDIRTY",
    sentence='"that would have cause the VMA to be split from any "normal" one in the '
    'system."',
    events=("POLICY", "ALLOC", "FLAGS", "VMA_SPLIT", "VMA_MERGE", "CALL"),
    needs=frozenset({"alloc", "mbind_range"}),
    leans=LIFE | POLICIES,
    threats=(
        (
            "whether both have the same anon_vma and consecutive offsets is not seen: "
            "there may be another reason for which they stay two"
        ),
    ),
    limits=("mappings of files are left out: their offsets are not recorded",),
    judge=_merge_blocked,
    note=Settled,
    once=True,
)
