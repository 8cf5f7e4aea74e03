"""Was the tag set where it may be, and for a reason: CDM010, CDM011."""

from __future__ import annotations

from typing import Final

from cdmtrace.analysis import names
from cdmtrace.analysis.frames import Event, Terms
from cdmtrace.analysis.notes import MbindEnded, Note, OverTag, Settled
from cdmtrace.analysis.profiles import Want
from cdmtrace.analysis.rules.common import (
    LIFE,
    MIGRATION,
    POLICIES,
    REQUESTS,
    cdm_nodes,
    chain,
    closing,
    flags_of,
    writer,
)
from cdmtrace.analysis.rules.rule import Judgement, Rule, Severity, Violation
from cdmtrace.events import EventKind


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
    return Judgement(since=note.since, until=note.event.ts, violation=violation)


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
    profiles=frozenset({"intended", "rfc-v2"}),
)


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
            witness=chain(
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
)
