"""Recordings in which services of the kernel touch pages, row by row."""

from __future__ import annotations

from typing import Any

from notes import BASE, PAGE, PLAIN, row
from simkernel import PROBES

from cdmtrace.analysis import check
from cdmtrace.analysis.frames import Event, Gap, Terms, Trace
from cdmtrace.analysis.permissions import DEFAULT, Permissions
from cdmtrace.analysis.result import Result, RuleResult
from cdmtrace.analysis.stacks import Stack
from cdmtrace.analysis.touched import Cell
from cdmtrace.events import Cause, EventKind, Mpol

NO_REASON = 0xFFFF
MOVES = ("remove_migration_pte", "migrate_pages_batch", "migrate_pages")
TAKES = ("page_remove_rmap", "try_to_unmap_one", "try_to_unmap")
FAULT = ("__handle_mm_fault", "handle_mm_fault", "asm_exc_page_fault")
TERMS = Terms(cdm=0b10, tag=0, probes=PROBES)
BOUND = {"policy": Mpol.BIND, "nodes": 0b10}


class World:
    """Rows of one address space, and their stacks."""

    def __init__(self, terms: Terms = TERMS) -> None:
        self.terms = terms
        self.events: list[Event] = []
        self.stacks: dict[int, Stack] = {}
        self.gaps: tuple[Gap, ...] = ()
        self.comm("story", 7)

    def comm(self, name: str, tid: int) -> None:
        self.row(EventKind.COMM, mm=0, pid=tid, tid=tid, payload=name.encode())

    def row(self, kind: EventKind, *stack: str, **columns: Any) -> Event:
        if stack:
            found = Stack(tuple(f"{name}+0x1" for name in stack))
            number = len(self.stacks) + 1
            self.stacks[number] = found
            columns["stack"] = number
            # As the reader of a file does it.
            if found.cause is not None:
                columns.setdefault("cause", found.cause)
        given = {"mm": 1, "pid": 7, "tid": 7, "flags_after": PLAIN, **columns}
        event = row(len(self.events) + 1, kind, **given)
        self.events.append(event)
        return event

    def page(self, number: int, kind: EventKind, *stack: str, **columns: Any) -> Event:
        given = {"addr": BASE + number * PAGE, "size": PAGE, **columns}
        return self.row(kind, *stack, **given)

    def maps(self, number: int, **columns: Any) -> Event:
        given = {"node": 1, "cause": Cause.FAULT, **BOUND, **columns}
        return self.page(number, EventKind.MAP, **given)

    def moves(self, number: int, src: int, to: int, *stack: str, **more: Any) -> Event:
        return self.page(
            number, EventKind.MIGRATE, *stack, src_node=src, node=to, **more
        )

    def trace(self) -> Trace:
        return Trace(
            path="services.arrows",
            terms=self.terms,
            events=tuple(self.events),
            count=len(self.events),
            stacks=self.stacks,
            gaps=self.gaps,
        )

    def check(self, permissions: Permissions = DEFAULT) -> Result:
        return check(self.trace(), profile="np", permissions=permissions)


def cell(result: Result, name: str, node: int = 1) -> Cell:
    return next(
        one
        for one in result.services.cells
        if (one.node, one.service.name) == (node, name)
    )


def pages(one: Cell) -> tuple[int, int, int]:
    return one.came, one.left, one.stayed


def seen(result: Result) -> dict[str, tuple[int, int, int]]:
    """Return service -> pages that came, left and stayed, where there are any."""
    return {one.service.name: pages(one) for one in result.services.cells if one.pages}


def rule(result: Result) -> RuleResult:
    return next(one for one in result.rules if one.rule.id == "CDM021")


def scan(world: World, first: int, last: int, **columns: Any) -> None:
    world.row(
        EventKind.NUMA_SCAN,
        addr=BASE + first * PAGE,
        size=(last - first) * PAGE,
        **{"cause": Cause.NUMA_BALANCING, **columns},
    )
