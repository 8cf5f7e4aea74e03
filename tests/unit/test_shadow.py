"""Recordings of a kernel without VM_CDM: what is checked there, and what is not."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import simdefects
import simstory
from rulecases import CASES, found, one, run, task_policy
from simdefects import LOCKED, bound, set_flags, thread
from simfile import save
from simkernel import PAGE, TAG, SimKernel, Task, Vma

from cdmtrace.analysis import Trace, check, load
from cdmtrace.analysis.replay import Verdict
from cdmtrace.cli import main
from cdmtrace.events import EventKind, Lock, Probe

ABOUT_TAG = (
    *("CDM001", "CDM002", "CDM005", "CDM006", "CDM007", "CDM008", "CDM009"),
    *("CDM010", "CDM011", "CDM012", "CDM013", "CDM015", "CDM016", "CDM017"),
    "CDM020",
)
GENERIC = ("CDM003", "CDM004", "CDM014", "CDM018", "CDM019")
WHY = "this kernel has no VM_CDM (shadow mode)"


def stock_story() -> Trace:
    kernel = SimKernel("stock")
    simstory.tell(kernel)
    return kernel.trace()


def write_in_a_fault(task: Task, vma: Vma, before: int, since: int) -> None:
    """A driver writes vm_flags where the lock is held for read."""
    task.lock = Lock.READ
    task.vma_row(
        EventKind.ALLOC,
        vma,
        probe=Probe.ALLOC,
        ts_entry=since,
        addr=vma.start,
        size=PAGE,
        node=1,
        flags_before=before,
    )
    task.lock = Lock.NONE


def write_unlocked(task: Task) -> None:
    _, vma = bound(task, 7)
    before, since = vma.flags, task.kernel.tick()
    vma.flags |= LOCKED
    write_in_a_fault(task, vma, before, since)


def write_what_was_read_before(task: Task) -> None:
    """What mprotect() has set meanwhile is gone."""
    _, vma = bound(task, 7)
    other, before, since = thread(task), vma.flags, task.kernel.tick()
    begun = other.begin()
    set_flags(
        other,
        vma,
        Probe.MLOCK_FIXUP,
        before | LOCKED,
        task.kernel.tick(),
        Lock.WRITE_SELF,
    )
    other.end(Probe.SYS_MLOCK, begun, addr=vma.start, size=7 * PAGE)
    vma.flags = before | simdefects.DONTCOPY
    write_in_a_fault(task, vma, before, since)


def write_together(task: Task) -> None:
    _, vma = bound(task, 7)
    other, before, since = thread(task), vma.flags, task.kernel.tick()
    vma.flags |= LOCKED
    write_in_a_fault(other, vma, before, task.kernel.tick())
    write_in_a_fault(task, vma, before, since)


def test_rules_about_the_tag_are_unchecked_and_the_others_are_not() -> None:
    result = check(stock_story())
    verdicts = {r.rule.id: r.verdict for r in result.rules}
    unchecked = [rule for rule, v in verdicts.items() if v is Verdict.UNCHECKED]
    assert tuple(unchecked) == ABOUT_TAG
    assert {one(result, rule).why for rule in ABOUT_TAG} == {WHY}
    assert {one(result, rule).checked for rule in ABOUT_TAG} == {0}
    # Nobody changes vm_flags in the story, of which this kernel has no VM_CDM.
    assert {rule: verdicts[rule] for rule in GENERIC} == {
        "CDM003": Verdict.VACUOUS,
        "CDM004": Verdict.VACUOUS,
        "CDM014": Verdict.VIOLATED,
        "CDM018": Verdict.VACUOUS,
        "CDM019": Verdict.CLEAN,
    }
    assert found(result) == [("CDM014", "fault")]
    assert result.verdict is Verdict.VIOLATED


@pytest.mark.parametrize(
    ("program", "findings"),
    [
        (task_policy, [("CDM014", "fault")]),
        (write_unlocked, [("CDM003", "fault")]),
        (write_what_was_read_before, [("CDM003", "fault"), ("CDM004", "fault")]),
        (write_together, [("CDM003", "fault"), ("CDM018", "fault")]),
        (simdefects.drive_and_lie, [("CDM019", "driver")]),
    ],
)
@pytest.mark.parametrize("profile", ["intended", "rfc-v2"])
def test_what_the_generic_rules_find(program, findings, profile: str) -> None:
    result = check(run(program, "stock").trace(), profile=profile)
    promised = {r.rule.id for r in result.rules if profile in r.rule.profiles}
    assert found(result) == [pair for pair in findings if pair[0] in promised]


@pytest.mark.parametrize("rule", sorted({*GENERIC} - {"CDM004"}))
def test_they_find_what_they_find_elsewhere(rule: str) -> None:
    """A recording of a kernel that tags, read as if nobody knew of its tag."""
    case = CASES[rule]
    trace = run(case.breaks, *case.quirks).trace()
    blind = replace(trace, terms=replace(trace.terms, tag=0))
    assert one(check(blind), rule).findings == one(check(trace), rule).findings == 1


@pytest.mark.parametrize("rule", ABOUT_TAG)
def test_nothing_is_found_of_the_tag(rule: str) -> None:
    if rule not in CASES:
        return
    case = CASES[rule]
    trace = run(case.breaks, *case.quirks).trace()
    blind = replace(trace, terms=replace(trace.terms, tag=0))
    result = check(blind)
    assert one(result, rule).verdict is Verdict.UNCHECKED
    assert not {f.rule.id for f in result.findings} & set(ABOUT_TAG)


def test_a_flag_at_the_tag_s_place_is_a_flag_like_others() -> None:
    trace = run(write_unlocked, "stock").trace()
    (finding,) = check(trace).findings
    assert finding.observed.startswith("mmap lock: read; - -> lo inside alloc()")
    events = [
        replace(event, flags_after=event.flags_after & ~LOCKED | TAG)
        if event.flags_after & LOCKED
        else event
        for event in trace.events
    ]
    (finding,) = check(replace(trace, events=events)).findings
    assert finding.observed.startswith("mmap lock: read; - -> bit38 inside")


def test_a_write_of_the_same_value_is_a_write_to_the_patches_too() -> None:
    """The patches say that a fault writes VM_CDM, and nothing of other flags."""
    _, vma = bound(task := (kernel := SimKernel("stock")).process(), 7)
    task.lock = Lock.READ
    task.vma_row(
        EventKind.WRITE,
        vma,
        probe=Probe.WATCHPOINT,
        addr=vma.start,
        cause=simdefects.Cause.FAULT,
    )
    for profile in ("intended", "rfc-v2"):
        assert found(check(kernel.trace(), profile=profile))[0][0] == "CDM003"


def test_the_exit_status(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    clean = save(run(lambda task: bound(task, 7), "stock").trace(), tmp_path / "a")
    assert main(["check", str(clean)]) == 0
    out = capsys.readouterr().out
    ids = ", ".join(ABOUT_TAG)
    assert f"{ids}: {WHY}" in " ".join(out.split())
    assert out.count("VM_CDM") == 1
    # Who asks for it by name is told that it is open.
    assert main(["check", "--rules", "CDM001", str(clean)]) == 3
    assert main(["check", "--rules", "CDM003", str(clean)]) == 0
    leaking = save(stock_story(), tmp_path / "b")
    capsys.readouterr()
    assert main(["check", "--format", "json", str(leaking)]) == 1
    document = json.loads(capsys.readouterr().out)
    assert document["trace"]["vm_cdm_mask"] == "0x0"


def test_a_file_without_a_tag_is_what_was_recorded(tmp_path: Path) -> None:
    trace = stock_story()
    read = load(save(trace, tmp_path / "x.arrows"))
    assert read.terms.tag == 0
    assert found(check(read)) == found(check(trace))
