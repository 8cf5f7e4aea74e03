"""A recording in several files, each of which can be read without the others.

``x.arrows`` is written as ``x.0000.arrows``, ``x.0001.arrows`` and so on. Each part is
a whole trace file: the header says which part of which recording it is, rows are
numbered on from part to part, and what rows lean on that came in an earlier part (the
names of tasks, and each stack before the first row that names it) is written once more.
What is there when the recording begins is told in the first part alone.

In memory are the stacks, which BPF has room for four thousand of, and the names of the
tasks that there are, with those that ended since the part was begun.
"""

from __future__ import annotations

import dataclasses
import os
import re
import secrets
import stat
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self

import numpy as np

from cdmtrace.caller import Caller, acting_as
from cdmtrace.errors import TraceWriteError
from cdmtrace.events import (
    EVENT_DTYPE,
    NO_NODE,
    STACKS,
    EventKind,
    Events,
    comm_bytes,
)
from cdmtrace.format.schema import Header, Part, Shortfall
from cdmtrace.format.writer import TraceWriter

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from types import TracebackType

DIGITS: Final = 4
"""Digits of a part's number in its name, at least."""

_ROW: Final = EVENT_DTYPE.itemsize + 16
"""Bytes of a row in the file: the record, its seq, and where its payload lies."""
_BATCH: Final = 8192
"""Bytes of a batch beside its rows and payloads, at most: columns, mark, padding."""


def part_path(base: Path, number: int) -> Path:
    """Return the file of one part of the recording that was to be base."""
    return base.with_name(f"{base.stem}.{number:0{DIGITS}}{base.suffix}")


def found_parts(base: Path) -> list[Path]:
    """Return what is there under the names of parts of base, by number."""
    name = re.compile(
        rf"{re.escape(base.stem)}\.(\d{{{DIGITS},}}){re.escape(base.suffix)}"
    )
    found = [
        (int(match[1]), entry)
        for entry in base.parent.iterdir()
        if (match := name.fullmatch(entry.name))
    ]
    return [path for _, path in sorted(found)]


def refuse_parts(base: Path) -> None:
    """Raise TraceWriteError if there is a recording in parts under this name."""
    try:
        there = found_parts(base)
    except OSError:
        # What is wrong with the directory is said when it is written to.
        return
    if there:
        raise TraceWriteError(
            f"{there[0]}: exists already",
            hint="name another file with -o FILE, or replace all its parts with -f",
        )


@dataclass(frozen=True, slots=True)
class _Done:
    """A part that is closed: its file as it was when we made it, and its size."""

    path: Path
    identity: tuple[int, int]
    size: int

    def remove(self) -> None:
        """Remove the file, unless another one is there by now. Raises OSError."""
        try:
            status = self.path.lstat()
            if (status.st_dev, status.st_ino) == self.identity:
                self.path.unlink()
        except FileNotFoundError:
            return


class PartsWriter:
    """Writes as TraceWriter does, and begins a new file when one is full."""

    def __init__(
        self,
        path: str | os.PathLike[str],
        header: Header,
        *,
        size: int,
        keep: int | None = None,
        force: bool = False,
        owner: Caller | None = None,
    ) -> None:
        """Begin the first part.

        path: what the names of the parts are made of. size: bytes that a part may
        have; it has more only where one batch alone does (8 MiB and its payloads).
        keep: how many parts are kept; older ones are removed. force: remove parts
        that are there under this name. owner: whose the files are, as for TraceWriter.

        Raises TraceWriteError as TraceWriter does.
        """
        self._base = Path(path)
        self._limit, self._keep, self._owner = size, keep, owner
        self._recording = secrets.token_hex(8)
        self._header = header
        self._counted = header.started
        self._names: dict[int, tuple[int, bytes]] = {}
        self._stacks: dict[int, bytes] = {}
        self._here: set[int] = set()
        self._done: list[_Done] = []
        if force:
            with acting_as(owner):
                _remove(self._base)
        else:
            refuse_parts(self._base)
        self._number = 0
        self._begun = False
        self._writer = self._open(0, 0)

    @property
    def files(self) -> tuple[Path, ...]:
        """The files that the recording is in: those that are kept, oldest first."""
        return (*(one.path for one in self._done), self._writer.path)

    @property
    def events(self) -> int:
        """Rows written so far, those in parts that were removed included."""
        return self._writer.events

    @property
    def size(self) -> int:
        """Bytes in the files that are kept."""
        return sum(one.size for one in self._done) + self._writer.size

    def write(
        self,
        events: Events,
        *,
        payloads: Sequence[bytes | None] | None = None,
        lost: Iterable[Shortfall] = (),
        window: tuple[int, int] | None = None,
    ) -> None:
        """Append one batch, to the next part if this one has no room for it.

        As TraceWriter.write(). Raises TraceWriteError; what was written stays.
        """
        lost = tuple(lost)
        again = self._not_here(events)
        needed = _size(events, payloads) + sum(len(self._stacks[n]) for n in again)
        needed += (_BATCH + _ROW * len(again) if again else 0) + _BATCH
        if self._writer.size + needed > self._limit and self._begun:
            self._next(events)
            again = self._not_here(events)
        if again:
            rows = _own_rows(EventKind.STACK, len(again))
            rows["stack"] = again
            self._writer.write(rows, payloads=[self._stacks[n] for n in again])
            self._here.update(again)
        self._writer.write(events, payloads=payloads, lost=lost, window=window)
        self._begun = True
        self._note(events, payloads)
        if window is not None:
            self._counted = window[0]

    def end(
        self,
        reason: str,
        *,
        lost: Iterable[Shortfall] = (),
        window: tuple[int, int] | None = None,
    ) -> None:
        """Append the last batch to the last part, and close it."""
        self._writer.end(reason, lost=lost, window=window)

    def close(self) -> None:
        """Close the file; without end() before it, the recording counts as cut."""
        self._writer.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _open(self, number: int, seq: int) -> TraceWriter:
        part = Part(
            recording=self._recording,
            number=number,
            seq=seq,
            began=time.monotonic_ns(),
            counted=self._counted,
        )
        header = dataclasses.replace(self._header, part=part)
        self._begun = False
        return TraceWriter(part_path(self._base, number), header, owner=self._owner)

    def _next(self, events: Events) -> None:
        """Begin the next part, then end this one, then remove what is too old.

        In this order, for a disk may be full: then the recording ends with this part.
        """
        old = self._writer
        new = self._open(self._number + 1, old.events)
        done = _Done(old.path, old.identity, 0)
        try:
            old.end(f"it goes on in {new.path.name}", more=True)
        except BaseException:
            new.close()
            with acting_as(self._owner):
                new.path.unlink(missing_ok=True)
            raise
        self._done.append(dataclasses.replace(done, size=old.size))
        self._writer, self._number = new, self._number + 1
        self._here = set()
        self._write_names(set(events["tid"].tolist()))
        while self._keep is not None and len(self._done) >= self._keep:
            oldest = self._done[0]
            try:
                with acting_as(self._owner):
                    oldest.remove()
            except OSError as error:
                raise TraceWriteError(
                    f"{oldest.path}: cannot remove this old part: {error.strerror}",
                    hint="keep all parts: leave --rotate-keep out",
                ) from error
            del self._done[0]

    def _write_names(self, wanted: set[int]) -> None:
        """Write the names of tasks that are there, or wanted, and forget the others."""
        self._names = {
            tid: name
            for tid, name in self._names.items()
            if tid in wanted or _is_there(tid)
        }
        if not self._names:
            return
        rows = _own_rows(EventKind.COMM, len(self._names))
        rows["tid"] = list(self._names)
        rows["pid"] = [pid for pid, _ in self._names.values()]
        self._writer.write(rows, payloads=[name for _, name in self._names.values()])

    def _not_here(self, events: Events) -> list[int]:
        """Return the stacks that these rows name and this part has not got."""
        stacks = events["stack"]
        # Sorting them would cost as much as writing the rows.
        seen = np.zeros(max(STACKS, int(stacks.max(initial=0))) + 1, np.bool_)
        seen[stacks] = True
        named = set(np.flatnonzero(seen).tolist()) - self._here
        own = stacks[events["kind"] == EventKind.STACK].tolist()
        return sorted((named - set(own)) & self._stacks.keys())

    def _note(self, events: Events, payloads: Sequence[bytes | None] | None) -> None:
        """Keep what a later part needs."""
        for row in np.flatnonzero(events["kind"] == EventKind.STACK).tolist():
            number = int(events["stack"][row])
            self._stacks[number] = (payloads[row] if payloads else None) or b""
            self._here.add(number)
        for row in np.flatnonzero(events["kind"] == EventKind.COMM).tolist():
            event = events[row]
            name = payloads[row] if payloads else None
            pid, tid = int(event["pid"]), int(event["tid"])
            self._names[tid] = pid, comm_bytes(event) if name is None else name


Writer = TraceWriter | PartsWriter


def _is_there(tid: int) -> bool:
    """Whether there is such a task: /proc may not show those of others."""
    try:
        os.kill(tid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _remove(base: Path) -> None:
    """Remove the parts that are there. Raises TraceWriteError, and removes nothing."""
    try:
        there = found_parts(base)
        for path in there:
            if not stat.S_ISREG(path.lstat().st_mode):
                raise TraceWriteError(
                    f"{path}: is no regular file and will not be replaced",
                    hint="name another file with -o FILE",
                )
        for path in there:
            path.unlink()
    except OSError as error:
        raise TraceWriteError(
            f"{base}: cannot replace its parts: {error.strerror}",
            hint="name another file with -o FILE",
        ) from error


def _size(events: Events, payloads: Sequence[bytes | None] | None) -> int:
    """Return how many bytes a batch has in the file, at most."""
    names = int((events["kind"] == EventKind.COMM).sum()) * 16
    texts = sum(len(text) for text in payloads if text) if payloads else 0
    return _BATCH + _ROW * len(events) + names + texts


def _own_rows(kind: EventKind, count: int) -> Events:
    rows: Events = np.zeros(count, EVENT_DTYPE)
    rows["kind"] = kind
    rows["ts_entry"] = rows["ts"] = time.monotonic_ns()
    rows["node"] = rows["src_node"] = NO_NODE
    return rows
