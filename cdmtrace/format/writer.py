"""Write a trace file, one whole batch at a time.

A batch goes out with one write(2). A recorder that is killed leaves whole
batches and at most one cut one, which the reader drops. When the disk is
full, what part of a batch got through is cut off again, so that the file ends
with a whole batch and the same batch may be tried once more.
"""

from __future__ import annotations

import errno
import os
import secrets
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self

import numpy as np

from cdmtrace.caller import Caller, acting_as
from cdmtrace.errors import TraceWriteError
from cdmtrace.events import EVENT_DTYPE, Events
from cdmtrace.format.batches import Batches
from cdmtrace.format.schema import (
    SCHEMA,
    Header,
    Mark,
    Shortfall,
    header_metadata,
    sum_losses,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from types import TracebackType

_FLAGS: Final = (
    os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
)


class TraceWriter:
    """A trace file that is being written. Not for use by two threads.

    Closing it without end() leaves a file that says it was cut.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        header: Header,
        *,
        force: bool = False,
        owner: Caller | None = None,
    ) -> None:
        """Create the file, mode 0600, and write the header.

        force: replace a file that is there. It is replaced, not overwritten:
        who has it open keeps the old one, and nothing but a regular file is
        ever replaced. owner: whose the new file is: it is made with their rights
        and not with root's, whatever there is on the way to it.

        Raises TraceWriteError if the file exists (without force), is a
        symbolic link or no regular file, or cannot be created or written.
        """
        self._path = Path(path)
        schema = SCHEMA.with_metadata(header_metadata(header))
        self._size = 0
        self._batches = 0
        self._seq = header.part.seq if header.part else 0
        self._lost: dict[str, dict[str, int]] = {}
        self._made = Batches()
        with acting_as(owner):
            self._make(memoryview(schema.serialize()), force=force)

    def _make(self, head: memoryview, *, force: bool) -> None:
        """Create the file, or replace the one that is there, and write its head."""
        made = self._path
        if force and _replaceable(self._path):
            suffix = secrets.token_hex(4)
            made = self._path.with_name(f".{self._path.name}.{suffix}")
        self._fd = _create(made, asked=self._path)
        try:
            self._append(head)
            if made != self._path:
                made.replace(self._path)
        except OSError as error:
            self._give_up(made)
            raise _cannot("write", self._path, error) from error
        except BaseException:
            self._give_up(made)
            raise

    @property
    def path(self) -> Path:
        """The file's path, as it was given."""
        return self._path

    def fileno(self) -> int:
        """Return the file's descriptor, which is for writing; it stays ours."""
        return self._fd

    @property
    def files(self) -> tuple[Path, ...]:
        """The files that the recording is in."""
        return (self._path,)

    @property
    def identity(self) -> tuple[int, int]:
        """Device and inode of the file, while it is open."""
        status = os.fstat(self._fd)
        return status.st_dev, status.st_ino

    @property
    def events(self) -> int:
        """Rows written so far; the next row's seq is one more."""
        return self._seq

    @property
    def size(self) -> int:
        """Bytes written so far, all of them whole batches."""
        return self._size

    def write(
        self,
        events: Events,
        *,
        payloads: Sequence[bytes | None] | None = None,
        lost: Iterable[Shortfall] = (),
        window: tuple[int, int] | None = None,
    ) -> None:
        """Append one batch, in the order given.

        events: dtype EVENT_DTYPE, no row is legal (losses only). payloads:
        one per row, for the kinds that have one; the names in COMM rows are
        taken from the rows themselves. lost: events lost since the batch
        before. window: ns, CLOCK_MONOTONIC, just before and just after the
        loss counters were read; it must come with lost.

        Raises TraceWriteError if it cannot be written; the file then ends
        with the batch before, and the call may be repeated.
        """
        self._write(events, payloads, lost, window, None)

    def end(
        self,
        reason: str,
        *,
        lost: Iterable[Shortfall] = (),
        window: tuple[int, int] | None = None,
        more: bool = False,
    ) -> None:
        """Append the last batch, without rows, and close the file.

        reason: why the recording ended, for people. more: it has not, and goes on
        in its next part. Raises TraceWriteError as write() does; the file is then
        still open.
        """
        none = np.empty(0, EVENT_DTYPE)
        self._write(none, None, lost, window, reason, more)
        self.close()

    def close(self) -> None:
        """Close the file; without end() before it, the file counts as cut."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _write(
        self,
        events: Events,
        payloads: Sequence[bytes | None] | None,
        lost: Iterable[Shortfall],
        window: tuple[int, int] | None,
        end: str | None,
        more: bool = False,
    ) -> None:
        if self._fd < 0:
            raise ValueError("the trace file is closed")
        lost = tuple(lost)
        if lost and window is None:
            raise ValueError("losses need the window they were counted in")
        if payloads is not None and len(payloads) != len(events):
            raise ValueError(f"{len(payloads)} payloads for {len(events)} rows")
        totals = sum_losses(lost, self._lost)
        rows = len(events)
        mark = Mark(
            batch=self._batches,
            rows=rows,
            first_ts=int(events["ts"].min()) if rows else None,
            last_ts=int(events["ts"].max()) if rows else None,
            last_seq=self._seq + rows,
            window=window,
            lost=lost,
            end=end,
            totals=totals if end is not None else None,
            more=more,
        )
        batch = self._made.record_batch(events, payloads, self._seq + 1)
        try:
            self._append(self._made.message(batch, mark))
        except OSError as error:
            raise _cannot("write", self._path, error) from error
        self._batches += 1
        self._seq += rows
        self._lost = totals

    def _append(self, data: memoryview) -> None:
        """Write data whole, or nothing of it."""
        done = 0
        try:
            # One turn, but on a full disk: there the first call writes what
            # still fits and the second one says why.
            while done < len(data):
                done += os.write(self._fd, data[done:])
        except BaseException:
            os.ftruncate(self._fd, self._size)
            raise
        self._size += done

    def _give_up(self, made: Path) -> None:
        self.close()
        made.unlink(missing_ok=True)


def _replaceable(path: Path) -> bool:
    """Return whether a regular file is there. Raises if something else is."""
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return False
    except OSError as error:
        raise _cannot("replace", path, error) from error
    if stat.S_ISREG(mode):
        return True
    what = "a symbolic link" if stat.S_ISLNK(mode) else "no regular file"
    raise TraceWriteError(
        f"{path}: is {what} and will not be replaced",
        hint="name another file with -o FILE",
    )


def _create(path: Path, *, asked: Path) -> int:
    try:
        return os.open(path, _FLAGS, 0o600)
    except FileExistsError as error:
        if asked.is_symlink():
            raise TraceWriteError(
                f"{asked}: is a symbolic link and will not be followed",
                hint="name another file with -o FILE",
            ) from error
        raise TraceWriteError(
            f"{asked}: exists already",
            hint="name another file with -o FILE, or replace it with -f",
        ) from error
    except OSError as error:
        raise _cannot("create", asked, error) from error


_HINTS: Final = {
    errno.ENOSPC: "make room there, or record to another disk with -o FILE",
    errno.EDQUOT: "make room there, or record to another disk with -o FILE",
    errno.EFBIG: "raise the limit on file sizes: ulimit -f unlimited",
    errno.ENOENT: "make the directory first, or name another file with -o FILE",
    errno.EROFS: "name a file on a writable disk with -o FILE",
    errno.EACCES: "name a file in a directory of your own with -o FILE",
}


def _cannot(verb: str, path: Path, error: OSError) -> TraceWriteError:
    """Return the error to raise for what the system refused."""
    return TraceWriteError(
        f"{path}: cannot {verb} it: {error.strerror}",
        hint=_HINTS.get(error.errno or 0, "name another file with -o FILE"),
    )
