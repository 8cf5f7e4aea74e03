"""The vmas scenario, recorded: what the model holds of a VMA against what smaps has.

Each step of the program changes VMAs in one way, judges itself, and prints a line for
every VMA that it leaves behind: its ends, flags and policy as the kernel shows them,
and which mbind() its tag comes from. The model must end with exactly these VMAs.

Then one probe after the other is taken out, by leaving out its rows, and what needed
it must no longer agree.
"""

from __future__ import annotations

import functools
import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import pytest
from labrun import found_under, lab_record
from msgspec.structs import replace
from scenariotap import failures

from cdmtrace.analysis import check, load, names
from cdmtrace.analysis.frames import Event, Trace
from cdmtrace.analysis.result import Result
from cdmtrace.analysis.state import Area
from cdmtrace.events import EventKind, Lock, Probe
from cdmtrace.lab import quirks, scenarios
from cdmtrace.lab.paths import Layout

pytestmark = pytest.mark.timeout(3600)

GIB = 1 << 30
NAMES = (quirks.NONE, quirks.RFC)
UNSEEN = {"sd"}
"""Flags that are written outside of all that is probed."""
TOLD = re.compile(
    r"# vma step=(?P<step>\S+) pid=(?P<pid>\d+) start=0x(?P<start>[0-9a-f]+)"
    r" end=0x(?P<end>[0-9a-f]+) flags=(?P<flags>\S+) policy=(?P<policy>\S+)"
    r" tagged-by=(?P<by>\d+)"
)
STEPS = (
    *("protect", "lock", "lock-all", "advise", "rejoin", "neighbour", "brk", "stack"),
    *("grow", "move", "fork", "reuse", "over", "unmap", "exec"),
)
NEEDED_BY = {
    # Of the flags that madvise() writes, and what mremap() adds in place.
    Probe.VMA_MERGE: {"advise", "grow", "fork"},
    Probe.VMA_NEW: {"neighbour", "brk", "stack", "reuse", "over"},
    Probe.VMA_FREE: {"grow", "fork", "reuse", "unmap"},
    Probe.MPROTECT_FIXUP: {"protect", "rejoin", "fork", "exec"},
    Probe.MLOCK_FIXUP: {"lock", "lock-all"},
}
"""Probe -> the steps that no longer agree without its rows, and no others."""

FOUND = {("CDM001", "mbind"), ("CDM011", "mbind")}
"""(rule, cause) of every finding under rfc."""

CALLS = {
    ("protect", Probe.MPROTECT_FIXUP): "sys_mprotect",
    ("lock", Probe.MLOCK_FIXUP): "sys_mlock",
    ("lock-all", Probe.MLOCK_FIXUP): "sys_mlock",
    ("advise", Probe.VMA_MERGE): "sys_madvise",
}
"""(step, probe of its FLAGS rows) -> the system call that they are part of."""


@dataclass(frozen=True, kw_only=True)
class Vma:
    """One VMA: what smaps and numa_maps say of it, and which mbind() tagged it."""

    start: int
    end: int
    flags: frozenset[str]
    policy: str
    tagged_by: int


@dataclass(frozen=True)
class Run:
    """One run of the program: status, TAP, the recording."""

    status: int
    tap: tuple[str, ...]
    trace: Trace

    @functools.cached_property
    def told(self) -> dict[tuple[str, int], set[Vma]]:
        """(step, pid) -> the VMAs that its lines tell of."""
        found: defaultdict[tuple[str, int], set[Vma]] = defaultdict(set)
        for line in self.tap:
            if line.startswith("# vma "):
                match = TOLD.fullmatch(line)
                assert match, line
                vma = Vma(
                    start=int(match["start"], 16),
                    end=int(match["end"], 16),
                    # smaps has no letters for VM_LOCKONFAULT.
                    flags=frozenset(match["flags"].replace("??", "lf").split(","))
                    - UNSEEN,
                    policy=match["policy"],
                    tagged_by=int(match["by"]),
                )
                found[match["step"], int(match["pid"])].add(vma)
        return dict(found)

    @functools.cached_property
    def result(self) -> Result:
        """What check finds in the recording."""
        return check(self.trace)


def read_run(directory: Path, name: str, status: int) -> Run:
    """Return what one run has left behind."""
    return Run(
        status=status,
        tap=tuple((directory / f"{name}.stdout").read_text().splitlines()),
        trace=load(directory / f"{name}.arrows"),
    )


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Run]:
    """The program under no quirk and under all of them, in one boot."""
    program = scenarios.compile_scenario(
        scenarios.find_scenario("vmas"), Layout.default()
    )
    words = ("--", str(program), "--quirks")
    directory, statuses = lab_record(
        tmp_path_factory.mktemp("vmas"),
        {name: (*words, quirks.as_argument(quirks.resolve(name))) for name in NAMES},
    )
    return {name: read_run(directory, name, statuses[name]) for name in NAMES}


# --- what the model holds -----------------------------------------------------


def held(run: Run, result: Result) -> dict[tuple[str, int], set[Vma]]:
    """(step, pid) -> the VMAs that the model ends with, where that step worked.

    Those are the ones in the GiB of a line; of the heap, the ones that share an
    address with a line.
    """
    binds = [
        (event.tid, event.call)
        for event in result.trace.events
        if event.kind == EventKind.CALL and event.probe == Probe.SYS_MBIND
    ]
    found: dict[tuple[str, int], set[Vma]] = {}
    for (step, pid), told in run.told.items():
        start = min(vma.start for vma in told)
        end = max(vma.end for vma in told)
        if step != "brk":
            start = start // GIB * GIB
            end = start + GIB
        found[step, pid] = {
            vma_of(area, run.trace, binds)
            for life in result.lives
            if life.mm.pid == pid
            for area in life.state.overlapping(start, end)
        }
    return found


def vma_of(area: Area, trace: Trace, binds: list[tuple[int, int]]) -> Vma:
    """Return a VMA of the model in the words of smaps; "?": it does not know."""
    flags = frozenset({"?"})
    if area.flags is not None:
        flags = frozenset(names.flags(area.flags, trace.terms)) - UNSEEN
    policy, by = "?", 0
    if area.policy:
        policy = names.policy(area.policy.byte, area.policy.nodes).lower()
    if area.set_by:
        call = area.set_by.tid, area.set_by.call
        by = binds.index(call) + 1 if call in binds else -1
    return Vma(start=area.start, end=area.end, flags=flags, policy=policy, tagged_by=by)


def without(trace: Trace, probe: Probe) -> Trace:
    """Return the trace as it would be if a probe had told nothing."""
    rest = [event for event in trace.events if event.probe != probe]
    return replace(trace, events=rest, count=len(rest))


def wrong(run: Run, trace: Trace) -> set[str]:
    """Return the steps whose VMAs the model does not end with."""
    found = held(run, check(trace, rules=()))
    return {step for (step, pid), vmas in run.told.items() if found[step, pid] != vmas}


# --- the program --------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_every_step_comes_out(runs: dict[str, Run], name: str) -> None:
    run = runs[name]
    assert failures(run.tap) == []
    assert run.status == 0
    assert {step for step, _ in run.told} == {*STEPS}
    tags = [vma.tagged_by for vmas in run.told.values() for vma in vmas]
    assert sum(map(bool, tags)) > 30
    assert 0 in tags


# --- the recordings -----------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("step", STEPS)
def test_the_model_ends_with_the_kernel_s_vmas(
    runs: dict[str, Run], step: str, name: str
) -> None:
    run = runs[name]
    found = held(run, run.result)
    for (told, pid), vmas in run.told.items():
        if told == step:
            assert sorted_(found[told, pid]) == sorted_(vmas)


def sorted_(vmas: Iterable[Vma]) -> list[Vma]:
    """Return them by address."""
    return sorted(vmas, key=lambda vma: vma.start)


@pytest.mark.parametrize(
    ("name", "expected"), [(quirks.NONE, set()), (quirks.RFC, FOUND)]
)
def test_what_is_found(
    runs: dict[str, Run], name: str, expected: set[tuple[str, str]]
) -> None:
    result = runs[name].result
    assert found_under(name, result.findings) == expected
    assert result.trace.lost == 0


def flag_rows(run: Run, trace: Trace) -> dict[tuple[str, Probe], set[str]]:
    """(step, probe) -> the system calls in which its FLAGS rows are."""
    calls = {
        (event.tid, event.call): Probe(event.probe).name.lower()
        for event in trace.events
        if event.kind == EventKind.CALL
    }
    places = {
        vma.start // GIB: step for (step, _), vmas in run.told.items() for vma in vmas
    }
    found: defaultdict[tuple[str, Probe], set[str]] = defaultdict(set)
    for event in trace.events:
        step = places.get(event.start // GIB)
        if event.kind == EventKind.FLAGS and (step, event.probe) in CALLS and step:
            call = calls.get((event.tid, event.call), "")
            found[step, Probe(event.probe)].add(call)
    return dict(found)


@pytest.mark.parametrize("name", NAMES)
def test_flags_are_written_in_a_call_and_under_the_write_lock(
    runs: dict[str, Run], name: str
) -> None:
    run = runs[name]
    rows = [event for event in run.trace.events if event.kind == EventKind.FLAGS]
    assert {event.lock_entry & 15 for event in rows} == {Lock.WRITE_SELF}
    assert {event.lock_exit & 15 for event in rows} == {Lock.WRITE_SELF}
    assert flag_rows(run, run.trace) == {key: {call} for key, call in CALLS.items()}
    blind = flag_rows(run, without(run.trace, Probe.SYS_MLOCK))
    assert {step for (step, _), calls in blind.items() if "" in calls} == {
        *("lock", "lock-all")
    }


@pytest.mark.parametrize("name", NAMES)
def test_pointers_are_used_again_and_stories_are_not(
    runs: dict[str, Run], name: str
) -> None:
    """An id that a tagged VMA had is that of a plain one later, at the same place."""
    run = runs[name]
    ((_, pid),) = (key for key in run.told if key[0] == "reuse")
    start = min(vma.start for vma in run.told["reuse", pid])
    tag = run.trace.terms.tag
    rows: list[Event] = [
        event
        for event in run.trace.events
        if event.start == start and event.vma and event.pid == pid
    ]
    tagged = {event.vma for event in rows if event.flags_after & tag}
    plain = {event.vma for event in rows if not event.flags_after & tag}
    assert tagged & plain
    stories = {vma.tagged_by for vma in run.told["reuse", pid]}
    assert stories == {0}


@pytest.mark.parametrize("probe", NEEDED_BY, ids=lambda probe: probe.name.lower())
def test_a_change_whose_probe_is_taken_out_is_missed(
    runs: dict[str, Run], probe: Probe
) -> None:
    run = runs[quirks.NONE]
    assert wrong(run, without(run.trace, probe)) == NEEDED_BY[probe]
