"""What rows of VMAs do to the model: flags, merges, growth, and what is unmapped."""

from __future__ import annotations

from dataclasses import replace

import pytest

from cdmtrace.analysis.frames import Event, Terms, Trace
from cdmtrace.analysis.model import abandon, step
from cdmtrace.analysis.notes import (
    Arrived,
    CallFailed,
    FlagsChanged,
    MbindEnded,
    Note,
    Settled,
)
from cdmtrace.analysis.profiles import PROFILES
from cdmtrace.analysis.replay import check
from cdmtrace.analysis.rules import RULES
from cdmtrace.analysis.state import Area, State, amend
from cdmtrace.events import Bit, Cause, EventKind, Lock, Mpol, Probe

TAG = 1 << 38
PLAIN, READ_ONLY, LOCKED = 0x100073, 0x100071, 0x102073
CDM = 1 << 1
PAGE = 4096
BASE = 0x100040000000
TERMS = Terms(cdm=CDM, tag=TAG, probes={"move_page_tables": "move_page_tables"})
EAGAIN, ENOMEM = 11, 12


class Rows:
    """Rows of one task, one after the other, and the state of its mm after each."""

    def __init__(self) -> None:
        self.state = State(whole=True)
        self.events: list[Event] = []
        self.notes: list[Note] = []
        self.call = 0

    def row(
        self,
        kind: EventKind,
        first: int = 0,
        last: int = 0,
        *,
        flags: int = PLAIN,
        before: int | None = None,
        bound: bool = False,
        lock: Lock = Lock.WRITE_SELF,
        took: int = 1,
        **more: int,
    ) -> Event:
        """Feed a row about the VMA of pages [first, last)."""
        seq = len(self.events) + 1
        event = Event(
            seq=seq,
            ts=1000 * seq,
            ts_entry=1000 * seq - took,
            kind=kind,
            mm=1,
            pid=7,
            tid=7,
            call=self.call,
            start=BASE + first * PAGE,
            end=BASE + last * PAGE,
            flags_before=flags if before is None else before,
            flags_after=flags,
            policy=Mpol.BIND if bound else Mpol.DEFAULT,
            nodes=CDM if bound else 0,
            lock_entry=lock,
            lock_exit=lock,
        )
        return self.feed(replace(event, **more))

    def feed(self, event: Event) -> Event:
        self.events.append(event)
        self.state, notes = step(self.state, event, TERMS, PROFILES["intended"])
        self.notes += notes
        return event

    def bind(self, first: int, last: int) -> Event:
        """mbind() tags a VMA that is there."""
        self.row(EventKind.VMA_SEEN, first, last)
        size = (last - first) * PAGE
        return self.row(
            EventKind.POLICY,
            *(first, last),
            flags=PLAIN | TAG,
            before=PLAIN,
            bound=True,
            addr=BASE + first * PAGE,
            size=size,
            other_policy=Mpol.DEFAULT,
        )

    def returns(self, probe: Probe, ret: int = 0, **more: int) -> Event:
        """The system call that the rows before were part of is over."""
        inside = sum(event.call == self.call for event in self.events)
        took = 1000 * inside + 500
        event = self.row(EventKind.CALL, probe=probe, ret=ret, took=took, **more)
        self.call = 0
        return event

    @property
    def areas(self) -> list[tuple[int, int, int | None]]:
        """First page, last page and flags of what the model holds."""
        return [
            ((area.start - BASE) // PAGE, (area.end - BASE) // PAGE, area.flags)
            for area in self.state.areas
        ]

    def area(self, page: int) -> Area:
        area = self.state.area(BASE + page * PAGE)
        assert area
        return area


@pytest.fixture
def rows() -> Rows:
    return Rows()


def span(first: int, last: int) -> dict[str, int]:
    return {"addr": BASE + first * PAGE, "size": (last - first) * PAGE}


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


def page_row(
    rows: Rows, flags: int, number: int = 3, first: int = 0, last: int = 23
) -> None:
    """The page's own row, before its function returns."""
    rows.row(
        EventKind.MIGRATE,
        *(first, last),
        flags=flags,
        bound=True,
        lock=Lock.NONE,
        node=1,
        src_node=0,
        **span(number, number + 1),
    )


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


def other(rows: Rows, kind: EventKind, first: int, last: int, **more: int) -> Event:
    """Feed a row of another thread of the same process."""
    return rows.row(kind, first, last, **{"tid": 8, "call": 0, **more})


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
    rows: Rows, monkeypatch: pytest.MonkeyPatch, told_of: bool
) -> None:
    """Without the rows that tell of the move in time, nobody knows what is newer."""
    probes = dict.fromkeys(("move_page_tables", "vma_free"), "x") if told_of else {}
    monkeypatch.setitem(globals(), "TERMS", replace(TERMS, probes=probes))
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
