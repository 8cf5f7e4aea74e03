"""Run a benchmark in the laboratory's guest, and take home what it leaves."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent


def measured(description: str, script: str, left: str) -> Any:
    """Return what a script here leaves in a JSON file in the guest; see its usage."""
    parser = argparse.ArgumentParser(description=description.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--keep", type=Path, metavar="DIR")
    options = parser.parse_args()
    path = os.pathsep.join([str(HERE.parent), str(HERE)])
    with tempfile.TemporaryDirectory(prefix="cdmtrace-bench-") as scratch:
        directory = options.keep or Path(scratch) / "run"
        words = [
            *(sys.executable, "-m", "cdmtrace", "lab", "run", "--timeout", "3000"),
            *("--run-dir", str(directory), "--"),
            *(sys.executable, str(HERE / script), str(options.rounds)),
        ]
        subprocess.run(
            words, check=True, stdout=sys.stderr, env={**os.environ, "PYTHONPATH": path}
        )
        return json.loads((directory / left).read_text())
