"""The text form of what services of the kernel did to pages of CDM nodes."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any, Final

from cdmtrace.render.tables import plain
from cdmtrace.units import seconds

WIDTH: Final = 79


def services(found: Mapping[str, Any]) -> str:
    """Return the table of observed against allowed, and what was not seen below it."""
    cells = found["cells"]
    lines = ["Services that touched pages of CDM nodes"]
    lines.append(plain([_row(cell) for cell in cells]) if cells else "(no CDM node)")
    for names, why in _unchecked(cells):
        lines += _filled(f"? {names}: {why}")
    if found["why"]:
        lines += _filled(f"not certain: {found['why']}")
    return "\n".join(lines)


def _row(cell: Mapping[str, Any]) -> dict[str, Any]:
    """Return the row of a cell; None is what could not be seen."""
    unseen, first = bool(cell["unchecked"]), cell["first"]
    return {
        "node": cell["node"],
        "service": cell["service"],
        "allowed": "yes" if cell["allowed"] else "NO" if cell["observed"] else "no",
        **{
            f"pages {way}": None if unseen else cell["pages"][way]
            for way in ("came", "left", "stayed")
        },
        "since (s)": seconds(first["since_start"]) if first else "-",
        "by": by(cell["by"]),
    }


def by(tasks: Sequence[Mapping[str, Any]]) -> str:
    """Return who acted: the task with the most pages, and how many others."""
    if not tasks:
        return "-"
    more = f" +{len(tasks) - 1}" if len(tasks) > 1 else ""
    return f"{tasks[0]['comm']}{more}"


def _unchecked(cells: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """Return the services that were not seen for the same reason, each once."""
    told: dict[str, dict[str, None]] = {}
    for cell in cells:
        if cell["unchecked"]:
            told.setdefault(cell["unchecked"], {})[cell["service"]] = None
    return [(", ".join(names), why) for why, names in told.items()]


def _filled(text: str) -> list[str]:
    return textwrap.wrap(
        text,
        WIDTH,
        subsequent_indent="  ",
        break_long_words=False,
        break_on_hyphens=False,
    )
