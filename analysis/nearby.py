"""What a recording has beside what was asked for: errors that name what is close."""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping, Sequence
from typing import Final

from cdmtrace.analysis.candidates import Candidates
from cdmtrace.analysis.collector import Vma
from cdmtrace.analysis.history import Document
from cdmtrace.errors import UsageTrouble

_NAMED: Final = 5
"""So many processes or VMAs an error names."""


def command(
    files: Sequence[str],
    *,
    pid: int | None = None,
    addr: int | None = None,
    at: str | None = None,
    judged_by: Sequence[str] = (),
) -> str:
    """Return the command line that asks for a VMA, or for a list of them.

    judged_by: options that say which findings it marks.
    """
    words = ["cdmtrace", "timeline", *judged_by, *files]
    words += ["--pid", str(pid)] if pid is not None else []
    words += ["--addr", f"{addr:x}"] if addr is not None else []
    words += ["--at", at] if at is not None else []
    return shlex.join(words)


def choose(
    generations: Sequence[Document], number: int | None, at: float | None, command: str
) -> list[Document]:
    """Return those generations that are asked for: by number, or by a time (s).

    Raises UsageTrouble where there is none.
    """
    many = len(generations)
    if number is not None and number > many:
        held = "1 VMA has" if many == 1 else f"{many} VMAs have"
        raise UsageTrouble(
            f"--generation {number}: {held} held the address", hint=command
        )
    chosen = [
        one for one in generations if number is None or one["generation"] == number
    ]
    if at is None:
        return chosen
    there = [one for one in chosen if float(one["since"]) <= at <= _until(one)]
    if not there:
        lines = [f"{one['since']} to {one['until']} s" for one in chosen[:_NAMED]]
        raise UsageTrouble(
            f"--at {at:g}: no VMA held the address then",
            details="\n".join(["one held it", *lines]),
            hint=command,
        )
    return there


def _until(generation: Document) -> float:
    """Return the time (s) at which a generation has ended."""
    return math.inf if generation["open"] else float(generation["until"])


def no_process(
    files: Sequence[str],
    pid: int,
    processes: Mapping[int, str],
    threads: Mapping[int, int],
) -> UsageTrouble:
    """Return the error for a pid that the recording has not.

    processes: pid -> name; threads: tid -> pid, of those that have a name there.
    """
    close = sorted(processes, key=lambda one: (abs(one - pid), one))
    owner = threads.get(pid, pid)
    if owner in processes:
        close = [owner]
        what = f"is a thread of process {owner}"
    else:
        what = f"no process of {' '.join(files)} has this pid"
    named = [f"{one} ({processes[one] or '?'})" for one in close[:_NAMED]]
    more = len(close) - len(named)
    listed = ", ".join(named) + (f" and {more:,} more" if more else "")
    return UsageTrouble(
        f"--pid {pid}: {what}",
        details=f"it has {listed}" if len(close) > 1 else None,
        hint=command(files, pid=close[0]) if close else command(files),
    )


def no_vma(
    files: Sequence[str], pid: int, addr: int, found: Candidates
) -> UsageTrouble:
    """Return the error for an address that no VMA of a process has held."""
    theirs = [vma for vma in found.vmas if found.pid(vma) == pid]
    ranges = {(vma.start, vma.end): vma for vma in theirs}
    close = sorted(ranges.values(), key=lambda vma: _distance(vma, addr))
    lines = [f"{vma.start:x}-{vma.end:x}" for vma in close[:_NAMED]]
    return UsageTrouble(
        f"--addr {addr:x}: no VMA of process {pid} that was recorded held it",
        details="\n".join(["close are", *lines]) if lines else None,
        hint=command(files, pid=pid, addr=close[0].start)
        if close
        else command(files, pid=pid),
    )


def _distance(vma: Vma, addr: int) -> int:
    """Return how many bytes an address is away from a VMA as it was last."""
    return max(vma.start - addr, addr - vma.end + 1, 0)
