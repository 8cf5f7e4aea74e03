"""Pages that nobody has asked for: CDM014."""

from __future__ import annotations

from typing import Final

from cdmtrace.analysis import names
from cdmtrace.analysis.frames import Terms
from cdmtrace.analysis.notes import Arrived, Note
from cdmtrace.analysis.rules.common import MIGRATION, REQUESTS, chain
from cdmtrace.analysis.rules.rule import Judgement, Rule, Severity, Violation


def _implicit_allocation(note: Note, terms: Terms, profile: str) -> Judgement | None:
    del terms, profile
    if not isinstance(note, Arrived) or not note.here or not note.page.came:
        return None
    event, page = note.event, note.page
    if not note.named and (note.named is None or note.asked is None):
        return Judgement(
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
            witness=chain(note.task_policy, note.alloc, event, note.call),
            shape=(own.split(":")[0], task.split(":")[0]),
        )
    return Judgement(violation=violation)


IMPLICIT_ALLOCATION: Final = Rule(
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
    leans=REQUESTS | MIGRATION | {"alloc", "shared_policy"},
    threats=(
        (
            "pages of files that somebody else had read in, and KSM's pages, were "
            "not allocated for this VMA"
        ),
        "a page that comes back from swap may have been allocated for its cousin",
    ),
    limits=("what a driver maps or moves counts as asked for",),
    judge=_implicit_allocation,
    note=Arrived,
    profiles=frozenset({"intended", "np"}),
    tagless=True,
    stacks="all",
    once=True,
)
