"""A trace file as typed rows in the order of the ring, and its losses as intervals.

The rows of a trace are a total order: a ring hands its records out under one
lock, so an event that returned before another one comes before it. That order,
and not the clock of some cpu, is what the model is fed in.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import msgspec

from cdmtrace import vmbits
from cdmtrace.analysis.stacks import Stack
from cdmtrace.errors import TraceFileError
from cdmtrace.format.schema import printable

if TYPE_CHECKING:
    import pandas as pd

    from cdmtrace.analysis.notebook import DataFrames
    from cdmtrace.analysis.rows import Ticker
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


class Event(msgspec.Struct, frozen=True, gc=False):
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


class Gap(msgspec.Struct, frozen=True, kw_only=True, gc=False):
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


class Terms(msgspec.Struct, frozen=True, kw_only=True, gc=False):
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
    machine: as uname -m has it, empty where nobody says.
    """

    cdm: int
    tag: int
    page: int = 4096
    kernel: str = ""
    flags: Mapping[int, str] = msgspec.field(default_factory=lambda: vmbits.COMMON)
    probes: Mapping[str, str | None] = msgspec.field(default_factory=dict)
    started: int = 0
    utc_offset: int = 0
    all: bool = False
    taken_by: str | None = None
    filters: Mapping[str, Any] = msgspec.field(default_factory=dict)
    told: int = -1
    addr: tuple[int, int] = (0, 1 << 64)
    late: bool = False
    stacks: str = "all"
    departures: bool = True
    machine: str = ""

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


class Trace(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A recording, read.

    cut: where and why the reading stopped short of the recording's own end; None
    if it did not. count: rows in the files; one about several pages of a folio is an
    event for each. stacks: by the number that events name them with. files: its parts,
    in order. before: rows that came before the first part that is here; None if that
    begins the recording. breaks: seqs of rows before which some are missing. until: the
    latest time of a row (ns), 0 if there is none.

    Events can be iterated more than once; the cause of each is what its stack says.
    """

    path: str
    terms: Terms
    events: Iterable[Event]
    count: int
    gaps: tuple[Gap, ...] = ()
    stacks: Mapping[int, Stack] = msgspec.field(default_factory=dict)
    clean_end: bool = True
    cut: str | None = None
    files: tuple[str, ...] = ()
    before: Gap | None = None
    breaks: frozenset[int] = frozenset()
    until: int = 0

    @property
    def lost(self) -> int:
        """How many events are missing, all probes together."""
        return sum(gap.count for gap in self.gaps)

    def dataframes(self, **judged_by: Any) -> DataFrames:
        """Return it as DataFrames, made as they are asked for (notebook.py).

        judged_by: profile, rules, permissions and own, as for check().
        """
        from cdmtrace.analysis.notebook import DataFrames

        return DataFrames(self, **judged_by)


def load(
    path: str | os.PathLike[str],
    *more: str | os.PathLike[str],
    ticker: Ticker | None = None,
) -> Trace:
    """Read a trace file, whole or torn, or several that are parts of one recording.

    Its events are read from the files each time that they are gone through, so these
    have to stay where they are, as they are. Parts may be given in any order, and some
    may be missing. ticker: is told how far it is, now and whenever the events are gone
    through. Raises TraceFileError (an UnreadableFile) if nothing can be read of one,
    and UsageTrouble where they are not parts of one recording.
    """
    from cdmtrace.analysis.parts import one_recording
    from cdmtrace.analysis.rows import Rows, no_ticker

    events = Rows.of(one_recording([path, *more]), ticker or no_ticker)
    infos = events.infos
    header, last = infos[0].header, infos[-1]
    holes = joints(infos)
    cuts = [info.torn for info in infos if info.torn]
    if len(infos) > 1:
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
        stacks=events.stacks,
        gaps=gaps_of(infos),
        before=next((hole.gap for hole in holes if hole.gap.reason == BEFORE), None),
        breaks=frozenset(hole.seq for hole in holes),
        until=max(info.last_ts or 0 for info in infos),
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
        machine=printable(header.machine),
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


def gaps_of(infos: Sequence[TraceInfo]) -> tuple[Gap, ...]:
    """Return what is missing of parts that are in order, but for what came before."""
    lost = [gap_of(loss) for info in infos for loss in info.losses]
    holes = [hole.gap for hole in joints(infos) if hole.gap.reason != BEFORE]
    return (*lost, *holes)


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


class Hole(msgspec.Struct, frozen=True, kw_only=True, gc=False):
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


def dataframe(path: str | os.PathLike[str]) -> pd.DataFrame:
    """Return all intact rows of a trace file as one DataFrame, one row an event.

    The dtypes are those of the file (uint64 for addresses and flags); seq is the
    index. Raises TraceFileError if nothing can be read of the file.
    """
    from cdmtrace.format.reader import TraceReader

    with TraceReader(path) as reader:
        frame: pd.DataFrame = reader.read().to_pandas().set_index("seq")
    return frame
