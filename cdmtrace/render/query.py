"""The answer to a query, in the formats that --format knows.

Rows come in lists and are written as they come, but for the two that people read: what
is in a column says how wide it is.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import date, time, timedelta
from decimal import Decimal
from typing import Any, Final
from uuid import UUID

from tabulate import tabulate

from cdmtrace.format.schema import printable
from cdmtrace.render import markdown

MOST: Final = 1000
"""Rows that people are shown."""

WORDS: Final = frozenset(
    {"start", "end", "addr", "flags_before", "flags_after", "other", "vm_cdm_mask"}
)
"""Columns of addresses and words of flags, which are hexadecimal everywhere: they may
pass 2**53, beyond which readers of JSON round."""

_DIGITS: Final = 9
"""Of a number with a fraction, where people read it: a second has microseconds."""

Rows = Iterable[Sequence[Sequence[Any]]]


def render(columns: Sequence[str], rows: Rows, how: str) -> Iterator[str]:
    """Yield an answer as text, piece by piece. Raises KeyError for another format.

    columns: names, each once. rows: lists of rows, with the values of Python.
    """
    return _FORMS[how](columns, rows)


def _cells(columns: Sequence[str], row: Sequence[Any]) -> list[Any]:
    """Return a row as JSON has it."""
    return [
        hex(value) if name in WORDS and _whole(value) else _plain(value)
        for name, value in zip(columns, row, strict=True)
    ]


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _plain(value: Any) -> Any:
    """Return what JSON can say of a value of SQL; what is no number is null."""
    match value:
        case float():
            return value if math.isfinite(value) else None
        case Decimal():
            return int(value) if value == value.to_integral_value() else float(value)
        case bytes():
            return value.hex()
        case timedelta():
            return value.total_seconds()
        case date() | time():
            return value.isoformat()
        case UUID():
            return str(value)
        case list() | tuple():
            return [_plain(one) for one in value]
        case dict():
            return {str(key): _plain(one) for key, one in value.items()}
    return value


def _json(columns: Sequence[str], rows: Rows) -> Iterator[str]:
    before = "[\n"
    for line in _lines(columns, rows):
        yield f"{before}  {line}"
        before = ",\n"
    yield "\n]\n" if before != "[\n" else "[]\n"


def _ndjson(columns: Sequence[str], rows: Rows) -> Iterator[str]:
    for line in _lines(columns, rows):
        yield f"{line}\n"


def _lines(columns: Sequence[str], rows: Rows) -> Iterator[str]:
    for some in rows:
        for row in some:
            cells = _cells(columns, row)
            yield json.dumps(dict(zip(columns, cells, strict=True)))


def _csv(columns: Sequence[str], rows: Rows) -> Iterator[str]:
    yield _comma_separated([columns])
    for some in rows:
        yield _comma_separated([_nested(_cells(columns, row)) for row in some])


def _comma_separated(lines: Iterable[Sequence[Any]]) -> str:
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows(lines)
    return out.getvalue()


def _nested(cells: Sequence[Any]) -> list[Any]:
    """Return cells of which none is a list: JSON has those, and says true and false."""
    return [
        json.dumps(cell) if isinstance(cell, list | dict | bool) else cell
        for cell in cells
    ]


def _table(columns: Sequence[str], rows: Rows) -> Iterator[str]:
    lines, sides, more = _for_people(columns, rows, _lined)
    if lines[0]:
        widths = [max(map(_width, column)) for column in zip(*lines, strict=True)]
        # tabulate makes a column wider than its head, so that is a row here.
        lines.insert(1, ["-" * width for width in widths])
        text = tabulate(lines, tablefmt="plain", disable_numparse=True, colalign=sides)
        yield "".join(f"{line.rstrip()}\n" for line in text.splitlines())
    yield more


def _width(cell: str) -> int:
    return max(map(len, cell.split("\n")))


def _markdown(columns: Sequence[str], rows: Rows) -> Iterator[str]:
    lines, sides, more = _for_people(columns, rows, markdown.cell)
    if lines[0]:
        marks = ["---:" if side == "right" else "---" for side in sides]
        for cells in (lines[0], marks, *lines[1:]):
            yield f"| {' | '.join(cells)} |\n"
    yield more


def _for_people(
    columns: Sequence[str], rows: Rows, written: Callable[[str], str]
) -> tuple[list[list[str]], list[str], str]:
    """Return the head and the first rows, the side of each column, and what more."""
    shown: list[list[Any]] = []
    hidden = 0
    for some in rows:
        room = MOST - len(shown)
        shown += [_cells(columns, row) for row in some[:room]]
        hidden += len(some[room:])
    lines = [list(columns), *([_text(cell) for cell in row] for row in shown)]
    sides = [
        "right" if _numbers(row[at] for row in shown) else "left"
        for at in range(len(columns))
    ]
    return (
        [[written(cell) for cell in line] for line in lines],
        sides,
        f"\n{hidden:,} more, in --format csv\n" if hidden else "",
    )


def _numbers(column: Iterable[Any]) -> bool:
    """Return whether a column has numbers, maybe hexadecimal ones, and nothing else."""
    known = [cell for cell in column if cell is not None]
    return bool(known) and all(
        (isinstance(cell, int | float) and not isinstance(cell, bool))
        or (isinstance(cell, str) and cell.startswith("0x"))
        for cell in known
    )


def _text(cell: Any) -> str:
    if cell is None:
        return ""
    if isinstance(cell, float):
        return f"{cell:.{_DIGITS}g}"
    return json.dumps(cell) if isinstance(cell, list | dict | bool) else str(cell)


def _lined(text: str) -> str:
    """Return text that moves no cursor. A query may have put line ends in it."""
    return "\n".join(map(printable, text.split("\n")))


_FORMS: Final[Mapping[str, Callable[[Sequence[str], Rows], Iterator[str]]]] = {
    "table": _table,
    "json": _json,
    "ndjson": _ndjson,
    "csv": _csv,
    "markdown": _markdown,
}
