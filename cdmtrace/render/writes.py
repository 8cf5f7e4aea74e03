"""One line for each write to vm_flags, as it comes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from cdmtrace.units import seconds

_HEADS: Final = ("time (s)", "cpu", "task", "lock", "flags", "next instruction")
_WIDTHS: Final = (10, 5, 18, 7, 12)


def _line(number: str, cells: Sequence[str]) -> str:
    first, *rest = cells
    padded = [cell.ljust(width) for cell, width in zip(rest, _WIDTHS[1:], strict=False)]
    return f"{number:2}  {first:>{_WIDTHS[0]}}  {'  '.join([*padded, cells[-1]])}"


HEAD: Final = _line("", _HEADS)
"""What stands above the lines."""


def line(
    *,
    number: int,
    since: int,
    cpu: int,
    task: str,
    lock: str,
    flags: str,
    at: Sequence[str],
    notes: Sequence[str] = (),
    stack: bool = False,
) -> str:
    """Return one write: which watchpoint, when (ns since the start), who, under what.

    at: the instruction after it and its callers, name+0xoffset; empty: not known.
    stack: a line for each caller, too.
    """
    where = at[0] if at else "?"
    cells = (seconds(since), f"cpu{cpu}", task, lock, flags, where)
    lines = [_line(f"#{number}", cells)]
    lines += [f"{' ' * 14}({note})" for note in notes]
    if stack:
        lines += [f"{' ' * 16}{caller}" for caller in at[1:]]
    return "\n".join(lines)
