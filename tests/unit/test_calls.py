"""What the return of a system call does to the model: failures, moves, excuses."""

from __future__ import annotations

import pytest
from msgspec.structs import replace
from rows import (
    BASE,
    CDM,
    ENOMEM,
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

from cdmtrace.analysis.frames import Event
from cdmtrace.analysis.model import abandon
from cdmtrace.analysis.notes import Arrived, CallFailed, MbindEnded, Settled
from cdmtrace.analysis.profiles import PROFILES
from cdmtrace.analysis.state import amend
from cdmtrace.events import Bit, Cause, EventKind, Lock, Mpol, Probe


@pytest.fixture
def rows() -> Rows:
    return Rows()


# --- an mbind() that fails ------------------------------------------------------


def fails(rows: Rows, flags: int, *, unread: bool = False, **more: int) -> Event:
    """mbind() of pages [7, 12) fails when it has split off what lies before."""
    rows.call = 5
    before = rows.area(7)
    rows.row(
        EventKind.VMA_SEEN,
        *(0, 23),
        flags=before.flags or 0,
        bound=bool(before.policy and before.policy.nodes & CDM),
        **span(7, 12),
    )
    shown = {"bits": int(Bit.VMA_UNREAD), "policy": Mpol.UNREAD} if unread else {}
    return rows.row(
        EventKind.POLICY,
        *((7, 12) if unread else (7, 23)),
        flags=flags,
        before=before.flags,
        ret=-ENOMEM,
        **{**span(7, 12), **shown, **more},
    )


def mbind_ends(rows: Rows, mode: Mpol, nodes: int) -> None:
    rows.returns(
        Probe.SYS_MBIND,
        -ENOMEM,
        other_policy=mode,
        other=nodes,
        start=BASE + 7 * PAGE,
        end=BASE + 12 * PAGE,
        **span(7, 12),
    )


def test_a_policy_that_could_not_be_set_shows_the_vma(rows: Rows) -> None:
    rows.row(EventKind.VMA_NEW, 0, 23)
    row = fails(rows, PLAIN | TAG)
    area = rows.area(7)
    assert rows.areas == [(0, 7, PLAIN), (7, 23, PLAIN | TAG)]
    assert (area.seen, area.set_by) == (row, row)
    assert area.policy
    assert area.policy.byte == Mpol.DEFAULT
    assert area.policy_by is None


def test_a_policy_that_could_not_be_set_takes_none_away(rows: Rows) -> None:
    bound = rows.bind(0, 23)
    rows.state = amend(rows.state, BASE, BASE + PAGE, excused=True)
    fails(rows, PLAIN | TAG, policy=Mpol.BIND, nodes=CDM)
    area = rows.area(7)
    assert (area.policy_by, area.ended, area.excused) == (bound, None, True)
    assert area.policy
    assert area.policy.names(CDM)


def test_the_policy_of_a_file_stays_where_it_could_not_be_set(rows: Rows) -> None:
    rows.row(EventKind.VMA_NEW, 0, 23, policy=Mpol.BIND | 16, nodes=CDM)
    fails(rows, PLAIN)
    policy = rows.area(7).policy
    assert policy
    assert policy.shared


def test_a_policy_that_could_not_be_set_supersedes_no_request(rows: Rows) -> None:
    rows.bind(0, 23)
    rows.call = 4
    page_row(rows, PLAIN | TAG)
    rows.returns(Probe.SYS_MOVE_PAGES)
    fails(rows, PLAIN | TAG, policy=Mpol.BIND, nodes=CDM, **span(3, 12))
    page = rows.state.pages.get(BASE + 3 * PAGE)
    assert page
    assert page.explicit


@pytest.mark.parametrize("unread", [True, False])
@pytest.mark.parametrize(
    ("mode", "nodes", "tags"),
    [
        (Mpol.BIND, CDM, True),
        (Mpol.BIND, 1, False),
        (Mpol.PREFERRED, CDM, False),
    ],
)
def test_rfc_v2_tags_before_an_mbind_can_fail(
    rows: Rows, mode: Mpol, nodes: int, tags: bool, unread: bool
) -> None:
    """All of what was one VMA, and what it was asked for the call's row says."""
    rows.row(EventKind.VMA_NEW, 0, 23)
    fails(rows, PLAIN | TAG, unread=unread)
    mbind_ends(rows, mode, nodes)
    assert [area.patched for area in rows.state.areas] == [tags] * len(rows.areas)


def test_rfc_v2_tags_what_the_failed_mbind_begins_with(rows: Rows) -> None:
    rows.row(EventKind.VMA_NEW, 7, 23)
    rows.call = 5
    rows.row(EventKind.VMA_SEEN, 7, 23, **span(7, 12))
    failed = {"flags": PLAIN | TAG, "before": PLAIN, "ret": -ENOMEM}
    rows.row(EventKind.POLICY, 7, 23, **failed, **span(7, 12))
    mbind_ends(rows, Mpol.BIND, CDM)
    assert rows.area(7).patched is True


def test_what_an_mbind_over_two_vmas_tags_beside_its_range(rows: Rows) -> None:
    """The first had the tag before, the second is tagged as a whole."""
    rows.row(EventKind.VMA_NEW, 0, 9, flags=PLAIN | TAG)
    rows.row(EventKind.VMA_NEW, 9, 23)
    rows.call = 5
    rows.row(EventKind.VMA_SEEN, 0, 9, flags=PLAIN | TAG, **span(7, 9))
    rows.row(EventKind.VMA_SEEN, 9, 23, **span(9, 12))
    split = {"flags": PLAIN | TAG, "addr": BASE + 12 * PAGE}
    rows.row(EventKind.VMA_SPLIT, 9, 23, **split)
    rows.row(EventKind.POLICY, 9, 12, flags=PLAIN | TAG, bound=True, **span(9, 12))
    call = rows.returns(
        Probe.SYS_MBIND,
        other_policy=Mpol.BIND,
        other=CDM,
        start=BASE + 7 * PAGE,
        end=BASE + 12 * PAGE,
    )
    (ended,) = (note for note in rows.notes if isinstance(note, MbindEnded))
    assert ended.event is call
    (over,) = ended.over
    assert (over.area.start, over.area.end) == (BASE + 12 * PAGE, BASE + 23 * PAGE)
    assert (over.before.start, over.before.end) == (BASE + 9 * PAGE, BASE + 23 * PAGE)
    assert [area.over for area in rows.state.areas] == [False, False, True]


def test_what_a_failure_has_tagged(rows: Rows) -> None:
    """Nothing was split: it is one VMA, and told of as one that was retagged."""
    rows.row(EventKind.VMA_NEW, 0, 23)
    fails(rows, PLAIN | TAG, start=BASE)
    assert rows.areas == [(0, 23, PLAIN | TAG)]
    mbind_ends(rows, Mpol.BIND, CDM)
    (failed,) = (note for note in rows.notes if isinstance(note, CallFailed))
    ((before, after),) = failed.retagged
    assert (before.tagged(TERMS), after.tagged(TERMS)) == (False, True)
    assert (after.start, after.end) == (BASE, BASE + 23 * PAGE)
    assert not any(isinstance(note, MbindEnded) for note in rows.notes)


@pytest.mark.parametrize(
    ("page", "explicit", "retagged"),
    [
        # Nothing speaks for the tag that it took away.
        (None, False, False),
        (30, True, False),
        # Something is left in the VMA, or was asked for.
        (3, False, True),
        (3, True, True),
    ],
)
def test_a_tag_that_a_failure_has_cleared(
    rows: Rows, page: int | None, explicit: bool, retagged: bool
) -> None:
    rows.row(EventKind.VMA_NEW, 0, 23, flags=PLAIN | TAG)
    rows.row(EventKind.VMA_NEW, 23, 40)
    if page is not None:
        rows.call = 3
        first, last = (0, 23) if page < 23 else (23, 40)
        flags = PLAIN | TAG if page < 23 else PLAIN
        rows.row(
            EventKind.MIGRATE,
            *(first, last),
            flags=flags,
            node=1,
            src_node=0,
            **span(page, page + 1),
        )
        call = Probe.SYS_MOVE_PAGES if explicit else Probe.SYS_MBIND
        rows.returns(call, other_policy=Mpol.DEFAULT)
    fails(rows, PLAIN, start=BASE)
    mbind_ends(rows, Mpol.BIND, 1)
    (failed,) = (note for note in rows.notes if isinstance(note, CallFailed))
    assert bool(failed.retagged) is retagged
    assert rows.area(0).over is False


def test_of_what_was_one_vma_each_part_is_looked_at_when_a_call_fails(
    rows: Rows,
) -> None:
    """The first is as it was, for the last but one a driver has asked.

    One has another policy, one is new, of two it is not known: the last is left.
    """
    rows.row(EventKind.VMA_NEW, 0, 14)
    for number, cause in ((9, Cause.FAULT), (11, Cause.DRIVER)):
        page = {"node": 1, "cause": cause, **span(number, number + 1)}
        rows.row(EventKind.MAP, 0, 14, **page)
    rows.call = 5
    rows.row(EventKind.VMA_SEEN, 0, 14, **span(0, 14))
    tagged = {"flags": PLAIN | TAG}
    other(rows, EventKind.VMA_NEW, 2, 4, bound=True, **tagged)
    for first in (4, 6, 8, 10, 12):
        other(rows, EventKind.VMA_NEW, first, first + 2, **tagged)
    for first, known in (
        (4, {"since": 1}),
        (6, {"policy": None}),
        (8, {"flags": None}),
    ):
        start = BASE + first * PAGE
        rows.state = amend(rows.state, start, start + PAGE, **known)
    mbind_ends(rows, Mpol.BIND, CDM)
    (failed,) = (note for note in rows.notes if isinstance(note, CallFailed))
    assert [(one.start - BASE) // PAGE for _, one in failed.retagged] == [12]
    assert [area.over for area in rows.state.areas] == [False] * 6 + [True]


@pytest.mark.parametrize(
    ("mode", "nodes", "reached", "ended"),
    [
        (Mpol.BIND, CDM, True, True),
        (Mpol.BIND, CDM, False, False),
        (Mpol.BIND, 1, True, False),
        (Mpol.UNREAD, 0, True, False),
    ],
)
def test_which_mbind_is_asked_what_it_has_tagged(
    rows: Rows, mode: Mpol, nodes: int, reached: bool, ended: bool
) -> None:
    """One that named CDM nodes, and came to a VMA."""
    rows.call = 5
    rows.row(EventKind.VMA_SEEN if reached else EventKind.VMA_NEW, 0, 7)
    rows.returns(Probe.SYS_MBIND, other_policy=mode, other=nodes)
    assert any(isinstance(note, MbindEnded) for note in rows.notes) is ended


def test_without_that_row_nobody_knows(rows: Rows) -> None:
    rows.row(EventKind.VMA_NEW, 0, 23)
    fails(rows, PLAIN | TAG)
    rows.call = 6
    rows.row(EventKind.VMA_NEW, 50, 51)
    assert rows.area(7).patched is None
    assert rows.area(50).patched is False


# --- calls that others have changed pages under, or that go on elsewhere -------------


def test_of_what_a_call_has_moved_the_rest_counts(rows: Rows) -> None:
    """The first page has gone since, and the second has come anew."""
    rows.row(EventKind.VMA_NEW, 0, 23)
    rows.call = 5
    for number in (3, 4, 5):
        page_row(rows, PLAIN, number)
    gone = {"node": -1, "src_node": 1, "size": PAGE}
    other(rows, EventKind.UNMAP, 0, 23, addr=BASE + 3 * PAGE, **gone)
    other(rows, EventKind.MAP, 0, 23, addr=BASE + 4 * PAGE, node=1, size=PAGE)
    rows.notes.clear()
    rows.returns(Probe.SYS_MOVE_PAGES)
    came = [note for note in rows.notes if isinstance(note, Arrived)]
    assert [(note.page.addr - BASE) // PAGE for note in came] == [5]
    assert (came[0].page.how, came[0].asked) == ("move_pages", True)


def test_a_task_that_goes_on_elsewhere_has_returned(rows: Rows) -> None:
    """Nobody knows what it had asked for, and the VMA settles."""
    rows.row(EventKind.VMA_NEW, 0, 23)
    rows.call = 5
    row = {"node": 1, "src_node": 0, "arg": 3, **span(3, 4)}
    rows.row(EventKind.MIGRATE, 0, 23, **row)
    assert (7, 5) in rows.state.open
    rows.notes.clear()
    elsewhere = replace(rows.events[-1], seq=90, ts=90_000, mm=2, call=6)
    state, notes = abandon(rows.state, (7, 5), elsewhere, TERMS, PROFILES["intended"])
    assert state.open == {}
    arrived, settled = notes
    assert isinstance(arrived, Arrived)
    assert (arrived.asked, arrived.call, arrived.page.how) == (None, None, "migration")
    assert isinstance(settled, Settled)
    assert settled.event is elsewhere
    assert settled.area.start == BASE


@pytest.mark.parametrize(
    ("policy", "later", "named"),
    [
        # The row says it; or one that shows the VMA later; or nobody does.
        ({"bound": True}, {"bound": False}, True),
        ({"bound": False}, {"bound": True}, False),
        ({"policy": Mpol.UNREAD}, {"bound": True}, True),
        ({"policy": Mpol.UNREAD}, {"bound": False}, False),
        ({"policy": Mpol.UNREAD}, {"policy": Mpol.UNREAD}, None),
        ({"policy": Mpol.UNREAD}, None, None),
    ],
)
def test_whether_a_policy_names_the_node_of_what_a_call_has_moved(
    rows: Rows, policy: dict, later: dict | None, named: bool | None
) -> None:
    rows.call = 5
    moved = {"node": 1, "src_node": 0, **span(3, 4)}
    rows.row(EventKind.MIGRATE, 0, 23, **policy, **moved)
    if later is None:
        other(rows, EventKind.VMA_FREE, 0, 23, **span(0, 23))
    else:
        other(rows, EventKind.VMA_SEEN, 0, 23, **later)
    rows.returns(Probe.SYS_MOVE_PAGES)
    (came,) = (note for note in rows.notes if isinstance(note, Arrived))
    assert came.named is named


@pytest.mark.parametrize(
    ("probe", "nodes", "cause", "how", "explicit"),
    [
        (Probe.SYS_MOVE_PAGES, 0, Cause.CALL, "move_pages", True),
        (Probe.SYS_MOVE_PAGES, 0, Cause.UNKNOWN, "move_pages", True),
        (Probe.SYS_MIGRATE_PAGES, CDM, Cause.CALL, "migrate_pages", True),
        # It was asked for another node, and there was no room.
        (Probe.SYS_MIGRATE_PAGES, 1, Cause.CALL, "migrate_pages", False),
        # What mbind() moves, its policy asks for.
        (Probe.SYS_MBIND, CDM, Cause.CALL, "mbind", False),
        # Others move pages at the same time, and some calls move none.
        (Probe.SYS_MOVE_PAGES, 0, Cause.RECLAIM, "demotion", False),
        (Probe.SYS_MADVISE, 0, Cause.COMPACTION, "compaction", False),
    ],
)
def test_what_a_call_that_moves_pages_has_asked_for(
    rows: Rows, probe: Probe, nodes: int, cause: Cause, how: str, explicit: bool
) -> None:
    rows.row(EventKind.VMA_NEW, 0, 23, bound=True)
    rows.call = 5
    moved = {"node": 1, "src_node": 0, "arg": 8 if cause == Cause.RECLAIM else 0}
    rows.row(EventKind.MIGRATE, 0, 23, bound=True, cause=cause, **moved, **span(3, 4))
    call = rows.returns(probe, other=nodes, other_policy=Mpol.BIND)
    (came,) = (note for note in rows.notes if isinstance(note, Arrived))
    (held,) = rows.state.pages.within(0, 1 << 64)
    assert came.page == held
    assert (held.how, held.explicit, came.call) == (how, explicit, call)
    assert came.asked is (explicit or probe != Probe.SYS_MADVISE)
    assert came.here
    assert came.named is True


@pytest.mark.parametrize(
    ("probe", "lock", "excused"),
    [
        # The VMA has gone as well.
        (Probe.SYS_MUNMAP, Lock.READ, [False]),
        # madvise(MADV_PAGEOUT) and its like take pages without the write lock.
        (Probe.SYS_MADVISE, Lock.READ, [True, False]),
        (Probe.SYS_MADVISE, Lock.WRITE_SELF, [False, False]),
        # Whoever moves pages on request can clear the tag.
        (Probe.SYS_MOVE_PAGES, Lock.READ, [False, False]),
        (None, Lock.READ, [True, False]),
    ],
)
def test_pages_that_a_call_takes_without_the_write_lock_are_an_excuse(
    rows: Rows, probe: Probe | None, lock: Lock, excused: list[bool]
) -> None:
    rows.row(EventKind.VMA_NEW, 0, 8)
    rows.row(EventKind.VMA_NEW, 8, 16, flags=READ_ONLY)
    came = {"node": 1, "size": PAGE}
    rows.row(EventKind.MAP, 0, 8, addr=BASE + 3 * PAGE, **came)
    rows.call = 5
    gone = {"node": -1, "src_node": 1, "size": PAGE, "lock": lock}
    rows.row(EventKind.UNMAP, 0, 8, addr=BASE + 3 * PAGE, **gone)
    if probe == Probe.SYS_MUNMAP:
        rows.row(EventKind.VMA_FREE, 0, 8, **span(0, 8))
    if probe:
        rows.returns(probe)
    else:
        rows.call = 6
        rows.row(EventKind.VMA_SEEN, 50, 51)
    assert [area.excused for area in rows.state.areas][:2] == excused
