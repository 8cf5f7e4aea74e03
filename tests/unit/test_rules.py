"""Each rule once broken, once kept, once undecidable, once without a premise."""

from __future__ import annotations

import pytest
import simdefects
import simstory
from msgspec.structs import replace
from rulecases import (
    CASES,
    INFO,
    LOCAL,
    Program,
    bind_back,
    found,
    judge,
    move_in,
    nothing,
    one,
    prefer,
    run,
    task_policy,
)
from simkernel import (
    BIND,
    CDM,
    DEFAULT,
    HUGE,
    INTERLEAVE,
    PREFERRED,
    RAM,
    RFC,
    SimKernel,
    Task,
)

from cdmtrace.analysis import check, status
from cdmtrace.analysis.result import Verdict
from cdmtrace.analysis.rules import RULES
from cdmtrace.events import EventKind


def test_every_rule_has_a_case() -> None:
    # CDM020 is about the recording as a whole: see below. CDM021:
    # test_services_judged.py.
    assert {*CASES, "CDM020", "CDM021"} == {rule.id for rule in RULES}


@pytest.mark.parametrize("rule", CASES)
def test_violated(rule: str) -> None:
    case = CASES[rule]
    result = check(run(case.breaks, *case.quirks).trace())
    assert one(result, rule).verdict is Verdict.VIOLATED
    assert one(result, rule).findings == 1
    assert {f.rule.id for f in result.findings} == {rule} | case.others
    verdict = Verdict.CLEAN if rule in INFO else Verdict.VIOLATED
    assert status.verdict(result, named=False) is verdict


@pytest.mark.parametrize("rule", CASES)
def test_clean_and_checked(rule: str) -> None:
    case = CASES[rule]
    result = judge(run(case.keeps, *case.kept), rule)
    assert (result.verdict, result.findings, result.why) == (Verdict.CLEAN, 0, None)
    assert result.checked > 0


@pytest.mark.parametrize("rule", CASES)
def test_a_loss_leaves_it_open(rule: str) -> None:
    case = CASES[rule]
    kernel = run(case.keeps, *case.kept)
    kernel.lose(case.probe, kernel.events[0].ts)
    result = judge(kernel, rule)
    assert result.verdict is Verdict.INCONCLUSIVE
    assert result.why
    assert case.probe in result.why


@pytest.mark.parametrize("rule", CASES)
def test_a_loss_in_its_window_holds_a_finding_back(rule: str) -> None:
    case = CASES[rule]
    kernel = run(case.breaks, *case.quirks)
    kernel.lose(case.probe, kernel.events[0].ts)
    verdict = judge(kernel, rule).verdict
    assert verdict is (Verdict.VIOLATED if rule in LOCAL else Verdict.INCONCLUSIVE)


@pytest.mark.parametrize("rule", CASES)
def test_a_loss_of_another_probe_is_no_matter(rule: str) -> None:
    case = CASES[rule]
    kernel = run(case.keeps, *case.kept)
    kernel.lose("task", kernel.events[0].ts)
    assert judge(kernel, rule).verdict is Verdict.CLEAN


@pytest.mark.parametrize("rule", CASES)
def test_without_a_premise_it_is_vacuous(rule: str) -> None:
    result = judge(run(nothing), rule)
    assert (result.verdict, result.checked) == (Verdict.VACUOUS, 0)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.id)
def test_without_a_probe_that_it_needs_it_is_unchecked(rule) -> None:
    for probe in rule.needs:
        kernel = run(bind_back)
        kernel.probes[probe] = None
        result = judge(kernel, rule.id)
        assert result.verdict is Verdict.UNCHECKED
        assert result.why
        assert probe in result.why


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.id)
def test_without_a_probe_that_it_leans_on_it_is_open(rule) -> None:
    for probe in rule.leans:
        kernel = run(bind_back)
        del kernel.probes[probe]
        assert judge(kernel, rule.id).verdict is Verdict.INCONCLUSIVE


@pytest.mark.parametrize("rule", [r.id for r in RULES if r.leans and r.id in CASES])
def test_without_a_probe_that_it_leans_on_a_finding_is_held_back(rule: str) -> None:
    case = CASES[rule]
    kernel = run(case.breaks, *case.quirks)
    leans = {one.id: one.leans for one in RULES}[rule]
    del kernel.probes[case.probe if case.probe in leans else min(leans)]
    verdict = judge(kernel, rule).verdict
    assert verdict is (Verdict.VIOLATED if rule in LOCAL else Verdict.INCONCLUSIVE)


@pytest.mark.parametrize(
    "program",
    [
        simdefects.migrate_while_mlock_walks,
        simdefects.advise_and_take_it_back,
        simdefects.rebind_and_protect,
    ],
)
def test_who_holds_the_lock_neither_races_nor_loses(program: Program) -> None:
    result = check(run(program).trace())
    assert found(result) == []
    assert one(result, "CDM004").checked > 0


def test_a_change_seen_while_others_are_in_a_call_is_left_open() -> None:
    result = check(run(simdefects.tag_at_the_end_of_a_call).trace(), rules={"CDM003"})
    assert found(result) == []
    assert one(result, "CDM003").verdict is Verdict.INCONCLUSIVE


@pytest.mark.parametrize("quirks", [(), ("unlocked-clear",)])
def test_what_madvise_sets_can_be_lost_as_well(quirks: tuple[str, ...]) -> None:
    result = check(run(simdefects.migrate_while_advising, *quirks).trace())
    told = {f.rule.id: f for f in result.findings}
    assert told.keys() == ({"CDM002", "CDM003", "CDM004"} if quirks else set())
    if quirks:
        assert told["CDM004"].expected.startswith("dc is set: vma_merge")
        # The tag was needed, and the row that took it away says so.
        assert told["CDM002"].cause == "cleared"


def test_of_what_readahead_takes_the_vma_gets_one_page() -> None:
    result = check(run(simdefects.read_ahead_and_map, "fault-tag").trace())
    told = [f for f in result.findings if f.rule.id == "CDM015"]
    assert [f.observed for f in told] == [
        "- -> cd, and of 3 pages read in by this VMA's policy it got one"
    ]
    assert "CDM013" not in {f.rule.id for f in result.findings}


def test_a_vma_that_is_in_no_address_space() -> None:
    """Its own row has no VMA: the one that faults stands for all its pages."""
    kernel = run(simdefects.fault_by_a_pseudo_vma, "fault-tag")
    (finding,) = check(kernel.trace(), rules={"CDM015"}).findings
    assert (finding.cause, finding.count) == ("pseudo-vma", 3)
    assert finding.end - finding.start == 7 * 4096


@pytest.mark.parametrize("taken", [None, "VM_SYNC"])
def test_a_bit_that_is_taken(taken: str | None) -> None:
    trace = run(bind_back).trace()
    result = check(replace(trace, terms=replace(trace.terms, taken_by=taken)))
    told = one(result, "CDM020")
    assert told.checked == 1
    assert told.verdict is (Verdict.VIOLATED if taken else Verdict.CLEAN)
    for finding in result.findings:
        assert (finding.rule.id, finding.mm.pid) == ("CDM020", 0)
        assert finding.expected == "bit 38 of vm_flags free, or VM_CDM"
        assert finding.observed == "it is VM_SYNC on 6.1.0-sim"


# --- the story of the mail thread ----------------------------------------------


def test_the_story_under_rfc_breaks_each_rule_as_told() -> None:
    kernel = SimKernel("rfc")
    simstory.tell(kernel)
    assert sorted(found(check(kernel.trace()))) == [
        ("CDM001", "mbind"),
        ("CDM002", "interleave"),
        ("CDM002", "migrate_pages"),
        ("CDM002", "move_pages"),
        ("CDM002", "thp"),
        ("CDM003", "fault"),
        ("CDM003", "fault"),
        ("CDM005", "mbind"),
        ("CDM010", "fault"),
        ("CDM011", "mbind"),
        ("CDM014", "fault"),
    ]


def test_the_story_without_quirks_is_clean_and_not_vacuously_so() -> None:
    kernel = SimKernel()
    simstory.tell(kernel)
    result = check(kernel.trace())
    assert found(result) == []
    # It asks neither KSM nor NUMA balancing to do anything, nothing in it fails, and
    # no fault of a right kernel tags.
    idle = ("CDM006", "CDM008", "CDM009", "CDM012", "CDM013", "CDM015")
    verdicts = {r.rule.id: r.verdict for r in result.rules if not r.checked}
    assert verdicts == dict.fromkeys(idle, Verdict.VACUOUS)
    assert all(r.verdict is Verdict.CLEAN for r in result.rules if r.checked)


def test_the_patches_do_what_they_say() -> None:
    kernel = SimKernel("rfc")
    simstory.tell(kernel)
    result = check(kernel.trace(), profile="rfc-v2")
    assert found(result) == []
    assert {r.rule.id for r in result.rules if r.verdict is Verdict.CLEAN} == {
        "CDM002",
        "CDM003",
        "CDM007",
        "CDM010",
        "CDM020",
    }


def test_the_repaired_kernel_is_not_what_the_patches_say() -> None:
    kernel = SimKernel()
    simstory.tell(kernel)
    result = check(kernel.trace(), profile="rfc-v2")
    assert set(found(result)) == {
        ("CDM002", "cleared"),
        ("CDM002", "mbind"),
        ("CDM010", "mbind"),
    }


# --- what is told once, and what is not told -----------------------------------


def test_leftovers_of_an_over_tag_are_not_stale_as_well() -> None:
    def program(task: Task) -> None:
        vma = task.mmap(53)
        task.mbind(vma.page(11), 19)
        task.mbind(vma.start, 11, BIND, RAM)
        task.mprotect(vma.page(40), 5, False)

    result = check(run(program, "whole-vma", "one-way").trace())
    assert found(result) == [("CDM011", "mbind")]


def test_a_stale_tag_is_told_once_until_it_was_right_again() -> None:
    def program(task: Task) -> None:
        bind_back(task)
        vma = task.overlapping(0, 1 << 47)[0]
        task.mbind(vma.start, 23, BIND, RAM)
        task.mprotect(vma.start, 23, False)
        task.mbind(vma.start, 23, BIND, CDM)
        task.mbind(vma.start, 23, BIND, RAM)

    result = check(run(program, "one-way").trace())
    assert found(result) == [("CDM001", "mbind")] * 2


def test_a_child_is_not_blamed_for_what_its_parent_left() -> None:
    def program(task: Task) -> None:
        bind_back(task)
        prefer(task)
        child = task.fork()
        child.mbind(child.mmap(3).start, 3)

    result = check(run(program, "one-way", "bind-only").trace())
    assert {f.mm.pid for f in result.findings} == {214}


def test_pages_left_behind_by_an_mbind_may_keep_or_lose_the_tag() -> None:
    def program(task: Task) -> None:
        vma = task.mmap(59)
        task.mbind(vma.start, 59)
        task.faults(vma)
        task.mbind(vma.start, 59, DEFAULT)

    assert found(check(run(program).trace())) == []
    assert found(check(run(program, "one-way").trace())) == []


def test_a_later_mbind_supersedes_what_move_pages_asked_for() -> None:
    """Without it the kernel whose tag is its policy would break G."""

    def program(task: Task) -> None:
        vma = task.mmap(7)
        task.faults(vma)
        task.mbind(vma.start, 7)
        task.move_pages([vma.page(n) for n in range(7)], 1)
        task.mbind(vma.start, 7, BIND, RAM)

    assert found(check(run(program).trace())) == []


def test_pages_taken_by_madvise_leave_the_tag_until_the_next_change() -> None:
    """The zap runs under the read lock, so it cannot clear the tag."""

    def program(task: Task) -> None:
        vma = task.mmap(5)
        task.mbind(vma.start, 5)
        task.faults(vma)
        task.mbind(vma.start, 5, BIND, RAM)
        task.dontneed(vma.start, 5)

    def changed(task: Task) -> None:
        program(task)
        vma = task.overlapping(0, 1 << 47)[0]
        task.mbind(vma.start, 5, BIND, RAM)

    assert found(check(run(program, "one-way").trace())) == []
    assert found(check(run(changed, "one-way").trace())) == [("CDM001", "unmap")]


def test_own_move_pages_that_takes_the_last_page_leaves_the_tag_stale() -> None:
    def program(task: Task) -> None:
        vma = task.mmap(5)
        task.mbind(vma.start, 5)
        task.faults(vma)
        task.mbind(vma.start, 5, BIND, RAM)
        task.move_pages([vma.page(n) for n in range(5)], 0)

    assert found(check(run(program, "one-way").trace())) == [("CDM001", "migration")]


def test_a_tag_from_before_the_recording_has_no_setter() -> None:
    kernel = run(bind_back, "one-way")
    first = next(e.seq for e in kernel.events if e.node == 1)
    kernel.events = [e for e in kernel.events if e.seq >= first]
    result = check(kernel.trace())
    assert found(result) == []
    assert one(result, "CDM001").verdict is Verdict.INCONCLUSIVE
    assert one(result, "CDM010").verdict is Verdict.VACUOUS


def test_what_moves_into_a_policy_of_its_own_is_asked_for() -> None:
    assert found(check(run(move_in).trace())) == []
    broken = check(run(move_in, "migration-ungated").trace())
    assert found(broken) == [("CDM002", "move_pages")]
    (finding,) = broken.findings
    assert [step.kind for step in finding.witness] == ["migrate", "call"]


@pytest.mark.parametrize(
    ("mode", "nodes", "huge", "cause"),
    [
        (INTERLEAVE, RAM | CDM, False, "interleave"),
        (PREFERRED, CDM, True, "thp"),
        (PREFERRED, CDM, False, "fault"),
    ],
)
def test_the_cause_of_a_missing_tag(mode, nodes, huge, cause) -> None:
    def program(task: Task) -> None:
        vma = task.mmap(2 * HUGE // 4096, at=0x200000000000)
        task.mbind(vma.start, vma.pages, mode, nodes)
        task.fault(vma.start, huge=huge)
        task.fault(vma.start + HUGE, huge=huge)

    assert found(check(run(program, "bind-only").trace())) == [("CDM002", cause)]


def drive(task: Task) -> None:
    """Pages that a driver maps, and pages that it moves, without and by a policy."""
    device = task.mmap(23, device=True)
    task.faults(device, 0, 11)
    vma = task.mmap(19)
    task.faults(vma)
    task.drive([vma.page(n) for n in range(19)], 1)
    bound = task.mmap(13)
    task.faults(bound)
    task.mbind(bound.start, 13)
    task.drive([bound.page(n) for n in range(13)], 1)


def test_what_a_driver_brings_must_be_tagged() -> None:
    broken = check(run(drive, "driver-untagged").trace())
    # That it lies about why it moves pages, it does on any kernel.
    missing = [f for f in broken.findings if f.rule.id == "CDM002"]
    assert (
        sorted(found(broken)) == [("CDM002", "driver")] * 2 + [("CDM019", "driver")] * 2
    )
    assert [[step.kind for step in f.witness] for f in missing] == [
        ["map"],
        ["migrate"],
    ]
    assert all(f.breaks == f.rule.sentence for f in missing)
    clean = check(run(drive).trace())
    assert found(clean) == [("CDM019", "driver")]
    assert one(clean, "CDM002").checked > 1
    assert one(clean, "CDM014").checked == 13


def test_a_driver_s_tag_outlives_policies_and_pages() -> None:
    def program(task: Task) -> None:
        vma = task.mmap(23, device=True)
        task.faults(vma)
        task.mbind(vma.start, 23, BIND, RAM)
        task.mbind(vma.start, 23, BIND, CDM)
        task.mbind(vma.start, 23, DEFAULT)
        task.dontneed(vma.start, 23)
        task.mprotect(vma.page(7), 5, False)
        task.munmap(vma.page(17), 6)

    def without_pages(task: Task) -> None:
        vma = task.mmap(23, device=True)
        task.mbind(vma.page(3), 5, BIND, CDM)
        task.mbind(vma.page(3), 5, DEFAULT)

    for each in (program, without_pages):
        result = check(run(each).trace())
        assert found(result) == []
        assert one(result, "CDM010").verdict is Verdict.VACUOUS


def test_a_policy_that_takes_a_driver_s_tag_leaves_it_missing() -> None:
    def program(task: Task) -> None:
        vma = task.mmap(5, device=True)
        task.faults(vma)
        task.kernel.quirks.add("driver-untagged")
        task.mbind(vma.start, 5, BIND, RAM)

    def given_back(task: Task) -> None:
        program(task)
        task.kernel.quirks.add("any-mbind-tags")
        task.mbind(task.overlapping(0, 1 << 47)[0].start, 5, DEFAULT)

    for each in (program, given_back):
        result = check(run(each).trace())
        assert found(result) == [("CDM002", "mbind")]
        assert "its driver's mmap() tagged it" in result.findings[0].expected


def test_one_finding_stands_for_all_pages_of_a_vma() -> None:
    result = check(run(task_policy, "task-policy").trace())
    (finding,) = result.findings
    assert (finding.rule.id, finding.count) == ("CDM014", 37)
    assert [step.kind for step in finding.witness] == ["call", "alloc", "map"]


def test_the_rfc_quirks_are_all_known_here() -> None:
    assert SimKernel("rfc").quirks == RFC


def test_a_half_whose_policy_goes_is_stale_and_not_born_stale() -> None:
    def program(task: Task) -> None:
        vma = task.mmap(12)
        task.mbind(vma.start, 12)
        task.mbind(vma.page(5), 3, BIND, RAM)

    assert found(check(run(program, "one-way").trace())) == [("CDM001", "mbind")]


def test_beside_the_range_a_reason_of_its_own_excuses_the_tag() -> None:
    def program(task: Task) -> None:
        vma = task.mmap(12)
        task.mbind(vma.start, 12, PREFERRED)
        task.mbind(vma.page(5), 3, BIND, CDM)

    kernel = run(program, "bind-only", "whole-vma")
    assert found(check(kernel.trace())) == []
    assert judge(kernel, "CDM011").checked == 2


def test_what_fork_gives_the_child_is_not_stale_but_born_so() -> None:
    """The parent's VMA may be tagged for its leftovers; the child's has none."""

    def program(task: Task) -> None:
        vma = task.mmap(5)
        task.mbind(vma.start, 5)
        task.faults(vma)
        task.mbind(vma.start, 5, BIND, RAM)
        # While fork holds the lock, the kernel may still think better of it.
        task.fork().exit()

    kernel = run(program, "one-way")
    kernel.events = [
        replace(e, size=0) if e.kind == EventKind.COPY else e for e in kernel.events
    ]
    assert found(check(kernel.trace())) == [("CDM016", "fork")]


def test_a_tag_that_never_had_a_reason_is_not_stale_as_well() -> None:
    def program(task: Task) -> None:
        task_policy(task)
        vma = task.overlapping(0, 1 << 47)[-1]
        task.move_pages([vma.start + n * 4096 for n in range(37)], 0)

    rules = {
        f.rule.id
        for f in check(run(program, "task-policy", "fault-tag").trace()).findings
    }
    assert rules == {"CDM003", "CDM010", "CDM014"}


def test_a_policy_without_a_page_is_no_premise_of_a_missing_tag() -> None:
    def program(task: Task) -> None:
        task.mbind(task.mmap(12).start, 12)

    assert judge(run(program), "CDM002").checked == 0
