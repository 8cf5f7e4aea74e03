"""Look at what processes hold: before anything is recorded, and for an audit.

The kernel counts the pages of each VMA (cdmtrace.snapshot makes it do so), and the
counts come through the ring, in their place among the events.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import numpy as np

from cdmtrace import snapshot
from cdmtrace.drain import Drain, own_rows
from cdmtrace.errors import RecordError
from cdmtrace.events import EVENT_DTYPE, EventKind, Events, Probe
from cdmtrace.filters import Filters, Range
from cdmtrace.kernel import cgroup
from cdmtrace.planning import Plan

LOOK_ROUNDS: Final = 20
"""Times that processes which came meanwhile are looked at before recording begins."""


def cannot_look(plans: tuple[Plan, ...]) -> str:
    """Return why what is there cannot be looked at; "" if it can."""
    for item in plans:
        if item.probe.probe is Probe.SNAPSHOT and item.why_not:
            return f"{item.probe.name} is not attached: {item.why_not}"
    return ""


def look_before(
    drain: Drain, filters: Filters, stopped: Callable[[], bool], viewer: int = 0
) -> str:
    """Write what every process that is followed holds before anything else.

    Return why that is not everything, and the file does not say so; else "".
    stopped: whether to go on makes no sense any more. viewer: a process that is left
    out.
    """
    wanted = filters.processes if filters.of_processes else snapshot.processes
    done: set[int] = set()
    unseen = 0
    # Whoever is forked meanwhile may have what nobody has told of.
    for _ in range(LOOK_ROUNDS):
        new = sorted(wanted() - done - {viewer})
        if not new:
            break
        for one in new:
            if stopped():
                return "stopped before all was looked at"
            try:
                _look_at(drain, one, filters.addr)
            except PermissionError:
                unseen += 1
        done.update(new)
    else:
        return "new processes come faster than they can be looked at"
    if unseen:
        return f"{unseen} processes may not be looked at"
    end = own_rows(EventKind.SNAP_MM, time.monotonic_ns(), 1)
    end["probe"] = Probe.SNAPSHOT
    drain.writer.write(end)
    return ""


def _look_at(drain: Drain, pid: int, addr: Range | None) -> None:
    """Have the kernel count the pages of a process, and write where they are.

    addr: leave out what lies elsewhere.
    """
    drain()
    since = time.monotonic_ns()
    with drain.keeping() as kept:
        snapshot.look(pid)
        drain()
    counts: Events = np.concatenate([np.empty(0, EVENT_DTYPE), *kept])
    if not len(counts):
        return
    rows = own_rows(EventKind.SNAP_RANGES, since, len(counts))
    payloads = []
    page = os.sysconf("SC_PAGE_SIZE")
    for row, count in zip(rows, counts, strict=True):
        for column in ("mm", "start", "end", "node", "pid", "tid", "bits"):
            row[column] = count[column]
        start, end, node = (int(count[name]) for name in ("start", "end", "node"))
        many = int(count["size"]) // page
        if addr is not None:
            start, end = max(start, addr.start), min(end, addr.end)
            start -= start % page
        where = snapshot.runs_on(pid, start, end, node, many)
        payloads.append(where.tobytes())
    rows["ts"] = time.monotonic_ns()
    rows["probe"] = Probe.SNAPSHOT
    # What has happened to these pages until now comes before them in the file.
    drain()
    named = own_rows(EventKind.COMM, since, 1)
    named["pid"] = named["tid"] = pid
    drain.writer.write(named, payloads=[snapshot.name(pid)])
    drain.writer.write(rows, payloads=payloads)


def look_again(
    drain: Callable[[], None],
    freeze: Path | None,
    say: Callable[[str], None],
    viewer: int = 0,
) -> None:
    """Have the kernel count the pages of every process, for an audit.

    freeze: a cgroup that stands still meanwhile. viewer: a process that is left out.
    """
    with contextlib.ExitStack() as stack:
        if freeze:
            try:
                stack.enter_context(cgroup.frozen(freeze, drain))
            except RecordError as error:
                say(f"not counted this time: {error}")
                return
        for pid in sorted(snapshot.processes() - {viewer}):
            with contextlib.suppress(PermissionError):
                snapshot.look(pid)
            drain()
