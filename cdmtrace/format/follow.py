"""Read a trace file that is still being written, batch by batch.

A batch is read when all of it is there, with every check of the reader; so what is torn
today may be whole at the next look, and what is damaged ends the reading. A recorder
whose disk is full cuts the part of a batch off again that got through.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from cdmtrace.errors import TraceFileError
from cdmtrace.format.framing import FrameCut, FrameError, frame_at
from cdmtrace.format.reader import OpenFile, TraceBatch, Walk, read_header
from cdmtrace.format.schema import Header


class _Place(Walk):
    """Where the reading is. Losses are told of with their batch, and not kept."""

    def _keep(self, batch: TraceBatch, end: int) -> TraceBatch:
        kept = super()._keep(batch, end)
        self._losses.clear()
        return kept


class Follower:
    """A place in a trace file that grows.

    It holds one batch at a time, and nothing of those before.
    """

    def __init__(self, fd: int, path: str | os.PathLike[str]) -> None:
        """Read the header. path: what to call the file; fd stays the caller's.

        Raises TraceFileError as TraceReader does, also where the header is not there
        whole.
        """
        self._file = OpenFile(fd)
        if not self._file.regular:
            raise TraceFileError(
                f"{path}: is no regular file",
                hint="save it to a file, and follow that",
            )
        if not self._file.size:
            raise TraceFileError(
                f"{path}: is empty",
                hint="wait until the recording has begun",
            )
        self._header, at = read_header(Path(path), self._file)
        self._walk = _Place(self._header, at)
        self._before = self._header.part.seq if self._header.part else 0
        self.events = 0
        self.damage: str | None = None

    @property
    def header(self) -> Header:
        """What the recording says about itself."""
        return self._header

    @property
    def at(self) -> int:
        """Bytes read so far, all of them whole batches."""
        return self._walk.at

    @property
    def end(self) -> str | None:
        """Why the recording ended; None as long as the file does not say so."""
        return self._walk.end

    @property
    def over(self) -> bool:
        """Whether nothing more can be read, whatever comes."""
        return self.end is not None or self.damage is not None

    def new(self) -> Iterator[TraceBatch]:
        """Yield the batches that are there whole and were not read yet.

        It stops where there are none, and may be called again when there are more.
        Where what is there is damaged, ``damage`` says how, and nothing follows.
        """
        file = self._file
        while not self.over:
            file.look()
            try:
                batch = self._walk.take(file, frame_at(file.read, file.size, self.at))
            except FrameCut:
                return
            except FrameError as error:
                self.damage = f"batch at byte {self.at}: {error}"
                return
            self.events = batch.mark.last_seq - self._before
            yield batch
