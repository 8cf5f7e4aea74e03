"""Which rows are a run, and what ends one."""

from __future__ import annotations

import numpy as np
import pytest

from cdmtrace.analysis import runs
from cdmtrace.events import EVENT_DTYPE, Bit, EventKind

PAGE = 4096
BASE = 0x100040000000
ALLOC, MAP = EventKind.ALLOC, EventKind.MAP
UNMAP, MIGRATE = EventKind.UNMAP, EventKind.MIGRATE


def columns(*kinds: EventKind, units: int = 1) -> dict[str, np.ndarray]:
    """Return rows of these kinds about one page, and again about the next ones."""
    count = len(kinds) * units
    rows = np.zeros(count, EVENT_DTYPE)
    rows["kind"] = kinds * units
    rows["mm"], rows["tid"], rows["size"] = 1, 7, PAGE
    rows["start"], rows["end"] = BASE, BASE + 1000 * PAGE
    rows["addr"] = BASE + np.arange(count) // len(kinds) * PAGE
    rows["ts"] = np.arange(count)
    rows["cpu"] = np.arange(count) % 2
    names = EVENT_DTYPE.names or ()
    return {"seq": np.arange(1, count + 1), **{name: rows[name] for name in names}}


def found(rows: dict[str, np.ndarray], *breaks: int) -> list[list[list[int]]]:
    return [run.units.tolist() for run in runs.find(rows, PAGE, breaks)]


def test_units_are_maps_unmaps_faults_and_moves() -> None:
    assert found(columns(MAP, units=6)) == [[[n] for n in range(6)]]
    assert found(columns(UNMAP, units=6)) == [[[n] for n in range(6)]]
    of_two = [[2 * n, 2 * n + 1] for n in range(6)]
    assert found(columns(ALLOC, MAP, units=6)) == [of_two]
    assert found(columns(ALLOC, units=6)) == []
    assert found(columns(MIGRATE, units=6)) == [[[n] for n in range(6)]]
    assert found(columns(UNMAP, MIGRATE, units=6)) == [of_two]
    assert found(columns(EventKind.VMA_SEEN, units=6)) == []


def test_no_row_is_in_two_units() -> None:
    """Of the last faults the allocations are missing."""
    rows = columns(ALLOC, MAP, units=12)
    rows["kind"][12:] = MAP
    rows["addr"][12:] = BASE + np.arange(100, 112) * PAGE
    units = found(rows)
    numbers = [number for run in units for unit in run for number in unit]
    assert len(units) == 2
    assert len({*numbers}) == len(numbers)


def test_few_are_no_run() -> None:
    assert found(columns(MAP, units=runs.LEAST - 1)) == []
    assert len(found(columns(MAP, units=runs.LEAST))) == 1


@pytest.mark.parametrize("name", sorted({*EVENT_DTYPE.names} - runs.NOT_COMPARED))
def test_a_row_that_is_another_ends_it(name: str) -> None:
    rows = columns(MAP, units=12)
    rows[name][6] += 1
    if name == "kind":
        rows[name][6] = EventKind.FLAGS
    for run in found(rows):
        assert [6] not in run
        assert len(run) <= 6


@pytest.mark.parametrize("which", [0, 1])
def test_a_fault_that_is_another_ends_it(which: int) -> None:
    rows = columns(ALLOC, MAP, units=14)
    rows["stack"][14 + which] = 5
    assert [len(run) for run in found(rows)] == [7, 6]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("bits", Bit.VMA_UNREAD),
        ("bits", Bit.UNLINKED),
        ("bits", Bit.KSM),
        ("flags_after", 1),
        ("size", 2 * PAGE),
        ("mm", 0),
        ("end", BASE),
        ("start", BASE + 500 * PAGE),
    ],
)
def test_what_the_screen_knows_nothing_of_is_in_none(name: str, value: int) -> None:
    rows = columns(MAP, units=12)
    rows[name][:] = value
    assert found(rows) == []


def test_an_allocation_for_another_place_is_no_faults() -> None:
    rows = columns(ALLOC, MAP, units=12)
    rows["addr"][::2] += PAGE
    assert found(rows) == []


@pytest.mark.parametrize("name", ["mm", "tid"])
def test_rows_of_others_may_lie_between(name: str) -> None:
    """But not those of the same task, or about the same address space."""
    rows = columns(MAP, units=12)
    rows["mm"][::2] = 2
    rows["tid"][::2] = 8
    assert [[unit[0] for unit in run] for run in found(rows)] == [
        list(range(1, 12, 2)),
        list(range(0, 12, 2)),
    ]
    rows[name][:] = 9
    assert found(rows) == []


@pytest.mark.parametrize("kind", [EventKind.COPY, EventKind.SNAP_MM])
def test_what_may_be_about_any_address_space_ends_all(kind: EventKind) -> None:
    rows = columns(MAP, units=13)
    for name, value in (("kind", kind), ("mm", 5), ("tid", 5)):
        rows[name][6] = value
    assert [len(run) for run in found(rows)] == [6, 6]


def test_rows_that_are_missing_end_all() -> None:
    rows = columns(MAP, units=12)
    assert [len(run) for run in found(rows, 6)] == [5, 7]
