"""Notes of the model, and what a rule says of one."""

from __future__ import annotations

from typing import Any

from msgspec.structs import replace

from cdmtrace.analysis.frames import Event, Terms
from cdmtrace.analysis.notes import Arrived, FlagsChanged, Note, Settled
from cdmtrace.analysis.pages import Page
from cdmtrace.analysis.profiles import PROFILES, Facts
from cdmtrace.analysis.rules import BY_ID
from cdmtrace.analysis.rules.rule import Judgement, Violation
from cdmtrace.analysis.state import Area, Policy
from cdmtrace.events import EventKind, Lock, Mpol, Probe

TAG = 1 << 38
PLAIN, MERGEABLE, SOFTDIRTY, READ_ONLY = 0x100073, 0x80000000, 0x08000000, 0x100071
CDM, PAGE, BASE = 1 << 1, 4096, 0x100040000000
WRITE, READ = Lock.WRITE_SELF, Lock.READ
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
