"""Recordings to replay in more than one way, and what has to be the same each time."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

from msgspec.structs import replace
from simfile import save

from cdmtrace.analysis import Gap, Trace, load, status
from cdmtrace.analysis.frames import Event
from cdmtrace.analysis.result import Result

GOLDEN = sorted((Path(__file__).parent / "golden").glob("*.arrows"))
SCRATCH = tempfile.TemporaryDirectory()
PROFILES = ["intended", "rfc-v2", "np"]


def summed(result: Result) -> dict[str, object]:
    return {
        "verdict": status.verdict(result, named=False),
        "rules": result.rules,
        "findings": result.findings,
        "lives": [(life.mm, life.state) for life in result.lives],
        "audit": result.audit,
        "services": result.services,
        "shadow": result.shadow,
    }


def as_read(trace: Trace, rows: list[Event]) -> Trace:
    """Return the trace with these rows, in a file that it is read from until the next
    one is asked for."""
    path = Path(SCRATCH.name) / "it.arrows"
    path.unlink(missing_ok=True)
    return load(save(replace(trace, events=tuple(rows), count=len(rows)), path))


def with_losses(trace: Trace, apart: int) -> Iterator[Trace]:
    """Yield the trace with a loss at one place after the other, so many rows apart."""
    rows = list(trace.events)
    for at in range(5, len(rows), apart):
        lost = Gap(
            probe="rmap_add",
            reason="ring",
            count=3,
            since=rows[at - 5].ts,
            until=rows[at].ts,
        )
        yield replace(trace, gaps=(lost,))
