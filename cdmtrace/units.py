"""How numbers are written everywhere that people read them.

JSON and CSV have plain numbers. What is written as the kernel writes it (``N1=1536`` of
numa_maps) has no separators either, and so have ids: pids, cpus, nodes, rows.
"""

from __future__ import annotations


def counted(many: int) -> str:
    """Return how many there are, as in ``2,310``."""
    return f"{many:,}"


def count(many: int, noun: str, plural: str | None = None) -> str:
    """Return a number with its noun, as in ``1 event`` or ``2,310 events``."""
    return f"{counted(many)} {noun if many == 1 else plural or noun + 's'}"


def size(many: int) -> str:
    """Return so many bytes in the largest binary unit that they fill."""
    value, units = float(many), ["B", "KiB", "MiB", "GiB", "TiB"]
    while value >= 1024 and len(units) > 1:
        value /= 1024
        units.pop(0)
    return f"{value:.0f} {units[0]}" if units[0] == "B" else f"{value:,.1f} {units[0]}"


def seconds(ns: int) -> str:
    """Return a time on a recording's axis, as columns of "time (s)" have it.

    Without separators, for it can be typed: ``--at 2310.117024``.
    """
    return f"{ns / 10**9:.6f}"


def duration(ns: int) -> str:
    """Return a time in ns as seconds with their unit, as in ``2.310117 s``."""
    return f"{seconds(ns)} s"
