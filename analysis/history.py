"""A timeline as plain data: what ``timeline`` prints, and what is rendered."""

from __future__ import annotations

import bisect
import shlex
from collections import defaultdict
from typing import Any, Final

from cdmtrace.analysis import describe, names
from cdmtrace.analysis.frames import Event, Gap, Terms, Trace
from cdmtrace.analysis.rows import only
from cdmtrace.analysis.state import Area
from cdmtrace.analysis.timeline import Moment, Timeline, VmaLife, lost, seconds
from cdmtrace.events import EventKind
from cdmtrace.format.schema import printable

Document = dict[str, Any]

_FLAGLESS: Final = frozenset({EventKind.VMA_FREE, EventKind.SNAP_RANGES})
"""Rows that have no flags of a VMA, beside those that describe.py knows."""


class Comms:
    """What each task was called, and from which row on.

    pids: tid -> process, of those that have a name.
    """

    def __init__(self, trace: Trace) -> None:
        self._names: dict[int, list[tuple[int, str]]] = defaultdict(list)
        self.pids: dict[int, int] = {}
        for event in only(trace.events, {EventKind.COMM}):
            comm = (event.payload or b"").split(b"\0")[0].decode(errors="replace")
            self._names[event.tid].append((event.seq, printable(comm)))
            self.pids[event.tid] = event.pid

    def of(self, tid: int, seq: int) -> str:
        """Return a task's name at a row, "?" if none was told by then."""
        told = self._names.get(tid, [])
        at = bisect.bisect_right(told, seq, key=lambda one: one[0])
        return told[at - 1][1] if at else "?"


def document(found: Timeline, addr: int) -> Document:
    """Return the generations of a VMA, each with its rows and findings.

    Times in seconds since the start of the recording, as text; addresses are text in
    hexadecimal; pages are base pages.
    """
    trace = found.result.trace
    comms = Comms(trace)
    nodes = sorted(
        {node for life in found.lives for one in life.moments for node in one.pages}
    )
    return {
        "files": list(trace.files or (trace.path,)),
        "shown": shlex.join(trace.files or (trace.path,)),
        "addr": f"{addr:x}",
        "profile": found.result.profile.name,
        "of": len(found.lives),
        "generations": [
            _life(found, life, number, comms, nodes)
            for number, life in enumerate(found.lives, 1)
        ],
    }


def tables(one: Document) -> dict[str, list[Document]]:
    """Return a document as title -> rows: its generations, and all their rows."""
    lives = one["generations"]
    heads = [
        {key: value for key, value in life.items() if key != "rows"} for life in lives
    ]
    for head in heads:
        found = [f"{each['rule']}:{each['fingerprint']}" for each in head["findings"]]
        head["findings"] = " ".join(dict.fromkeys(found))
    return {
        "VMAs": heads,
        "Timeline": [row for life in lives for row in life["rows"]],
    }


def _life(
    found: Timeline, life: VmaLife, number: int, comms: Comms, nodes: list[int]
) -> Document:
    trace = found.result.trace
    mm = found.mms[life.space]
    findings = found.findings(life)
    marks: dict[int, list[str]] = defaultdict(list)
    for finding in findings:
        for step in finding.witness:
            mark = f"{finding.rule.id}:{finding.fingerprint}"
            if mark not in marks[step.seq]:
                marks[step.seq].append(mark)
    last = next(one.area for one in reversed(life.moments) if one.area)
    gaps = list(found.losses(life))
    rows = []
    for moment in life.moments:
        while gaps and gaps[0].since < moment.event.ts:
            rows.append(_loss(gaps.pop(0), number, trace.terms, nodes))
        row = _row(moment, number, comms, nodes, trace.terms)
        rows.append({**row, "findings": " ".join(marks[moment.event.seq])})
    rows += [_loss(gap, number, trace.terms, nodes) for gap in gaps]
    return {
        "generation": number,
        "pid": mm.pid or None,
        "comm": mm.comm or None,
        "mm": mm.label,
        "VMA": f"{last.start:x}-{last.end:x}",
        "pages": (last.end - last.start) // trace.terms.page,
        "since": seconds(life.moments[0].event.ts, trace.terms),
        "began": life.began,
        "until": seconds(life.moments[-1].event.ts, trace.terms),
        "ended": life.ended,
        "open": life.open,
        "findings": [
            {
                "rule": finding.rule.id,
                "name": finding.rule.name,
                "fingerprint": finding.fingerprint,
            }
            for finding in findings
        ],
        "rows": rows,
    }


def _row(
    moment: Moment, number: int, comms: Comms, nodes: list[int], terms: Terms
) -> Document:
    columns = columns_of(moment.event, moment.area, comms, terms)
    what = columns.pop("what")
    return {
        "generation": number,
        **columns,
        **{f"node {node}": moment.pages.get(node, 0) for node in nodes},
        "all known": moment.known,
        "what": what,
    }


def columns_of(event: Event, area: Area | None, comms: Comms, terms: Terms) -> Document:
    """Return a row, and what a VMA is after it, by the names of a timeline's columns.

    area: the VMA, None where there is none.
    """
    flagless = event.kind in _FLAGLESS
    before, after = ("", "") if flagless else describe.flags(event, terms)
    return {
        "row": event.seq,
        "time (s)": seconds(event.ts, terms),
        "cpu": event.cpu,
        "task": f"{comms.of(event.tid, event.seq)}/{event.tid}",
        "kind": names.kind(event.kind),
        "lock": "" if flagless else describe.lock(event),
        "before": before,
        "after": after,
        "policy": policy_of(area) if area else "",
        "VMA": f"{area.start:x}-{area.end:x}" if area else "",
        "what": describe.what(event, terms),
    }


def policy_of(area: Area) -> str:
    """Return a VMA's own policy in short, "?" where it is not known."""
    return names.policy(area.policy.byte, area.policy.nodes) if area.policy else "?"


def _loss(gap: Gap, number: int, terms: Terms, nodes: list[int]) -> Document:
    """Return a loss as a row; it may lie at any time until the one that it names."""
    until = ""
    if gap.until < 1 << 63:
        until = f", until {seconds(gap.until, terms)}"
    return {
        "generation": number,
        "row": None,
        "time (s)": seconds(gap.since, terms),
        "cpu": None,
        "task": "",
        "kind": "loss",
        "lock": "",
        "before": "",
        "after": "",
        "policy": "",
        "VMA": "",
        **{f"node {node}": None for node in nodes},
        "all known": False,
        "what": lost(gap) + until,
        "findings": "",
    }
