#!/usr/bin/env python3
"""Measure in a guest what each probe costs where its event is rejected.

    benchmarks/probe_cost.py [--rounds N] [--keep DIR]

Prints two tables in Markdown (docs/cost.md): what a run of each handler takes, as a
multiple of an empty program's, and what a fault takes, as a multiple of one that
nobody traces. Only multiples are told: a guest that is emulated has no other times.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

from cdmtrace.probes import PROBES

HERE = Path(__file__).resolve().parent


def measure(rounds: int, directory: Path) -> dict[str, Any]:
    """Return what the guest has measured."""
    words = [
        *(sys.executable, "-m", "cdmtrace", "lab", "run", "--timeout", "1800"),
        *("--run-dir", str(directory), "--"),
        *(sys.executable, str(HERE / "probe_cost_guest.py"), str(rounds)),
    ]
    subprocess.run(words, check=True)
    found: dict[str, Any] = json.loads((directory / "cost.json").read_text())
    return found


def handlers(found: dict[str, Any]) -> list[str]:
    """Return the table of handlers, dearest first.

    Of the rounds the least counts: whoever takes the cpu away only adds.
    """
    runs: Counter[str] = Counter()
    means: defaultdict[str, list[float]] = defaultdict(list)
    for part in found["programs"]:
        for name, (count, ns) in part.items():
            runs[name] += count
            if count:
                means[name].append(ns / count)
    one = min(means["empty_entry"])
    probes = {a.handler: probe.name for probe in PROBES for a in probe.attachments}
    probes |= {"call_enter": "sys_*", "call_exit": "sys_*"}
    rows = [
        f"| `{name}` | {probes.get(name, '')} | {runs[name]:,} | "
        f"{min(means[name]) / one:.1f} | {statistics.median(means[name]) / one:.1f} |"
        for name in sorted(means, key=lambda name: min(means[name]), reverse=True)
    ]
    idle = sorted(f"`{name}`" for name in runs if not means[name])
    return [
        "| handler | probe | runs | least, empty = 1 | median |",
        "|---|---|---:|---:|---:|",
        *rows,
        "",
        f"Never called: {', '.join(idle) or 'none'}.",
    ]


def loop(found: dict[str, Any]) -> list[str]:
    """Return the table of the loop: median, least and most of the rounds."""
    lines = ["| faults | untraced = 1 | least | most |", "|---|---:|---:|---:|"]
    base = found["loop"]["untraced"]
    for name, seconds in found["loop"].items():
        # Each by its own round's: the machine is not the same from one to the next.
        times = [one / other for one, other in zip(seconds, base, strict=True)]
        lines.append(
            f"| {name} | {statistics.median(times):.2f} | {min(times):.2f} | "
            f"{max(times):.2f} |"
        )
    return lines


def main() -> None:
    """Do as the module says."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--keep", type=Path, metavar="DIR")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="cdmtrace-bench-") as scratch:
        found = measure(options.rounds, options.keep or Path(scratch) / "run")
    print("\n".join([*handlers(found), "", *loop(found)]))


if __name__ == "__main__":
    main()
