"""Watch: a recording of one process, and every write to vm_flags of a few of its VMAs.

The debug registers know addresses of the kernel, and VMAs come and go: what an address
of the process leads to is looked up by reading its numa_maps, and once more after the
registers are set, with the mmap lock held for read, which arms the watchpoint. It is
looked up anew when the VMA was freed, or split.
"""

from __future__ import annotations

import contextlib
import select
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from cdmtrace import privileges, recorder, snapshot
from cdmtrace.caller import caller
from cdmtrace.drain import own_rows
from cdmtrace.errors import UsageTrouble
from cdmtrace.events import Bit, EventKind, Events, Probe, comm_bytes
from cdmtrace.format.schema import Header, Shortfall
from cdmtrace.format.writer import TraceWriter
from cdmtrace.kernel import tracefs, watchpoints
from cdmtrace.loader.choice import headers_for, watch_loader
from cdmtrace.loader.watch import Found, WatchLoader
from cdmtrace.options import Options, Outcome
from cdmtrace.probes import PROBES, WATCHPOINT
from cdmtrace.session import Session

_ROUNDS: Final = 8
"""Times that a VMA is looked for while it changes."""
_IDLE: Final = 5
"""Looks at the ring, a tenth of a second apart, when there is no VMA left."""
_FREED, _MOVED = 1, 2
"""Why a watchpoint ends: ret of a WATCH row."""
_TOLD: Final = (
    *(EventKind.WRITE, EventKind.WATCH),
    *(EventKind.VMA_SPLIT, EventKind.VMA_MERGE),
)
_COUNTS: Final = (EventKind.SNAP_VMA, EventKind.SNAP_PAGES, EventKind.SNAP_MM)


@dataclass(frozen=True, kw_only=True, slots=True)
class Write:
    """One write to vm_flags; flags as numbers, lock as in a row.

    since: ns since the recording began. number: of the watchpoint. start, end: the
    VMA, as it was then. at: the instruction after the one that wrote, and its callers,
    name+0xoffset; empty where no stack could be taken. overlapped: another cpu wrote at
    the same time, and before and after may be what both have made. leaving: the VMA was
    being torn down.
    """

    number: int
    since: int
    cpu: int
    tid: int
    comm: str
    start: int
    end: int
    before: int
    after: int
    lock: int
    at: tuple[str, ...]
    overlapped: bool
    leaving: bool


@dataclass(slots=True)
class _Point:
    """One address. vma, mm: of the kernel; row: the WATCH row that armed it."""

    addr: int
    vma: int
    mm: int
    live: bool = True
    row: Any = None


class Telling(TraceWriter):
    """A trace file that tells of what is written into it.

    Rows of writes get the instruction, which their stack begins with, as payload.
    """

    hear: Callable[[Any, tuple[str, ...], str], None]
    """Is told a row of one of the kinds above, its stack, and its task's name."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        """As TraceWriter."""
        super().__init__(*arguments, **options)
        self.looked = False
        """All that was there before is told: looks from now on are for a VMA, and what
        the kernel counts meanwhile is no audit."""
        self._stacks: dict[int, tuple[str, ...]] = {}
        self._comms: dict[int, str] = {}

    def write(
        self,
        events: Events,
        *,
        payloads: Sequence[bytes | None] | None = None,
        lost: Iterable[Shortfall] = (),
        window: tuple[int, int] | None = None,
    ) -> None:
        """Append one batch, as TraceWriter does, and tell of it."""
        if self.looked:
            kept = ~np.isin(events["kind"], _COUNTS)
            if payloads is not None:
                payloads = [payloads[at] for at in np.flatnonzero(kept).tolist()]
            events = events[kept]
        if payloads is not None:
            for at in np.flatnonzero(events["kind"] == EventKind.STACK).tolist():
                text = (payloads[at] or b"").decode(errors="replace")
                self._stacks[int(events["stack"][at])] = tuple(text.split("\n"))
        writes = np.flatnonzero(events["kind"] == EventKind.WRITE).tolist()
        if writes:
            filled: list[bytes | None] = [None] * len(events)
            filled[: len(payloads or ())] = payloads or ()
            for at in writes:
                if stack := self._stacks.get(int(events["stack"][at])):
                    filled[at] = stack[0].encode()
            payloads = filled
        super().write(events, payloads=payloads, lost=lost, window=window)
        kinds = (*_TOLD, EventKind.COMM)
        for at in np.flatnonzero(np.isin(events["kind"], kinds)).tolist():
            row = events[at]
            if row["kind"] == EventKind.COMM:
                name = payloads[at] if payloads is not None else None
                name = comm_bytes(row) if name is None else name
                self._comms[int(row["tid"])] = name.decode(errors="replace")
                continue
            stack = self._stacks.get(int(row["stack"]), ())
            self.hear(row, stack, self._comms.get(int(row["tid"]), ""))


class Watch(Session):
    """One watch, from the first event to the end of the file."""

    def __init__(
        self,
        loader: WatchLoader,
        writer: Telling,
        options: Options,
        say: Callable[[str], None],
        points: Sequence[_Point],
        tell: Callable[[Any, tuple[str, ...], str], None],
    ) -> None:
        """Map the ring of a loader that is attached. Raises OSError.

        tell: of a WRITE row, its stack, and its task's name.
        """
        super().__init__(loader, writer, options, say)
        (self._pid,) = options.filters.pids
        self._watch = loader
        self._points = points
        self._tell = tell
        self._due: set[int] = set()
        self._idle = 0
        self._unheard = False
        self._file = writer
        writer.hear = self._hear

    def _start(self, stack: contextlib.ExitStack, poll: select.epoll) -> None:
        """Have the watchpoints armed before anything is started."""
        self._file.looked = True
        for number in range(len(self._points)):
            self._follow(number)
        super()._start(stack, poll)

    def _over(self) -> str:
        """Follow the VMAs; return why there is nothing left to watch, if so."""
        while self._due:
            self._follow(self._due.pop())
        if self._unheard:
            return "nobody reads what is told"
        if self._options.command or any(point.live for point in self._points):
            return ""
        # If the process has ended, that is told in a moment, and is the reason.
        self._idle += 1
        return "no VMA is left to watch" if self._idle > _IDLE else ""

    def _hear(self, row: Any, stack: tuple[str, ...], comm: str) -> None:
        match row["kind"]:
            case EventKind.WRITE:
                try:
                    self._tell(row, stack, comm)
                except OSError:
                    self._unheard = True
            case EventKind.WATCH if row["ret"] == 0:
                number = int(row["arg"])
                self._points[number].row = row.copy()
                self._say(f"#{number} watches the VMA {row['start']:x}-{row['end']:x}")
            case EventKind.WATCH if row["ret"] == _FREED:
                self._points[int(row["arg"])].row = None
                self._due.add(int(row["arg"]))
            case EventKind.VMA_SPLIT | EventKind.VMA_MERGE:
                self._due |= {
                    number
                    for number, point in enumerate(self._points)
                    if row["start"] <= point.addr < row["end"]
                }

    def _follow(self, number: int) -> None:
        """Let a watchpoint lie on the VMA that holds its address now."""
        point = self._points[number]
        for _ in range(_ROUNDS):
            if not point.live:
                return
            self._watch.ask(number, point.addr, point.vma)
            with contextlib.suppress(PermissionError):
                snapshot.look(self._pid)
            found = self._watch.found(number)
            self._drain()
            if found is not None and found.mm == point.mm:
                if found.vma == point.vma:
                    return
                if self._elsewhere(number, found):
                    return
                self._leave(number)
                try:
                    self._watch.set(number, point.addr, found.vma)
                except watchpoints.NoWatchpoint as error:
                    self._stop(number, error.message)
                    return
                point.vma = found.vma
            else:
                self._stop(number, f"its VMA is gone, and none holds {point.addr:x}")
        self._stop(number, f"the VMA of {point.addr:x} changes faster than it is found")

    def _elsewhere(self, number: int, found: Found) -> bool:
        """Stop a watchpoint whose VMA another one watches already."""
        for other, point in enumerate(self._points):
            if other != number and point.live and point.vma == found.vma:
                self._leave(number)
                self._stop(number, f"its VMA is that of #{other} now")
                return True
        return False

    def _stop(self, number: int, why: str) -> None:
        self._watch.unset(number)
        self._points[number].live = False
        self._say(f"#{number} watches no more: {why}")

    def _leave(self, number: int) -> None:
        """Take a watchpoint from its VMA, and write so unless the VMA is freed."""
        self._watch.unset(number)
        self._drain()
        armed, self._points[number].row = self._points[number].row, None
        if armed is None:
            return
        row = own_rows(EventKind.WATCH, time.monotonic_ns(), 1)
        for column in ("mm", "vma", "start", "end", "addr", "arg", "pid", "tid"):
            row[column] = armed[column]
        row["probe"], row["ret"] = Probe.WATCHPOINT, _MOVED
        self._drain.writer.write(row)


def _write(row: Any, stack: tuple[str, ...], comm: str, started: int) -> Write:
    return Write(
        number=int(row["arg"]),
        since=int(row["ts"]) - started,
        cpu=int(row["cpu"]),
        tid=int(row["tid"]),
        comm=comm,
        start=int(row["start"]),
        end=int(row["end"]),
        before=int(row["flags_before"]),
        after=int(row["flags_after"]),
        lock=int(row["lock_exit"]),
        at=stack,
        overlapped=bool(row["ret"]),
        leaving=bool(int(row["bits"]) & Bit.UNLINKED),
    )


def watch(
    options: Options,
    addresses: Sequence[int],
    *,
    tell: Callable[[Write, Header], None],
    say: Callable[[str], None] = lambda _: None,
) -> Outcome:
    """Watch the VMAs of a process that hold these addresses, and record it.

    It ends as a recording does (with the command, if there is one, else with the
    process), and when there is no VMA left to watch. tell: is called with each write,
    soon after it, and the recording's header. say: as in record. Raises
    RecordError and its kin for whatever keeps it from starting.
    """
    watchpoints.check_machine()
    privileges.require()
    privileges.nothing_to_inherit()
    (pid,) = options.filters.pids
    plans = recorder.prepare(options, tracefs.mounted(), (*PROBES, WATCHPOINT))
    tracefs.sweep(tracefs.mounted())
    _check_addresses(pid, addresses)
    watchpoints.check_free(len(addresses))
    with headers_for(options.loader) as directory:
        target = recorder.find_target(options, directory)
        if target.shadow:
            say(target.shadow)
        numbers = {**recorder.numbers(target, plans, options), "WATCHED_TGID": pid}
        loader = watch_loader(
            options.loader, numbers, say, with_headers=directory is not None
        )
    with recorder.closed_in_peace(loader):
        say("attaching")
        loader.attach(plans)
        header = target.header(
            plans,
            ring_pages=options.ring_pages,
            command=options.command,
            filters={
                **options.filters.header(target.cdm_nodes),
                "watch": [f"{address:x}" for address in addresses],
            },
        )
        points = _set(loader, pid, addresses)

        def told(row: Any, stack: tuple[str, ...], comm: str) -> None:
            tell(_write(row, stack, comm, header.started), header)

        with Telling(
            options.output, header, force=options.force, owner=caller()
        ) as writer:
            session = Watch(loader, writer, options, say, points, told)
            with contextlib.closing(session):
                outcome = session.run(plans)
    if loader.strange:
        say(
            f"{loader.strange} hits of a debug register wrote nothing where it looks "
            "(an emulated processor does that), and are left out"
        )
    return outcome


def _set(loader: WatchLoader, pid: int, addresses: Sequence[int]) -> tuple[_Point, ...]:
    """Set the debug registers, before there is a file.

    Raises RecordError and its kin.
    """
    for number, addr in enumerate(addresses):
        loader.ask(number, addr)
    try:
        snapshot.look(pid)
    except PermissionError as error:
        raise UsageTrouble(
            f"--pid {pid}: its memory may not be looked at",
            hint=f"sudo cat /proc/{pid}/numa_maps",
        ) from error
    points: list[_Point] = []
    for number, addr in enumerate(addresses):
        found = loader.found(number)
        if found is None:
            raise _no_vma(pid, addr)
        for point in points:
            if point.vma == found.vma:
                raise _one_vma(addr, point.addr, found.start, found.end)
        points.append(_Point(addr=addr, vma=found.vma, mm=found.mm))
    for number, point in enumerate(points):
        loader.set(number, point.addr, point.vma)
    return tuple(points)


def _check_addresses(pid: int, addresses: Sequence[int]) -> None:
    """Say now what would be said after half a minute of compiling."""
    try:
        lines = (snapshot.PROC / str(pid) / "maps").read_text().splitlines()
    except (OSError, UnicodeDecodeError):
        return
    ranges = [
        (int(start, 16), int(end, 16))
        for start, _, end in (line.split()[0].partition("-") for line in lines)
    ]
    taken: dict[tuple[int, int], int] = {}
    for addr in addresses:
        here = next(((s, e) for s, e in ranges if s <= addr < e), None)
        if here is None:
            raise _no_vma(pid, addr)
        if here in taken:
            raise _one_vma(addr, taken[here], *here)
        taken[here] = addr


def _no_vma(pid: int, addr: int) -> UsageTrouble:
    return UsageTrouble(
        f"--addr {addr:x}: no VMA of process {pid} holds it",
        hint=f"cat /proc/{pid}/maps",
    )


def _one_vma(addr: int, other: int, start: int, end: int) -> UsageTrouble:
    return UsageTrouble(
        f"--addr {addr:x}: is in the VMA of {other:x} ({start:x}-{end:x})",
        hint="give one of them: every write to its flags is told",
    )
