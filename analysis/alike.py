"""When units of a run (runs.py) are to the model as one of them was.

The model is a function of a state and a row. Two units in a row were given to it. If
the second found the same state as the first has left, and left the same but for the
page that it is about and what shows the VMA last, then a third that is alike finds that
state, too, and so on. What the model may look at in such a row, and is not the same in
all units of a run:

- Its address. It is in the VMA, which the row shows whole. A page that comes finds the
  place free, or a page there of the same kind; one that goes is known to be there; one
  that is moved comes from another node, so that it is none that was put aside. Of a VMA
  the model asks further whether any page is in it, and one that came for it or was
  asked for: of a run that brings pages, two are there; of one that takes them, the last
  one still is.
- Its times. They are held against those of other rows of the mm where vm_flags differ,
  and in a run they do not; or against counts of an audit, which the screen looks at.
- What its task has mapped last, or has allocated: each unit tells of it anew.

No rule looks at the page that goes, or at the address and the times of one that comes,
if it finds nothing wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from itertools import repeat, takewhile
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from msgspec.structs import replace

from cdmtrace.analysis.frames import Event, Terms
from cdmtrace.analysis.pages import Page, PageMap
from cdmtrace.analysis.runs import NOT_COMPARED
from cdmtrace.analysis.state import Area, Open, State
from cdmtrace.events import NO_NODE, EventKind, Lock

_SAME: Final = ("gone", "limbo", "task_policy", "tagging", "writes", "near")
_EQUAL: Final = ("dirty", "whole", "ended")
_VARYING: Final = ("seq", *sorted(NOT_COMPARED))

Columns = Mapping[str, npt.NDArray[Any]]


class Brought:
    """Pages that come to an mm, one by one, as one came.

    state: of the mm after that; unit: its rows.
    """

    def __init__(self, state: State, unit: Sequence[Event], terms: Terms) -> None:
        event, paired = unit[-1], len(unit) > 1
        self._state = state
        self._on_cdm = terms.is_cdm(event.node)
        self._kept = self._on_cdm or terms.all
        self._held = state.pages if self._on_cdm else state.ram
        there = self._held.get(event.addr)
        # One that was there, and of which this is the entry, is nobody's model.
        self._model = there if there and there.event.seq == event.seq else None
        call = state.open.get((event.tid, event.call))
        # Which of them it was allocated for is to be seen by the address.
        self._unclear = not paired and call is not None and call.alloc is not None

    def alike(self, addresses: Sequence[int]) -> int:
        """Return how many of the first of these come as that one did."""
        if not self._kept:
            return len(addresses)
        model = self._model
        if model is None or self._unclear:
            return 0
        if self._held.free({*addresses}, model.size):
            return len(addresses)
        return _leading(addresses, lambda addr: self._fits(addr, model))

    def _fits(self, addr: int, model: Page) -> bool:
        """Return whether nothing is at addr, or a page of the same kind."""
        there = self._held.covering(addr)
        return there is None or (
            (there.addr, there.size, there.explicit, there.came, there.part)
            == (addr, model.size, model.explicit, model.came, False)
        )

    def after(self, columns: Columns, rows: npt.NDArray[np.intp]) -> State:
        """Return the mm when pages have come by these rows of a batch."""
        model = self._model
        if not self._kept or model is None:
            return self._state
        held = self._held.put_each(_pages_like(model, columns, rows))
        if self._on_cdm:
            return replace(self._state, pages=held)
        return replace(self._state, ram=held)


class Taken:
    """Pages that go from an mm, one by one, as one went.

    state: of the mm after that; unit: its row.
    """

    def __init__(self, state: State, unit: Sequence[Event], terms: Terms) -> None:
        (event,) = unit
        self._state, self._event = state, event
        self._on_cdm = terms.is_cdm(event.src_node)
        self._held = state.pages if self._on_cdm else state.ram
        self._key = event.tid, event.call
        self._call = state.open.get(self._key) if event.call else None
        # What has gone outside of a call is kept for some time only.
        self._clear = not self._on_cdm or self._call is not None

    def alike(self, addresses: Sequence[int]) -> int:
        """Return how many of the first of these go as that one did."""
        if not self._clear:
            return 0
        return _leaving(self._held, addresses, self._event.size)

    def after(self, columns: Columns, rows: npt.NDArray[np.intp]) -> State:
        """Return the mm when pages have gone by these rows of a batch."""
        state, call = self._state, self._call
        there = self._held.small({*columns["addr"][rows].tolist()}, self._event.size)
        gone = (there or {}).values()
        held = self._held.drop_all(gone)
        if not self._on_cdm or call is None:
            return replace(state, ram=held)
        changed = _put_aside(call, gone, self._event)
        return replace(state, pages=held, open={**state.open, self._key: changed})


class Moved:
    """Pages of an mm that are moved to another node, one by one, as one was.

    state: of the mm after that; unit: its rows, the one among them that unmaps the page
    where that is told just before.
    """

    def __init__(self, state: State, unit: Sequence[Event], terms: Terms) -> None:
        event = unit[-1]
        self._state, self._event = state, event
        self._unmap = unit[0] if len(unit) > 1 else None
        self._from = self._held(terms.is_cdm(event.src_node))
        self._on_cdm = terms.is_cdm(event.node)
        self._to, self._kept = self._held(self._on_cdm), self._on_cdm or terms.all
        there = self._to.get(event.addr)
        self._model = there if there and there.event.seq == event.seq else None
        self._key = event.tid, event.call
        self._call = state.open.get(self._key) if event.call else None

    def _held(self, on_cdm: bool) -> PageMap:
        return self._state.pages if on_cdm else self._state.ram

    def alike(self, addresses: Sequence[int]) -> int:
        """Return how many of the first of these are moved as that one was."""
        state, event, places = self._state, self._event, {*addresses}
        if event.src_node in (NO_NODE, event.node) or len(places) < len(addresses):
            return 0
        if (self._kept and not self._model) or (event.call and not self._call):
            return 0
        if not state.limbo.free(places, event.size):
            return 0
        if self._unmap is None:
            free = state.pages.free(places, event.size)
            free = free and (not self._kept or self._to.free(places, event.size))
            return len(addresses) if free else 0
        if not (state.whole and self._from.small(places, event.size)):
            return 0
        same = self._from is self._to or not self._kept
        return len(addresses) if same or self._to.free(places, event.size) else 0

    def after(self, columns: Columns, rows: npt.NDArray[np.intp]) -> State:
        """Return the mm when pages have been moved by these rows of a batch."""
        state, call = self._state, self._call
        if self._unmap is not None:
            places = {*columns["addr"][rows].tolist()}
            gone = (self._from.small(places, self._event.size) or {}).values()
            if self._from is state.pages:
                state = replace(state, pages=state.pages.drop_all(gone))
                call = call and _put_aside(call, gone, self._unmap)
            else:
                state = replace(state, ram=state.ram.drop_all(gone))
        if self._kept and self._model:
            new = _pages_like(self._model, columns, rows)
            if self._on_cdm:
                state = replace(state, pages=state.pages.put_each(new))
                call = call and replace(call, arrived=call.arrived.put_each(new))
            else:
                state = replace(state, ram=state.ram.put_each(new))
        if call is None or call is self._call:
            return state
        return replace(state, open={**state.open, self._key: call})


CHANGES: Final[Mapping[int, type[Brought | Taken | Moved]]] = {
    EventKind.MAP: Brought,
    EventKind.UNMAP: Taken,
    EventKind.MIGRATE: Moved,
}
"""Kind of the last row of a unit -> what it does."""


def _pages_like(
    model: Page, columns: Columns, rows: npt.NDArray[np.intp]
) -> list[Page]:
    """Return the pages that rows bring as one has brought a page."""
    # As the model has the row of the one, which it may have corrected.
    varying = {name: columns[name][rows].tolist() for name in _VARYING}
    events = map(
        Event,
        *(
            varying.get(name, repeat(getattr(model.event, name)))
            for name in Event.__struct_fields__
        ),
    )
    return [
        Page(
            addr=event.addr,
            size=model.size,
            node=model.node,
            how=model.how,
            explicit=model.explicit,
            event=event,
        )
        for event in events
    ]


def _put_aside(call: Open, gone: Collection[Page], event: Event) -> Open:
    """Return a call that has unmapped pages. event: how it has one of them."""
    call = replace(call, limbo=call.limbo.put_each(gone))
    if event.lock_exit & 15 == Lock.WRITE_SELF:
        return call
    return replace(call, unlocked=call.unlocked.put_each(gone))


def _leaving(held: PageMap, addresses: Sequence[int], size: int) -> int:
    """Return at how many of the first of these is a base page that can go."""
    places = {*addresses}
    if len(places) == len(addresses) and held.small(places, size):
        return len(addresses)
    left = {*places}

    def there(addr: int) -> bool:
        again = addr not in left
        left.discard(addr)
        return not again and bool(held.small({addr}, size))

    return _leading(addresses, there)


def _leading(addresses: Iterable[int], alike: Callable[[int], bool]) -> int:
    """Return how many of the first addresses are alike."""
    return sum(1 for _ in takewhile(alike, addresses))


def still(before: State, after: State, unit: Sequence[Event]) -> bool:
    """Return whether a unit has changed nothing but the page that it is about, and what
    shows the VMA last, so that the next one finds all else as this one did.
    """
    event = unit[-1]
    return (
        all(getattr(before, name) is getattr(after, name) for name in _SAME)
        and all(getattr(before, name) == getattr(after, name) for name in _EQUAL)
        and event.tid not in after.tagging
        and _maps_still(before, after, event)
        and _calls_still(before, after, unit)
        and _areas_still(before.areas, after.areas, event, after.pages.get(event.addr))
    )


def _maps_still(before: State, after: State, event: Event) -> bool:
    """Return whether what tasks have mapped last is the same, but for this one's."""
    was, now = dict(before.last), dict(after.last)
    mine = was.pop(event.tid, None), now.pop(event.tid, None)
    if event.kind == EventKind.MAP:
        return was == now and None not in mine
    return was == now and mine == (None, None)


_OF_CALLS: Final[Mapping[int, frozenset[str]]] = {
    EventKind.ALLOC: frozenset({"alloc"}),
    EventKind.UNMAP: frozenset({"limbo", "unlocked"}),
    EventKind.MIGRATE: frozenset({"arrived"}),
}
"""Kind of a row -> what of its call it may change by the page that it is about."""


def _calls_still(before: State, after: State, unit: Sequence[Event]) -> bool:
    """Return whether the same calls are open, and know the same, but for pages that
    this one has unmapped or moved, and what it has allocated for the page that it has
    mapped.
    """
    if before.open.keys() != after.open.keys():
        return False
    event = unit[-1]
    changed = {name for row in unit for name in _OF_CALLS.get(row.kind, ())}
    kept = [one for one in Open.__struct_fields__ if one not in changed]
    for key, was in before.open.items():
        now = after.open[key]
        if now is was:
            continue
        if key != (event.tid, event.call):
            return False
        if any(getattr(now, name) is not getattr(was, name) for name in kept):
            return False
    return True


def _areas_still(
    before: tuple[Area, ...], after: tuple[Area, ...], event: Event, page: Page | None
) -> bool:
    """Return whether all areas are the same but for which row showed one last, or, of
    pages that were asked for, which is the last that gave its tag a reason.
    """
    if len(before) != len(after):
        return False
    for was, now in zip(before, after, strict=True):
        if was is now:
            continue
        if (now.start, now.end) != (event.start, event.end):
            return False
        shown = {"seen": now.seen, "seen_ts": now.seen_ts}
        if page is not None and now.justified is page.event:
            shown["justified"] = now.justified
        if replace(was, **shown) != now:
            return False
    return True
