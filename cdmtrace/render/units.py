"""How numbers are written everywhere."""

from __future__ import annotations


def count(number: int, noun: str, plural: str | None = None) -> str:
    """Return a number with its noun, as in ``1 event`` or ``2,310 events``."""
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"


def size(number: int) -> str:
    """Return a number of bytes in the largest binary unit that it fills."""
    value, units = float(number), ["B", "KiB", "MiB", "GiB"]
    while value >= 1024 and len(units) > 1:
        value /= 1024
        units.pop(0)
    return f"{value:.0f} {units[0]}" if units[0] == "B" else f"{value:.1f} {units[0]}"


def duration(ns: int) -> str:
    """Return a time in ns as seconds, as in ``2.310117 s``."""
    return f"{ns / 10**9:,.6f} s"
