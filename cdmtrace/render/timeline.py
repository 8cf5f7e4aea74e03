"""The text forms of ``timeline``: one VMA's life, and VMAs that are worth a look."""

from __future__ import annotations

import shlex
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from cdmtrace.render.divergence import WIDTH
from cdmtrace.render.tables import LIMIT, cell
from cdmtrace.units import count

Row = Mapping[str, Any]

ALIKE: Final = 3
"""So many times the same has to happen for one line to tell of all."""

_LONGEST: Final = 4
"""Rows of which one round of that can be made: a fault allocates, maps, unmaps."""

_ROOM: Final = 18
"""Columns that what happened needs beside the others; else it stands below."""

_BESIDE: Final = 2
"""So many lines of it stand beside them."""

_OF_PAGES: Final = frozenset(
    {
        *("alloc", "map", "migrate", "unmap", "zap", "collapse"),
        *("ksm_page", "numa_scan", "numa_move"),
    }
)
"""Kinds of rows that come in runs."""

_HEADS: Final = ("time (s)", "cpu", "task", "lock", "flags", "policy", "pages")
_RIGHT: Final = (0, 1)
_BELOW: Final = " " * 11
_UNKNOWN: Final = "?: there may be pages that the recording does not tell of"


def timeline(
    document: Mapping[str, Any],
    *,
    unfold: bool,
    command: str,
    judged_by: Sequence[str] = (),
) -> str:
    """Return the generations of a VMA, each with one line for each row.

    Runs of alike rows of pages are one line, unless unfold. command: what was typed;
    judged_by: the options of it that say which findings are marked.
    """
    parts, folded, doubt = [], 0, False
    for one in document["generations"]:
        groups = [[row] for row in one["rows"]] if unfold else list(fold(one["rows"]))
        folded += len(one["rows"]) - len(groups)
        doubt |= any(row["VMA"] and not row["all known"] for row in one["rows"])
        lines = [*_head(one, document["of"]), "", *_lines(groups)]
        parts.append("\n".join(lines))
    end = [_UNKNOWN] if doubt else []
    if folded:
        end += [f"{count(folded, 'row')} folded; each on its own:"]
        end += [f"  {command} --unfold"]
    end += _next(document, judged_by)
    return "\n\n".join([*parts, "\n".join(end)]) + "\n"


def _next(document: Mapping[str, Any], judged_by: Sequence[str]) -> list[str]:
    """Return what to type next."""
    files = document["shown"]
    options = f" {shlex.join(judged_by)}" if judged_by else ""
    for one in document["generations"]:
        for finding in one["findings"]:
            words = f"cdmtrace explain{options} {files} {finding['fingerprint']}"
            return [f"{finding['rule']} as an argument:", f"  {words}"]
    return ["other VMAs:", f"  cdmtrace timeline{options} {files}"]


def _head(one: Mapping[str, Any], many: int) -> list[str]:
    what = f"VMA {one['VMA']} ({count(one['pages'], 'page')})"
    lines = [
        "=" * WIDTH,
        f"{what}, generation {one['generation']} of {many}",
        f"  process    {one['comm'] or '?'} (pid {one['pid'] or '?'})",
        f"  mm         {one['mm']}",
        f"  from       {one['since']}, {one['began']}",
        f"  until      {one['until']}, {one['ended']}",
    ]
    told = dict.fromkeys(
        f"{found['rule']} {found['name']}, {found['fingerprint']}"
        for found in one["findings"]
    )
    lead = "  findings   "
    for text in told:
        lines.append(lead + text)
        lead = " " * len(lead)
    return lines


def fold(rows: Sequence[Row]) -> Iterator[list[Row]]:
    """Yield rows, and runs of rows in which the same happens again and again.

    A run repeats one to four rows that are about pages and change nothing else, and
    the first rows of it are those of one round.
    """
    at = 0
    while at < len(rows):
        best = 1
        for length in range(1, _LONGEST + 1):
            rounds = _rounds(rows, at, length)
            if rounds >= ALIKE and rounds * length > best:
                best = rounds * length
        yield list(rows[at : at + best])
        at += best


def _rounds(rows: Sequence[Row], at: int, length: int) -> int:
    """Return how often the rows of one round come one after the other."""
    first = [_alike(row) for row in rows[at : at + length]]
    # One line can tell of one task, flags, policy and range.
    if (
        len(first) < length
        or None in first
        or len({one[2:] for one in first if one}) > 1
    ):
        return 1
    rounds = 1
    while True:
        begin = at + rounds * length
        if [_alike(row) for row in rows[begin : begin + length]] != first:
            return rounds
        rounds += 1


def _alike(row: Row) -> tuple[Any, ...] | None:
    """Return what rows have in common that are told of in one line, None: alone."""
    if row["kind"] not in _OF_PAGES or row["findings"] or row["before"] != row["after"]:
        return None
    keys = ("what", "lock", "task", "after", "policy", "VMA", "all known")
    return tuple(row[key] for key in keys)


def _lines(groups: Sequence[Sequence[Row]]) -> list[str]:
    cells = [_cells(group) for group in groups]
    layout = _Layout.of(cells)
    lines = layout.lines(_HEADS, "")
    ranges = {group[-1]["VMA"] for group in groups} - {""}
    vma = ranges.pop() if len(ranges) == 1 else ""
    for group, row in zip(groups, cells, strict=True):
        last = group[-1]
        if last["kind"] == "loss":
            lines += _wrapped(f"{row[0]:>{layout.width[0]}}  {_what(group)}")
            continue
        lines += layout.lines(row, _what(group))
        if last["VMA"] not in (vma, ""):
            vma = last["VMA"]
            lines.append(f"{_BELOW}= the VMA is {vma}")
        lines += [
            f"{_BELOW}^ {mark.replace(':', ' ')}" for mark in last["findings"].split()
        ]
    return lines


@dataclass(frozen=True, kw_only=True, slots=True)
class _Layout:
    """Columns of a width, and which of them are in one line: mostly all.

    parts: for each line of a row, its columns.
    """

    width: tuple[int, ...]
    parts: tuple[tuple[int, ...], ...]

    @classmethod
    def of(cls, rows: Sequence[Sequence[str]]) -> _Layout:
        columns = zip(_HEADS, *rows, strict=True)
        width = tuple(max(map(len, column)) for column in columns)
        parts: list[list[int]] = [[]]
        used = 0
        for column, size in enumerate(width):
            if parts[-1] and used + size > WIDTH:
                parts.append([])
                used = len(_BELOW)
            parts[-1].append(column)
            used += size + 2
        return cls(width=width, parts=tuple(map(tuple, parts)))

    def lines(self, row: Sequence[str], text: str) -> list[str]:
        """Return a row, with what happened beside its last line or below it."""
        lines = []
        for number, part in enumerate(self.parts):
            padded = [
                row[at].rjust(self.width[at])
                if at in _RIGHT
                else row[at].ljust(self.width[at])
                for at in part
            ]
            lines.append((_BELOW if number else "") + "  ".join(padded))
        left = len(lines[-1]) + 2
        beside = _beside(text, WIDTH - left)
        if beside:
            lines[-1] += "  " + beside[0]
            lines += [" " * left + more for more in beside[1:]]
        elif text:
            lines += _wrapped(_BELOW + text)
        return [_cut(line.rstrip()) for line in lines if line.strip()]


def _cut(line: str) -> str:
    return line if len(line) <= WIDTH else line[: WIDTH - 2] + ".."


def _beside(text: str, room: int) -> list[str]:
    """Return what happened as lines beside the other columns, none if it is too long.

    room: columns that are left.
    """
    if room < _ROOM or max(map(len, text.split()), default=room + 1) > room:
        return []
    lines = textwrap.wrap(text, room, break_on_hyphens=False)
    return lines if len(lines) <= _BESIDE else []


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(
        text, WIDTH, subsequent_indent=_BELOW + "  ", break_on_hyphens=False
    )


def _cells(group: Sequence[Row]) -> tuple[str, ...]:
    first, last = group[0], group[-1]
    cpus = {row["cpu"] for row in group}
    flags = first["before"]
    if first["before"] != first["after"]:
        flags = f"{first['before']} -> {first['after']}"
    return (
        first["time (s)"],
        "" if first["cpu"] is None else str(first["cpu"]) if len(cpus) == 1 else "*",
        first["task"],
        ",".join(dict.fromkeys(row["lock"] for row in group)),
        flags,
        first["policy"],
        _pages(last),
    )


def _pages(row: Row) -> str:
    if not row["VMA"]:
        return ""
    mark = "" if row["all known"] else "?"
    return " ".join(
        f"N{key.removeprefix('node ')}={pages}{mark}"
        for key, pages in row.items()
        if key.startswith("node ")
    )


def _what(group: Sequence[Row]) -> str:
    texts = dict.fromkeys(row["what"] for row in group)
    if len(group) == 1:
        return str(group[0]["what"])
    rounds = _rounds(group, 0, _round(group))
    until = group[-1]["time (s)"]
    return f"{rounds:,} times: {'; '.join(texts)}; until {until}"


def _round(group: Sequence[Row]) -> int:
    """Return how many rows are one round of a run."""
    return next(
        length
        for length in range(1, _LONGEST + 1)
        if _rounds(group, 0, length) * length == len(group)
    )


def candidates(rows: Sequence[Row], commands: Sequence[str], *, files: str) -> str:
    """Return VMAs that are worth a look, and below each why and what shows its life."""
    if not rows:
        return (
            "No VMA is worth a look: none has a finding, a page of a CDM node, or a\n"
            f"change of flags or policy. What there is:\n  cdmtrace report {files}\n"
        )
    heads = ("pid", "VMA", "findings", "most on CDM", "changes", "since (s)")
    # A pid of 0 is one that is not known.
    listed = [{**row, "pid": row["pid"] or None} for row in rows[:LIMIT]]
    shown = [tuple(cell(key, row[key]) for key in heads) for row in listed]
    width = [max(map(len, column)) for column in zip(heads, *shown, strict=True)]
    right = [key != "VMA" for key in heads]
    lines = [f"VMAs that are worth a look: {len(rows):,}, the worst first", ""]
    hang = " " * (width[0] + 2)
    for number, row in enumerate((heads, *shown)):
        cells = [
            text.rjust(size) if side else text.ljust(size)
            for text, size, side in zip(row, width, right, strict=True)
        ]
        lines.append("  ".join(cells).rstrip())
        if number:
            why = str(rows[number - 1]["why"])
            told = textwrap.wrap(why, WIDTH - len(hang), break_on_hyphens=False)
            lines += [hang + line for line in told]
            lines.append(hang + commands[number - 1])
    if len(rows) > LIMIT:
        more = f"{len(rows) - LIMIT:,} more:"
        lines += ["", more, f"  cdmtrace timeline {files} --format csv"]
    return "\n".join(lines) + "\n"
