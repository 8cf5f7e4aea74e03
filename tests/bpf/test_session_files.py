"""A recording in several files."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
from recording import FakeLoader, record

from cdmtrace import drain, looking
from cdmtrace.cli import main
from cdmtrace.events import EVENT_DTYPE, EventKind, Lost, Probe
from cdmtrace.format.reader import TraceReader

pytestmark = [pytest.mark.bpf, pytest.mark.usefixtures("recording_here")]


STACKS = {23: ("do_mbind+0x10", "__x64_sys_mbind+0x20"), 29: ("do_wp_page+0x1",)}


@pytest.fixture
def busy(monkeypatch: pytest.MonkeyPatch) -> list[np.ndarray]:
    """Have the ring hand out what is in the list, the last one first.

    When all of it has been written, a signal ends the recording.
    """
    waiting: list[np.ndarray] = []

    def drained(ring: object, limit: int) -> np.ndarray:
        on = "enable True" in FakeLoader.log[-1]
        if waiting and on:
            return waiting.pop()
        if on:
            signal.raise_signal(signal.SIGTERM)
        return np.empty(0, EVENT_DTYPE)

    monkeypatch.setattr(looking.snapshot, "processes", frozenset)
    monkeypatch.setattr(drain.Ring, "drain", drained)
    monkeypatch.setattr(FakeLoader, "stack", lambda _, number: STACKS[number])
    for number in range(5):
        events = np.zeros(5000, EVENT_DTYPE)
        events["kind"], events["mm"] = EventKind.VMA_SEEN, 7
        events["ts"] = events["ts_entry"] = time.monotonic_ns() + number
        events["stack"][::1000] = list(STACKS)[number % 2]
        waiting.append(events)
    name = np.zeros(1, EVENT_DTYPE)
    name["kind"], name["pid"], name["tid"] = EventKind.COMM, os.getpid(), os.getpid()
    name["nodes"] = int.from_bytes(b"pytest", "little")
    waiting.append(name)
    return waiting


def test_a_recording_in_several_files(
    busy: list[np.ndarray], capfd: pytest.CaptureFixture[str]
) -> None:
    FakeLoader.losses += [(Probe.ALLOC, Lost.RING, 0), (Probe.ALLOC, Lost.RING, 7)]
    assert record("--rotate", "1M") == 0
    files = [f"x.{number:04}.arrows" for number in range(5)]
    assert sorted(path.name for path in Path().glob("*.arrows")) == files
    err = capfd.readouterr().err
    assert f"in 5 files, {files[0]} to {files[-1]}" in err
    assert "next: cdmtrace check x.*.arrows" in err
    read = [TraceReader(name) for name in files]
    for one in read[1:]:
        rows = one.read().to_pylist()
        head = [(row["kind"], row["payload"]) for row in rows[:2]]
        assert head[0] == (EventKind.COMM, b"pytest")
        assert head[1][0] == EventKind.STACK
        number = next(row["stack"] for row in rows[2:] if row["stack"])
        assert head[1][1].decode().split("\n") == list(STACKS[number])
    assert [one.info.end for one in read[:2]] == [
        f"it goes on in {n}" for n in files[1:3]
    ]
    assert read[-1].info.end == "stopped by SIGTERM"
    assert main(["check", *files]) == 3
    out = capfd.readouterr().out
    assert "x.0000.arrows and 4 more parts" in out
    assert "rows missing" not in out
    assert "came before" not in out
    for one in read:
        one.close()


def test_the_last_files_are_kept(busy: list[np.ndarray]) -> None:
    assert record("--rotate", "1MiB", "--rotate-keep", "2") == 0
    assert sorted(path.name for path in Path().glob("x.*")) == [
        "x.0003.arrows",
        "x.0004.arrows",
    ]


def test_the_disk_is_full_when_a_file_is_begun(
    busy: list[np.ndarray],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """What was written can be read, and the command is not left alone."""
    disk = Path("disk")
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2500k", "cdmtrace-test", "disk"]
    if subprocess.run(mount, check=False, capture_output=True).returncode != 0:
        pytest.skip("mounting a tmpfs is not permitted here")
    try:
        words = ("-o", "disk/x.arrows", "--rotate", "1M", "--", "sleep", "1000")
        assert record(*words) == 125
        err = capfd.readouterr().err
        assert err.count("No space left on device") == 1
        assert "make room there" in err
        files = sorted(map(str, disk.glob("*.arrows")))
        events = 0
        for name in files:
            with TraceReader(name) as trace:
                events += trace.info.events
        assert events > 2 * 5000
        assert main(["info", *files]) == 0
        assert main(["check", *files]) in (0, 3)
        assert "the recording was cut" in capfd.readouterr().out
    finally:
        subprocess.run(["umount", "disk"], check=True)
