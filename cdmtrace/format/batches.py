"""Events as batches of the trace file, made in memory that is kept.

To fill fresh memory costs more than the copying itself, for the kernel has to bring and
to clear every page of it: 240 ns an event for the columns, where these take 30
(benchmarks/drain.py has the sum).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from cdmtrace.events import EVENT_DTYPE, EventKind, Events, comm_bytes
from cdmtrace.format.framing import MAX_BODY
from cdmtrace.format.schema import SCHEMA, Mark, mark_metadata

if TYPE_CHECKING:
    from collections.abc import Sequence

_SCHEMA_BYTES: Final = SCHEMA.serialize().size

MAX_PAYLOADS: Final = MAX_BODY - (256 << 20)
"""Bytes of payloads that a batch may have: what is larger is not read back."""

_FRAME_BYTES: Final = 1 << 16
"""Bytes of a message, at most, besides its columns and the values of its metadata."""


class Batches:
    """Makes one message after the other. Not for use by two threads."""

    def __init__(self) -> None:
        self._rows = 0
        self._columns: dict[str, npt.NDArray[Any]] = {}
        self._message = memoryview(b"")

    def record_batch(
        self, events: Events, payloads: Sequence[bytes | None] | None, first_seq: int
    ) -> pa.RecordBatch:
        """Return events as columns, numbered from first_seq; valid until the next call.

        events: dtype EVENT_DTYPE. payloads: one per row, for the kinds that have one;
        the names in COMM rows are taken from the rows themselves.
        """
        rows = len(events)
        self._make_room(rows)
        columns = {name: column[:rows] for name, column in self._columns.items()}
        for name in events.dtype.names or ():
            columns[name][:] = events[name]
        columns["seq"][:] = np.arange(first_seq, first_seq + rows, dtype=np.uint64)
        names = np.flatnonzero(columns["kind"] == EventKind.COMM)
        if len(names):
            payloads = list(payloads) if payloads is not None else [None] * rows
            for row in names.tolist():
                if payloads[row] is None:
                    payloads[row] = comm_bytes(events[row])
            columns["nodes"][names] = 0
            columns["other"][names] = 0
        binary = (
            pa.nulls(rows, pa.binary())
            if payloads is None
            else _binary_column(payloads)
        )
        return pa.record_batch(
            [
                binary if name == "payload" else _column(columns[name])
                for name in SCHEMA.names
            ],
            schema=SCHEMA,
        )

    def message(self, batch: pa.RecordBatch, mark: Mark) -> memoryview:
        """Return the bytes of batch in the stream, with the stream's end if it is last.

        They are valid until the next call. pyarrow has no call for one batch with
        metadata. So this makes a stream of its own of it and leaves out what such a
        stream begins with.
        """
        metadata = mark_metadata(mark, batch)
        size = batch.nbytes + _FRAME_BYTES + sum(map(len, metadata.values()))
        if len(self._message) < size:
            self._message = memoryview(bytearray(size))
        sink = pa.FixedSizeBufferWriter(pa.py_buffer(self._message))
        stream = pa.ipc.new_stream(sink, SCHEMA)
        stream.write_batch(batch, custom_metadata=metadata)
        if mark.end is not None:
            stream.close()
        return self._message[_SCHEMA_BYTES : sink.tell()]

    def _make_room(self, rows: int) -> None:
        if rows <= self._rows and self._columns:
            return
        self._rows = 1 << max(rows - 1, 0).bit_length()
        self._columns = {
            name: np.empty(self._rows, EVENT_DTYPE[name])
            for name in EVENT_DTYPE.names or ()
        }
        self._columns["seq"] = np.empty(self._rows, np.uint64)


def _column(values: npt.NDArray[Any]) -> pa.Array:
    """Return values as a column; see column_values() for why not pa.array()."""
    return pa.Array.from_buffers(
        pa.from_numpy_dtype(values.dtype), len(values), [None, pa.py_buffer(values)]
    )


def _binary_column(values: Sequence[bytes | None]) -> pa.Array:
    offsets = np.zeros(len(values) + 1, np.int64)
    offsets[1:] = np.cumsum([len(value or b"") for value in values], dtype=np.int64)
    if offsets[-1] > MAX_PAYLOADS:
        raise ValueError(f"{offsets[-1]} bytes of payloads in one batch")
    valid = np.packbits(
        np.array([value is not None for value in values], bool), bitorder="little"
    )
    data = b"".join(value for value in values if value is not None)
    parts = valid, offsets.astype(np.int32), data
    return pa.Array.from_buffers(
        pa.binary(), len(values), list(map(pa.py_buffer, parts))
    )
