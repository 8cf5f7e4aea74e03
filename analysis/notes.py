"""What a step of the model gives the rules to judge."""

from __future__ import annotations

from typing import Literal

import msgspec

from cdmtrace.analysis.frames import Event
from cdmtrace.analysis.pages import Page, PageMap
from cdmtrace.analysis.profiles import Demand, Facts
from cdmtrace.analysis.state import Area


class FlagsChanged(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """vm_flags of an attached VMA differ between entry and return of a row.

    Or they were seen to be written (WRITE), be it the same value. explained: an
    overlapping row has shown the same change before; None: another task may have made
    it that has a call open. raced: another task's change of the same VMA, the last that
    was under way at the same time. lost: a change of another task that was under way
    meanwhile, and bits that it had set and that this row shows to be gone, though no
    row has cleared them.
    """

    event: Event
    explained: bool | None
    raced: Event | None = None
    lost: tuple[Event, int] | None = None


class Arrived(msgspec.Struct, frozen=True, kw_only=True, gc=False):
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


class Left(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A page of a CDM node is no longer mapped; page: None if it was not known."""

    event: Event
    page: Page | None


class Settled(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A VMA has settled: nothing that has to do with it is under way.

    area: as it was found, its rise and standing those before the judgement.
    standing: the new one. page: the page that the demand leans on, or the one
    that is there without a tag, where that is new. event: the row at which it settled.
    beside: its neighbours of the same policy, where both are anonymous memory.
    due: the row since which it has to be tagged, None if it has not to be. held: the
    pages of its mm.
    """

    event: Event
    area: Area
    facts: Facts
    demand: Demand
    standing: str
    page: Page | None
    since: int
    beside: tuple[Area, ...] = ()
    due: Event | None = None
    held: PageMap = PageMap()


class OverTag(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Tagged after mbind(), untagged before, and not in its range."""

    area: Area
    before: Area


class MbindEnded(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """An mbind() that named CDM nodes returned; over: what it tagged beside."""

    event: Event
    over: tuple[OverTag, ...]


class CallFailed(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A system call that was to change VMAs failed.

    retagged: VMAs as they were before and are now, of which the tag is another and the
    policy is not.
    """

    event: Event
    retagged: tuple[tuple[Area, Area], ...]


class FaultEnded(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A fault is over in which an allocation set a tag, or an allocation has set one
    that was for no VMA of an address space.

    alloc: that allocation. count: how many there were in all, for the same address.
    mapped: a page of a CDM node was mapped for them in the VMA. event: the row that
    shows that it is over. area: the VMA that faults, None if it is not known.
    """

    event: Event
    alloc: Event
    count: int
    mapped: bool
    area: Area | None

    @property
    def outside(self) -> bool:
        """Whether the VMA that was tagged is in no address space."""
        return self.alloc is self.event


class Serviced(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """KSM or NUMA balancing worked on a VMA, or a page of it.

    near: a tagged VMA is in the same address space.
    """

    event: Event
    near: bool


Way = Literal["came", "left", "stayed"]
"""A service brought a page to a node, took it away, or worked on it where it is."""


class Served(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A service of the kernel touched pages of a CDM node (touched.py).

    service: which, None where nobody knows who it was. way, size: what became of the
    pages, and bytes of them. allowed: it may; permitted: all that may on that node.
    since: the time (ns) from which on the row leans on what the model knows of the
    pages, None where it says it all itself.
    """

    event: Event
    service: str | None
    node: int
    way: Way
    size: int
    allowed: bool
    permitted: tuple[str, ...]
    since: int | None = None


class Advised(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """madvise() asked KSM to have a VMA, or to leave it. event: its KSM_ADVICE row."""

    event: Event


class Began(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """The recording began. event: its first row."""

    event: Event


Note = (
    FlagsChanged
    | Arrived
    | Left
    | Settled
    | MbindEnded
    | CallFailed
    | FaultEnded
    | Serviced
    | Served
    | Advised
    | Began
)
Notes = tuple[Note, ...]
