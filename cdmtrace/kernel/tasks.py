"""Processes as /proc has them: who came from whom, what their tasks are called."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from pathlib import Path
from typing import Final, NamedTuple

PROC: Final = Path("/proc")

_ENDED: Final = (FileNotFoundError, ProcessLookupError)


class Born(NamedTuple):
    """Who made a process, and when (clock ticks since boot): a number comes again."""

    parent: int
    ticks: int


def born(pid: int, *, proc: Path = PROC) -> Born | None:
    """Return the birth of a process; None if it has ended."""
    with contextlib.suppress(*_ENDED):
        # Its name stands in parentheses, and can have any in it.
        fields = (proc / str(pid) / "stat").read_text().rpartition(")")[2].split()
        return Born(parent=int(fields[1]), ticks=int(fields[19]))
    return None


def with_descendants(pids: Iterable[int], *, proc: Path = PROC) -> frozenset[int]:
    """Return these processes and all that come from them, as far as /proc tells.

    A process whose parent has ended has another one since, and is found no more.
    """
    parents = {
        int(entry.name): birth.parent
        for entry in proc.iterdir()
        if entry.name.isdecimal() and (birth := born(int(entry.name), proc=proc))
    }
    found = frozenset(pids)
    while more := {
        pid for pid, parent in parents.items() if parent in found and pid not in found
    }:
        found |= more
    return found


def comms(pid: int, *, proc: Path = PROC) -> frozenset[bytes]:
    """Return the names of a process's tasks, none if it has ended."""
    names = set()
    with contextlib.suppress(*_ENDED):
        for task in (proc / str(pid) / "task").iterdir():
            with contextlib.suppress(*_ENDED):
                names.add((task / "comm").read_bytes().rstrip(b"\n"))
    return frozenset(names)


def in_cgroup(group: Path) -> frozenset[int]:
    """Return the processes in a cgroup (v2) and below it."""
    found: set[int] = set()
    for path in [group, *(path for path in group.rglob("*") if path.is_dir())]:
        # A group may go meanwhile, and a threaded one has its processes further up.
        with contextlib.suppress(OSError):
            found.update(map(int, (path / "cgroup.procs").read_text().split()))
    return frozenset(found - {0})
