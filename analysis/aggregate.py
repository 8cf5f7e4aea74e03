"""What happened, counted: the tables of ``report``."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from cdmtrace.analysis import names
from cdmtrace.analysis.frames import Event, Terms, Trace
from cdmtrace.analysis.model import Arrived, FlagsChanged, Left, Note, Settled
from cdmtrace.analysis.replay import Life, Mm, Result, check
from cdmtrace.events import EventKind

Rows = list[dict[str, Any]]


@dataclass(slots=True)
class _Counts:
    """Pages in base pages, by (mm, …)."""

    arrived: Counter[tuple[Mm, int, str]] = field(default_factory=Counter)
    left: Counter[tuple[Mm, int]] = field(default_factory=Counter)
    set: Counter[Mm] = field(default_factory=Counter)
    changed: Counter[tuple[str, str]] = field(default_factory=Counter)


def report(trace: Trace) -> dict[str, Rows]:
    """Return title -> rows, per process, VMA, node and path; pages are base pages.

    The rows of one table have the same keys. An mm that has ended is shown as it
    was just before.
    """
    counts = _Counts()
    terms = trace.terms

    def watch(mm: Mm, event: Event, note: Note) -> None:
        del event
        if isinstance(note, Arrived):
            pages = note.page.size // terms.page
            counts.arrived[mm, note.page.node, note.page.how] += pages
        elif isinstance(note, Left):
            pages = note.event.size // terms.page
            counts.left[mm, note.event.src_node] += pages
        elif isinstance(note, Settled) and note.area.rise and note.facts.tag:
            counts.set[mm] += 1
        elif isinstance(note, FlagsChanged) and not note.explained:
            lock = names.locks(note.event.lock_entry, note.event.lock_exit)
            counts.changed[names.probe(note.event.probe), lock] += 1

    result = check(trace, rules=(), observer=watch)
    return {
        "Processes": _processes(result, counts, terms),
        "VMAs": _vmas(result, terms),
        "Nodes": _nodes(result, counts, terms),
        "Ways to a CDM page": _paths(counts),
        "Changes of vm_flags": [
            {"probe": probe, "mmap lock": lock, "changes": count}
            for (probe, lock), count in sorted(counts.changed.items())
        ],
    }


def _resident(life: Life, terms: Terms) -> int:
    return sum(page.size // terms.page for page in life.state.pages.within(0, 1 << 64))


def _processes(result: Result, counts: _Counts, terms: Terms) -> Rows:
    rows = []
    for life in result.lives:
        mm, areas = life.mm, life.state.areas
        came = sum(n for (who, _, _), n in counts.arrived.items() if who == mm)
        resident = _resident(life, terms)
        tagged = sum(bool(area.tagged(terms)) for area in areas)
        if not (came or resident or tagged or counts.set[mm]):
            continue
        rows.append(
            {
                "pid": mm.pid,
                "comm": mm.comm or "?",
                "mm": mm.label,
                "ended": "yes" if life.state.ended else "no",
                "VMAs tagged": tagged,
                "tags set": counts.set[mm],
                "pages came": came,
                "pages left": sum(
                    n for (who, _), n in counts.left.items() if who == mm
                ),
                "pages now": resident,
            }
        )
    return rows


def _vmas(result: Result, terms: Terms) -> Rows:
    rows = []
    for life in result.lives:
        for area in life.state.areas:
            count = Counter[int]()
            asked = 0
            for page in life.state.pages.within(area.start, area.end):
                count[page.node] += page.size // terms.page
                asked += page.explicit * page.size // terms.page
            tagged = area.tagged(terms)
            if not (tagged or count or area.cleared or area.policy_by):
                continue
            own = "?"
            if area.policy:
                own = names.policy(area.policy.byte, area.policy.nodes)
            rows.append(
                {
                    "pid": life.mm.pid,
                    "VMA": f"{area.start:x}-{area.end:x}",
                    "pages": (area.end - area.start) // terms.page,
                    "policy": own,
                    "tag": {True: "cd", False: "-", None: "?"}[tagged],
                    "on CDM": " ".join(f"N{n}={c}" for n, c in sorted(count.items()))
                    or "-",
                    "asked for": asked,
                    "tag set by": _by(area.set_by),
                }
            )
    return rows


def _by(event: Event | None) -> str:
    if event is None:
        return "-"
    if event.kind == EventKind.ALLOC:
        return "fault"
    return "mbind" if event.call else names.kind(event.kind)


def _nodes(result: Result, counts: _Counts, terms: Terms) -> Rows:
    rows = []
    for node in terms.nodes:
        resident = sum(
            page.size // terms.page
            for life in result.lives
            if not life.state.ended
            for page in life.state.pages.within(0, 1 << 64)
            if page.node == node
        )
        rows.append(
            {
                "node": node,
                "pages came": sum(
                    n for (_, where, _), n in counts.arrived.items() if where == node
                ),
                "pages left": sum(
                    n for (_, where), n in counts.left.items() if where == node
                ),
                "mapped now": resident,
            }
        )
    return rows


def _paths(counts: _Counts) -> Rows:
    rows: dict[str, tuple[int, set[Mm]]] = {}
    for (mm, _, how), pages in counts.arrived.items():
        known, mms = rows.get(how, (0, set()))
        rows[how] = known + pages, mms | {mm}
    return [
        {"way": how, "pages": pages, "processes": len(mms)}
        for how, (pages, mms) in sorted(rows.items())
    ]
