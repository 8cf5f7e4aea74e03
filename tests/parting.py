"""Golden recordings in parts."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from unittest import mock

from mutations import GOLDEN, events_of

from cdmtrace.format import parts
from cdmtrace.format.parts import PartsWriter
from cdmtrace.format.reader import TraceReader

SIZE = 32 << 10


def split(name: str, folder: Path, size: int = SIZE) -> list[Path]:
    """Write a golden recording anew, in parts; return them."""
    now = [0]
    # Parts are begun in the time of the recording, and not in ours.
    clock = SimpleNamespace(monotonic_ns=lambda: now[0])
    with (
        mock.patch.object(parts, "time", clock),
        TraceReader(GOLDEN / f"{name}.arrows") as whole,
        PartsWriter(folder / "x.arrows", whole.header, size=size) as writer,
    ):
        for batch in whole:
            events = events_of(batch.columns)
            payloads = batch.columns.column("payload").to_pylist()
            lost, window = batch.losses, batch.mark.window
            for first in range(0, len(events) or 1, 23):
                rows = slice(first, first + 23)
                now[0] = int(events["ts"][rows].min(initial=1 << 62)) - 1
                writer.write(
                    events[rows], payloads=payloads[rows], lost=lost, window=window
                )
                lost, window = (), None
        writer.end("the command ended")
    return list(writer.files)
