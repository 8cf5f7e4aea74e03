"""Is the tag where it has to be, once a VMA has settled: CDM001, CDM002."""

from __future__ import annotations

from typing import Final

from cdmtrace.analysis.frames import Event, Terms
from cdmtrace.analysis.notes import Note, Settled
from cdmtrace.analysis.profiles import Want
from cdmtrace.analysis.rules.common import (
    LIFE,
    MIGRATION,
    POLICIES,
    REQUESTS,
    called,
    cdm_nodes,
    chain,
    closing,
    flags_of,
)
from cdmtrace.analysis.rules.rule import Judgement, Rule, Severity, Violation
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
        if profile != "intended" and area.cleared is not None:
            cause, mapped = "cleared", area.cleared
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
    return Judgement(since=note.since, until=note.event.ts, violation=violation)


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
    profiles=frozenset({"intended", "rfc-v2"}),
)
