"""Was the tag set where it may be, and for a reason: CDM010 to CDM013, 015."""

from __future__ import annotations

from typing import Final

from cdmtrace.analysis import names
from cdmtrace.analysis.frames import Event, Terms
from cdmtrace.analysis.notes import (
    CallFailed,
    FaultEnded,
    MbindEnded,
    Note,
    OverTag,
    Settled,
)
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
    writer,
)
from cdmtrace.analysis.rules.rule import Judgement, Rule, Severity, Violation
from cdmtrace.events import Cause, EventKind


def _implicit_tag(note: Note, terms: Terms, profile: str) -> Judgement | None:
    if not isinstance(note, Settled) or not note.facts.tag:
        return None
    area, rise, facts = note.area, note.area.rise, note.facts
    if rise is None or area.over:
        return None
    if profile == "intended":
        if facts.policy_names is None:
            return Judgement(unknown="a tag was set where the policy could not be read")
        wrong = not facts.policy_names and not facts.asked
        if wrong and not terms.sees_all(area.start, area.end):
            return Judgement(unknown=UNTOLD)
        expected = (
            "not tagged: no policy of its own names a CDM node, "
            f"and no request put a page there ({cdm_nodes(terms)})"
        )
    else:
        wrong = note.demand.want is Want.MUST_NOT
        expected = f"not tagged: {note.demand.why}"
    violation = None
    if wrong:
        violation = Violation(
            cause=writer(rise.event),
            start=area.start,
            end=area.end,
            expected=expected,
            observed=flags_of(note, terms),
            witness=chain(
                rise.before if writer(rise.event) == "unknown" else None,
                rise.event,
                note.event if note.event.kind == EventKind.MAP else closing(note),
            ),
            shape=(note.demand.clause,),
        )
    return Judgement(window=(note.since, note.event.ts), violation=violation)


IMPLICIT_TAG: Final = Rule(
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
    leans=LIFE | REQUESTS | MIGRATION | POLICIES,
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
    note=Settled,
    stacks="all",
    profiles=frozenset({"intended", "rfc-v2"}),
)


def _over_tag(note: Note, terms: Terms, profile: str) -> Judgement | None:
    del profile
    if not isinstance(note, MbindEnded):
        return None
    if not terms.sees_all(0, 1 << 64):
        # What is beside the range may not have been told.
        return Judgement(unknown=UNTOLD)
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
            witness=chain(
                first.before.seen, *(over.area.seen for over in note.over), event
            ),
            shape=tuple(sorted({_side(over, event) for over in note.over})),
        )
    return Judgement(window=(event.ts_entry, event.ts), violation=violation)


def _side(over: OverTag, call: Event) -> str:
    return "below" if over.area.start < call.start else "above"


def _beside(over: OverTag, call: Event, terms: Terms) -> str:
    size = over.area.end - over.area.start
    return f"{names.size(size, terms.page)} {_side(over, call)} it"


OVER_TAG: Final = Rule(
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
    note=MbindEnded,
    stacks="all",
)


# --- CDM012 -------------------------------------------------------------------


def _tag_after_failure(note: Note, terms: Terms, profile: str) -> Judgement | None:
    del profile
    if not isinstance(note, CallFailed):
        return None
    event = note.event
    violation = None
    if note.retagged and not terms.sees_all(0, 1 << 64):
        return Judgement(unknown=UNTOLD)
    if note.retagged:
        before, after = note.retagged[0]
        had, has = names.changed(before.flags or 0, after.flags or 0, terms)
        violation = Violation(
            cause=called(event),
            start=min(area.start for _, area in note.retagged),
            end=max(area.end for _, area in note.retagged),
            expected="the tag as it was, as the policy is: the call failed",
            observed=f"{called(event)}() = {names.errno(event.ret)}; {had} -> {has}",
            witness=chain(before.seen, after.seen, event),
            shape=(names.errno(event.ret), had, has),
        )
    return Judgement(window=(event.ts_entry, event.ts), violation=violation)


TAG_AFTER_FAILURE: Final = Rule(
    id="CDM012",
    name="tag-after-failure",
    severity=Severity.ERROR,
    statement="A system call that failed has changed the tag of a VMA whose policy it "
    "left as it was.",
    premise="an mbind() that failed after it had come to a VMA",
    source="12/12: set_vm_cdm() runs in mbind_range() before vma_merge(), split_vma() "
    "and vma_replace_policy(), each of which can fail",
    sentence='"But it doesn\'t match the implementation"',
    events=("VMA_SEEN", "POLICY", "CALL"),
    needs=frozenset({"mbind_range", "sys_mbind"}),
    leans=frozenset({"vma_split", "vma_merge"}),
    threats=(
        (
            "a call over several VMAs may fail in the second and leave the first one "
            "changed, policy and tag alike: that is legal"
        ),
    ),
    limits=(
        "mbind() is the one call that tells of its VMAs before it changes them",
        (
            "where a VMA was merged before the call failed, its flags are not known; "
            "a tag that shows later is CDM010 then"
        ),
    ),
    judge=_tag_after_failure,
    note=CallFailed,
    stacks="all",
)

# --- CDM013, CDM015 -----------------------------------------------------------


_PAGE_UNTOLD: Final = "a fault's page is left out by --node or --addr"


def _page_told(alloc: Event, terms: Terms) -> bool:
    """Return whether it was told if the page was mapped."""
    told = bool(terms.told >> max(alloc.node, 0) & 1)
    return told and terms.sees(alloc.addr, alloc.addr + alloc.size)


def _tag_without_page(note: Note, terms: Terms, profile: str) -> Judgement | None:
    del profile
    if not isinstance(note, FaultEnded) or note.outside:
        return None
    alloc = note.alloc
    if not _page_told(alloc, terms):
        return Judgement(unknown=_PAGE_UNTOLD)
    violation = None
    # Read ahead, it was for another one's page: CDM015.
    if not note.mapped and alloc.cause != Cause.READAHEAD:
        violation = _untouched(
            note,
            terms,
            "a page of a CDM node mapped by it",
            "the page was not mapped in this VMA",
        )
    return Judgement(window=(alloc.ts_entry, note.event.ts), violation=violation)


def _untouched(
    note: FaultEnded, terms: Terms, expected: str, observed: str
) -> Violation:
    alloc = note.alloc
    had, has = names.changed(alloc.flags_before, alloc.flags_after, terms)
    return Violation(
        cause=names.cause(alloc.cause).replace("_", "-"),
        start=alloc.start,
        end=alloc.end,
        expected=expected,
        observed=f"{had} -> {has}, and {observed}",
        witness=chain(alloc, note.event),
        shape=(had, has),
    )


TAG_WITHOUT_PAGE: Final = Rule(
    id="CDM013",
    name="tag-without-page",
    severity=Severity.ERROR,
    statement="A fault set the tag for a page that it allocated and never mapped in "
    "the VMA.",
    premise="a fault that set the tag, and is over",
    source="11/12: mark_vma_cdm() runs when the page is allocated; the fault can "
    "lose a race, or fail, before it maps the page",
    sentence="\"Contains coherent device memory [...] But it doesn't match the "
    'implementation"',
    events=("ALLOC", "MAP", "CALL", "MM_EXIT"),
    needs=frozenset({"alloc", "rmap_add"}),
    leans=frozenset(),
    threats=(
        (
            "a fault is over when its task does something else that is told; until "
            "then nothing is said of it"
        ),
    ),
    limits=("faults inside system calls that are told of are not judged",),
    judge=_tag_without_page,
    note=FaultEnded,
    stacks="changes",
)


def _wrong_vma(note: Note, terms: Terms, profile: str) -> Judgement | None:
    del profile
    if not isinstance(note, FaultEnded):
        return None
    alloc = note.alloc
    violation = None
    if note.outside:
        had, has = names.changed(alloc.flags_before, alloc.flags_after, terms)
        violation = Violation(
            cause="pseudo-vma",
            start=note.area.start if note.area else alloc.addr,
            end=note.area.end if note.area else alloc.addr + alloc.size,
            expected="the tag on the VMA that faults, or nowhere",
            observed=f"{had} -> {has} on a VMA that is in no address space",
            witness=chain(alloc),
            shape=(had, has),
        )
    elif not _page_told(alloc, terms):
        return Judgement(unknown=_PAGE_UNTOLD)
    elif alloc.cause == Cause.READAHEAD and note.count > int(note.mapped):
        violation = _untouched(
            note,
            terms,
            "the tag on the VMA that gets the page",
            f"of {note.count} pages read in by this VMA's policy it got "
            + ("one" if note.mapped else "none"),
        )
    return Judgement(window=(alloc.ts_entry, note.event.ts), violation=violation)


WRONG_VMA: Final = Rule(
    id="CDM015",
    name="wrong-vma",
    severity=Severity.ERROR,
    statement="An allocation set the tag of a VMA that does not get the page: swap's "
    "readahead allocates for the neighbours of what is faulted in, and shmem by a VMA "
    "that stands on the stack.",
    premise="a fault, or an allocation for no VMA, that set the tag",
    source="4.10: __read_swap_cache_async() and shmem_alloc_page() hand "
    "alloc_pages_vma() a VMA that is not the page's",
    sentence='"This also assumes that the only way to get a page mapped into a VMA is '
    'via alloc_pages_vma()."',
    events=("ALLOC", "MAP", "CALL", "MM_EXIT"),
    needs=frozenset({"alloc", "rmap_add"}),
    leans=frozenset({"shared_policy"}),
    threats=(
        "what readahead brings may be mapped in this VMA later, by a fault of its own",
    ),
    limits=(
        "a page for a file that no fault asked for (write(), read()) is not judged",
    ),
    judge=_wrong_vma,
    note=FaultEnded,
    stacks="changes",
    once=True,
)
