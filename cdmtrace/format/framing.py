"""Where a message of an Arrow IPC stream begins and ends, before it is read.

pyarrow reads what it is given: with a damaged length or a compression mark
that nobody wrote it may allocate what a file claims. So each message is
looked at here first, with bounds checked, and only a message that lies wholly
in the file, uncompressed, of a size that its rows can explain and that the
recorder writes, is handed on.

Sources: Arrow's "Encapsulated message format" and format/Message.fbs (field
order), and the FlatBuffers internals page (tables and vtables).
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

MAX_METADATA: Final = 16 << 20
"""Bytes of a message's metadata beyond which it is taken for damage. A batch
needs 2 KiB, a header with all its tables some ten."""

MAX_BODY: Final = 1 << 30
"""Bytes of a message's body beyond which it is taken for damage: a file may have
holes, and so claim to be of any size. A batch has 8 MiB, but for long payloads."""

SCHEMA_MESSAGE: Final = 1
BATCH_MESSAGE: Final = 3

_CONTINUATION: Final = 0xFFFFFFFF
# Message.fbs, table Message: the order of its fields.
_HEADER_TYPE, _HEADER, _BODY_LENGTH = 1, 2, 3
# table RecordBatch.
_LENGTH, _COMPRESSION = 0, 3


class FrameError(Exception):
    """A message is not whole or not sane; the text says what is wrong."""


class FrameCut(FrameError):
    """The file ends before the message does: more of it may come."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Frame:
    """A message that lies wholly in the file.

    kind is SCHEMA_MESSAGE or BATCH_MESSAGE, 0 for the mark that ends a
    stream. start and end are offsets in the file; rows is 0 but for a batch.
    """

    kind: int
    start: int
    end: int
    rows: int


Read = Callable[[int, int], bytes]
"""Returns so many bytes from an offset on, both of them in the file; fewer or an
OSError where the file is not what it was."""


def frame_at(read: Read, size: int, start: int) -> Frame:
    """Return the message that begins at start, in a file of size bytes.

    Raises FrameError where the message is damaged or nothing that cdmtrace
    writes, FrameCut where it is cut.
    """
    if size - start < 8:
        raise FrameCut(f"{size - start} bytes are no message")
    mark, length = struct.unpack("<Ii", _exactly(read, start, 8))
    if mark != _CONTINUATION:
        raise FrameError(f"no message begins with {mark:#010x}")
    if length == 0:
        return Frame(kind=0, start=start, end=start + 8, rows=0)
    if not 0 < length <= MAX_METADATA or length % 8:
        raise FrameError(f"metadata of {length} bytes is damage")
    body = start + 8 + length
    if body > size:
        raise FrameCut("the file ends inside its metadata")
    metadata = memoryview(_exactly(read, start + 8, length))
    try:
        table = _Table.root(metadata)
        kind = table.number(_HEADER_TYPE, "<B")
        body_length = table.number(_BODY_LENGTH, "<q")
        header = table.table(_HEADER)
        rows = header.number(_LENGTH, "<q") if kind == BATCH_MESSAGE else 0
        compressed = kind == BATCH_MESSAGE and header.has(_COMPRESSION)
    except (struct.error, IndexError) as error:
        raise FrameError("its metadata is damaged") from error
    if kind not in (SCHEMA_MESSAGE, BATCH_MESSAGE):
        raise FrameError(f"a message of kind {kind} is none of ours")
    if compressed:
        raise FrameError("it claims to be compressed, which no trace is")
    if body_length < 0 or body_length % 8:
        raise FrameError(f"a body of {body_length} bytes is damage")
    if body + body_length > size:
        missing = body + body_length - size
        raise FrameCut(f"{missing:,} bytes of it are missing at the file's end")
    if body_length > MAX_BODY:
        raise FrameError(f"a body of {body_length} bytes is damage")
    if not 0 <= rows <= body_length:
        raise FrameError(f"{rows} rows in {body_length} bytes is damage")
    return Frame(kind=kind, start=start, end=body + body_length, rows=rows)


def _exactly(read: Read, at: int, count: int) -> bytes:
    try:
        data = read(at, count)
    except OSError as error:
        raise FrameError(f"it cannot be read: {error.strerror}") from error
    if len(data) != count:
        raise FrameCut("the file is shorter than it was")
    return data


@dataclass(frozen=True, slots=True)
class _Table:
    """A FlatBuffers table: data and the place in it where the table begins."""

    data: memoryview
    at: int

    @classmethod
    def root(cls, data: memoryview) -> _Table:
        return cls(data, struct.unpack_from("<I", data, 0)[0])

    def _place(self, field: int) -> int:
        """Return where the field's value is, 0 if the table has none."""
        vtable = self.at - int(struct.unpack_from("<i", self.data, self.at)[0])
        # Before the first byte, struct would count from the end.
        if vtable < 0:
            raise IndexError(vtable)
        size = struct.unpack_from("<H", self.data, vtable)[0]
        slot = 4 + 2 * field
        if slot + 2 > size:
            return 0
        offset = int(struct.unpack_from("<H", self.data, vtable + slot)[0])
        return self.at + offset if offset else 0

    def has(self, field: int) -> bool:
        return self._place(field) != 0

    def number(self, field: int, kind: str) -> int:
        place = self._place(field)
        return int(struct.unpack_from(kind, self.data, place)[0]) if place else 0

    def table(self, field: int) -> _Table:
        place = self._place(field)
        if not place:
            raise IndexError(field)
        return _Table(self.data, place + struct.unpack_from("<I", self.data, place)[0])
