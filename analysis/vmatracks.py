"""The tracks of VMAs: their lives, tags and pages, and what happens to them."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from cdmtrace.analysis import describe, names
from cdmtrace.analysis.candidates import Candidates
from cdmtrace.analysis.collector import Collector, Vma
from cdmtrace.analysis.frames import Event, Trace
from cdmtrace.analysis.history import Comms, columns_of, policy_of
from cdmtrace.analysis.pages import PageMap
from cdmtrace.analysis.pen import Pen
from cdmtrace.analysis.state import Area, State
from cdmtrace.analysis.timeline import seconds, spans
from cdmtrace.analysis.traffic import Space
from cdmtrace.events import EventKind
from cdmtrace.tracks import Edge, Key, Track, Value

_TOLD: Final = frozenset(
    {
        EventKind.MIGRATE,
        EventKind.COPY,
        EventKind.MOVE,
        EventKind.KSM_PAGE,
        EventKind.COLLAPSE,
        EventKind.NUMA_MOVE,
        EventKind.FLAGS,
        EventKind.POLICY,
        EventKind.KSM_ADVICE,
        EventKind.WRITE,
        EventKind.VMA_NEW,
        EventKind.VMA_SPLIT,
        EventKind.VMA_MERGE,
    }
)
"""Rows of these kinds are instants; those of others if they show flags to change."""

_CALLS: Final = frozenset({EventKind.CALL, EventKind.CALL_OPEN})


class Tasks:
    """The tracks of processes and threads, and what each task was called last."""

    def __init__(self, trace: Trace, pen: Pen) -> None:
        self.comms = Comms(trace)
        self._pen = pen

    def process(self, pid: int, comm: str = "") -> Key:
        """Return the track of a process; of all that are not known where pid is 0."""
        name = (comm or self._name(pid)) if pid else "process not known"
        return self._pen.track(Track(key=("process", pid), name=name, pid=pid))

    def thread(self, pid: int, tid: int) -> Key:
        """Return the track of a thread."""
        return self._pen.track(
            Track(
                key=("thread", pid, tid),
                parent=self.process(pid),
                name=self._name(tid),
                pid=pid,
                tid=tid,
            )
        )

    def _name(self, tid: int) -> str:
        name = self.comms.of(tid, 1 << 64)
        return "" if name == "?" else name


@dataclass(slots=True)
class _Tally:
    """What tracks count, each from 0 on, and a new value only."""

    pen: Pen
    page: int
    _values: dict[Key, int] = field(default_factory=dict)

    def tell(
        self, parent: Key | None, node: int, since: int, ts: int, size: int
    ) -> None:
        """Have so many bytes on a node. since: when there were none (ns)."""
        key: Key = ("pages", *(parent or ()), node)
        pages = size // self.page
        if pages == self._values.get(key, 0):
            return
        if key not in self._values:
            name = f"CDM pages, node {node}"
            self.pen.track(
                Track(key=key, parent=parent, name=name, unit="pages", rank=node)
            )
            if since < ts:
                self.pen.count(key, since, 0)
        self._values[key] = pages
        self.pen.count(key, ts, pages)


class VmaTracks:
    """Writes what a replay shows of VMAs; give take() to it as a follower.

    found: the VMAs of the recording, of which those that are worth a look get tracks;
    witness: seq of a row -> for each finding that it proves, its flow and its track.
    """

    def __init__(
        self,
        trace: Trace,
        pen: Pen,
        tasks: Tasks,
        found: Candidates,
        witness: Mapping[int, Sequence[tuple[Key, Key]]],
    ) -> None:
        self._terms, self._pen, self._tasks = trace.terms, pen, tasks
        self._found, self._witness = found, witness
        self._stacks = trace.stacks
        self._rank = {
            vma.number: rank for rank, vma in enumerate(found.vmas) if vma.worth
        }
        often = found.often()
        self._often = {vma.number for vma in found.vmas if id(vma) in often}
        self._final = {vma.number: vma for vma in found.vmas}
        self._collector = Collector(trace.terms)
        self._pages: dict[Space, PageMap] = {}
        self._open: dict[int, str | None] = {}
        self._by_pid: dict[int, Counter[int]] = defaultdict(Counter)
        self._all = Counter[int]()
        self._tally = _Tally(pen=pen, page=trace.terms.page)
        self._proved: set[int] = set()

    def track(self, number: int) -> Key:
        """Return the track of a VMA, by the number that it has among all."""
        vma = self._final[number]
        size = names.size(vma.end - vma.start, self._terms.page)
        name = f"{vma.start:x}-{vma.end:x} ({size})"
        if number in self._often:
            name += f" from {seconds(vma.since, self._terms)} s"
        process = self._process(vma.space)
        return self._pen.track(
            Track(
                key=(*process, "vma", number),
                parent=process,
                name=name,
                rank=self._rank[number],
            )
        )

    def take(self, space: Space, event: Event, before: State, after: State) -> None:
        """Take note of a row, and of its mm before and after it."""
        self._collector.take(space, event, before, after)
        live = self._collector.live(space)
        pages = PageMap() if event.kind == EventKind.MM_EXIT else after.pages
        stirred = {vma.number: vma for vma in self._collector.stirred}
        for start, end in self._move(space, event.ts, pages):
            for there in after.overlapping(start, end):
                if vma := live.get(there.start):
                    stirred[vma.number] = vma
        for vma in stirred.values():
            area = after.area(vma.start) if live.get(vma.start) is vma else None
            self._show(vma, area, event.ts, pages)
        if event.mm == space[0] and event.kind not in _CALLS:
            self._tell(event, after, live)

    def close(self, ts: int, *, unknown: bool = False) -> None:
        """End all slices. unknown: nothing is known from now on of any mm."""
        for number in list(self._open):
            self._end(number, ts)
        for space in list(self._pages) if unknown else ():
            self._move(space, ts, PageMap())
            for vma in self._collector.live(space).values():
                self._count(vma, ts, Counter())
            del self._pages[space]

    def _process(self, space: Space) -> Key:
        mm = self._found.mms[space]
        return self._tasks.process(mm.pid, mm.comm)

    def _move(self, space: Space, ts: int, pages: PageMap) -> list[tuple[int, int]]:
        """Count an mm's pages anew; return where they differ from what they were."""
        old = self._pages.get(space, PageMap())
        self._pages[space] = pages
        ranges = old.differing(pages)
        change = Counter[int]()
        for start, end in ranges:
            change.update(pages.on_nodes(start, end))
            change.subtract(old.on_nodes(start, end))
        process, started = None, self._terms.started
        for node, size in sorted(change.items()):
            if not (size and self._terms.is_cdm(node)):
                continue
            process = process or self._process(space)
            theirs = self._by_pid[self._found.mms[space].pid]
            theirs[node] += size
            self._all[node] += size
            self._tally.tell(process, node, started, ts, theirs[node])
            self._tally.tell(None, node, started, ts, self._all[node])
        return ranges

    def _show(self, vma: Vma, area: Area | None, ts: int, pages: PageMap) -> None:
        """Have its slices and counts be as the VMA is now; area None: it is gone."""
        number = vma.number
        if number not in self._rank:
            return
        if area is None:
            self._count(vma, ts, Counter())
            self._end(number, ts)
            return
        track = self.track(number)
        if number not in self._open:
            args = {"VMA": f"{area.start:x}-{area.end:x}", "mm": self._mm(vma.space)}
            self._pen.mark(track, ts, Edge.BEGIN, "VMA", args)
            self._open[number] = None
        tag = f"tagged, {policy_of(area)}" if area.tagged(self._terms) else None
        if tag != self._open[number]:
            if self._open[number]:
                self._pen.mark(track, ts, Edge.END)
            if tag:
                args = {"policy": policy_of(area)}
                self._pen.mark(track, ts, Edge.BEGIN, tag, args)
            self._open[number] = tag
        self._count(vma, ts, vma.census.on_nodes(pages, area.start, area.end))

    def _mm(self, space: Space) -> str:
        return self._found.mms[space].label

    def _count(self, vma: Vma, ts: int, held: Mapping[int, int]) -> None:
        if vma.number not in self._rank:
            return
        track = self.track(vma.number)
        for node in self._terms.nodes:
            if self._terms.is_cdm(node):
                self._tally.tell(track, node, vma.since, ts, held.get(node, 0))

    def _end(self, number: int, ts: int) -> None:
        if number not in self._open:
            return
        track = self.track(number)
        if self._open.pop(number):
            self._pen.mark(track, ts, Edge.END)
        self._pen.mark(track, ts, Edge.END)

    def _tell(self, event: Event, after: State, live: Mapping[int, Vma]) -> None:
        """Have a row be an instant of the VMAs that it is about, and of its findings.

        One of which the file has an event for each page proves a finding once.
        """
        before, flags = describe.flags(event, self._terms)
        changed = describe.flags_changed(event)
        where: dict[Key, tuple[Area | None, list[Key]]] = {}
        if changed or event.kind in _TOLD:
            for start, end in spans(event):
                for there in after.overlapping(start, end):
                    vma = live.get(there.start)
                    if vma and vma.number in self._rank:
                        where.setdefault(self.track(vma.number), (there, []))
        if event.seq not in self._proved:
            for flow, track in self._witness.get(event.seq, ()):
                where.setdefault(track, (after.area(event.start), []))[1].append(flow)
                self._proved.add(event.seq)
        what = describe.what(event, self._terms)
        name = f"{before} -> {flags}, {what}" if changed and before != flags else what
        for track, (area, flows) in where.items():
            args = self._args(event, area)
            self._pen.mark(
                track, event.ts, Edge.INSTANT, name, args, flows=tuple(flows)
            )

    def _args(self, event: Event, area: Area | None) -> dict[str, Value | None]:
        """Return what a row says, by the names of a timeline's columns, and more."""
        stack = self._stacks.get(event.stack)
        return {
            **columns_of(event, area, self._tasks.comms, self._terms),
            "probe": names.probe(event.probe),
            "cause": names.cause(event.cause),
            "addr": f"{event.addr:x}" if event.addr else None,
            "bytes": event.size,
            "stack": "\n".join(stack.functions) if stack else None,
        }
