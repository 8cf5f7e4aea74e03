"""What a step of the model gives the rules to judge."""

from __future__ import annotations

from dataclasses import dataclass

from cdmtrace.analysis.frames import Event
from cdmtrace.analysis.pages import Page
from cdmtrace.analysis.profiles import Demand, Facts
from cdmtrace.analysis.state import Area


@dataclass(frozen=True, kw_only=True, slots=True)
class FlagsChanged:
    """vm_flags of an attached VMA differ between entry and return of a row.

    explained: an overlapping row has shown the same change before.
    """

    event: Event
    explained: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Arrived:
    """A page of a CDM node was mapped.

    named: the VMA's own policy names its node; None: not known. asked: an explicit
    request named the node; None: not known. here: it was allocated for this VMA.
    """

    event: Event
    page: Page
    named: bool | None
    asked: bool | None
    here: bool
    alloc: Event | None
    task_policy: Event | None
    call: Event | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Left:
    """A page of a CDM node is no longer mapped; page: None if it was not known."""

    event: Event
    page: Page | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Settled:
    """A VMA has settled: nothing that has to do with it is under way.

    area: as it was found, its rise and standing those before the judgement.
    standing: the new one. page: the page that the demand leans on, or the one
    that is there without a tag. event: the row at which it settled.
    """

    event: Event
    area: Area
    facts: Facts
    demand: Demand
    standing: str
    page: Page | None
    since: int


@dataclass(frozen=True, kw_only=True, slots=True)
class OverTag:
    """Tagged after mbind(), untagged before, and not in its range."""

    area: Area
    before: Area


@dataclass(frozen=True, kw_only=True, slots=True)
class MbindEnded:
    """An mbind() that named CDM nodes returned; over: what it tagged beside."""

    event: Event
    over: tuple[OverTag, ...]


Note = FlagsChanged | Arrived | Left | Settled | MbindEnded
Notes = tuple[Note, ...]
