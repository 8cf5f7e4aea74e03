"""What each rule says of one note of the model: premise, window, cause and witness."""

from __future__ import annotations

import pytest
from msgspec.structs import replace
from notes import (
    CDM,
    MERGEABLE,
    PLAIN,
    READ,
    RETURN,
    TAG,
    TERMS,
    WRITE,
    arrived,
    changed,
    row,
    said,
    told,
    violation,
    window,
)

from cdmtrace.analysis.notes import (
    Advised,
    FlagsChanged,
    Serviced,
)
from cdmtrace.analysis.rules import BY_ID, PART_OF, RULES, find, served_by, uncheckable
from cdmtrace.events import Cause, EventKind, Lock, Mpol, Probe, VmaLock

# --- the list of rules ----------------------------------------------------------


def test_a_rule_is_found_by_id_and_name() -> None:
    assert find("cdm003") is find("UNLOCKED-WRITE") is BY_ID["CDM003"]
    assert find("CDM999") is None
    assert find("") is None


def test_which_rules_a_probe_serves() -> None:
    assert served_by("ksm_merge") == ("CDM006", "CDM021")
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
    ("entry", "leave", "shown"),
    [
        (READ, READ, "read"),
        # A fault since 6.4, which is what a fault was before.
        (Lock.NONE | VmaLock.READ << 4, Lock.NONE | VmaLock.READ << 4, "read"),
        (READ | VmaLock.READ << 4, Lock.NONE | VmaLock.READ << 4, "read"),
        (Lock.NONE | VmaLock.NONE << 4, Lock.NONE | VmaLock.NONE << 4, "none"),
        (Lock.NONE, Lock.NONE, "none"),
        (WRITE | VmaLock.NONE << 4, WRITE | VmaLock.READ << 4, "write"),
    ],
)
def test_one_defect_on_two_kernels_has_one_fingerprint(entry, leave, shown) -> None:
    judgement = BY_ID["CDM003"].judge(changed(entry, leave), TERMS, "intended")
    assert judgement.violation.shape[0] == shown


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
