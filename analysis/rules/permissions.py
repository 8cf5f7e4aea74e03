"""Services that touch pages of a node though nobody has let them: CDM021."""

from __future__ import annotations

from typing import Final

from cdmtrace.analysis import names, services
from cdmtrace.analysis.frames import Terms
from cdmtrace.analysis.notes import Note, Served
from cdmtrace.analysis.rules.common import chain
from cdmtrace.analysis.rules.rule import Judgement, Rule, Severity, Violation

_NEEDS: Final = frozenset({"rmap_add", "rmap_remove"})


def _not_allowed(note: Note, terms: Terms, profile: str) -> Judgement | None:
    del profile
    # A page that is there for nobody's policy is CDM014's.
    if not isinstance(note, Served) or note.service == services.FALLBACK.name:
        return None
    if note.service is None:
        return Judgement(unknown="who moved or brought a page was not seen")
    event = note.event
    violation = None
    if not note.allowed:
        only = ", ".join(note.permitted) or "none"
        violation = Violation(
            cause=note.service,
            start=event.start,
            end=event.end,
            expected=f"pages of node {note.node} left alone by {note.service}; allowed "
            f"there: {only}",
            observed=_observed(note, terms),
            witness=chain(event),
            shape=(note.way, f"node {note.node}"),
        )
    window = None if note.since is None else (note.since, event.ts)
    return Judgement(window=window, violation=violation)


def _observed(note: Served, terms: Terms) -> str:
    event = note.event
    what = f"{names.size(note.size, terms.page)} of node {note.node}"
    match note.way:
        case "came":
            whence = f", from node {event.src_node}" if event.src_node >= 0 else ""
            return f"{what} mapped, by {note.service}{whence}"
        case "left":
            where = f", to node {event.node}" if event.node >= 0 else ""
            return f"{what} taken away, by {note.service}{where}"
        case "stayed":
            return f"{what} worked on by {note.service}"


SERVICE_NOT_ALLOWED: Final = Rule(
    id="CDM021",
    name="service-not-allowed",
    severity=Severity.WARNING,
    statement="A service of the kernel (KSM, khugepaged, NUMA balancing, compaction, "
    "reclaim, ...) touched a page of a protected node, and is not allowed there.",
    premise="a page of a protected node that a service brought, took away or worked on",
    source="Gregory Price, Private Memory Nodes w/ Compressed RAM, RFC v4, 22 Feb "
    "2026: a service acts on the pages of a private node only if its NP_OPS_ flag is "
    "set there. What is allowed where nothing is said: David Hildenbrand's answer, "
    "Mar 2026",
    sentence='"just some memory that you mbind(), and you only want the mbind() user '
    'to make use of that memory" (David Hildenbrand, on private memory nodes)',
    events=("MAP", "MIGRATE", "UNMAP", "KSM_PAGE", "NUMA_SCAN", "FLAGS"),
    needs=_NEEDS,
    leans=services.PROBES - _NEEDS,
    threats=(
        "a page that several address spaces map counts for each of them",
        "what a driver does with the pages of its own node counts as allowed",
    ),
    limits=(
        "a long-term pin of a page that may stay where it is leaves no row",
        "pages that nobody maps, of the page cache and of the kernel, are not seen",
        "a page that KSM makes its own where it is has no row; the other one has",
        "a page that came by fallback, to a VMA without such a policy, is CDM014",
    ),
    judge=_not_allowed,
    note=Served,
    profiles=frozenset({"np"}),
    once=True,
    stacks="all",
    tagless=True,
    departures=True,
)
