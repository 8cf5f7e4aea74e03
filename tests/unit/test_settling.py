"""When a VMA is judged, and by which facts."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace

from cdmtrace.analysis.frames import Event, Terms
from cdmtrace.analysis.notes import Settled
from cdmtrace.analysis.pages import Page, PageMap
from cdmtrace.analysis.profiles import PROFILES, Facts
from cdmtrace.analysis.settling import facts_of, settle
from cdmtrace.analysis.state import Area, Open, Policy, Rise, State
from cdmtrace.events import Bit, EventKind, Mpol

TAG, PLAIN, CDM, PAGE = 1 << 38, 0x100073, 1 << 1, 4096
BASE = 0x100040000000
TERMS = Terms(cdm=CDM, tag=TAG)
BOUND = Policy(byte=Mpol.BIND, nodes=CDM)
NO_POLICY = Policy(byte=Mpol.DEFAULT, nodes=0)


def row(seq: int, kind: EventKind = EventKind.UNMAP, **columns: Any) -> Event:
    return Event(seq=seq, ts=1000 * seq, ts_entry=1000 * seq - 1, kind=kind, **columns)


def area(first: int, last: int, **known: Any) -> Area:
    given = {
        "flags": PLAIN,
        "policy": NO_POLICY,
        "seen": row(1),
        "seen_ts": 1000,
        "since": 7,
    } | known
    return Area(start=BASE + first * PAGE, end=BASE + last * PAGE, **given)


def page(number: int, seq: int = 5, how: str = "fault", explicit: bool = False) -> Page:
    return Page(
        addr=BASE + number * PAGE,
        size=PAGE,
        node=1,
        how=how,
        explicit=explicit,
        event=row(seq),
    )


def mm(*areas: Area, pages: tuple[Page, ...] = (), **known: Any) -> State:
    """An address space of which every VMA is to be judged."""
    dirty = tuple(one.start for one in areas)
    return State(
        areas=areas, pages=PageMap().put_all(pages), **{"dirty": dirty, **known}
    )


def judged(state: State, profile: str = "intended") -> tuple[State, list[Settled]]:
    state, notes = settle(state, row(9), TERMS, PROFILES[profile])
    assert all(isinstance(note, Settled) for note in notes)
    return state, list(notes)


@pytest.mark.parametrize(
    ("known", "pages", "facts"),
    [
        ({}, (), {}),
        ({"flags": PLAIN | TAG}, (), {"tag": True}),
        ({"policy": BOUND}, (), {"policy_names": True}),
        ({"policy": None}, (), {"policy_names": None}),
        ({"by_driver": True}, (), {"by_driver": True, "asked": True}),
        ({}, (page(1, how="fork"),), {"held": True}),
        ({}, (page(1),), {"held": True, "came": True}),
        ({}, (page(1, explicit=True),), {"held": True, "came": True, "asked": True}),
        # Those of its neighbours are none of its own.
        ({}, (page(4, explicit=True),), {}),
        ({"pages_known": False}, (), {"pages_known": False}),
        ({"excused": True}, (), {"excused": True}),
        ({"patched": True}, (), {"patched": True}),
    ],
)
def test_the_facts_of_a_vma(known, pages, facts) -> None:
    plain = Facts(
        tag=False,
        policy_names=False,
        asked=False,
        held=False,
        came=False,
        pages_known=True,
        excused=False,
        patched=None,
    )
    found = area(0, 4, **known)
    assert facts_of(mm(found, pages=pages), found, TERMS) == replace(plain, **facts)


def test_what_is_judged_once_is_not_judged_again() -> None:
    one, two = area(0, 4), area(4, 8)
    inside = one.start + PAGE
    state, notes = judged(mm(one, two, dirty=(one.start, inside, two.start)))
    assert [note.area for note in notes] == [one, two]
    assert [(note.event.seq, note.since, note.standing) for note in notes] == [
        (9, 7, "")
    ] * 2
    assert state.dirty == ()


def test_what_is_not_known_or_is_gone_keeps_nobody_waiting() -> None:
    unknown, known = area(0, 4, flags=None), area(4, 8)
    gone = BASE + 50 * PAGE
    _, notes = judged(mm(unknown, known, dirty=(gone, unknown.start, known.start)))
    assert [note.area for note in notes] == [known]


@pytest.mark.parametrize(
    ("fault", "waits"), [(3, False), (4, True), (7, True), (8, False)]
)
def test_a_fault_keeps_its_own_vma_from_settling(fault: int, waits: bool) -> None:
    """The one that is judged first keeps none of the others."""
    alloc = row(3, EventKind.ALLOC, addr=BASE + fault * PAGE)
    faults = {(7, 0): Open(alloc=alloc), (8, 0): Open()}
    busy, other = area(4, 8), area(8, 12)
    state, notes = judged(mm(busy, other, open=faults))
    settled = [note.area for note in notes]
    assert (busy in settled) is not waits
    assert state.dirty == ((busy.start,) if waits else ()) + (
        (other.start,) if fault == 8 else ()
    )


@pytest.mark.parametrize(
    ("known", "pages", "before", "after"),
    [
        ({"flags": PLAIN | TAG}, (), "", "stale"),
        ({"flags": PLAIN | TAG, "policy": BOUND}, (), "stale", ""),
        ({"policy": BOUND}, (page(1),), "", "missing"),
        # Nothing has come yet, or what is there came for another one.
        ({"policy": BOUND}, (), "", ""),
        ({"policy": BOUND}, (page(1, how="fork"),), "", ""),
        # It was missing, and the pages have gone.
        ({"policy": BOUND}, (), "missing", "missing"),
        ({}, (page(1),), "missing", ""),
    ],
)
def test_where_a_vma_stands(known, pages, before, after) -> None:
    found = area(0, 4, standing=before, **known)
    state, (note,) = judged(mm(found, pages=pages))
    # The note shows where it stood, and where it stands.
    assert (note.area.standing, note.standing) == (before, after)
    assert state.areas[0].standing == after


def test_under_the_patches_a_tag_is_missing_before_there_is_a_page() -> None:
    _, (note,) = judged(mm(area(0, 4, patched=True)), "rfc-v2")
    assert (note.standing, note.page) == ("missing", None)


def test_a_judgement_ends_a_rise_and_an_inheritance() -> None:
    rise = Rise(start=BASE, end=BASE + PAGE, event=row(4), before=None)
    found = area(0, 4, flags=PLAIN | TAG, policy=BOUND, rise=rise, inherited=True)
    state, (note,) = judged(mm(found))
    assert (note.area.rise, note.area.inherited) == (rise, True)
    assert (state.areas[0].rise, state.areas[0].inherited) == (None, False)


RISE = Rise(start=BASE, end=BASE + PAGE, event=row(4), before=None)


@pytest.mark.parametrize("wrong", [True, False])
@pytest.mark.parametrize(
    ("known", "pages", "expected"),
    [
        # A reason makes a tag right, whatever it was before.
        ({"policy": BOUND}, (), False),
        ({}, (page(1, explicit=True),), False),
        # What is inherited is wrong where nothing speaks for it.
        ({"inherited": True}, (), True),
        ({"inherited": True}, (page(1),), False),
        # What was set is wrong where no policy of its own names a CDM node.
        ({"rise": RISE}, (page(1),), True),
        ({"rise": RISE, "policy": None}, (), False),
        # Anything else changes nothing.
        ({}, (), None),
    ],
)
def test_whether_a_tag_was_born_wrong(known, pages, expected, wrong) -> None:
    found = area(0, 4, flags=PLAIN | TAG, born_wrong=wrong, **known)
    state, _ = judged(mm(found, pages=pages))
    assert state.areas[0].born_wrong is (wrong if expected is None else expected)


def test_a_tag_that_is_not_there_was_not_born_wrong() -> None:
    for known in ({"inherited": True}, {"rise": RISE}):
        state, _ = judged(mm(area(0, 4, **known)))
        assert state.areas[0].born_wrong is False


@pytest.mark.parametrize(
    ("known", "pages", "expected"),
    [
        ({}, (), 2),
        ({"policy": BOUND, "policy_by": row(3)}, (), 3),
        # The policy is from before the recording.
        ({"policy": BOUND}, (), 2),
        ({}, (page(1, seq=6, explicit=True), page(2, seq=5, explicit=True)), 6),
        # A policy is the better reason.
        ({"policy": BOUND, "policy_by": row(3)}, (page(1, explicit=True),), 3),
        # That a driver tagged it is told by no page.
        ({"by_driver": True}, (), 2),
    ],
)
def test_what_last_gave_a_tag_a_reason(known, pages, expected) -> None:
    found = area(0, 4, flags=PLAIN | TAG, justified=row(2), **known)
    state, _ = judged(mm(found, pages=pages))
    assert state.areas[0].justified
    assert state.areas[0].justified.seq == expected


@pytest.mark.parametrize(
    ("known", "pages", "expected"),
    [
        # The newest that counts: by a policy any that came for the VMA, ...
        ({"policy": BOUND}, (page(1, seq=5), page(2, seq=6), page(3, 7, "fork")), 6),
        # ... and by a request those that were asked for.
        ({}, (page(1, 5, "move_pages", True), page(2, 6)), 5),
    ],
)
def test_the_page_that_a_demand_leans_on(known, pages, expected) -> None:
    _, (note,) = judged(mm(area(0, 4, **known), pages=pages))
    assert note.page
    assert note.page.event.seq == expected


def test_a_tag_that_is_right_by_policy_needs_no_page() -> None:
    _, (note,) = judged(
        mm(area(0, 4, flags=PLAIN | TAG, policy=BOUND), pages=(page(1),))
    )
    assert note.page is None


@pytest.mark.parametrize(
    ("known", "like"),
    [
        ({}, True),
        ({"flags": PLAIN | TAG}, True),
        ({"flags": None}, False),
        ({"policy": BOUND}, False),
        ({"seen": None}, False),
        ({"seen": row(1, bits=int(Bit.FILE))}, False),
    ],
)
def test_which_neighbours_could_be_one_with_a_vma(known, like) -> None:
    found, below, above = area(2, 4), area(0, 2, **known), area(4, 6, **known)
    _, (note,) = judged(mm(below, found, above, dirty=(found.start,)))
    assert note.beside == ((below, above) if like else ())


def test_beside_a_hole_or_a_vma_of_a_file_or_of_no_known_policy_is_nobody() -> None:
    far = area(6, 8)
    _, (note,) = judged(mm(area(2, 4), far, dirty=(BASE + 2 * PAGE,)))
    assert note.beside == ()
    for known in ({"policy": None}, {"seen": row(1, bits=int(Bit.FILE))}):
        both = area(2, 4, **known), area(4, 6, policy=known.get("policy", NO_POLICY))
        _, (note,) = judged(mm(*both, dirty=(BASE + 2 * PAGE,)))
        assert note.beside == ()
