"""Tables of ``report``, in the formats that --format knows."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from typing import Any, Final

from tabulate import tabulate

from cdmtrace import units
from cdmtrace.render import markdown

FORMATS: Final = ("table", "json", "ndjson", "csv", "markdown")
"""What --format takes wherever rows are printed."""

LIMIT: Final = 20
"""So many rows of a table are shown to people; how many more there are is told."""

_HEADS: Final = {
    "since": "since (s)",
    "until": "until (s)",
    "from": "from node",
    "to": "to node",
}
"""Key -> what stands above it for people; other columns have their keys."""

_IDS: Final = frozenset(
    {"pid", "tid", "cpu", "node", "from", "to", "row", "generation"}
)
"""Columns of numbers that count nothing."""

Rows = Sequence[Mapping[str, Any]]
Tables = Mapping[str, Rows]
"""Title -> rows; every row of a table has the same keys, in order. None is unknown,
and what is in a column "bytes" is bytes."""


def render(tables: Tables, how: str, limit: int | None = LIMIT) -> str:
    """Return the tables in one of FORMATS. Raises KeyError for another one.

    limit: rows of a table that people are shown, None: all.
    """
    for_people = {"table": _table, "markdown": _markdown}.get(how)
    return for_people(tables, limit) if for_people else _FORMS[how](tables)


def _table(tables: Tables, limit: int | None) -> str:
    return "\n".join(
        f"{title}\n{plain(rows[:limit]) if rows else '(none)'}\n{_more(rows, limit)}"
        for title, rows in tables.items()
    )


def _markdown(tables: Tables, limit: int | None) -> str:
    return "\n".join(
        f"## {title}\n\n{_github(rows[:limit]) if rows else '(none)'}\n"
        f"{_more(rows, limit)}"
        for title, rows in tables.items()
    )


def _more(rows: Rows, limit: int | None) -> str:
    hidden = len(rows) - len(rows[:limit])
    return f"\n{hidden:,} more, in --format csv\n" if hidden > 0 else ""


def plain(rows: Rows) -> str:
    """Return rows below their heads, a word a line, so that they fit into 80 columns.

    tabulate makes a column wider than its head, so the heads are rows here.
    """
    words = [head(key).split() for key in rows[0]]
    height = max(map(len, words))
    heads = zip(*([""] * (height - len(word)) + word for word in words), strict=True)
    lines = [*heads, *_cells(rows)]
    rule = ["-" * max(map(len, column)) for column in zip(*lines, strict=True)]
    lines.insert(height, rule)
    return tabulate(
        lines, tablefmt="plain", disable_numparse=True, colalign=_sides(rows)
    )


def _github(rows: Rows) -> str:
    cells = [[markdown.cell(cell) for cell in row] for row in _cells(rows)]
    return tabulate(
        cells,
        headers=[head(key) for key in rows[0]],
        tablefmt="github",
        disable_numparse=True,
        colalign=_sides(rows),
    )


def _cells(rows: Rows) -> list[list[str]]:
    return [cells(row) for row in rows]


def cells(row: Mapping[str, Any]) -> list[str]:
    """Return a row as text, as people are shown it."""
    return [cell(key, value) for key, value in row.items()]


def head(key: str) -> str:
    """Return what stands above a column."""
    return _HEADS.get(key, key)


def cell(key: str, value: Any) -> str:
    """Return what stands in a column for a value."""
    if value is None:
        return "?"
    if key == "bytes":
        return units.size(value)
    counts = isinstance(value, int) and not isinstance(value, bool)
    return units.counted(value) if counts and key not in _IDS else str(value)


def _sides(rows: Rows) -> list[str]:
    return [
        "right" if all(isinstance(row[key], int | None) for row in rows) else "left"
        for key in rows[0]
    ]


def _json(tables: Tables) -> str:
    return json.dumps(tables, indent=2) + "\n"


def _ndjson(tables: Tables) -> str:
    return "".join(
        json.dumps({"table": title, **row}) + "\n"
        for title, rows in tables.items()
        for row in rows
    )


def _csv(tables: Tables) -> str:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    for title, rows in tables.items():
        if rows:
            writer.writerow(["table", *rows[0]])
        writer.writerows([title, *row.values()] for row in rows)
    return out.getvalue()


_FORMS: Final = {
    "json": _json,
    "ndjson": _ndjson,
    "csv": _csv,
}
