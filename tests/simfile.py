"""A simulated recording as a trace file."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from cdmtrace.analysis.frames import Trace
from cdmtrace.events import COMM_LEN, EVENT_DTYPE, EventKind, Events, Probe
from cdmtrace.format.schema import Header, ProbeEntry, Shortfall
from cdmtrace.format.writer import TraceWriter


def rows_of(trace: Trace) -> Events:
    """Return its events as they come out of the ring."""
    assert EVENT_DTYPE.names
    rows: Events = np.zeros(trace.count, EVENT_DTYPE)
    for at, event in enumerate(trace.events):
        for name in EVENT_DTYPE.names:
            rows[at][name] = getattr(event, name)
        if event.kind == EventKind.COMM:
            text = (event.payload or b"").ljust(COMM_LEN, b"\0")
            rows[at]["nodes"] = int.from_bytes(text[:8], "little")
            rows[at]["other"] = int.from_bytes(text[8:], "little")
    return rows


def header_of(trace: Trace) -> Header:
    """Return the header of the file that it is written to."""
    terms = trace.terms
    return Header(
        tool="test",
        kernel_release=terms.kernel,
        kernel_build="",
        machine="x86_64",
        boot_id="",
        started=terms.started,
        utc_offset=0,
        page_size=terms.page,
        ring_size=0,
        filters={"all": True} if terms.all else {},
        cdm_nodes=terms.nodes,
        cdm_nodes_from="test",
        vm_cdm_mask=terms.tag,
        vm_cdm_mask_from="test",
        extra={"stacks_of": ["departures"]} if terms.departures else {},
        probes=tuple(
            ProbeEntry(id=Probe[name.upper()], name=name, symbol=symbol, kind="kprobe")
            for name, symbol in terms.probes.items()
        ),
    )


def save(trace: Trace, path: Path, *, end: bool = True) -> Path:
    """Write it; end: as a recorder that was not killed."""
    rows = rows_of(trace)
    with TraceWriter(path, header_of(trace)) as writer:
        half = trace.count // 2
        # Names of tasks are in the columns of their rows; the writer moves them.
        payloads = [
            None if event.kind == EventKind.COMM else event.payload
            for event in trace.events
        ]
        writer.write(rows[:half], payloads=payloads[:half])
        lost = [
            Shortfall(
                probe=gap.probe,
                reason=gap.reason,
                count=gap.count,
                mm=gap.mm,
                start=gap.start,
                end=gap.end,
            )
            for gap in trace.gaps
        ]
        now = int(rows["ts"].max()) if trace.count else 0
        writer.write(
            rows[half:], payloads=payloads[half:], lost=lost, window=(now, now)
        )
        if end:
            writer.end("test")
    return path
