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
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from cdmtrace import privileges
from cdmtrace.caller import Caller, acting_as, caller
from cdmtrace.errors import (
    CommandNotExecutable,
    CommandNotFound,
    RecordError,
)
from cdmtrace.format.parts import PartsWriter, Writer, refuse_parts
from cdmtrace.format.schema import Header
from cdmtrace.format.writer import TraceWriter
from cdmtrace.kernel import cgroup, symbols, tracefs
from cdmtrace.kernel.btf import Btf
from cdmtrace.live import process
from cdmtrace.live.process import Beside
from cdmtrace.loader import Loader
from cdmtrace.loader.choice import headers_for, record_loader, require_compiled
from cdmtrace.looking import cannot_look
from cdmtrace.options import Options, Outcome
from cdmtrace.planning import Plan, choose, macros, plan
from cdmtrace.privileges import Capability
from cdmtrace.probes import PROBES, LogicalProbe, following
from cdmtrace.ready import require_absent
from cdmtrace.session import Session
from cdmtrace.signals import signals_later
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
    record_loader() if None. drop: gives up all privileges but these, and is who called
    sudo from then on (privileges.drop); it is called when the command has started.
    None: this process has more to do and keeps them. Raises RecordError and its kin for
    whatever keeps it from starting; nothing is left attached then.
    """
    privileges.require()
    if drop is not None:
        privileges.nothing_to_inherit()
    with process.beside(say, live=options.live) as beside:
        return _record(options, beside, load, drop)


def _record(
    options: Options,
    beside: Beside,
    load: Callable[[Mapping[str, int]], Loader] | None,
    drop: Drop | None,
) -> Outcome:
    say = beside.say
    plans = prepare(options, tracefs.mounted())
    tracefs.sweep(tracefs.mounted())

    with headers_for(options.loader) as directory:
        target = find_target(options, directory)
        if target.shadow:
            say(target.shadow)
        told = numbers(target, plans, options, beside.pid)
        if load is not None:
            loader = load(told)
        else:
            loader = record_loader(
                options.loader, told, say, with_headers=directory is not None
            )
    with closed_in_peace(loader):
        say("attaching")
        loader.attach(plans)
        header = target.header(
            plans,
            ring_pages=options.ring_pages,
            command=options.command,
            filters=_filters(options, target),
        )
        with _writer(options, header) as writer:
            if isinstance(writer, TraceWriter):
                beside.show(options.output, writer.fileno())
            let_go = functools.partial(_let_go, options, loader, beside, drop)
            session = Session(loader, writer, options, say, let_go, beside.pid)
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
def closed_in_peace(loader: Loader) -> Iterator[None]:
    """Detach everything after the block; signals that would end us have to wait."""
    try:
        yield
    finally:
        with signals_later():
            loader.close()


def _let_go(
    options: Options,
    loader: Loader,
    beside: Beside,
    drop: Drop | None,
) -> None:
    """Give up what the rest of a recording does not need, if that is asked for."""
    if drop is not None:
        for what in drop(_kept(options, loader), caller()):
            beside.say(what)
    # It takes a thread, which would keep what it had when it was started.
    beside.watch()


def _kept(options: Options, loader: Loader) -> frozenset[Capability]:
    """Return what the rest of a recording needs."""
    who = caller()
    keep = set()
    if options.audit is not None:
        keep.add(Capability.SYS_PTRACE)
    if options.freeze is not None or (
        who is None and (options.rotate is not None or options.ready_file is not None)
    ):
        # The cgroup's files are another's. So may be the directory in which there is
        # still something to make or to remove: of who called sudo it is their own.
        keep.add(Capability.DAC_OVERRIDE)
    if options.command:
        # It may be, or become, another user's.
        keep.add(Capability.KILL)
    if options.live and who is None:
        # Then it is nobody who draws.
        keep.add(Capability.KILL)
    if loader.needs_capability():
        keep.add(Capability.BPF)
    return frozenset(keep)


def rehearse(options: Options) -> Header:
    """Return the header that a recording would have now; nothing is changed for it.

    Raises what record() does where it could not begin, as far as that can be told
    before anything is compiled.
    """
    privileges.require()
    root = tracefs.find()
    if root is None:
        raise RecordError(
            "tracefs is not mounted: what could be attached is not known",
            hint=f"sudo mount -t tracefs tracefs {tracefs.TRACEFS[0]}",
        )
    plans = prepare(options, root)
    with headers_for(options.loader) as directory:
        target = find_target(options, directory)
    require_compiled(options.loader)
    return target.header(
        plans,
        ring_pages=options.ring_pages,
        command=options.command,
        filters=_filters(options, target),
    )


def prepare(
    options: Options, root: Path, probes: tuple[LogicalProbe, ...] = PROBES
) -> tuple[Plan, ...]:
    """Return what to attach, of these probes; root: where tracefs is.

    Raises whatever keeps a recording from its start: RecordError and its kin.
    """
    _check_output(options, caller())
    if options.ready_file:
        require_absent(options.ready_file)
    if options.command:
        _check_command(options.command[0])
    options.filters.require()
    if options.freeze:
        cgroup.require(options.freeze)
    present = symbols.functions()
    functions = tracefs.traceable(root, present)
    known = functions, tracefs.tracepoints(root), Btf.load()
    plans = choose(
        plan(*known, probes, present=present), options.probes, options.without
    )
    if options.filters.pids:
        children = following(children=options.filters.children)
        plans += plan(*known, (children,))
    _check_required(plans)
    if options.missing_probes == "error":
        _check_missing(plans)
    if options.audit is not None and (why := cannot_look(plans)):
        raise RecordError(f"--audit needs to look: {why}", hint="cdmtrace probes")
    return plans


def numbers(
    target: Target, plans: tuple[Plan, ...], options: Options, viewer: int = 0
) -> Mapping[str, int]:
    """Return the macros for the BPF program, see bpf/cdmtrace.bpf.c.

    viewer: the process that shows the recording, which is left out; 0: there is none.
    """
    return {
        **target.numbers,
        **macros(plans),
        **options.filters.numbers(),
        "CDM_NODES": _mask(options.filters.told_nodes(target.cdm_nodes)),
        "ALL": int(options.all),
        "RECORDER": os.getpid(),
        "VIEWER": viewer,
        "RING_PAGES": options.ring_pages,
        "MAP_SIZE": options.map_size,
        "LOST_PLACES": LOST_PLACES,
    }


def find_target(options: Options, directory: Path | None) -> Target:
    """Return the kernel we run on; directory: its headers, None without any.

    Raises RecordError.
    """
    target = Target.running(
        directory,
        options.cdm_nodes,
        options.vm_cdm_mask,
        kernel_profile=options.kernel_profile,
        force=options.force,
    )
    options.filters.told_nodes(target.cdm_nodes)
    return target


def _filters(options: Options, target: Target) -> dict[str, Any]:
    return {
        **options.filters.header(target.cdm_nodes),
        **({"all": True} if options.all else {}),
    }


def _mask(nodes: tuple[int, ...]) -> int:
    return sum(1 << nid for nid in nodes)


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


def _check_required(plans: tuple[Plan, ...]) -> None:
    for item in plans:
        if item.missing and item.probe.required:
            raise RecordError(
                f"this kernel has no {item.missing}, which {item.probe.name} needs: "
                f"{item.probe.summary}",
                hint="cdmtrace probes",
            )


def _check_missing(plans: tuple[Plan, ...]) -> None:
    lacking = [item for item in plans if item.missing and not item.unwanted]
    if lacking:
        raise RecordError(
            "--missing-probes error: this kernel has no "
            + ", ".join(f"{item.missing} ({item.probe.name})" for item in lacking),
            hint="cdmtrace probes, and --no-probe for what can be done without",
        )
