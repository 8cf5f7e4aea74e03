"""Writes to vm_flags that a debug register saw: what the model and the rules make of
them."""

from __future__ import annotations

from pathlib import Path

import pytest
from msgspec.structs import replace
from rows import PLAIN, TAG, TERMS, Rows, other, span

from cdmtrace.analysis import check, load
from cdmtrace.analysis.aggregate import report
from cdmtrace.analysis.frames import Event, Gap, Trace
from cdmtrace.analysis.result import Finding, Verdict
from cdmtrace.analysis.rules import RULES
from cdmtrace.events import Bit, Cause, EventKind, Lock, Probe

GOLDEN = Path(__file__).parents[1] / "golden" / "cdm-6.1-rfc.arrows"
AT = b"cdm_tag_now.constprop.0+0x8c"
A, B = 0x20000, 0x4000000
WRITERS = {"CDM003", "CDM004", "CDM018"}


@pytest.fixture
def rows() -> Rows:
    made = Rows()
    made.row(EventKind.VMA_NEW, 0, 23)
    return made


def write(
    rows: Rows, before: int, after: int, lock: Lock, *, bits: int = 0, **more: int
) -> Event:
    """Feed a write to the flags of pages [0, 23)."""
    return rows.row(
        EventKind.WRITE,
        *(0, 23),
        flags=after,
        before=before,
        lock=lock,
        took=0,
        probe=Probe.WATCHPOINT,
        bits=bits,
        **{"payload": AT, **more},
    )


def fixup(rows: Rows, before: int, after: int, lock: Lock, **more: int) -> Event:
    """Feed the row of a function that has changed them."""
    return rows.row(
        EventKind.FLAGS,
        *(0, 23),
        flags=after,
        before=before,
        lock=lock,
        probe=Probe.MPROTECT_FIXUP,
        **{**span(0, 23), **more},
    )


def traced(events: list[Event]) -> Trace:
    names = {name for rule in RULES for name in rule.probes}
    return Trace(
        path="",
        terms=replace(TERMS, probes={name: name for name in names}),
        events=events,
        count=len(events),
    )


def found(rows: Rows, profile: str = "intended") -> list[Finding]:
    trace = traced(rows.events)
    return list(check(trace, rules=WRITERS, profile=profile).findings)


def causes(rows: Rows, profile: str = "intended") -> list[tuple[str, str]]:
    return [(one.rule.id, one.cause) for one in found(rows, profile)]


@pytest.mark.parametrize("lock", [Lock.NONE, Lock.READ, Lock.WRITE_OTHER])
def test_a_write_without_the_lock_is_told_with_its_function(
    rows: Rows, lock: Lock
) -> None:
    """Also where another task holds the lock for write: it is not that one's."""
    write(rows, PLAIN, PLAIN | A, lock)
    (one,) = found(rows)
    assert (one.rule.id, one.cause) == ("CDM003", "cdm_tag_now")
    assert "written by cdm_tag_now.constprop.0+0x8c" in one.observed
    assert one.witness[0].what == "written by cdm_tag_now.constprop.0+0x8c"


def test_a_write_under_the_lock_is_well(rows: Rows) -> None:
    write(rows, PLAIN, PLAIN | A, Lock.WRITE_SELF)
    result = check(traced(rows.events), rules={"CDM003"})
    assert [(one.checked, one.findings) for one in result.rules] == [(1, 0)]


def test_one_of_the_same_value_is_a_write(rows: Rows) -> None:
    write(rows, PLAIN, PLAIN, Lock.READ)
    assert causes(rows) == [("CDM003", "cdm_tag_now")]


def test_of_a_vma_that_is_torn_down_none_is_judged(rows: Rows) -> None:
    write(rows, PLAIN, PLAIN | A, Lock.NONE, bits=Bit.UNLINKED)
    assert causes(rows) == []


def test_without_a_stack_the_writer_is_not_known(rows: Rows) -> None:
    write(rows, PLAIN, PLAIN | A, Lock.READ, payload=None)
    (one,) = found(rows)
    assert one.cause == "unknown"
    assert "no stack was taken" in one.observed


def test_the_offset_does_not_make_another_finding(rows: Rows) -> None:
    """It is another one in the next build."""
    write(rows, PLAIN, PLAIN | A, Lock.READ)
    write(rows, PLAIN, PLAIN | A, Lock.READ, payload=b"cdm_tag_now+0x90")
    assert len({one.fingerprint for one in found(rows)}) == 1


def test_what_is_told_as_a_write_is_not_told_again(rows: Rows) -> None:
    write(rows, PLAIN, PLAIN | A, Lock.READ)
    fixup(rows, PLAIN, PLAIN | A, Lock.READ, took=1500)
    assert causes(rows) == [("CDM003", "cdm_tag_now")]


def test_where_the_write_was_lost_the_function_is_told(rows: Rows) -> None:
    """An earlier one leaves other flags; one from before says nothing of this."""
    write(rows, PLAIN, PLAIN | B, Lock.WRITE_SELF)
    write(rows, PLAIN | B, PLAIN, Lock.WRITE_SELF)
    fixup(rows, PLAIN, PLAIN | A, Lock.READ, took=1500)
    assert causes(rows) == [("CDM003", "mprotect")]
    write(rows, PLAIN | A, PLAIN, Lock.WRITE_SELF)
    fixup(rows, PLAIN | A, PLAIN, Lock.READ, took=500)
    assert causes(rows)[1:] == [("CDM003", "mprotect")]


def test_a_tag_in_a_fault_is_what_the_patches_say(rows: Rows) -> None:
    write(rows, PLAIN, PLAIN | TAG, Lock.READ, cause=Cause.FAULT)
    assert causes(rows, "rfc-v2") == []
    write(rows, PLAIN, PLAIN | TAG, Lock.READ)
    assert causes(rows, "rfc-v2") == [("CDM003", "cdm_tag_now")]


def test_what_another_has_written_meanwhile_and_is_gone_is_lost(rows: Rows) -> None:
    """The write says when it was, and by whom."""
    set_ = write(rows, PLAIN, PLAIN | A, Lock.WRITE_SELF, tid=8)
    write(rows, PLAIN | A, PLAIN | B, Lock.NONE)
    last = fixup(rows, PLAIN, PLAIN | B, Lock.NONE, took=2500)
    lost = [one for one in found(rows) if one.rule.id == "CDM004"]
    assert [[step.seq for step in one.witness] for one in lost] == [
        [set_.seq, last.seq]
    ]
    assert "cdm_tag_now" in lost[0].expected


def test_one_from_elsewhere_in_the_midst_of_a_change_is_a_race(rows: Rows) -> None:
    both = PLAIN | TAG | A
    write(rows, PLAIN, PLAIN | TAG, Lock.READ, tid=9, bits=Bit.FOREIGN)
    fixup(rows, PLAIN, both, Lock.WRITE_SELF, took=1500)
    assert causes(rows) == [("CDM003", "cdm_tag_now"), ("CDM018", "mprotect")]
    (race,) = [one for one in found(rows) if one.rule.id == "CDM018"]
    assert "in the midst of mprotect_fixup" in race.observed


def test_one_of_the_process_itself_has_a_row_that_says_so(rows: Rows) -> None:
    """Else each race would be told by both."""
    write(rows, PLAIN, PLAIN | A, Lock.READ, tid=8)
    fixup(rows, PLAIN, PLAIN | A | B, Lock.WRITE_SELF, took=1500)
    assert causes(rows) == [("CDM003", "cdm_tag_now")]


def test_what_a_kernel_thread_writes_no_other_row_tells(rows: Rows) -> None:
    write(rows, PLAIN, PLAIN | TAG, Lock.READ, bits=Bit.FOREIGN | Bit.KTHREAD)
    assert rows.areas == [(0, 23, PLAIN | TAG)]
    assert rows.area(0).set_by is rows.events[-1]


def test_a_write_that_was_lost_leaves_the_rules_of_writes_open(rows: Rows) -> None:
    write(rows, PLAIN, PLAIN | A, Lock.WRITE_SELF)
    gap = Gap(probe="watchpoint", reason="ring", count=1, since=0, until=9000)
    trace = replace(traced(rows.events), gaps=(gap,))
    verdicts = {
        one.rule.id for one in check(trace).rules if one.verdict is Verdict.INCONCLUSIVE
    }
    assert verdicts == WRITERS


def test_what_the_process_writes_does_not_end_its_call(rows: Rows) -> None:
    rows.call = 5
    rows.row(EventKind.VMA_SEEN, 0, 23)
    before = rows.state
    write(rows, PLAIN, PLAIN | TAG, Lock.WRITE_SELF)
    assert replace(rows.state, writes=()) == before
    other(rows, EventKind.WATCH, 0, 23)


def test_writes_change_nothing_that_other_rules_say() -> None:
    """In a recording of all defects, each change as it would be with a watchpoint."""
    trace = load(GOLDEN)
    events: list[Event] = []
    for event in trace.events:
        shows = event.kind in (EventKind.ALLOC, EventKind.POLICY, EventKind.FLAGS)
        if shows and event.flags_before != event.flags_after:
            moment = event.ts_entry + 1
            written = replace(
                event,
                kind=EventKind.WRITE,
                probe=Probe.WATCHPOINT,
                ts=moment,
                ts_entry=moment,
                payload=AT,
                ret=0,
            )
            events += [replace(written, kind=EventKind.WATCH), written]
        events.append(event)
    added = len(events) - trace.count
    assert added == 2 * 12
    # A witness names rows by their numbers.
    events = [replace(event, seq=n) for n, event in enumerate(events, 1)]
    watched = replace(trace, events=events, count=len(events))

    def told(of: Trace) -> list[tuple[str, str, str, int, int]]:
        return [
            (one.rule.id, one.cause, one.fingerprint, one.start, one.end)
            for one in check(of).findings
            if one.rule.id != "CDM003"
        ]

    assert told(watched) == told(trace)
    unlocked = [one for one in check(trace).findings if one.rule.id == "CDM003"]
    exact = [one for one in check(watched).findings if one.rule.id == "CDM003"]
    assert len(exact) == len(unlocked) > 0
    assert {one.cause for one in exact} == {"cdm_tag_now"}
    assert {row["function"] for row in report(watched)["Changes of vm_flags"]} == {
        "cdm_tag_now"
    }
