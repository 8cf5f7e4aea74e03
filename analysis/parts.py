"""Which files belong together: parts of recordings, found by what their headers say."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from cdmtrace.errors import UsageTrouble
from cdmtrace.format.reader import TraceReader
from cdmtrace.format.schema import Part

Paths = Sequence[str | os.PathLike[str]]


def recordings(paths: Paths) -> list[list[Path]]:
    """Return the files by recording, parts in order; recordings as they were given.

    A file that is a whole recording is one of its own. Raises TraceFileError for what
    is no trace file, and UsageTrouble where a part is there twice.
    """
    found: dict[str, dict[int, Path]] = {}
    for number, path in enumerate(map(Path, paths)):
        part = _part(path)
        # No id has a blank in it.
        key = part.recording if part else f"file {number}"
        parts = found.setdefault(key, {})
        at = part.number if part else 0
        if at in parts:
            raise UsageTrouble(
                f"{parts[at]} and {path} are both part {at} of one recording",
                hint="leave one of them out",
            )
        parts[at] = path
    return [[parts[number] for number in sorted(parts)] for parts in found.values()]


def one_recording(paths: Paths) -> list[Path]:
    """Return the parts of a recording, in order.

    Raises UsageTrouble where they are not of one, and as recordings() does.
    """
    if len(paths) == 1:
        # It may be a pipe's: it is opened once.
        return [Path(paths[0])]
    first, *others = recordings(paths)
    if others:
        raise UsageTrouble(
            f"{first[0]} and {others[0][0]} are not parts of one recording",
            hint="give one recording at a time",
        )
    return first


def _part(path: Path) -> Part | None:
    with TraceReader(path) as reader:
        return reader.header.part
