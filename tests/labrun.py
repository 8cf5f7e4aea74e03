"""Run the lab from a test, as a person would from the shell."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


def lab_run(tmp_path: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Boot a guest; its run directory is ``run`` below tmp_path."""
    return subprocess.run(
        [
            *(sys.executable, "-m", "cdmtrace", "lab", "run"),
            *("--run-dir", str(tmp_path / "run"), *words),
        ],
        text=True,
        capture_output=True,
        check=False,
    )
