"""What services of the kernel did to pages of CDM nodes, row by row.

Pages are counted once for each address space that maps them, and each time.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

import msgspec

from cdmtrace.analysis.frames import Event, Terms
from cdmtrace.analysis.notes import Arrived, Note, Served, Way
from cdmtrace.analysis.pages import PageMap
from cdmtrace.analysis.permissions import Permissions
from cdmtrace.analysis.services import (
    BY_REASON,
    DEMOTION,
    DRIVER,
    FALLBACK,
    KHUGEPAGED,
    KSM,
    MEMORY_FAILURE,
    MEMPOLICY,
    MLOCK,
    NOT_ALWAYS,
    NUMA_BALANCING,
    OFFLINE,
    PAGE_CACHE,
    RECLAIM,
    SERVICES,
    Service,
    of_stack,
    unchecked,
)
from cdmtrace.analysis.stacks import Stack
from cdmtrace.events import Cause, EventKind, Mpol, Probe

VM_LOCKED: Final = 0x2000
"""mlock() has been here (include/linux/mm.h, the same in all kernels)."""

_NO_REASON: Final = 0xFFFF

_TAKES: Final = frozenset({KHUGEPAGED, KSM, MEMORY_FAILURE, OFFLINE, RECLAIM})
"""Services that unmap pages and bring none back to the place."""


_COMES_BACK: Final = frozenset(
    {
        *("split_huge_page_to_list", "__split_huge_pmd"),
        *("try_to_migrate", "try_to_migrate_one"),
    }
)
"""A page that one of these unmaps is mapped again: where a huge page is split. The
first two are 5.10's, which has not got the others."""
_WALKS: Final = frozenset({"try_to_unmap_one"})
"""Only services unmap a page wherever it is mapped."""
_BREAKS: Final = frozenset({"break_ksm"})
"""KSM gives a VMA a page of its own again."""


class Cell(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """What one service did to the pages of one node.

    came, left, stayed: pages (of the base size) that it brought, took away, and worked
    on where they are. first: the row that showed it first; by: who acted, name of the
    task -> pages. unchecked: why that it did nothing would not have been seen; None
    where it would, or where it did something.
    """

    node: int
    service: Service
    allowed: bool
    came: int = 0
    left: int = 0
    stayed: int = 0
    first: Event | None = None
    by: Mapping[str, int] = msgspec.field(default_factory=dict)
    unchecked: str | None = None

    @property
    def pages(self) -> int:
        """All of them."""
        return self.came + self.left + self.stayed


class Deeds(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """What a service did to pages of a node, in bytes.

    first: the row that showed it first; by: name of the task that acted -> bytes.
    """

    first: Event
    pages: Mapping[Way, int]
    by: Mapping[str, int]


class Touches(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """What services did, by node and name of the service.

    unknown: bytes of which it cannot be told who moved them. by_reason: bytes of which
    nothing but the reason that the kernel gave tells.
    """

    deeds: Mapping[tuple[int, str], Deeds]
    unknown: int
    by_reason: int


@dataclass(slots=True)
class _Tally:
    first: Event
    pages: Counter[Way] = field(default_factory=Counter)
    by: Counter[int] = field(default_factory=Counter)


@dataclass(slots=True)
class Touched:
    """What services do in a recording, as its rows come.

    stacks: by number.
    """

    terms: Terms
    stacks: Mapping[int, Stack]
    permissions: Permissions
    _unknown: int = 0
    _by_reason: int = 0
    _of: dict[int, Service | None] = field(default_factory=dict)
    _cells: dict[tuple[int, str], _Tally] = field(default_factory=dict)

    def take(
        self, event: Event, notes: Iterable[Note], pages: PageMap
    ) -> tuple[Served, ...]:
        """Return what a row says of services.

        notes: what the model says of it; pages: those of its mm after it.
        """
        match event.kind:
            case EventKind.MAP:
                served = [
                    one
                    for note in notes
                    if isinstance(note, Arrived) and note.event.kind == EventKind.MAP
                    for one in self._arrived(note)
                ]
            case EventKind.MIGRATE:
                served = self._migrated(event)
            case EventKind.UNMAP:
                served = self._unmapped(event)
            case EventKind.KSM_PAGE:
                served = self._between(KSM, event)
            case EventKind.NUMA_SCAN if event.cause == Cause.NUMA_BALANCING:
                served = self._there(NUMA_BALANCING, event, pages)
            case EventKind.FLAGS if event.probe == Probe.MLOCK_FIXUP:
                locks = event.flags_after & ~event.flags_before & VM_LOCKED
                served = self._there(MLOCK, event, pages) if locks else []
            case _:
                return ()
        self.count(event, served)
        return tuple(served)

    def count(self, event: Event, served: Iterable[Served], times: int = 1) -> None:
        """Enter in the table what services did at a row, so many times."""
        for one in served:
            size = one.size * times
            if one.service is None:
                self._unknown += size
                continue
            key = one.node, one.service
            tally = self._cells.setdefault(key, _Tally(first=event))
            tally.pages[one.way] += size
            tally.by[event.tid] += size

    def _service(self, event: Event) -> Service | None:
        if event.stack not in self._of:
            self._of[event.stack] = of_stack(self.stacks.get(event.stack))
        return self._of[event.stack]

    def _arrived(self, note: Arrived) -> list[Served]:
        event, page = note.event, note.page
        service = self._service(event)
        if service not in (KHUGEPAGED, KSM):
            service = _by_policy(note)
        elif service is KSM and not self._within(event, _BREAKS):
            # Of pages that it merges there is a row that says whence and whither.
            return []
        served = [self._served(service, event, page.node, "came", page.size)]
        if event.flags_after & VM_LOCKED:
            served.append(self._served(MLOCK, event, page.node, "stayed", page.size))
        return served

    def _migrated(self, event: Event) -> list[Served]:
        if event.arg == _NO_REASON and event.src_node == event.node:
            # A huge page is split: nobody was asked to move anything.
            return []
        service = self._service(event)
        if service is RECLAIM:
            service = DEMOTION
        if service is None and event.cause == Cause.DRIVER:
            service = DRIVER
        if service is None and self._is_cut(event):
            service = BY_REASON.get(event.arg)
            self._by_reason += event.size if service else 0
        return self._between(service, event)

    def _unmapped(self, event: Event) -> list[Served]:
        service = self._service(event)
        if not self.terms.is_cdm(event.src_node) or self._within(event, _COMES_BACK):
            return []
        if service is None and self._is_cut(event) and self._within(event, _WALKS):
            return [self._served(None, event, event.src_node, "left", event.size)]
        if service not in _TAKES:
            return []
        if service is KSM and not self._within(event, _BREAKS):
            return []
        return [self._served(service, event, event.src_node, "left", event.size)]

    def _is_cut(self, event: Event) -> bool:
        stack = self.stacks.get(event.stack)
        return stack is not None and stack.cut

    def _within(self, event: Event, functions: frozenset[str]) -> bool:
        """Return whether one of these is on the stack."""
        stack = self.stacks.get(event.stack)
        return stack is not None and not functions.isdisjoint(stack.functions)

    def _between(self, service: Service | None, event: Event) -> list[Served]:
        """A page is on another node now, or stays on one."""
        ends: list[tuple[int, Way]]
        if event.src_node == event.node:
            ends = [(event.node, "stayed")]
        else:
            ends = [(event.src_node, "left"), (event.node, "came")]
        return [
            self._served(service, event, node, way, event.size)
            for node, way in ends
            if self.terms.is_cdm(node)
        ]

    def _there(self, service: Service, event: Event, pages: PageMap) -> list[Served]:
        """Pages in a range were worked on, and stay."""
        start, end = event.addr, event.addr + event.size
        found, since = Counter[int](), event.ts_entry
        for page, inside in pages.meeting(start, end):
            found[page.node] += inside
            since = min(since, page.event.ts_entry)
        return [
            self._served(service, event, node, "stayed", size, since=since)
            for node, size in sorted(found.items())
        ]

    def _served(
        self,
        service: Service | None,
        event: Event,
        node: int,
        way: Way,
        size: int,
        since: int | None = None,
    ) -> Served:
        return Served(
            event=event,
            service=service.name if service else None,
            node=node,
            way=way,
            size=size,
            allowed=service is None or _allowed(self.permissions, node, service),
            permitted=tuple(sorted(self.permissions.of(node))),
            since=since,
        )

    def touches(self, comms: Mapping[int, str]) -> Touches:
        """Return what there was so far. comms: tid -> name."""
        return Touches(
            deeds={key: _named(tally, comms) for key, tally in self._cells.items()},
            unknown=self._unknown,
            by_reason=self._by_reason,
        )


def _named(tally: _Tally, comms: Mapping[int, str]) -> Deeds:
    by = Counter[str]()
    for tid, size in tally.by.items():
        by[comms.get(tid, "") or "?"] += size
    return Deeds(first=tally.first, pages=dict(tally.pages), by=by)


def together(parts: Iterable[Touches]) -> Touches:
    """Return what there was in all of some."""
    deeds: dict[tuple[int, str], Deeds] = {}
    unknown = by_reason = 0
    for part in parts:
        unknown += part.unknown
        by_reason += part.by_reason
        for key, more in part.deeds.items():
            known = deeds.get(key)
            deeds[key] = _both(known, more) if known else more
    return Touches(deeds=deeds, unknown=unknown, by_reason=by_reason)


def _both(one: Deeds, other: Deeds) -> Deeds:
    return Deeds(
        first=min(one.first, other.first, key=lambda event: event.seq),
        pages=Counter(one.pages) + Counter(other.pages),
        by=Counter(one.by) + Counter(other.by),
    )


def cells(touches: Touches, terms: Terms, permissions: Permissions) -> tuple[Cell, ...]:
    """Return the table: every service for each CDM node."""
    return tuple(
        _cell(touches, node, service, terms, permissions)
        for node in terms.nodes
        for service in SERVICES
    )


def _cell(
    touches: Touches,
    node: int,
    service: Service,
    terms: Terms,
    permissions: Permissions,
) -> Cell:
    allowed = _allowed(permissions, node, service)
    deeds = touches.deeds.get((node, service.name))
    if deeds is None:
        return Cell(
            node=node,
            service=service,
            allowed=allowed,
            unchecked=unchecked(service, node, terms)
            or (NOT_ALWAYS if touches.unknown else None),
        )
    by = sorted(deeds.by.items(), key=lambda one: (-one[1], one[0]))
    return Cell(
        node=node,
        service=service,
        allowed=allowed,
        came=deeds.pages.get("came", 0) // terms.page,
        left=deeds.pages.get("left", 0) // terms.page,
        stayed=deeds.pages.get("stayed", 0) // terms.page,
        first=deeds.first,
        by={name: size // terms.page for name, size in by},
    )


def _allowed(permissions: Permissions, node: int, service: Service) -> bool:
    return service is DRIVER or permissions.allow(node, service.name)


def _by_policy(note: Arrived) -> Service | None:
    """Return to whom an arrival is owed that no daemon has brought; None: unknown."""
    event, node = note.event, note.page.node
    if event.cause == Cause.DRIVER:
        return DRIVER
    if note.page.how == "ksm":
        return KSM
    task = event.other_policy & 15 not in (Mpol.DEFAULT, Mpol.LOCAL, Mpol.UNREAD)
    if note.here and (note.named or (task and event.other >> node & 1)):
        return MEMPOLICY
    if not note.here:
        return PAGE_CACHE
    return None if note.named is None else FALLBACK
