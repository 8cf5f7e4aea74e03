#!/usr/bin/env python3
"""Measure in a guest what a run of each handler takes where its event is rejected.

    benchmarks/probe_cost.py [--rounds N] [--keep DIR]

Prints a table in Markdown (docs/cost.md), in multiples of an empty program: an emulated
guest has no other times.
"""

from __future__ import annotations

import statistics
from collections import Counter, defaultdict
from typing import Any

from inguest import measured

from cdmtrace.probes import PROBES


def table(found: list[dict[str, Any]]) -> list[str]:
    """Return the table of handlers, dearest first.

    Of the rounds the least counts: whoever takes the cpu away only adds.
    """
    runs: Counter[str] = Counter()
    means: defaultdict[str, list[float]] = defaultdict(list)
    for part in found:
        for name, (count, ns) in part.items():
            runs[name] += count
            if count:
                means[name].append(ns / count)
    one = min(means["empty_entry"])
    probes = {a.handler: probe.name for probe in PROBES for a in probe.every_attachment}
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


if __name__ == "__main__":
    print("\n".join(table(measured(__doc__, "probe_cost_guest.py", "cost.json"))))
