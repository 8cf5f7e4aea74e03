"""A file that a verb writes because it was told to: whole, or not there."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Final

from cdmtrace.errors import CdmtraceError, UsageTrouble

_FLAGS: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


@contextlib.contextmanager
def created(path: Path, *, force: bool) -> Iterator[IO[bytes]]:
    """Have a new file to write to inside the block, mode 0600 as recordings have.

    force: replace a regular file that is there, when the block has ended. If it is left
    by an exception, what was made is removed, and what was there is as it was. Raises
    UsageTrouble where something is in the way, and CdmtraceError for what the disk
    does.
    """
    made = path
    if force and os.path.lexists(path):
        if path.is_symlink() or not path.is_file():
            raise UsageTrouble(
                f"{path}: is no regular file, and is not replaced",
                hint="name another file",
            )
        made = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        fd = os.open(made, _FLAGS, 0o600)
    except FileExistsError as error:
        raise UsageTrouble(
            f"{path}: is there already", hint="--force replaces it"
        ) from error
    except OSError as error:
        raise CdmtraceError(
            f"{path}: cannot be made: {error.strerror}",
            hint="name a file in a directory that you may write to",
        ) from error
    try:
        with os.fdopen(fd, "wb") as file:
            yield file
        if made != path:
            made.replace(path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            made.unlink()
        if isinstance(error, OSError):
            raise CdmtraceError(
                f"{path}: cannot be written: {error.strerror or error}",
                hint=f"df {path.parent} says how much room there is",
            ) from error
        raise
