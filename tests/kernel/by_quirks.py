"""Runs in the guest: a recording under each set of quirks, by one process.

Each recording is a child of it, as in recordings.py. Leaves NAMES.arrows, NAMES.stdout
and NAMES.stderr of each set, and the exit statuses in ``statuses.json``.

Usage: by_quirks.py FILE: {quirks: [argument of record...]}

A name such as rfc+bcc has two parts: the quirks, and who loads the probes, libbpf if it
is not said.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from recordings import finish, prepared, start


def main(file: str) -> None:
    """Make the recordings, one after the other."""
    from cdmtrace.lab.quirks import DEBUGFS_FILE

    statuses = {}
    for name, words in json.loads(Path(file).read_text()).items():
        names, _, loader = name.partition("+")
        Path(DEBUGFS_FILE).write_text(names)
        with prepared(loader or "libbpf"):
            statuses[name] = finish(start(name, *words))
    Path("statuses.json").write_text(json.dumps(statuses))


if __name__ == "__main__":
    main(sys.argv[1])
