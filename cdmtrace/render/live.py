"""A recording while it is made, as lines for a terminal: pure, data -> what rich draws.

Everything is as wide and as high as it is asked to be; where there is more than fits,
what counts most is shown, and how much there is in all is told.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from rich.cells import cell_len
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from cdmtrace import units

BARS: Final = "▁▂▃▄▅▆▇█"
HEAD: Final = 3
"""Lines above the first title."""

_WIDE: Final = 104
"""Columns from which on a finding's name is told in its line, too."""

SEVERITY: Final = {"error": "red", "warning": "yellow", "info": "blue"}


@dataclass(frozen=True, kw_only=True, slots=True)
class ProbeLine:
    """A probe: rows so far, per second of late, and events that it has lost."""

    probe: str
    events: int
    per_second: float
    lost: int


@dataclass(frozen=True, kw_only=True, slots=True)
class VmaLine:
    """A VMA that has the tag; pages: of CDM nodes. policy: None where not known."""

    pid: int
    comm: str
    start: int
    end: int
    policy: str | None
    flags: str
    pages: int


@dataclass(frozen=True, kw_only=True, slots=True)
class RuleLine:
    """A rule that has findings."""

    rule: str
    name: str
    severity: str
    findings: int


@dataclass(frozen=True, kw_only=True, slots=True)
class FindingLine:
    """A finding. since_start: when it was found, ns; count: events it stands for."""

    since_start: int
    rule: str
    name: str
    severity: str
    cause: str
    comm: str
    pid: int
    start: int
    end: int
    count: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Frame:
    """One picture of a recording.

    stage: what is going on, in a word or two; running: it goes on. since_start: ns.
    size: bytes. behind: events that are in the file and that the model has not seen.
    history: events of each second of late. vmas, findings: those to show, the most
    important first, the latest first; vmas_in_all: how many have the tag. open_rules:
    how many rules cannot be decided as it is.
    """

    path: str
    about: str
    stage: str
    running: bool
    since_start: int
    events: int
    size: int
    per_second: float
    lost: int
    behind: int
    history: Sequence[int] = ()
    probes: Sequence[ProbeLine] = ()
    vmas: Sequence[VmaLine] = ()
    vmas_in_all: int = 0
    rules: Sequence[RuleLine] = ()
    latest: Sequence[FindingLine] = ()
    open_rules: int = 0
    damage: str | None = None


EMPTY: Final = Frame(
    path="",
    about="",
    stage="",
    running=True,
    since_start=0,
    events=0,
    size=0,
    per_second=0.0,
    lost=0,
    behind=0,
)
"""A picture of nothing."""


def render(frame: Frame, width: int = 80, height: int = 24) -> RenderableType:
    """Return the frame as what rich draws, of so many columns and lines at most."""
    across = 2 if width >= 80 else 1
    probes, vmas, rules, latest = _share(frame, across, height - HEAD - 3)
    parts: list[RenderableType] = [
        *_head(frame, width),
        _title(Text("Probes"), width),
        *_probes(frame.probes[: probes * across], across, probes),
        _title(_about_vmas(frame), width),
        *_vmas(frame.vmas[:vmas]),
        _title(_about_findings(frame), width),
        *_rules(frame.rules, across, rules, width),
        *_latest(frame.latest[:latest], width),
    ]
    return Group(*parts)


# --- how the lines are shared out -----------------------------------------------


def _share(frame: Frame, across: int, lines: int) -> tuple[int, int, int, int]:
    """Return how many lines of probes, VMAs, rules and findings there is room for.

    Each gets a part of what is there, and what one does not need goes to the others.
    Tables have a head, which is not counted.
    """
    need = [
        -(-len(frame.probes) // across),
        len(frame.vmas),
        -(-len(frame.rules) // across),
        len(frame.latest),
    ]
    lines -= bool(frame.probes) + bool(frame.vmas)
    got = [0, 0, 0, 0]
    # A line in turn to whoever still needs one, findings and their rules first.
    while lines > 0 and got != need:
        for at in (3, 2, 1, 0):
            if got[at] < need[at] and lines > 0:
                got[at] += 1
                lines -= 1
    return got[0], got[1], got[2], got[3]


# --- parts ----------------------------------------------------------------------


def _head(frame: Frame, width: int) -> list[RenderableType]:
    state = Text("● " if frame.running else "■ ", "green" if frame.running else "dim")
    state.append(f"{safe(frame.stage)}  {_clock(frame.since_start)}", "bold")
    first = _ends(Text(f"cdmtrace  {safe(frame.path)}", "bold"), state, width)
    size = f"{units.count(frame.events, 'event')}, {units.size(frame.size)}"
    second = _ends(Text(safe(frame.about), "dim"), Text(size), width)
    third = Text()
    third.append(f"{_rate(frame.per_second)} events/s ", "bold")
    third.append(_bars(frame.history), "cyan")
    third.append("   ")
    third.append(f"{frame.lost:,} lost", "bold red" if frame.lost else "dim")
    if frame.damage is not None:
        note = Text(f"damaged: {safe(frame.damage)}", "bold red")
    elif frame.behind:
        note = Text(f"behind by {units.count(frame.behind, 'event')}", "yellow")
    else:
        note = Text("up to date", "dim")
    return [first, second, _ends(third, note, width)]


def _about_vmas(frame: Frame) -> Text:
    text = Text("Tagged VMAs")
    text.append(f"  {frame.vmas_in_all:,}", "bold" if frame.vmas_in_all else "dim")
    return text


def _about_findings(frame: Frame) -> Text:
    text = Text("Findings so far")
    found = sum(rule.findings for rule in frame.rules)
    text.append(f"  {found:,}", "bold red" if found else "green")
    if frame.open_rules:
        text.append(
            f"   {units.count(frame.open_rules, 'rule')} inconclusive", "yellow"
        )
    return text


def _probes(
    rows: Sequence[ProbeLine], across: int, lines: int
) -> Iterable[RenderableType]:
    if not rows:
        return
    table = _table()
    for side in range(across):
        if side:
            _column(table, "", least=1)
        _column(table, "probe", ratio=1)
        _column(table, "events", right=True)
        _column(table, "per s", right=True, least=6)
        _column(table, "lost", right=True, least=4)
    for at in range(lines):
        cells: list[Text] = []
        for side in range(across):
            if side:
                cells.append(Text(""))
            place = side * lines + at
            cells += _probe(rows[place]) if place < len(rows) else [Text("")] * 4
        table.add_row(*cells)
    yield table


def _probe(row: ProbeLine) -> list[Text]:
    return [
        Text(safe(row.probe)),
        Text(f"{row.events:,}"),
        Text(_rate(row.per_second), "bold" if row.per_second else "dim"),
        Text(f"{row.lost:,}", "bold red" if row.lost else "dim"),
    ]


def _vmas(rows: Sequence[VmaLine]) -> Iterable[RenderableType]:
    if not rows:
        return
    table = _table()
    _column(table, "pid", right=True)
    _column(table, "comm", least=4)
    _column(table, "VMA", least=_least(_range(r.start, r.end) for r in rows))
    _column(table, "policy")
    _column(table, "flags", ratio=1, least=8)
    _column(table, "on CDM", right=True, least=9)
    for row in rows:
        table.add_row(
            Text(str(row.pid or "?")),
            Text(safe(row.comm)),
            Text(_range(row.start, row.end)),
            Text(row.policy or "?", "" if row.policy else "dim"),
            Text(row.flags),
            Text(f"{row.pages:,}", "bold" if row.pages else "dim"),
        )
    yield table


def _rules(
    rows: Sequence[RuleLine], across: int, lines: int, width: int
) -> Iterable[RenderableType]:
    """Yield lines of rules and their counts; the last says how many more there are."""
    room = lines * across
    if not rows or not room:
        return
    cells = [_rule(row) for row in rows]
    if len(cells) > room:
        more = len(cells) - room + 1
        cells[room - 1 :] = [Text(f"and {units.count(more, 'more rule')}", "dim")]
    part = (width - 2) // across
    for at in range(0, len(cells), across):
        line = Text()
        for cell in cells[at : at + across]:
            cell.truncate(part - 2, pad=True)
            line.append_text(cell).append("  ")
        line.rstrip()
        yield line


def _rule(row: RuleLine) -> Text:
    text = Text(f"{row.findings:>7,}  ", "bold")
    text.append(f"{row.rule} {row.name}", SEVERITY.get(row.severity, ""))
    return text


def _latest(rows: Sequence[FindingLine], width: int) -> Iterable[RenderableType]:
    if not rows:
        return
    table = _table(head=False)
    _column(table, "s", right=True, least=9, style="dim")
    _column(table, "rule", least=6)
    if width >= _WIDE:
        _column(table, "name")
    _column(table, "cause")
    _column(table, "who", ratio=1, least=6)
    _column(table, "VMA", least=_least(_range(r.start, r.end) for r in rows))
    _column(table, "count", right=True, style="dim")
    for row in rows:
        name = [Text(row.name)] if width >= _WIDE else []
        table.add_row(
            Text(units.seconds(row.since_start)),
            Text(row.rule, SEVERITY.get(row.severity, "")),
            *name,
            Text(safe(row.cause)),
            Text(f"{safe(row.comm)}/{row.pid or '?'}"),
            Text(_range(row.start, row.end)),
            Text(f"x{row.count:,}" if row.count > 1 else ""),
        )
    yield table


# --- small things ----------------------------------------------------------------


def safe(text: str) -> str:
    """Return text that cannot move the cursor: a process names itself as it likes."""
    return "".join(char if char.isprintable() else "?" for char in text)


def _table(*, head: bool = True) -> Table:
    return Table(
        box=None,
        expand=True,
        show_header=head,
        header_style="dim",
        padding=(0, 1, 0, 0),
        pad_edge=False,
    )


def _column(
    table: Table,
    name: str,
    *,
    right: bool = False,
    least: int | None = None,
    ratio: int | None = None,
    style: str = "",
) -> None:
    """Add a column that is cut and never wraps: a row is a line."""
    table.add_column(
        name,
        justify="right" if right else "left",
        min_width=least,
        ratio=ratio,
        style=style,
        no_wrap=True,
        overflow="ellipsis",
    )


def _title(text: Text, width: int) -> Text:
    line = Text("─ ", "blue").append_text(text)
    line.append(" ")
    line.append("─" * max(width - line.cell_len, 0), "blue")
    line.truncate(width)
    return line


def _ends(left: Text, right: Text, width: int) -> Text:
    """Return a line with something at both its ends; the left gives way."""
    room = width - right.cell_len - 2
    if room < 8:
        right.truncate(width)
        return right
    left.truncate(room, overflow="ellipsis")
    return left.append(" " * (width - left.cell_len - right.cell_len)).append_text(
        right
    )


def _bars(history: Sequence[int]) -> str:
    most = max(history, default=0)
    if not most:
        return ""
    return "".join(BARS[min(n * len(BARS) // most, len(BARS) - 1)] for n in history)


def _rate(number: float) -> str:
    """Return a rate in at most seven characters."""
    if number < 10:
        return f"{number:.1f}" if number else "0"
    if number < 10**6:
        return f"{number:,.0f}"
    return f"{number / 10**6:,.1f} M"


def _clock(ns: int) -> str:
    seconds = ns // 10**9
    return f"{seconds // 3600:02}:{seconds // 60 % 60:02}:{seconds % 60:02}"


def _range(start: int, end: int) -> str:
    return f"{start:x}-{end:x}"


def _least(texts: Iterable[str]) -> int:
    return max(map(cell_len, texts), default=0)
