"""What each rule says of one note of the model: premise, window, cause and witness."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from cdmtrace.analysis.frames import Event, Terms
from cdmtrace.analysis.notes import (
    Advised,
    Arrived,
    CallFailed,
    FaultEnded,
    FlagsChanged,
    MbindEnded,
    Note,
    OverTag,
    Serviced,
    Settled,
)
from cdmtrace.analysis.pages import Page
from cdmtrace.analysis.profiles import PROFILES, Facts
from cdmtrace.analysis.rules import BY_ID, PART_OF, RULES, find, served_by, uncheckable
from cdmtrace.analysis.rules.rule import Judgement, Violation
from cdmtrace.analysis.state import Area, Policy, Rise
from cdmtrace.events import Bit, Cause, EventKind, Lock, Mpol, Probe, VmaLock

TAG = 1 << 38
PLAIN, MERGEABLE, SOFTDIRTY, READ_ONLY = 0x100073, 0x80000000, 0x08000000, 0x100071
CDM, PAGE, BASE = 1 << 1, 4096, 0x100040000000
TERMS = Terms(cdm=CDM, tag=TAG, probes={"mlock_fixup": "mlock_fixup.isra.0"})
BOUND = Policy(byte=Mpol.BIND, nodes=CDM)
NO_POLICY = Policy(byte=Mpol.DEFAULT, nodes=0)


def row(seq: int, kind: EventKind, **columns: Any) -> Event:
    """A row about the VMA of pages [0, 8) that took half of the time since the last."""
    given = {"start": BASE, "end": BASE + 8 * PAGE, "flags_before": PLAIN} | columns
    return Event(seq=seq, ts=1000 * seq, ts_entry=1000 * seq - 500, kind=kind, **given)


def area(first: int = 0, last: int = 8, **known: Any) -> Area:
    given = {
        "flags": PLAIN,
        "policy": NO_POLICY,
        "seen": row(1, EventKind.VMA_NEW),
        "seen_ts": 1000,
        "since": 7,
    } | known
    return Area(start=BASE + first * PAGE, end=BASE + last * PAGE, **given)


FACTS = Facts(
    tag=True,
    policy_names=False,
    asked=False,
    held=False,
    came=False,
    pages_known=True,
    excused=False,
    patched=False,
)
RETURN = row(90, EventKind.CALL, call=5, probe=Probe.SYS_MBIND)


def settled(
    found: Area,
    facts: Facts = FACTS,
    event: Event = RETURN,
    profile: str = "intended",
    **more: Any,
) -> Settled:
    """A VMA has settled at the return of a call."""
    if facts.tag:
        found = replace(found, flags=(found.flags or 0) | TAG)
    return Settled(
        event=event,
        area=found,
        facts=facts,
        demand=PROFILES[profile].demand(facts),
        since=found.since,
        **{"standing": "", "page": None, **more},
    )


def judge(rule: str, note: Note, profile: str = "intended") -> Judgement | None:
    return BY_ID[rule].judge(note, TERMS, profile)


def said(rule: str, note: Note, profile: str = "intended") -> str:
    """Return what a rule says of a note: a word, or why it cannot be known."""
    judgement = judge(rule, note, profile)
    if judgement is None:
        return "no premise"
    if judgement.unknown:
        return judgement.unknown
    return "violated" if judgement.violation else "well"


def violation(rule: str, note: Note, profile: str = "intended") -> Violation:
    judgement = judge(rule, note, profile)
    assert judgement
    assert judgement.violation
    return judgement.violation


def window(rule: str, note: Note, profile: str = "intended") -> tuple[int, int] | None:
    """Return the time in which a loss would make the answer worthless."""
    judgement = judge(rule, note, profile)
    assert judgement
    return judgement.window


def told(rule: str, note: Note, profile: str = "intended") -> tuple[str, list[int]]:
    """Return the cause of a violation, and the rows that prove it."""
    found = violation(rule, note, profile)
    return found.cause, [event.seq for event in found.witness]


# --- the list of rules ----------------------------------------------------------


def test_a_rule_is_found_by_id_and_name() -> None:
    assert find("cdm003") is find("UNLOCKED-WRITE") is BY_ID["CDM003"]
    assert find("CDM999") is None
    assert find("") is None


def test_which_rules_a_probe_serves() -> None:
    assert served_by("ksm_merge") == ("CDM006",)
    assert served_by("no such probe") == ()


def test_which_rules_cannot_be_checked_without_a_probe() -> None:
    assert uncheckable(["ksm_merge", "numa_scan", "task"]) == {
        "CDM006": ("ksm_merge",),
        "CDM008": ("numa_scan",),
    }


def test_a_part_that_is_lost_is_one_of_a_probe_that_rules_know() -> None:
    known = {probe for rule in RULES for probe in rule.probes}
    assert set(PART_OF.values()) <= known


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.id)
def test_a_note_of_another_kind_is_no_business_of_a_rule(rule) -> None:
    event = row(1, EventKind.UNMAP)
    alien = FlagsChanged if rule.id not in ("CDM003", "CDM004", "CDM018") else Serviced
    more = {"explained": False} if alien is FlagsChanged else {"near": True}
    for profile in rule.profiles:
        assert rule.judge(alien(event=event, **more), TERMS, profile) is None


# --- who writes vm_flags: CDM003, CDM004, CDM018 ----------------------------------


def changed(
    entry: int, leave: int | None = None, explained: bool | None = False, **more: Any
) -> FlagsChanged:
    given = {"probe": Probe.MLOCK_FIXUP, "flags_after": PLAIN | 0x2000} | more
    event = row(
        9,
        EventKind.FLAGS,
        lock_entry=entry,
        lock_exit=entry if leave is None else leave,
        **given,
    )
    return FlagsChanged(event=event, explained=explained)


WRITE, READ = Lock.WRITE_SELF, Lock.READ
NO_LOCK = "the state of a lock was not read"
IN_A_CALL = "a migration saw a change while another task was in a call"


@pytest.mark.parametrize(
    ("entry", "leave", "cause", "says"),
    [
        (WRITE, WRITE, 0, "well"),
        (READ, READ, 0, "violated"),
        (Lock.NONE, Lock.NONE, 0, "violated"),
        # It was given back, or taken, within the function.
        (WRITE, READ, 0, "violated"),
        (READ, WRITE, 0, "violated"),
        # Another one may have written it, under the lock that he holds.
        (Lock.WRITE_OTHER, READ, 0, "no premise"),
        (READ, Lock.WRITE_OTHER, 0, "no premise"),
        (Lock.UNKNOWN, Lock.UNKNOWN, 0, NO_LOCK),
        (WRITE, Lock.UNKNOWN, 0, NO_LOCK),
        # A cpuset's last VMA is told of when the lock is given back.
        (WRITE, Lock.UNKNOWN, Cause.CPUSET, "no premise"),
        (Lock.UNKNOWN, Lock.UNKNOWN, Cause.CPUSET, NO_LOCK),
        # Since 6.4 the VMA has a lock of its own.
        (WRITE | VmaLock.WRITE << 4, WRITE | VmaLock.WRITE << 4, 0, "well"),
        (WRITE | VmaLock.NONE << 4, WRITE | VmaLock.NONE << 4, 0, "violated"),
        (WRITE | VmaLock.WRITE << 4, WRITE | VmaLock.READ << 4, 0, "violated"),
        (WRITE, WRITE | VmaLock.READ << 4, 0, "violated"),
        (READ | VmaLock.WRITE << 4, READ | VmaLock.WRITE << 4, 0, "violated"),
    ],
)
def test_the_lock_under_which_vm_flags_change(entry, leave, cause, says) -> None:
    assert said("CDM003", changed(entry, leave, cause=cause)) == says


@pytest.mark.parametrize(
    ("explained", "says"),
    [(True, "no premise"), (None, IN_A_CALL), (False, "violated")],
)
def test_a_change_that_another_row_has_told(explained, says) -> None:
    assert said("CDM003", changed(READ, explained=explained)) == says


@pytest.mark.parametrize(
    ("after", "kind", "says"),
    [
        (PLAIN | TAG, EventKind.ALLOC, "no premise"),
        (PLAIN | TAG | MERGEABLE, EventKind.ALLOC, "violated"),
        (PLAIN | TAG, EventKind.FLAGS, "violated"),
    ],
)
def test_the_patches_say_that_a_fault_writes_the_tag(after, kind, says) -> None:
    note = changed(READ, flags_after=after)
    note = replace(note, event=replace(note.event, kind=kind))
    assert said("CDM003", note, "rfc-v2") == says
    assert said("CDM003", note) == "violated"


@pytest.mark.parametrize(
    ("probe", "symbol"),
    [
        (Probe.MLOCK_FIXUP, "mlock_fixup.isra.0"),
        # Where the header does not say to what it was attached.
        (Probe.MPROTECT_FIXUP, "mprotect_fixup"),
    ],
)
def test_an_unlocked_write_names_the_kernel_s_function(probe, symbol) -> None:
    found = violation("CDM003", changed(READ, probe=probe))
    assert found.observed == (
        f"mmap lock: read; - -> lo inside {symbol}(), writer not seen"
    )
    assert found.shape == ("read", "-", "lo")


def test_only_what_a_migration_saw_leans_on_the_rows_of_others() -> None:
    migrated = changed(READ, probe=Probe.REMOVE_MIGRATION_PTE)
    for note, since in ((changed(READ), None), (migrated, (8500, 9000))):
        assert window("CDM003", note) == since


@pytest.mark.parametrize(
    ("kind", "columns", "who"),
    [
        (EventKind.ALLOC, {}, "fault"),
        (EventKind.ALLOC, {"cause": Cause.CPUSET}, "fault"),
        (EventKind.POLICY, {"cause": Cause.CPUSET}, "cpuset"),
        (EventKind.POLICY, {"call": 3}, "mbind"),
        (EventKind.POLICY, {}, "unknown"),
        (EventKind.VMA_SPLIT, {"call": 3}, "mbind"),
        (EventKind.VMA_MERGE, {"call": 3}, "mbind"),
        (EventKind.VMA_SEEN, {"call": 3}, "mbind"),
        (EventKind.VMA_NEW, {"call": 3}, "unknown"),
        (EventKind.FLAGS, {"probe": Probe.MPROTECT_FIXUP}, "mprotect"),
        (EventKind.FLAGS, {"probe": Probe.MLOCK_FIXUP}, "mlock"),
        (EventKind.FLAGS, {"probe": Probe.REMOVE_MIGRATION_PTE}, "migration"),
        (EventKind.FLAGS, {"probe": Probe.VMA_MERGE, "call": 3}, "unknown"),
    ],
)
def test_in_whose_course_flags_were_written(kind, columns, who) -> None:
    note = changed(READ)
    columns = {"probe": Probe.NONE, **columns}
    note = replace(note, event=replace(note.event, kind=kind, **columns))
    assert told("CDM003", note) == (who, [9])


def test_an_update_that_was_lost() -> None:
    other = row(5, EventKind.FLAGS, probe=Probe.MPROTECT_FIXUP, tid=8)
    note = replace(changed(READ, tid=7), raced=other, lost=(other, 0x2000))
    found = violation("CDM004", note)
    assert told("CDM004", note) == ("mlock", [5, 9])
    assert found.expected == (
        "lo is set: mprotect_fixup (tid 8) has set it, and nobody cleared it"
    )
    assert found.observed == (
        "lo is gone when mlock_fixup (tid 7) returns, which began before it was set"
    )
    assert found.shape == ("lo", "mprotect_fixup")
    # One finding is enough.
    assert said("CDM018", note) == "well"


@pytest.mark.parametrize(("entry", "overlap"), [(7000, 1), (4000, 3)])
def test_two_writers_at_a_time(entry: int, overlap: int) -> None:
    """They overlap from when the later one began to when the earlier one ended."""
    other = replace(
        row(5, EventKind.FLAGS, probe=Probe.MPROTECT_FIXUP, tid=8),
        ts=8000,
        ts_entry=5000,
    )
    note = replace(changed(READ, tid=7), raced=other)
    note = replace(note, event=replace(note.event, ts_entry=entry))
    found = violation("CDM018", note)
    assert told("CDM018", note) == ("mlock", [5, 9])
    assert found.observed == (
        f"mprotect_fixup (tid 8) and mlock_fixup (tid 7) overlap by {overlap} us"
    )
    assert found.shape == ("mlock_fixup", "mprotect_fixup")
    assert said("CDM004", note) == "well"


# --- KSM and NUMA balancing: CDM006 to CDM009 --------------------------------------


@pytest.mark.parametrize(
    ("rule", "kind", "columns"),
    [
        ("CDM006", EventKind.KSM_PAGE, {}),
        ("CDM008", EventKind.NUMA_SCAN, {}),
        ("CDM009", EventKind.NUMA_MOVE, {"ret": 1}),
    ],
)
def test_a_service_has_to_do_with_tagged_vmas(rule, kind, columns) -> None:
    plain = row(4, kind, flags_after=PLAIN, **columns)
    tagged = replace(plain, flags_before=PLAIN | TAG, flags_after=PLAIN | TAG)
    alien = replace(tagged, kind=EventKind.UNMAP)
    assert said(rule, Serviced(event=tagged, near=True)) == "violated"
    assert said(rule, Serviced(event=alien, near=True)) == "no premise"
    assert said(rule, Serviced(event=plain, near=False)) == "no premise"
    assert said(rule, Serviced(event=tagged, near=False)) == "violated"
    assert said(rule, Serviced(event=plain, near=True)) == "well"


def test_who_asks_ksm_to_have_a_tagged_vma() -> None:
    plain = row(4, EventKind.KSM_ADVICE, flags_after=PLAIN, arg=12)
    honoured = replace(plain, flags_after=PLAIN | MERGEABLE)
    tagged = replace(plain, flags_before=PLAIN | TAG, flags_after=PLAIN | TAG)
    broken = replace(tagged, flags_after=PLAIN | TAG | MERGEABLE)
    left = replace(broken, arg=13)
    serviced = Serviced(event=broken, near=True)
    assert said("CDM007", Advised(event=broken)) == "violated"
    assert said("CDM007", Advised(event=tagged)) == "well"
    for other in (plain, honoured, left):
        assert said("CDM007", Advised(event=other)) == "no premise"
    assert said("CDM007", serviced) == "no premise"


def test_a_page_that_was_to_be_moved_and_was_not() -> None:
    tagged = row(4, EventKind.NUMA_MOVE, flags_after=TAG)
    for ret in (0, -11):
        note = Serviced(event=replace(tagged, ret=ret), near=True)
        assert said("CDM009", note) == "well"


# --- what is said of why a page moved: CDM019 -------------------------------------


def arrived(how: str, event: Event, **more: Any) -> Arrived:
    given = {
        "named": True,
        "asked": None,
        "here": True,
        "alloc": None,
        "task_policy": None,
        "call": None,
    } | more
    page = Page(addr=BASE, size=PAGE, node=1, how=how, explicit=False, event=event)
    return Arrived(event=event, page=page, **given)


@pytest.mark.parametrize(
    ("how", "cause", "reason", "says"),
    [
        ("compaction", Cause.COMPACTION, 0, "well"),
        ("compaction", Cause.COMPACTION, 5, "violated"),
        ("hotplug", Cause.HOTPLUG, 1, "well"),
        ("hotplug", Cause.HOTPLUG, 6, "well"),
        ("demotion", Cause.RECLAIM, 8, "well"),
        ("driver", Cause.DRIVER, 5, "violated"),
        # Told by nobody but the reason itself.
        ("compaction", Cause.UNKNOWN, 5, "no premise"),
        ("move_pages", Cause.CALL, 5, "no premise"),
        # Told by a way that has no reason of its own, or by a row without one.
        ("migration", Cause.COMPACTION, 0, "no premise"),
        ("driver", Cause.DRIVER, 0xFFFF, "no premise"),
    ],
)
def test_the_reason_and_the_stack(how, cause, reason, says) -> None:
    event = row(4, EventKind.MIGRATE, cause=cause, arg=reason)
    assert said("CDM019", arrived(how, event)) == says
    assert said("CDM019", arrived(how, replace(event, kind=EventKind.MAP))) == (
        "no premise"
    )


@pytest.mark.parametrize(
    ("reason", "words"), [(0, "compaction"), (8, "demotion"), (9, "reason 9")]
)
def test_a_reason_that_lies_is_told_in_words(reason: int, words: str) -> None:
    """A system call tells as well as a stack."""
    event = row(4, EventKind.MIGRATE, cause=Cause.CALL, arg=reason)
    note = arrived("mbind", event, call=RETURN)
    found = violation("CDM019", note)
    assert told("CDM019", note) == ("mbind", [4, 90])
    assert (found.start, found.end) == (event.start, event.end)
    assert found.expected == "a reason that says mbind"
    assert found.observed == f"migrate_pages() was told: {words}"
    assert found.shape == (words,)


# --- pages that nobody asked for: CDM014 ------------------------------------------


NOBODY_KNOWS = "who asked for a page, or under what policy, was not seen"


@pytest.mark.parametrize(
    ("named", "asked", "says"),
    [
        (True, None, "well"),
        (True, False, "well"),
        (False, True, "well"),
        (False, False, "violated"),
        (False, None, NOBODY_KNOWS),
        (None, True, NOBODY_KNOWS),
        (None, False, NOBODY_KNOWS),
    ],
)
def test_who_asked_for_a_page(named, asked, says) -> None:
    note = arrived("fault", row(4, EventKind.MAP), named=named, asked=asked)
    assert said("CDM014", note) == says
    assert said("CDM014", replace(note, here=False)) == "no premise"
    inherited = replace(note, page=replace(note.page, how="fork"))
    assert said("CDM014", inherited) == "no premise"


@pytest.mark.parametrize(
    ("byte", "words", "shape"),
    [
        (Mpol.UNREAD, "", "unread"),
        (Mpol.PREFERRED, ", the task's PREFERRED:1", "PREFERRED"),
    ],
)
def test_a_page_that_nobody_asked_for(byte, words, shape) -> None:
    event = row(
        6, EventKind.MAP, policy=Mpol.BIND, nodes=1, other_policy=byte, other=CDM
    )
    note = arrived(
        "fault",
        event,
        named=False,
        asked=False,
        task_policy=row(2, EventKind.CALL),
        alloc=row(5, EventKind.ALLOC),
        call=RETURN,
    )
    found = violation("CDM014", note)
    assert told("CDM014", note) == ("fault", [2, 5, 6, 90])
    assert found.expected == (
        "no page of node 1: the VMA's own policy is BIND:0, and no request named the "
        "node"
    )
    assert found.observed == f"a page of node 1 mapped, by fault{words}"
    assert found.shape == ("BIND", shape)


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
