"""Rows about pages of one VMA, and address spaces that hold some."""

from __future__ import annotations

from typing import Any

from msgspec.structs import replace

from cdmtrace.analysis.frames import Event, Terms
from cdmtrace.analysis.pages import Page, PageMap
from cdmtrace.analysis.state import Area, Policy, State
from cdmtrace.events import EventKind, Mpol

TAG, PLAIN, CDM, PAGE = 1 << 38, 0x100073, 1 << 1, 4096
BIG = 4 * PAGE
BASE = 0x100040000000
TERMS = Terms(cdm=CDM, tag=TAG)
EVERYTHING = replace(TERMS, all=True)
BOUND = Policy(byte=Mpol.BIND, nodes=CDM)
NO_POLICY = Policy(byte=Mpol.DEFAULT, nodes=0)


def at(number: int) -> int:
    return BASE + number * PAGE


def row(seq: int, kind: EventKind, number: int = 0, **columns: Any) -> Event:
    """A row about a page of the CDM node in the VMA of pages [0, 16)."""
    given: dict[str, Any] = {
        "ts": 1000 * seq,
        "ts_entry": 1000 * seq - 500,
        "tid": 7,
        "start": BASE,
        "end": at(16),
        "addr": at(number),
        "size": PAGE,
        "node": 1,
        "flags_before": PLAIN,
        "flags_after": PLAIN,
    }
    return Event(seq=seq, kind=kind, **{**given, **columns})


def area(first: int = 0, last: int = 16, **known: Any) -> Area:
    given = {
        "flags": PLAIN,
        "policy": NO_POLICY,
        "seen": row(1, EventKind.VMA_NEW),
        "seen_ts": 1000,
        "since": 0,
    } | known
    return Area(start=at(first), end=at(last), **given)


def page(number: int = 0, seq: int = 2, **known: Any) -> Page:
    given = {"size": PAGE, "node": 1, "how": "fault", "explicit": False} | known
    return Page(addr=at(number), event=row(seq, EventKind.MAP, number), **given)


def mm(*pages: Page, ram: tuple[Page, ...] = (), **known: Any) -> State:
    """A whole address space of one VMA with these pages."""
    return State(
        pages=PageMap().put_all(pages),
        ram=PageMap().put_all(ram),
        **{"areas": (area(),), "whole": True, **known},
    )


def pages(state: State) -> list[Page]:
    return list(state.pages.within(0, 1 << 64))


def places(held: PageMap) -> list[int]:
    """The numbers of the pages in a map."""
    return [(one.addr - BASE) // PAGE for one in held.within(0, 1 << 64)]
