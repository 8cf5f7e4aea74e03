"""A recording as tracks: processes, threads and VMAs, on one time axis.

It is replayed twice. What is worth a track, and what is found, is known at the end of
the first time; the second time, items come as the rows do, and none is kept.
"""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Iterator
from typing import Final

from cdmtrace.analysis import describe, names
from cdmtrace.analysis.book import NAMES, Bounds, Gaps
from cdmtrace.analysis.candidates import Candidates, by_spaces, owner, ranked
from cdmtrace.analysis.collector import Collector
from cdmtrace.analysis.frames import Event, Gap, Trace
from cdmtrace.analysis.history import columns_of
from cdmtrace.analysis.pen import Pen
from cdmtrace.analysis.replay import Replay, check
from cdmtrace.analysis.result import Finding, Result
from cdmtrace.analysis.timeline import lost
from cdmtrace.analysis.vmatracks import Tasks, VmaTracks
from cdmtrace.events import EventKind
from cdmtrace.tracks import Clock, Edge, Item, Key, Track, Value

_SEEN: Final = Bounds(ended=False, audit=False)
"""What the second replay keeps: it judges nothing."""

_LOST: Final[Key] = ("lost",)


class Tracks:
    """The tracks of a recording. result: what check() says of it.

    clock: that of all times. vmas, found: so many VMAs have tracks, and so many
    findings there are.
    """

    def __init__(self, trace: Trace, *, profile: str) -> None:
        """Judge it. Raises KeyError for a profile that does not exist."""
        collector = Collector(trace.terms)
        self.result: Result = check(
            trace, profile=profile, follower=collector.take, bounds=NAMES
        )
        self.clock = Clock(
            started=trace.terms.started, utc_offset=trace.terms.utc_offset
        )
        self._trace, self._pen = trace, Pen()
        self._tasks = Tasks(trace, self._pen)
        by_space = by_spaces(collector.ever)
        owners: list[int | None] = []
        for finding in self.result.findings:
            vma = owner(finding, by_space[finding.mm.id, finding.mm.generation])
            owners.append(vma.number if vma else None)
            if vma:
                vma.findings.append(finding)
        found = Candidates(
            vmas=tuple(ranked(collector.ever)),
            mms={(one.mm.id, one.mm.generation): one.mm for one in self.result.lives},
            terms=trace.terms,
        )
        self.found = len(self.result.findings)
        self.vmas = sum(vma.worth for vma in found.vmas)
        witness: dict[int, list[tuple[Key, Key]]] = defaultdict(list)
        self._witness = witness
        self._vmas = VmaTracks(trace, self._pen, self._tasks, found, witness)
        self._found: dict[int, list[tuple[Key, Key, Finding]]] = defaultdict(list)
        for number, finding in enumerate(self.result.findings):
            flow: Key = ("finding", number)
            track = self._place(finding, owners[number])
            self._found[finding.seq].append((flow, track, finding))
            for seq in {step.seq for step in finding.witness}:
                witness[seq].append((flow, track))

    def items(self) -> Iterator[Item]:
        """Yield tracks and what is on them, once; a track before what is on it.

        What is on one track comes in the order of its times (ns).
        """
        run = Replay(
            self._trace,
            profile=self.result.profile.name,
            rules=(),
            follower=self._vmas.take,
            bounds=_SEEN,
        )
        last = self._trace.terms.started
        for event in self._trace.events:
            if event.seq in self._trace.breaks:
                self._vmas.close(last, unknown=True)
            run.take(event)
            if event.kind in (EventKind.CALL, EventKind.CALL_OPEN):
                self._call(event)
            for flow, track, finding in self._found.pop(event.seq, ()):
                self._finding(event, flow, track, finding)
            last = max(last, event.ts)
            yield from self._pen.drain()
        self._vmas.close(last)
        self._losses(last)
        yield from self._pen.drain()

    def _place(self, finding: Finding, number: int | None) -> Key:
        """Return the track of a finding: its VMA's, or one for those that have none."""
        if number is not None:
            return self._vmas.track(number)
        process = None
        if finding.mm.id:
            process = self._tasks.process(finding.mm.pid, finding.mm.comm)
        key: Key = ("findings", *(process or ()))
        return self._pen.track(Track(key=key, parent=process, name="findings"))

    def _call(self, event: Event) -> None:
        """Have a system call be a slice of its thread, on which calls don't overlap."""
        track = self._tasks.thread(event.pid, event.tid)
        columns = columns_of(event, None, self._tasks.comms, self._trace.terms)
        args: dict[str, Value | None] = {
            **columns,
            "result": describe.result(event),
            "mm": f"{event.mm:016x}" if event.mm else None,
            "addr": f"{event.addr:x}" if event.addr else None,
            "bytes": event.size,
        }
        flows = tuple(flow for flow, _ in self._witness.get(event.seq, ()))
        name = names.probe(event.probe).removeprefix("sys_")
        self._pen.mark(track, event.ts_entry, Edge.BEGIN, name, args, flows=flows)
        self._pen.mark(track, event.ts, Edge.END)

    def _finding(self, event: Event, flow: Key, track: Key, finding: Finding) -> None:
        rule = finding.rule
        args: dict[str, Value | None] = {
            "rule": rule.id,
            "name": rule.name,
            "severity": rule.severity.value,
            "cause": finding.cause,
            "process": f"{finding.mm.comm or '?'} (pid {finding.mm.pid or '?'})",
            "mm": finding.mm.label,
            "VMA": f"{finding.start:x}-{finding.end:x}",
            "expected": finding.expected,
            "observed": finding.observed,
            "fingerprint": finding.fingerprint,
            "count": finding.count,
            "breaks": finding.breaks,
            "witness": " ".join(str(step.seq) for step in finding.witness),
        }
        name = f"{rule.id} {rule.name}"
        self._pen.mark(track, event.ts, Edge.INSTANT, name, args, ends=(flow,))

    def _losses(self, last: int) -> None:
        """Have what is missing be slices; as many tracks as are missing at a time."""
        trace, gaps = self._trace, Gaps()
        for gap in [*([trace.before] if trace.before else []), *trace.gaps]:
            gaps.add(gap)
        if not (gaps.all or trace.cut):
            return
        self._pen.track(Track(key=_LOST, name="lost"))
        free: list[tuple[int, int]] = []
        for gap in sorted(gaps.all, key=lambda gap: gap.since):
            until = max(gap.since, min(gap.until, last))
            lane = len(free)
            if free and free[0][0] <= gap.since:
                lane = heapq.heappop(free)[1]
            heapq.heappush(free, (until, lane))
            self._loss(gap, until, lane)
        if trace.cut:
            self._pen.mark(_LOST, last, Edge.INSTANT, "cut", {"why": trace.cut})

    def _loss(self, gap: Gap, until: int, lane: int) -> None:
        # Lanes of one name are shown as one track.
        key = (*_LOST, lane)
        self._pen.track(Track(key=key, parent=_LOST, name="rows", rank=lane))
        args: dict[str, Value | None] = {
            "probe": gap.probe,
            "reason": gap.reason,
            "count": gap.count,
            "mm": f"{gap.mm:016x}" if gap.mm else None,
        }
        self._pen.mark(key, gap.since, Edge.BEGIN, lost(gap), args)
        self._pen.mark(key, until, Edge.END)
