"""Markdown that what a recording holds cannot break out of."""

from __future__ import annotations

import re


def fenced(text: str, language: str) -> str:
    """Return text as a block of code, behind a fence that is not in it."""
    fence = "`" * (max(map(len, re.findall("`+", text)), default=2) + 1)
    fence = fence.ljust(3, "`")
    return f"{fence}{language}\n{text}\n{fence}\n"
