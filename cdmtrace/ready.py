"""A file that is there while a recording is on: scripts wait for it."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from cdmtrace.caller import Caller, acting_as
from cdmtrace.errors import RecordError


def require_absent(path: Path) -> None:
    """Raise RecordError for a path at which no such file can be made."""
    if os.path.lexists(path):
        raise RecordError(
            f"--ready-file {path}: exists already",
            hint="remove it: a recorder that was killed leaves it behind",
        )
    if not path.parent.is_dir():
        raise RecordError(
            f"--ready-file {path}: {path.parent} is no directory",
            hint="make the directory first",
        )


@contextlib.contextmanager
def ready(path: Path, owner: Caller | None) -> Iterator[None]:
    """Have an empty file there inside the block, made with this user's rights.

    One that is there already, or a link, is not touched: RecordError. At the end it is
    removed, unless another file has taken its name.
    """
    directory = -1
    try:
        directory = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        with acting_as(owner):
            fd = os.open(path.name, flags, 0o644, dir_fd=directory)
    except OSError as error:
        if directory >= 0:
            os.close(directory)
        raise RecordError(
            f"--ready-file {path}: cannot be made: {error.strerror}",
            hint="name another file",
        ) from error
    try:
        yield
    finally:
        # Held open until here: its number cannot be another file's meanwhile.
        with contextlib.suppress(FileNotFoundError):
            there = os.stat(path.name, dir_fd=directory, follow_symlinks=False)
            if os.path.samestat(os.fstat(fd), there):
                with acting_as(owner):
                    os.unlink(path.name, dir_fd=directory)
        os.close(fd)
        os.close(directory)
