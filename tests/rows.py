"""Rows of one task about one address space, fed to the model one by one."""

from __future__ import annotations

from msgspec.structs import replace

from cdmtrace.analysis.frames import Event, Terms
from cdmtrace.analysis.model import step
from cdmtrace.analysis.notes import Note
from cdmtrace.analysis.profiles import PROFILES
from cdmtrace.analysis.state import Area, State
from cdmtrace.events import EventKind, Lock, Mpol, Probe

TAG = 1 << 38
PLAIN, READ_ONLY, LOCKED = 0x100073, 0x100071, 0x102073
CDM = 1 << 1
PAGE = 4096
BASE = 0x100040000000
TERMS = Terms(cdm=CDM, tag=TAG, probes={"move_page_tables": "move_page_tables"})
EAGAIN, ENOMEM = 11, 12


class Rows:
    """Rows of one task, one after the other, and the state of its mm after each."""

    def __init__(self) -> None:
        self.state = State(whole=True)
        self.terms = TERMS
        self.events: list[Event] = []
        self.notes: list[Note] = []
        self.call = 0

    def row(
        self,
        kind: EventKind,
        first: int = 0,
        last: int = 0,
        *,
        flags: int = PLAIN,
        before: int | None = None,
        bound: bool = False,
        lock: Lock = Lock.WRITE_SELF,
        took: int = 1,
        **more: int,
    ) -> Event:
        """Feed a row about the VMA of pages [first, last)."""
        seq = len(self.events) + 1
        event = Event(
            seq=seq,
            ts=1000 * seq,
            ts_entry=1000 * seq - took,
            kind=kind,
            mm=1,
            pid=7,
            tid=7,
            call=self.call,
            start=BASE + first * PAGE,
            end=BASE + last * PAGE,
            flags_before=flags if before is None else before,
            flags_after=flags,
            policy=Mpol.BIND if bound else Mpol.DEFAULT,
            nodes=CDM if bound else 0,
            lock_entry=lock,
            lock_exit=lock,
        )
        return self.feed(replace(event, **more))

    def feed(self, event: Event) -> Event:
        self.events.append(event)
        self.state, notes = step(self.state, event, self.terms, PROFILES["intended"])
        self.notes += notes
        return event

    def bind(self, first: int, last: int) -> Event:
        """mbind() tags a VMA that is there."""
        self.row(EventKind.VMA_SEEN, first, last)
        size = (last - first) * PAGE
        return self.row(
            EventKind.POLICY,
            *(first, last),
            flags=PLAIN | TAG,
            before=PLAIN,
            bound=True,
            addr=BASE + first * PAGE,
            size=size,
            other_policy=Mpol.DEFAULT,
        )

    def returns(self, probe: Probe, ret: int = 0, **more: int) -> Event:
        """The system call that the rows before were part of is over."""
        inside = sum(event.call == self.call for event in self.events)
        took = 1000 * inside + 500
        event = self.row(EventKind.CALL, probe=probe, ret=ret, took=took, **more)
        self.call = 0
        return event

    @property
    def areas(self) -> list[tuple[int, int, int | None]]:
        """First page, last page and flags of what the model holds."""
        return [
            ((area.start - BASE) // PAGE, (area.end - BASE) // PAGE, area.flags)
            for area in self.state.areas
        ]

    def area(self, page: int) -> Area:
        area = self.state.area(BASE + page * PAGE)
        assert area
        return area


def span(first: int, last: int) -> dict[str, int]:
    return {"addr": BASE + first * PAGE, "size": (last - first) * PAGE}


def page_row(
    rows: Rows, flags: int, number: int = 3, first: int = 0, last: int = 23
) -> None:
    """The page's own row, before its function returns."""
    rows.row(
        EventKind.MIGRATE,
        *(first, last),
        flags=flags,
        bound=True,
        lock=Lock.NONE,
        node=1,
        src_node=0,
        **span(number, number + 1),
    )


def other(rows: Rows, kind: EventKind, first: int, last: int, **more: int) -> Event:
    """Feed a row of another thread of the same process."""
    return rows.row(kind, first, last, **{"tid": 8, "call": 0, **more})
