"""CDM003, CDM004 and CDM018 on a kernel of Debian's that nobody has patched.

And shadow mode: it has no VM_CDM, and a program that gets pages of node 1 says which.
And private nodes: which services of that kernel touch pages of node 1, one a step.

The control is a module of ours, which writes vm_flags of chosen VMAs without the lock,
with it held for read, and for write; its scenario says which VMAs these are. All other
programs of the recording change flags thousands of times as this kernel does: of them
nothing may be found. What this kernel does wrong itself is in vfio, whose fault handler
writes them under the lock for read: docs/read-locked-remap.md.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections import Counter
from pathlib import Path

import pytest
from labrun import by_libbpf, lab_run
from places import Place, places
from scenariotap import failures

from cdmtrace.analysis import check, describe, load, status
from cdmtrace.analysis.permissions import Permissions
from cdmtrace.analysis.result import Result, Verdict
from cdmtrace.events import EventKind, Lock, Probe, mmap_lock
from cdmtrace.lab import kernels
from cdmtrace.lab.paths import Layout
from cdmtrace.lab.scenarios import compile_scenario, find_scenario
from cdmtrace.lab.specs import find_spec

pytestmark = pytest.mark.timeout(3600)

FORCE = os.environ.get("CDMTRACE_KERNEL_TESTS", "")
HERE = Path(__file__).parent
KERNEL = "debian-6.1"
WRITERS = ("CDM003", "CDM004", "CDM018")
"""Rules about writes of vm_flags, whatever the flag."""
STEPS = {"unlocked", "read", "write", "lost", "kept", "readers"}
WRITES = 5
"""VMAs of each step."""
STATUS = 17
SCRIPT = """
here=$1 python=$2 vfio=$3 services=$4
shift 4
sh "$here/ordinary.sh" "$python" "$@" &&
	"$python" "$here/stock.py" "$vfio" "$services"
"""
"""What is recorded; then the same writes again, watched, and those of vfio; then shadow
mode, and what services of the kernel do to pages of a node."""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run directory of a guest with the module and ordinary programs."""
    if FORCE != "1" and kernels.find(find_spec(KERNEL), Layout.default()) is None:
        pytest.skip(f"it is not here (cdmtrace lab build --kernel {KERNEL})")
    tmp_path = tmp_path_factory.mktemp("stock")
    programs = [
        str(compile_scenario(find_scenario(name), Layout.default()))
        for name in ("vfio", "services")
    ]
    words = ("sh", "-c", SCRIPT, "sh", str(HERE), sys.executable, *programs)
    result = lab_run(
        tmp_path,
        *("--kernel", KERNEL, "--timeout", "3300", "--scenario", "flag_writer"),
        *("--device", "intel-iommu", "--device", "edu", "--", *by_libbpf(*words)),
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return tmp_path / "run"


@pytest.fixture(scope="module")
def told(run: Path) -> list[Place]:
    """What the scenario says."""
    return places((run / "scenario.tap").read_text().splitlines())


@pytest.fixture(scope="module")
def result(run: Path) -> Result:
    """What the recording shows."""
    return check(load(run / "ordinary.arrows"))


def test_every_step_comes_out(run: Path, told: list[Place]) -> None:
    lines = (run / "scenario.tap").read_text().splitlines()
    assert failures(lines) == []
    assert {place.step for place in told} == STEPS
    assert len(told) == 9 * WRITES


def test_the_module_holds_the_lock_that_it_is_told(
    told: list[Place], result: Result
) -> None:
    """Otherwise the control would be one of something else."""
    held = {"unlocked": Lock.NONE, "read": Lock.READ, "write": Lock.WRITE_SELF}
    for place in told:
        if place.step in held:
            writes = [
                event
                for event in result.trace.events
                if event.probe == Probe.ALLOC
                and event.start == place.start
                and event.flags_before != event.flags_after
            ]
            assert [mmap_lock(event.lock_entry) for event in writes] == [
                held[place.step]
            ]


def test_what_the_module_does_is_found_where_it_does_it(
    told: list[Place], result: Result
) -> None:
    wrong = [
        place
        for place in told
        if place.shown is not None
        and any(map(place.met_by, result.findings)) is not place.shown
    ]
    assert wrong == []
    shown = Counter(place.rule for place in told if place.shown)
    # Whether two come between load and store together is chance, each time anew.
    for rule in ("CDM004", "CDM018"):
        assert 0 < shown.pop(rule) <= WRITES
    assert shown == {"CDM003": 4 * WRITES}


def test_nothing_is_found_of_anybody_else(told: list[Place], result: Result) -> None:
    assert result.trace.lost == 0
    written_wrongly, perhaps = (
        {(place.rule, place.pid, place.start) for place in told if place.shown is shown}
        for shown in (True, None)
    )
    found = {(one.rule.id, one.mm.pid, one.start) for one in result.findings}
    assert found - perhaps == written_wrongly


def test_thousands_of_changes_were_judged(result: Result) -> None:
    checked = {one.rule.id: one.checked for one in result.rules}
    assert min(checked[rule] for rule in WRITERS) > 5000


# --- what watch sees of a process that has the module do the same ---------------


@pytest.fixture(scope="module")
def watched(run: Path) -> Result:
    return check(load(run / "watch.arrows"))


def written(result: Result, number: int) -> list[tuple[Lock, str, str]]:
    """Return lock, before and after of each write that a watchpoint saw."""
    return [
        (mmap_lock(event.lock_exit), *describe.flags(event, result.trace.terms))
        for event in result.trace.events
        if event.kind == EventKind.WRITE and event.arg == number
    ]


def test_it_ends_as_its_command_does(run: Path) -> None:
    said = (run / "watch.stderr").read_text()
    statuses = json.loads((run / "statuses.json").read_text())
    assert statuses == {"watch": STATUS, "vfio": 0, "shadow": 0, "services": 0}
    assert "the command ended; " in said
    assert ", 0 lost, " in said


def test_every_write_is_told_with_its_lock(watched: Result) -> None:
    """By the module, and the madvise() that takes it back."""
    undone = (Lock.WRITE_SELF, "dc", "-")
    assert written(watched, 0) == [
        write
        for lock in (Lock.NONE, Lock.READ, Lock.WRITE_SELF)
        for write in [(lock, "-", "dc"), undone] * WRITES
    ]


def test_a_write_that_undoes_another_is_seen_to_do_so(watched: Result) -> None:
    """Each time madvise() comes between load and store of the module, or it does not:
    then it finds the module's flag there."""
    by_module = [w for w in written(watched, 1) if w[0] == Lock.NONE]
    undoing = by_module.count((Lock.NONE, "dd", "dc"))
    assert len(by_module) == WRITES
    assert undoing > 0
    lost = [one for one in watched.findings if one.rule.id == "CDM004"]
    assert len(lost) == undoing
    for one in lost:
        assert one.witness[0].what.startswith("written by do_madvise+0x")


def test_the_second_of_two_that_write_the_same_is_a_write(watched: Result) -> None:
    """Two that are seen at once show what both have made, and say that it is so."""
    told = Counter(w for w in written(watched, 2) if w[0] == Lock.READ)
    first, second = (Lock.READ, "-", "dc"), (Lock.READ, "-", "-")
    overlapped = sum(
        event.kind == EventKind.WRITE and event.arg == 2 and event.ret != 0
        for event in watched.trace.events
    )
    assert told.total() == 2 * WRITES
    assert set(told) == {first, second}
    assert 0 <= told[first] - WRITES <= overlapped // 2


def test_check_names_the_function(watched: Result) -> None:
    unlocked = [one for one in watched.findings if one.rule.id == "CDM003"]
    assert {one.cause for one in unlocked} == {"in_allocation"}
    assert len(unlocked) == (2 + 1 + 2) * WRITES
    others = {one.rule.id for one in watched.findings} - {"CDM003"}
    assert others == {"CDM004", "CDM018"}


def test_debug_registers_that_others_have(run: Path) -> None:
    assert (run / "taken.status").read_text() == "125"
    said = (run / "taken.stderr").read_text()
    assert "no debug register of cpu 0 is left: there are 4" in said
    assert not (run / "taken.arrows").exists()


# --- what watch sees of vfio, which nobody has changed ----------------------------


@pytest.fixture(scope="module")
def vfio(run: Path) -> Result:
    return check(load(run / "vfio.arrows"))


@pytest.fixture(scope="module")
def bar(run: Path) -> Place:
    """The VMA that the scenario vfio saw a flag come to, at its first access."""
    lines = (run / "vfio.tap").read_text().splitlines()
    assert failures(lines) == []
    (place,) = places(lines)
    assert (place.rule, place.shown) == ("CDM003", True)
    return place


def test_vfio_writes_the_flags_in_a_fault(vfio: Result) -> None:
    """Two writes of the handler: a flag comes, and four are set that were; then one of
    mprotect(), and one when all is unmapped at the end."""
    assert written(vfio, 0) == [
        (Lock.READ, "-", "ar"),
        (Lock.READ, "-", "-"),
        (Lock.WRITE_SELF, "wr", "-"),
        (Lock.READ, "ar", "-"),
    ]


def test_its_handler_is_among_the_callers(run: Path) -> None:
    told = (run / "vfio.stdout").read_text().split("#0 ")[1:]
    assert ["vfio_pci_mmap_fault+" in one for one in told] == [True, True, False, False]


def test_both_writes_of_the_handler_are_found_and_no_other(
    vfio: Result, bar: Place
) -> None:
    assert vfio.trace.lost == 0
    assert all(bar.met_by(one) for one in vfio.findings)
    # The second is in one of its parts, which have been given other names.
    first, second = (one.cause for one in vfio.findings)
    assert first == "track_pfn_remap"
    assert second.startswith("remap_pfn_range")
    checked = {one.rule.id: one.checked for one in vfio.rules}
    assert checked["CDM003"] == 3


# --- shadow mode ----------------------------------------------------------------


@pytest.fixture(scope="module")
def shadow(run: Path) -> Result:
    return check(load(run / "shadow.arrows"))


@pytest.fixture(scope="module")
def leaks(run: Path) -> dict[str, tuple[int, int, int]]:
    """What the program says: range and pages on node 1, by numa_maps."""
    said = json.loads((run / "shadow.stdout").read_text())
    told = {name: (start, end, pages) for name, (start, end, pages) in said.items()}
    assert [pages for _, _, pages in told.values()] == [23, 7, 31]
    return told


def test_it_says_that_it_is_in_shadow_mode(run: Path, shadow: Result) -> None:
    said = (run / "shadow.stderr").read_text()
    assert "cdmtrace: shadow mode: " in said
    assert ", 0 lost, " in said
    assert shadow.trace.terms.tag == 0


def test_what_would_have_to_be_tagged_there(
    shadow: Result, leaks: dict[str, tuple[int, int, int]]
) -> None:
    """By its own policy, or by request; and nothing that nobody has asked for."""
    assert shadow.shadow
    assert shadow.shadow.why is None
    pages = shadow.trace.terms.page
    assert [
        (due.clause, (due.start, due.end, due.pages.get(1, 0) // pages), due.ended)
        for _, due in shadow.shadow.vmas
    ] == [("P", leaks["asked"], False), ("G", leaks["moved"], False)]


def test_what_nobody_has_asked_for_is_a_leak(
    shadow: Result, leaks: dict[str, tuple[int, int, int]]
) -> None:
    # Python itself may fault while the task has its policy, and leaks then, too.
    assert {(one.rule.id, one.cause) for one in shadow.findings} == {
        ("CDM014", "fault")
    }
    found = [(one.start, one.end, one.count) for one in shadow.findings]
    assert leaks["leaked"] in found
    assert not any(
        start < end_of and start_of < end
        for start, end, _ in found
        for start_of, end_of, _ in (leaks["asked"], leaks["moved"])
    )
    unchecked = {
        one.rule.id for one in shadow.rules if one.verdict is Verdict.UNCHECKED
    }
    assert unchecked == {one.rule.id for one in shadow.rules if not one.rule.tagless}


# --- services that touch pages of a node ------------------------------------------

SERVICES = {
    *("mempolicy", "migration", "numa-balancing", "reclaim", "compaction"),
    *("longterm-pin", "ksm", "khugepaged", "mlock", "offline", "memory-failure"),
    "page-cache",
}
"""Those that the scenario has at work."""

SERVED = re.compile(
    r"# service step=\S+ service=(?P<service>\S+) pid=\d+ addr=\S+ in=(?P<came>\d+) "
    r"out=(?P<left>\d+) stay=(?P<stayed>\d+) exact=(?P<exact>yes|no)"
)

Pages = tuple[int, int, int]


@pytest.fixture(scope="module")
def counted(run: Path) -> dict[str, tuple[Pages, bool]]:
    """What the scenario counted, by service: pages, and whether these are all."""
    lines = (run / "services.stdout").read_text().splitlines()
    assert failures(lines) == []
    told: dict[str, tuple[Pages, bool]] = {}
    for match in filter(None, map(SERVED.fullmatch, lines)):
        (came, left, stayed), exact = told.get(match["service"], ((0, 0, 0), True))
        told[match["service"]] = (
            (
                came + int(match["came"]),
                left + int(match["left"]),
                stayed + int(match["stayed"]),
            ),
            exact and match["exact"] == "yes",
        )
    return told


@pytest.fixture(scope="module")
def served(run: Path) -> Result:
    result = check(load(run / "services.arrows"), profile="np")
    assert result.trace.lost == 0
    assert result.services.why is None
    return result


def test_every_service_was_at_work(counted: dict[str, tuple[Pages, bool]]) -> None:
    assert set(counted) == SERVICES


def test_the_table_has_what_each_service_did(
    counted: dict[str, tuple[Pages, bool]], served: Result
) -> None:
    found = {
        cell.service.name: (cell.came, cell.left, cell.stayed)
        for cell in served.services.cells
        if cell.pages
    }
    assert set(found) == set(counted)
    for service, (pages, exact) in counted.items():
        if exact:
            assert found[service] == pages, service
        else:
            # How often the scanner comes by, and what compaction tries, is its own.
            assert found[service][:2] == pages[:2], service
            assert found[service][2] >= pages[2] > 0, service


def test_who_it_was(served: Result) -> None:
    by = {cell.service.name: set(cell.by) for cell in served.services.cells if cell.by}
    daemons = {"ksm": {"ksmd"}, "khugepaged": {"khugepaged"}}
    assert by == {name: daemons.get(name, {"services"}) for name in SERVICES}


def test_what_was_not_seen_is_said(served: Result) -> None:
    """The others could have been seen, and were not at work."""
    unchecked = {cell.service.name for cell in served.services.cells if cell.unchecked}
    assert unchecked == {"protect-write", "oom-eligible"}


def test_what_is_not_allowed_is_found(run: Path, served: Result) -> None:
    (rule,) = (one for one in served.rules if one.rule.id == "CDM021")
    assert rule.verdict is Verdict.VIOLATED
    causes = {one.cause for one in served.findings if one.rule.id == "CDM021"}
    assert causes == SERVICES - {"mempolicy"}
    but_ksm = Permissions(more={1: frozenset(SERVICES - {"ksm"})})
    again = check(load(run / "services.arrows"), profile="np", permissions=but_ksm)
    (one,) = again.findings
    assert (one.rule.id, one.cause, one.count) == ("CDM021", "ksm", 17)
    all_of_them = Permissions(more={1: frozenset(SERVICES)})
    again = check(load(run / "services.arrows"), profile="np", permissions=all_of_them)
    assert status.verdict(again, named=False) is Verdict.CLEAN
