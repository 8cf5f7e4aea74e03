"""Tables of ``report``, in the formats that --format knows."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from typing import Any, Final

from tabulate import tabulate

FORMATS: Final = ("table", "json", "ndjson", "csv", "markdown")
"""What --format takes wherever rows are printed."""

Tables = Mapping[str, Sequence[Mapping[str, Any]]]
"""Title -> rows; every row of a table has the same keys, in order."""


def render(tables: Tables, how: str) -> str:
    """Return the tables in one of FORMATS. Raises KeyError for another one."""
    return _FORMS[how](tables)


def _table(tables: Tables, style: str = "simple", mark: str = "") -> str:
    parts = []
    for title, rows in tables.items():
        body = "(none)"
        if rows:
            body = tabulate(
                [list(row.values()) for row in rows],
                headers=list(rows[0]),
                tablefmt=style,
                disable_numparse=True,
                colalign=[_side(rows, key) for key in rows[0]],
            )
        parts.append(f"{mark}{title}\n\n{body}" if mark else f"{title}\n{body}")
    return "\n\n".join(parts) + "\n"


def _side(rows: Sequence[Mapping[str, Any]], key: str) -> str:
    numbers = all(isinstance(row[key], int) for row in rows)
    return "right" if numbers else "left"


def _markdown(tables: Tables) -> str:
    return _table(tables, "github", "## ")


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
    "table": _table,
    "json": _json,
    "ndjson": _ndjson,
    "csv": _csv,
    "markdown": _markdown,
}
