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
    """Return the seconds that a tracer adds: the median of the rounds."""
    return statistics.median(
        with_it - without
        for with_it, without in zip(
            faults[name][what], faults["untraced"][what], strict=True
        )
    )


def spread(faults: dict[str, dict[str, list[float]]], name: str, what: str) -> float:
    """Return half of what lies between the quartiles of what it adds, in seconds."""
    pairs = zip(faults[name][what], faults["untraced"][what], strict=True)
    differences = [with_it - without for with_it, without in pairs]
    low, _, high = statistics.quantiles(differences, n=4)
    return (high - low) / 2


def table(found: dict[str, Any]) -> list[str]:
    """Return the table, and beside it what was told of the pages of the CDM node."""
    faults = found["faults"]
    one = added(faults, EMPTY, "ram")
    lines = [
        "| tracer | RAM: adds, empty pair = 1 | ± | CDM: adds | ± | told, a round |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for name in faults:
        if name == "untraced":
            continue
        numbers = [
            f"{f(faults, name, what) / one:.2f}"
            for what in ("ram", "cdm")
            for f in (added, spread)
        ]
        told = [events for events, _ in found["told"].get(name, [])]
        numbers.append(f"{statistics.median(told):,.0f}" if told else "")
        lines.append(f"| {name} | {' | '.join(numbers)} |")
    untraced = statistics.median(faults["untraced"]["ram"])
    lines += ["", f"A fault itself: {untraced / one:.1f} empty pairs."]
    return lines


if __name__ == "__main__":
    print("\n".join(table(measured(__doc__, "fault_cost_guest.py", "faults.json"))))
