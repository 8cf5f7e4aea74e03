"""CDM003, CDM004 and CDM018 on a kernel of Debian's that nobody has patched.

The control is a module of ours, which writes vm_flags of chosen VMAs without the lock,
with it held for read, and for write; its scenario says which VMAs these are. All other
programs of the recording change flags thousands of times as this kernel does: of them
nothing may be found.
"""

from __future__ import annotations

import os
import re
import sys
from collections import Counter
from pathlib import Path

import pytest
from labrun import lab_run
from places import Place, places

from cdmtrace.analysis import check, load
from cdmtrace.analysis.replay import Result
from cdmtrace.events import Lock, Probe, mmap_lock
from cdmtrace.lab import kernels
from cdmtrace.lab.guestscript import in_memory
from cdmtrace.lab.paths import Layout
from cdmtrace.lab.specs import find_spec

pytestmark = pytest.mark.timeout(3600)

FORCE = os.environ.get("CDMTRACE_KERNEL_TESTS", "")
HERE = Path(__file__).parent
KERNEL = "stock-6.1"
WRITERS = ("CDM003", "CDM004", "CDM018")
"""Rules about writes of vm_flags, whatever the flag."""
STEPS = {"unlocked", "read", "write", "lost", "kept", "readers"}
WRITES = 5
"""VMAs of each step."""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run directory of a guest with the module and ordinary programs."""
    if FORCE != "1" and kernels.find(find_spec(KERNEL), Layout.default()) is None:
        pytest.skip(f"it is not here (cdmtrace lab build --kernel {KERNEL})")
    tmp_path = tmp_path_factory.mktemp("stock")
    result = lab_run(
        tmp_path,
        *("--kernel", KERNEL, "--timeout", "2400", "--scenario", "flag_writer"),
        *("--", *in_memory("sh", str(HERE / "ordinary.sh"), sys.executable)),
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return tmp_path / "run"


@pytest.fixture(scope="module")
def told(run: Path) -> list[Place]:
    """What the scenario says."""
    return places((run / "scenario.tap").read_text().splitlines())


@pytest.fixture(scope="module")
def result(run: Path) -> Result:
    """What the recording shows."""
    return check(load(run / "ordinary.arrows"))


def test_every_step_comes_out(run: Path, told: list[Place]) -> None:
    lines = (run / "scenario.tap").read_text().splitlines()
    assert [line for line in lines if re.match("not ok|.*# SKIP", line)] == []
    assert {place.step for place in told} == STEPS
    assert len(told) == 9 * WRITES


def test_the_module_holds_the_lock_that_it_is_told(
    told: list[Place], result: Result
) -> None:
    """Otherwise the control would be one of something else."""
    held = {"unlocked": Lock.NONE, "read": Lock.READ, "write": Lock.WRITE_SELF}
    for place in told:
        if place.step in held:
            writes = [
                event
                for event in result.trace.events
                if event.probe == Probe.ALLOC
                and event.start == place.start
                and event.flags_before != event.flags_after
            ]
            assert [mmap_lock(event.lock_entry) for event in writes] == [
                held[place.step]
            ]


def test_what_the_module_does_is_found_where_it_does_it(
    told: list[Place], result: Result
) -> None:
    wrong = [
        place
        for place in told
        if any(map(place.met_by, result.findings)) is not place.shown
    ]
    assert wrong == []
    assert Counter(place.rule for place in told if place.shown) == {
        "CDM003": 4 * WRITES,
        "CDM004": WRITES,
        "CDM018": WRITES,
    }


def test_nothing_is_found_of_anybody_else(told: list[Place], result: Result) -> None:
    assert result.trace.lost == 0
    written_wrongly = {
        (place.rule, place.pid, place.start) for place in told if place.shown
    }
    found = {(one.rule.id, one.mm.pid, one.start) for one in result.findings}
    assert found == written_wrongly


def test_thousands_of_changes_were_judged(result: Result) -> None:
    checked = {one.rule.id: one.checked for one in result.rules}
    assert min(checked[rule] for rule in WRITERS) > 5000
