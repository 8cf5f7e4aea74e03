"""What a recording is on a time axis: tracks, and slices, instants, counts on them."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field

Key = tuple[str | int, ...]
"""What a track or a flow is known by within a recording: the same in every export."""

Value = str | int
"""What an argument of a mark can be."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Track:
    """A track; comes before all that is on it.

    parent: the one that it is under. pid, tid: of the process or thread that it is; 0:
    it is neither. unit: what its counts are of; "": it has none. rank: its place among
    the tracks of its parent, the least first.
    """

    key: Key
    name: str
    parent: Key | None = None
    pid: int = 0
    tid: int = 0
    unit: str = ""
    rank: int = 0


class Edge(enum.Enum):
    """What a mark is of a slice."""

    BEGIN = "begin"
    END = "end"
    INSTANT = "instant"


@dataclass(frozen=True, kw_only=True, slots=True)
class Mark:
    """The begin or end of a slice, or an instant. ts: ns.

    flows: what it is a step of; ends: those of which it is the last step. An end has no
    name: it is that of the slice that began last on its track.
    """

    track: Key
    ts: int
    edge: Edge
    name: str = ""
    args: Mapping[str, Value] = field(default_factory=dict)
    flows: tuple[Key, ...] = ()
    ends: tuple[Key, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Count:
    """What a track counts from ts (ns) on."""

    track: Key
    ts: int
    value: int


Item = Track | Mark | Count


@dataclass(frozen=True, kw_only=True, slots=True)
class Clock:
    """The clock of all times: CLOCK_MONOTONIC. started, utc_offset: ns.

    started: a time at which it was utc_offset behind UTC.
    """

    started: int
    utc_offset: int
