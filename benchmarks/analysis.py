#!/usr/bin/env python3
"""Measure what the analysis of a large trace takes: time, and memory at most.

    benchmarks/analysis.py [BASE...] [--events N...] [--verb NAME...] [--keep DIR]

Prints a table in Markdown (docs/speed.md). A large trace is made of each BASE
(benchmarks/large.py); without one, of the recordings that the tests have. Each verb
runs as people run it, in a process of its own, and prints to nowhere; "check, one
process" is check with --workers 1, and "check, row by row" is that without the screen
(cdmtrace/analysis/screen.py). Events a second are those of the file by the time that
passed, and a core by the time that all processors worked: starting Python, too, which
is why small files look slow. Memory is what all processes of a verb have together
(PSS), looked at ten times a second.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import psutil

ROOT: Final = Path(__file__).resolve().parents[1]
BASES: Final = (
    ROOT / "tests/golden/cdm-6.1-none.arrows",
    ROOT / "tests/golden/cdm-6.1-rfc.arrows",
)
_SQL: Final = "SELECT kind, node, count(*) FROM events GROUP BY ALL"
VERBS: Final = {
    "info": ("info", "TRACE"),
    "check": ("check", "--format", "json", "TRACE"),
    "check, one process": ("check", "--workers", "1", "--format", "json", "TRACE"),
    "report": ("report", "--format", "json", "TRACE"),
    "report --html": ("report", "--html", "OUT", "TRACE"),
    "timeline": ("timeline", "TRACE"),
    "export ndjson": ("export", "ndjson", "TRACE"),
    "query": ("query", "TRACE", _SQL),
}
"""Verb -> its words, with the file in the place of TRACE, a new one in that of OUT."""
_PLAIN: Final = """\
import sys
from cdmtrace.analysis import book, check, load
check(load(sys.argv[1]), bounds=book.VERDICT, screened=False)"""
PLAIN: Final = "check, row by row"
"""What check takes where the model is given each row, and nothing is screened."""
GOOD: Final = (0, 1, 3)
"""Exit statuses of a verb that has done its work."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """One run. wall, cpu: seconds; memory: bytes, the most at a time."""

    base: str
    verb: str
    events: int
    wall: float
    cpu: float
    memory: int

    def row(self) -> str:
        """Return it as a row of the table."""
        cells = (
            self.base,
            self.verb,
            f"{self.events:,}",
            f"{self.wall:,.1f}",
            f"{self.cpu:,.1f}",
            f"{self.events / self.wall:,.0f}",
            f"{self.events / self.cpu:,.0f}",
            f"{self.memory / 1e6:,.0f}",
        )
        return f"| {' | '.join(cells)} |"


HEAD: Final = """\
| base | verb | events | s | s of processor | events/s | a core | MB at most |
|---|---|---:|---:|---:|---:|---:|---:|"""


def make(base: Path, trace: Path, events: int) -> int:
    """Make a large file; return how many events it has."""
    command = [sys.executable, str(Path(__file__).with_name("large.py"))]
    command += [str(base), str(trace), "--events", str(events)]
    made = subprocess.run(command, check=True, capture_output=True, text=True)
    return int(made.stdout.split()[0].replace(",", ""))


def measure(base: str, verb: str, trace: Path, events: int) -> Run:
    """Run a verb on a file. Exits where it fails."""
    out = trace.with_suffix(".out")
    names = {"TRACE": str(trace), "OUT": str(out)}
    words = [names.get(word, word) for word in VERBS.get(verb, ())]
    command = [sys.executable, "-m", "cdmtrace", *words]
    if verb == PLAIN:
        command = [sys.executable, "-c", _PLAIN, str(trace)]
    before = os.times().elapsed
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL, cwd=ROOT)
    process, memory = psutil.Process(child.pid), 0
    while not os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT):
        memory = max(memory, held(process))
        time.sleep(0.1)
    _, status, used = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    out.unlink(missing_ok=True)
    if child.returncode not in GOOD:
        sys.exit(f"analysis: {' '.join(command)}: status {child.returncode}")
    return Run(
        base=base,
        verb=verb,
        events=events,
        wall=os.times().elapsed - before,
        cpu=used.ru_utime + used.ru_stime,
        memory=memory,
    )


def held(process: psutil.Process) -> int:
    """Return how many bytes a process has, and all that it has started."""
    total = 0
    # One may end while it is looked at.
    with contextlib.suppress(psutil.Error):
        for one in (process, *process.children(recursive=True)):
            with contextlib.suppress(psutil.Error):
                total += one.memory_full_info().pss
    return total


def runs(options: argparse.Namespace, directory: Path) -> Iterator[Run]:
    """Yield one run after the other; one large file at a time is there."""
    for base in options.base or BASES:
        for events in options.events:
            trace = directory / f"{base.stem}-{events}.arrows"
            made = make(base, trace, events)
            for verb in options.verb or (*VERBS, PLAIN):
                yield measure(base.stem, verb, trace, made)
            if options.keep is None:
                trace.unlink()


def main() -> None:
    """Print the table, row by row."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("base", type=Path, nargs="*")
    parser.add_argument(
        "--events", type=int, nargs="+", default=[10_000, 100_000, 1_000_000]
    )
    parser.add_argument("--verb", choices=(*VERBS, PLAIN), nargs="+")
    parser.add_argument("--keep", type=Path, metavar="DIR")
    options = parser.parse_args()
    print(HEAD)
    with tempfile.TemporaryDirectory() as scratch:
        for run in runs(options, options.keep or Path(scratch)):
            print(run.row(), flush=True)


if __name__ == "__main__":
    main()
