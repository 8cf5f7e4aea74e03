"""A file that a verb writes because it was told to: whole, or not there."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Final

from cdmtrace.errors import CdmtraceError, UsageTrouble
from cdmtrace.signals import signals_unwind

_FLAGS: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


@contextlib.contextmanager
def created(path: Path, *, force: bool) -> Iterator[IO[bytes]]:
    """Have a new file to write to inside the block, mode 0600 as recordings have.

    It has its name only when the block has ended: what is written before has another
    one, beside it, and is removed if the block is left by an exception or by a signal.
    A process that is killed can remove nothing, so ``.cdmtrace-*`` is left of it, and
    never half a file of the name that was asked for.

    force: replace a regular file that is there. Raises UsageTrouble where something is
    in the way, CdmtraceError for what the disk does, and KeyboardInterrupt or Ended for
    a signal.
    """
    # What is in the way is told before all the work.
    _look(path, force=force)
    made = path.with_name(f".cdmtrace-{secrets.token_hex(4)}")
    with signals_unwind() as raise_dropped:
        try:
            with _opened(made, path) as file:
                yield file
            raise_dropped()
            _give_name(made, path, force=force)
        except BaseException as error:
            with contextlib.suppress(OSError):
                made.unlink()
            if isinstance(error, OSError):
                raise CdmtraceError(
                    f"{path}: cannot be written: {error.strerror or error}",
                    hint=f"df {path.parent} says how much room there is",
                ) from error
            raise


def _look(path: Path, *, force: bool) -> None:
    """Raise UsageTrouble where something is in the way."""
    if not os.path.lexists(path):
        return
    if not force:
        raise _in_the_way(path)
    if path.is_symlink() or not path.is_file():
        raise UsageTrouble(
            f"{path}: is no regular file, and is not replaced", hint="name another file"
        )


def _in_the_way(path: Path) -> UsageTrouble:
    return UsageTrouble(f"{path}: is there already", hint="--force replaces it")


def _opened(made: Path, path: Path) -> IO[bytes]:
    try:
        return os.fdopen(os.open(made, _FLAGS, 0o600), "wb")
    except OSError as error:
        raise CdmtraceError(
            f"{path}: cannot be made: {error.strerror}",
            hint="name a file in a directory that you may write to",
        ) from error


def _give_name(made: Path, path: Path, *, force: bool) -> None:
    """Give what was made its name. Raises UsageTrouble where another came by it."""
    if not force:
        try:
            # Unlike rename(2), it replaces nothing.
            path.hardlink_to(made)
        except FileExistsError as error:
            raise _in_the_way(path) from error
        except OSError:
            # Not every file system has hard links; what is wrong else, rename() says.
            _look(path, force=False)
        else:
            made.unlink()
            return
    made.replace(path)
