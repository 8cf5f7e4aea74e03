"""Read a trace file, whole or torn: the one reader that every verb uses."""

from __future__ import annotations

import errno
import os
import stat
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self

import numpy as np
import pyarrow as pa

from cdmtrace.errors import TraceFileError
from cdmtrace.events import Lost
from cdmtrace.format.framing import (
    BATCH_MESSAGE,
    MAX_METADATA,
    SCHEMA_MESSAGE,
    Frame,
    FrameError,
    frame_at,
)
from cdmtrace.format.schema import (
    CRC_KEY,
    FORMAT,
    HEADER_KEY,
    SCHEMA,
    Header,
    LostCounts,
    Mark,
    Shortfall,
    batch_crc,
    column_values,
    decode,
    parse_crc,
    shown,
    sum_losses,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import TracebackType

# What a crash can lose, and why no more. The recorder appends one batch with
# one write(2) and never touches what it wrote. If it is killed, the kernel
# still has every byte of the writes that returned, and at most the last write
# is cut: whole batches, then a part of one. If the machine dies, the file may
# also end in zeros, or hold pages that never reached the disk. A batch counts
# only if its message lies wholly in the file, its columns fit their buffers,
# its number and seq follow on the batch before, and the CRC-32 over its mark
# and its values is right. The first one that fails ends the reading: what
# comes after it cannot be placed, so it is not looked at. Everything before
# it is as good as on the day it was written.
#
# The file may be anybody's, and may change while it is read. So nothing of it is
# mapped: where a mapped file is cut, or its disk fails, the reader dies of SIGBUS. A
# message is read once it has been measured, measured again where it lies in memory,
# and given to pyarrow behind a schema of our own, not behind that of the file.

_MAGIC: Final = (
    (b"ARROW1", "an Arrow file, not an Arrow stream"),
    (b"PAR1", "a Parquet file"),
    (b"\x1f\x8b", "compressed with gzip; gunzip it first"),
    (b"\x28\xb5\x2f\xfd", "compressed with zstd; unzstd it first"),
    (b"\x7fELF", "a program"),
)
_END_OF_STREAM: Final = b"\xff\xff\xff\xff\0\0\0\0"
_UNPAIRED: Final = Lost.UNPAIRED.name.lower()
_SCHEMA_BYTES: Final = SCHEMA.serialize().to_pybytes()
_FORMATS: Final = 1000
"""No file has such a format: it is damage."""
_MAKE_ONE: Final = "cdmtrace record -o FILE -- CMD makes a trace file"
_NO_STREAM: Final = "save what comes out of it to a file first"


@dataclass(frozen=True, kw_only=True, slots=True)
class Loss(Shortfall):
    """A shortfall, and when its events happened.

    They returned after ``since`` and not after ``until`` (ns,
    CLOCK_MONOTONIC); an entry whose return never came can be noticed only
    later, so for the reason ``unpaired`` since is the start of the recording.
    batch: the one that reported them.
    """

    since: int
    until: int
    batch: int


@dataclass(frozen=True, kw_only=True, slots=True)
class TraceBatch:
    """One batch that has passed every check.

    columns: SCHEMA's columns. offset: where the batch begins in the file, bytes.
    """

    mark: Mark
    columns: pa.RecordBatch
    losses: tuple[Loss, ...]
    offset: int


@dataclass(frozen=True, kw_only=True, slots=True)
class TraceInfo:
    """What was read of a trace file, and what was not.

    torn: where and why the reading stopped before the file's last byte, or
    short of the mark that ends a recording; None if it did not. clean_end:
    the recorder ended the file itself, and end says why. more: the recording
    goes on in its next part. counted: when the loss counters were read last, as
    far as the file tells. Times in ns,
    CLOCK_MONOTONIC, of returns; None without events. Sizes in bytes:
    everything in the first bytes_intact of bytes_total was used.
    """

    path: Path
    header: Header
    batches: int
    events: int
    first_ts: int | None
    last_ts: int | None
    losses: tuple[Loss, ...]
    clean_end: bool
    end: str | None
    more: bool
    counted: int
    torn: str | None
    bytes_total: int
    bytes_intact: int

    @property
    def lost(self) -> LostCounts:
        """Events lost, summed per probe and reason."""
        return sum_losses(self.losses)


class TraceReader:
    """A trace file opened for reading; one batch of it is in memory at a time.

    Iterating gives its batches in order and never raises for damage: it
    stops, and ``info`` tells why. The file may still be growing; it is read
    up to the size it had when it was opened.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Open the file and read its header.

        Raises TraceFileError if it cannot be read, is not a trace file, has a
        damaged header, or a format that this version does not know.
        """
        self._path = Path(path)
        self._file = OpenFile.open(self._path)
        try:
            self._header, self._start = read_header(self._path, self._file)
        except BaseException:
            self.close()
            raise
        self._info: TraceInfo | None = None

    @property
    def path(self) -> Path:
        """The file's path, as it was given."""
        return self._path

    @property
    def size(self) -> int:
        """Bytes that the file had when it was opened."""
        return self._file.size

    @property
    def header(self) -> Header:
        """What the recording says about itself."""
        return self._header

    @property
    def info(self) -> TraceInfo:
        """What can be read of the file; the first call reads it through."""
        if self._info is None:
            for _ in self:
                pass
        assert self._info is not None
        return self._info

    def read(self) -> pa.Table:
        """Return all intact batches as one table, in memory."""
        return pa.Table.from_batches([batch.columns for batch in self], SCHEMA)

    def __iter__(self) -> Iterator[TraceBatch]:
        walk = Walk(self._header, self._start)
        file = self._file
        stop = ""
        while walk.end is None and walk.at < file.size:
            try:
                batch = walk.take(file, frame_at(file.read, file.size, walk.at))
            except FrameError as error:
                stop = str(error)
                break
            yield batch
        torn = walk.why_torn(file, stop)
        self._info = walk.info(self._path, file.size, torn)

    def close(self) -> None:
        """Let go of the file. Batches that are still in use stay valid."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def count_kinds(trace: TraceReader) -> dict[str, int]:
    """Return kind -> events of it, in the order of the kinds' numbers.

    Names are those of the trace's own header; a kind without one is called by
    its number. Afterwards ``trace.info`` costs nothing.
    """
    counts = np.zeros(256, np.int64)
    for batch in trace:
        kinds = column_values(batch.columns.column("kind"))
        counts += np.bincount(kinds, minlength=256)
    names = {
        number: name for name, number in trace.header.enums.get("kind", {}).items()
    }
    return {
        names.get(kind, str(kind)): int(counts[kind])
        for kind in np.flatnonzero(counts).tolist()
    }


class Walk:
    """What is known after the batches read so far."""

    def __init__(self, header: Header, at: int) -> None:
        self.at = at
        self.end: str | None = None
        self._header = header
        self._more = False
        self._batches = 0
        self._first = self._seq = header.part.seq if header.part else 0
        self._first_ts: int | None = None
        self._last_ts: int | None = None
        self._counted = header.part.counted if header.part else header.started
        self._losses: list[Loss] = []

    def take(self, file: OpenFile, frame: Frame) -> TraceBatch:
        """Read the next batch, which is the message in frame.

        Raises FrameError for whatever makes it unfit to be used.
        """
        if frame.kind == 0:
            raise FrameError("the stream ends here, without the end of the recording")
        if frame.kind != BATCH_MESSAGE:
            raise FrameError("it is no batch")
        try:
            stream = pa.ipc.open_stream(pa.BufferReader(file.message(frame)))
            columns, metadata = stream.read_next_batch_with_custom_metadata()
            # Before any value is touched: a column may claim more rows than
            # its buffers hold.
            columns.validate(full=True)
            if metadata is None:
                raise ValueError("it has no mark")
            text = metadata[HEADER_KEY]
            intact = batch_crc(text, columns) == parse_crc(metadata[CRC_KEY])
            mark = Mark.from_json(decode(text)) if intact else None
        except (FrameError, MemoryError):
            raise
        except Exception as error:
            # Whatever pyarrow makes of damage, it must end the reading here.
            raise FrameError(
                f"its contents are damaged ({_one_line(error)})"
            ) from error
        if mark is None:
            raise FrameError("its checksum is wrong")
        rows = columns.num_rows
        if mark.batch != self._batches:
            raise FrameError(f"it is batch {mark.batch}, out of turn")
        if not mark.rows == rows == frame.rows:
            raise FrameError(f"it has {rows} rows, and its mark says {mark.rows}")
        if mark.last_seq != self._seq + rows or not _follows(columns, self._seq):
            raise FrameError("its rows do not follow on those before")
        return self._keep(
            TraceBatch(
                mark=mark, columns=columns, losses=self._place(mark), offset=self.at
            ),
            frame.end,
        )

    def _place(self, mark: Mark) -> tuple[Loss, ...]:
        """Return the mark's losses, each with the time it may have happened in."""
        if mark.window is None:
            return ()
        return tuple(
            Loss(
                probe=entry.probe,
                reason=entry.reason,
                count=entry.count,
                since=(
                    self._header.started if entry.reason == _UNPAIRED else self._counted
                ),
                until=mark.window[1],
                batch=mark.batch,
                mm=entry.mm,
                start=entry.start,
                end=entry.end,
            )
            for entry in mark.lost
        )

    def _keep(self, batch: TraceBatch, end: int) -> TraceBatch:
        """Count the batch in; return it."""
        mark = batch.mark
        self.at, self.end, self._more = end, mark.end, mark.more
        self._batches += 1
        self._seq = mark.last_seq
        self._losses += batch.losses
        if mark.window is not None:
            self._counted = mark.window[0]
        if mark.first_ts is not None and mark.last_ts is not None:
            self._first_ts = min(mark.first_ts, self._first_ts or mark.first_ts)
            self._last_ts = max(mark.last_ts, self._last_ts or 0)
        return batch

    def why_torn(self, file: OpenFile, stop: str) -> str | None:
        """Return what to say of the bytes after the last intact batch.

        stop: why the batch there was not taken, empty where there is none.
        """
        if self.end is not None:
            tail = file.tail(self.at, len(_END_OF_STREAM))
            # The mark that ends an Arrow stream may be cut: nothing is lost.
            if tail == _END_OF_STREAM[: len(tail)]:
                self.at += len(tail)
            if self.at == file.size:
                return None
            return (
                f"{file.size - self.at} bytes follow the end of the recording at "
                f"byte {self.at} and were not read"
            )
        if not stop:
            return (
                f"the file ends at byte {self.at}, after {self._batches} whole "
                "batches, without the end of the recording"
            )
        return f"batch {self._batches} at byte {self.at}: {stop}"

    def info(self, path: Path, size: int, torn: str | None) -> TraceInfo:
        """Return it as what users of the reader see."""
        return TraceInfo(
            path=path,
            header=self._header,
            batches=self._batches,
            events=self._seq - self._first,
            first_ts=self._first_ts,
            last_ts=self._last_ts,
            losses=tuple(self._losses),
            clean_end=self.end is not None,
            end=self.end,
            more=self._more,
            counted=self._counted,
            torn=torn,
            bytes_total=size,
            bytes_intact=self.at,
        )


def _follows(columns: pa.RecordBatch, last_seq: int) -> bool:
    """Return whether the rows are numbered on from last_seq."""
    rows = columns.num_rows
    if not rows:
        return True
    seq = column_values(columns.column("seq"))
    # Not by their sum with last_seq, which a mark may make larger than any uint64.
    return int(seq[0]) == last_seq + 1 and bool((np.diff(seq) == 1).all())


class OpenFile:
    """A regular file, of the size that it had when it was looked at last."""

    def __init__(self, fd: int) -> None:
        """Look at it. fd: for reading."""
        self._fd = fd
        self.size = 0
        self.look()

    @classmethod
    def open(cls, path: Path) -> Self:
        """Open it. Raises TraceFileError."""
        try:
            # NONBLOCK: opening a pipe that nobody writes to must not wait.
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
        except OSError as error:
            hint = _MAKE_ONE if str(path) != "-" else _NO_STREAM
            if error.errno == errno.EACCES:
                hint = f"it belongs to someone else: sudo chown $USER {path}"
            raise TraceFileError(
                f"{path}: cannot be read: {error.strerror}", hint=hint
            ) from error
        file = cls(fd)
        if not file.regular:
            file.close()
            raise TraceFileError(
                f"{path}: is no regular file",
                hint=_NO_STREAM,
            )
        if not file.size:
            file.close()
            raise TraceFileError(f"{path}: is empty", hint=_MAKE_ONE)
        return file

    def look(self) -> None:
        """See how large it is now."""
        status = os.fstat(self._fd)
        self.regular = stat.S_ISREG(status.st_mode)
        self.size = status.st_size

    def read(self, at: int, count: int) -> bytes:
        """Return bytes from an offset on, fewer at the file's end. Raises OSError."""
        return os.pread(self._fd, count, at)

    def tail(self, at: int, most: int) -> bytes:
        """Return what is there from an offset on, nothing if it cannot be read."""
        try:
            return self.read(at, min(most, self.size - at))
        except OSError:
            return b""

    def message(self, frame: Frame) -> pa.Buffer:
        """Return a message behind the schema of format 1: a stream of one batch.

        Raises FrameError if it cannot be read, or is another than it was.
        """
        head, size = len(_SCHEMA_BYTES), frame.end - frame.start
        stream = bytearray(head + size)
        stream[:head] = _SCHEMA_BYTES
        view = memoryview(stream)[head:]
        done = 0
        try:
            while done < size:
                got = os.preadv(self._fd, [view[done:]], frame.start + done)
                if not got:
                    raise FrameError("the file is shorter than it was")
                done += got
        except OSError as error:
            raise FrameError(f"it cannot be read: {error.strerror}") from error
        again = frame_at(lambda at, n: bytes(view[at : at + n]), size, 0)
        if (again.kind, again.rows) != (frame.kind, frame.rows) or again.end != size:
            raise FrameError("it has changed while it was read")
        return pa.py_buffer(stream)

    def close(self) -> None:
        """Close it."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def read_header(path: Path, file: OpenFile) -> tuple[Header, int]:
    """Return the header and where the first batch begins.

    The key, its CRC and the member ``format`` are what no later format may
    change: they are how a newer file is known.
    """
    begin = file.tail(0, 8)
    for magic, what in _MAGIC:
        if begin[: len(magic)] == magic:
            raise TraceFileError(f"{path}: is {what}", hint=_MAKE_ONE)
    if begin[:4] != b"\xff\xff\xff\xff"[: len(begin)]:
        raise TraceFileError(f"{path}: is not a trace file", hint=_MAKE_ONE)
    try:
        frame = frame_at(file.read, file.size, 0)
        if frame.kind != SCHEMA_MESSAGE:
            raise FrameError("it does not begin with a schema")
        if frame.end - frame.start > MAX_METADATA + 8:
            raise FrameError(f"a schema of {frame.end} bytes is damage")
        data = file.read(0, frame.end)
        schema = pa.ipc.open_stream(pa.BufferReader(data)).schema
    except MemoryError:
        raise
    except Exception as error:
        # As with batches: whatever pyarrow makes of damage.
        raise _bad_header(path, _one_line(error)) from error
    metadata = schema.metadata or {}
    if HEADER_KEY not in metadata:
        raise TraceFileError(
            f"{path}: is an Arrow stream, but none that cdmtrace wrote", hint=_MAKE_ONE
        )
    text = metadata[HEADER_KEY]
    if zlib.crc32(text) != parse_crc(metadata.get(CRC_KEY)):
        raise _bad_header(path, "its checksum is wrong")
    try:
        fields = decode(text)
        newer = fields.get("format")
        if isinstance(newer, int) and FORMAT < newer < _FORMATS:
            tool = shown(str(fields.get("tool", "of a later version")))
            raise TraceFileError(
                f"{path}: has format {newer}, made by cdmtrace {tool}; this version "
                f"reads up to format {FORMAT}",
                hint="install a newer cdmtrace",
            )
        header = Header.from_json(fields)
    except ValueError as error:
        raise _bad_header(path, _one_line(error)) from error
    if not schema.remove_metadata().equals(SCHEMA):
        raise _bad_header(path, f"its columns are not those of format {FORMAT}")
    return header, frame.end


def _bad_header(path: Path, why: str) -> TraceFileError:
    return TraceFileError(
        f"{path}: is cut or damaged in its header, nothing of it can be read: {why}",
        hint=_MAKE_ONE,
    )


def _one_line(error: BaseException) -> str:
    return shown(str(error).split("\n", 1)[0]) or type(error).__name__
