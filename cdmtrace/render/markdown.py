"""Markdown that what a recording holds cannot break out of."""

from __future__ import annotations

import re


def fenced(text: str, language: str) -> str:
    """Return text as a block of code, behind a fence that is not in it."""
    fence = "`" * (max(map(len, re.findall("`+", text)), default=2) + 1)
    fence = fence.ljust(3, "`")
    return f"{fence}{language}\n{text}\n{fence}\n"


def cell(text: str) -> str:
    """Return text that ends no cell of a table, and is no HTML and no link."""
    # Arrow comes with it, which a list of verbs does not need.
    from cdmtrace.format.schema import printable

    # A task calls itself what it likes.
    for mark in "\\`*[]|":
        text = text.replace(mark, f"\\{mark}")
    text = text.replace("&", "&amp;").replace("<", "&lt;")
    return "<br>".join(map(printable, text.split("\n")))
