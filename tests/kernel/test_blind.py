"""Probes that have no rows of their own, taken out: what needs them must be missed.

Without rmap_walk, mmu_gather, driver_page or migrate_pages the other probes' rows are
there, and what these have to say is missing in them. So each is left out of a recording
of its own (``--no-probe``), of the same load, and only the steps that need it may
disagree. (test_paths.py takes out the probes that have rows, by their rows.)
"""

from __future__ import annotations

import os
import re
import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import pytest
from labrun import lab_run

from cdmtrace.analysis import Trace, check, load
from cdmtrace.analysis.frames import Event
from cdmtrace.analysis.notes import Arrived, Left, Note
from cdmtrace.analysis.result import Mm
from cdmtrace.events import EventKind
from cdmtrace.format.reader import TraceReader
from cdmtrace.lab import quirks, scenarios
from cdmtrace.lab.paths import Layout

pytestmark = pytest.mark.timeout(3600)

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
ARENA, GIB, PAGE = 0x100000000000, 1 << 30, 4096
PAIRS = 7
REASON = 5
"""MR_NUMA_MISPLACED: what the driver says that it moves pages for."""

STEPS = dict(
    enumerate(("map", "unmap", "policy", "migrate", "others", "fork", "limits"), 50)
)
"""Slot in driver.c -> its step."""

TOLD = {
    ("map", "arrive"): 23,
    ("unmap", "arrive"): 53 + 7 + 3 * 2039,
    ("unmap", "depart"): 7 + 17 + 3 * 2039,
    ("policy", "arrive"): 17 + 6 + 6,
    ("migrate", "arrive"): 41 + 37 + 31,
    ("migrate", "reason"): 41 + 37 + 31,
    ("migrate", "depart"): 41 + 7,
    ("others", "arrive"): 19 + 11 + 2 * 7,
    ("others", "reason"): 19 + 11 + 2 * 7,
    ("fork", "arrive"): 13 + 5,
    ("limits", "arrive"): 31,
    ("limits", "depart"): 24,
    ("merged", "depart"): 2 * PAIRS,
}
"""(step, what) -> pages that the driver brings, by rows that tell its reason where it
moves them; and pages known to be there that leave before their process ends."""

NEEDED_BY = {
    # A page of a driver's does not tell where it is mapped.
    "driver_page": {
        *((step, "arrive") for step in ("map", "unmap", "policy", "fork", "limits")),
        *(("unmap", "depart"), ("limits", "depart")),
    },
    # Nor where it is unmapped.
    "mmu_gather": {("unmap", "depart"), ("limits", "depart")},
    # A page of KSM's does not, either.
    "rmap_walk": {("merged", "depart")},
    "migrate_pages": {("migrate", "reason"), ("others", "reason")},
}
"""Probe -> what is told otherwise without it."""


@pytest.fixture(scope="module")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the directory with PROBE.arrows, one boot for all."""
    program = scenarios.compile_scenario(
        scenarios.find_scenario("driver"), Layout.default()
    )
    directory = tmp_path_factory.mktemp("blind")
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    words = ["env", f"PYTHONPATH={path}", sys.executable, str(HERE / "blind.py")]
    words += [str(program), quirks.as_argument(quirks.resolve(quirks.RFC)), *NEEDED_BY]
    result = lab_run(
        directory,
        *("--quirks", quirks.RFC, "--timeout", "3300", "--", *words),
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return directory / "run"


def told(trace: Trace, pid: int, merged: int) -> Mapping[tuple[str, str], int]:
    """Return what a recording tells of the load; merged: where KSM's pages are."""
    found: Counter[tuple[str, str]] = Counter()

    def observe(mm: Mm, event: Event, note: Note) -> None:
        del event
        if isinstance(note, Arrived) and note.page.how == "driver":
            step = STEPS.get((note.page.addr - ARENA) // GIB, "elsewhere")
            found[step, "arrive"] += 1
            if note.event.kind == EventKind.MIGRATE and note.event.arg == REASON:
                found[step, "reason"] += 1
        elif isinstance(note, Left) and note.page:
            addr = note.event.addr
            step = STEPS.get((addr - ARENA) // GIB, "")
            if mm.pid == pid and merged <= addr < merged + 2 * PAIRS * PAGE:
                step = "merged"
            if step:
                found[step, "depart"] += 1

    check(trace, rules=(), observer=observe)
    return found


@pytest.mark.parametrize("probe", NEEDED_BY)
def test_what_needs_the_probe_is_missed_and_nothing_else(
    recordings: Path, probe: str
) -> None:
    out = (recordings / f"{probe}.stdout").read_text()
    match = re.search(r"^# merged pid=(\d+) addr=0x([0-9a-f]+)$", out, re.MULTILINE)
    assert match, out
    trace = load(recordings / f"{probe}.arrows")
    found = told(trace, int(match[1]), int(match[2], 16))
    wrong = {key for key in {*TOLD, *found} if TOLD.get(key, 0) != found.get(key, 0)}
    assert wrong == NEEDED_BY[probe]


@pytest.mark.parametrize("probe", NEEDED_BY)
def test_the_header_says_what_was_left_out(recordings: Path, probe: str) -> None:
    with TraceReader(recordings / f"{probe}.arrows") as trace:
        table = trace.header.probes
    absent = {entry.name: entry.why_not for entry in table if entry.symbol is None}
    assert absent == {probe: "not asked for"}
