"""A patched work tree that follows its patches with as few writes as possible.

The work tree starts as hard links to the pristine source.  Bringing it up to date
never reverses a patch: the files that any patch touches, now or before, are taken
from the pristine tree into a scratch directory, the patches are applied there, and
each result that differs from the work tree is put in its place with a new time
stamp.  All other files keep their times, so make rebuilds only what has to be.

A list of the files that may differ from the pristine tree is written before the
first of them is changed.  Killed at any point, the next call finds the list and puts
the tree right.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from cdmtrace.errors import LabError
from cdmtrace.lab.paths import write_atomically

if TYPE_CHECKING:
    from collections.abc import Sequence

_HEADER = re.compile(r"^(?:---|\+\+\+) (\S+)", re.MULTILINE)
_NO_FILE = "/dev/null"


def touched_files(patch: str) -> set[str]:
    """Return the files that ``patch`` (made with -p1) changes, adds or removes.

    Raises ValueError for a name that would leave the tree.
    """
    files: set[str] = set()
    lines = patch.splitlines()
    for before, after in itertools.pairwise(lines):
        # A removed line that begins with "-- " looks like a header; the pair does not.
        if not (before.startswith("--- ") and after.startswith("+++ ")):
            continue
        for line in (before, after):
            match = _HEADER.match(line)
            if match is None or match[1] == _NO_FILE:
                continue
            name = PurePosixPath(match[1]).parts[1:]
            if not name or ".." in name:
                raise ValueError(f"patch names a file outside the tree: {match[1]}")
            files.add(str(PurePosixPath(*name)))
    return files


def update_tree(pristine: Path, tree: Path, patches: Sequence[Path]) -> list[str]:
    """Make ``tree`` equal ``pristine`` plus ``patches``; return what was written.

    ``pristine`` and ``tree`` are on one file system.  The names returned are
    relative to the tree.  Raises :class:`LabError` naming the patch that does not
    apply; the tree is then as it was.
    """
    if not tree.is_dir():
        _link_tree(pristine, tree)
    record = tree.parent / f"{tree.name}.touched.json"
    before = set(json.loads(record.read_bytes())) if record.exists() else set()
    after: set[str] = set()
    for patch in patches:
        try:
            after |= touched_files(patch.read_text())
        except ValueError as error:
            raise LabError(f"{patch.name}: {error}") from error
    with tempfile.TemporaryDirectory(prefix=".patch-", dir=tree.parent) as scratch:
        wanted = Path(scratch)
        for name in after:
            if (pristine / name).exists():
                (wanted / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(pristine / name, wanted / name)
        for patch in patches:
            _apply(patch, wanted)
        _write_record(record, before | after)
        written = [
            name
            for name in sorted(before | after)
            if _settle(wanted / name if name in after else pristine / name, tree / name)
        ]
    _write_record(record, after)
    return written


def _write_record(record: Path, names: set[str]) -> None:
    write_atomically(record, json.dumps(sorted(names)).encode())


def _link_tree(pristine: Path, tree: Path) -> None:
    tree.parent.mkdir(parents=True, exist_ok=True)
    temporary = tree.with_name(f".{tree.name}.linking")
    shutil.rmtree(temporary, ignore_errors=True)
    shutil.copytree(pristine, temporary, symlinks=True, copy_function=os.link)
    temporary.rename(tree)


def _apply(patch: Path, directory: Path) -> None:
    result = subprocess.run(
        ["patch", "-p1", "-s", "-f", "--no-backup-if-mismatch"],
        cwd=directory,
        input=patch.read_text(),
        text=True,
        capture_output=True,
        check=False,
        env={**os.environ, "LC_ALL": "C"},
    )
    if result.returncode != 0:
        raise LabError(
            f"patch {patch.name} does not apply to the kernel source",
            details=result.stdout + result.stderr,
            hint="cdmtrace lab build --update, if the source package is old",
        )


def _settle(wanted: Path, actual: Path) -> bool:
    """Give ``actual`` the content of ``wanted``; return whether it had another."""
    if not wanted.exists():
        if not actual.exists():
            return False
        actual.unlink()
        return True
    data = wanted.read_bytes()
    if actual.exists() and actual.read_bytes() == data:
        return False
    # Never in place: the file may be a link to the pristine one.
    write_atomically(actual, data, mode=wanted.stat().st_mode & 0o777)
    return True
