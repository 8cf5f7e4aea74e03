"""What is there when a recording begins, and audits: who looks at it."""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from recording import info, record, rows

from cdmtrace import drain, looking, recorder
from cdmtrace.events import EVENT_DTYPE, EventKind, Probe

pytestmark = [pytest.mark.bpf, pytest.mark.usefixtures("recording_here")]


@pytest.fixture
def child(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """Return the pid of the only process that there seems to be."""
    with subprocess.Popen(["sleep", "1000"]) as process:
        # exec() closes the pipe that Popen waits for before it sets the name.
        while b"sleep" not in looking.snapshot.name(process.pid):
            time.sleep(0.01)
        found = frozenset({process.pid})
        monkeypatch.setattr(looking.snapshot, "processes", lambda: found)
        yield process.pid
        process.kill()


def all_looked_at() -> list[dict[str, Any]]:
    """Return the rows that say so."""
    return [r for r in rows() if r["kind"] == EventKind.SNAP_MM and not r["mm"]]


@pytest.mark.parametrize("only", [False, True])
def test_the_file_says_that_everything_was_looked_at(
    child: int, only: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With --pid, there is one process."""
    both = frozenset({child, os.getppid()})
    looks: list[int] = []
    monkeypatch.setattr(looking.snapshot, "processes", lambda: both)
    monkeypatch.setattr(looking.snapshot, "look", looks.append)
    assert record("--duration", "0.1", *(["--pid", str(child)] if only else [])) == 0
    assert looks == ([child] if only else sorted(both))
    (row,) = all_looked_at()
    assert row == rows()[0]
    assert row["probe"] == Probe.SNAPSHOT
    assert row["ts"] > info().header.started


@pytest.mark.usefixtures("child")
def test_a_process_that_may_not_be_looked_at(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def refuse(pid: int) -> None:
        raise PermissionError

    monkeypatch.setattr(looking.snapshot, "look", refuse)
    assert record("--audit", "0.1", "--duration", "0.3") == 0
    assert all_looked_at() == []
    assert "1 processes may not be looked at" in capfd.readouterr().err


def test_who_is_forked_meanwhile_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    monkeypatch.setattr(looking.snapshot, "look", seen.append)
    monkeypatch.setattr(
        looking.snapshot,
        "processes",
        lambda: frozenset({5, 7, *({9, 10} if seen else ())}),
    )
    assert record("--duration", "0.1") == 0
    assert seen == [5, 7, 9, 10]
    assert len(all_looked_at()) == 1


def test_processes_that_never_end_to_come(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    seen: list[int] = []
    monkeypatch.setattr(looking.snapshot, "look", seen.append)
    monkeypatch.setattr(
        looking.snapshot, "processes", lambda: frozenset({len(seen) + 1})
    )
    assert record("--", "true") == 0
    assert len(seen) == looking.LOOK_ROUNDS
    assert all_looked_at() == []
    assert "come faster than they can be looked at" in capfd.readouterr().err


def test_who_stops_the_look_starts_no_command(monkeypatch: pytest.MonkeyPatch) -> None:
    # Not SIGINT: where these tests run in the background, that is ignored.
    monkeypatch.setattr(looking.snapshot, "processes", lambda: frozenset({5, 7}))
    monkeypatch.setattr(
        looking.snapshot, "look", lambda pid: signal.raise_signal(signal.SIGTERM)
    )
    assert record("--", "touch", "started") == 128 + signal.SIGTERM
    assert not Path("started").exists()
    assert all_looked_at() == []
    assert info().end == "stopped by SIGTERM"


def test_nothing_to_look_with(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    known = recorder.symbols.functions()
    monkeypatch.setattr(
        recorder.symbols, "functions", lambda: known - {"show_numa_map"}
    )
    assert record("--duration", "0.1") == 0
    assert all_looked_at() == []
    err = capfd.readouterr().err
    why = "no show_numa_map on this kernel"
    assert f"not known whole: snapshot is not attached: {why}" in err
    assert f"{why}: snapshot was not recorded" in err


def test_the_header_says_what_was_not_attached_and_why(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    known = recorder.symbols.functions()
    monkeypatch.setattr(recorder.symbols, "functions", lambda: known - {"exit_mmap"})
    words = ("--no-probe", "rmap_walk", "--no-probe", "sys_brk", "--duration", "0.1")
    assert record(*words) == 0
    absent = {p.name: p.why_not for p in info().header.probes if p.symbol is None}
    assert absent == {
        "rmap_walk": "not asked for",
        "sys_brk": "not asked for",
        "exit_mmap": "no exit_mmap on this kernel",
    }
    # Nobody has to be told of what he has asked for.
    err = capfd.readouterr().err
    assert "exit_mmap was not recorded" in err
    assert "rmap_walk" not in err


def test_where_pages_are_is_told_with_their_counts(
    child: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The counts come through the ring while the recorder looks."""
    page = os.sysconf("SC_PAGE_SIZE")
    counts = np.zeros(2, EVENT_DTYPE)
    counts["kind"] = EventKind.SNAP_VMA, EventKind.SNAP_PAGES
    counts["mm"], counts["pid"], counts["node"] = 23, child, 1
    counts["start"], counts["end"], counts["size"] = 8 * page, 24 * page, 3 * page
    waiting: list[np.ndarray] = []
    asked: list[tuple[int, ...]] = []

    def runs_on(*question: int) -> np.ndarray:
        asked.append(question)
        return np.array([[9 * page, 2 * page], [20 * page, page]], np.uint64)

    def drained(ring: object, limit: int) -> np.ndarray:
        return waiting.pop() if waiting else np.empty(0, EVENT_DTYPE)

    monkeypatch.setattr(looking.snapshot, "look", lambda _: waiting.append(counts))
    monkeypatch.setattr(looking.snapshot, "runs_on", runs_on)
    monkeypatch.setattr(drain.Ring, "drain", drained)
    assert record("--duration", "0.1") == 0
    assert asked == [(child, 8 * page, 24 * page, 1, 3)]
    told = rows()
    assert [row["kind"] for row in told] == [
        EventKind.SNAP_VMA,
        EventKind.SNAP_PAGES,
        EventKind.COMM,
        EventKind.SNAP_RANGES,
        EventKind.SNAP_MM,
    ]
    name, ranges = told[2:4]
    assert (name["tid"], name["payload"].rstrip(b"\0")) == (child, b"sleep")
    columns = ("mm", "pid", "node", "start", "end")
    assert [ranges[column] for column in columns] == [23, child, 1, 8 * page, 24 * page]
    assert np.frombuffer(ranges["payload"], np.uint64).tolist() == [
        *(9 * page, 2 * page),
        *(20 * page, page),
    ]
    assert ranges["ts_entry"] < ranges["ts"]


@pytest.mark.parametrize(
    ("words", "count"),
    # One look at the start and one at the end, whatever the time.
    [((), 1), (("--audit", "1000"), 2)],
)
def test_an_audit_looks_at_the_end(
    child: int, words: tuple[str, ...], count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[int] = []
    monkeypatch.setattr(looking.snapshot, "look", looks.append)
    assert record("--duration", "0.9", *words) == 0
    assert looks == [child] * count


def test_an_audit_looks_again_and_again(
    child: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[tuple[float, int]] = []

    def look(pid: int) -> None:
        looks.append((time.monotonic(), pid))
        if len(looks) == 4:
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(looking.snapshot, "look", look)
    assert record("--audit", "0.2") == 0
    # The last one is that at the end, which waits for nothing.
    assert [pid for _, pid in looks] == [child] * 5
    times = [when for when, _ in looks[:-1]]
    assert all(later - when >= 0.2 for when, later in itertools.pairwise(times))


def test_an_audit_looks_while_a_cgroup_stands_still(
    child: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    group = Path("group")
    group.mkdir()
    (group / "cgroup.freeze").write_text("0")
    done: list[object] = []

    @contextlib.contextmanager
    def frozen(where: Path, meanwhile: Callable[[], None]) -> Iterator[None]:
        meanwhile()
        done.append(where)
        yield
        done.append("on")

    monkeypatch.setattr(looking.cgroup, "frozen", frozen)
    monkeypatch.setattr(looking.snapshot, "look", done.append)
    assert record("--duration", "0.1", "--audit", "9", "--freeze", str(group)) == 0
    assert done == [child, group, child, "on"]
