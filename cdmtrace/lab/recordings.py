"""Runs in a guest: a recording under each of several sets of quirks, one by one.

In an emulated guest it takes half a minute to import all that it takes; with bcc as
long again, as long for the kernel's headers, and minutes to compile. So one process
makes all recordings, with one program that stays attached, libbpf's where it is
compiled; between two of them it is switched off and forgets what it knew.

A row's trace and what record says are left in the working directory, and how it ended
in ``statuses.json``, written anew after each row: the guest may die in the next.

Usage: python -m cdmtrace.lab.recordings FILE

FILE is ``[{"name", "quirks", "cdm_nodes", "command"}...]``: what is written to debugfs,
null on a kernel that has no quirks; the CDM nodes, null where the kernel knows them;
and what is recorded.
"""

from __future__ import annotations

import contextlib
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from cdmtrace import recorder
from cdmtrace.errors import CdmtraceError, LabError
from cdmtrace.lab import quirks
from cdmtrace.lab.guestscript import STATUSES
from cdmtrace.loader import build
from cdmtrace.loader.choice import headers_for, make_program
from cdmtrace.loader.program import ProgramLoader
from cdmtrace.options import Options

if TYPE_CHECKING:
    from collections.abc import Mapping

    from cdmtrace.loader import Loader
    from cdmtrace.loader.program import Program
    from cdmtrace.planning import Plan

LOADER: Final = "libbpf" if build.is_there() else "auto"
_KEYS: Final = frozenset({"KEY0", "KEY1"})


class _Shared(ProgramLoader):
    """The program, as each recording gets it: to attach and close are for the first
    and the last one."""

    def __init__(self, program: Program) -> None:
        super().__init__(program)
        self._attached = False

    def attach(self, plans: tuple[Plan, ...]) -> None:
        if not self._attached:
            super().attach(plans)
            self._attached = True

    def close(self) -> None:
        """Forget, and stay attached."""
        self.forget()

    def end(self) -> None:
        """Detach everything."""
        super().close()


class Kept:
    """Gives each recording the program that the first one has compiled."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] | None = None
        self._loader: _Shared | None = None

    def load(self, defines: Mapping[str, int]) -> Loader:
        """Return the program. Raises LabError for one that would be another."""
        # The keys that addresses are hidden by are new each time; one is enough.
        numbers = {name: n for name, n in defines.items() if name not in _KEYS}
        if self._loader is None:
            program = make_program(LOADER, defines)
            self._loader, self._numbers = _Shared(program), numbers
        if numbers != self._numbers:
            raise LabError("the machine has changed between two recordings")
        return self._loader

    def close(self) -> None:
        """Detach everything."""
        if self._loader is not None:
            self._loader.end()


def record(row: Mapping[str, Any], kept: Kept) -> int:
    """Make one recording; return its status. What is said goes to NAME.stderr."""
    options = Options(
        output=Path(f"{row['name']}.arrows"),
        command=tuple(row["command"]),
        cdm_nodes=row["cdm_nodes"],
        loader=LOADER,
    )
    with Path(f"{row['name']}.stderr").open("w", buffering=1) as said:

        def say(text: str) -> None:
            said.write(f"{text}\n")

        try:
            outcome = recorder.record(options, say=say, load=kept.load)
        except CdmtraceError as error:
            say(str(error))
            return int(error.exit_status)
        say(f"{outcome.events:,} events, {outcome.lost:,} lost")
        return outcome.status


def run(file: Path) -> None:
    """Make the recordings that a file asks for."""
    statuses: dict[str, int] = {}
    with headers_for(LOADER), contextlib.closing(Kept()) as kept:
        for row in json.loads(file.read_text()):
            if row["quirks"] is not None:
                Path(quirks.DEBUGFS_FILE).write_text(row["quirks"])
            sys.stdout.write(f"recording {row['name']}\n")
            sys.stdout.flush()
            statuses[row["name"]] = record(row, kept)
            Path(STATUSES).write_text(json.dumps(statuses))


if __name__ == "__main__":
    run(Path(sys.argv[1]))
