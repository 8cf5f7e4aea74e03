"""A trace file as typed rows in the order of the ring, and its losses as intervals.

The rows of a trace are a total order: a ring hands its records out under one
lock, so an event that returned before another one comes before it. That order,
and not the clock of some cpu, is what the model is fed in.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, Final

from cdmtrace import vmbits
from cdmtrace.analysis import sanity
from cdmtrace.analysis.stacks import Stack
from cdmtrace.errors import TraceFileError
from cdmtrace.events import Cause, EventKind
from cdmtrace.format.schema import printable

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

    from cdmtrace.format.reader import Loss, TraceInfo
    from cdmtrace.format.schema import Header, Part


FOLLOWED: Final = "watch"
"""Gaps of this probe mean that an address space was not followed from then on."""

ROWS: Final = "*"
"""A gap of this probe means that rows of every kind are missing: a part of the
recording is, or has been cut."""

BEFORE: Final = "before"
"""The reason of the gap that is there where the first part of a recording is not."""

_NEVER: Final = 1 << 64

_SLICE: Final = 512
"""Rows that are made into objects at a time: a batch may have 65,536."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Event:
    """One row. What each field means is told in ``bpf/events.h``, per kind.

    Addresses and sizes in bytes, times in ns (CLOCK_MONOTONIC), kinds, probes,
    causes, locks and policies as numbers, so that a row of a newer format still
    is one.
    """

    seq: int
    ts: int
    ts_entry: int
    kind: int
    probe: int = 0
    mm: int = 0
    vma: int = 0
    start: int = 0
    end: int = 0
    addr: int = 0
    size: int = 0
    flags_before: int = 0
    flags_after: int = 0
    nodes: int = 0
    other: int = 0
    pid: int = 0
    tid: int = 0
    call: int = 0
    ret: int = 0
    arg: int = 0
    cpu: int = 0
    node: int = -1
    src_node: int = -1
    cause: int = 0
    bits: int = 0
    lock_entry: int = 0
    lock_exit: int = 0
    policy: int = 0
    other_policy: int = 15
    stack: int = 0
    payload: bytes | None = None


FIELDS: Final = tuple(f.name for f in fields(Event))
"""Names of the columns that a row is made of."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Gap:
    """Events of one probe that are missing.

    They returned after ``since`` and not after ``until`` (ns). mm: id of the address
    space that they belong to, 0 if it can be any; [start, end): the addresses that
    they lie in.
    """

    probe: str
    reason: str
    count: int
    since: int
    until: int
    mm: int = 0
    start: int = 0
    end: int = 1 << 64


@dataclass(frozen=True, kw_only=True, slots=True)
class Terms:
    """What a recording says its events are about.

    cdm: mask of the CDM nodes. tag: VM_CDM's mask in vm_flags, 0 if the kernel has
    none (shadow mode). page: bytes of a base page. flags: bit -> name, of vm_flags on
    the kernel of the recording. probes: logical name -> symbol it was attached to, None
    where it was not; so is a name that is absent. all: pages of every node were told
    of, not only those of CDM nodes. taken_by: the flag that has VM_CDM's bit on that
    kernel, None if no other has.

    What was left out because it was asked for: filters, as the header has them. told:
    mask of the nodes whose pages were told of. addr: the addresses whose pages were,
    and whose VMAs. late: an address space may be followed from some time of its life
    on. stacks: of what they were taken, "all", "changes" or "none". departures: what
    leaves a CDM node is part of "all"; an older recorder took no stack of it.
    """

    cdm: int
    tag: int
    page: int = 4096
    kernel: str = ""
    flags: Mapping[int, str] = field(default_factory=lambda: vmbits.COMMON)
    probes: Mapping[str, str | None] = field(default_factory=dict)
    started: int = 0
    utc_offset: int = 0
    all: bool = False
    taken_by: str | None = None
    filters: Mapping[str, Any] = field(default_factory=dict)
    told: int = -1
    addr: tuple[int, int] = (0, 1 << 64)
    late: bool = False
    stacks: str = "all"
    departures: bool = True

    def is_cdm(self, node: int) -> bool:
        """Return whether a node, -1 for none, is a CDM node that was told of."""
        return node >= 0 and bool((self.cdm & self.told) >> node & 1)

    def sees(self, start: int, end: int) -> bool:
        """Return whether a VMA was told of, be it for some of its pages only."""
        return start < self.addr[1] and self.addr[0] < end

    def sees_all(self, start: int, end: int) -> bool:
        """Return whether every page of a CDM node in [start, end) was told of."""
        within = self.addr[0] <= start and end <= self.addr[1]
        return within and not self.cdm & ~self.told

    @property
    def nodes(self) -> tuple[int, ...]:
        """The CDM nodes, ascending."""
        return tuple(n for n in range(self.cdm.bit_length()) if self.cdm >> n & 1)


@dataclass(frozen=True, kw_only=True, slots=True)
class Trace:
    """A recording, read.

    cut: where and why the reading stopped short of the recording's own end; None
    if it did not. count: rows in the files; one about several pages of a folio is an
    event for each. stacks: by the number that events name them with. files: its parts,
    in order. before: rows that came before the first part that is here; None if that
    begins the recording. breaks: seqs of rows before which some are missing. Events can
    be iterated more than once; the cause of each is what its stack says.
    """

    path: str
    terms: Terms
    events: Iterable[Event]
    count: int
    gaps: tuple[Gap, ...] = ()
    stacks: Mapping[int, Stack] = field(default_factory=dict)
    clean_end: bool = True
    cut: str | None = None
    files: tuple[str, ...] = ()
    before: Gap | None = None
    breaks: frozenset[int] = frozenset()

    @property
    def lost(self) -> int:
        """How many events are missing, all probes together."""
        return sum(gap.count for gap in self.gaps)


def load(path: str | os.PathLike[str], *more: str | os.PathLike[str]) -> Trace:
    """Read a trace file, whole or torn, or several that are parts of one recording.

    Parts may be given in any order, and some may be missing. Raises TraceFileError (an
    UnreadableFile) if nothing can be read of one, and UsageTrouble where they are not
    parts of one recording.
    """
    from cdmtrace.analysis.parts import one_recording

    read = [_File.read(file) for file in one_recording([path, *more])]
    events = [event for file in read for event in file.events]
    stacks = {
        event.stack: Stack.parse(event.payload)
        for event in events
        if event.kind == EventKind.STACK
    }
    causes = {id_: stack.cause for id_, stack in stacks.items()}
    events = [_caused(event, causes) for event in events]
    infos = [file.info for file in read]
    header, last = infos[0].header, infos[-1]
    holes = joints(infos)
    cuts = [info.torn for info in infos if info.torn]
    if len(read) > 1:
        cuts = [f"{info.path}: {info.torn}" for info in infos if info.torn]
    if last.more:
        following = last.header.part.number + 1 if last.header.part else 1
        cuts.append(f"it goes on in part {following}, which is not here")
    return Trace(
        path=str(infos[0].path),
        files=tuple(str(info.path) for info in infos),
        terms=terms_of(header, infos[0].path),
        events=events,
        count=sum(info.events for info in infos),
        stacks=stacks,
        gaps=tuple(gap_of(loss) for info in infos for loss in info.losses)
        + tuple(hole.gap for hole in holes if hole.gap.reason != BEFORE),
        before=next((hole.gap for hole in holes if hole.gap.reason == BEFORE), None),
        breaks=frozenset(hole.seq for hole in holes),
        clean_end=last.clean_end and not last.more,
        cut="; ".join(cuts) or None,
    )


def terms_of(header: Header, path: str | os.PathLike[str]) -> Terms:
    """Return what a header says the events are about. path: of its file.

    Raises TraceFileError for filters that no recorder writes.
    """
    taken_by = header.extra.get("vm_cdm_taken_by")
    return Terms(
        cdm=sum(1 << node for node in header.cdm_nodes),
        tag=header.vm_cdm_mask,
        page=header.page_size,
        kernel=printable(header.kernel_release),
        flags={bit: printable(name) for bit, name in header.vm_flags.items()}
        or vmbits.names(vmbits.release_of(header.kernel_release), header.machine),
        probes={
            printable(entry.name): entry.symbol and printable(entry.symbol)
            for entry in header.probes
        },
        started=header.started,
        utc_offset=header.utc_offset,
        all=bool(header.filters.get("all")),
        taken_by=taken_by and printable(taken_by),
        departures="departures" in _words(header.extra.get("stacks_of")),
        **_filtered(header, path),
    )


def _words(value: object) -> list[object]:
    """Return a list that a file has for one, an empty one for anything else."""
    return value if isinstance(value, list) else []


def gap_of(loss: Loss) -> Gap:
    """Return a loss of the file as the interval that it is."""
    return Gap(
        probe=printable(loss.probe),
        reason=printable(loss.reason),
        count=loss.count,
        since=loss.since,
        # Once it is not followed, nothing more is known of it.
        until=_NEVER if loss.probe == FOLLOWED else loss.until,
        mm=loss.mm,
        start=loss.start,
        end=loss.end,
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class _File:
    """One file, read."""

    info: TraceInfo
    events: list[Event]

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> _File:
        from cdmtrace.format.reader import TraceReader

        with TraceReader(path) as reader:
            plausible = _Plausible(reader.path, reader.header.page_size)
            events = [
                event for batch in reader for event in plausible.rows(batch.columns)
            ]
            return cls(info=reader.info, events=events)


@dataclass(frozen=True, kw_only=True, slots=True)
class Hole:
    """Rows that are missing before a part. seq: of the first row after them."""

    gap: Gap
    seq: int


def joints(infos: Sequence[TraceInfo]) -> tuple[Hole, ...]:
    """Return where rows are missing before and between parts, which are in order.

    A part that was cut may have lost losses, too, where it has lost no row.
    """
    holes = []
    before: TraceInfo | None = None
    for info in infos:
        part = info.header.part
        if part is None:
            continue
        if before is None or before.header.part is None:
            hole = begins_late(info.header)
            holes += [hole] if hole else []
        else:
            known = before.header.part
            seq = known.seq + before.events
            if not before.more or (part.number, part.seq) != (known.number + 1, seq):
                holes.append(
                    _hole(part, seq, before.counted, f"before part {part.number}")
                )
        before = info
    return tuple(holes)


def begins_late(header: Header) -> Hole | None:
    """Return what is missing before a part that is the first one here, if anything."""
    part = header.part
    if part is None or (part.number, part.seq) == (0, 0):
        return None
    return _hole(part, 0, header.started, BEFORE)


def _hole(part: Part, seq: int, since: int, reason: str) -> Hole:
    gap = Gap(
        probe=ROWS,
        reason=reason,
        count=max(part.seq - seq, 0),
        since=since,
        until=part.began,
    )
    return Hole(gap=gap, seq=part.seq + 1)


class _Plausible:
    """The batches of one file, each looked at before its rows are made of it."""

    def __init__(self, path: str | os.PathLike[str], page: int) -> None:
        self._path, self._page = path, page
        self._pages = 0

    def rows(self, columns: pa.RecordBatch) -> Iterator[Event]:
        """Yield the rows of a batch. Raises TraceFileError for one that cannot be."""
        try:
            self._pages += sanity.pages_before(columns, self._page)
            self._pages += sanity.batched(columns, self._page)
            why = sanity.implausible(columns, self._page)
            why = why or sanity.too_many(self._pages)
        except ValueError as error:
            why = str(error)
        if why:
            raise TraceFileError(
                f"{self._path}: {why}",
                hint=f"cdmtrace info {shlex.quote(str(self._path))} says what made it",
            )
        for first in range(0, columns.num_rows, _SLICE):
            for event in rows(columns.slice(first, _SLICE)):
                yield from self._singly(event)

    def _singly(self, event: Event) -> Iterable[Event]:
        """Return an event for each page that a row is about.

        A kernel that has folios maps and unmaps some small pages of one at a time.
        """
        several = self._page < event.size < sanity.table(self._page)
        if not several or not event.addr or event.kind not in sanity.MAPPED:
            return (event,)
        return (
            replace(event, addr=addr, size=self._page)
            for addr in range(event.addr, event.addr + event.size, self._page)
        )


def _filtered(header: Header, path: str | os.PathLike[str]) -> dict[str, Any]:
    """Return what the filters of a header say of what can be known.

    Raises TraceFileError for filters that no recorder writes.
    """
    filters = header.filters
    try:
        nodes = filters.get("node")
        if nodes is not None and (
            len({*nodes}) < len(nodes) or not all(0 <= node < 64 for node in nodes)
        ):
            raise ValueError("nodes")
        return {
            "filters": filters,
            "told": -1 if nodes is None else sum(1 << node for node in nodes),
            "addr": _addresses(filters.get("addr")),
            "late": "cgroup" in filters or "comm" in filters,
            "stacks": str(filters.get("stacks", "all")),
        }
    except (TypeError, ValueError, AttributeError) as error:
        raise TraceFileError(
            f"{path}: its header has filters that cdmtrace does not write",
            hint=f"cdmtrace info {shlex.quote(str(path))} says what made it",
        ) from error


def _addresses(text: str | None) -> tuple[int, int]:
    if text is None:
        return 0, 1 << 64
    first, _, last = text.partition("-")
    start, end = int(first, 16), int(last, 16)
    if not 0 <= start < end <= 1 << 64:
        raise ValueError("addresses")
    return start, end


class Decoder:
    """Batches that come one by one, as rows: for a file that is still written.

    A recorder writes a stack before the first row that names it, so nothing is known
    of a row's cause later that is not known when it comes.
    """

    def __init__(self, path: str | os.PathLike[str], page: int) -> None:
        """Begin. path: what to call the file; page: bytes of a base page."""
        self.stacks: dict[int, Stack] = {}
        self._causes: dict[int, Cause | None] = {}
        self._plausible = _Plausible(path, page)

    def rows(self, columns: pa.RecordBatch) -> Iterator[Event]:
        """Yield the rows of one batch, each with the cause that its stack tells.

        What was yielded is not kept, but for the stacks. Raises TraceFileError for
        rows that no kernel can have told.
        """
        for event in self._plausible.rows(columns):
            if event.kind == EventKind.STACK:
                stack = Stack.parse(event.payload)
                self.stacks[event.stack] = stack
                self._causes[event.stack] = stack.cause
            yield _caused(event, self._causes)


def _caused(event: Event, causes: Mapping[int, Cause | None]) -> Event:
    if event.kind == EventKind.STACK:
        return event
    cause = cause_of(event.cause, causes.get(event.stack))
    return event if cause == event.cause else replace(event, cause=cause)


def cause_of(seen: int, told: Cause | None) -> int:
    """Return the cause of a row. seen: what its probe says; told: what its stack says,
    None if that is nothing, or there is none.
    """
    if told is None:
        return seen
    # A page that a driver or a file has given out is faulted in like any other.
    faulted = seen == Cause.FILE and told is Cause.FAULT
    return seen if faulted or seen in (Cause.DRIVER, Cause.CPUSET) else told


def rows(columns: pa.RecordBatch) -> Iterator[Event]:
    """Yield the rows of one batch that has the trace file's columns."""
    names = [name for name in FIELDS if name in columns.schema.names]
    values = [columns.column(name).to_pylist() for name in names]
    for row in zip(*values, strict=True):
        yield Event(**dict(zip(names, row, strict=True)))


def dataframe(path: str | os.PathLike[str]) -> pd.DataFrame:
    """Return all intact rows of a trace file as one DataFrame, one row an event.

    The dtypes are those of the file (uint64 for addresses and flags); seq is the
    index. Raises TraceFileError if nothing can be read of the file.
    """
    from cdmtrace.format.reader import TraceReader

    with TraceReader(path) as reader:
        frame: pd.DataFrame = reader.read().to_pandas().set_index("seq")
    return frame
