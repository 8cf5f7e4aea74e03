"""What the probes could not deliver: events that were lost, calls that never ended.

BPF only ever adds to its counters of losses. What is fresh since the last look is
the difference of two looks.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np

from cdmtrace.events import (
    EVENT_DTYPE,
    NO_NODE,
    EventKind,
    Events,
    Lost,
    Probe,
)
from cdmtrace.format.schema import ANYWHERE, Shortfall


class Where(NamedTuple):
    """Which counter: enum cdm_probe, enum cdm_lost, and id of the mm (0: any)."""

    probe: int
    reason: int
    mm: int = 0


@dataclass(frozen=True, slots=True)
class Missing:
    """A counter since the start, and the addresses that all of it lies in."""

    count: int
    start: int = 0
    end: int = ANYWHERE


Losses = Mapping[Where, Missing]

_PROBES = {int(probe): probe.name.lower() for probe in Probe}


def fresh(now: Losses, before: Losses) -> tuple[Shortfall, ...]:
    """Return what was lost between two looks, under the names of the trace file.

    A probe that has no name here is called by its number.
    """
    return tuple(
        Shortfall(
            probe=_PROBES.get(where.probe, str(where.probe)),
            reason=Lost(where.reason).name.lower(),
            count=missing.count - old,
            mm=where.mm,
            start=missing.start,
            end=missing.end,
        )
        for where, missing in sorted(now.items())
        if missing.count > (old := before[where].count if where in before else 0)
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Waiting:
    """What has begun and not returned.

    probe: enum cdm_probe. call: number of the system call, as in a record; 0: it is
    a function, of which the rest says nothing. concerns: it has to do with CDM, so
    that a record of it would have been made. ts: of its entry, ns, CLOCK_MONOTONIC.
    mm: id. policy, nodes: asked for. args: as they were given.
    """

    probe: int
    call: int
    concerns: bool
    ts: int = 0
    pid: int = 0
    tid: int = 0
    mm: int = 0
    policy: int = 0
    nodes: int = 0
    args: tuple[int, ...] = ()


_WITHOUT_RANGE: Final = frozenset(
    {Probe.SYS_SET_MEMPOLICY, Probe.SYS_MIGRATE_PAGES, Probe.SYS_MOVE_PAGES}
)
_FLAGS_AT: Final = {
    Probe.SYS_MBIND: 5,
    Probe.SYS_MOVE_PAGES: 5,
    Probe.SYS_MADVISE: 2,
    Probe.SYS_MPROTECT: 2,
    Probe.SYS_MMAP: 3,
    Probe.SYS_MREMAP: 3,
}
"""Which argument call_fill() of bpf/calls.bpf.c takes as the column arg."""


def open_calls(waiting: Sequence[Waiting], now: int) -> Events:
    """Return one CALL_OPEN row for each system call, by time of entry.

    now: ns, CLOCK_MONOTONIC, when they were seen to be open.
    """
    rows: Events = np.zeros(len(waiting), EVENT_DTYPE)
    page = os.sysconf("SC_PAGE_SIZE")
    for row, call in zip(rows, sorted(waiting, key=lambda w: w.ts), strict=True):
        row["kind"], row["probe"] = EventKind.CALL_OPEN, call.probe
        row["ts"], row["ts_entry"] = now, call.ts
        row["pid"], row["tid"], row["call"] = call.pid, call.tid, call.call
        row["mm"], row["other"], row["other_policy"] = call.mm, call.nodes, call.policy
        row["node"] = row["src_node"] = NO_NODE
        if call.probe not in _WITHOUT_RANGE:
            addr, size = call.args[0], call.args[1]
            row["addr"], row["size"] = addr, size
            row["start"] = addr // page * page
            row["end"] = -(-(addr + size) // page) * page & (1 << 64) - 1
        if call.probe in _FLAGS_AT:
            row["arg"] = call.args[_FLAGS_AT[Probe(call.probe)]] & 0xFFFF
    return rows
