"""Runs in a guest: a recording under each of several sets of quirks, one by one.

Importing bcc takes 20 s in an emulated guest, and unpacking the kernel's headers as
long, so each recording is made by a child of this process, which has both. A row's
trace, stdout and stderr are left in the working directory, and how it ended in
``statuses.json``, which is written anew after each row: the guest may die in the next.

Usage: python -m cdmtrace.lab.recordings FILE

FILE is ``[{"name", "quirks", "words", "seconds"}...]``: what is written to debugfs, the
arguments of record, and how long the row may take.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

STATUSES = "statuses.json"
TIMED_OUT = 124


def in_memory(*words: str) -> tuple[str, ...]:
    """Return a command, to be run in a guest with copies of bcc's libraries.

    A guest's root is on 9p without a cache: of a library that is mapped from there, and
    LLVM's has 100 MiB, each page is asked for by itself. A copy reads 500 KiB at once.
    Where bcc is not to be found, the words are returned as they are.
    """
    library = next(Path("/usr/lib").glob("*/libbcc.so.0"), None)
    if library is None:
        return words
    needed = subprocess.run(
        ["ldd", library], text=True, capture_output=True, check=True
    )
    files = [str(library), *re.findall(r"=> (/\S+)", needed.stdout)]
    script = f'mkdir /tmp/lib && cp {shlex.join(files)} /tmp/lib && exec "$@"'
    return ("sh", "-c", script, "sh", "env", "LD_LIBRARY_PATH=/tmp/lib", *words)


def record(row: Mapping[str, Any]) -> int:
    """Make one recording in a child; return its status, 124 if it took too long."""
    pid = os.fork()
    if not pid:
        _record_and_exit(row)
    deadline = time.monotonic() + row["seconds"]
    while time.monotonic() < deadline:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.2)
    # The group: what the recorder has started ends with it.
    os.killpg(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return TIMED_OUT


def _record_and_exit(row: Mapping[str, Any]) -> None:
    from cdmtrace.cli import main

    status = 99
    try:
        os.setpgid(0, 0)
        for number, stream in ((1, "stdout"), (2, "stderr")):
            kept = os.open(f"{row['name']}.{stream}", os.O_WRONLY | os.O_CREAT, 0o644)
            os.dup2(kept, number)
        status = main(["record", "-o", f"{row['name']}.arrows", *row["words"]])
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def run(file: Path) -> None:
    """Make the recordings that a file asks for."""
    from cdmtrace.kernel import headers
    from cdmtrace.lab.quirks import DEBUGFS_FILE
    from cdmtrace.loader.bcc import import_bcc

    import_bcc()
    statuses: dict[str, int] = {}
    with headers.available():
        for row in json.loads(file.read_text()):
            Path(DEBUGFS_FILE).write_text(row["quirks"])
            sys.stdout.write(f"recording {row['name']}\n")
            sys.stdout.flush()
            statuses[row["name"]] = record(row)
            Path(STATUSES).write_text(json.dumps(statuses))


if __name__ == "__main__":
    run(Path(sys.argv[1]))
