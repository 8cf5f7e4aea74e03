"""Record: attach, drain the ring into the file, and stop cleanly.

What is asked for is in options, what is known of the kernel in target, the loop in
session. The recorder is dumb: it copies what is in the ring to the file (drain), and
counts what was lost.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import shutil
import signal
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Final

from cdmtrace import privileges
from cdmtrace.caller import Caller, acting_as, caller
from cdmtrace.errors import (
    CommandNotExecutable,
    CommandNotFound,
    RecordError,
    UsageTrouble,
)
from cdmtrace.format.parts import PartsWriter, Writer, refuse_parts
from cdmtrace.format.schema import Header
from cdmtrace.format.writer import TraceWriter
from cdmtrace.kernel import cgroup, headers, symbols, tracefs
from cdmtrace.loader import Loader
from cdmtrace.loader.bcc import BccLoader
from cdmtrace.looking import cannot_look
from cdmtrace.options import Options, Outcome
from cdmtrace.privileges import Capability
from cdmtrace.probes import Plan, choose, plan
from cdmtrace.session import Session
from cdmtrace.target import Target

LOST_PLACES: Final = 1024
"""Address spaces, by probe and reason, whose losses are told apart."""


Drop = Callable[[frozenset[Capability], Caller | None], Iterable[str]]
"""Gives up all privileges but these; returns what could not be, a sentence each."""


def record(
    options: Options,
    *,
    say: Callable[[str], None] = lambda _: None,
    load: Callable[[Mapping[str, int]], Loader] | None = None,
    drop: Drop | None = None,
) -> Outcome:
    """Record until the command ends, time is up, or a signal comes.

    say: is called with one line at each stage. load: makes the program of its numbers,
    BccLoader if None. drop: gives up all privileges but these, and is who called sudo
    from then on (privileges.drop); it is called when the command has started. None:
    this process has more to do and keeps them. Raises RecordError and its kin for
    whatever keeps it from starting; nothing is left attached then.
    """
    privileges.require()
    if drop is not None:
        privileges.nothing_to_inherit()
    _check_output(options, caller())
    if options.command:
        _check_command(options.command[0])
    _check_pid(options.pid)
    if options.freeze:
        cgroup.require(options.freeze)
    root = tracefs.mounted()
    plans = choose(
        plan(symbols.functions(), tracefs.tracepoints(root)),
        options.probes,
        options.without,
    )
    _check_required(plans)
    if options.audit is not None and (why := cannot_look(plans)):
        raise RecordError(f"--audit needs to look: {why}", hint="cdmtrace probes")
    tracefs.sweep(root)

    with headers.available() as directory:
        target = Target.running(
            directory, options.cdm_nodes, options.vm_cdm_mask, force=options.force
        )
        numbers = {
            **target.numbers,
            "ALL": int(options.all),
            "FILTER_TGID": options.pid or 0,
            "RECORDER": os.getpid(),
            "RING_PAGES": options.ring_pages,
            "MAP_SIZE": options.map_size,
            "LOST_PLACES": LOST_PLACES,
        }
        say("compiling the probes")
        loader = (load or BccLoader)(numbers)
    with _closed_in_peace(loader):
        say("attaching")
        loader.attach(plans)
        header = target.header(
            plans,
            ring_pages=options.ring_pages,
            command=options.command,
            filters={
                **({"pid": options.pid} if options.pid else {}),
                **({"all": True} if options.all else {}),
            },
        )
        with _writer(options, header) as writer:
            let_go = functools.partial(_let_go, options, loader, say, drop)
            session = Session(loader, writer, options, say, let_go)
            with contextlib.closing(session):
                return session.run(plans)


def _writer(options: Options, header: Header) -> Writer:
    """Begin the trace file, or the first part of it."""
    if options.rotate is None:
        return TraceWriter(options.output, header, force=options.force, owner=caller())
    return PartsWriter(
        options.output,
        header,
        size=options.rotate,
        keep=options.rotate_keep,
        force=options.force,
        owner=caller(),
    )


@contextlib.contextmanager
def _closed_in_peace(loader: Loader) -> Iterator[None]:
    """Detach everything after the block; signals that would end us have to wait."""
    try:
        yield
    finally:
        signals = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        before = signal.pthread_sigmask(signal.SIG_BLOCK, signals)
        try:
            loader.close()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _let_go(
    options: Options,
    loader: Loader,
    say: Callable[[str], None],
    drop: Drop | None,
) -> None:
    """Give up what the rest of a recording does not need, if that is asked for."""
    if drop is None:
        return
    who = caller()
    keep = set()
    if options.audit is not None:
        keep.add(Capability.SYS_PTRACE)
    if options.freeze is not None and who is not None:
        # The cgroup's files are root's, and we are not any more.
        keep.add(Capability.DAC_OVERRIDE)
    if options.command:
        # It may be, or become, another user's.
        keep.add(Capability.KILL)
    if loader.needs_capability():
        keep.add(Capability.BPF)
    for what in drop(frozenset(keep), who):
        say(what)


def _check_output(options: Options, who: Caller | None) -> None:
    """Say now what would be said after half a minute of compiling.

    The file will be of who called sudo, so it is asked what they may do.
    """
    parent = options.output.parent
    with acting_as(who):
        try:
            _check_place(options)
            allowed = os.access(parent, os.W_OK | os.X_OK, effective_ids=True)
        except PermissionError:
            allowed = False
    if allowed:
        return
    if os.statvfs(parent).f_flag & os.ST_RDONLY:
        raise RecordError(
            f"{options.output}: cannot create it: {os.strerror(errno.EROFS)}",
            hint="name a file on a writable disk with -o FILE",
        )
    if who is not None:
        raise RecordError(
            f"{parent}: user {who.uid}, who called sudo, may not write "
            "there, and the file is theirs",
            hint="name a file in a directory of theirs with -o FILE, or be root "
            "altogether: sudo env -u SUDO_UID cdmtrace record …",
        )


def _check_place(options: Options) -> None:
    if options.rotate is not None:
        if not options.force:
            refuse_parts(options.output)
    elif os.path.lexists(options.output) and not options.force:
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
