"""Hold what check found in each recording against what it must find. Nothing is run.

A rule that never fires and a rule that fires everywhere pass for a sound one as long as
nobody looks at both sides. Here each set of quirks has the rules that must be violated,
those that may be, and all others must not be.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from cdmtrace.errors import ExitStatus, UsageTrouble
from cdmtrace.lab.expectations import ROWS, Expect, Row

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

DIED: Final = int(ExitStatus.GUEST_DIED)


class Outcome(enum.Enum):
    """What becomes of one cell. All but the first four are not as expected."""

    FOUND = "found"
    POSSIBLE = "possible"
    CLEAR = "clear"
    UNCHECKED = "unchecked"
    MISSING = "missing"
    SURPLUS = "surplus"
    OPEN = "open"
    IDLE = "idle"
    OCCASION = "occasion"
    JUDGED = "judged"


GOOD: Final = frozenset(
    {Outcome.FOUND, Outcome.POSSIBLE, Outcome.CLEAR, Outcome.UNCHECKED}
)

IN_WORDS: Final = {
    Outcome.FOUND: "must be found, and is",
    Outcome.POSSIBLE: "may be found, and is",
    Outcome.CLEAR: "need not or must not be found, and is not",
    Outcome.UNCHECKED: "cannot be judged there, and is not",
    Outcome.MISSING: "must be found, and is not",
    Outcome.SURPLUS: "must not be found, and is",
    Outcome.OPEN: "must not be found, and could not be judged",
    Outcome.IDLE: "must be judged, and never had the occasion",
    Outcome.OCCASION: "should have no occasion here, and had one",
    Outcome.JUDGED: "cannot be judged there, and was",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Found:
    """What check says of a rule: its verdict in the contract's word, and the counts."""

    verdict: str
    checked: int = 0
    causes: tuple[str, ...] = ()
    findings: int = 0
    why: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Recording:
    """A row's recording and how it ended; status: None where nobody has noted it."""

    trace: Path
    status: int | None = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Cell:
    """One rule under one set of quirks. because: why it is expected so."""

    rule: str
    expected: Expect
    because: str | None
    found: Found
    outcome: Outcome


@dataclass(frozen=True, kw_only=True, slots=True)
class Line:
    """One row, judged. problem: what went wrong with the recording itself."""

    row: Row
    recording: Recording
    cells: tuple[Cell, ...]
    problem: str | None

    @property
    def as_expected(self) -> bool:
        """Whether nothing in it is otherwise."""
        return not self.problem and all(cell.outcome in GOOD for cell in self.cells)


@dataclass(frozen=True, kw_only=True, slots=True)
class Matrix:
    """All lines that could be judged, and the names of rows that were not recorded."""

    lines: tuple[Line, ...]
    absent: tuple[str, ...] = ()

    @property
    def status(self) -> ExitStatus:
        """TROUBLE if a row is absent, FINDINGS if one is not as expected, else OK."""
        if self.absent or not self.lines:
            return ExitStatus.TROUBLE
        if not all(line.as_expected for line in self.lines):
            return ExitStatus.FINDINGS
        return ExitStatus.OK


def choose(names: str | None, rows: Sequence[Row] | None = None) -> tuple[Row, ...]:
    """Return the rows of these names, separated by commas, in the table's order.

    All rows for None, those of the table if none are given. Raises UsageTrouble for a
    name that no row has.
    """
    rows = ROWS if rows is None else rows
    if names is None:
        return tuple(rows)
    asked = [name.strip() for name in names.split(",") if name.strip()]
    known = {row.name for row in rows}
    for name in asked:
        if name not in known:
            raise UsageTrouble(
                f"--quirks {name}: the matrix has no such row",
                hint="one of " + ", ".join(row.name for row in rows),
            )
    if not asked:
        raise UsageTrouble("--quirks names no row", hint="such as --quirks none,rfc")
    return tuple(row for row in rows if row.name in asked)


def outcome(row: Row, rule: str, found: Found) -> Outcome:
    """Return what becomes of a cell."""
    violated = found.verdict == "violated"
    undecided = found.verdict in ("inconclusive", "unchecked")
    match row.expects(rule):
        case Expect.MUST:
            return Outcome.FOUND if violated else Outcome.MISSING
        case Expect.MAY:
            return Outcome.POSSIBLE if violated else Outcome.CLEAR
        case expected:
            if violated:
                return Outcome.SURPLUS
            if expected is Expect.UNCHECKED:
                return Outcome.UNCHECKED if undecided else Outcome.JUDGED
            if undecided:
                return Outcome.OPEN
            vacuous = found.verdict == "vacuous"
            if expected is Expect.VACUOUS:
                return Outcome.CLEAR if vacuous else Outcome.OCCASION
            return Outcome.IDLE if vacuous and rule in row.judged else Outcome.CLEAR


def judge_row(row: Row, recording: Recording, found: Mapping[str, Found]) -> Line:
    """Return a row's line. found: what check says of each rule, by id."""
    cells = tuple(
        Cell(
            rule=rule,
            expected=row.expects(rule),
            because=row.because(rule),
            found=one,
            outcome=outcome(row, rule, one),
        )
        for rule, one in found.items()
    )
    return Line(
        row=row,
        recording=recording,
        cells=cells,
        problem=_problem(row, recording.status),
    )


def _problem(row: Row, status: int | None) -> str | None:
    if row.crashes:
        return None if status in (DIED, None) else "the guest did not die of it"
    if status in (0, None):
        return None
    if status == ExitStatus.TIMED_OUT:
        return "it took too long"
    return f"a scenario, or record, ended with {status}"


def compare(
    rows: Iterable[Row],
    recordings: Mapping[str, Recording],
    found: Mapping[str, Mapping[str, Found]],
) -> Matrix:
    """Return the matrix of these rows. recordings and found: by the row's name."""
    lines, absent = [], []
    for row in rows:
        if row.name in recordings:
            lines.append(judge_row(row, recordings[row.name], found[row.name]))
        else:
            absent.append(row.name)
    return Matrix(lines=tuple(lines), absent=tuple(absent))


def judge(trace: Path) -> dict[str, Found]:
    """Check one recording; return what is said of each rule, by id.

    Raises UnreadableFile.
    """
    from cdmtrace.analysis import check, load

    result = check(load(trace))
    causes: dict[str, set[str]] = {}
    for finding in result.findings:
        causes.setdefault(finding.rule.id, set()).add(finding.cause)
    return {
        one.rule.id: Found(
            verdict=one.verdict.value,
            checked=one.checked,
            causes=tuple(sorted(causes.get(one.rule.id, ()))),
            findings=one.findings,
            why=one.why,
        )
        for one in result.rules
    }
