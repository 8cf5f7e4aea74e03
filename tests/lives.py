"""Timelines of a simulated kernel, and what they tell, for short."""

from __future__ import annotations

from msgspec.structs import replace
from simkernel import LOCKED, PAGE, SimKernel, Task

from cdmtrace.analysis.frames import Event
from cdmtrace.analysis.timeline import Timeline, follow
from cdmtrace.events import EventKind, Probe

FAR = 0x300000000000
"""An address that SimKernel gives to nobody who does not ask for it."""


def told(found: Timeline, number: int = 0) -> list[str]:
    """Return the kinds of the rows of a generation, a run of one kind once."""
    kinds: list[str] = []
    for moment in found.lives[number].moments:
        kind = EventKind(moment.event.kind).name
        if kind == "CALL":
            kind = Probe(moment.event.probe).name
        if not kinds or kinds[-1] != kind:
            kinds.append(kind)
    return kinds


def at(kernel: SimKernel, task: Task, addr: int) -> Timeline:
    return follow(kernel.trace(), task.pid, addr, profile="intended")


def ends(found: Timeline) -> list[tuple[str, str]]:
    return [(life.began, life.ended) for life in found.lives]


def watched(*quirks: str) -> tuple[SimKernel, Task]:
    """Return a process that is recorded from its first mmap() on."""
    kernel = SimKernel(*quirks)
    task = kernel.process()
    task.mbind(task.mmap(1).start, 1)
    return kernel, task


def forked_locked() -> tuple[SimKernel, Task, int]:
    """Return the child of a process that has locked a VMA, and where that begins."""
    kernel, task = watched()
    vma = task.mmap(5)
    task.vma(vma.start).flags |= LOCKED
    return kernel, task.fork(), vma.start


def freed(kernel: SimKernel, task: Task, start: int, pages: int) -> Event:
    """Return the row of what unmaps VMAs, which SimKernel does not have."""
    size = pages * PAGE
    return replace(
        kernel.events[-1],
        kind=EventKind.VMA_FREE,
        probe=Probe.VMA_FREE,
        seq=kernel.events[-1].seq,
        addr=start,
        size=size,
        start=start,
        end=start + size,
    )
