"""The matrix: quirks downwards, rules across, a sign in each cell."""

from __future__ import annotations

import json
import textwrap
from typing import TYPE_CHECKING, Any, Final

from cdmtrace.lab.matrix import GOOD, IN_WORDS, Outcome
from cdmtrace.render import tables
from cdmtrace.units import count

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cdmtrace.lab.matrix import Cell, Line, Matrix

SCHEMA: Final = "cdmtrace.matrix/1"
WIDTH: Final = 79

_SIGNS: Final = {
    Outcome.FOUND: "X",
    Outcome.POSSIBLE: "x",
    Outcome.CLEAR: ".",
    Outcome.MISSING: "-",
    Outcome.SURPLUS: "+",
    Outcome.OPEN: "?",
    Outcome.IDLE: "0",
    Outcome.OCCASION: "1",
    Outcome.UNCHECKED: "u",
    Outcome.JUDGED: "j",
}


def render(matrix: Matrix, form: str) -> str:
    """Return the matrix in one of ``tables.FORMATS``."""
    if form == "json":
        return json.dumps(document(matrix), indent=2) + "\n"
    if form in ("csv", "ndjson"):
        return tables.render({"cells": rows(matrix)}, form)
    if form == "markdown":
        return _markdown(matrix)
    return _text(matrix)


def document(matrix: Matrix) -> dict[str, Any]:
    """Return the matrix as plain data, ``cdmtrace.matrix/1``."""
    return {
        "schema": SCHEMA,
        "as_expected": not matrix.status,
        "rows": [
            {
                "row": line.row.name,
                "quirks": list(line.row.quirks),
                "scenarios": list(line.row.scenarios),
                "trace": str(line.recording.trace),
                "as_expected": line.as_expected,
                "problem": line.problem,
                "cells": [_cell(cell) for cell in line.cells],
            }
            for line in matrix.lines
        ],
        "not_recorded": list(matrix.absent),
    }


def rows(matrix: Matrix) -> list[dict[str, Any]]:
    """Return a row for each cell."""
    return [
        {
            "row": line.row.name,
            **{
                key: ", ".join(value) if isinstance(value, list) else value
                for key, value in _cell(cell).items()
            },
            "problem": line.problem,
        }
        for line in matrix.lines
        for cell in line.cells
    ]


def _cell(cell: Cell) -> dict[str, Any]:
    return {
        "rule": cell.rule,
        "expected": cell.expected.value,
        "because": cell.because,
        "verdict": cell.found.verdict,
        "checked": cell.found.checked,
        "findings": cell.found.findings,
        "causes": list(cell.found.causes),
        "outcome": cell.outcome.value,
        "as_expected": cell.outcome in GOOD,
    }


def _text(matrix: Matrix) -> str:
    parts = []
    if matrix.lines:
        parts.append(_grid(matrix.lines))
    parts.append("\n".join(_legend(matrix)))
    for tell in (_complaints, _reasons):
        told = [text for line in matrix.lines for text in tell(line)]
        if told:
            parts.append("\n".join(told))
    parts.append(_summary(matrix))
    return "\n\n".join(parts) + "\n"


def _grid(lines: Sequence[Line]) -> str:
    rules = [cell.rule for cell in lines[0].cells]
    column = max(len(line.row.name) for line in lines)
    # A rule's number stands upright, or twenty of them would not fit.
    heads = [
        f"{head:<{column}}  " + " ".join(rule[at] for rule in rules)
        for head, at in (("CDM0..", -2), ("", -1))
    ]
    body = [
        f"{line.row.name:<{column}}  "
        + " ".join(_sign(cell) for cell in line.cells)
        + ("  !" if line.problem else "")
        for line in lines
    ]
    return "\n".join(one.rstrip() for one in [*heads, *body])


def _sign(cell: Cell) -> str:
    """What must not be found, and is not, is blank: so the others are to be seen."""
    blank = cell.outcome is Outcome.CLEAR and cell.expected.value != "may"
    return " " if blank else _SIGNS[cell.outcome]


def _legend(matrix: Matrix) -> list[str]:
    used = {_sign(cell) for line in matrix.lines for cell in line.cells}
    told = {
        "X": "must be found, and is",
        "x": "may be found, and is",
        ".": "may be found, and is not",
        "u": IN_WORDS[Outcome.UNCHECKED],
        **{sign: IN_WORDS[one] for one, sign in _SIGNS.items() if one not in GOOD},
    }
    return [f"{sign}  {text}" for sign, text in told.items() if sign in used] + [
        "   blank: must not be found, and is not"
    ]


def _complaints(line: Line) -> list[str]:
    """Return what is not as expected in a line, each in a sentence."""
    told = []
    if line.problem:
        told.append(f"{line.row.name}: {line.problem}")
    for cell in line.cells:
        if cell.outcome in GOOD:
            continue
        found = cell.found
        text = f"{line.row.name}: {cell.rule} {IN_WORDS[cell.outcome]}: {found.verdict}"
        if found.findings:
            text += f", {count(found.findings, 'finding')}"
        if found.causes:
            text += f" ({', '.join(found.causes)})"
        text += f", checked {count(found.checked, 'time')}"
        if cell.because:
            text += f"; expected, for: {cell.because}"
        if found.why:
            text += f"; {found.why}"
        told += textwrap.wrap(
            text,
            WIDTH,
            subsequent_indent="  ",
            break_long_words=False,
            break_on_hyphens=False,
        )
    return told


def _reasons(line: Line) -> list[str]:
    """Return why rules cannot be judged in a line: a sentence for each reason."""
    rules: dict[str, list[str]] = {}
    for cell in line.cells:
        if cell.outcome is Outcome.UNCHECKED:
            rules.setdefault(cell.found.why or "", []).append(cell.rule)
    return [
        text
        for why, those in rules.items()
        for text in textwrap.wrap(
            f"{line.row.name}: {_in_short(those, line)}: {why}",
            WIDTH,
            subsequent_indent="  ",
            break_long_words=False,
            break_on_hyphens=False,
        )
    ]


def _in_short(rules: Sequence[str], line: Line) -> str:
    return "all rules" if len(rules) == len(line.cells) else ", ".join(rules)


def _summary(matrix: Matrix) -> str:
    cells = [cell for line in matrix.lines for cell in line.cells]
    counts = {
        one: sum(cell.outcome is one for cell in cells)
        for one in (Outcome.FOUND, Outcome.MISSING, Outcome.SURPLUS)
    }
    other = sum(cell.outcome not in GOOD for cell in cells)
    other -= counts[Outcome.MISSING] + counts[Outcome.SURPLUS]
    good = sum(line.as_expected for line in matrix.lines)
    told = (
        f"{count(len(matrix.lines), 'row')}, {good} as expected; "
        + ", ".join(f"{number} {one.value}" for one, number in counts.items())
        + (f", {other} not judged as they must be" if other else "")
    )
    if matrix.absent:
        told += "\nnot recorded: " + ", ".join(matrix.absent)
    return "\n".join(
        textwrap.fill(line, WIDTH, subsequent_indent="  ", break_on_hyphens=False)
        for line in told.splitlines()
    )


def _markdown(matrix: Matrix) -> str:
    if not matrix.lines:
        return _summary(matrix) + "\n"
    heads = ["row", *(cell.rule.removeprefix("CDM") for cell in matrix.lines[0].cells)]
    table = [heads, ["---", *([":-:"] * (len(heads) - 1))]]
    table += [
        [f"`{line.row.name}`", *(_sign(cell) for cell in line.cells)]
        for line in matrix.lines
    ]
    grid = "".join(f"| {' | '.join(row)} |\n" for row in table)
    legend = "".join(f"- {text.strip()}\n" for text in _legend(matrix))
    told = "".join(
        f"- {text}\n"
        for tell in (_complaints, _reasons)
        for line in matrix.lines
        for text in tell(line)
    ).replace("-   ", "  ")
    return "\n".join(filter(None, [grid, legend, told, _summary(matrix) + "\n"]))
