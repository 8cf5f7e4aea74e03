"""Runs in the guest: a recording under each set of quirks, by one process.

Each recording is a child of it, as in recordings.py. Leaves NAMES.arrows, NAMES.stdout
and NAMES.stderr of each set, and the exit statuses in ``statuses.json``.

Usage: by_quirks.py FILE: {quirks: [argument of record...]}

A name such as rfc+bcc has two parts: the quirks, and who loads the probes, libbpf if it
is not said. bcc compiles with -Werror here.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from recordings import finish, prepared, start

STRICT = ["-Wall", "-Wextra", "-Werror", "-Wno-unused-parameter"]
"""A warning of the compiler makes every recording fail."""


def be_strict() -> None:
    """Let every warning of bcc's compiler be an error."""
    from cdmtrace.loader.bcc import import_bcc

    bcc = import_bcc()

    class Strict(bcc.BPF):
        def __init__(self, **options: Any) -> None:
            super().__init__(cflags=STRICT, **options)

    bcc.BPF = Strict


def main(file: str) -> None:
    """Make the recordings, one after the other."""
    from cdmtrace.lab.quirks import DEBUGFS_FILE

    statuses = {}
    for name, words in json.loads(Path(file).read_text()).items():
        names, _, loader = name.partition("+")
        Path(DEBUGFS_FILE).write_text(names)
        with prepared(loader or "libbpf"):
            if loader == "bcc":
                be_strict()
            statuses[name] = finish(start(name, *words))
    Path("statuses.json").write_text(json.dumps(statuses))


if __name__ == "__main__":
    main(sys.argv[1])
