"""When a unit of a run has changed nothing that the next one could find changed."""

from __future__ import annotations

import pytest
from msgspec.structs import replace
from rows import BASE, PAGE, TAG, Rows

from cdmtrace.analysis.alike import still
from cdmtrace.analysis.frames import Event
from cdmtrace.analysis.notes import Left
from cdmtrace.analysis.pages import Page, PageMap
from cdmtrace.analysis.rules import RULES
from cdmtrace.analysis.state import Open, State
from cdmtrace.events import EventKind, Probe

ALLOCATES = EventKind.ALLOC, Probe.ALLOC
MAPS = EventKind.MAP, Probe.RMAP_ADD


Changed = tuple[State, State, list[Event]]


def fault(rows: Rows, number: int) -> Changed:
    """Have a page faulted in; return the mm before and after, and its rows."""
    before, unit = rows.state, []
    for kind, probe in (
        (EventKind.ALLOC, Probe.ALLOC),
        (EventKind.MAP, Probe.RMAP_ADD),
    ):
        unit.append(
            rows.row(
                kind,
                0,
                40,
                flags=TAG,
                bound=True,
                probe=probe,
                node=1,
                addr=BASE + number * PAGE,
                size=PAGE,
            )
        )
    return before, rows.state, unit


@pytest.fixture
def second() -> Changed:
    """The second of two alike."""
    rows = Rows()
    fault(rows, 0)
    return fault(rows, 1)


def test_the_second_of_two_changes_nothing(second) -> None:
    assert still(*second)


def test_the_first_one_does() -> None:
    assert not still(*fault(Rows(), 0))


OTHER = Event(seq=1000, ts=1000, ts_entry=1000, kind=EventKind.MAP)
MANY = PageMap().put(Page.of(replace(OTHER, size=PAGE, node=1), "fault"))


@pytest.mark.parametrize(
    "change",
    [
        {"gone": MANY},
        {"limbo": MANY},
        {"task_policy": {7: OTHER}},
        {"tagging": {7: (OTHER, 1)}},
        {"writes": (OTHER,)},
        {"near": ((), True)},
        {"dirty": (BASE,)},
        {"whole": False},
        {"ended": True},
        {"last": {}},
        {"last": {7: (BASE, 0, True, False), 8: (BASE, 0, True, False)}},
        {"open": {(8, 1): Open()}},
        {"open": {(7, 0): Open()}},
        {"areas": ()},
    ],
    ids=lambda change: next(iter(change)),
)
def test_whatever_else_changes_is_seen(second, change) -> None:
    before, after, unit = second
    assert not still(before, replace(after, **change), unit)


@pytest.mark.parametrize(
    "change",
    [
        {"flags": 0},
        {"policy": None},
        {"pages_known": False},
        {"justified": OTHER},
        {"ended": OTHER},
        {"cleared": OTHER},
        {"inherited": True},
        {"excused": True},
        {"standing": "stale"},
        {"patched": None},
        {"due": None},
        {"end": BASE + 39 * PAGE},
    ],
    ids=lambda change: next(iter(change)),
)
def test_whatever_else_changes_of_its_vma_is_seen(second, change) -> None:
    before, after, unit = second
    (area,) = after.areas
    changed = replace(after, areas=(replace(area, **change),))
    assert getattr(area, *change) != next(iter(change.values()))
    assert not still(before, changed, unit)


def test_what_changes_of_another_vma_is_seen(second) -> None:
    before, after, unit = second
    (area,) = after.areas
    other = replace(area, start=area.end, end=area.end + PAGE)
    before = replace(before, areas=(*before.areas, other))
    assert still(before, replace(after, areas=(area, other)), unit)
    changed = replace(after, areas=(area, replace(other, seen=unit[-1])))
    assert not still(before, changed, unit)


def test_what_a_call_has_allocated_matters_where_it_is_not_told_anew(second) -> None:
    before, after, unit = second
    unit = [replace(row, call=5) for row in unit]
    call = Open(alloc=unit[0])
    before = replace(before, open={(7, 5): call})
    same = replace(after, open={(7, 5): call})
    other = replace(after, open={(7, 5): replace(call, alloc=OTHER)})
    assert still(before, same, unit[1:])
    assert still(before, other, unit)
    assert not still(before, other, unit[1:])
    told = replace(after, open={(7, 5): replace(call, failed=(OTHER,))})
    assert not still(before, told, unit)


def test_no_rule_looks_at_a_page_that_goes() -> None:
    """The screen holds units of UNMAP to be alike whatever their pages are."""
    assert not [rule.id for rule in RULES if rule.note in (None, Left)]
