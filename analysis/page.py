"""What the page of ``report --html`` shows, as plain data of bounded size.

One replay gives it all: what check says, what report counts, and the life of every VMA.
Of a great recording only what is worth most is kept; ``left_out`` says what is not.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Iterable, Sequence
from typing import Any, Final

from cdmtrace.analysis import aggregate, candidates, describe, document, names, nearby
from cdmtrace.analysis.activity import Activity
from cdmtrace.analysis.book import Gaps
from cdmtrace.analysis.candidates import Candidates
from cdmtrace.analysis.collector import Collector, Vma
from cdmtrace.analysis.frames import Event, Gap, Terms, Trace
from cdmtrace.analysis.history import Comms
from cdmtrace.analysis.lanes import APART, Mark, Stretch
from cdmtrace.analysis.notes import Note
from cdmtrace.analysis.replay import check
from cdmtrace.analysis.result import Finding, Mm
from cdmtrace.analysis.timeline import lost

Document = dict[str, Any]

LANES: Final = 100
"""VMAs of which the page has the life, the worst ones."""

FINDINGS: Final = 200
ROWS: Final = 100
"""Rows of a table, and losses, that it has."""

TABLES: Final = ("Processes", "Nodes", "Arrivals by cause", "Changes of vm_flags")

MIGRATIONS: Final = 400
"""Ways of pages by process; those of further processes are one."""

_TAG: Final = {True: "tagged", False: "untagged", None: "unknown"}


def build(trace: Trace, *, profile: str, judged_by: Sequence[str] = ()) -> Document:
    """Return the document. Times in seconds since recording began, pages base pages.

    judged_by: the options that say so, for the commands in it. Raises KeyError for a
    profile that does not exist.
    """
    terms = trace.terms
    comms = Comms(trace)
    until = trace.until or terms.started
    span = max(until - terms.started, 1)
    collector = Collector(terms, apart=span // APART)
    counting = aggregate.Counting(terms)
    activity = Activity(since=terms.started, span=span, page=terms.page)

    def observe(mm: Mm, event: Event, note: Note) -> None:
        counting.take(mm, event, note)
        activity.take(event, note)

    result = check(
        trace,
        profile=profile,
        observer=observe,
        follower=collector.take,
        closer=counting.end,
    )
    found = candidates.judged(collector, result)
    worth = [vma for vma in found.vmas if vma.worth]
    first = _first(result.findings)
    drawn = _drawn(worth, first)
    lane_of = {id(f): at for at, vma in enumerate(drawn) for f in vma.findings}
    chosen = _chosen(result.findings, first, lane_of)
    number = {id(finding): at for at, finding in enumerate(chosen)}
    gaps = _gaps(trace)
    checked = document.check(result)
    texts = zip(result.findings, checked["findings"], strict=True)
    told = {id(finding): one for finding, one in texts}
    tables = aggregate.tables(counting.counts, result)
    audit, shadow = checked.get("audit"), checked.get("shadow")
    return {
        # What they list has no bound: here is how many there are.
        "check": {**checked, "findings": [], "audit": None, "shadow": None},
        "wrong": len(audit["differences"]) if audit else 0,
        "would_be": len(shadow["vmas"]) if shadow else 0,
        "recording": _recording(trace, until),
        "findings": [
            {**told[id(f)], **_window(f), "lane": lane_of.get(id(f))} for f in chosen
        ],
        "lanes": _lanes(trace, comms, found, drawn, number, judged_by),
        "activity": activity.document(),
        "losses": [_loss(gap, terms, until) for gap in gaps[:ROWS]],
        "migrations": _migrations(tables["Migrations"]),
        "tables": {title: tables[title][:ROWS] for title in TABLES},
        "left_out": {
            "vmas": len(found.vmas) - len(worth),
            "lanes": max(len(worth) - LANES, 0),
            "findings": len(result.findings) - len(chosen),
            "processes": max(len(tables["Processes"]) - ROWS, 0),
            "losses": max(len(gaps) - ROWS, 0),
            **{title: max(len(tables[title]) - ROWS, 0) for title in TABLES[1:]},
        },
    }


def _recording(trace: Trace, until: int) -> Document:
    terms = trace.terms
    return {
        "machine": terms.machine,
        "started_utc": (terms.started + terms.utc_offset) / 1e9,
        "seconds": _seconds(until, terms),
        "absent": [name for name, symbol in terms.probes.items() if symbol is None],
        "nodes": list(terms.nodes),
        "tag": bool(terms.tag),
    }


def _seconds(ts: int, terms: Terms) -> float:
    return max(ts - terms.started, 0) / 1e9


def _first(findings: Iterable[Finding]) -> set[int]:
    """Return the identities of findings of which each is the first that has its id."""
    found: dict[str, int] = {}
    for finding in findings:
        found.setdefault(finding.fingerprint, id(finding))
    return set(found.values())


def _drawn(worth: Iterable[Vma], first: Container[int]) -> list[Vma]:
    """Return the VMAs that get lanes, the worst first.

    Those with the first finding of an id are among them, so that many of one kind that
    is worse leave nothing out.
    """

    def told(vma: Vma) -> bool:
        return any(id(finding) in first for finding in vma.findings)

    ranks = list(enumerate(worth))
    ranks.sort(key=lambda one: (not told(one[1]), one[0]))
    return [vma for _, vma in sorted(ranks[:LANES], key=lambda one: one[0])]


def _chosen(
    findings: Iterable[Finding], first: Container[int], drawn: Container[int]
) -> list[Finding]:
    """Return findings that are shown, by time.

    The first ones of each id, and then those whose VMAs are drawn, are chosen before
    others.
    """
    chosen = sorted(
        findings, key=lambda one: (id(one) not in first, id(one) not in drawn, one.seq)
    )
    return sorted(chosen[:FINDINGS], key=lambda one: (one.seq, one.rule.id))


def _window(finding: Finding) -> Document:
    """Return from when to when its witness goes; None where it has none."""
    times = [step.since_start / 1e9 for step in finding.witness]
    return {"since": min(times, default=None), "until": max(times, default=None)}


def _gaps(trace: Trace) -> list[Gap]:
    gaps = Gaps()
    for gap in [*([trace.before] if trace.before else []), *trace.gaps]:
        gaps.add(gap)
    return sorted(gaps.all, key=lambda gap: (-gap.count, gap.since))


def _loss(gap: Gap, terms: Terms, until: int) -> Document:
    return {
        "what": lost(gap),
        "count": gap.count,
        "since": _seconds(gap.since, terms),
        "until": _seconds(min(gap.until, until), terms),
    }


def _migrations(rows: aggregate.Rows) -> list[Document]:
    """Return pages by process, cause and nodes; beyond a limit processes are one."""
    comms = {row["pid"]: row["comm"] for row in reversed(rows)}
    pages = Counter[tuple[Any, ...]]()
    for at, row in enumerate(rows):
        pid = row["pid"] if at < MIGRATIONS else "others"
        pages[pid, row["cause"], row["from"], row["to"]] += row["pages"]
    return [
        {
            "pid": pid,
            "comm": comms.get(pid),
            "cause": cause,
            "from": source,
            "to": node,
            "pages": many,
        }
        for (pid, cause, source, node), many in pages.most_common()
    ]


def _lanes(
    trace: Trace,
    comms: Comms,
    found: Candidates,
    vmas: list[Vma],
    number: dict[int, int],
    judged_by: Sequence[str],
) -> list[Document]:
    """Return the life of each VMA. number: of a finding, by its identity."""
    worth = [id(vma) for vma in found.vmas if vma.worth]
    rows = candidates.rows(found, pid=None, addr=None)
    row_of = dict(zip(worth, rows, strict=True))
    files = trace.files or (trace.path,)
    return [
        {
            "pid": row["pid"] or None,
            "comm": row["comm"],
            "mm": found.mms[vma.space].label,
            "vma": row["VMA"],
            "why": row["why"],
            "findings": [number[id(f)] for f in vma.findings if id(f) in number],
            "more_findings": sum(id(f) not in number for f in vma.findings),
            "command": nearby.command(
                files,
                pid=row["pid"],
                addr=vma.start,
                at=row["at"],
                judged_by=judged_by,
            ),
            **lane(vma, trace.terms, comms),
        }
        for vma in vmas
        for row in (row_of[id(vma)],)
    ]


def lane(vma: Vma, terms: Terms, comms: Comms) -> Document:
    """Return what is drawn of a VMA, which has a lane."""
    assert vma.lane is not None
    vma.lane.bound()
    return {
        "pages": (vma.end - vma.start) // terms.page,
        "most": vma.most,
        "changes": vma.changes,
        "since": _seconds(vma.since, terms),
        "until": None if vma.until is None else _seconds(vma.until, terms),
        "stretches": [_stretch(one, terms) for one in vma.lane.stretches],
        "points": [
            {"since": _seconds(ts, terms), "pages": dict(pages)}
            for ts, pages in vma.lane.points
        ],
        "marks": [
            {"sort": sort, **_mark(mark, comms, terms)}
            for sort, marks in vma.lane.marks.items()
            for mark in marks
        ],
    }


def _stretch(one: Stretch, terms: Terms) -> Document:
    byte, nodes = one.policy or (None, 0)
    tag = _TAG[one.tagged] if terms.tag else "none"
    return {
        "since": _seconds(one.since, terms),
        "tag": "mixed" if one.mixed else tag,
        "policy": "?" if byte is None else names.policy(byte, nodes),
        "cdm": byte is not None and bool(nodes & terms.cdm),
        "vma": f"{one.start:x}-{one.end:x}",
        "known": one.known,
    }


def _mark(mark: Mark, comms: Comms, terms: Terms) -> Document:
    rows = []
    for event, many in mark.rows.values():
        before, after = describe.flags(event, terms)
        rows.append(
            {
                "what": describe.what(event, terms),
                "lock": describe.lock(event),
                "flags": before if before == after else f"{before} -> {after}",
                "count": many,
                "task": f"{comms.of(event.tid, event.seq)}/{event.tid}",
                "cpu": event.cpu,
                "row": event.seq,
                "time": _seconds(event.ts, terms),
            }
        )
    return {
        "since": _seconds(mark.since, terms),
        "until": _seconds(mark.until, terms),
        "count": mark.count,
        "more": mark.more,
        "rows": rows,
    }
