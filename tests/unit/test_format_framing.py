"""Messages are measured before they are read: one field broken at a time."""

from __future__ import annotations

import struct

import pyarrow as pa
import pytest

from cdmtrace.format.framing import (
    BATCH_MESSAGE,
    SCHEMA_MESSAGE,
    Frame,
    FrameError,
)
from cdmtrace.format.framing import frame_at as frame_in

ROWS = 1009


def two_messages() -> tuple[bytes, int]:
    """Return a schema and a batch of ROWS rows, and where the batch begins."""
    values = pa.py_buffer(bytes(8 * ROWS))
    column = pa.Array.from_buffers(pa.uint64(), ROWS, [None, values])
    batch = pa.record_batch([column], ["seq"])
    schema = batch.schema.serialize().to_pybytes()
    return schema + batch.serialize().to_pybytes(), len(schema)


DATA, START = two_messages()
METADATA = struct.unpack_from("<i", DATA, START + 4)[0]


def frame_at(data: memoryview, start: int) -> Frame:
    return frame_in(lambda at, n: bytes(data[at : at + n]), len(data), start)


def broken(at: int, kind: str, value: int) -> memoryview:
    data = bytearray(DATA)
    struct.pack_into(kind, data, at, value)
    return memoryview(data)


def places(kind: str, value: int) -> list[int]:
    """Where in the batch's metadata that number stands."""
    width = struct.calcsize(kind)
    return [
        at
        for at in range(START + 8, START + 8 + METADATA - width + 1)
        if struct.unpack_from(kind, DATA, at)[0] == value
    ]


def test_schema() -> None:
    want = Frame(kind=SCHEMA_MESSAGE, start=0, end=START, rows=0)
    assert frame_at(memoryview(DATA), 0) == want


def test_batch() -> None:
    want = Frame(kind=BATCH_MESSAGE, start=START, end=len(DATA), rows=ROWS)
    assert frame_at(memoryview(DATA), START) == want


def test_end_of_stream() -> None:
    data = memoryview(b"\xff\xff\xff\xff\0\0\0\0more")
    assert frame_at(data, 0) == Frame(kind=0, start=0, end=8, rows=0)


def test_no_message() -> None:
    with pytest.raises(FrameError, match="no message begins with 0x00000017"):
        frame_at(broken(START, "<I", 23), START)


@pytest.mark.parametrize("rows", [-1, 8 * ROWS + 1, 1 << 62])
def test_rows_that_do_not_fit_the_body(rows: int) -> None:
    said = set()
    for at in places("<q", ROWS):
        try:
            frame_at(broken(at, "<q", rows), START)
        except FrameError as error:
            said.add(str(error))
    assert said == {f"{rows} rows in {8 * ROWS} bytes is damage"}


def test_kind_that_nobody_wrote() -> None:
    said = set()
    for at in places("<B", BATCH_MESSAGE):
        try:
            frame_at(broken(at, "<B", 4), START)
        except FrameError as error:
            said.add(str(error))
    assert "a message of kind 4 is none of ours" in said


def test_table_that_begins_before_the_first_byte() -> None:
    """Python would count a negative offset from the end."""
    root = START + 8 + struct.unpack_from("<I", DATA, START + 8)[0]
    # The vtable is at the table less this number.
    far = root - START + METADATA // 2
    with pytest.raises(FrameError, match="its metadata is damaged"):
        frame_at(broken(root, "<i", far), START)


@pytest.mark.parametrize("root", [METADATA - 2, METADATA, 1 << 30, 0xFFFFFFFF])
def test_root_beyond_the_last_byte(root: int) -> None:
    with pytest.raises(FrameError, match="its metadata is damaged"):
        frame_at(broken(START + 8, "<I", root), START)
