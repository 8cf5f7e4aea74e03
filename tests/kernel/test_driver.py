"""Pages that a driver brings: what the recorder and the model make of them.

The numbers are the ones in ``cdmtrace/lab/scenarios/driver.c``, which are prime and
judged there. The slow step, which fills the device, is left out.
"""

from __future__ import annotations

from collections import Counter

import pytest
from labrun import found_under, lab_record

from cdmtrace.analysis import Trace, check, load, status
from cdmtrace.analysis.notes import Arrived, Note
from cdmtrace.analysis.result import Result, Verdict
from cdmtrace.events import Cause, EventKind
from cdmtrace.lab import quirks, scenarios
from cdmtrace.lab.paths import Layout

pytestmark = pytest.mark.timeout(3600)

ARENA, GIB = 0x100000000000, 1 << 30
UNTAGGED = "driver-untagged"
LIES = ("CDM019", "driver")
"""Of why it moves pages, it says that NUMA balancing does: on any kernel."""
SETS = (quirks.NONE, UNTAGGED, quirks.RFC)
MIGRATE, OTHERS = 53, 54
ARRIVE = {
    50: 23,  # map
    51: 53 + 7 + 3 * 2039,  # unmap
    52: 17 + 6 + 6,  # policy
    MIGRATE: 13 + 24 + 17,
    OTHERS: 11,
    55: 13 + 5,  # fork
    56: 31,  # limits
}
"""Slot in driver.c -> pages that the driver maps there, or moves to the CDM node."""
# Without a gate, what has no policy goes as well, and what two processes share.
UNGATED = {**ARRIVE, MIGRATE: 41 + 37 + 31, OTHERS: 19 + 11 + 2 * 7}
HELD = """\
n=0
{
	echo
	until [ -e "$0" ] || [ $((n += 1)) = 900 ]; do sleep 1; done
	sleep 20
	echo
} | "$@" --hold --numa-maps "$0"
"""
"""Keeps the scenario from ending before its mappings have been looked at. The file
comes when all steps are over, however long these take."""


@pytest.fixture(scope="module")
def traces(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Trace]:
    """The scenario as recorded under each set of quirks, in one boot."""
    scenario = scenarios.find_scenario("driver")
    program = scenarios.compile_scenario(scenario, Layout.default())
    words = {
        name: (
            *("--audit", "5", "--", "sh", "-c", HELD, f"{name}.maps", str(program)),
            *("--quirks", quirks.as_argument(quirks.resolve(name))),
        )
        for name in SETS
    }
    directory, statuses = lab_record(tmp_path_factory.mktemp("driver"), words)
    assert statuses == dict.fromkeys(SETS, 0)
    return {name: load(directory / f"{name}.arrows") for name in SETS}


@pytest.fixture(scope="module")
def results(traces: dict[str, Trace]) -> dict[str, tuple[Result, list[Arrived]]]:
    """What check says of each, and what has arrived in the scenario's mappings."""
    found = {}
    for name, trace in traces.items():
        arrived: list[Arrived] = []

        def keep(mm: object, event: object, note: Note, to: list = arrived) -> None:
            del mm, event
            if isinstance(note, Arrived) and ARENA <= note.page.addr < 2 * ARENA:
                to.append(note)

        found[name] = check(trace, observer=keep), arrived
    return found


@pytest.mark.parametrize("name", SETS)
def test_every_arrival_is_the_driver_s(results, name: str) -> None:
    _, arrived = results[name]
    assert {note.page.how for note in arrived} == {"driver"}
    assert all(note.asked and note.event.cause == Cause.DRIVER for note in arrived)
    slots = Counter((note.page.addr - ARENA) // GIB for note in arrived)
    assert slots == (ARRIVE if name == quirks.NONE else UNGATED)


def test_the_migrations_lie_of_their_reason(results) -> None:
    _, arrived = results[UNTAGGED]
    moved = [note.event for note in arrived if note.event.kind == EventKind.MIGRATE]
    assert len(moved) == UNGATED[MIGRATE] + UNGATED[OTHERS]
    assert {event.arg for event in moved} == {5}


@pytest.mark.parametrize(
    ("name", "others"), [(UNTAGGED, set()), (quirks.RFC, {("CDM011", "mbind")})]
)
def test_what_the_driver_leaves_untagged_is_found(
    results, name: str, others: set[tuple[str, str]]
) -> None:
    result, _ = results[name]
    found = found_under(name, result.findings)
    assert found == {("CDM002", "driver"), LIES} | others
    slots = {(f.start - ARENA) // GIB for f in result.findings if f.rule.id == "CDM002"}
    assert slots == set(ARRIVE)


def test_a_driver_that_tags_and_asks_is_clean(results) -> None:
    result, _ = results[quirks.NONE]
    assert found_under(quirks.NONE, result.findings) == {LIES}
    assert status.verdict(result, named=False) is Verdict.CLEAN
    verdicts = {rule.rule.id: (rule.verdict, rule.checked) for rule in result.rules}
    verdict, checked = verdicts["CDM002"]
    assert verdict is Verdict.CLEAN
    assert checked > len(ARRIVE)


@pytest.mark.parametrize("name", SETS)
def test_the_model_s_pages_are_the_kernel_s(results, name: str) -> None:
    result, _ = results[name]
    assert result.audit is not None
    assert result.audit.looks > 0
    assert result.audit.pages > 0
    assert result.audit.differences == ()
