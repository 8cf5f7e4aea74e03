"""Files on a worker's own disk, for as long as they are read."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

from cdmtrace import units
from cdmtrace.errors import CdmtraceError, UnreadableFile
from cdmtrace.fleet.places import Place, opened, said
from cdmtrace.format.framing import MAX_METADATA
from cdmtrace.format.reader import TraceReader
from cdmtrace.format.schema import Header
from cdmtrace.scratch import scratch
from cdmtrace.urls import is_url

# A recording is read several times over, and the reader reads it from a regular file,
# by offsets. So what is elsewhere is copied once, and not asked for row by row.

_FEW: Final = 1 << 18
"""Bytes within which nearly every header ends; those of the largest are MAX_METADATA.
"""

_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT})

_ANOTHER: Final = "--local-directory of dask worker names another one, or TMPDIR here"


@contextlib.contextmanager
def local(places: Sequence[Place], limit: int) -> Iterator[list[Path]]:
    """Have files under paths, in order; what was copied is gone after the block.

    limit: bytes that a file may have to be copied. Raises UnreadableFile for a larger
    one and for what cannot be read, and CdmtraceError where the disk is full.
    """
    with _directory(places[0]) as directory:
        yield [
            _copied(place, directory / f"{number}.arrows", limit)
            if is_url(place.at)
            else Path(place.at)
            for number, place in enumerate(places)
        ]


def header(place: Place) -> Header:
    """Return what a file says about itself; of one that is elsewhere, its beginning is
    read. Raises UnreadableFile, and CdmtraceError where there is no room for that.
    """
    if not is_url(place.at):
        return _header(Path(place.at), place)
    with _directory(place) as directory:
        path = directory / "0.arrows"
        whole = _begin(place, path, _FEW)
        try:
            return _header(path, place)
        except UnreadableFile:
            if whole:
                raise
        _begin(place, path, MAX_METADATA + _FEW)
        return _header(path, place)


def _header(path: Path, place: Place) -> Header:
    try:
        with TraceReader(path) as reader:
            return reader.header
    except UnreadableFile as error:
        raise renamed(error, {str(path): place.name}) from error


def _begin(place: Place, path: Path, many: int) -> bool:
    """Copy so many bytes of a file; return whether that is all of it."""
    with _asked(place):
        system, name = opened(place.at)
        with system.open(name, "rb", block_size=many) as file, path.open("wb") as out:
            # A stream gives what has come by now, which is no end yet.
            while (room := many - out.tell()) and (some := file.read(room)):
                out.write(some)
    return path.stat().st_size < many


def called(text: str, names: Mapping[str, str]) -> str:
    """Return text in which files have the names that people know. names: by path."""
    for path, name in names.items():
        text = text.replace(path, name)
    return text


def renamed(error: CdmtraceError, names: Mapping[str, str]) -> CdmtraceError:
    """Return the same error about files of other names. names: by path."""
    return type(error)(
        called(error.message, names),
        hint=error.hint and called(error.hint, names),
        details=error.details and called(error.details, names),
    )


@contextlib.contextmanager
def _directory(place: Place) -> Iterator[Path]:
    """Have a directory where a worker keeps what is its own, for a recording."""
    from distributed import get_worker

    try:
        base: str | None = get_worker().local_directory
    except ValueError:
        # We are in no worker.
        base = None
    with scratch("fleet", str(place), base, _ANOTHER) as made:
        yield made


def _copied(place: Place, path: Path, limit: int) -> Path:
    """Copy a file, by what its protocol has for that."""
    from fsspec.callbacks import Callback

    def require_small(size: int | None, value: int, **_: object) -> None:
        """Is called now and then, with what it has said and what there is by now."""
        if max(size or 0, value) > limit:
            raise UnreadableFile(
                f"{place}: has more than {units.size(limit)}, and is not copied",
                hint="--copy-limit says how large a file may be",
            )

    with _asked(place):
        system, name = opened(place.at)
        told = Callback(hooks={"limit": require_small})
        system.get_file(name, str(path), callback=told)
    return path


@contextlib.contextmanager
def _asked(place: Place) -> Iterator[None]:
    """Have whatever a protocol's library raises be an UnreadableFile, and a full disk
    what it is.
    """
    try:
        yield
    except CdmtraceError:
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno in _FULL:
            raise CdmtraceError(
                f"{place}: there is no room for a copy: {error.strerror}", hint=_ANOTHER
            ) from error
        raise UnreadableFile(
            f"{place}: cannot be read: {said(error)}",
            hint="the worker has to be able to read it, with credentials of its own",
        ) from error
