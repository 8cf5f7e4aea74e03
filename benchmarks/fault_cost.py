#!/usr/bin/env python3
"""Measure in a guest what a fault costs under one tracer after the other.

    benchmarks/fault_cost.py [--rounds N] [--keep DIR]

Prints a table in Markdown (docs/cost.md). What a tracer adds to a fault is told in
multiples of what an empty kprobe and kretprobe add on the function that allocates, in
the same round: a guest that is emulated has no times of its own.
"""

from __future__ import annotations

import statistics
from typing import Any

from inguest import measured

EMPTY = "empty kprobe + kretprobe"


def added(faults: dict[str, dict[str, list[float]]], name: str, what: str) -> float:
    """Return the seconds that a tracer adds, by the least of the rounds."""
    return min(faults[name][what]) - min(faults["untraced"][what])


def usually(faults: dict[str, dict[str, list[float]]], name: str, what: str) -> float:
    """Return the same by the medians: how far apart they are says what it is worth."""
    return statistics.median(faults[name][what]) - statistics.median(
        faults["untraced"][what]
    )


def table(found: dict[str, Any]) -> list[str]:
    """Return the table of what is added to a fault; an empty pair of kprobes is 1."""
    faults = found["faults"]
    one = added(faults, EMPTY, "ram")
    lines = [
        "| tracer | RAM: adds | by medians | CDM: adds | by medians |",
        "|---|---:|---:|---:|---:|",
    ]
    for name in faults:
        if name == "untraced":
            continue
        numbers = [
            f"{f(faults, name, what) / one:.1f}"
            for what in ("ram", "cdm")
            for f in (added, usually)
        ]
        lines.append(f"| {name} | {' | '.join(numbers)} |")
    untraced = min(faults["untraced"]["ram"])
    lines += ["", f"A fault itself takes as long as {untraced / one:.0f} empty pairs."]
    return lines


if __name__ == "__main__":
    print("\n".join(table(measured(__doc__, "fault_cost_guest.py", "faults.json"))))
