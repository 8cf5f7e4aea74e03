"""Torn, damaged, foreign and newer files: one property broken at a time."""

from __future__ import annotations

import os
import struct
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from cdmtrace.errors import TraceFileError
from cdmtrace.events import EVENT_DTYPE, EventKind
from cdmtrace.format.reader import TraceInfo, TraceReader
from cdmtrace.format.schema import (
    CRC_KEY,
    HEADER_KEY,
    SCHEMA,
    Header,
    Mark,
    Shortfall,
    encode,
    mark_metadata,
)
from cdmtrace.format.writer import TraceWriter

# Without its enums, to keep the file small: it is cut at many a byte.
HEADER = Header(
    tool="0.1.0",
    kernel_release="6.1.0",
    kernel_build="#1",
    machine="x86_64",
    boot_id="0",
    started=1000,
    utc_offset=0,
    page_size=4096,
    ring_size=4096,
    cdm_nodes=(1,),
    cdm_nodes_from="sysfs",
    vm_cdm_mask=1 << 38,
    vm_cdm_mask_from="headers",
    enums={},
)
ROWS = (2, 0, 3)
"""Rows of each batch of SMALL; one more without rows ends it."""


def some_events(count: int, first_ts: int) -> np.ndarray:
    events = np.full(count, 0, EVENT_DTYPE)
    for name in EVENT_DTYPE.names or ():
        events[name] = np.arange(1, count + 1)
    events["ts"] = np.arange(first_ts, first_ts + count)
    events["kind"] = EventKind.ALLOC
    return events


SEVEN = Shortfall(probe="alloc", reason="ring", count=7)


EVERY_BYTE = bool(os.environ.get("CDMTRACE_EVERY_BYTE"))
STRIDE = 7
"""Without a factor of the 24 kinds of flips, nor of the 8 bytes of a word."""
NEAR = 16
"""Bytes about each end of a message, and of the file, that are always tried."""


class Small:
    """A small whole file: its bytes, and where each of its messages ends."""

    def __init__(self, folder: Path) -> None:
        path = folder / "small.arrows"
        with TraceWriter(path, HEADER) as writer:
            self.ends = [writer.size]
            for number, rows in enumerate(ROWS):
                events = some_events(rows, 2000 + 100 * number)
                payloads = [b"payload"] * rows if number == 2 else None
                lost = [SEVEN] if number == 1 else []
                window = (3000, 3001) if number == 1 else None
                writer.write(events, payloads=payloads, lost=lost, window=window)
                self.ends.append(writer.size)
            writer.end("done")
        self.data = path.read_bytes()
        self.ends.append(len(self.data) - 8)
        self.columns = [x.columns for x in TraceReader(path)]

    def batch(self, number: int) -> slice:
        """Where batch number lies."""
        return slice(self.ends[number], self.ends[number + 1])

    def places(self) -> list[int]:
        """Return which bytes are tried: a sample, unless all were asked for."""
        size = len(self.data)
        ends = (0, *self.ends, size)
        return [
            at
            for at in range(size)
            if EVERY_BYTE or at % STRIDE == 0 or min(abs(at - x) for x in ends) <= NEAR
        ]


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Small:
    return Small(tmp_path_factory.mktemp("small"))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "t.arrows"


def read(path: Path) -> tuple[list[pa.RecordBatch], TraceInfo]:
    with TraceReader(path) as reader:
        return [batch.columns for batch in reader], reader.info


def expect(path: Path, data: bytes, small: Small, whole: int) -> TraceInfo:
    """Read data: the first whole batches of small, and not one row more."""
    path.write_bytes(data)
    batches, info = read(path)
    assert len(batches) == info.batches == whole
    for got, want in zip(batches, small.columns, strict=False):
        assert got.equals(want)
    assert info.events == sum((*ROWS, 0)[:whole])
    assert info.bytes_total == len(data)
    return info


def refused(path: Path, data: bytes, message: str) -> TraceFileError:
    path.write_bytes(data)
    with pytest.raises(TraceFileError) as caught:
        TraceReader(path)
    assert caught.value.message.startswith(f"{path}: {message}")
    assert caught.value.hint
    return caught.value


def test_whole(small: Small, path: Path) -> None:
    info = expect(path, small.data, small, 4)
    assert (info.torn, info.clean_end, info.end) == (None, True, "done")
    assert info.bytes_intact == info.bytes_total
    assert (info.first_ts, info.last_ts) == (2000, 2202)


def test_cut_anywhere(small: Small, path: Path) -> None:
    """Always the whole batches before the cut, always said so, never an error."""
    path.write_bytes(small.data)
    for size in reversed(small.places()):
        os.truncate(path, size)
        if size < small.ends[0]:
            with pytest.raises(TraceFileError, match=r"is empty|in its header"):
                TraceReader(path)
            continue
        with TraceReader(path) as reader:
            batches, info = [x.columns for x in reader], reader.info
        whole = sum(end <= size for end in small.ends) - 1
        assert len(batches) == info.batches == whole, size
        assert all(a.equals(b) for a, b in zip(batches, small.columns, strict=False))
        assert info.clean_end == (whole == 4)
        assert (info.torn is None) == (whole == 4)
        assert info.bytes_intact == (size if whole == 4 else small.ends[whole])
        if whole == 3:
            assert info.last_ts == 2202


def test_flip_anywhere(small: Small, path: Path) -> None:
    """Found, or in bytes that mean nothing: never a wrong value, never an error."""
    path.write_bytes(small.data)
    unseen, places = 0, small.places()
    with path.open("r+b", buffering=0) as file:
        for at in places:
            byte = small.data[at]
            # All bits at once make the large and the negative lengths.
            flip = 0xFF if at % 3 == 0 else 1 << at % 8
            os.pwrite(file.fileno(), bytes([byte ^ flip]), at)
            unseen += flipped(path, small, at)
            os.pwrite(file.fileno(), bytes([byte]), at)
    # Padding, and fields of Arrow's that no reader looks at.
    assert unseen < len(places) * 0.4


def flipped(path: Path, small: Small, at: int) -> bool:
    """Read a file whose byte at was changed; return whether nobody noticed."""
    try:
        batches, info = read(path)
    except TraceFileError:
        assert at < small.ends[0], at
        return False
    assert all(a.equals(b) for a, b in zip(batches, small.columns, strict=False)), at
    if len(batches) == 4:
        return info.torn is None
    assert info.torn is not None
    # Not after the batch that is torn; and before it only in what tells where
    # messages end and how bytes are ordered.
    assert at < small.ends[len(batches) + 1], at
    return False


@pytest.mark.parametrize("batch", [0, 2])
def test_zeros_from_every_eighth_byte_on(small: Small, path: Path, batch: int) -> None:
    """What a file system leaves of a file after the power failed."""
    where = small.batch(batch)
    # The last bytes are padding, zeros already.
    last = len(small.data[: where.stop].rstrip(b"\0"))
    for at in range(where.start, last, 8):
        zeros = small.data[:at] + bytes(len(small.data) - at)
        info = expect(path, zeros, small, batch)
        assert info.torn is not None
        assert info.torn.startswith(f"batch {batch} at byte {where.start}: ")
        assert info.bytes_intact == where.start


def test_a_page_of_zeros_inside(path: Path, tmp_path: Path) -> None:
    """The sentinel alone would not see it: seq, at the end, is intact."""
    with TraceWriter(path, HEADER) as writer:
        start = writer.size
        writer.write(some_events(1009, 2000))
        end = writer.size
        writer.end("done")
    data = bytearray(path.read_bytes())
    middle = (start + end) // 2
    data[middle : middle + 4096] = bytes(4096)
    path.write_bytes(data)
    batches, info = read(path)
    assert batches == []
    assert info.torn == f"batch 0 at byte {start}: its checksum is wrong"


def test_end_is_missing(small: Small, path: Path) -> None:
    info = expect(path, small.data[: small.ends[3]], small, 3)
    assert not info.clean_end
    assert info.torn == (
        f"the file ends at byte {small.ends[3]}, after 3 whole batches, without the "
        "end of the recording"
    )


def test_end_of_stream_without_the_end_of_the_recording(
    small: Small, path: Path
) -> None:
    info = expect(path, small.data[: small.ends[3]] + small.data[-8:], small, 3)
    assert not info.clean_end
    assert info.torn is not None
    assert info.torn.endswith("the stream ends here, without the end of the recording")


def test_bytes_after_the_end(small: Small, path: Path) -> None:
    info = expect(path, small.data + b"more", small, 4)
    assert info.clean_end
    assert info.bytes_intact == len(small.data)
    assert info.torn == (
        f"4 bytes follow the end of the recording at byte {len(small.data)} and were "
        "not read"
    )


def test_two_recordings_in_one_file(small: Small, path: Path) -> None:
    info = expect(path, small.data * 2, small, 4)
    assert info.torn is not None
    assert f"{len(small.data)} bytes follow the end" in info.torn


@pytest.mark.parametrize(
    ("cut", "says"), [(3, "3 bytes are no message"), (30, "inside its metadata")]
)
def test_cut_says_where(small: Small, path: Path, cut: int, says: str) -> None:
    start = small.ends[2]
    info = expect(path, small.data[: start + cut], small, 2)
    assert info.torn is not None
    assert info.torn.startswith(f"batch 2 at byte {start}: ")
    assert says in info.torn
    assert info.last_ts == 2001


def test_cut_in_a_body_says_how_much(small: Small, path: Path) -> None:
    info = expect(path, small.data[: small.ends[3] - 23], small, 2)
    assert info.torn is not None
    assert info.torn.endswith("23 bytes of it are missing at the file's end")


def test_a_batch_is_missing(small: Small, path: Path) -> None:
    """Whole batches all of them, and yet not the recording."""
    data = small.data[: small.ends[1]] + small.data[small.ends[2] :]
    info = expect(path, data, small, 1)
    assert info.torn is not None
    assert info.torn.endswith("it is batch 2, out of turn")


def test_a_batch_is_there_twice(small: Small, path: Path) -> None:
    data = small.data[: small.ends[1]] + small.data[small.ends[0] :]
    info = expect(path, data, small, 1)
    assert info.torn is not None
    assert info.torn.endswith("it is batch 0, out of turn")


def forged(mark: Mark, seq: list[int]) -> bytes:
    """A file of one batch that is whole, with that mark, whatever it says."""
    events = some_events(len(seq), 2000)
    names = EVENT_DTYPE.names or ()
    columns = [pa.array(np.ascontiguousarray(events[name])) for name in names]
    columns += [pa.nulls(len(seq), pa.binary()), pa.array(seq, pa.uint64())]
    batch = pa.record_batch(columns, schema=SCHEMA)
    text = encode(HEADER.to_json())
    metadata = {HEADER_KEY: text, CRC_KEY: b"%x" % zlib.crc32(text)}
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, SCHEMA.with_metadata(metadata)) as stream:
        stream.write_batch(batch, custom_metadata=mark_metadata(mark, batch))
    return sink.getvalue().to_pybytes()


GOOD = Mark(
    batch=0, rows=2, first_ts=2000, last_ts=2001, last_seq=2, end="done", totals={}
)


def test_forged_but_right(path: Path) -> None:
    path.write_bytes(forged(GOOD, [1, 2]))
    assert read(path)[1].torn is None


@pytest.mark.parametrize(
    ("mark", "seq", "says"),
    [
        (replace(GOOD, rows=3), [1, 2], "it has 2 rows, and its mark says 3"),
        (replace(GOOD, last_seq=3), [1, 2], "its rows do not follow"),
        (GOOD, [1, 3], "its rows do not follow"),
        (GOOD, [0, 2], "its rows do not follow"),
        (replace(GOOD, batch=1), [1, 2], "it is batch 1, out of turn"),
    ],
)
def test_sentinel(path: Path, mark: Mark, seq: list[int], says: str) -> None:
    path.write_bytes(forged(mark, seq))
    batches, info = read(path)
    assert batches == []
    assert info.torn is not None
    assert says in info.torn


def test_batch_without_a_mark(path: Path) -> None:
    text = encode(HEADER.to_json())
    metadata = {HEADER_KEY: text, CRC_KEY: b"%x" % zlib.crc32(text)}
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, SCHEMA.with_metadata(metadata)) as stream:
        empty = [pa.nulls(0, field.type) for field in SCHEMA]
        stream.write_batch(pa.record_batch(empty, schema=SCHEMA))
    path.write_bytes(sink.getvalue().to_pybytes())
    assert "its contents are damaged (it has no mark)" in str(read(path)[1].torn)


@pytest.mark.parametrize(
    "key", ["batch", "n", "last_seq", "lost", "window", "first_ts"]
)
def test_mark_lacks_a_key(
    path: Path, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = Mark.to_json

    def less(mark: Mark) -> dict[str, Any]:
        return {k: v for k, v in whole(mark).items() if k != key}

    monkeypatch.setattr(Mark, "to_json", less)
    path.write_bytes(forged(GOOD, [1, 2]))
    assert f"its contents are damaged ({key} is missing)" in str(read(path)[1].torn)


def lengths_of(small: Small) -> int:
    """Where in SMALL the third batch's body length is, by what is there."""
    where = small.batch(2)
    metadata = struct.unpack_from("<i", small.data, where.start + 4)[0]
    body = where.stop - where.start - 8 - metadata
    at = small.data.index(struct.pack("<q", body), where.start)
    assert at < where.start + 8 + metadata
    return at


@pytest.mark.parametrize(
    ("length", "says"),
    [
        (1 << 62, "missing at the file's end"),
        (-8, "a body of -8 bytes is damage"),
        (12, "a body of 12 bytes is damage"),
    ],
)
def test_absurd_body_length(small: Small, path: Path, length: int, says: str) -> None:
    data = bytearray(small.data)
    struct.pack_into("<q", data, lengths_of(small), length)
    info = expect(path, bytes(data), small, 2)
    assert says in str(info.torn)


@pytest.mark.parametrize("length", [-8, 7, 0x7FFFFFF8, 32 << 20])
def test_absurd_metadata_length(small: Small, path: Path, length: int) -> None:
    data = bytearray(small.data)
    struct.pack_into("<i", data, small.ends[2] + 4, length)
    info = expect(path, bytes(data), small, 2)
    assert f"metadata of {length} bytes is damage" in str(info.torn)


def test_compressed(path: Path) -> None:
    """Its buffers say how much to allocate, so it is not even opened."""
    text = encode(HEADER.to_json())
    metadata = {HEADER_KEY: text, CRC_KEY: b"%x" % zlib.crc32(text)}
    events = some_events(100, 2000)
    names = EVENT_DTYPE.names or ()
    columns = [pa.array(np.ascontiguousarray(events[name])) for name in names]
    columns += [pa.nulls(100, pa.binary()), pa.array(range(1, 101), pa.uint64())]
    sink = pa.BufferOutputStream()
    options = pa.ipc.IpcWriteOptions(compression="zstd")
    schema = SCHEMA.with_metadata(metadata)
    with pa.ipc.new_stream(sink, schema, options=options) as stream:
        stream.write_batch(pa.record_batch(columns, schema=SCHEMA))
    path.write_bytes(sink.getvalue().to_pybytes())
    assert "it claims to be compressed" in str(read(path)[1].torn)


def stream_of(schema: pa.Schema) -> bytes:
    sink = pa.BufferOutputStream()
    pa.ipc.new_stream(sink, schema).close()
    return sink.getvalue().to_pybytes()


def with_header(fields: dict[str, Any]) -> bytes:
    text = encode(fields)
    metadata = {HEADER_KEY: text, CRC_KEY: b"%x" % zlib.crc32(text)}
    return stream_of(SCHEMA.with_metadata(metadata))


def test_newer_format(path: Path) -> None:
    """Known by its header alone, whatever else there is in it."""
    error = refused(
        path,
        with_header({"format": 2, "tool": "9.9"}),
        "has format 2, made by cdmtrace 9.9; this version reads up to format 1",
    )
    assert "newer cdmtrace" in str(error.hint)


def test_header_lacks_a_key(path: Path) -> None:
    fields = HEADER.to_json()
    del fields["page_size"]
    error = refused(path, with_header(fields), "is cut or damaged in its header")
    assert "page_size is missing" in error.message


def test_header_is_no_json(path: Path) -> None:
    metadata = {HEADER_KEY: b"{", CRC_KEY: b"%x" % zlib.crc32(b"{")}
    refused(
        path,
        stream_of(SCHEMA.with_metadata(metadata)),
        "is cut or damaged in its header",
    )


def test_header_is_damaged(small: Small, path: Path) -> None:
    data = small.data.replace(b'"page_size":4096', b'"page_size":8192')
    error = refused(path, data, "is cut or damaged in its header")
    assert error.message.endswith("its checksum is wrong")


def test_columns_of_another_format(path: Path) -> None:
    text = encode(HEADER.to_json())
    metadata = {HEADER_KEY: text, CRC_KEY: b"%x" % zlib.crc32(text)}
    schema = SCHEMA.remove(0).with_metadata(metadata)
    error = refused(path, stream_of(schema), "is cut or damaged in its header")
    assert error.message.endswith("its columns are not those of format 1")


def test_another_arrow_stream(path: Path) -> None:
    refused(path, stream_of(SCHEMA), "is an Arrow stream, but none that cdmtrace wrote")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "is empty"),
        (b"\xff\xff", "is cut or damaged in its header"),
        (b"ARROW1\0\0" + bytes(100), "is an Arrow file, not an Arrow stream"),
        (b"PAR1" + bytes(100), "is a Parquet file"),
        (b"\x1f\x8b" + bytes(100), "is compressed with gzip; gunzip it first"),
        (b"\x28\xb5\x2f\xfd" + bytes(100), "is compressed with zstd"),
        (b"\x7fELF" + bytes(100), "is a program"),
        (b"#!/bin/sh\n", "is not a trace file"),
        (bytes(4096), "is not a trace file"),
        (b"\xff" * 4096, "is cut or damaged in its header"),
    ],
)
def test_foreign_file(path: Path, data: bytes, message: str) -> None:
    refused(path, data, message)


def test_missing_file(path: Path) -> None:
    with pytest.raises(TraceFileError, match="cannot be read: No such file"):
        TraceReader(path)


def test_no_file_is_called_minus(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(TraceFileError, match="cannot be read") as told:
        TraceReader("-")
    assert told.value.hint == "save what comes out of it to a file first"


def test_directory(tmp_path: Path) -> None:
    with pytest.raises(TraceFileError, match="is no regular file"):
        TraceReader(tmp_path)


def test_pipe_does_not_wait(path: Path) -> None:
    os.mkfifo(path)
    with pytest.raises(TraceFileError, match="is no regular file"):
        TraceReader(path)


def test_a_file_that_grows_is_read_again(path: Path) -> None:
    with TraceWriter(path, HEADER) as writer:
        writer.write(some_events(3, 2000))
        assert read(path)[1].events == 3
        writer.write(some_events(2, 3000))
        info = read(path)[1]
        assert info.events == 5
        assert "without the end of the recording" in str(info.torn)
        writer.end("done")
    assert read(path)[1].torn is None


def test_columns_outlive_the_reader(small: Small, path: Path) -> None:
    path.write_bytes(small.data)
    with TraceReader(path) as reader:
        table = reader.read()
    path.unlink()
    assert table["seq"].to_pylist() == [1, 2, 3, 4, 5]


def test_reads_without_copying(path: Path) -> None:
    with TraceWriter(path, HEADER) as writer:
        writer.write(some_events(10007, 2000))
        writer.end("done")
    before = pa.total_allocated_bytes()
    with TraceReader(path) as reader:
        table = reader.read()
        assert table.num_rows == 10007
        assert pa.total_allocated_bytes() - before < 100_000


def test_leaving_off_in_the_middle(small: Small, path: Path) -> None:
    path.write_bytes(small.data)
    with TraceReader(path) as reader:
        next(iter(reader))
        assert reader.info.batches == 4
        assert [x.mark.batch for x in reader] == [0, 1, 2, 3]
