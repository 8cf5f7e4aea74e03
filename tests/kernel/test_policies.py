"""The policies scenario, recorded: policies that others change, and pages by them.

That each step comes out as it says, the program judges itself, by numa_maps, smaps
and the nodes of its pages. Here its recording is held against its lines: each
VMA that a cpuset has rebound, and nothing else; each page of the CDM node that has
come by the policy of a file, of a task or of its VMA, and by which of them. Without
the rows that the two probes tell, it must no longer agree.
"""

from __future__ import annotations

import re
import shlex
import sys
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from labrun import by_libbpf, found_under, lab_run
from msgspec.structs import replace
from scenariotap import failures

from cdmtrace.analysis import check, load
from cdmtrace.analysis.frames import Event, Trace
from cdmtrace.analysis.notes import Arrived, Note
from cdmtrace.analysis.result import Mm, Result
from cdmtrace.events import Bit, Cause, EventKind, Lock, Mpol, MpolFlag, Probe
from cdmtrace.lab import quirks, scenarios
from cdmtrace.lab.paths import Layout

pytestmark = pytest.mark.timeout(3600)

PAGE = 4096
ARENA = range(0x100000000000, 0x100000000000 + (64 << 30))
NAMES = (quirks.NONE, "no-rebind", "shared-policy", quirks.RFC)
STEPS = ("mems", "attach", "memfd", "sysv", "tmpfs", "task")
FOUND = {
    quirks.NONE: set(),
    "no-rebind": {("CDM001", "cpuset"), ("CDM002", "interleave")},
    # The VMA that the page came to has no tag: its own policy is not what brought it.
    "shared-policy": {("CDM002", "file"), ("CDM002", "fault")},
    quirks.RFC: {
        ("CDM001", "cpuset"),
        ("CDM002", "interleave"),
        ("CDM002", "file"),
        ("CDM003", "fault"),
        ("CDM014", "file"),
    },
}
"""Quirks -> (rule, cause) of every finding."""
LINE = re.compile(r"# (rebound|moved|arrived) step=(\S+) (.*)")

Rebound = tuple[int, int, int, int, int, bool, bool]
"""pid, start, end, nodes before and after, tag before and after."""

Arrival = tuple[int, int, str, str, bool]
"""pid, addr, way, whose policy, whether allocated for that VMA."""


@dataclass(frozen=True)
class Run:
    """One run of the program: its status and its TAP."""

    status: int
    tap: tuple[str, ...]

    def lines(self, event: str) -> list[dict[str, str]]:
        """Return the fields of the lines about one kind of event."""
        matches = [LINE.fullmatch(line) for line in self.tap]
        return [
            dict(word.split("=", 1) for word in match[3].split()) | {"step": match[2]}
            for match in matches
            if match and match[1] == event
        ]

    @property
    def pids(self) -> set[int]:
        """The processes that its lines are about."""
        return {
            int(line["pid"])
            for event in ("rebound", "moved", "arrived")
            for line in self.lines(event)
        }

    @property
    def rebound(self) -> Counter[Rebound]:
        """What it says that cpusets have changed."""
        return Counter(
            (
                int(line["pid"]),
                int(line["addr"], 16),
                int(line["addr"], 16) + int(line["span"]) * PAGE,
                int(line["from"], 16),
                int(line["to"], 16),
                line["tag"][0] == "1",
                line["tag"][2] == "1",
            )
            for line in self.lines("rebound")
        )

    @property
    def arrived(self) -> Counter[Arrival]:
        """What it says that has come."""
        return Counter(
            (int(line["pid"]), addr, line["way"], line["by"], line["here"] == "1")
            for line in self.lines("arrived")
            for addr in pages(line)
        )


def pages(line: dict[str, str]) -> range:
    start = int(line["addr"], 16)
    return range(start, start + int(line["span"]) * PAGE, PAGE)


@dataclass(frozen=True)
class Recording:
    """All runs, one after the other, in one recording."""

    runs: dict[str, Run]
    lies: dict[str, int]
    trace: Trace
    result: Result


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Recording:
    """The program under each set of quirks, in one boot, and lied to, unrecorded."""
    program = scenarios.compile_scenario(
        scenarios.find_scenario("policies"), Layout.default()
    )
    directory = tmp_path_factory.mktemp("policies")
    lies = [name for name in NAMES if name != quirks.NONE]
    runs = directory / "runs.sh"
    runs.write_text("".join(run_script(program, name, name) for name in NAMES))
    lied = "".join(run_script(program, name, quirks.NONE) for name in lies)
    words = [sys.executable, "-m", "cdmtrace", "record", "-o", "policies.arrows"]
    script = f"{shlex.join([*words, '--', 'sh', str(runs)])} || exit 1\n{lied}"
    guest = by_libbpf("sh", "-c", script)
    result = lab_run(directory, "--timeout", "3300", "--", *guest)
    assert result.returncode == 0, result.stdout + result.stderr
    trace = load(directory / "run" / "policies.arrows")
    return Recording(
        runs={name: read_run(directory / "run", f"{name}-{name}") for name in NAMES},
        lies={
            name: read_run(directory / "run", f"{name}-none").status for name in lies
        },
        trace=trace,
        result=check(trace),
    )


def run_script(program: Path, on: str, told: str) -> str:
    words = [str(program), "--quirks", quirks.as_argument(quirks.resolve(told))]
    return (
        f"echo {on} > {quirks.DEBUGFS_FILE}\n"
        f"{shlex.join(words)} > {on}-{told}.tap\n"
        f"echo $? > {on}-{told}.status\n"
    )


def read_run(directory: Path, name: str) -> Run:
    """Return what one run has left behind."""
    return Run(
        status=int((directory / f"{name}.status").read_text()),
        tap=tuple((directory / f"{name}.tap").read_text().splitlines()),
    )


# --- what a recording tells ---------------------------------------------------


def owners(trace: Trace) -> dict[tuple[int, int], int]:
    """Return (mm, generation) -> the process whose it is."""
    lives = check(trace, rules=()).lives
    return {(life.mm.id, life.mm.generation): life.mm.pid for life in lives}


def rebound(trace: Trace, run: Run) -> Counter[Rebound]:
    """Return the policies and tags that cpusets have changed in a run's processes."""
    owner, ended, found = owners(trace), Counter[int](), Counter[Rebound]()
    for event in trace.events:
        ended[event.mm] += event.kind == EventKind.MM_EXIT
        pid = owner.get((event.mm, ended[event.mm]), 0)
        if event.cause != Cause.CPUSET or event.kind != EventKind.POLICY:
            continue
        if pid in run.pids:
            found[
                pid,
                event.start,
                event.end,
                event.other,
                event.nodes,
                bool(event.flags_before & trace.terms.tag),
                bool(event.flags_after & trace.terms.tag),
            ] += 1
    return found


def arrived(trace: Trace, run: Run) -> Counter[Arrival]:
    """Return the pages of CDM nodes that came to the arenas of a run's processes."""
    found = Counter[Arrival]()

    def observe(mm: Mm, event: Event, note: Note) -> None:
        del event
        if isinstance(note, Arrived) and note.page.addr in ARENA:
            row = note.event
            by = "own" if note.named else "-"
            if row.policy & MpolFlag.SHARED:
                by = "shared"
            elif row.other_policy & 15 not in (Mpol.UNREAD, Mpol.DEFAULT):
                by = "task"
            elif not note.here:
                by = "-"
            found[mm.pid, note.page.addr, note.page.how, by, note.here] += 1

    check(trace, rules=(), observer=observe)
    return Counter({key: times for key, times in found.items() if key[0] in run.pids})


def without(trace: Trace, probe: Probe) -> Trace:
    """Return the trace as it would be if a probe had not been attached."""
    events: Sequence[Event] = [e for e in trace.events if e.probe != probe]
    if probe == Probe.SHARED_POLICY:
        # It has no rows of its own: it tells those of alloc which VMA, which policy.
        events = [unshared(e) if e.kind == EventKind.ALLOC else e for e in events]
    return replace(trace, events=events)


def unshared(event: Event) -> Event:
    mm = 0 if event.bits & Bit.UNLINKED else event.mm
    policy = 0 if event.policy & MpolFlag.SHARED else event.policy
    return replace(event, mm=mm, policy=policy)


# --- the program --------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_every_step_comes_out(recording: Recording, name: str) -> None:
    run = recording.runs[name]
    assert failures(run.tap) == []
    assert run.status == 0


@pytest.mark.parametrize("name", [name for name in NAMES if name != quirks.NONE])
def test_a_quirk_that_it_is_not_told_of_is_seen(
    recording: Recording, name: str
) -> None:
    assert recording.lies[name] == 1


def test_nothing_is_missing(recording: Recording) -> None:
    runs = recording.runs.values()
    told = {
        (event, line["step"])
        for run in runs
        for event in ("rebound", "moved", "arrived")
        for line in run.lines(event)
    }
    assert {step for _, step in told} == {*STEPS}
    assert {event for event, _ in told} == {"rebound", "moved", "arrived"}
    by = {line["by"] for run in runs for line in run.lines("arrived")}
    assert by == {"own", "shared", "task", "-"}
    assert recording.trace.lost == 0


# --- the recording ------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_what_a_cpuset_has_changed_is_recorded(recording: Recording, name: str) -> None:
    run = recording.runs[name]
    assert run.rebound
    assert rebound(recording.trace, run) == run.rebound


def test_a_rebinding_is_another_task_s_under_the_write_lock(
    recording: Recording,
) -> None:
    rows = [e for e in recording.trace.events if e.probe == Probe.MPOL_REBIND]
    assert rows
    for row in rows:
        assert {row.lock_entry & 15, row.lock_exit & 15} == {Lock.WRITE_SELF}
        assert row.bits & Bit.FOREIGN
        assert row.cause == Cause.CPUSET


@pytest.mark.parametrize("name", NAMES)
def test_what_a_cpuset_moves_is_moved_by_it(recording: Recording, name: str) -> None:
    owner, ended = owners(recording.trace), Counter[int]()
    moves: dict[int, set[int]] = defaultdict(set)
    for event in recording.trace.events:
        ended[event.mm] += event.kind == EventKind.MM_EXIT
        if event.kind == EventKind.MIGRATE and event.cause == Cause.CPUSET:
            moves[owner.get((event.mm, ended[event.mm]), 0)].add(event.addr)
    lines = recording.runs[name].lines("moved")
    assert lines
    for line in lines:
        assert moves[int(line["pid"])].issuperset(pages(line))


@pytest.mark.parametrize("name", NAMES)
def test_what_came_is_recorded(recording: Recording, name: str) -> None:
    run = recording.runs[name]
    assert run.arrived
    assert arrived(recording.trace, run) == run.arrived


@pytest.mark.parametrize("name", NAMES)
def test_what_is_found(recording: Recording, name: str) -> None:
    run = recording.runs[name]
    findings = [f for f in recording.result.findings if f.mm.pid in run.pids]
    assert found_under(name, findings) == FOUND[name]


@pytest.mark.parametrize("name", NAMES)
def test_without_the_rows_of_rebindings_they_are_missed(
    recording: Recording, name: str
) -> None:
    run = recording.runs[name]
    trace = without(recording.trace, Probe.MPOL_REBIND)
    assert rebound(trace, run) != run.rebound
    assert arrived(trace, run) == run.arrived


@pytest.mark.parametrize("name", ["shared-policy", quirks.RFC])
def test_without_shared_policies_who_brought_what_is_missed(
    recording: Recording, name: str
) -> None:
    run = recording.runs[name]
    trace = without(recording.trace, Probe.SHARED_POLICY)
    assert arrived(trace, run) != run.arrived
    assert rebound(trace, run) == run.rebound
