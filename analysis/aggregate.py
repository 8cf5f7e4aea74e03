"""What happened, counted: the tables of ``report``."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

from cdmtrace import units
from cdmtrace.analysis import names, replay, traffic
from cdmtrace.analysis.book import REPORT
from cdmtrace.analysis.frames import Event, Terms, Trace
from cdmtrace.analysis.notes import Arrived, FlagsChanged, Left, Note, Settled
from cdmtrace.analysis.partition import Share
from cdmtrace.analysis.permissions import DEFAULT
from cdmtrace.analysis.profiles import PROFILES
from cdmtrace.analysis.replay import check
from cdmtrace.analysis.result import Life, Mm, Observed, Result, Shadowed
from cdmtrace.analysis.state import State
from cdmtrace.analysis.traffic import Route, Space, Traffic
from cdmtrace.analysis.verdicts import Counted, result_of
from cdmtrace.events import EventKind, Probe

Rows = list[dict[str, Any]]

_Key = TypeVar("_Key", tuple[str, int], tuple[str, str, str, str])

WOULD_BE: Final = "VMAs that would have to be tagged"
"""The table that only a recording in shadow mode has."""

SERVICES: Final = "Services that touched pages of CDM nodes"

_PROFILE: Final = "intended"
"""No rule is judged; the tables are about what the review wants of the tag."""

_WHY: Final = {"P": "P: policy", "G": "G: request"}
"""Clause of the intended profile -> what it is about."""

_STOPS: Final = 5
"""So many nodes of a route are named; the number of moves tells the rest."""


@dataclass(slots=True)
class Counts:
    """What there was. Pages in base pages, by (mm, …).

    spaces: each address space as it was last.
    """

    arrived: Counter[tuple[Space, int, str]] = field(default_factory=Counter)
    left: Counter[tuple[Space, int]] = field(default_factory=Counter)
    set: Counter[Space] = field(default_factory=Counter)
    changed: Counter[tuple[str, str, str, str]] = field(default_factory=Counter)
    spaces: dict[Space, _Last] = field(default_factory=dict)

    def add(self, more: Counts) -> None:
        """Take in what there was in other address spaces."""
        self.arrived += more.arrived
        self.left += more.left
        self.set += more.set
        self.changed += more.changed
        self.spaces |= more.spaces


@dataclass(frozen=True, kw_only=True, slots=True)
class _Vma:
    """A VMA and its pages of CDM nodes: base pages by (node, cause)."""

    start: int
    end: int
    tagged: bool | None
    set_by: str
    policy: str | None
    pages: Counter[tuple[int, str]]
    asked: Counter[tuple[int, str]]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Last:
    """An address space as it was last.

    tagged: how many VMAs had the tag. held: base pages that it mapped, by CDM node.
    vmas: those that have to do with CDM.
    """

    ended: bool
    tagged: int
    held: Counter[int]
    vmas: tuple[_Vma, ...]


class Counting:
    """Counts what happens; give take() to replay.check() as its teller, and end() as
    its closer.
    """

    def __init__(self, terms: Terms) -> None:
        self._terms = terms
        self.counts = Counts()

    def take(self, mm: Mm, event: Event, note: Note, times: int = 1) -> None:
        """Count what a note tells, or so many like it."""
        del event
        counts, terms = self.counts, self._terms
        if isinstance(note, Arrived):
            pages = times * (note.page.size // terms.page)
            counts.arrived[_space(mm), note.page.node, note.page.how] += pages
        elif isinstance(note, Left):
            pages = times * (note.event.size // terms.page)
            counts.left[_space(mm), note.event.src_node] += pages
        elif isinstance(note, Settled) and note.area.rise and note.facts.tag:
            counts.set[_space(mm)] += times
        elif isinstance(note, FlagsChanged) and changes(note):
            counts.changed[_change(note.event, terms)] += times

    def end(self, life: Life) -> None:
        """Note what an address space was last."""
        self.counts.spaces[_space(life.mm)] = _last(life.state, self._terms)


def tables(counts: Counts, result: Result) -> dict[str, Rows]:
    """Return what report() does. result: what the replay came to."""
    terms = result.trace.terms
    spaces = [(life.mm, counts.spaces[_space(life.mm)]) for life in result.lives]
    mms = {_space(mm): mm for mm, _ in spaces}
    vmas = sorted(
        ((mm, vma) for mm, last in spaces for vma in last.vmas),
        key=lambda one: -one[1].pages.total(),
    )
    migrated = traffic.read(result.trace.events, result.trace.breaks)
    return {
        "Processes": _processes(spaces, counts),
        **({WOULD_BE: _would_be(result.shadow, terms)} if result.shadow else {}),
        "VMAs": [_vma(mm, vma, terms) for mm, vma in vmas],
        "VMAs by cause": _contents(vmas),
        "Nodes": _nodes(counts, terms),
        "Arrivals by cause": _arrivals(counts, terms),
        **({SERVICES: _services(result.services, terms)} if terms.nodes else {}),
        "Migrations": _migrations(migrated, mms, terms),
        "Pages that move to and fro": _to_and_fro(migrated.routes, mms, terms),
        "Changes of vm_flags": _changes(counts),
    }


def changes(note: FlagsChanged) -> bool:
    """Return whether a note tells of a change that no other has told of."""
    return not note.explained and note.event.flags_before != note.event.flags_after


def report(trace: Trace) -> dict[str, Rows]:
    """Return title -> rows, per process, VMA, node, cause and writer of vm_flags.

    The rows of one table have the same keys, and those that count most come first.
    Pages are base pages; None is what is not known. An mm that has ended is shown as
    it was just before.
    """
    counting = Counting(trace.terms)
    result = check(trace, **_asked(counting))
    return tables(counting.counts, result)


def of_share(trace: Trace, share: Share) -> tuple[Counted, Counts]:
    """Return what a share of a recording comes to, for put_together()."""
    counting = Counting(trace.terms)
    counted = replay.of_share(trace, share, **_asked(counting))
    return counted, counting.counts


def _asked(counting: Counting) -> dict[str, Any]:
    """Return what is asked of a replay."""
    return {
        "profile": _PROFILE,
        "rules": (),
        "teller": counting.take,
        "closer": counting.end,
        "permissions": DEFAULT,
        "bounds": REPORT,
    }


def put_together(
    trace: Trace, parts: Iterable[tuple[Counted, Counts]]
) -> dict[str, Rows]:
    """Return what report() does. parts: what each share of the recording came to."""
    counts, counted = Counts(), []
    for one, more in parts:
        counted.append(one)
        counts.add(more)
    return tables(counts, result_of(trace, PROFILES[_PROFILE], DEFAULT, counted))


def _space(mm: Mm) -> Space:
    return mm.id, mm.generation


def _change(event: Event, terms: Terms) -> tuple[str, str, str, str]:
    probe = names.probe(event.probe)
    lock = names.locks(event.lock_entry, event.lock_exit)
    before, after = names.changed(event.flags_before, event.flags_after, terms)
    function = names.function(event.payload) if event.kind == EventKind.WRITE else ""
    return function or terms.probes.get(probe) or probe, lock, before, after


def _last(state: State, terms: Terms) -> _Last:
    """Return what the tables say of an address space."""
    held = Counter[int]()
    for page in state.pages.within(0, 1 << 64):
        held[page.node] += page.size // terms.page
    return _Last(
        ended=state.ended,
        tagged=sum(bool(area.tagged(terms)) for area in state.areas),
        held=held,
        vmas=tuple(_vmas(state, terms)),
    )


def _vmas(state: State, terms: Terms) -> Iterator[_Vma]:
    """Yield the VMAs that have to do with CDM."""
    for area in state.areas:
        pages, asked = Counter[tuple[int, str]](), Counter[tuple[int, str]]()
        for page in state.pages.within(area.start, area.end):
            pages[page.node, page.how] += page.size // terms.page
            asked[page.node, page.how] += page.explicit * page.size // terms.page
        if pages or area.tagged(terms) or area.cleared or area.policy_by:
            own = area.policy
            yield _Vma(
                start=area.start,
                end=area.end,
                tagged=area.tagged(terms),
                set_by=_by(area.set_by),
                policy=None if own is None else names.policy(own.byte, own.nodes),
                pages=pages,
                asked=asked,
            )


def _processes(spaces: Iterable[tuple[Mm, _Last]], counts: Counts) -> Rows:
    came, left = Counter[Space](), Counter[Space]()
    for (space, _, _), pages in counts.arrived.items():
        came[space] += pages
    for (space, _), pages in counts.left.items():
        left[space] += pages
    rows = []
    for mm, last in spaces:
        space, resident = _space(mm), last.held.total()
        if not (came[space] or resident or last.tagged or counts.set[space]):
            continue
        rows.append(
            {
                "pid": mm.pid or None,
                "comm": mm.comm or None,
                "mm": mm.label,
                "VMAs tagged": last.tagged,
                "tags set": counts.set[space],
                "pages came": came[space],
                "pages left": left[space],
                "pages now": resident,
            }
        )
    return sorted(rows, key=lambda row: (-row["pages now"], -row["pages came"]))


def _would_be(found: Shadowed, terms: Terms) -> Rows:
    """Return the VMAs that would have to be tagged; times in seconds, as text."""
    rows = []
    for mm, due in found.vmas:
        before = due.since.probe == Probe.SNAPSHOT
        gone = "gone" if due.ended else "-"
        rows.append(
            {
                "pid": mm.pid or None,
                "comm": mm.comm or None,
                "VMA": _range(due.start, due.end),
                "why": _WHY.get(due.clause, due.clause),
                **{
                    f"node {node}": due.pages.get(node, 0) // terms.page
                    for node in terms.nodes
                },
                "since": "before" if before else _seconds(due.since, terms),
                "until": _seconds(due.until, terms) if due.until else gone,
            }
        )
    return sorted(
        rows, key=lambda row: -sum(row[f"node {node}"] for node in terms.nodes)
    )


def _services(observed: Observed, terms: Terms) -> Rows:
    """Return what services did, and of which it could not be seen (None)."""
    rows = []
    for cell in sorted(observed.cells, key=lambda cell: not cell.pages):
        if not cell.pages and not cell.unchecked:
            continue
        seen = cell.unchecked is None
        rows.append(
            {
                "node": cell.node,
                "service": cell.service.name,
                "pages came": cell.came if seen else None,
                "pages left": cell.left if seen else None,
                "pages stayed": cell.stayed if seen else None,
                "since": _seconds(cell.first, terms) if cell.first else "-",
                "by": next(iter(cell.by), "-"),
            }
        )
    return rows


def _seconds(event: Event, terms: Terms) -> str:
    return units.seconds(event.ts - terms.started)


def _vma(mm: Mm, vma: _Vma, terms: Terms) -> dict[str, Any]:
    return {
        "pid": mm.pid or None,
        "VMA": _range(vma.start, vma.end),
        "pages": (vma.end - vma.start) // terms.page,
        "on CDM": vma.pages.total(),
        "tag": {True: "cd", False: "-", None: None}[vma.tagged],
        "set by": vma.set_by,
        "policy": vma.policy,
    }


def _contents(vmas: Iterable[tuple[Mm, _Vma]]) -> Rows:
    return [
        {
            "pid": mm.pid or None,
            "VMA": _range(vma.start, vma.end),
            "node": node,
            "cause": cause,
            "pages": pages,
            "asked for": vma.asked[node, cause],
        }
        for mm, vma in vmas
        for (node, cause), pages in vma.pages.most_common()
    ]


def _range(start: int, end: int) -> str:
    return f"{start:x}-{end:x}"


def _by(event: Event | None) -> str:
    if event is None:
        return "-"
    if event.kind == EventKind.ALLOC:
        return "fault"
    return "mbind" if event.call else names.kind(event.kind)


def _nodes(counts: Counts, terms: Terms) -> Rows:
    came, left, now = Counter[int](), Counter[int](), Counter[int]()
    for (_, node, _), pages in counts.arrived.items():
        came[node] += pages
    for (_, node), pages in counts.left.items():
        left[node] += pages
    for last in counts.spaces.values():
        if not last.ended:
            now += last.held
    return [
        {
            "node": node,
            "pages came": came[node],
            "pages left": left[node],
            "mapped now": now[node],
        }
        for node in terms.nodes
    ]


def _arrivals(counts: Counts, terms: Terms) -> Rows:
    pages = Counter[tuple[str, int]]()
    spaces: dict[tuple[str, int], set[Space]] = {}
    for (space, node, cause), number in counts.arrived.items():
        pages[cause, node] += number
        spaces.setdefault((cause, node), set()).add(space)
    return [
        {
            "cause": cause,
            "node": node,
            "pages": number,
            "bytes": number * terms.page,
            "processes": len(spaces[cause, node]),
        }
        for (cause, node), number in _most_first(pages)
    ]


def _migrations(migrated: Traffic, mms: Mapping[Space, Mm], terms: Terms) -> Rows:
    return [
        {
            "pid": mms[space].pid or None if space in mms else None,
            "comm": mms[space].comm or None if space in mms else None,
            "cause": cause,
            "from": None if source < 0 else source,
            "to": node,
            "pages": size // terms.page,
            "bytes": size,
        }
        for (space, cause, source, node), size in migrated.moved.most_common()
    ]


def _to_and_fro(routes: Iterable[Route], mms: Mapping[Space, Mm], terms: Terms) -> Rows:
    """Return where pages were moved more than once, by VMA as it was the last time."""
    by_vma: dict[tuple[Space, int, int], list[Route]] = {}
    for route in routes:
        if len(route.moves) > 1:
            last = route.moves[-1]
            by_vma.setdefault((route.space, last.start, last.end), []).append(route)
    rows = []
    for (space, start, end), found in by_vma.items():
        longest = max(found, key=lambda route: len(route.moves))
        sizes = [route.moves[0].size // terms.page for route in found]
        rows.append(
            {
                "pid": mms[space].pid or None if space in mms else None,
                "VMA": _range(start, end),
                "pages": sum(sizes),
                "moves": sum(
                    size * len(route.moves)
                    for size, route in zip(sizes, found, strict=True)
                ),
                "most": len(longest.moves),
                "route": _route(longest.nodes),
            }
        )
    return sorted(rows, key=lambda row: -row["moves"])


def _route(nodes: tuple[int, ...]) -> str:
    stops = ["?" if node < 0 else str(node) for node in nodes[:_STOPS]]
    return " > ".join([*stops, "..."] if len(nodes) > _STOPS else stops)


def _changes(counts: Counts) -> Rows:
    return [
        {
            "function": function,
            "mmap lock": lock,
            "before": before,
            "after": after,
            "changes": number,
        }
        for (function, lock, before, after), number in _most_first(counts.changed)
    ]


def _most_first(counts: Counter[_Key]) -> list[tuple[_Key, int]]:
    """Return counts in an order that is the same whoever counted what first."""
    return sorted(counts.items(), key=lambda one: (-one[1], one[0]))
