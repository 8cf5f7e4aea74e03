"""Pages on their way between nodes: what moved them, and which come back.

Read from the rows themselves, for the model knows pages of CDM nodes only, and one
that went back to RAM has a place here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import numpy.typing as npt

from cdmtrace.analysis import names
from cdmtrace.analysis.frames import Event
from cdmtrace.analysis.rows import Columns, Rows
from cdmtrace.events import EventKind

Space = tuple[int, int]
"""An mm of the recording: its id, and how many had the same id before."""

_ABOUT: Final = [
    *(EventKind.MIGRATE, EventKind.CALL, EventKind.CALL_OPEN, EventKind.MM_EXIT),
]
"""Kinds of rows that matter to migrations, beside MAP."""
_STACKS: Final[Mapping[int, str]] = {**names.BY_FAULT, **names.BY_MIGRATION}


@dataclass(frozen=True, kw_only=True, slots=True)
class Route:
    """The moves of one page of an mm from node to node, by their rows; one at least."""

    space: Space
    moves: list[Event]

    @property
    def nodes(self) -> tuple[int, ...]:
        """Where it was before its first move (-1: not known), and after each."""
        return self.moves[0].src_node, *(move.node for move in self.moves)


@dataclass(frozen=True, kw_only=True, slots=True)
class Traffic:
    """The migrations of a recording.

    moved: bytes by mm, cause, and the nodes that they came from and went to; where
    both are the same, a page was moved within its node, or could not be moved at all.
    routes: of every page that came from one node to another.
    """

    moved: Counter[tuple[Space, str, int, int]]
    routes: list[Route]


def read(events: Iterable[Event], breaks: frozenset[int] = frozenset()) -> Traffic:
    """Return what the MIGRATE rows tell; a page that two mms map counts in both.

    Its cause is the system call around it; else what the stack says; else, marked as
    such, the reason that the kernel gave, which can lie. breaks: seqs of rows before
    which some are missing, so that nobody knows which mms have ended.
    """
    if isinstance(events, Rows) and not breaks:
        events = _about_moves(events)
    alive: set[int] = set()
    ended = Counter[int]()
    calls: dict[tuple[int, int], str] = {}
    moved = Counter[tuple[Space, tuple[int, int], str, int, int]]()
    tracks = _Tracks()
    for event in events:
        if event.seq in breaks:
            ended.update(alive)
            alive.clear()
        if event.kind == EventKind.MIGRATE and not event.mm:
            continue
        alive.add(event.mm)
        space = event.mm, ended[event.mm]
        match event.kind:
            case EventKind.MIGRATE:
                call, cause = (event.tid, event.call), _cause(event)
                moved[space, call, cause, event.src_node, event.node] += event.size
                tracks.move(space, event)
            case EventKind.MAP:
                tracks.replace(space, event)
            case EventKind.CALL | EventKind.CALL_OPEN if event.probe in names.BY_CALL:
                # This row comes after those of what the call did.
                calls[event.tid, event.call] = names.BY_CALL[event.probe]
            case EventKind.MM_EXIT:
                ended[event.mm] += 1
                alive.discard(event.mm)
    by_cause = Counter[tuple[Space, str, int, int]]()
    for (space, call, cause, source, node), size in moved.items():
        by_cause[space, calls.get(call, cause), source, node] += size
    return Traffic(moved=by_cause, routes=tracks.routes)


def _about_moves(rows: Rows) -> Iterator[Event]:
    """Yield the rows that tell of migrations, and what ends the way of a page."""
    if EventKind.MIGRATE not in rows.kinds:
        return
    found = [
        np.unique(values["addr"][values["kind"] == EventKind.MIGRATE])
        for values in (piece.values for piece in rows.pieces())
    ]
    moved = np.unique(np.concatenate(found))
    yield from rows.where(
        lambda values: (
            np.isin(values["kind"], _ABOUT)
            | ((values["kind"] == EventKind.MAP) & _meets(values, moved))
        ),
        (EventKind.MIGRATE,),
    )


def _meets(values: Columns, moved: npt.NDArray[np.uint64]) -> npt.NDArray[np.bool_]:
    """Return which rows are about an address at which something was moved.

    moved: ascending. A row may be about several pages of a folio.
    """
    first = values["addr"]
    meets: npt.NDArray[np.bool_] = np.searchsorted(moved, first) < np.searchsorted(
        moved, first + values["size"]
    )
    return meets


def _cause(event: Event) -> str:
    """Return why a page was moved, as far as its own row tells."""
    told = _STACKS.get(event.cause)
    reason = names.BY_REASON.get(event.arg)
    return told or (f"{reason} (reason)" if reason else "migration")


@dataclass(slots=True)
class _Tracks:
    """The routes of pages, and at which address and of which size each is now."""

    routes: list[Route] = field(default_factory=list)
    _at: dict[tuple[Space, int, int], Route] = field(default_factory=dict)

    def move(self, space: Space, event: Event) -> None:
        """Go on with the route of a page that has come to another node."""
        route = self._at.get((space, event.addr, event.size))
        here = route.moves[-1].node if route else event.src_node
        source = here if event.src_node < 0 else event.src_node
        if source == event.node:
            return
        if route is None or source != here:
            # Not where the last one went to, so not that page.
            route = Route(space=space, moves=[])
            self._at[space, event.addr, event.size] = route
            self.routes.append(route)
        route.moves.append(event)

    def replace(self, space: Space, event: Event) -> None:
        """End the route of the page that was where another one is mapped now."""
        self._at.pop((space, event.addr, event.size), None)
