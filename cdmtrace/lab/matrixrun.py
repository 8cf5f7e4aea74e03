"""Make the matrix's recordings in guests, and find those that were made before.

One guest makes all of them, one after the other, but for quirks that end it: each of
those has a guest of its own. In the directory there is afterwards NAME.arrows of each
row, NAME.SCENARIO.tap, and ``statuses.json``; a row with a guest of its own has all but
the last in a directory NAME.
"""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from cdmtrace.errors import GuestDied, LabError, UnreadableFile
from cdmtrace.lab import modules, quirks, scenarios
from cdmtrace.lab.guestscript import STATUSES, in_memory
from cdmtrace.lab.machine import CDM_NODE
from cdmtrace.lab.matrix import DIED, Recording

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from cdmtrace.lab.expectations import Row

RECORDINGS: Final = "cdmtrace.lab.recordings"
"""What runs in the guest. It imports what records, and nobody here needs that."""

SCENARIO_SECONDS: Final = 900
ROW_SECONDS: Final = 2400
"""How long a scenario, and a recording of several, may take in an emulated guest, on a
host that is busy."""

BOOT_SECONDS: Final = 600
"""What comes before the first recording, at most."""


def split(scenario: str) -> tuple[str, str]:
    """Return name and steps of ``NAME`` or ``NAME:STEP,STEP``."""
    name, _, steps = scenario.partition(":")
    return name, steps


def script(row: Row, programs: Mapping[str, Path]) -> str:
    """Return the shell script that a row's recording runs.

    programs: scenario's name -> its program. It ends with the last status that is
    not 0: the scenario that comes next is run all the same.
    """
    lines = ["s=0"]
    told = quirks.as_argument(row.quirks)
    node = ["--cdm-node", str(CDM_NODE)] if row.stock else []
    for scenario in row.scenarios:
        name, steps = split(scenario)
        words = ["timeout", str(SCENARIO_SECONDS), str(programs[name])]
        words += ["--quirks", told, *node, *(["--step", steps] if steps else [])]
        output = shlex.quote(f"{row.name}.{name}.tap")
        lines.append(f"{shlex.join(words)} >{output} 2>&1 || s=$?")
    return "\n".join([*lines, "exit $s"])


def orders(rows: Iterable[Row], programs: Mapping[str, Path]) -> list[dict[str, Any]]:
    """Return what the process in the guest is told to record."""
    return [
        {
            "name": row.name,
            "quirks": None if row.stock else quirks.as_argument(row.quirks),
            "cdm_nodes": str(CDM_NODE) if row.stock else None,
            "command": ["timeout", str(ROW_SECONDS), "sh", "-c", script(row, programs)],
        }
        for row in rows
    ]


def seconds(rows: Sequence[Row]) -> float:
    """Return how long a guest for these rows may take."""
    return BOOT_SECONDS + ROW_SECONDS * len(rows)


def record(
    rows: Sequence[Row],
    directory: Path,
    *,
    boot: Callable[[Path, tuple[str, ...], float], int],
    compiled: Callable[[str], Path],
    timeout: float | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> dict[str, int]:
    """Record rows; return their statuses by name, which are in the directory as well.

    boot: boots a guest with a run directory, a command and a time in seconds, and
    returns the command's status. compiled: returns the program of a scenario.
    """
    programs = {
        name: compiled(name)
        for name in sorted({split(one)[0] for row in rows for one in row.scenarios})
    }
    together = [row for row in rows if not row.crashes]
    statuses: dict[str, int] = {}
    try:
        if together:
            say(f"{len(together)} recordings in one guest")
            _boot(together, directory, programs, boot, timeout)
            statuses |= _noted(directory)
        for row in rows:
            if row.crashes:
                say(f"a guest for {row.name}, which ends it")
                own = directory / row.name
                own.mkdir(mode=0o700)
                try:
                    _boot([row], own, programs, boot, timeout)
                    statuses |= _noted(own)
                except GuestDied:
                    statuses[row.name] = DIED
    finally:
        # A guest that died, or was ended, has noted what it had done.
        statuses = _noted(directory) | statuses
        (directory / STATUSES).write_text(json.dumps(statuses))
    return statuses


def _boot(
    rows: Sequence[Row],
    directory: Path,
    programs: Mapping[str, Path],
    boot: Callable[[Path, tuple[str, ...], float], int],
    timeout: float | None,
) -> None:
    # In /tmp of a guest there is nothing of ours: it reads the order where it writes.
    file = directory / "orders.json"
    file.write_text(json.dumps(orders(rows, programs)))
    words = (sys.executable, "-m", RECORDINGS, str(file))
    status = boot(directory, in_memory(*words), timeout or seconds(rows))
    if status:
        raise LabError(
            f"the recordings ended with {status}",
            details=(directory / "stderr").read_text(errors="replace")[-2000:],
        )


def find(rows: Iterable[Row], directory: Path) -> dict[str, Recording]:
    """Return the recordings that there are of these rows, by name.

    Raises UnreadableFile where the directory is none, or its notes are not ours.
    """
    if not directory.is_dir():
        raise UnreadableFile(f"{directory} is no directory")
    statuses = _noted(directory)
    there = {}
    for row in rows:
        file = f"{row.name}.arrows"
        for trace in (directory / file, directory / row.name / file):
            if trace.is_file():
                there[row.name] = Recording(trace=trace, status=statuses.get(row.name))
                break
    return there


def _noted(directory: Path) -> dict[str, int]:
    file = directory / STATUSES
    try:
        noted = json.loads(file.read_text())
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise UnreadableFile(f"{file}: {error}") from error
    if not isinstance(noted, dict):
        raise UnreadableFile(f"{file}: no object")
    return noted


def with_scenarios(row: Row, names: str | None) -> tuple[str, ...]:
    """Return a row's scenarios, or those of a list given in their place.

    In such a list a scenario's steps are joined by ``/``. Raises LabError for one that
    does not exist, or needs a module, which no kernel with quirks can have.
    """
    if names is None:
        return row.scenarios
    chosen = []
    for one in filter(None, (name.strip() for name in names.split(","))):
        name, steps = split(one)
        if modules.needed_by(scenarios.find_scenario(name)):
            raise LabError(
                f"the scenario {name} needs a module, and no row of the matrix has one",
                hint=f"cdmtrace lab run {modules.HINT} --scenario {name}",
            )
        chosen.append(f"{name}:{steps.replace('/', ',')}" if steps else name)
    return tuple(chosen)
