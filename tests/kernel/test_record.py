"""Recordings made in a guest, held against what its workloads are known to do.

One boot for all: recordings.py makes them there, the tests look at the files.
"""

from __future__ import annotations

import itertools
import json
import os
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

from cdmtrace.events import EventKind, Lock, Mpol, Probe, mmap_lock, policy_mode
from cdmtrace.format.reader import TraceInfo, TraceReader
from cdmtrace.format.schema import column_values

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
pytestmark = pytest.mark.timeout(3600)

NOBODY = 65534
FLOOD_PAGES = 10007
STORY_STATUS = 23
PAGE = 4096
GIB = 1 << 30
REGIONS = 0x1000 << 32
"""Step N of the story is at this address + N GiB, other regions 1/4 GiB further."""

BIND, PREFERRED, INTERLEAVE, THP, TASK_POLICY, MOVE, MIGRATE = 1, 3, 4, 5, 6, 7, 8
PARTIAL, DEFAULT, INHERIT = 10, 11, 12


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

    def regions(self, kind: EventKind) -> Counter[tuple[int, int]]:
        """Return (step, quarter of its GiB) -> pages of 4 KiB in events of a kind."""
        rows = self.pick(kind=kind) & (self.columns["addr"] >= REGIONS)
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
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    result = subprocess.run(
        [
            *(*cdmtrace, "run", "--quirks", "rfc", "--run-dir", str(run_dir)),
            *("--timeout", "1800", "--scenario", "story", "--"),
            *(sys.executable, str(HERE / "recordings.py")),
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
        stderr=(guest / f"{name}.stderr").read_text(),
    )


@pytest.fixture(scope="module")
def story(guest: Path) -> Recording:
    return load(guest, "story")


@pytest.fixture(scope="module")
def flood(guest: Path) -> Recording:
    return load(guest, "flood")


@pytest.fixture(scope="module")
def killed(guest: Path) -> Recording:
    return load(guest, "killed")


@pytest.fixture(scope="module")
def one(guest: Path) -> Recording:
    return load(guest, "one")


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
    assert story.regions(EventKind.MIGRATE) == {
        (MOVE, 0): 41,
        (MOVE, 1): 7,
        (MIGRATE, 0): 43,
    }


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
    # move_pages() and migrate_pages(): the lock is not held while pages move.
    moved = story.pick(kind=EventKind.MIGRATE)
    state = story.columns["lock_exit"][moved].tolist()
    assert Lock.WRITE_SELF not in {mmap_lock(lock) for lock in state}


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


def test_the_command_and_the_file_are_the_caller_s(flood: Recording) -> None:
    assert flood.stdout == f"{NOBODY}\n" * 3
    status = flood.path.stat()
    assert status.st_uid == status.st_gid == NOBODY
    assert stat.S_IMODE(status.st_mode) == 0o600


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
    assert one.info.header.filters == {"pid": pid}
    assert set(one.columns["pid"].tolist()) == {pid} != {other}
    assert one.pick(kind=EventKind.MAP).sum() > 50
    first, last = one.info.first_ts, one.info.last_ts
    assert first is not None
    assert last is not None
    assert 2 * 10**9 < last - first < 6 * 10**9


def test_nothing_stays_behind_in_the_kernel(guest: Path) -> None:
    """A recorder that was killed cannot clean up: the next one does it."""
    left = {
        name: (guest / f"{name}.kprobe_events").read_text()
        for name in ("story", "flood", "killed", "one")
    }
    assert "exit_mmap_bcc_" in left.pop("killed")
    assert left == {"story": "", "flood": "", "one": ""}


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
