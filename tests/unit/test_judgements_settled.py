"""What each rule says of a VMA that has settled, of a call, and of a fault."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace
from notes import (
    BASE,
    BOUND,
    FACTS,
    MERGEABLE,
    PAGE,
    PLAIN,
    READ,
    READ_ONLY,
    RETURN,
    SOFTDIRTY,
    TAG,
    area,
    arrived,
    changed,
    row,
    said,
    settled,
    told,
    violation,
    window,
)

from cdmtrace.analysis.frames import Event
from cdmtrace.analysis.notes import (
    CallFailed,
    FaultEnded,
    MbindEnded,
    OverTag,
    Serviced,
    Settled,
)
from cdmtrace.analysis.profiles import Facts
from cdmtrace.analysis.state import Area, Rise
from cdmtrace.events import Bit, Cause, EventKind, Probe

# --- settled VMAs: CDM001, CDM002, CDM005, CDM010, CDM016, CDM017 -------------------

STALE = area(
    set_by=row(11, EventKind.POLICY),
    justified=row(12, EventKind.POLICY),
    policy_by=row(13, EventKind.POLICY),
    ended=row(14, EventKind.POLICY),
)


def stale(found: Area, event: Event = RETURN, facts: Facts = FACTS) -> Settled:
    return settled(found, facts, event, standing="stale")


def test_a_stale_tag_is_proved_by_its_whole_story() -> None:
    found = violation("CDM001", stale(STALE))
    assert told("CDM001", stale(STALE)) == ("mbind", [11, 12, 13, 14, 90])
    assert (found.start, found.end) == (STALE.start, STALE.end)
    assert found.shape == ("none",)
    assert window("CDM001", stale(STALE)) == (7, RETURN.ts)


def test_a_stale_tag_from_before_is_all_there_is() -> None:
    """No row of a call closes it, and nobody is seen to have taken its reason."""
    note = stale(area(), row(90, EventKind.UNMAP))
    assert told("CDM001", note) == ("unknown", [1])


@pytest.mark.parametrize(
    "more",
    [
        {"rise": Rise(start=BASE, end=BASE + PAGE, event=RETURN, before=None)},
        {"inherited": True},
        {"born_wrong": True},
        {"standing": "stale"},
    ],
)
def test_a_stale_tag_that_is_told_elsewhere_or_was_told(more) -> None:
    assert said("CDM001", stale(replace(STALE, **more))) == "well"


@pytest.mark.parametrize(
    ("facts", "says"),
    [
        ({}, "a tagged VMA whose pages were not seen to come"),
        ({"held": True}, "no premise"),
        ({"asked": True}, "no premise"),
        ({"policy_names": True}, "no premise"),
        ({"policy_names": None}, "no premise"),
        ({"tag": False}, "no premise"),
    ],
)
def test_a_tag_over_pages_from_before(facts, says) -> None:
    note = stale(STALE, facts=replace(FACTS, pages_known=False, **facts))
    assert said("CDM001", note) == says


@pytest.mark.parametrize(
    ("ended", "closing", "cause"),
    [
        ({"cause": Cause.CPUSET}, {}, "cpuset"),
        ({"call": 5}, {"probe": Probe.SYS_MBIND}, "mbind"),
        ({"call": 5}, {"probe": Probe.SYS_MOVE_PAGES}, "migration"),
        ({"call": 5}, {"probe": Probe.SYS_MIGRATE_PAGES}, "migration"),
        ({"call": 5}, {"probe": Probe.SYS_MUNMAP}, "unmap"),
        # The call in which it went is not the one that let the VMA settle.
        ({"call": 6}, {"probe": Probe.SYS_MOVE_PAGES}, "unmap"),
        ({"call": 5}, {"kind": EventKind.UNMAP}, "unmap"),
        ({"call": 0}, {"call": 0, "probe": Probe.SYS_MOVE_PAGES}, "unmap"),
        ({"call": 6, "kind": EventKind.POLICY}, {}, "mbind"),
    ],
)
def test_by_what_the_last_reason_of_a_tag_went(ended, closing, cause) -> None:
    last = replace(row(14, EventKind.UNMAP), **ended)
    note = stale(replace(STALE, ended=last), replace(RETURN, **closing))
    assert violation("CDM001", note).cause == cause


MISSING = replace(FACTS, tag=False, policy_names=True, came=True, patched=True)


def missing(found: Area, facts: Facts = MISSING, how: str = "fault", **more: Any):
    page = arrived(how, row(20, EventKind.MAP)).page
    return settled(found, facts, **{"standing": "missing", "page": page, **more})


def test_a_missing_tag_is_proved_by_policy_and_page() -> None:
    bound = area(policy=BOUND, policy_by=row(13, EventKind.POLICY))
    found = violation("CDM002", missing(bound))
    assert told("CDM002", missing(bound)) == ("fault", [13, 20, 90])
    assert found.shape == ("P",)
    assert found.observed == "not tagged: rd wr mr mw me ac"
    assert found.breaks
    # What moved in did not come by the way that 11/12 speaks of.
    moved = violation("CDM002", missing(bound, how="move_pages"))
    assert (moved.cause, moved.breaks) == ("move_pages", None)
    # The policy proves nothing where a request asked.
    asked = replace(MISSING, policy_names=False, asked=True)
    assert told("CDM002", missing(bound, asked)) == ("fault", [20, 90])


@pytest.mark.parametrize(
    ("dropped", "profile", "page", "expected"),
    [
        (30, "intended", True, ("cleared", [30, 90])),
        (10, "intended", True, ("fault", [20, 90])),
        (20, "intended", True, ("fault", [20, 90])),
        (30, "intended", False, ("mbind", [90])),
        # The patches never clear it, whatever came since.
        (10, "rfc-v2", True, ("cleared", [10, 90])),
    ],
)
def test_a_tag_that_was_there_and_went(dropped, profile, page, expected) -> None:
    found = area(policy=BOUND, cleared=row(dropped, EventKind.FLAGS))
    more = {} if page else {"page": None}
    note = missing(found, profile=profile, **more)
    assert told("CDM002", note, profile) == expected


@pytest.mark.parametrize(
    ("facts", "more", "profile", "says"),
    [
        ({}, {}, "intended", "violated"),
        ({}, {"standing": ""}, "intended", "well"),
        ({"came": False}, {}, "intended", "no premise"),
        ({"came": False}, {}, "rfc-v2", "violated"),
        ({"policy_names": False}, {}, "intended", "no premise"),
        ({"patched": False}, {}, "rfc-v2", "no premise"),
    ],
)
def test_when_a_tag_is_missing(facts, more, profile, says) -> None:
    note = missing(area(), replace(MISSING, **facts), profile=profile, **more)
    assert said("CDM002", note, profile) == says
    if says == "violated":
        again = replace(note, area=replace(note.area, standing="missing"))
        assert said("CDM002", again, profile) == "well"


def test_a_missing_tag_without_a_page_or_a_call() -> None:
    """The patches tag before there is a page, and a row may let a VMA settle."""
    note = missing(area(), profile="rfc-v2", page=None, event=row(90, EventKind.MAP))
    found = violation("CDM002", note, "rfc-v2")
    assert (found.cause, found.witness) == ("unknown", ())


RISE = Rise(
    start=BASE,
    end=BASE + 8 * PAGE,
    event=row(15, EventKind.POLICY, call=5),
    before=row(14, EventKind.VMA_SEEN),
)


def test_ksm_must_be_off_where_the_tag_was_set() -> None:
    on = area(rise=RISE, flags=PLAIN | MERGEABLE)
    note = settled(on)
    assert told("CDM005", note) == ("mbind", [14, 15, 90])
    assert violation("CDM005", note).observed == "tagged: rd wr mr mw me ac mg cd"
    assert said("CDM005", settled(area(rise=RISE))) == "well"
    for other in (replace(on, rise=None), replace(on, over=True)):
        assert said("CDM005", settled(other)) == "no premise"
    assert said("CDM005", settled(on, replace(FACTS, tag=False))) == "no premise"
    assert window("CDM005", note) == (RISE.event.ts_entry, RETURN.ts)


UNREAD = "a tag was set where the policy could not be read"


@pytest.mark.parametrize(
    ("facts", "intended", "patches"),
    [
        ({}, "violated", "violated"),
        ({"policy_names": True}, "well", "violated"),
        ({"asked": True}, "well", "violated"),
        ({"policy_names": None}, UNREAD, "violated"),
        ({"patched": True}, "violated", "well"),
        ({"patched": None}, "violated", "well"),
        ({"tag": False}, "no premise", "no premise"),
    ],
)
def test_a_tag_that_nobody_asked_for(facts, intended, patches) -> None:
    for profile, says in (("intended", intended), ("rfc-v2", patches)):
        note = settled(area(rise=RISE), replace(FACTS, **facts), profile=profile)
        assert said("CDM010", note, profile) == says
        for other in (
            replace(note.area, rise=None),
            replace(note.area, over=True),
        ):
            assert said("CDM010", replace(note, area=other), profile) == "no premise"


@pytest.mark.parametrize(
    ("rise", "closing", "expected"),
    [
        (RISE, RETURN, ("mbind", [15, 90])),
        (RISE, row(90, EventKind.MAP), ("mbind", [15, 90])),
        (RISE, row(90, EventKind.UNMAP), ("mbind", [15])),
        # A writer that no row brackets: it was not there before.
        (
            replace(RISE, event=row(15, EventKind.MAP)),
            row(90, EventKind.UNMAP),
            ("unknown", [14, 15]),
        ),
    ],
)
def test_who_set_a_tag_that_nobody_asked_for(rise, closing, expected) -> None:
    note = settled(area(rise=rise), event=closing)
    assert told("CDM010", note) == expected
    found = violation("CDM010", note)
    assert found.expected == (
        "not tagged: no policy of its own names a CDM node, and no request put a page "
        "there (CDM: node 1)"
    )
    assert found.shape == ("none",)


@pytest.mark.parametrize(
    ("kind", "cause"),
    [
        (EventKind.COPY, "fork"),
        (EventKind.MOVE, "mremap"),
        (EventKind.VMA_SPLIT, "split"),
        (EventKind.FLAGS, "split"),
        (EventKind.VMA_MERGE, "split"),
        (EventKind.MAP, "unknown"),
        (None, "unknown"),
    ],
)
def test_how_a_tag_was_inherited(kind, cause) -> None:
    by = row(16, kind) if kind else None
    heir = area(inherited=True, seen=by, set_by=row(11, EventKind.POLICY))
    assert told("CDM016", settled(heir)) == (cause, [11, 16, 90] if by else [11, 90])


def test_an_inherited_tag_that_is_right_or_told_elsewhere() -> None:
    heir = area(inherited=True)
    assert said("CDM016", settled(heir)) == "violated"
    assert said("CDM016", settled(heir, replace(FACTS, held=True))) == "well"
    for other in (
        replace(heir, inherited=False),
        replace(heir, over=True),
        replace(heir, standing="stale"),
    ):
        assert said("CDM016", settled(other)) == "no premise"
    assert said("CDM016", settled(heir, replace(FACTS, tag=False))) == "no premise"


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (PLAIN, "violated"),
        # The kernel merges in spite of it, and keeps it apart for anything else.
        (PLAIN | SOFTDIRTY, "violated"),
        (READ_ONLY, "well"),
        (PLAIN | TAG, "well"),
    ],
)
def test_two_neighbours_that_differ_in_the_tag(flags, says) -> None:
    beside = (area(8, 12, flags=flags),)
    assert said("CDM017", settled(area(), beside=beside)) == says
    assert said("CDM017", settled(area())) == "no premise"


@pytest.mark.parametrize("first", [True, False])
def test_neighbours_that_could_be_one(first: bool) -> None:
    """It may lie on either side, and be the second that is looked at."""
    like = area(-3, 0, flags=PLAIN | TAG)
    other = area(8, 12, seen=row(2, EventKind.VMA_NEW))
    setter = row(11, EventKind.ALLOC)
    mine = area(set_by=setter) if first else area()
    if not first:
        other = replace(other, set_by=setter)
    note = settled(mine, beside=(like, other))
    found = violation("CDM017", note)
    assert told("CDM017", note) == ("fault", [1, 2, 11])
    assert (found.start, found.end) == (BASE, BASE + 12 * PAGE)
    assert found.expected == "one VMA of 12 pages"
    by_call = replace(setter, kind=EventKind.POLICY)
    left = replace(note, area=replace(note.area, set_by=by_call), beside=(other,))
    if first:
        assert violation("CDM017", left).cause == "leftover"


# --- calls and faults: CDM011, CDM012, CDM013, CDM015 -------------------------------


def test_what_an_mbind_tagged_beside_its_range() -> None:
    call = replace(RETURN, start=BASE + 2 * PAGE, end=BASE + 5 * PAGE)
    whole = area(seen=row(3, EventKind.VMA_SEEN))
    below = OverTag(area=area(0, 2, seen=row(5, EventKind.VMA_SPLIT)), before=whole)
    above = OverTag(area=area(5, 9, seen=row(6, EventKind.VMA_SPLIT)), before=whole)
    note = MbindEnded(event=call, over=(below, above))
    found = violation("CDM011", note)
    assert told("CDM011", note) == ("mbind", [3, 5, 6, 90])
    assert (found.start, found.end) == (whole.start, whole.end)
    assert found.expected == "the tag set in mbind()'s range of 3 pages, nowhere else"
    assert found.observed == "tagged, too: 2 pages below it, 4 pages above it"
    assert found.shape == ("above", "below")
    assert said("CDM011", replace(note, over=())) == "well"


def test_what_a_call_that_failed_has_tagged() -> None:
    before = area(seen=row(3, EventKind.VMA_SEEN))
    first = area(0, 3, flags=PLAIN | TAG, seen=row(5, EventKind.POLICY))
    second = area(5, 9, flags=PLAIN | TAG, seen=row(6, EventKind.POLICY))
    event = replace(RETURN, ret=-12)
    note = CallFailed(event=event, retagged=((before, first), (before, second)))
    found = violation("CDM012", note)
    assert told("CDM012", note) == ("mbind", [3, 5, 90])
    assert (found.start, found.end) == (first.start, second.end)
    assert found.observed == "mbind() = ENOMEM; - -> cd"
    assert found.shape == ("ENOMEM", "-", "cd")
    assert said("CDM012", replace(note, retagged=())) == "well"


def fault(cause: Cause, *, mapped: bool, count: int = 1) -> FaultEnded:
    alloc = row(5, EventKind.ALLOC, cause=cause, flags_after=PLAIN | TAG, size=PAGE)
    end = row(9, EventKind.CALL)
    return FaultEnded(event=end, alloc=alloc, count=count, mapped=mapped, area=area())


@pytest.mark.parametrize(
    ("cause", "mapped", "count", "page", "vma"),
    [
        (Cause.FAULT, True, 1, "well", "well"),
        (Cause.FAULT, False, 1, "violated", "well"),
        (Cause.READAHEAD, True, 1, "well", "well"),
        (Cause.READAHEAD, False, 1, "well", "violated"),
        (Cause.READAHEAD, True, 3, "well", "violated"),
    ],
)
def test_the_page_for_which_a_fault_tagged(cause, mapped, count, page, vma) -> None:
    note = fault(cause, mapped=mapped, count=count)
    assert said("CDM013", note) == page
    assert said("CDM015", note) == vma
    outside = replace(note, event=note.alloc)
    assert said("CDM013", outside) == "no premise"
    assert said("CDM015", outside) == "violated"
    for rule in ("CDM013", "CDM015"):
        assert window(rule, note) == (4500, 9000)


def test_a_fault_that_tagged_for_nothing() -> None:
    note = fault(Cause.SWAP_IN, mapped=False)
    found = violation("CDM013", note)
    assert told("CDM013", note) == ("swap-in", [5, 9])
    assert found.observed == "- -> cd, and the page was not mapped in this VMA"
    assert found.shape == ("-", "cd")
    ahead = violation("CDM015", fault(Cause.READAHEAD, mapped=False, count=2))
    assert ahead.observed == (
        "- -> cd, and of 2 pages read in by this VMA's policy it got none"
    )


@pytest.mark.parametrize("known", [True, False])
def test_a_tag_for_no_vma_of_an_address_space(known: bool) -> None:
    """The VMA that faults stands for it where it is known, and else the page."""
    alloc = row(5, EventKind.ALLOC, addr=BASE + PAGE, size=PAGE, flags_after=TAG)
    alloc = replace(alloc, flags_before=0, bits=int(Bit.UNLINKED))
    where = area() if known else None
    note = FaultEnded(event=alloc, alloc=alloc, count=1, mapped=False, area=where)
    found = violation("CDM015", note)
    first, last = (0, 8) if known else (1, 2)
    assert (found.start, found.end) == (BASE + first * PAGE, BASE + last * PAGE)
    assert told("CDM015", note) == ("pseudo-vma", [5])
    assert found.shape == ("-", "cd")


# --- the time that an answer rests on ----------------------------------------------


@pytest.mark.parametrize(
    ("rule", "note", "since"),
    [
        ("CDM002", missing(area()), 7),
        ("CDM004", changed(READ), 8500),
        ("CDM010", settled(area(rise=RISE)), 7),
        ("CDM011", MbindEnded(event=RETURN, over=()), RETURN.ts_entry),
        ("CDM012", CallFailed(event=RETURN, retagged=()), RETURN.ts_entry),
        ("CDM016", settled(area(inherited=True)), 7),
        ("CDM017", settled(area(), beside=(area(8, 9),)), 7),
        ("CDM018", changed(READ), 8500),
        ("CDM006", Serviced(event=row(4, EventKind.KSM_PAGE), near=True), None),
        ("CDM014", arrived("fault", row(4, EventKind.MAP)), None),
    ],
)
def test_a_loss_counts_from_when_the_story_begins(rule, note, since) -> None:
    """A settled VMA's from when its pages are known; what rows say stands as it is."""
    expected = None if since is None else (since, note.event.ts)
    assert window(rule, note) == expected
