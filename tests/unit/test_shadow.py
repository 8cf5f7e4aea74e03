"""Recordings of a kernel without VM_CDM: what is checked there, and what is not."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import pytest
import simdefects
import simstory
from msgspec.structs import replace
from notes import BASE, FACTS, area, row, settled
from rulecases import CASES, found, one, run, task_policy
from simdefects import LOCKED, bound, set_flags, thread
from simfile import save
from simkernel import (
    BIND,
    CDM,
    DEFAULT,
    INTERLEAVE,
    PAGE,
    PREFERRED,
    RAM,
    TAG,
    Region,
    SimKernel,
    Task,
    Vma,
)

from cdmtrace.analysis import Trace, aggregate, check, document, load, status
from cdmtrace.analysis.result import Verdict
from cdmtrace.analysis.shadow import Due, Shadow
from cdmtrace.cli import main
from cdmtrace.events import EventKind, Lock, Probe
from cdmtrace.render import divergence

ROOT = Path(__file__).resolve().parents[2]
SCHEMA = json.loads((ROOT / "cdmtrace/schemas/check-1.json").read_text())

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
    assert status.verdict(result, named=False) is Verdict.VIOLATED


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
    assert out.count("(shadow") == 1
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


# --- what would have to be tagged ----------------------------------------------


def stock() -> tuple[SimKernel, Task]:
    kernel = SimKernel("stock")
    return kernel, kernel.process()


def dues(kernel: SimKernel, profile: str = "intended") -> list[Due]:
    result = check(kernel.trace(), profile=profile)
    assert result.shadow
    assert result.shadow.why is None
    return [due for _, due in result.shadow.vmas]


def told(kernel: SimKernel) -> list[tuple[int, int, str, dict[int, int]]]:
    """Range, clause and pages of each, in the order in which they began."""
    return [
        (d.start, d.end, d.clause, {n: size // PAGE for n, size in d.pages.items()})
        for d in dues(kernel)
    ]


def unmap(task: Task, region: Region) -> None:
    """munmap(), and the row of a kernel that tells that no VMA is left there."""
    since = task.begin()
    task.cut(region.start, region.end)
    what = {
        "addr": region.start,
        "size": region.end - region.start,
        "start": region.start,
        "end": region.end,
    }
    task.row(EventKind.VMA_FREE, probe=Probe.VMA_FREE, **what)
    task.end(Probe.SYS_MUNMAP, since, **what)


def place(region: Region) -> tuple[int, int]:
    return region.start, region.end


def test_a_kernel_that_tags_has_no_such_table() -> None:
    kernel = SimKernel()
    simstory.tell(kernel)
    result = check(kernel.trace())
    assert result.shadow is None
    assert document.check(result)["shadow"] is None
    assert aggregate.WOULD_BE not in aggregate.report(kernel.trace())


def test_a_policy_of_its_own_that_names_a_cdm_node() -> None:
    kernel, task = stock()
    wanted = []
    for mode, nodes in (
        (BIND, CDM),
        (BIND, RAM),
        (PREFERRED, CDM),
        (INTERLEAVE, RAM | CDM),
        (DEFAULT, 0),
    ):
        region = task.mmap(6)
        task.mbind(region.start, 6, mode, nodes)
        task.faults(region, 0, 4)
        if nodes & CDM:
            pages = {1: 2} if mode == INTERLEAVE else {1: 4}
            wanted.append((*place(region), "P", pages))
    assert told(kernel) == wanted


def test_it_holds_before_there_is_a_page() -> None:
    """Since mbind() was called. CDM002 asks when a page has come."""
    kernel, task = stock()
    region = task.mmap(5)
    task.mbind(region.start, 5)
    assert told(kernel) == [(*place(region), "P", {})]
    (before,) = dues(kernel)
    assert before.since.kind == EventKind.POLICY
    assert (before.since.addr, before.until, before.ended) == (
        region.start,
        None,
        False,
    )
    task.faults(region)
    (after,) = dues(kernel)
    assert after.since == before.since
    assert after.pages == {1: 5 * PAGE}


def test_what_a_request_put_there() -> None:
    kernel, task = stock()
    region = task.mmap(9)
    task.mbind(task.mmap(1).start, 1)
    task.faults(region)
    task.move_pages([region.page(n) for n in (2, 3, 5)], 1)
    assert told(kernel)[1:] == [(*place(region), "G", {1: 3})]
    due = dues(kernel)[1]
    assert due.since.kind == EventKind.MIGRATE
    assert due.why == "an explicit request put a page of a CDM node there"
    # The last of them leaves, and so does the reason.
    task.move_pages([region.page(n) for n in (2, 3)], 0)
    assert told(kernel)[1:] == [(*place(region), "G", {1: 1})]
    assert dues(kernel)[1].until is None
    task.move_pages([region.page(5)], 0)
    due = dues(kernel)[1]
    assert due.until is not None
    assert due.until.probe == Probe.SYS_MOVE_PAGES
    assert (due.ended, due.pages) == (False, {1: PAGE})


def test_leaks_and_leftovers_would_not_have_to_be() -> None:
    kernel, task = stock()
    leaked, left, child = task.mmap(7), task.mmap(3), None
    task.set_mempolicy(PREFERRED, CDM)
    task.faults(leaked)
    task.set_mempolicy(DEFAULT)
    task.mbind(left.start, 3)
    task.faults(left)
    task.mbind(left.start, 3, DEFAULT)
    child = task.fork()
    child.faults(child.mmap(1))
    child.exit()
    (due,) = dues(kernel)
    assert (due.start, due.end) == place(left)
    assert due.until is not None
    assert found(check(kernel.trace())) == [("CDM014", "fault")]


def test_a_part_that_is_bound_back_leaves_two() -> None:
    kernel, task = stock()
    region = task.mmap(12)
    task.mbind(region.start, 12)
    task.faults(region)
    task.mbind(region.page(4), 3, BIND, RAM)
    first, middle, last = sorted(dues(kernel), key=lambda due: due.start)
    bounds = [(d.start, d.end) for d in (first, middle, last)]
    assert bounds == [
        (region.start, region.page(4)),
        (region.page(4), region.page(7)),
        (region.page(7), region.end),
    ]
    assert [d.until is None for d in (first, middle, last)] == [True, False, True]
    assert [d.pages[1] // PAGE for d in (first, middle, last)] == [4, 3, 5]
    assert first.since == middle.since == last.since
    # And with the middle bound again they are one, since the first time.
    task.mbind(region.page(4), 3)
    holding = [d for d in dues(kernel) if d.until is None]
    assert [(d.start, d.end, d.since) for d in holding] == [
        (*place(region), first.since)
    ]
    assert len(dues(kernel)) == 2


def test_two_that_become_one_have_it_since_the_first() -> None:
    kernel, task = stock()
    region = task.mmap(12)
    task.mbind(region.page(6), 6)
    task.mbind(region.start, 6, PREFERRED)
    first, second = dues(kernel)
    assert (first.start, second.start) == (region.page(6), region.start)
    assert first.since.seq < second.since.seq
    task.mbind(region.start, 12)
    # The next row that shows them shows one.
    task.fault(region.start)
    (both,) = dues(kernel)
    assert (both.start, both.end, both.since) == (*place(region), first.since)


def test_what_lies_beside_one_that_came_to_its_place_holds_on() -> None:
    """The rest of it has not settled again: nothing about it has changed."""
    must, since = replace(FACTS, tag=False, policy_names=True), row(5, EventKind.POLICY)
    shadow = Shadow()
    shadow.take((1, 0), settled(area(0, 12), must, due=since))
    shadow.take((2, 0), settled(area(0, 12), must, due=since))
    shadow.take((1, 0), settled(area(4, 6), replace(must, policy_names=False)))
    rest = (area(0, 4, due=since), area(4, 6), area(6, 12, due=since))
    areas = {(1, 0): rest, (2, 0): (area(0, 12, due=since),)}
    shown = shadow.result(areas.__getitem__)
    assert [((d.start - BASE) // PAGE, d.space[0], d.ended) for d in shown] == [
        (0, 1, False),
        (0, 2, False),
        (4, 1, True),
        (6, 1, False),
    ]
    assert [(d.end - BASE) // PAGE for d in shown] == [4, 12, 6, 12]


def test_one_that_is_unmapped_is_gone() -> None:
    kernel, task = stock()
    region, other = task.mmap(8), task.mmap(4)
    for bound_to in (region, other):
        task.mbind(bound_to.start, bound_to.pages)
        task.faults(bound_to)
    unmap(task, region)
    first, second = dues(kernel)
    assert (first.ended, first.until, first.pages) == (True, None, {1: 8 * PAGE})
    assert (second.ended, second.until) == (False, None)


@pytest.mark.parametrize("again", [True, False])
def test_what_comes_to_its_place_is_another(again: bool) -> None:
    kernel, task = stock()
    region = task.mmap(8)
    task.mbind(region.start, 8)
    task.faults(region)
    unmap(task, region)
    task.mmap(8, at=region.start)
    task.mbind(region.start, 8, BIND, CDM if again else RAM)
    first, *more = dues(kernel)
    assert (first.ended, first.until) == (True, None)
    assert [(d.start, d.end, d.ended) for d in more] == (
        [(*place(region), False)] if again else []
    )
    assert all(first.since.seq < d.since.seq for d in more)


def test_a_child_has_it_since_the_fork() -> None:
    kernel, task = stock()
    region = task.mmap(5)
    task.mbind(region.start, 5)
    task.faults(region)
    child = task.fork()
    child.faults(child.mmap(1))
    parent, other = dues(kernel)
    assert parent.space != other.space
    assert other.since.kind == EventKind.COPY
    assert (other.clause, other.pages) == ("P", {1: 5 * PAGE})
    # What its parent moved in did not come for it.
    child.mbind(region.start, 5, DEFAULT)
    task.exit()
    result = check(kernel.trace())
    assert result.shadow
    assert [
        (mm.pid, due.until is None, due.ended) for mm, due in result.shadow.vmas
    ] == [(task.pid, True, False), (child.pid, False, False)]


def test_what_was_so_when_the_recording_began() -> None:
    kernel, task = stock()
    region = task.mmap(6)
    task.mbind(region.start, 6)
    task.faults(region)
    kernel.look_before(task)
    kernel.looked()
    (due,) = dues(kernel)
    assert due.since.probe == Probe.SNAPSHOT
    assert (due.start, due.end, due.pages) == (*place(region), {1: 6 * PAGE})
    rows = aggregate.report(kernel.trace())[aggregate.WOULD_BE]
    assert [row["since"] for row in rows] == ["before"]
    shown = document.check(check(kernel.trace()))["shadow"]["vmas"]
    assert shown[0]["since"]["before"] is True


def test_it_is_the_profile_that_asks() -> None:
    """RFC V2 tags at a fault and at mbind(MPOL_BIND), and for good."""
    kernel, task = stock()
    bound_to, preferred = task.mmap(3), task.mmap(3)
    task.mbind(bound_to.start, 3)
    task.mbind(preferred.start, 3, PREFERRED)
    task.mbind(bound_to.start, 3, DEFAULT)
    by_intended, by_patches = dues(kernel), dues(kernel, "rfc-v2")
    assert [d.until is None for d in by_intended] == [False, True]
    assert [(d.start, d.clause, d.until) for d in by_patches] == [
        (bound_to.start, "set", None)
    ]


@pytest.mark.parametrize(
    ("probe", "matters"), [("mbind_range", True), ("rmap_add", True), ("task", False)]
)
def test_what_is_lost_makes_it_uncertain(probe: str, matters: bool) -> None:
    kernel, task = stock()
    task.mbind(task.mmap(3).start, 3)
    kernel.lose(probe, kernel.events[0].ts)
    result = check(kernel.trace())
    assert result.shadow
    assert (result.shadow.why is not None) is matters
    text = divergence.check(document.check(result))
    assert (f"not certain: events lost: 1 of {probe}" in text) is matters


def test_a_probe_that_was_left_out_makes_it_uncertain() -> None:
    kernel, task = stock()
    task.mbind(task.mmap(3).start, 3)
    kernel.probes["vma_split"] = None
    result = check(kernel.trace())
    assert result.shadow
    assert result.shadow.why == "probe not attached: vma_split"


def test_the_document_obeys_its_schema() -> None:
    shown = document.check(check(stock_story()))
    for one_of_them in shown["shadow"]["vmas"]:
        if one_of_them["until"]:
            assert not one_of_them["holds"]
    assert {one_of_them["holds"] for one_of_them in shown["shadow"]["vmas"]} == {
        *(True, False)
    }
    validator = jsonschema.Draft202012Validator(SCHEMA)
    validator.validate(json.loads(json.dumps(shown)))
    assert len(shown["shadow"]["vmas"]) > 20
    del shown["shadow"]["vmas"][0]["since"]
    assert not validator.is_valid(shown)
    # A document of an older cdmtrace has none, and is as good as ever.
    del shown["shadow"]
    validator.validate(shown)


def test_the_text() -> None:
    kernel, task = stock()
    asked, left, moved = task.mmap(23), task.mmap(4), task.mmap(41)
    for region in (asked, left):
        task.mbind(region.start, region.pages)
        task.faults(region)
    task.mbind(left.start, 4, BIND, RAM)
    task.faults(moved)
    task.move_pages([moved.page(n) for n in range(41)], 1)
    bare = task.mmap(2)
    task.mbind(bare.start, 2)
    unmap(task, asked)
    text = divergence.check(document.check(check(kernel.trace())))
    since = [f"{due.since.ts / 1e9:.6f}" for due in dues(kernel)]
    until = [due.until for due in dues(kernel)]
    assert until[1] is not None
    table = text[text.index("VMAs that would") : text.index("story.arrows: ")]
    assert (
        table
        == f"""\
VMAs that would have to be tagged: 4
  pid  VMA                        why    pages      since (s)    until (s)
-----  -------------------------  -----  -------  -----------  -----------
  {task.pid}  {moved.start:x}-{moved.end:x}  G      N1=41       {since[2]}            -
  {task.pid}  {asked.start:x}-{asked.end:x}  P      N1=23       {since[0]}         gone
  {task.pid}  {left.start:x}-{left.end:x}  P      N1=4        {since[1]}     \
{until[1].ts / 1e9:.6f}
  {task.pid}  {bare.start:x}-{bare.end:x}  P      none        {since[3]}            -
G: an explicit request put a page of a CDM node there
P: its own policy names a CDM node

"""
    )
    assert max(map(len, text.splitlines())) < 80
    assert (
        "shadow mode: this kernel has no VM_CDM, and rules about it are unchecked\n"
        in text
    )


def test_the_text_ends_after_twenty() -> None:
    kernel, task = stock()
    for pages in range(1, 24):
        task.mbind(task.mmap(pages).start, pages)
    text = divergence.check(document.check(check(kernel.trace())))
    assert "VMAs that would have to be tagged: 23\n" in text
    assert "and 3 more: --format json\n" in text


def test_the_table_of_report(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kernel, task = stock()
    few, many = task.mmap(5), task.mmap(9)
    for region in (few, many):
        task.mbind(region.start, region.pages)
        task.faults(region)
    task.mbind(few.start, 5, DEFAULT)
    path = save(kernel.trace(), tmp_path / "x.arrows")
    assert main(["report", "--format", "json", str(path)]) == 0
    tables = json.loads(capsys.readouterr().out)
    first, second = dues(kernel)
    assert first.until is not None
    assert tables["VMAs that would have to be tagged"] == [
        {
            "pid": task.pid,
            "comm": "story",
            "VMA": f"{region.start:x}-{region.end:x}",
            "why": "P: policy",
            "node 1": region.pages,
            "since": f"{due.since.ts / 1e9:.6f}",
            "until": until,
        }
        for region, due, until in (
            (many, second, "-"),
            (few, first, f"{first.until.ts / 1e9:.6f}"),
        )
    ]


def test_every_verb_takes_such_a_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = str(save(stock_story(), tmp_path / "x.arrows"))
    for form in ("table", "json", "ndjson", "csv", "markdown"):
        assert main(["report", "--format", form, path]) == 0
        assert "VMAs that would have to be tagged" in capsys.readouterr().out
    assert main(["info", path]) == 0
    (finding,) = check(load(path)).findings
    assert main(["explain", path, finding.fingerprint]) == 0
    assert "Required" in capsys.readouterr().out
    assert main(["check", "--profile", "rfc-v2", path]) == 0
    assert main(["explain", "CDM014"]) == 0
    assert "shadow mode" in capsys.readouterr().out
    assert main(["explain", "CDM001"]) == 0
    assert "shadow mode" not in capsys.readouterr().out
