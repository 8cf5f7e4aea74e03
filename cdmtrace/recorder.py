"""Record: attach, drain the ring into the file, and stop cleanly.

The recorder is dumb. It copies what is in the ring to the file, in batches, and
counts what was lost. It decodes nothing but the numbers of stacks, which it looks up
while the kernel has them.
"""

from __future__ import annotations

import contextlib
import os
import platform
import pwd
import secrets
import select
import shutil
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, Final

import numpy as np

from cdmtrace import __version__, snapshot
from cdmtrace.errors import (
    CommandNotExecutable,
    CommandNotFound,
    RecordError,
    UsageTrouble,
)
from cdmtrace.events import EVENT_DTYPE, NO_NODE, EventKind, Events, Lost, Probe
from cdmtrace.format.schema import Header, ProbeEntry, Shortfall
from cdmtrace.format.writer import TraceWriter
from cdmtrace.kernel import (
    cgroup,
    config,
    headers,
    layout,
    nodes,
    symbols,
    tracefs,
    vmflags,
)
from cdmtrace.kernel.btf import Btf
from cdmtrace.loader import Loader
from cdmtrace.loader.bcc import BccLoader
from cdmtrace.losses import Losses, Missing, Where, fresh, open_calls
from cdmtrace.probes import Plan, choose, plan
from cdmtrace.ring import Ring

DRAIN_INTERVAL: Final = 0.1
"""Seconds between two looks at the ring: events wake nobody up."""

BATCH_ROWS: Final = 1 << 16
"""Rows of a batch at most: 8 MiB."""

LOST_PLACES: Final = 1024
"""Address spaces, by probe and reason, whose losses are told apart."""

LOOK_ROUNDS: Final = 20
"""Times that processes which came meanwhile are looked at before recording begins."""

LINGER: Final = 5.0
"""Seconds that a command gets to end after SIGTERM, when recording was stopped."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    """What ``record`` was asked for. Sizes in pages, times in seconds."""

    output: Path
    command: tuple[str, ...] = ()
    force: bool = False
    pid: int | None = None
    duration: float | None = None
    cdm_nodes: str | None = None
    vm_cdm_mask: str | None = None
    ring_pages: int = 4096
    map_size: int = 16384
    all: bool = False
    audit: float | None = None
    freeze: Path | None = None
    probes: tuple[str, ...] = ()
    without: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """How a recording ended. ``status`` is the command's; 0 without one."""

    events: int
    lost: int
    size: int
    reason: str
    status: int
    missing: tuple[Plan, ...]


def require_root() -> None:
    """Raise RecordError unless we may load BPF programs and attach kprobes."""
    if os.geteuid() != 0:
        raise RecordError(
            "recording needs root: probes are put into the running kernel",
            hint="sudo cdmtrace record …",
        )


def caller() -> tuple[int, int] | None:
    """Return (uid, gid) of who called sudo; None if nobody did."""
    uid, gid = os.environ.get("SUDO_UID", ""), os.environ.get("SUDO_GID", "")
    if os.geteuid() != 0 or not (uid.isdecimal() and gid.isdecimal()):
        return None
    return int(uid), int(gid)


def record(
    options: Options,
    *,
    say: Callable[[str], None] = lambda _: None,
    load: Callable[[Mapping[str, int]], Loader] | None = None,
) -> Outcome:
    """Record until the command ends, time is up, or a signal comes.

    say: is called with one line at each stage. load: makes the program of its numbers,
    BccLoader if None. Raises RecordError and its kin for whatever keeps it from
    starting; nothing is left attached then.
    """
    require_root()
    _check_output(options)
    if options.command:
        _check_command(options.command[0])
    _check_pid(options.pid)
    if options.freeze:
        cgroup.require(options.freeze)
    found_nodes, nodes_from = nodes.discover(options.cdm_nodes)
    kernel_config = config.load()
    if lacking := config.lacking(kernel_config):
        raise RecordError("; ".join(lacking), hint="cdmtrace doctor")
    root = tracefs.mounted()
    plans = choose(
        plan(symbols.functions(), tracefs.tracepoints(root)),
        options.probes,
        options.without,
    )
    _check_required(plans)
    if options.audit is not None and (why := _cannot_look(plans)):
        raise RecordError(f"--audit needs to look: {why}", hint="cdmtrace probes")
    tracefs.sweep(root)

    with headers.available() as directory:
        flags = vmflags.read(headers.roots(directory), kernel_config)
        mask, mask_from, taken = vmflags.find_mask(
            options.vm_cdm_mask, flags, force=options.force
        )
        numbers = {
            **layout.defines(Btf.load(), kernel_config),
            "CDM_NODES": sum(1 << nid for nid in found_nodes),
            "CDM_MASK": mask,
            "KEY0": secrets.randbits(64),
            "KEY1": secrets.randbits(64),
            "MEMORY_NODES": sum(1 << nid for nid in nodes.online() if nid < 64),
            "ALL": int(options.all),
            "FILTER_TGID": options.pid or 0,
            "RECORDER": os.getpid(),
            "RING_PAGES": options.ring_pages,
            "MAP_SIZE": options.map_size,
            "LOST_PLACES": LOST_PLACES,
        }
        say("compiling the probes")
        loader = (load or BccLoader)(numbers)
    with contextlib.closing(loader):
        say("attaching")
        loader.attach(plans)
        header = Header(
            tool=f"cdmtrace {__version__}",
            kernel_release=platform.release(),
            kernel_build=platform.version(),
            machine=platform.machine(),
            boot_id=Path("/proc/sys/kernel/random/boot_id").read_text().strip(),
            started=time.monotonic_ns(),
            utc_offset=time.time_ns() - time.monotonic_ns(),
            page_size=os.sysconf("SC_PAGE_SIZE"),
            ring_size=options.ring_pages * os.sysconf("SC_PAGE_SIZE"),
            cdm_nodes=found_nodes,
            cdm_nodes_from=nodes_from,
            vm_cdm_mask=mask,
            vm_cdm_mask_from=mask_from,
            probes=_probe_table(plans),
            command=options.command,
            filters={
                **({"pid": options.pid} if options.pid else {}),
                **({"all": True} if options.all else {}),
            },
            extra={"vm_cdm_taken_by": taken} if taken else {},
        )
        with TraceWriter(
            options.output, header, force=options.force, owner=caller()
        ) as writer:
            session = _Session(loader, writer, options, say)
            with contextlib.closing(session):
                return session.run(plans)


class _Session:
    """One recording while it runs: who may stop it, and what is still to write."""

    def __init__(
        self,
        loader: Loader,
        writer: TraceWriter,
        options: Options,
        say: Callable[[str], None],
    ) -> None:
        self._loader = loader
        self._writer = writer
        self._options = options
        self._say = say
        size = options.ring_pages * os.sysconf("SC_PAGE_SIZE")
        self._ring = Ring(loader.ring_fd, size, EVENT_DTYPE)
        self._full_batches = size // (BATCH_ROWS * EVENT_DTYPE.itemsize) + 1
        self._counted: Losses = loader.lost()
        self._lost = 0
        self._stacks: set[int] = set()
        self._counts: list[Events] | None = None
        self._child: subprocess.Popen[bytes] | None = None
        self._signal: int | None = None

    def close(self) -> None:
        self._ring.close()

    def run(self, plans: tuple[Plan, ...]) -> Outcome:
        with self._signals(), contextlib.ExitStack() as stack:
            self._loader.enable(True)
            self._say("looking at what is there")
            if why := self._look_before(plans):
                self._say(f"what is there is not known whole: {why}")
            self._say("recording")
            poll = select.epoll()
            stack.callback(poll.close)
            watched = self._start(stack) if self._signal is None else None
            stack.callback(self._abandon_child)
            if watched is not None:
                poll.register(watched, select.EPOLLIN)
            reason = self._drain_until(poll, self._deadline())
            if self._options.audit is not None:
                self._look_again()
            status = self._finish_child()
            self._loader.enable(False)
            # A handler that was past the switch may still be at work: look twice.
            self._drain()
            time.sleep(DRAIN_INTERVAL)
            self._drain()
            self._write_waiting()
            self._writer.end(reason)
        return Outcome(
            events=self._writer.events,
            lost=self._lost,
            size=self._writer.size,
            reason=reason,
            status=status,
            missing=tuple(p for p in plans if p.missing and not p.unwanted),
        )

    def _deadline(self) -> float | None:
        if self._options.duration is None:
            return None
        return time.monotonic() + self._options.duration

    def _start(self, stack: contextlib.ExitStack) -> int | None:
        """Start the command, if any; return what to wait for."""
        pid = self._options.pid
        if self._options.command:
            self._child = _spawn(self._options.command)
            pid = self._child.pid
        if pid is None:
            return None
        try:
            fd = os.pidfd_open(pid)
        except ProcessLookupError as error:
            raise UsageTrouble(f"--pid {pid}: there is no such process") from error
        stack.callback(os.close, fd)
        return fd

    def _drain_until(self, poll: select.epoll, deadline: float | None) -> str:
        audit = self._options.audit
        look = None if audit is None else time.monotonic() + audit
        while True:
            if audit is not None and look is not None and time.monotonic() >= look:
                self._look_again()
                look = time.monotonic() + audit
            left = DRAIN_INTERVAL
            if deadline is not None:
                left = min(left, deadline - time.monotonic())
            ended = poll.poll(max(left, 0))
            self._drain()
            if self._signal is not None:
                return f"stopped by {signal.Signals(self._signal).name}"
            if ended:
                return (
                    "the command ended" if self._child else "the traced process ended"
                )
            if deadline is not None and time.monotonic() >= deadline:
                return "time was up"

    def _look_before(self, plans: tuple[Plan, ...]) -> str:
        """Write what every process holds before anything else.

        Return why that is not everything, and the file does not say so; else "".
        """
        if why := _cannot_look(plans):
            return why
        wanted = snapshot.processes
        if self._options.pid is not None:
            wanted = frozenset({self._options.pid}).copy
        done: set[int] = set()
        unseen = 0
        # Whoever is forked meanwhile may have what nobody has told of.
        for _ in range(LOOK_ROUNDS):
            new = sorted(wanted() - done)
            if not new:
                break
            for pid in new:
                if self._signal is not None:
                    return "stopped before all was looked at"
                try:
                    self._look_at(pid)
                except PermissionError:
                    unseen += 1
            done.update(new)
        else:
            return "new processes come faster than they can be looked at"
        if unseen:
            return f"{unseen} processes may not be looked at"
        end = self._rows(EventKind.SNAP_MM, time.monotonic_ns(), 1)
        end["probe"], end["pid"] = Probe.SNAPSHOT, self._options.pid or 0
        self._writer.write(end)
        return ""

    def _look_at(self, pid: int) -> None:
        """Have the kernel count the pages of a process, and write where they are."""
        self._drain()
        since = time.monotonic_ns()
        self._counts = []
        try:
            snapshot.look(pid)
            self._drain()
        finally:
            kept, self._counts = self._counts, None
        counts: Events = np.concatenate([np.empty(0, EVENT_DTYPE), *kept])
        if not len(counts):
            return
        rows = self._rows(EventKind.SNAP_RANGES, since, len(counts))
        payloads = []
        page = os.sysconf("SC_PAGE_SIZE")
        for row, count in zip(rows, counts, strict=True):
            for column in ("mm", "start", "end", "node", "pid", "tid", "bits"):
                row[column] = count[column]
            start, end, node = (int(count[name]) for name in ("start", "end", "node"))
            many = int(count["size"]) // page
            pages = snapshot.pages_on(pid, start, end, node, many)
            payloads.append(snapshot.runs(pages).tobytes())
        rows["ts"] = time.monotonic_ns()
        rows["probe"] = Probe.SNAPSHOT
        # What has happened to these pages until now comes before them in the file.
        self._drain()
        named = self._rows(EventKind.COMM, since, 1)
        named["pid"] = named["tid"] = pid
        self._writer.write(named, payloads=[snapshot.name(pid)])
        self._writer.write(rows, payloads=payloads)

    def _look_again(self) -> None:
        """Have the kernel count the pages of every process, for an audit."""
        with contextlib.ExitStack() as stack:
            if self._options.freeze:
                try:
                    stack.enter_context(
                        cgroup.frozen(self._options.freeze, self._drain)
                    )
                except RecordError as error:
                    self._say(f"not counted this time: {error}")
                    return
            for pid in sorted(snapshot.processes()):
                with contextlib.suppress(PermissionError):
                    snapshot.look(pid)
                self._drain()

    def _rows(self, kind: EventKind, since: int, count: int) -> Events:
        """Return rows of our own: ts_entry is since, ts now, in ns."""
        rows: Events = np.zeros(count, EVENT_DTYPE)
        rows["kind"] = kind
        rows["ts_entry"], rows["ts"] = since, time.monotonic_ns()
        rows["node"] = rows["src_node"] = NO_NODE
        return rows

    def _drain(self) -> None:
        """Write what is in the ring, and what was lost since the last time."""
        begin = time.monotonic_ns()
        counted = self._loader.lost()
        window = (begin, time.monotonic_ns())
        lost = fresh(counted, self._counted)
        events: Events = self._ring.drain(BATCH_ROWS)
        self._notice(events)
        if len(events) or lost:
            # The window goes with every batch: a later loss came after this one.
            self._write(events, lost, window)
        self._counted = counted
        # What one ring can hold, and no more: whoever waits for us is looked after
        # even if events come in faster than they are written.
        for _ in range(self._full_batches):
            if len(events) < BATCH_ROWS:
                break
            events = self._ring.drain(BATCH_ROWS)
            self._notice(events)
            if len(events):
                self._writer.write(events)

    def _write(
        self, events: Events, lost: tuple[Shortfall, ...], window: tuple[int, int]
    ) -> None:
        self._writer.write(events, lost=lost, window=window)
        self._lost += sum(entry.count for entry in lost)

    def _notice(self, events: Events) -> None:
        """Keep the counts, if they are waited for; write the stacks that are new."""
        if self._counts is not None:
            self._counts.append(events[events["kind"] == EventKind.SNAP_PAGES])
        new = sorted(set(np.unique(events["stack"]).tolist()) - self._stacks - {0})
        if not new:
            return
        rows = self._rows(EventKind.STACK, time.monotonic_ns(), len(new))
        rows["stack"] = new
        frames = ["\n".join(self._loader.stack(number)) for number in new]
        self._writer.write(rows, payloads=[text.encode() for text in frames])
        self._stacks.update(new)

    def _write_waiting(self) -> None:
        """Write what has not returned by now: calls as rows, functions as lost."""
        begin = time.monotonic_ns()
        waiting = self._loader.waiting()
        window = (begin, time.monotonic_ns())
        functions = Counter(
            Where(item.probe, Lost.UNPAIRED)
            for item in waiting
            # What is still ending when the recording ends is there until then.
            if not item.call and item.probe != Probe.EXIT_MMAP
        )
        lost = fresh({w: Missing(n) for w, n in functions.items()}, {})
        rows = open_calls([w for w in waiting if w.call and w.concerns], window[1])
        if len(rows) or lost:
            self._write(rows, lost, window)

    def _finish_child(self) -> int:
        """Return the command's status, ending it first if recording was stopped."""
        if self._child is None:
            # A command that a signal kept from being started.
            return 128 + self._signal if self._signal and self._options.command else 0
        if self._child.poll() is None:
            self._child.terminate()
        until = time.monotonic() + LINGER
        while self._child.poll() is None:
            self._drain()
            if time.monotonic() > until:
                self._child.kill()
            time.sleep(DRAIN_INTERVAL)
        code: int = self._child.returncode
        return code if code >= 0 else 128 - code

    def _abandon_child(self) -> None:
        """End the command if it still runs: recording has failed."""
        if self._child is None or self._child.poll() is not None:
            return
        self._child.terminate()
        try:
            self._child.wait(LINGER)
        except subprocess.TimeoutExpired:
            self._child.kill()
            self._child.wait()

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        """Note SIGINT, SIGTERM and SIGHUP instead of dying of them."""

        def note(number: int, frame: FrameType | None) -> None:
            del frame
            self._signal = number

        # One that is ignored stays so: nohup means it.
        kinds = [
            kind
            for kind in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
            if signal.getsignal(kind) is not signal.SIG_IGN
        ]
        before = {kind: signal.signal(kind, note) for kind in kinds}
        # A file that may not grow is an error to report, not a reason to die.
        before[signal.SIGXFSZ] = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        try:
            yield
        finally:
            for kind, handler in before.items():
                signal.signal(kind, handler)


def _spawn(command: Sequence[str]) -> subprocess.Popen[bytes]:
    """Start the command as the user who called sudo."""
    who: dict[str, Any] = {}
    ids = caller()
    if ids is not None:
        uid, gid = ids
        try:
            user = pwd.getpwuid(uid)
        except KeyError:
            groups, environment = [gid], {}
        else:
            groups = os.getgrouplist(user.pw_name, gid)
            environment = {
                "HOME": user.pw_dir,
                "LOGNAME": user.pw_name,
                "USER": user.pw_name,
            }
        who = {
            "user": uid,
            "group": gid,
            "extra_groups": groups,
            "env": {**os.environ, **environment},
        }
    try:
        return subprocess.Popen(command, **who)
    except FileNotFoundError as error:
        raise CommandNotFound(f"{command[0]}: command not found") from error
    except OSError as error:
        raise CommandNotExecutable(
            f"{command[0]}: cannot be executed: {error.strerror}"
        ) from error


def _check_output(options: Options) -> None:
    """Say now what would be said after half a minute of compiling."""
    if os.path.lexists(options.output) and not options.force:
        raise RecordError(
            f"{options.output}: exists already",
            hint="name another file with -o FILE, or replace it with -f",
        )
    if not options.output.parent.is_dir():
        raise RecordError(
            f"{options.output.parent}: no such directory",
            hint="make the directory first, or name another file with -o FILE",
        )


def _check_command(name: str) -> None:
    if shutil.which(name) is not None:
        return
    if os.path.sep in name and Path(name).exists():
        raise CommandNotExecutable(f"{name}: cannot be executed")
    raise CommandNotFound(f"{name}: command not found")


def _check_pid(pid: int | None) -> None:
    if pid is None:
        return
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError as error:
        raise UsageTrouble(
            f"--pid {pid}: there is no such process", hint="ps -e"
        ) from error
    process = next(
        int(line.split()[1]) for line in status.splitlines() if line.startswith("Tgid:")
    )
    if process != pid:
        raise UsageTrouble(
            f"--pid {pid}: is a thread of process {process}", hint=f"--pid {process}"
        )


def _check_required(plans: tuple[Plan, ...]) -> None:
    for item in plans:
        if item.missing and item.probe.required:
            raise RecordError(
                f"this kernel has no {item.missing}, which {item.probe.name} needs: "
                f"{item.probe.summary}",
                hint="cdmtrace probes",
            )


def _cannot_look(plans: tuple[Plan, ...]) -> str:
    """Return why what is there cannot be looked at; "" if it can."""
    for item in plans:
        if item.probe.probe is Probe.SNAPSHOT and item.why_not:
            return f"{item.probe.name} is not attached: {item.why_not}"
    return ""


def _probe_table(plans: tuple[Plan, ...]) -> tuple[ProbeEntry, ...]:
    return tuple(
        ProbeEntry(
            id=int(item.probe.probe),
            name=item.probe.name,
            symbol=None if item.why_not else ", ".join(dict.fromkeys(item.symbols)),
            kind=", ".join(dict.fromkeys(str(a.kind) for a in item.probe.attachments)),
            why_not=item.why_not,
        )
        for item in plans
    )
