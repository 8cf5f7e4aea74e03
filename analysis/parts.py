"""Which files belong together: parts of recordings, found by what their headers say."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from cdmtrace.errors import UsageTrouble
from cdmtrace.format.reader import TraceReader
from cdmtrace.format.schema import Part

Paths = Sequence[str | os.PathLike[str]]

File = TypeVar("File")
"""A file, or what stands for one: its text is its name."""


def recordings(paths: Paths) -> list[list[Path]]:
    """Return the files by recording, parts in order; recordings as they were given.

    A file that is a whole recording is one of its own. Raises TraceFileError for what
    is no trace file, and UsageTrouble where a part is there twice.
    """
    files = ((path, _part(path)) for path in map(Path, paths))
    return [in_order(group) for group in together(files)]


def together(files: Iterable[tuple[File, Part | None]]) -> list[dict[int, list[File]]]:
    """Return the files by recording: number of a part -> the files that are that part.

    Recordings are as they were given. A file without a part is a recording of its own.
    """
    found: dict[str, dict[int, list[File]]] = {}
    for number, (file, part) in enumerate(files):
        # No id has a blank in it.
        key = part.recording if part else f"file {number}"
        at = part.number if part else 0
        found.setdefault(key, {}).setdefault(at, []).append(file)
    return list(found.values())


def in_order(parts: Mapping[int, Sequence[File]]) -> list[File]:
    """Return the parts of one recording in order.

    Raises UsageTrouble where one is there twice.
    """
    for number, files in parts.items():
        if len(files) > 1:
            raise UsageTrouble(
                f"{files[0]} and {files[1]} are both part {number} of one recording",
                hint="leave one of them out",
            )
    return [parts[number][0] for number in sorted(parts)]


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
