"""A recording's life: commands, signals, time, losses."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fakemachine import NAMES
from recording import FakeLoader, in_a_child, info, record, rows, signal_when

from cdmtrace import command, drain, looking, session
from cdmtrace.errors import RecordError
from cdmtrace.events import EVENT_DTYPE, EventKind, Lost, Probe
from cdmtrace.kernel import symbols
from cdmtrace.losses import Waiting

pytestmark = [pytest.mark.bpf, pytest.mark.usefixtures("recording_here")]


@pytest.mark.parametrize(
    ("script", "status"),
    [
        ("exit 0", 0),
        ("exit 1", 1),
        ("exit 255", 255),
        ("kill -TERM $$", 143),
        ("kill -KILL $$", 137),
    ],
)
def test_the_command_s_status(
    script: str, status: int, capfd: pytest.CaptureFixture[str]
) -> None:
    assert record("--", "sh", "-c", script) == status
    assert capfd.readouterr().out == ""
    assert info().end == "the command ended"
    assert info().torn is None


def test_the_command_starts_last_and_is_watched_to_its_end() -> None:
    assert record("--", "touch", "started") == 0
    assert FakeLoader.log == [
        "attach",
        "enable True, started: False",
        "enable False, started: True",
        "close",
    ]


def test_the_command_s_streams_are_its_own(capfd: pytest.CaptureFixture[str]) -> None:
    assert record("--", "sh", "-c", "echo out; echo err >&2") == 0
    out, err = capfd.readouterr()
    assert out == "out\n"
    assert "err\n" in err


def test_time_is_up() -> None:
    begin = time.monotonic()
    assert record("--duration", "0.3") == 0
    assert 0.3 <= time.monotonic() - begin < 60
    assert info().end == "time was up"


def test_a_command_is_ended_when_time_is_up() -> None:
    assert record("--duration", "0.3", "--", "sleep", "1000") == 128 + signal.SIGTERM
    assert info().end == "time was up"


def test_a_command_that_will_not_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "LINGER", 0.3)
    script = "trap '' TERM; : >deaf; while :; do sleep 0.1; done"
    signal_when("deaf", signal.SIGTERM)
    assert record("--", "sh", "-c", script) == 128 + signal.SIGKILL


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_a_recording_well(number: signal.Signals) -> None:
    # Whoever runs the tests in the background may ignore it, and so would we.
    outside = signal.signal(number, signal.SIG_DFL)
    try:
        signal_when("ready", number)
        assert record("--ready-file", "ready") == 0
        assert signal.getsignal(number) == signal.SIG_DFL
    finally:
        signal.signal(number, outside)
    assert info().end == f"stopped by {number.name}"
    assert info().clean_end


@pytest.mark.parametrize("everybody", [False, True])
def test_ctrl_c_is_for_the_command_too(
    everybody: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It ends as it wants to; one that was not told is sent SIGTERM in the end."""
    monkeypatch.setattr(command, "GRACE", 60.0 if everybody else 1.0)
    monkeypatch.setattr(looking.snapshot, "processes", frozenset)

    def work() -> int:
        os.setsid()
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal_when("ready", signal.SIGINT, group=everybody)
        trap = "trap 'sleep 0.3; exit 7' INT; trap 'exit 8' TERM"
        script = f"{trap}; : >ready; while :; do sleep 0.1; done"
        return record("--", "sh", "-c", script)

    assert in_a_child(work) == (7 if everybody else 8)
    assert info().end == "stopped by SIGINT"


@pytest.mark.parametrize(
    ("number", "status"),
    [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 143)],
)
def test_a_signal_before_anything_is_recorded(
    number: signal.Signals, status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was attached by then is detached, and there is no file."""
    done = Path("closed")

    def close(self: FakeLoader) -> None:
        # One more must not keep it from that.
        os.kill(os.getpid(), signal.SIGTERM)
        done.touch()

    def work() -> int:
        signal.signal(number, signal.SIG_DFL)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        monkeypatch.setattr(
            FakeLoader, "attach", lambda *_: os.kill(os.getpid(), number)
        )
        monkeypatch.setattr(FakeLoader, "close", close)
        return record("--", "touch", "started")

    assert in_a_child(work) == status
    assert done.exists()
    assert not Path("x.arrows").exists()
    assert not Path("started").exists()


def test_a_signal_while_all_is_detached(monkeypatch: pytest.MonkeyPatch) -> None:
    """It has to wait until that is done."""
    done = Path("closed")

    def attach(*_: object) -> None:
        raise RecordError("cannot be attached")

    def close(self: FakeLoader) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        done.touch()

    def work() -> int:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        monkeypatch.setattr(FakeLoader, "attach", attach)
        monkeypatch.setattr(FakeLoader, "close", close)
        return record("--", "touch", "started")

    assert in_a_child(work) == 143
    assert done.exists()


def test_a_signal_that_is_ignored_stays_so() -> None:
    """nohup means it."""
    outside = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        timer = threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGHUP))
        timer.start()
        assert record("--duration", "0.6") == 0
        timer.join()
    finally:
        signal.signal(signal.SIGHUP, outside)
    assert info().end == "time was up"


def test_a_process_that_ends() -> None:
    with subprocess.Popen(["sleep", "0.3"]) as process:
        # Nobody waits for it before the recording has ended: a zombie has ended too.
        assert record("--pid", str(process.pid)) == 0
    assert info().end == "the traced process ended"
    assert info().header.filters == {"pid": [process.pid], "children": True}


def test_several_processes_are_waited_for_to_the_last() -> None:
    begin = time.monotonic()
    with (
        subprocess.Popen(["sleep", "0.3"]) as first,
        subprocess.Popen(["sleep", "1.3"]) as last,
    ):
        assert record("--pid", str(first.pid), "--pid", str(last.pid)) == 0
        assert time.monotonic() - begin > 1
        assert FakeLoader.followed == {first.pid, last.pid}
    assert info().end == "the traced process ended"


def test_so_many_events(monkeypatch: pytest.MonkeyPatch) -> None:
    """The last one ends the file; names and looks do not count."""
    kinds = [EventKind.COMM, EventKind.MAP, EventKind.SNAP_VMA, EventKind.UNMAP]

    def drained(ring: object, rows: int) -> Any:
        del ring, rows
        events = np.zeros(8, EVENT_DTYPE)
        events["kind"] = kinds * 2
        return events

    monkeypatch.setattr(drain.Ring, "drain", drained)
    monkeypatch.setattr(looking, "look_before", lambda *_: "")
    script = "touch started; exec sleep 1000"
    assert record("--max-events", "7", "--", "sh", "-c", script) == 143
    found = info()
    assert found.end == "7 events were recorded"
    told = [row["kind"] for row in rows()]
    begun = len(told) - 14
    # One drain before it begins, of which nothing counts; then 4 a drain.
    assert told[begun:] == (kinds * 4)[:14]
    assert found.torn is None


def test_the_command_runs_before_recording_begins() -> None:
    script = "touch started; until [ -e ready ]; do sleep 0.1; done"
    begin = time.monotonic()
    words = ("--delay", "1.5", "--ready-file", "ready", "--", "sh", "-c", script)
    assert record(*words) == 0
    assert time.monotonic() - begin > 1.5
    assert FakeLoader.log[1] == "enable True, started: True"
    assert info().end == "the command ended"


def test_a_duration_begins_when_recording_does() -> None:
    begin = time.monotonic()
    assert record("--delay", "0.6", "--duration", "0.6") == 0
    assert time.monotonic() - begin > 1.2
    assert info().end == "time was up"


def test_a_command_that_ends_before_recording_begins() -> None:
    assert record("--delay", "60", "--", "sh", "-c", "exit 7") == 7
    assert info().end == "the command ended before recording began"
    assert FakeLoader.log == ["attach", "enable False, started: False", "close"]
    assert rows() == []


def test_a_signal_before_recording_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    wait = session.Session._wait

    def pressed(*arguments: Any) -> str:
        signal.raise_signal(signal.SIGINT)
        return wait(*arguments)

    monkeypatch.setattr(session.Session, "_wait", pressed)
    # Who starts the tests in the background ignores it, and then it is ignored.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    assert record("--delay", "60") == 0
    signal.signal(signal.SIGINT, before)
    assert info().end == "stopped by SIGINT"


def test_scripts_can_wait_for_a_file() -> None:
    """It is there before the command starts, and after it has ended no more."""
    script = "test -e ready && test ! -s ready"
    assert record("--ready-file", "ready", "--", "sh", "-c", script) == 0
    assert not Path("ready").exists()


def test_a_ready_file_that_cannot_be_made(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """It came meanwhile: then nobody waits for us, and nothing is left behind."""
    before = looking.look_before

    def look(*arguments: Any) -> str:
        Path("ready").write_text("another's")
        return before(*arguments)

    monkeypatch.setattr(looking, "look_before", look)
    assert record("--ready-file", "ready", "--", "touch", "started") == 125
    assert "--ready-file ready: cannot be made: File exists" in capfd.readouterr().err
    assert Path("ready").read_text() == "another's"
    assert not Path("started").exists()
    assert FakeLoader.log[-1] == "close"


def test_missing_probes_are_told_or_not(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    functions = NAMES["functions"] - {"ksm_madvise"}
    monkeypatch.setattr(symbols, "functions", lambda: functions)
    for words, told in (([], True), (["--missing-probes", "ignore"], False)):
        assert record("-f", *words, "--duration", "0.1") == 0
        assert ("ksm_madvise was not recorded" in capfd.readouterr().err) is told


def test_losses_are_counted_once_and_placed(
    capfd: pytest.CaptureFixture[str],
) -> None:
    FakeLoader.losses += [
        (Probe.ALLOC, Lost.RING, 23),
        (Probe.ALLOC, Lost.RING, 0),
        (Probe.ALLOC, Lost.RING, 1),
        (Probe.ZAP, Lost.UNPAIRED, 7),
    ]
    assert record("--duration", "1") == 0
    found = info()
    assert found.lost == {"alloc": {"ring": 24}, "zap": {"unpaired": 7}}
    assert [loss.count for loss in found.losses] == [23, 1, 7]
    first, second, _ = found.losses
    assert found.header.started == first.since < first.until
    # What was lost before the first look cannot be lost again after it.
    assert first.since < second.since < second.until
    assert " 31 lost" in capfd.readouterr().err


def test_what_has_not_returned_is_told_at_the_end() -> None:
    """A call that has to do with CDM as a row, a function as a loss."""
    call = Waiting(
        probe=Probe.SYS_MBIND,
        call=23,
        concerns=True,
        ts=1000,
        pid=5,
        tid=7,
        mm=11,
        policy=2,
        nodes=2,
        args=(0x10001000, 0x1001, 2, 0x7FFF, 65, 3),
    )
    moving = replace(call, probe=Probe.SYS_MOVE_PAGES, ts=900, call=22, mm=0)
    FakeLoader.open += [
        call,
        moving,
        replace(call, concerns=False),
        Waiting(probe=Probe.MIGRATE_PAGES, call=0, concerns=False),
        Waiting(probe=Probe.MIGRATE_PAGES, call=0, concerns=True),
    ]
    assert record("--duration", "0.2") == 0
    assert info().lost == {"migrate_pages": {"unpaired": 2}}
    first, second = (row for row in rows() if row["kind"] == EventKind.CALL_OPEN)
    assert (first["probe"], first["addr"], first["arg"]) == (moving.probe, 0, 3)
    names = ("pid", "tid", "call", "mm", "ts_entry", "other", "other_policy", "arg")
    assert [second[name] for name in names] == [5, 7, 23, 11, 1000, 2, 2, 3]
    assert (second["addr"], second["size"]) == (0x10001000, 0x1001)
    assert (second["start"], second["end"]) == (0x10001000, 0x10003000)
    assert second["ts"] > info().header.started
