"""Run the lab from a test, as a person would from the shell."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from cdmtrace.analysis.result import Finding
from cdmtrace.lab import quirks
from cdmtrace.lab.guestscript import in_memory

COUNTED_BY_DEFECTS = frozenset(
    {
        *("CDM004", "CDM006", "CDM009", "CDM012", "CDM013"),
        *("CDM015", "CDM016", "CDM017", "CDM018"),
    }
)
"""Rules that programs break in passing where the kernel has the RFC's defects. Of what
it does with each, place by place, test_matrix.py keeps count."""

BY_QUIRKS = Path(__file__).parent / "kernel" / "by_quirks.py"


def found_under(names: str, findings: Iterable[Finding]) -> set[tuple[str, str]]:
    """Return (rule, cause) of the findings under some quirks: under none, of all."""
    passed_over = frozenset() if names == quirks.NONE else COUNTED_BY_DEFECTS
    return {
        (one.rule.id, one.cause) for one in findings if one.rule.id not in passed_over
    }


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


def by_libbpf(*words: str) -> tuple[str, ...]:
    """Return a command whose recordings have nothing to compile."""
    return ("env", "CDMTRACE_RECORD_LOADER=libbpf", *words)


def lab_record(
    tmp_path: Path, recordings: Mapping[str, Sequence[str]], *options: str
) -> tuple[Path, dict[str, int]]:
    """Make a recording under each set of quirks, in one boot.

    recordings: quirks -> arguments of ``record``; of those called QUIRKS+bcc, bcc
    compiles the probes. Returns the directory, with an
    .arrows, a .stdout and a .stderr of each, and quirks -> exit status.
    """
    file = tmp_path / "recordings.json"
    file.write_text(json.dumps(recordings))
    words: tuple[str, ...] = (sys.executable, str(BY_QUIRKS), str(file))
    if any(name.endswith("+bcc") for name in recordings):
        words = in_memory(*words)
    result = lab_run(tmp_path, *options, "--timeout", "3300", "--", *words)
    assert result.returncode == 0, result.stdout + result.stderr
    run = tmp_path / "run"
    return run, json.loads((run / "statuses.json").read_text())
