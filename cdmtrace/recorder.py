"""Record: attach, drain the ring into the file, and stop cleanly.

What is asked for is in options, what is known of the kernel in target, the loop in
session. The recorder is dumb: it copies what is in the ring to the file (drain), and
counts what was lost.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from cdmtrace.command import caller
from cdmtrace.errors import (
    CommandNotExecutable,
    CommandNotFound,
    RecordError,
    UsageTrouble,
)
from cdmtrace.format.writer import TraceWriter
from cdmtrace.kernel import cgroup, headers, symbols, tracefs
from cdmtrace.loader import Loader
from cdmtrace.loader.bcc import BccLoader
from cdmtrace.looking import cannot_look
from cdmtrace.options import Options, Outcome
from cdmtrace.probes import Plan, choose, plan
from cdmtrace.session import Session
from cdmtrace.target import Target

LOST_PLACES: Final = 1024
"""Address spaces, by probe and reason, whose losses are told apart."""


def require_root() -> None:
    """Raise RecordError unless we may load BPF programs and attach kprobes."""
    if os.geteuid() != 0:
        raise RecordError(
            "recording needs root: probes are put into the running kernel",
            hint="sudo cdmtrace record …",
        )


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
    with contextlib.closing(loader):
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
        with TraceWriter(
            options.output, header, force=options.force, owner=caller()
        ) as writer:
            session = Session(loader, writer, options, say)
            with contextlib.closing(session):
                return session.run(plans)


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
