"""The audit: what the model holds against what the simulated kernel counts."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path

import jsonschema
import pytest
from msgspec.structs import replace
from simfile import save
from simkernel import BIND, DEFAULT, HUGE, PAGE, PREFERRED, Region, SimKernel, Task, Vma

from cdmtrace.analysis import check, document, load
from cdmtrace.analysis.audit import Audit
from cdmtrace.cli import main
from cdmtrace.events import Bit, EventKind
from cdmtrace.render import divergence

ROOT = Path(__file__).resolve().parents[2]
SCHEMA = json.loads((ROOT / "cdmtrace/schemas/check-1.json").read_text())


@pytest.fixture
def kernel() -> SimKernel:
    """One that was looked at when nothing was there yet."""
    kernel = SimKernel()
    kernel.looked()
    return kernel


def held(task: Task, pages: int, mode: int = BIND) -> Region:
    """Map pages of the CDM node, or, with DEFAULT, of RAM."""
    vma = task.mmap(pages)
    task.mbind(vma.start, pages, mode)
    task.faults(vma)
    return vma


def forget(kernel: SimKernel, kind: EventKind, *addrs: int) -> None:
    """Drop rows of a kind at these addresses, as a probe that was never thought of."""
    left = [e for e in kernel.events if e.kind != kind or e.addr not in addrs]
    assert len(kernel.events) - len(left) == len(addrs)
    kernel.events[:] = left


def audited(kernel: SimKernel) -> Audit:
    audit = check(kernel.trace(), rules=()).audit
    assert audit
    return audit


def test_no_look_no_audit(kernel: SimKernel) -> None:
    held(kernel.process(), 3)
    assert check(kernel.trace(), rules=()).audit is None


@pytest.mark.parametrize(("everything", "ram"), [(False, 0), (True, 5)])
def test_model_and_kernel_agree(everything: bool, ram: int) -> None:
    """Nodes of RAM count where the recording tells of them, and nowhere else."""
    kernel = SimKernel(everything=everything)
    kernel.looked()
    task = kernel.process()
    vma = held(task, 7)
    other = task.mmap(4)
    task.faults(other)
    huge = task.mmap(HUGE // PAGE, at=0x200000000000)
    task.mbind(huge.start, huge.pages, PREFERRED)
    task.fault(huge.start, huge=True)
    task.move_pages([vma.page(2)], 0)
    task.dontneed(vma.page(3), 1)
    for _ in range(2):
        kernel.look(task)
    pages = 5 + HUGE // PAGE + ram
    assert audited(kernel) == Audit(
        looks=2, vmas=6, pages=2 * pages, moving=0, unknown=0, differences=()
    )


@pytest.mark.parametrize(
    ("kind", "model", "counted"),
    [(EventKind.MAP, 4, 5), (EventKind.UNMAP, 5, 4)],
)
def test_a_row_that_was_forgotten_is_a_difference(
    kernel: SimKernel, kind: EventKind, model: int, counted: int
) -> None:
    task = kernel.process()
    vma, other = held(task, 5), held(task, 3)
    if kind == EventKind.UNMAP:
        task.dontneed(vma.page(2), 1)
    kernel.look(task)
    forget(kernel, kind, vma.page(2))
    audit = audited(kernel)
    (one,) = audit.differences
    assert (one.pid, one.mm, one.start, one.end) == (
        task.pid,
        task.mm.id,
        vma.start,
        vma.end,
    )
    assert (dict(one.model), dict(one.kernel)) == ({1: model}, {1: counted})
    row = next(e for e in kernel.events if e.seq == one.seq)
    assert (row.kind, row.start) == (EventKind.SNAP_VMA, vma.start)
    assert (audit.vmas, audit.pages) == (2, counted + other.pages)


def test_a_page_on_the_wrong_node_is_a_difference() -> None:
    kernel = SimKernel(everything=True)
    kernel.looked()
    task = kernel.process()
    vma = task.mmap(3)
    task.faults(vma)
    kernel.look(task)
    # All of them are on node 0.
    kernel.events[:] = [
        replace(e, node=1) if e.kind == EventKind.SNAP_PAGES else e
        for e in kernel.events
    ]
    (one,) = audited(kernel).differences
    assert (dict(one.model), dict(one.kernel)) == ({0: 3}, {1: 3})


def gone_unseen(kernel: SimKernel, mode: int = BIND) -> tuple[Task, Region]:
    """Unmap a VMA of three pages and tell nobody."""
    task = kernel.process()
    vma = held(task, 3, mode)
    held(task, 2)
    first = len(kernel.events)
    task.munmap(vma.start, 3)
    del kernel.events[first:]
    return task, vma


@pytest.mark.parametrize(("mode", "node"), [(BIND, 1), (DEFAULT, 0)])
def test_pages_in_a_vma_that_the_kernel_does_not_show(mode: int, node: int) -> None:
    kernel = SimKernel(everything=True)
    kernel.looked()
    task, vma = gone_unseen(kernel, mode)
    kernel.look(task)
    audit = audited(kernel)
    (one,) = audit.differences
    assert (one.start, one.end) == (vma.start, vma.end)
    assert (dict(one.model), dict(one.kernel)) == ({node: 3}, {})
    row = next(e for e in kernel.events if e.seq == one.seq)
    assert row.kind == EventKind.SNAP_MM
    assert (audit.looks, audit.vmas, audit.pages) == (1, 1, 2)


def test_a_vma_that_comes_behind_the_look_is_no_stray(kernel: SimKernel) -> None:
    task = kernel.process()
    held(task, 2)
    kernel.look(task, lambda _: held(task, 3))
    assert audited(kernel).differences == ()


def test_pages_that_move_during_the_look_are_no_strays(kernel: SimKernel) -> None:
    """Behind the VMA that is being counted, into what was not shown any more."""
    task = kernel.process()
    vma, last = held(task, 2), held(task, 3)

    def move(counted: Vma) -> None:
        if counted.start == last.start:
            task.mremap(vma, 2, to=0x80000000000)

    kernel.look(task, move)
    assert audited(kernel).differences == ()


@pytest.mark.parametrize(
    ("what", "left_out", "pages"), [("own", 1, 3), ("other", 0, 8), ("move", 2, 0)]
)
def test_a_vma_that_changes_during_its_count_is_left_out(
    kernel: SimKernel, what: str, left_out: int, pages: int
) -> None:
    """A page comes to it, or to another one; a MOVE is from and to anywhere."""
    task = kernel.process()
    vma, other = held(task, 5), held(task, 3)
    missing = {"own": vma.page(2), "other": other.page(2), "move": vma.page(2)}[what]
    task.dontneed(missing, 1)

    def change(counted: Vma) -> None:
        if counted.start == vma.start:
            task.fault(missing)
        if what == "move":
            task.row(EventKind.MOVE, addr=1 << 40, size=PAGE, other=1 << 41)

    kernel.look(task, change)
    audit = audited(kernel)
    assert (audit.moving, audit.vmas, audit.pages) == (left_out, 2 - left_out, pages)
    assert audit.differences == ()


def test_a_page_that_goes_and_was_never_seen_to_come_hides_nothing(
    kernel: SimKernel,
) -> None:
    """Two ways in that nobody thought of; one of the pages goes by a known way."""
    task = kernel.process()
    vma = held(task, 5)
    forget(kernel, EventKind.MAP, vma.page(1), vma.page(2))
    task.dontneed(vma.page(1), 1)
    kernel.look(task)
    (difference,) = audited(kernel).differences
    assert (difference.model, difference.kernel) == ({1: 3}, {1: 4})


def test_who_was_not_looked_at_may_hold_what_nobody_saw(kernel: SimKernel) -> None:
    """record --pid looks at one process: what others hold is not known."""
    kernel.events[-1] = replace(kernel.events[-1], pid=1)
    task = kernel.process()
    held(task, 3)
    kernel.look(task)
    assert check(kernel.trace(), rules=()).audit is None


def test_what_happens_between_two_counts_is_compared(kernel: SimKernel) -> None:
    task = kernel.process()
    vma = held(task, 5)
    kernel.look(task)
    task.dontneed(vma.page(2), 1)
    kernel.look(task)
    audit = audited(kernel)
    assert (audit.moving, audit.vmas, audit.pages) == (0, 2, 9)
    assert audit.differences == ()


@pytest.mark.parametrize(
    ("place", "unknown"), [("vma", 1), ("mm", 2), ("any", 3), ("later", 0)]
)
def test_losses_leave_out_what_they_may_touch(
    kernel: SimKernel, place: str, unknown: int
) -> None:
    task, other = kernel.process(), kernel.process()
    vma = held(task, 5)
    held(task, 3)
    held(other, 2)
    kernel.look(task)
    kernel.look(other)
    mm = {"mm": task.mm.id}
    where = {
        "vma": {**mm, "start": vma.start, "end": vma.end},
        "mm": mm,
        "any": {},
        "later": {},
    }[place]
    kernel.lose("rmap_add", kernel.now + 1 if place == "later" else 0, **where)
    audit = audited(kernel)
    assert (audit.unknown, audit.vmas) == (unknown, 3 - unknown)


def test_losses_of_a_probe_that_tells_of_no_page_cost_nothing(
    kernel: SimKernel,
) -> None:
    task = kernel.process()
    held(task, 3)
    kernel.look(task)
    kernel.lose("ksm_madvise", 0)
    assert audited(kernel).unknown == 0


def test_a_vma_whose_pages_are_not_known_is_left_out(kernel: SimKernel) -> None:
    """A KSM page went from it, and no address says which."""
    task = kernel.process()
    vma, other = held(task, 5), held(task, 3)
    task.unmap(vma.page(2))
    row = kernel.events.pop()
    kernel.events.append(replace(row, addr=0, bits=Bit.KSM, tid=row.tid + 1))
    kernel.look(task)
    audit = audited(kernel)
    assert (audit.unknown, audit.vmas, audit.pages) == (1, 1, other.pages)
    assert audit.differences == ()


def test_strays_are_not_told_where_events_are_lost(kernel: SimKernel) -> None:
    task, vma = gone_unseen(kernel)
    kernel.look(task)
    kernel.lose("rmap_remove", 0, mm=task.mm.id, start=vma.start, end=vma.end)
    assert audited(kernel).differences == ()


def test_a_look_before_everything_was_looked_at_is_not_compared() -> None:
    kernel = SimKernel()
    task = kernel.process()
    vma = held(task, 5)
    task.dontneed(vma.page(1), 2)
    kernel.look(task)
    assert check(kernel.trace(), rules=()).audit is None
    kernel.looked()
    task.fault(vma.page(1))
    kernel.look(task)
    audit = audited(kernel)
    assert (audit.looks, audit.vmas, audit.pages) == (1, 1, 4)
    assert audit.differences == ()


def test_what_was_there_before_is_compared_later() -> None:
    kernel = SimKernel()
    task = kernel.process()
    vma = held(task, 5)
    kernel.look_before(task)
    kernel.looked()
    task.dontneed(vma.page(1), 1)
    kernel.look(task)
    audit = audited(kernel)
    assert (audit.vmas, audit.pages) == (1, 4)
    assert audit.differences == ()


def test_an_mm_that_ends_while_it_is_looked_at(kernel: SimKernel) -> None:
    """The row that ends the look comes after the end; the id goes to somebody else."""
    first = kernel.process()
    held(first, 5)
    kernel.look(first)
    end_of_look = kernel.events.pop()
    first.exit()
    kernel.events.append(replace(end_of_look, seq=len(kernel.events) + 1))
    second = kernel.process()
    second.mm.id = first.mm.id
    vma = held(second, 3)
    second.dontneed(vma.page(0), 1)
    kernel.look(second)
    result = check(kernel.trace(), rules=())
    assert [life.mm.pid for life in result.lives] == [first.pid, second.pid]
    assert [life.mm.generation for life in result.lives] == [0, 1]
    audit = audited(kernel)
    assert (audit.looks, audit.vmas, audit.differences) == (1, 2, ())


def test_an_audit_that_compared_nothing_is_no_clean_one(tmp_path: Path) -> None:
    """What was there when the recording began is never told."""
    kernel = SimKernel()
    task = kernel.process()
    held(task, 5)
    for _ in range(3):
        kernel.look(task)
    audit = audited(kernel)
    assert (audit.looks, audit.vmas, audit.unknown) == (0, 0, 2)
    file = save(kernel.trace(), tmp_path / "x.arrows")
    assert main(["check", str(file)]) == 3
    assert main(["check", "--allow-inconclusive", str(file)]) == 0


def test_a_look_of_which_rows_are_lost_tells_not_all() -> None:
    kernel = SimKernel()
    task = kernel.process()
    held(task, 5)
    kernel.lose("snapshot", 0)
    kernel.looked()
    for _ in range(2):
        kernel.look(task)
    audit = audited(kernel)
    assert (audit.vmas, audit.unknown) == (0, 1)


# --- how it is told ------------------------------------------------------------

SAME = """\
audit: the model held against numa_maps: 2 VMAs with 8 pages, in 1 look at an
address space
audit: no difference"""
DIFFERENT = """\
audit: the model held against numa_maps: 1 VMA with 5 pages, in 1 look at an
address space; 1 left out, their pages came or went just then; 1 left out,
their events are lost or what they held at first is not known
audit: 1 DIFFERENCE. This is an error of cdmtrace, not of the kernel: trust
nothing above, and report it with the trace.
  pid {pid}, {start:x}-{end:x}, row {seq}
  - kernel   N1=5
  + model    N1=4"""


def agreeing(kernel: SimKernel) -> None:
    task = kernel.process()
    held(task, 5)
    held(task, 3)
    kernel.look(task)


def differing(kernel: SimKernel) -> tuple[Task, Region]:
    """One VMA that differs, one that moves, one of which events are lost."""
    task = kernel.process()
    vma, moving, lost = held(task, 5), held(task, 3), held(task, 2)
    task.dontneed(moving.start, 1)

    def come(counted: Vma) -> None:
        if counted.start == moving.start:
            task.fault(moving.start)

    kernel.look(task, come)
    forget(kernel, EventKind.MAP, vma.page(2))
    kernel.lose("rmap_add", 0, mm=task.mm.id, start=lost.start, end=lost.end)
    return task, vma


def test_the_text(kernel: SimKernel) -> None:
    agreeing(kernel)
    told = document.check(check(kernel.trace(), rules=()))
    assert divergence.audit(told["audit"]) == SAME
    assert SAME in divergence.check(told)


def test_the_text_of_a_difference(kernel: SimKernel) -> None:
    task, vma = differing(kernel)
    told = document.check(check(kernel.trace(), rules=()))["audit"]
    (one,) = told["differences"]
    assert divergence.audit(told) == DIFFERENT.format(
        pid=task.pid, start=vma.start, end=vma.end, seq=one["seq"]
    )


def test_a_difference_to_nothing_and_more_than_are_shown(kernel: SimKernel) -> None:
    task, _ = gone_unseen(kernel)
    for _ in range(divergence.SHOWN + 2):
        kernel.look(task)
    told = document.check(check(kernel.trace(), rules=()))["audit"]
    lines = divergence.audit(told).splitlines()
    assert lines.count("  - kernel   none") == divergence.SHOWN
    assert lines.count("  + model    N1=3") == divergence.SHOWN
    assert lines[-1] == "  and 2 more: --format json"


@pytest.mark.parametrize(("tell", "status"), [(agreeing, 0), (differing, 2)])
def test_the_command_line(
    kernel: SimKernel,
    tell: Callable[[SimKernel], object],
    status: int,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A model that is wrong is trouble, whatever the rules say."""
    tell(kernel)
    path = str(save(kernel.trace(), tmp_path / "x.arrows"))
    args = ["check", "--allow-inconclusive", path]
    assert main(args) == status
    assert "audit: the model held against numa_maps" in capsys.readouterr().out
    assert main([*args, "--format", "json"]) == status
    shown = json.loads(capsys.readouterr().out)
    jsonschema.Draft202012Validator(SCHEMA).validate(shown)
    differences = shown["audit"]["differences"]
    assert len(differences) == (status == 2)
    for one in differences:
        assert (one["model"], one["kernel"]) == ({"N1": 4}, {"N1": 5})


def test_trouble_comes_before_findings(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kernel = SimKernel("one-way")
    kernel.looked()
    task, _ = differing(kernel)
    vma = held(task, 1)
    task.dontneed(vma.start, 1)
    task.mbind(vma.start, 1, DEFAULT)
    path = save(kernel.trace(), tmp_path / "x.arrows")
    assert main(["check", str(path)]) == 2
    assert "CDM001" in capsys.readouterr().out


def test_everything_that_was_recorded_survives_the_file(tmp_path: Path) -> None:
    """--all is in the header."""
    kernel = SimKernel(everything=True)
    kernel.looked()
    task = kernel.process()
    task.faults(task.mmap(3))
    kernel.look(task)
    path = save(kernel.trace(), tmp_path / "x.arrows")
    audit = check(load(path), rules=()).audit
    assert audit
    assert (audit.pages, audit.differences) == (3, ())


def test_the_control_is_found_at_the_first_look_that_counts_it(
    kernel: SimKernel,
) -> None:
    """Of scripts/audit.py, whose control would take as long as the audit, else."""
    spec = importlib.util.spec_from_file_location("script", ROOT / "scripts/audit.py")
    assert spec
    assert spec.loader
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    task, other = kernel.process(), kernel.process()
    held(task, 5)
    held(other, 3)
    for _ in range(3):
        kernel.look(other)
        kernel.look(task)
    trace = kernel.trace()
    without, row, told = script.forgetful(trace)
    assert without.count == trace.count - 1
    assert without.events[row].kind == EventKind.SNAP_PAGES
    part = script.until_counted(without, row)
    assert part.events[-1].kind == EventKind.SNAP_MM
    assert part.events[-1].mm == without.events[row].mm
    looks = [e for e in without.events if e.kind == EventKind.SNAP_MM]
    assert part.events[-1] in looks[: len(looks) // 2]
    audit = check(part, rules=()).audit
    assert audit
    assert len(audit.differences) == 1
    assert script.control(trace) == (True, told)
