"""Random programs on the simulated kernel, and losses in what is recorded of them."""

from __future__ import annotations

import os

import simdefects
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from msgspec.structs import replace
from simkernel import (
    BIND,
    CDM,
    DEFAULT,
    INTERLEAVE,
    PREFERRED,
    RAM,
    Region,
    SimKernel,
    Task,
)

from cdmtrace.analysis import Gap, Trace
from cdmtrace.analysis.frames import Event
from cdmtrace.events import EventKind, Probe

PAGES = 12
MODES = [
    (BIND, CDM),
    (BIND, RAM),
    (BIND, RAM | CDM),
    (PREFERRED, CDM),
    (INTERLEAVE, RAM | CDM),
    (DEFAULT, 0),
]
Op = tuple[int, ...]
OPS: list[tuple[str, int]] = [
    ("mbind", 6),
    ("fault", 8),
    ("move_pages", 3),
    ("migrate_pages", 1),
    ("mergeable", 1),
    ("set_mempolicy", 2),
    ("dontneed", 2),
    ("mprotect", 2),
    ("munmap", 1),
    ("mremap", 1),
    ("fork", 1),
    ("cow", 2),
    ("exit", 1),
    ("thread", 1),
    ("mlock", 1),
    ("ksm", 1),
    ("scan", 1),
    ("balance", 1),
]
NAMES = [name for name, weight in OPS for _ in range(weight)]
NUMBER = st.integers(0, 1 << 16)
HISTORY = st.lists(
    st.tuples(st.sampled_from(NAMES), NUMBER, NUMBER, NUMBER, NUMBER),
    min_size=5,
    max_size=60,
)


relaxed = settings(
    # `make histories` has more, and takes as long.
    max_examples=int(os.environ.get("CDMTRACE_HISTORIES", "60")),
    deadline=None,
    phases=(Phase.explicit, Phase.reuse, Phase.generate, Phase.shrink),
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


class World:
    """A program of one or more processes that share a list of regions."""

    def __init__(self, *quirks: str, kernel: SimKernel | None = None) -> None:
        """Begin, on a kernel of its own or beside what runs on one already."""
        self.kernel = kernel or SimKernel(*quirks)
        first = self.kernel.process()
        self.tasks: list[tuple[Task, list[Region]]] = [
            (first, [first.mmap(PAGES) for _ in range(3)])
        ]
        self.spare = 0x300000000000

    def run(self, name: str, *numbers: int) -> None:
        task, regions = self.tasks[numbers[0] % len(self.tasks)]
        if not regions:
            return
        region = regions[numbers[1] % len(regions)]
        first = numbers[2] % region.pages
        count = 1 + numbers[3] % (region.pages - first)
        getattr(self, f"do_{name}")(task, regions, region, first, count, numbers[3])

    def do_mbind(self, task, regions, region, first, count, number):
        mode, nodes = MODES[number % len(MODES)]
        task.mbind(region.page(first), count, mode, nodes, move=number % 2 == 0)

    def do_fault(self, task, regions, region, first, count, number):
        task.faults(region, first, count)

    def do_cow(self, task, regions, region, first, count, number):
        if region.page(first) in task.mm.pages:
            task.fault(region.page(first), cow=True)

    def do_move_pages(self, task, regions, region, first, count, number):
        task.move_pages([region.page(first + n) for n in range(count)], number % 2)

    def do_migrate_pages(self, task, regions, region, first, count, number):
        task.migrate_pages(*((RAM, CDM) if number % 2 else (CDM, RAM)))

    def do_mergeable(self, task, regions, region, first, count, number):
        task.mergeable(region)

    def do_set_mempolicy(self, task, regions, region, first, count, number):
        task.set_mempolicy(*MODES[number % len(MODES)])

    def do_dontneed(self, task, regions, region, first, count, number):
        task.dontneed(region.page(first), count)

    def do_mprotect(self, task, regions, region, first, count, number):
        task.mprotect(region.page(first), count, bool(number % 2))

    def do_munmap(self, task, regions, region, first, count, number):
        task.munmap(region.start, region.pages)
        regions.remove(region)
        regions.append(task.mmap(PAGES, at=region.start if number % 2 else None))

    def do_mremap(self, task, regions, region, first, count, number):
        if len(task.overlapping(region.start, region.end)) > 1:
            return
        regions.remove(region)
        self.spare += 1 << 30
        regions.append(task.mremap(region, region.pages, to=self.spare))

    def do_fork(self, task, regions, region, first, count, number):
        if len(self.tasks) < 3:
            self.tasks.append((task.fork(), list(regions)))

    def do_thread(self, task, regions, region, first, count, number):
        if len(self.tasks) < 4:
            self.tasks.append((simdefects.thread(task), regions))

    def do_mlock(self, task, regions, region, first, count, number):
        simdefects.mlock(task, task.vma(region.page(first)))

    def do_ksm(self, task, regions, region, first, count, number):
        simdefects.ksm_runs(task, task.vma(region.page(first)))

    def do_scan(self, task, regions, region, first, count, number):
        simdefects.scan_vma(task, task.vma(region.page(first)))

    def do_balance(self, task, regions, region, first, count, number):
        simdefects.balance_vma(task, task.vma(region.page(first)))

    def do_exit(self, task, regions, region, first, count, number):
        if len(self.tasks) > 1 and task is not self.tasks[0][0]:
            if sum(other.mm is task.mm for other, _ in self.tasks) == 1:
                task.exit()
            self.tasks = [pair for pair in self.tasks if pair[0] is not task]


def history(ops: list[tuple[str, int, int, int, int]], *quirks: str) -> World:
    world = World(*quirks)
    for name, *numbers in ops:
        world.run(name, *numbers)
    return world


PROBES = ("rmap_remove", "mbind_range", "alloc", "vma_split", "watch", "migrate_pages")
LOSS = st.tuples(
    st.sampled_from(PROBES),
    st.integers(0, 100),  # per cent of the recording: since
    st.integers(0, 100),  # until
    st.integers(0, 100),  # told
    st.integers(0, 2),  # of which mm; 0: any
)


def gaps_of(trace: Trace, losses: list[tuple[str, int, int, int, int]]) -> list[Gap]:
    """Return them in the order in which they are told, as a file has them."""
    events = list(trace.events)
    first, last = events[0].ts, events[-1].ts
    mms = [0, *sorted({event.mm for event in events} - {0})]
    found = []
    for probe, since, until, told, mm in losses:
        begin, end = (first + (last - first) * p // 100 for p in sorted((since, until)))
        gap = Gap(
            probe=probe,
            reason="ring",
            count=1,
            since=begin,
            until=1 << 64 if probe == "watch" else end,
            mm=mms[mm % len(mms)],
        )
        found.append((told, gap))
    found.sort(key=lambda pair: pair[0])
    return [gap for _, gap in found]


# --- rows in another order, and of others --------------------------------------------

CHANGES = st.lists(
    st.tuples(
        st.sampled_from(
            ["swap", "later", "drop", "twice", "task", "call", "node", "space"]
        ),
        st.integers(0, 1 << 16),
        st.integers(0, 1 << 16),
    ),
    max_size=12,
)


def changed(rows: list[Event], changes: list[tuple[str, int, int]]) -> list[Event]:
    """Return rows in another order, some twice or not at all, some about others.

    Whatever comes of them, with and without the screen it has to be the same.
    """
    rows = list(rows)
    for what, first, second in changes:
        at, to = first % len(rows), second % len(rows)
        other = rows[to]
        match what:
            case "swap":
                rows[at], rows[to] = rows[to], rows[at]
            case "later":
                rows.insert(to, rows.pop(at))
            case "drop" if len(rows) > 1:
                del rows[at]
            case "twice":
                rows.insert(to, rows[at])
            case "task":
                rows[at] = replace(rows[at], tid=other.tid)
            case "call":
                rows[at] = replace(rows[at], call=other.call if second % 2 else 0)
            case "node":
                rows[at] = replace(rows[at], node=other.node, src_node=other.src_node)
            case "space" if rows[at].mm and other.mm:
                rows[at] = replace(rows[at], mm=other.mm)
    return rows


def interleaved(rows: list[Event], turns: list[int]) -> list[Event]:
    """Return the rows of each address space in their order, and those of different
    ones at the same time."""
    queues: dict[int, list[Event]] = {}
    for row in reversed(rows):
        queues.setdefault(row.mm, []).append(row)
    mixed, at = [], 0
    while queues:
        keys = list(queues)
        key = keys[turns[at % len(turns)] % len(keys)]
        at += 1
        mixed.append(queues[key].pop())
        if not queues[key]:
            del queues[key]
    return mixed


def run(world: World, ops: list[tuple[str, int, int, int, int]]) -> None:
    """Have a program run; every eleventh operation, somebody counts its pages."""
    for number, (name, *numbers) in enumerate(ops):
        world.run(name, *numbers)
        if number % 11 == 10:
            task, regions = world.tasks[0]
            world.kernel.look(
                task, lambda vma, task=task, regions=regions: task.faults(regions[0])
            )


QUIRKS = st.sampled_from(
    [(), ("rfc",), ("one-way",), ("stock",), ("fault-tag",), ("task-policy",)]
)


def world_of(quirks: tuple[str, ...], *, everything: bool, looked: bool) -> World:
    world = World(*quirks)
    world.kernel.all = everything
    world.tasks[0][0].mm.watched = everything
    if looked:
        world.kernel.events.insert(
            0,
            Event(
                seq=0, ts=1, ts_entry=1, kind=EventKind.SNAP_MM, probe=Probe.SNAPSHOT
            ),
        )
    return world
