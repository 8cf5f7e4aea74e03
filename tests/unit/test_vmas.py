"""What rows of VMAs do to the model: flags, merges, growth, and what is unmapped."""

from __future__ import annotations

import pytest
from msgspec.structs import replace
from rows import (
    BASE,
    CDM,
    EAGAIN,
    ENOMEM,
    LOCKED,
    PAGE,
    PLAIN,
    READ_ONLY,
    TAG,
    TERMS,
    Rows,
    other,
    page_row,
    span,
)

from cdmtrace.analysis.frames import Event, Trace
from cdmtrace.analysis.notes import FlagsChanged
from cdmtrace.analysis.replay import check
from cdmtrace.analysis.rules import RULES
from cdmtrace.analysis.state import State, amend
from cdmtrace.events import Bit, EventKind, Lock, Mpol, Probe


@pytest.fixture
def rows() -> Rows:
    return Rows()


# --- flags --------------------------------------------------------------------


def test_a_change_of_flags_is_judged_and_known(rows: Rows) -> None:
    tagged = rows.bind(0, 23)
    row = rows.row(
        EventKind.FLAGS,
        *(0, 23),
        flags=READ_ONLY | TAG,
        before=PLAIN | TAG,
        bound=True,
        **span(0, 23),
    )
    assert rows.areas == [(0, 23, READ_ONLY | TAG)]
    assert rows.area(0).set_by is tagged
    (*_, last) = (note for note in rows.notes if isinstance(note, FlagsChanged))
    assert last == FlagsChanged(event=row, explained=False)


def test_what_was_to_be_changed_is_not_all_that_it_is_part_of_now(rows: Rows) -> None:
    """Pages 7 to 22 had no tag before; those of the VMA that took them in had."""
    rows.bind(0, 7)
    rows.row(EventKind.VMA_NEW, 7, 23)
    rows.call = 5
    event = rows.row(
        EventKind.FLAGS,
        *(0, 23),
        flags=READ_ONLY | TAG,
        before=PLAIN,
        bound=True,
        **span(7, 23),
    )
    rise = rows.area(0).rise
    assert rise
    assert (rise.start, rise.end) == (BASE + 7 * PAGE, BASE + 23 * PAGE)
    assert rows.area(0).set_by is event


@pytest.mark.parametrize(
    ("probe", "writer"),
    [(Probe.MPROTECT_FIXUP, "mprotect"), (Probe.MLOCK_FIXUP, "mlock")],
)
@pytest.mark.parametrize(
    ("lock", "found"), [(Lock.WRITE_SELF, False), (Lock.READ, True), (Lock.NONE, True)]
)
def test_flags_must_be_written_under_the_write_lock(
    rows: Rows, probe: Probe, writer: str, lock: Lock, found: bool
) -> None:
    rows.row(EventKind.FLAGS, 0, 23, flags=LOCKED, before=PLAIN, lock=lock, probe=probe)
    names = {name for rule in RULES for name in rule.probes}
    trace = Trace(
        path="",
        terms=replace(TERMS, probes={name: name for name in names}),
        events=rows.events,
        count=len(rows.events),
    )
    findings = check(trace, rules={"CDM003"}).findings
    assert [one.cause for one in findings] == ([writer] if found else [])


def told(rows: Rows, first: int, last: int, flags: int) -> None:
    rows.row(
        EventKind.FLAGS,
        *(first, last),
        flags=flags,
        bits=int(Bit.VMA_UNREAD),
        policy=Mpol.UNREAD,
        **span(first, last),
    )


def split(rows: Rows, first: int, last: int, at: int) -> None:
    rows.row(EventKind.VMA_SPLIT, first, last, addr=BASE + at * PAGE)


def test_flags_that_are_told_of_come_when_the_call_returns(rows: Rows) -> None:
    rows.row(EventKind.VMA_NEW, 0, 23)
    rows.call = 5
    told(rows, 7, 23, READ_ONLY)
    split(rows, 0, 23, 7)
    assert rows.areas == [(0, 7, PLAIN), (7, 23, PLAIN)]
    rows.returns(Probe.SYS_MADVISE)
    assert rows.areas == [(0, 7, PLAIN), (7, 23, READ_ONLY)]


@pytest.mark.parametrize("ret", [-EAGAIN, None])
def test_of_a_call_that_failed_the_last_is_not_known(
    rows: Rows, ret: int | None
) -> None:
    rows.row(EventKind.VMA_NEW, 0, 7, flags=LOCKED)
    rows.row(EventKind.VMA_NEW, 7, 23)
    rows.call = 5
    told(rows, 0, 7, READ_ONLY)
    told(rows, 7, 23, READ_ONLY)
    if ret is None:
        # Its row was lost: the task goes on with something else.
        rows.call = 6
        rows.row(EventKind.VMA_NEW, 50, 51)
        assert rows.areas[:2] == [(0, 7, READ_ONLY), (7, 23, None)]
    else:
        rows.returns(Probe.SYS_MADVISE, ret)
        assert rows.areas == [(0, 7, READ_ONLY), (7, 23, None)]


def test_a_hole_in_the_range_stops_nothing(rows: Rows) -> None:
    rows.row(EventKind.VMA_NEW, 0, 7)
    rows.call = 5
    told(rows, 0, 7, READ_ONLY)
    rows.returns(Probe.SYS_MADVISE, -ENOMEM)
    assert rows.areas == [(0, 7, READ_ONLY)]


# --- flags that change in a migration, where nobody has the mmap lock -------------


def remigrated(
    rows: Rows,
    before: int,
    after: int,
    *,
    lock: Lock = Lock.NONE,
    took: int = 1,
    **more: int,
) -> FlagsChanged:
    """An entry of pages [0, 23) gets its page back; return what is noted of it."""
    row = rows.row(
        EventKind.FLAGS,
        *(0, 23),
        flags=after,
        before=before,
        bound=True,
        probe=Probe.REMOVE_MIGRATION_PTE,
        lock=lock,
        took=took,
        **{**span(0, 23), **more},
    )
    (*_, note) = (note for note in rows.notes if isinstance(note, FlagsChanged))
    assert note.event is row
    return note


def unlocked(rows: Rows) -> list[str]:
    """Return the causes of CDM003 in these rows."""
    names = {name for rule in RULES for name in rule.probes}
    trace = Trace(
        path="",
        terms=replace(TERMS, probes={name: name for name in names}),
        events=rows.events,
        count=len(rows.events),
    )
    return [one.cause for one in check(trace, rules={"CDM003"}).findings]


def test_a_tag_that_a_migration_has_cleared(rows: Rows) -> None:
    """The VMA stays one, whichever of its pages it was."""
    rows.bind(0, 23)
    note = remigrated(rows, PLAIN | TAG, PLAIN)
    assert not note.explained
    assert rows.areas == [(0, 23, PLAIN)]
    assert rows.area(0).cleared is note.event
    assert unlocked(rows) == ["migration"]


def test_a_tag_that_a_migration_has_set(rows: Rows) -> None:
    rows.row(EventKind.VMA_NEW, 0, 23)
    note = remigrated(rows, PLAIN, PLAIN | TAG)
    assert not note.explained
    assert rows.area(0).set_by is note.event


def test_the_row_of_its_page_does_not_explain_it(rows: Rows) -> None:
    rows.bind(0, 23)
    page_row(rows, PLAIN)
    note = remigrated(rows, PLAIN | TAG, PLAIN, took=1500)
    assert not note.explained
    assert rows.areas == [(0, 23, PLAIN)]
    assert unlocked(rows) == ["migration"]


@pytest.mark.parametrize("first", [True, False])
def test_a_row_of_who_has_set_the_tag_meanwhile_does(rows: Rows, first: bool) -> None:
    """Also where a page's row has shown it first."""
    rows.row(EventKind.VMA_NEW, 0, 23)
    if first:
        page_row(rows, PLAIN | TAG)
    policy = {"tid": 8, "call": 3, "bound": True}
    other(rows, EventKind.POLICY, 0, 23, flags=PLAIN | TAG, **policy, **span(0, 23))
    note = remigrated(rows, PLAIN, PLAIN | TAG, took=2900)
    assert note.explained
    assert unlocked(rows) == []


def test_one_from_before_does_not(rows: Rows) -> None:
    rows.bind(0, 23)
    assert not remigrated(rows, PLAIN | TAG, PLAIN, took=500).explained


def test_who_has_the_lock_may_have_changed_it(rows: Rows) -> None:
    rows.bind(0, 23)
    remigrated(rows, PLAIN | TAG, PLAIN, lock=Lock.WRITE_OTHER)
    assert unlocked(rows) == []


def test_of_other_flags_a_migration_says_nothing(rows: Rows) -> None:
    """madvise() has no row before it returns."""
    rows.bind(0, 23)
    note = remigrated(rows, PLAIN | TAG, LOCKED | TAG)
    assert note.explained
    assert rows.areas == [(0, 23, LOCKED | TAG)]
    assert unlocked(rows) == []


# --- ends ---------------------------------------------------------------------


def test_of_two_stories_the_later_goes_on(rows: Rows) -> None:
    rows.bind(0, 11)
    later = rows.bind(11, 23)
    rows.row(EventKind.VMA_MERGE, 0, 23, flags=PLAIN | TAG, bound=True)
    assert rows.areas == [(0, 23, PLAIN | TAG)]
    assert rows.area(0).set_by is later
    assert rows.area(0).policy_by is later


def test_a_merge_within_an_mbind_is_its_doing(rows: Rows) -> None:
    """The merge shows the new policy first: what was before, the row of it says."""
    rows.bind(0, 11)
    rows.row(EventKind.VMA_NEW, 11, 23, policy=Mpol.BIND, nodes=1)
    rows.call = 5
    rows.row(EventKind.VMA_MERGE, 0, 23, policy=Mpol.BIND, nodes=1)
    row = rows.row(
        EventKind.POLICY,
        *(0, 23),
        before=PLAIN | TAG,
        policy=Mpol.BIND,
        nodes=1,
        other_policy=Mpol.BIND,
        other=CDM,
        took=900 + 1000,
        **span(0, 11),
    )
    assert rows.area(0).ended is row
    (*_, last) = (note for note in rows.notes if isinstance(note, FlagsChanged))
    assert last == FlagsChanged(event=row, explained=False)


def test_the_end_of_a_neighbour_moves_with_a_merge(rows: Rows) -> None:
    rows.row(EventKind.VMA_NEW, 0, 11)
    rows.row(EventKind.VMA_NEW, 11, 23, flags=READ_ONLY)
    rows.row(EventKind.VMA_MERGE, 7, 23, flags=READ_ONLY, **span(7, 11))
    assert rows.areas == [(0, 7, PLAIN), (7, 23, READ_ONLY)]


def test_mmap_beside_a_vma_leaves_it_one(rows: Rows) -> None:
    rows.row(EventKind.VMA_NEW, 0, 11)
    rows.call = 5
    rows.row(EventKind.VMA_NEW, 0, 18)
    rows.returns(Probe.SYS_MMAP, addr=0, size=7 * PAGE, other=BASE + 11 * PAGE)
    assert rows.areas == [(0, 18, PLAIN)]


def test_of_a_new_vma_all_pages_are_known(rows: Rows) -> None:
    rows.state = State()
    rows.call = 5
    rows.row(EventKind.VMA_NEW, 0, 7, flags=PLAIN | TAG)
    assert not rows.area(0).pages_known
    call = rows.returns(Probe.SYS_MMAP, addr=0, size=7 * PAGE, other=BASE)
    assert rows.area(0).pages_known
    assert rows.area(0).since == call.ts_entry


@pytest.mark.parametrize(
    ("shown", "areas"),
    [
        ((), [(7, 23, None)]),
        (((7, 9), (12, 14)), [(7, 9, 1), (9, 12, None), (12, 14, 1), (14, 23, None)]),
        (((7, 23),), [(7, 23, 1)]),
        # It has grown from what lay before it, or into what lies behind.
        (((0, 9), (20, 30)), [(0, 9, 1), (9, 20, None), (20, 30, 1)]),
    ],
)
def test_of_a_new_mapping_what_no_row_has_shown_is_not_known(
    rows: Rows, shown: tuple[tuple[int, int], ...], areas: list
) -> None:
    rows.state = State()
    rows.call = 5
    for first, last in shown:
        rows.row(EventKind.VMA_NEW, first, last, flags=1)
    call = rows.returns(
        Probe.SYS_MMAP, size=15 * PAGE + 1, other=BASE + 7 * PAGE, addr=0
    )
    assert rows.areas == areas
    for area in rows.state.areas:
        if area.flags is None:
            assert (area.seen, area.since, area.seen_ts) == (
                None,
                call.ts_entry,
                call.ts_entry,
            )


def test_what_is_unmapped_has_no_story(rows: Rows) -> None:
    rows.bind(0, 23)
    rows.call = 5
    split(rows, 0, 23, 7)
    split(rows, 7, 23, 12)
    rows.row(EventKind.VMA_FREE, 7, 12, **span(7, 12))
    rows.row(EventKind.VMA_NEW, 7, 12)
    rows.returns(
        Probe.SYS_MMAP, addr=BASE + 7 * PAGE, size=5 * PAGE, other=rows.area(7).start
    )
    assert [area[:2] for area in rows.areas] == [(0, 7), (7, 12), (12, 23)]
    assert rows.area(7).set_by is None
    assert rows.area(7).cleared is None


def test_munmap_of_the_middle_leaves_a_hole(rows: Rows) -> None:
    rows.row(EventKind.VMA_NEW, 0, 23)
    rows.call = 5
    split(rows, 0, 23, 7)
    split(rows, 7, 23, 12)
    rows.row(EventKind.VMA_FREE, 7, 12, **span(7, 12))
    rows.returns(
        Probe.SYS_MUNMAP, start=BASE + 7 * PAGE, end=BASE + 12 * PAGE, **span(7, 12)
    )
    assert rows.areas == [(0, 7, PLAIN), (12, 23, PLAIN)]


def test_what_moves_to_a_neighbour_is_part_of_it(rows: Rows) -> None:
    rows.bind(0, 7)
    guest = rows.bind(100, 105)
    rows.row(
        EventKind.MOVE,
        *(0, 12),
        flags=PLAIN | TAG,
        bound=True,
        other=BASE + 7 * PAGE,
        **span(100, 105),
    )
    assert [area[:2] for area in rows.areas] == [(0, 12), (100, 105)]
    assert rows.area(0).set_by is guest


def test_what_moves_may_grow(rows: Rows) -> None:
    rows.bind(0, 11)
    rows.row(
        EventKind.MOVE,
        *(200, 213),
        flags=PLAIN | TAG,
        bound=True,
        other=BASE + 200 * PAGE,
        **span(0, 11),
    )
    assert [area[:2] for area in rows.areas] == [(0, 11), (200, 213)]


@pytest.mark.parametrize(("pages", "kept"), [(7, 7), (23, 23), (30, 23)])
def test_mremap_in_place_cuts_off_what_is_too_much(
    rows: Rows, pages: int, kept: int
) -> None:
    """That it grows, the row of the VMA says."""
    rows.row(EventKind.VMA_NEW, 0, 23)
    rows.row(EventKind.VMA_NEW, 23, 40, flags=LOCKED)
    for number in (6, 7, 22):
        page_row(rows, PLAIN, number)
    page_row(rows, LOCKED, 23, first=23, last=40)
    rows.call = 5
    # The call gives bytes, of which the kernel makes pages.
    to = {"nodes": pages * PAGE - 1, "other": BASE}
    rows.returns(Probe.SYS_MREMAP, **span(0, 23), **to)
    assert rows.areas == [(0, kept, PLAIN), (23, 40, LOCKED)]
    held = [(one.addr - BASE) // PAGE for one in rows.state.pages.within(0, 1 << 64)]
    assert held == [number for number in (6, 7, 22) if number < kept] + [23]


# --- two threads --------------------------------------------------------------


def test_what_shows_other_flags_since_is_newer_than_what_was_told(rows: Rows) -> None:
    rows.row(EventKind.VMA_NEW, 0, 7)
    rows.call = 5
    told(rows, 0, 7, LOCKED)
    flags = LOCKED | TAG
    other(rows, EventKind.POLICY, 0, 7, flags=flags, call=3, **span(0, 7))
    rows.returns(Probe.SYS_MADVISE)
    assert rows.areas == [(0, 7, flags)]


def test_what_was_unmapped_meanwhile_does_not_come_back(rows: Rows) -> None:
    rows.row(EventKind.VMA_NEW, 0, 7)
    rows.call = 5
    told(rows, 0, 7, LOCKED)
    other(rows, EventKind.VMA_FREE, 0, 7, call=3, **span(0, 7))
    rows.returns(Probe.SYS_MADVISE)
    assert rows.areas == []


def test_vmas_that_a_call_makes_one_stay_one(rows: Rows) -> None:
    rows.row(EventKind.VMA_NEW, 0, 7, flags=READ_ONLY)
    rows.row(EventKind.VMA_NEW, 7, 23, flags=LOCKED)
    rows.call = 5
    told(rows, 0, 7, PLAIN)
    rows.row(EventKind.VMA_MERGE, 0, 23, **span(7, 23))
    rows.returns(Probe.SYS_MADVISE)
    assert rows.areas == [(0, 23, PLAIN)]


@pytest.mark.parametrize("told_of", [True, False])
def test_what_is_mapped_where_an_mremap_has_moved_away(
    rows: Rows, told_of: bool
) -> None:
    """Without the rows that tell of the move in time, nobody knows what is newer."""
    probes = dict.fromkeys(("move_page_tables", "vma_free"), "x") if told_of else {}
    rows.terms = replace(TERMS, probes=probes)
    rows.row(EventKind.VMA_NEW, 0, 7)
    rows.call = 5
    rows.row(EventKind.MOVE, 100, 107, other=BASE + 100 * PAGE, **span(0, 7))
    rows.row(EventKind.VMA_FREE, 0, 7, **span(0, 7))
    other(rows, EventKind.VMA_NEW, 0, 7)
    to = {"nodes": 7 * PAGE, "other": BASE + 100 * PAGE}
    rows.returns(Probe.SYS_MREMAP, **span(0, 7), **to)
    assert [area[:2] for area in rows.areas] == [(0, 7)] * told_of + [(100, 107)]


# --- what ends the excuse of pages that others have taken -----------------------


@pytest.mark.parametrize(
    ("lock", "excused"), [(Lock.WRITE_SELF, False), (Lock.READ, True)]
)
@pytest.mark.parametrize("kind", [EventKind.VMA_NEW, EventKind.VMA_MERGE])
def test_growth_under_the_write_lock_ends_it(
    rows: Rows, kind: EventKind, lock: Lock, excused: bool
) -> None:
    """A stack grows under the read lock."""
    rows.bind(0, 7)
    rows.state = amend(rows.state, BASE, BASE + PAGE, excused=True)
    rows.row(kind, 0, 9, flags=PLAIN | TAG, bound=True, lock=lock, **span(7, 9))
    assert rows.area(0).excused is excused


@pytest.mark.parametrize(
    ("last", "ret", "excused"), [(7, 0, False), (3, 0, True), (7, -ENOMEM, True)]
)
def test_mprotect_ends_it_where_it_has_come_to_anything(
    rows: Rows, last: int, ret: int, excused: bool
) -> None:
    rows.bind(0, 7)
    rows.state = amend(rows.state, BASE, BASE + PAGE, excused=True)
    rows.call = 5
    rows.row(EventKind.VMA_SEEN, 50, 51)
    where = {"start": BASE + 3 * PAGE, "end": BASE + last * PAGE}
    rows.returns(Probe.SYS_MPROTECT, ret, **where)
    assert rows.area(0).excused is excused


def test_madvise_ends_it_when_it_returns(rows: Rows) -> None:
    rows.bind(0, 7)
    rows.state = amend(rows.state, BASE, BASE + PAGE, excused=True)
    rows.call = 5
    told(rows, 0, 7, LOCKED | TAG)
    assert rows.area(0).excused
    rows.returns(Probe.SYS_MADVISE)
    assert not rows.area(0).excused


# --- whose a tag is that a merge shows first ------------------------------------


@pytest.mark.parametrize(
    ("took", "tid", "own"),
    [
        # The change began when the merge was over, or before it.
        (1, 7, True),
        (1900, 7, True),
        # It is another thread's.
        (1900, 8, False),
    ],
)
def test_a_tag_that_a_merge_shows_first_came_by_who_changed_the_flags(
    rows: Rows, took: int, tid: int, own: bool
) -> None:
    rows.row(EventKind.VMA_NEW, 0, 7, flags=READ_ONLY | TAG)
    rows.row(EventKind.VMA_NEW, 7, 23)
    rows.call = 9
    flags = READ_ONLY | TAG
    merge = rows.row(EventKind.VMA_MERGE, 0, 23, flags=flags, **span(7, 23))
    change = {"flags": flags, "before": PLAIN, "took": took, "tid": tid}
    event = rows.row(EventKind.FLAGS, 0, 23, **change, **span(7, 23))
    rise = rows.area(0).rise
    assert rise
    first = BASE + 7 * PAGE
    assert (rise.start, rise.end) == (first, BASE + 23 * PAGE)
    assert rise.event is (event if own else merge)
    assert rows.area(0).set_by is rise.event


# --- what a third one does between two writers ---------------------------------------

SOME = 0x20000


@pytest.mark.parametrize(
    ("third", "lost"),
    [
        (None, LOCKED & ~PLAIN),
        # He has set another flag as well, which is there at the end; or cleared it.
        (LOCKED | SOME, LOCKED & ~PLAIN),
        (PLAIN, 0),
    ],
)
def test_a_flag_that_a_third_one_has_cleared_is_not_lost(
    rows: Rows, third: int | None, lost: int
) -> None:
    rows.row(EventKind.VMA_NEW, 0, 23)
    open_ = {"lock": Lock.READ, **span(0, 23)}
    first = other(rows, EventKind.FLAGS, 0, 23, flags=LOCKED, before=PLAIN, **open_)
    if third is not None:
        change = {"flags": third, "before": LOCKED, "tid": 9}
        other(rows, EventKind.FLAGS, 0, 23, **change, **open_)
    late = {"before": PLAIN, "took": 2500, **open_}
    rows.row(EventKind.FLAGS, 0, 23, flags=PLAIN | SOME, **late)
    (*_, note) = (note for note in rows.notes if isinstance(note, FlagsChanged))
    assert note.lost == ((first, lost) if lost else None)
    assert note.raced


# --- madvise() as one of two writers -------------------------------------------------


@pytest.mark.parametrize(("after", "lost"), [(PLAIN, "CDM004"), (PLAIN | LOCKED, None)])
def test_what_madvise_has_set_may_be_overwritten(
    rows: Rows, after: int, lost: str | None
) -> None:
    """Its row cannot say what the flags were; when the call returns, that is known."""
    rows.bind(0, 23)
    rows.call = 5
    told(rows, 0, 23, LOCKED | TAG)
    rows.returns(Probe.SYS_MADVISE)
    row = Event(
        seq=10,
        ts=10_000,
        ts_entry=2500,
        kind=EventKind.FLAGS,
        probe=Probe.REMOVE_MIGRATION_PTE,
        mm=1,
        pid=7,
        tid=8,
        start=BASE,
        end=BASE + 23 * PAGE,
        flags_before=PLAIN | TAG,
        flags_after=after,
        lock_entry=Lock.NONE,
        lock_exit=Lock.NONE,
    )
    rows.feed(row)
    (*_, note) = (note for note in rows.notes if isinstance(note, FlagsChanged))
    assert note.raced
    assert note.raced.probe == Probe.NONE
    assert note.lost == ((note.raced, LOCKED & ~PLAIN) if lost else None)
