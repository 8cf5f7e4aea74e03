"""Recordings made in a guest, held against what its workloads are known to do.

One boot for all: recordings.py makes them there, the tests look at the files.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import stat
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from msgspec.structs import replace

from cdmtrace import analysis
from cdmtrace.analysis import check, describe, frames
from cdmtrace.events import (
    Bit,
    Cause,
    EventKind,
    Lock,
    Mpol,
    Probe,
    mmap_lock,
    policy_mode,
)
from cdmtrace.format.parts import found_parts
from cdmtrace.format.reader import TraceInfo, TraceReader
from cdmtrace.format.schema import column_values
from cdmtrace.lab import scenarios
from cdmtrace.lab.guestscript import in_memory
from cdmtrace.lab.paths import Layout

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
pytestmark = pytest.mark.timeout(7200)

NOBODY = 65534
FLOOD_PAGES, LIVE_PAGES = 10007, 503
CHANGES = 211
STORY_STATUS = 23
MAP_SIZE, PROCESSES, PAGES_WAITING = 8, 19, 23
PAGE = 4096
GIB = 1 << 30
REGIONS = 0x1000 << 32
"""Step N of the story is at this address + N GiB, other regions 1/4 GiB further."""

BIND, PREFERRED, INTERLEAVE, THP, TASK_POLICY, MOVE, MIGRATE = 1, 3, 4, 5, 6, 7, 8
PARTIAL, DEFAULT, INHERIT = 10, 11, 12
SWAP, COLLAPSE = 39, 42
"""Those of gates."""


@dataclass(frozen=True)
class Recording:
    """One of the files, and what its recorder said."""

    info: TraceInfo
    columns: dict[str, npt.NDArray[Any]]
    path: Path
    status: int
    stdout: str
    stderr: str

    def pick(self, **wanted: int) -> npt.NDArray[np.bool_]:
        """Return which rows have these values in these columns."""
        chosen = np.ones(len(self.columns["ts"]), bool)
        for name, value in wanted.items():
            chosen &= self.columns[name] == value
        return chosen

    def regions(self, kind: EventKind, **wanted: int) -> Counter[tuple[int, int]]:
        """Return (step, quarter of its GiB) -> pages of 4 KiB in events of a kind."""
        rows = self.pick(kind=kind, **wanted) & (self.columns["addr"] >= REGIONS)
        found: Counter[tuple[int, int]] = Counter()
        for addr, size in zip(
            self.columns["addr"][rows].tolist(),
            self.columns["size"][rows].tolist(),
            strict=True,
        ):
            step, rest = divmod(addr - REGIONS, GIB)
            if step < 64:
                found[step, rest * 4 // GIB] += size // PAGE
        return found


@pytest.fixture(scope="module")
def guest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the directory in which the recordings are."""
    cdmtrace = [sys.executable, "-m", "cdmtrace", "lab"]
    subprocess.run([*cdmtrace, "build"], check=True)
    run_dir = tmp_path_factory.mktemp("record") / "run"
    gates = scenarios.compile_scenario(
        scenarios.find_scenario("gates"), Layout.default()
    )
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    result = subprocess.run(
        [
            *(*cdmtrace, "run", "--quirks", "rfc", "--run-dir", str(run_dir)),
            *("--timeout", "6600", "--scenario", "story", "--"),
            *in_memory(sys.executable, str(HERE / "recordings.py"), str(gates)),
        ],
        text=True,
        capture_output=True,
        check=False,
        env={**os.environ, "PYTHONPATH": path},
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return run_dir


def load(guest: Path, name: str) -> Recording:
    path = guest / f"{name}.arrows"
    stderr = (guest / f"{name}.stderr").read_text()
    assert path.exists(), stderr
    with TraceReader(path) as trace:
        batches = [batch.columns for batch in trace]
        columns = {
            field: np.concatenate([column_values(b.column(field)) for b in batches])
            for field in trace.read().schema.names
            if field != "payload"
        }
        info = trace.info
    return Recording(
        info=info,
        columns=columns,
        path=path,
        status=json.loads((guest / "statuses.json").read_text())[name],
        stdout=(guest / f"{name}.stdout").read_text(),
        stderr=stderr,
    )


@pytest.fixture(scope="module")
def story(guest: Path) -> Recording:
    return load(guest, "story")


@pytest.fixture(scope="module")
def gates(guest: Path) -> Recording:
    return load(guest, "gates")


@pytest.fixture(scope="module")
def flood(guest: Path) -> Recording:
    return load(guest, "flood")


@pytest.fixture(scope="module")
def changes(guest: Path) -> Recording:
    return load(guest, "changes")


@pytest.fixture(scope="module")
def killed(guest: Path) -> Recording:
    return load(guest, "killed")


@pytest.fixture(scope="module")
def one(guest: Path) -> Recording:
    return load(guest, "one")


@pytest.fixture(scope="module")
def full(guest: Path) -> Recording:
    return load(guest, "full")


@pytest.fixture(scope="module")
def unpaired(guest: Path) -> Recording:
    return load(guest, "unpaired")


@pytest.fixture(scope="module")
def family(guest: Path) -> Recording:
    return load(guest, "family")


@pytest.fixture(scope="module")
def group(guest: Path) -> Recording:
    return load(guest, "group")


@pytest.fixture(scope="module")
def named(guest: Path) -> Recording:
    return load(guest, "named")


@pytest.fixture(scope="module")
def limited(guest: Path) -> Recording:
    return load(guest, "limited")


@pytest.fixture(scope="module")
def live(guest: Path) -> Recording:
    return load(guest, "live")


@pytest.fixture(scope="module")
def open_call(guest: Path) -> Recording:
    return load(guest, "open")


def test_the_command_s_status_is_passed_on(guest: Path, story: Recording) -> None:
    assert (guest / "story.status").read_text() == "0\n"
    assert story.status == STORY_STATUS


def test_a_signal_that_ended_the_command_is_passed_on(flood: Recording) -> None:
    assert flood.status == 128 + 15


def test_the_recorder_itself_says_nothing_on_stdout(story: Recording) -> None:
    assert story.stdout == ""
    assert "recording" in story.stderr
    assert story.stderr.endswith(f"next: cdmtrace check {story.path.name}\n")


def test_the_story_is_whole(story: Recording) -> None:
    assert story.info.torn is None
    assert story.info.end == "the command ended"
    assert story.info.lost == {}
    assert story.info.header.cdm_nodes == (1,)
    assert all(probe.symbol for probe in story.info.header.probes)
    seq = story.columns["seq"]
    assert (seq == np.arange(1, len(seq) + 1)).all()


def test_every_fault_of_the_story_is_there_once(story: Recording) -> None:
    interleaved = story.regions(EventKind.MAP)[INTERLEAVE, 0]
    assert interleaved in (15, 16)
    assert story.regions(EventKind.MAP) == {
        (BIND, 0): 23,
        (PREFERRED, 0): 29,
        (INTERLEAVE, 0): interleaved,
        (THP, 0): 3 * 512,
        (TASK_POLICY, 0): 37,
        (PARTIAL, 0): 19,
        (DEFAULT, 0): 59,
        # The parent's, those in what mremap() added, and the child's own copy.
        (INHERIT, 0): 61 + 6 + 1,
        (INHERIT, 1): 13,
    }
    assert story.regions(EventKind.ALLOC) == story.regions(EventKind.MAP)


def test_every_migrated_page_is_there_once(story: Recording) -> None:
    to_cdm = {(MOVE, 0): 41, (MOVE, 1): 7, (MIGRATE, 0): 43}
    assert story.regions(EventKind.MIGRATE, node=1, src_node=0) == to_cdm
    to_ram = {(BIND, 0): 23, (MOVE, 1): 7}
    assert story.regions(EventKind.MIGRATE, node=0, src_node=1) == to_ram
    assert story.regions(EventKind.MIGRATE) == Counter(to_cdm) + Counter(to_ram)


def test_pages_that_left(story: Recording) -> None:
    left = story.regions(EventKind.UNMAP)
    assert left[BIND, 0] == 23
    assert left[MOVE, 1] == 7
    rows = story.pick(kind=EventKind.UNMAP)
    assert set(story.columns["src_node"][rows].tolist()) == {1}
    assert set(story.columns["node"][rows].tolist()) == {-1}


def locks(recording: Recording, column: str, **wanted: int) -> set[Lock]:
    rows = recording.pick(**wanted)
    assert rows.any()
    return {mmap_lock(lock) for lock in set(recording.columns[column][rows].tolist())}


def test_how_the_lock_was_held(story: Recording) -> None:
    for column in ("lock_entry", "lock_exit"):
        assert locks(story, column, kind=EventKind.MAP) == {Lock.READ}
        assert locks(story, column, kind=EventKind.ALLOC) == {Lock.READ}
        assert locks(story, column, kind=EventKind.POLICY) == {Lock.WRITE_SELF}
        assert locks(story, column, kind=EventKind.COPY) == {Lock.WRITE_SELF}
    # move_pages() and migrate_pages(): the lock is not held while pages move; nothing
    # but mbind() moves pages under it.
    moved = story.pick(kind=EventKind.MIGRATE)
    state = np.array([mmap_lock(lock) for lock in story.columns["lock_exit"].tolist()])
    step = (story.columns["addr"] - REGIONS) // GIB
    assert set(step[moved & (state == Lock.WRITE_SELF)].tolist()) == {BIND}


def test_the_first_fault_under_preferred_sets_the_tag(story: Recording) -> None:
    mask = story.info.header.vm_cdm_mask
    rows = story.pick(kind=EventKind.ALLOC)
    rows &= story.columns["addr"] // GIB == (REGIONS // GIB) + PREFERRED
    before = story.columns["flags_before"][rows] & np.uint64(mask) != 0
    after = story.columns["flags_after"][rows] & np.uint64(mask) != 0
    assert before.tolist() == [False] + [True] * 28
    assert after.all()
    policies = set(story.columns["policy"][rows].tolist())
    assert {policy_mode(policy) for policy in policies} == {Mpol.PREFERRED}


def test_each_page_that_comes_has_a_stack_that_says_why(story: Recording) -> None:
    trace = analysis.load(story.path)
    arrivals = [e for e in trace.events if e.kind in (EventKind.MAP, EventKind.MIGRATE)]
    assert len(arrivals) > 300
    assert {event.stack for event in arrivals} <= trace.stacks.keys()
    by_region: dict[tuple[EventKind, int], set[Cause]] = {}
    for event in arrivals:
        step = (event.addr - REGIONS) // GIB
        causes = by_region.setdefault((EventKind(event.kind), step), set())
        causes.add(Cause(event.cause))
    for step in (BIND, PREFERRED, INTERLEAVE, THP, TASK_POLICY):
        assert by_region[EventKind.MAP, step] == {Cause.FAULT}
    # What a system call moves, no function but its own asked for.
    for step, name in ((MOVE, "move_pages"), (MIGRATE, "migrate_pages")):
        assert by_region[EventKind.MIGRATE, step] == {Cause.CALL}
        moved = {
            event.stack
            for event in arrivals
            if event.kind == EventKind.MIGRATE and (event.addr - REGIONS) // GIB == step
        }
        for number in moved:
            assert any(name in f for f in trace.stacks[number].functions[2:])


def causes_of(recording: Recording, step: int) -> Counter[tuple[int, Cause, int]]:
    """Return (pid, cause, bytes of a page) -> arrivals by a fault, in one step."""
    return Counter(
        (event.pid, Cause(event.cause), event.size)
        for event in analysis.load(recording.path).events
        if event.kind == EventKind.MAP and (event.addr - REGIONS) // GIB == step
    )


def test_a_copy_on_write(story: Recording) -> None:
    """The child writes to one page that it shares with its parent."""
    arrivals = analysis.load(story.path).events
    copies = [e for e in arrivals if e.kind == EventKind.MAP and e.cause == Cause.COW]
    assert len(copies) == 1


def test_pages_that_come_back_from_swap(gates: Recording) -> None:
    """One child reads half of them in by a policy of CDM; all three map those.

    Not all of the half: the other child, whose policy is RAM, was there before, and
    what it read ahead lies in RAM.
    """
    assert gates.status == 0, gates.stdout
    causes = causes_of(gates, SWAP)
    (parent,) = {pid for pid, cause, _ in causes if cause is Cause.FAULT}
    assert causes.pop((parent, Cause.FAULT, PAGE)) == 34
    assert {(cause, size) for _, cause, size in causes} == {(Cause.SWAP_IN, PAGE)}
    assert len(causes) == 3
    (pages,) = set(causes.values())
    assert 0 < pages <= 17


def test_a_huge_page_that_khugepaged_makes(gates: Recording) -> None:
    causes = causes_of(gates, COLLAPSE)
    assert {(cause, size): n for (_, cause, size), n in causes.items()} == {
        (Cause.FAULT, PAGE): 512,
        (Cause.KHUGEPAGED, 512 * PAGE): 1,
    }


def test_a_stack_is_written_once_before_who_names_it(story: Recording) -> None:
    rows = story.pick(kind=EventKind.STACK)
    numbers, seqs = story.columns["stack"][rows], story.columns["seq"][rows]
    assert len(set(numbers.tolist())) == len(numbers) > 5
    users = ~rows & (story.columns["stack"] != 0)
    for number, seq in zip(numbers.tolist(), seqs.tolist(), strict=True):
        named = story.columns["seq"][users & (story.columns["stack"] == number)]
        assert seq < named.min()


def test_a_return_has_a_stack_too(story: Recording) -> None:
    """Through the trampoline that a return probe puts in the place of the caller."""
    trace = analysis.load(story.path)
    returns = {e.stack for e in trace.events if e.kind == EventKind.ALLOC} - {0}
    assert returns
    inner = [trace.stacks[number].functions for number in returns]
    assert all("handle_mm_fault" in functions for functions in inner)


def test_a_stack_gives_no_address_away(story: Recording) -> None:
    stacks = analysis.load(story.path).stacks.values()
    for frame in (frame for stack in stacks for frame in stack.frames):
        assert re.fullmatch(r"[A-Za-z_][\w.]*\+0x[0-9a-f]{1,5}", frame), frame


def test_events_lie_within_the_call_that_they_name(story: Recording) -> None:
    calls = story.pick(kind=EventKind.CALL)
    columns = story.columns
    spans = {
        (tid, call): (begin, end)
        for tid, call, begin, end in zip(
            *(columns[c][calls].tolist() for c in ("tid", "call", "ts_entry", "ts")),
            strict=True,
        )
    }
    inside = (columns["call"] != 0) & ~calls
    assert inside.sum() > 100
    for tid, call, begin, end in zip(
        *(columns[c][inside].tolist() for c in ("tid", "call", "ts_entry", "ts")),
        strict=True,
    ):
        first, last = spans[tid, call]
        assert first <= begin <= end <= last


def test_a_small_ring_loses_events_and_counts_each(flood: Recording) -> None:
    """Written and lost together are what was made: to the last one."""
    for kind, probe in (
        (EventKind.ALLOC, Probe.ALLOC),
        (EventKind.MAP, Probe.RMAP_ADD),
        (EventKind.UNMAP, Probe.RMAP_REMOVE),
    ):
        written = int(flood.pick(kind=kind).sum())
        lost = flood.info.lost[probe.name.lower()]
        assert 0 <= written < FLOOD_PAGES
        assert set(lost) == {"ring"}
        assert written + lost["ring"] == FLOOD_PAGES, probe
    total = sum(sum(reasons.values()) for reasons in flood.info.lost.values())
    assert f"{total:,} lost" in flood.stderr


def test_a_loss_is_placed_in_the_file(flood: Recording) -> None:
    losses = [loss for loss in flood.info.losses if loss.probe == "rmap_add"]
    assert len({loss.batch for loss in losses}) == len(losses)
    # Faults were written before the first loss and between losses, so each window
    # of loss must be where no window of another batch is.
    for loss in losses:
        assert flood.info.header.started <= loss.since < loss.until
    for earlier, later in itertools.pairwise(losses):
        assert earlier.since < later.since
        assert earlier.until < later.until
    mapped = flood.columns["ts"][flood.pick(kind=EventKind.MAP)]
    assert losses[0].since <= mapped.max()
    assert losses[-1].until >= mapped.min()
    assert flood.info.clean_end


def test_a_loss_is_placed_in_the_address_space_that_it_is_of(
    flood: Recording,
) -> None:
    """One process faulted, in one VMA; all that was lost of them lies there."""
    faults = flood.pick(kind=EventKind.MAP)
    (mm,) = set(flood.columns["mm"][faults].tolist())
    (start,) = set(flood.columns["start"][faults].tolist())
    (end,) = set(flood.columns["end"][faults].tolist())
    losses = [x for x in flood.info.losses if x.probe in ("alloc", "rmap_add")]
    assert {(x.mm, x.start, x.end) for x in losses} == {(mm, start, end)}


def test_a_flood_of_pages_does_not_hide_what_changes(
    guest: Path, changes: Recording
) -> None:
    """Pages are lost, and each change of a policy is there, with its call."""
    pid = int((guest / "changes.pid").read_text())
    # The scanner of NUMA balancing goes over pages, too, now and then.
    of_pages = {"alloc", "rmap_add", "rmap_remove", "numa_scan", "numa_migrate"}
    assert set(changes.info.lost) <= of_pages
    assert changes.info.lost["rmap_add"]["ring"] > 0
    assert changes.pick(kind=EventKind.MAP).sum() > 0
    for probe in (Probe.MBIND_RANGE, Probe.SYS_MBIND):
        kind = EventKind.CALL if probe == Probe.SYS_MBIND else EventKind.POLICY
        assert changes.pick(kind=kind, probe=probe, pid=pid).sum() == CHANGES


def test_more_address_spaces_than_are_followed(full: Recording) -> None:
    assert full.status == 0
    losses = [loss for loss in full.info.losses if loss.probe == "watch"]
    assert {loss.reason for loss in losses} == {"map"}
    # Each has a number of its own; what was told of it is told once.
    blind = {loss.mm for loss in losses}
    assert len(blind) == PROCESSES - MAP_SIZE
    mapped = full.pick(kind=EventKind.MAP)
    assert len(set(full.columns["mm"][mapped].tolist())) == PROCESSES
    followed = set(full.columns["mm"][mapped].tolist()) - blind
    # Those that are not followed end unseen.
    ended = full.columns["mm"][full.pick(kind=EventKind.MM_EXIT)].tolist()
    assert set(ended) == followed
    words = f"{PROCESSES - MAP_SIZE} address spaces not followed"
    for one in check(analysis.load(full.path)).rules:
        # What is about the recording as a whole needs no address space.
        assert (words in (one.why or "")) is bool(one.rule.probes)


def test_what_the_kernel_did_not_wait_for_is_counted(unpaired: Recording) -> None:
    """It left out returns that found another one waiting; we miss as many, but for
    those of the recorder itself, which are not recorded."""
    rows = [line.split() for line in unpaired.stdout.splitlines()]
    profile = {name: int(missed) for name, _, missed in rows}
    (missed,) = [n for name, n in profile.items() if "vma_alloc_folio" in name]
    lost = unpaired.info.lost["alloc"]["unpaired"]
    assert unpaired.info.lost["alloc"] == {"unpaired": lost}
    assert 0 < lost <= missed
    written = int(unpaired.pick(kind=EventKind.ALLOC).sum())
    assert written < 2 * FLOOD_PAGES <= written + lost
    # What has no return is seen all the same.
    assert int(unpaired.pick(kind=EventKind.MAP).sum()) == 2 * FLOOD_PAGES


def test_a_recording_in_parts(guest: Path) -> None:
    """Together they are the recording; alone, each can be understood."""
    files = found_parts(guest / "parts.arrows")
    # How many depends on what had come when the recorder looked: a batch is not cut.
    assert len(files) > 1
    assert f"{len(files)} files" in (guest / "parts.stderr").read_text()
    trace = frames.load(*reversed(files))
    assert (trace.clean_end, trace.cut, trace.gaps) == (True, None, ())
    faulted = [e for e in trace.events if e.kind == EventKind.MAP]
    (mm, pages), *_ = Counter(e.mm for e in faulted).most_common(1)
    assert pages >= FLOOD_PAGES
    (tid,) = {e.tid for e in faulted if e.mm == mm}
    for path in files:
        part = frames.load(path)
        assert bool(part.before) == (path != files[0])
        stacks: set[int] = {0}
        named: set[int] = set()
        for event in part.events:
            if event.kind == EventKind.STACK:
                stacks.add(event.stack)
            elif event.kind == EventKind.COMM:
                named.add(event.tid)
            assert event.stack in stacks
            assert event.tid in named or event.tid != tid
    rules = {finding.rule.id for finding in check(trace).findings}
    alone = {f.rule.id for path in files[1:] for f in check(frames.load(path)).findings}
    assert alone <= rules


def test_a_call_that_has_not_returned(guest: Path, open_call: Recording) -> None:
    rows = open_call.pick(kind=EventKind.CALL_OPEN)
    assert rows.sum() == 1
    (row,) = [
        {name: values[rows].tolist()[0] for name, values in open_call.columns.items()}
    ]
    told = json.loads((guest / "open.json").read_text())
    assert row["probe"] == Probe.SYS_MBIND
    assert {name: row[name] for name in told} == told
    assert row["tid"] != row["pid"]
    assert policy_mode(row["other_policy"]) == Mpol.BIND
    # The mask itself could not be read: it is what the call waits for.
    assert row["other"] == 0
    first = open_call.pick(kind=EventKind.CALL, probe=Probe.SYS_MBIND, pid=told["pid"])
    assert set(open_call.columns["mm"][first].tolist()) == {row["mm"]}
    assert open_call.columns["ts"][first].max() < row["ts_entry"] < row["ts"]
    assert open_call.info.lost == {}
    trace = analysis.load(open_call.path)
    (event,) = [e for e in trace.events if e.kind == EventKind.CALL_OPEN]
    text = describe.what(event, trace.terms)
    assert text == f"mbind(BIND:none, {PAGES_WAITING} pages) = open"


def test_the_command_and_the_file_are_the_caller_s(
    guest: Path, flood: Recording
) -> None:
    assert flood.stdout == f"{NOBODY}\n" * 3
    owner = json.loads((guest / "flood.owner").read_text())
    assert owner == [NOBODY, NOBODY, 0o600]


def test_without_sudo_the_file_is_root_s(story: Recording) -> None:
    status = story.path.stat()
    assert status.st_uid == 0
    assert stat.S_IMODE(status.st_mode) == 0o600


def test_a_recorder_that_was_killed_leaves_a_file_to_read(killed: Recording) -> None:
    assert killed.status == -9
    assert not killed.info.clean_end
    assert killed.info.torn
    assert "without the end of the recording" in killed.info.torn
    assert killed.info.batches > 1
    assert killed.info.bytes_intact == killed.path.stat().st_size
    # Nothing is missing before the tear: one page after the other.
    pages = killed.columns["addr"][killed.pick(kind=EventKind.MAP)]
    assert len(pages) > 50
    assert (np.diff(pages.astype(np.int64)) == PAGE).all()


def test_one_process_for_some_seconds(guest: Path, one: Recording) -> None:
    pid, other = json.loads((guest / "pids.json").read_text())
    assert one.status == 0
    assert one.info.end == "time was up"
    assert one.info.header.filters == {"pid": [pid], "children": True}
    # What the recorder tells of itself: its name, stacks, and what was there before.
    acted = one.columns["mm"] != 0
    acted &= ~one.pick(probe=Probe.SNAPSHOT)
    assert set(one.columns["pid"][acted].tolist()) == {pid} != {other}
    looked_at = one.pick(kind=EventKind.SNAP_VMA)
    assert set(one.columns["pid"][looked_at].tolist()) <= {pid}
    # How many depends on how soon it wakes up each time, and is no matter here.
    faulted = one.columns["ts"][one.pick(kind=EventKind.MAP)]
    assert len(faulted) > 5
    (look,) = one.columns["ts"][one.pick(kind=EventKind.SNAP_MM, mm=0)]
    last = one.info.last_ts
    assert last is not None
    assert 2 * 10**9 < last - int(look) < 60 * 10**9


def pid_of(guest: Path, name: str) -> int:
    return int((guest / f"{name}.pid").read_text())


def mapped(recording: Recording) -> Counter[int]:
    """Return pid -> pages that it has faulted in."""
    rows = recording.pick(kind=EventKind.MAP)
    return Counter(recording.columns["pid"][rows].tolist())


def test_a_process_with_all_that_comes_from_it(guest: Path, family: Recording) -> None:
    """Before and after the start, by fork and by exec; and nobody else."""
    pids = {
        name: pid_of(guest, name)
        for name in ("parent", "early", "late", "grandchild", "program", "stranger")
    }
    assert family.status == 0
    assert family.info.end == "the traced process ended"
    assert family.info.header.filters == {"pid": [pids["parent"]], "children": True}
    assert not (guest / "family.ready").exists()
    assert mapped(family) == {
        pids["parent"]: 11,
        pids["early"]: 13,
        pids["late"]: 17,
        pids["grandchild"]: 19,
        pids["program"]: 23,
    }


def test_what_others_do_to_a_process_that_is_followed(
    guest: Path, family: Recording
) -> None:
    """A stranger moves five of its pages, and three of his own, which nobody asked."""
    who = pid_of(guest, "stranger")
    rows = family.pick(kind=EventKind.MIGRATE)
    assert family.columns["pid"][rows].tolist() == [who] * 5
    assert set(family.columns["node"][rows].tolist()) == {0}
    (mm,) = set(family.columns["mm"][rows].tolist())
    parent = family.pick(kind=EventKind.MAP, pid=pid_of(guest, "parent"))
    assert set(family.columns["mm"][parent].tolist()) == {mm}
    calls = family.pick(kind=EventKind.CALL, pid=who)
    assert family.columns["probe"][calls].tolist() == [Probe.SYS_MOVE_PAGES]
    (call,) = family.columns["call"][calls].tolist()
    assert set(family.columns["call"][rows].tolist()) == {call}


def test_what_is_followed_is_known_whole(family: Recording) -> None:
    """So its rules can be judged, by what the file has of it."""
    result = check(analysis.load(family.path))
    verdicts = {one.rule.id: (one.verdict.value, one.why) for one in result.rules}
    assert not [one for one in verdicts.values() if one[0] == "inconclusive"], verdicts
    assert verdicts["CDM002"][0] in ("clean", "violated")
    assert {one.mm.pid for one in result.findings} <= {
        one.mm.pid for one in result.lives
    }


def test_processes_in_a_cgroup_without_their_children(
    guest: Path, group: Recording
) -> None:
    """What is named and elsewhere, and what is there and not named, is left out."""
    assert group.status == 0
    assert mapped(group) == {pid_of(guest, "inside"): 11}
    named = [pid_of(guest, "inside"), pid_of(guest, "outside")]
    filters = group.info.header.filters
    assert filters["pid"] == named
    assert filters["children"] is False
    assert filters["cgroup"].endswith("/filters")
    assert filters["stacks"] == "none"
    # A child's address space is not told of, nor that it has one.
    assert not group.pick(kind=EventKind.COPY).any()
    assert not group.pick(kind=EventKind.STACK).any()
    assert set(group.columns["stack"].tolist()) == {0}


AT, INSIDE = 0x6F0000000000, (8, 24)


def test_a_name_and_a_range_of_addresses(guest: Path, named: Recording) -> None:
    """One letter less is another name; a page before and after is another address."""
    first, last = (AT + page * PAGE for page in INSIDE)
    pid = pid_of(guest, "fifteen_letters")
    assert mapped(named) == {pid: 14}
    for kind, start in ((EventKind.MAP, first + 2 * PAGE), (EventKind.UNMAP, first)):
        rows = named.pick(kind=kind)
        assert named.columns["addr"][rows].tolist() == list(range(start, last, PAGE))
    (ranges,) = [
        row.payload
        for row in analysis.load(named.path).events
        if row.kind == EventKind.SNAP_RANGES
    ]
    assert np.frombuffer(ranges or b"", np.uint64).tolist() == [first, 2 * PAGE]
    shown = named.pick(kind=EventKind.SNAP_VMA)
    assert set(named.columns["start"][shown].tolist()) == {AT}
    # mprotect() changes flags, here and elsewhere; pages come without a stack.
    changed = named.pick(kind=EventKind.FLAGS)
    assert named.columns["start"][changed].tolist() == [AT]
    told = ~named.pick(kind=EventKind.STACK) & (named.columns["stack"] != 0)
    assert told.tolist() == changed.tolist()


LIMIT, DELAY = 101, 3


def test_one_of_two_nodes_until_there_are_enough(limited: Recording) -> None:
    assert limited.status == 143
    assert limited.info.end == f"{LIMIT} events were recorded"
    assert limited.info.header.filters == {"node": [1]}
    assert limited.info.header.cdm_nodes == (0, 1)
    ring = ~limited.pick(kind=EventKind.COMM) & ~limited.pick(kind=EventKind.STACK)
    ring &= ~limited.pick(probe=Probe.SNAPSHOT)
    # The command has begun before: what it does while all is looked at is there, too.
    look = limited.pick(kind=EventKind.SNAP_MM, pid=0)
    ring &= limited.columns["seq"] > limited.columns["seq"][look].max()
    assert int(ring.sum()) == LIMIT
    nodes = limited.columns["node"][limited.pick(kind=EventKind.MAP)].tolist()
    assert len(nodes) > 20
    assert set(nodes) == {1}
    begun = limited.info.first_ts
    assert begun is not None
    assert begun - limited.info.header.started >= DELAY * 10**9


def test_a_rehearsal_attaches_nothing(guest: Path) -> None:
    """What it leaves in the kernel is for the next test."""
    made = json.loads((guest / "statuses.json").read_text())
    assert made["dry"] == 0
    assert not (guest / "dry.arrows").exists()
    assert (guest / "dry.stdout").read_text() == ""
    said = [
        " ".join(line.split())
        for line in (guest / "dry.stderr").read_text().splitlines()
    ]
    assert "filters pid 1, stacks none" in said
    assert "follow kprobe release_task, wake_up_new_task" in said


# --- watchpoints: tests/kernel/watching.py says what is done ----------------------

WATCHED = [0x2000_0000_0000 + (n << 30) for n in range(3)]
HALF, SIZE = 4 * PAGE, 8 * PAGE
RD, WR, DC, DD, LO, IO = 0x1, 0x2, 0x20000, 0x4000000, 0x2000, 0x4000
CD = 1 << 38


@pytest.fixture(scope="module")
def watched(guest: Path) -> analysis.Result:
    return check(analysis.load(guest / "watch.arrows"))


def writes(result: analysis.Result, number: int) -> list[analysis.Event]:
    """Return what a watchpoint saw."""
    return [
        event
        for event in result.trace.events
        if event.kind == EventKind.WRITE and event.arg == number
    ]


def bits_written(events: list[analysis.Event]) -> list[tuple[int, int]]:
    """Return which flags each write set, and which it cleared."""
    return [
        (e.flags_after & ~e.flags_before, e.flags_before & ~e.flags_after)
        for e in events
    ]


def test_a_watch_prints_each_write_and_loses_none(
    guest: Path, watched: analysis.Result
) -> None:
    told = [event for event in watched.trace.events if event.kind == EventKind.WRITE]
    _, *lines = (guest / "watch.stdout").read_text().splitlines()
    assert len(lines) == len(told) > 0
    for line, event in zip(lines, told, strict=True):
        assert line.startswith(f"#{event.arg} ")
        assert event.payload is not None
        assert line.endswith(f" {event.payload.decode()}")
    said = (guest / "watch.stderr").read_text()
    assert json.loads((guest / "statuses.json").read_text())["watch"] == 0
    assert f"the traced process ended; {len(told):,} writes, " in said
    assert watched.trace.lost == 0
    # To look for a VMA is no audit.
    assert watched.audit is None


def test_calls_that_are_counted_make_as_many_writes(watched: analysis.Result) -> None:
    """mlock() writes twice: it sets VM_IO, too, as long as it walks the pages."""
    by_calls = writes(watched, 0)[:-1]
    assert bits_written(by_calls) == [
        *[(0, WR), (WR, 0)] * 23,
        *[(DC, 0), (0, DC)] * 11,
        *[(LO | IO, 0), (0, IO), (0, LO)] * 7,
    ]
    for event in by_calls:
        assert mmap_lock(event.lock_exit) == Lock.WRITE_SELF
        assert (event.start, event.end) == (WATCHED[0], WATCHED[0] + SIZE)
        assert not event.ret
    functions = [watched.trace.stacks[event.stack].functions for event in by_calls]
    for name, stacks in (
        ("mprotect_fixup", functions[:46]),
        ("do_madvise", functions[46:68]),
        ("mlock_fixup", functions[68:]),
    ):
        assert all(name in stack for stack in stacks)


def test_a_work_item_that_writes_is_named(watched: analysis.Result) -> None:
    event = writes(watched, 0)[-1]
    assert bits_written([event]) == [(CD, 0)]
    assert mmap_lock(event.lock_exit) == Lock.READ
    assert event.bits & Bit.KTHREAD
    (finding,) = watched.findings
    assert (finding.rule.id, finding.cause) == ("CDM003", "set_vm_cdm")
    assert finding.witness[0].seq == event.seq
    assert "cdm_tag_now" in finding.witness[0].stack


def test_without_watchpoints_nobody_has_seen_it(watched: analysis.Result) -> None:
    trace = watched.trace
    rest = [e for e in trace.events if e.probe != Probe.WATCHPOINT]
    assert check(replace(trace, events=rest)).findings == ()


def test_a_watchpoint_follows_its_address(watched: analysis.Result) -> None:
    """Through a split, and a merge; a write to the half that was cut off is told as
    what it is."""
    start = WATCHED[1]
    events = writes(watched, 1)
    assert [(e.start - start, e.end - start) for e in events] == [
        (HALF, SIZE),
        (0, SIZE),
        (0, 2 * SIZE),
    ]
    # In the end madvise() writes what is there already, to what has become one VMA.
    assert bits_written(events) == [(0, WR), (WR, 0), (0, 0)]
    assert {mmap_lock(e.lock_exit) for e in events} == {Lock.WRITE_SELF}
    laid = [
        (e.ret, e.start - start, e.end - start)
        for e in watched.trace.events
        if e.kind == EventKind.WATCH and e.arg == 1
    ]
    assert laid[:5] == [
        (0, 0, SIZE),
        (2, 0, SIZE),
        (0, 0, HALF),
        (1, 0, HALF),
        (0, 0, SIZE),
    ]


def test_what_is_gone_is_watched_no_more(guest: Path, watched: analysis.Result) -> None:
    """Whoever gets its memory writes there, and none of that is told."""
    assert bits_written(writes(watched, 2)) == [(0, WR), (WR, 0)] * 3
    said = (guest / "watch.stderr").read_text()
    assert (
        f"#2 watches no more: its VMA is gone, and none holds {WATCHED[2]:x}\n" in said
    )
    assert "#3 watches no more: its VMA is that of #1 now\n" in said


def test_two_threads_at_once_lose_none(watched: analysis.Result) -> None:
    assert Counter(bits_written(writes(watched, 3))) == {
        (bit, 0) if on else (0, bit): 200 for bit in (DC, DD) for on in (True, False)
    }


def test_a_watch_gives_no_address_of_the_kernel_away(watched: analysis.Result) -> None:
    for event in watched.trace.events:
        if event.probe == Probe.WATCHPOINT:
            assert event.addr >> 47 == event.start >> 47 == event.end >> 47 == 0
            assert event.payload is None or b"+0x" in event.payload


def test_a_watch_without_debug_registers_makes_no_file(guest: Path) -> None:
    assert (guest / "taken.status").read_text() == "125"
    said = (guest / "taken.stderr").read_text()
    assert "no debug register of cpu 0 is left: there are 4" in said
    assert not (guest / "taken.arrows").exists()


def test_a_recording_is_the_same_whoever_looks_on(guest: Path, live: Recording) -> None:
    """The viewer was killed when one of two workloads had run."""
    assert live.status == 0
    assert live.stdout == ""
    assert "the live view has ended (SIGKILL); recording goes on" in live.stderr
    assert live.info.clean_end
    assert live.info.end == "the command ended"
    assert live.info.lost == {}
    bound = live.pick(node=1, policy=Mpol.BIND)
    for kind in (EventKind.ALLOC, EventKind.MAP):
        rows = bound & live.pick(kind=kind)
        pages = Counter(live.columns["pid"][rows].tolist())
        assert sorted(pages.values()) == [LIVE_PAGES, LIVE_PAGES]


def test_who_looks_on_is_no_part_of_a_recording_of_everything(
    guest: Path, live: Recording
) -> None:
    viewer = json.loads((guest / "live.json").read_text())
    assert live.info.header.filters == {"all": True}
    # Others are there: what runs in the guest beside the workload.
    assert len(set(live.columns["pid"].tolist())) > 3
    assert viewer["pid"] not in live.columns["pid"]
    assert viewer["pid"] not in live.columns["tid"]


def test_who_looks_on_is_nobody(guest: Path, live: Recording) -> None:
    status = json.loads((guest / "live.json").read_text())["status"].splitlines()
    (uids,) = (line.split()[1:] for line in status if line.startswith("Uid:"))
    assert uids == [str(NOBODY)] * 4


def test_nothing_stays_behind_in_the_kernel(guest: Path) -> None:
    """A recorder that was killed cannot clean up: the next one does it."""
    made = json.loads((guest / "statuses.json").read_text())
    left = {name: (guest / f"{name}.kprobe_events").read_text() for name in made}
    assert "exit_mmap_bcc_" in left.pop("killed")
    assert set(left.values()) == {""}


def test_doctor_says_that_this_kernel_can_be_recorded(guest: Path) -> None:
    assert (guest / "doctor.status").read_text() == "0\n"
    found = json.loads((guest / "doctor.json").read_text())
    assert found["schema"] == "cdmtrace.doctor/1"
    assert found["can_record"] is True
    assert {check["state"] for check in found["checks"]} == {"ok"}


def test_probes_are_those_of_the_recording(guest: Path, story: Recording) -> None:
    assert (guest / "probes.status").read_text() == "0\n"
    found = json.loads((guest / "probes.json").read_text())
    assert found["uncheckable rules"] == []
    attached = {
        row["probe"]: {one["symbol"] for one in row["attachments"]}
        for row in found["probes"]
        if row["state"] == "attach"
    }
    assert attached == {
        probe.name: set((probe.symbol or "").split(", "))
        for probe in story.info.header.probes
    }
