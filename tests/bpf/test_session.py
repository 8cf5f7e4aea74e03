"""A recording's life: commands, signals, time, losses. The ring is a real one.

What fills it is not: there are no kprobes on the machines that this runs on, so
the loader is a stand-in that makes an empty ring and counts losses that we invent.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import pwd
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from fakemachine import NAMES, pretend

from cdmtrace import command, drain, looking, privileges, recorder, session
from cdmtrace.caller import user
from cdmtrace.cli import main
from cdmtrace.errors import RecordError, TraceWriteError
from cdmtrace.events import EVENT_DTYPE, EventKind, Lost, Probe
from cdmtrace.format.reader import TraceInfo, TraceReader
from cdmtrace.format.writer import TraceWriter
from cdmtrace.kernel import bpf, symbols
from cdmtrace.kernel.btf import load_library
from cdmtrace.losses import Losses, Missing, Waiting, Where
from cdmtrace.planning import Plan
from cdmtrace.privileges import Capability

pytestmark = pytest.mark.bpf


class FakeLoader:
    """Stands in for ProgramLoader. ``log`` has what was done, in order."""

    log: ClassVar[list[str]] = []
    open: ClassVar[list[Waiting]] = []
    followed: ClassVar[set[int]] = set()
    losses: ClassVar[list[tuple[Probe, Lost, int]]] = []
    """One is taken, from the front, each time that the counters are read."""

    def __init__(self, numbers: dict[str, int]) -> None:
        size = numbers["RING_PAGES"] * os.sysconf("SC_PAGE_SIZE")
        create = load_library().bpf_map_create
        self.ring_fd = create(bpf.MAP_RINGBUF, b"ring", 0, 0, size, None)
        assert self.ring_fd >= 0
        self.counts: dict[Where, Missing] = {}

    @classmethod
    def make(
        cls,
        how: str,
        numbers: dict[str, int],
        say: Callable[[str], None],
        *,
        with_headers: bool,
    ) -> FakeLoader:
        say("compiling the probes")
        return cls(numbers)

    def attach(self, plans: tuple[Plan, ...]) -> None:
        self.log.append("attach")

    def enable(self, on: bool) -> None:
        self.log.append(f"enable {on}, started: {Path('started').exists()}")

    def follow(self, pid: int, on: bool) -> None:
        (self.followed.add if on else self.followed.discard)(pid)

    def follow_cgroup(self, group: Path) -> None:
        self.log.append(f"cgroup {group}")

    def lost(self) -> Losses:
        if self.losses and "enable" in self.log[-1]:
            probe, reason, count = self.losses.pop(0)
            where = Where(probe, reason)
            old = self.counts[where].count if where in self.counts else 0
            self.counts[where] = Missing(old + count)
        return dict(self.counts)

    def stack(self, number: int) -> tuple[str, ...]:
        raise AssertionError(f"no event names stack {number}")

    def waiting(self) -> list[Waiting]:
        return self.open

    def needs_capability(self) -> bool:
        return False

    def close(self) -> None:
        os.close(self.ring_fd)
        self.log.append("close")


DROP = privileges.drop
LOST = FakeLoader.lost


@pytest.fixture(autouse=True)
def _machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    try:
        able = os.geteuid() == 0 and bpf.has_map_type(bpf.MAP_RINGBUF)
    except RecordError:
        able = False
    if not able:
        reason = "making a BPF ring needs root and a kernel that has them"
        if os.environ.get("CDMTRACE_KERNEL_TESTS") == "1":
            pytest.fail(reason)
        pytest.skip(reason)
    pretend(tmp_path, monkeypatch)
    monkeypatch.setattr(FakeLoader, "log", [])
    monkeypatch.setattr(FakeLoader, "losses", [])
    monkeypatch.setattr(FakeLoader, "open", [])
    monkeypatch.setattr(FakeLoader, "followed", set())
    monkeypatch.setattr(recorder, "record_loader", FakeLoader.make)


def record(*words: str) -> int:
    return main(["record", "--ring-pages", "1", "-o", "x.arrows", *words])


def info() -> TraceInfo:
    with TraceReader("x.arrows") as trace:
        return trace.info


def rows() -> list[dict[str, Any]]:
    with TraceReader("x.arrows") as trace:
        return trace.read().to_pylist()


def signal_when(path: str, number: signal.Signals, *, group: bool = False) -> None:
    """Send ourselves a signal, or our process group, as soon as there is a file."""

    # Should it never come, it must not be found where another test is.
    file = Path(path).absolute()

    def send() -> None:
        while not file.exists():
            time.sleep(0.05)
        (os.killpg if group else os.kill)(os.getpid(), number)

    threading.Thread(target=send, daemon=True).start()


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


@pytest.fixture
def open_place(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A directory where everybody may make files; that of a test is root's alone."""
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        place.chmod(0o1777)
        monkeypatch.chdir(place)
        yield place


def as_who_called_sudo(monkeypatch: pytest.MonkeyPatch, uid: int, gid: int) -> None:
    monkeypatch.setenv("SUDO_UID", str(uid))
    monkeypatch.setenv("SUDO_GID", str(gid))


def test_the_command_is_run_as_who_called_sudo(
    open_place: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    nobody = pwd.getpwnam("nobody")
    as_who_called_sudo(monkeypatch, nobody.pw_uid, nobody.pw_gid)
    script = 'id -u; id -g; id -G; echo "$HOME $USER $LOGNAME"; env | grep -c SUDO_'
    groups_before = os.getgroups()
    os.setgroups([0, 1])
    try:
        assert record("--", "sh", "-c", script) == 1
    finally:
        os.setgroups(groups_before)
    status = Path("x.arrows").stat()
    uid, gid, groups, names, of_sudo = capfd.readouterr().out.splitlines()
    assert (int(uid), int(gid)) == (nobody.pw_uid, nobody.pw_gid)
    wanted = os.getgrouplist("nobody", nobody.pw_gid)
    assert sorted(map(int, groups.split())) == sorted(wanted)
    assert names == f"{nobody.pw_dir} nobody nobody"
    assert of_sudo == "0"
    assert (status.st_uid, status.st_gid) == (nobody.pw_uid, nobody.pw_gid)
    assert status.st_mode & 0o777 == 0o600


def test_who_called_sudo_gets_no_file_where_only_root_may_write(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    as_who_called_sudo(monkeypatch, 54321, 54322)
    assert record("--", "touch", "started") == 125
    err = capfd.readouterr().err
    assert "cdmtrace: .: user 54321, who called sudo, may not write there" in err
    assert "hint: name a file in a directory of theirs" in err
    assert FakeLoader.log == []
    assert not Path("x.arrows").exists()


TELL = """
import os, resource, signal
from pathlib import Path
for line in Path("/proc/self/status").read_text().splitlines():
    if line.startswith(("Sig", "Shd", "Cap", "NoNew", "Seccomp:")):
        print(line)
print(os.getcwd(), oct(os.umask(0)), os.getpriority(os.PRIO_PROCESS, 0))
print(sorted(os.listdir("/proc/self/fd"))[:-1], os.getpgrp() == os.getppid())
for name in dir(resource):
    if name.startswith("RLIMIT_"):
        print(name, resource.getrlimit(getattr(resource, name)))
"""


@pytest.mark.parametrize("sudo", [False, True])
def test_a_command_is_like_one_that_nobody_records(
    sudo: bool,
    open_place: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Signals, limits, files, directory, mask: as if who called had started it."""
    words = ["/usr/bin/python3", "-ISc", TELL]
    ids: dict[str, Any] = {}
    if sudo:
        ids = {"user": 54321, "group": 54322, "extra_groups": [54322]}
    subprocess.run(words, check=True, **ids)
    alone = capfd.readouterr().out
    assert "RLIMIT_MEMLOCK" in alone
    if sudo:
        as_who_called_sudo(monkeypatch, 54321, 54322)
    assert record("--", *words) == 0
    assert capfd.readouterr().out == alone


def test_a_command_is_not_left_alone_when_the_file_cannot_be_written(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def full(*_: object, lost: object = (), **__: object) -> None:
        if lost:
            raise TraceWriteError("x.arrows: cannot write it: No space left on device")

    monkeypatch.setattr(TraceWriter, "write", full)
    monkeypatch.setattr(looking.snapshot, "processes", frozenset)
    FakeLoader.losses += [(Probe.ALLOC, Lost.RING, 1)]
    # The first look at the ring may be before the shell has written its pid.
    monkeypatch.setattr(session, "DRAIN_INTERVAL", 0.5)
    script = "echo $$ > pid; exec sleep 1000"
    assert record("--", "sh", "-c", script) == 125
    pid = int(Path("pid").read_text())
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_a_thread_is_no_process(capfd: pytest.CaptureFixture[str]) -> None:
    stop = threading.Event()
    thread = threading.Thread(target=stop.wait)
    thread.start()
    try:
        assert record("--pid", str(thread.native_id)) == 2
    finally:
        stop.set()
        thread.join()
    assert f"is a thread of process {os.getpid()}" in capfd.readouterr().err
    assert not Path("x.arrows").exists()


@pytest.mark.usefixtures("open_place")
def test_a_uid_without_a_name(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    as_who_called_sudo(monkeypatch, 54321, 54322)
    assert record("--", "sh", "-c", "id -u; id -G") == 0
    assert capfd.readouterr().out == "54321\n54322\n"


@pytest.mark.parametrize("sudo", [False, True])
@pytest.mark.parametrize(
    ("words", "kept"),
    [
        (("--duration", "0.1"), set()),
        (("--", "true"), {Capability.KILL}),
        (("--audit", "9", "--duration", "0.1"), {Capability.SYS_PTRACE}),
    ],
)
def test_what_is_kept_of_the_privileges(
    words: tuple[str, ...],
    kept: set[Capability],
    sudo: bool,
    open_place: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What is left to do decides; it is asked for when the command has started."""
    asked: list[Any] = []

    def drop(*question: Any) -> list[str]:
        asked.append(question)
        assert FakeLoader.log == ["attach", "enable True, started: False"]
        assert Path("x.arrows").exists()
        return ["thread 7 keeps its privileges"]

    monkeypatch.setattr(privileges, "drop", drop)
    monkeypatch.setattr(looking.snapshot, "processes", frozenset)
    if sudo:
        as_who_called_sudo(monkeypatch, 54321, 54322)
    assert record(*words) == 0
    assert asked == [(kept, user(54321, 54322) if sudo else None)]


@pytest.mark.parametrize("sudo", [False, True])
@pytest.mark.parametrize(
    "words", [("--rotate", "1M"), ("--ready-file", "ready")], ids=["rotate", "ready"]
)
def test_root_keeps_the_right_to_what_it_will_make_and_remove(
    words: tuple[str, ...],
    sudo: bool,
    open_place: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The directory may be another user's; who called sudo writes to their own."""
    asked: list[Any] = []

    def drop(keep: Any, who: Any) -> list[str]:
        asked.append(keep)
        return []

    monkeypatch.setattr(privileges, "drop", drop)
    monkeypatch.setattr(looking.snapshot, "processes", frozenset)
    if sudo:
        as_who_called_sudo(monkeypatch, 54321, 54322)
    assert record("--duration", "0.1", *words) == 0
    assert asked == [set() if sudo else {Capability.DAC_OVERRIDE}]


def test_processes_that_end_before_they_are_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One is waited for no more; where it was the only one, that is the end."""
    with contextlib.ExitStack() as stack:
        ended, alive = (
            stack.enter_context(subprocess.Popen(["sleep", "1000"])) for _ in range(2)
        )
        stack.callback(alive.kill)

        def look(pid: int) -> None:
            ended.kill()
            ended.wait()

        monkeypatch.setattr(looking.snapshot, "look", look)
        words = ["--pid", str(ended.pid), "--duration", "0.3"]
        both = [*words, "--pid", str(alive.pid)]
        # The second time there is nobody of that number to begin with.
        begin = time.monotonic()
        assert record(*both) == 0
        assert info().end == "time was up"
        assert time.monotonic() - begin >= 0.3
        ended = stack.enter_context(subprocess.Popen(["sleep", "1000"]))
        words[1] = str(ended.pid)
        assert record("-f", *words) == 0
    assert info().end == "the traced process ended"


def in_a_child(work: Callable[[], int]) -> int:
    """Do it in a process that may lose its privileges; return its status."""
    pid = os.fork()
    if not pid:
        status = 99
        try:
            status = work()
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_a_command_of_another_user_is_ended_too(
    open_place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That takes CAP_KILL, which is kept for it."""
    monkeypatch.setattr(privileges, "drop", DROP)
    command = ("setpriv", "--reuid", "54321", "--clear-groups", "sleep", "1000")
    status = in_a_child(lambda: record("--duration", "0.7", "--", *command))
    assert status == 128 + signal.SIGTERM
    assert info().end == "time was up"


def test_a_command_that_we_may_not_end_is_left_alone(
    open_place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The recording ends all the same, and well."""
    monkeypatch.setattr(command, "LINGER", 0.3)
    monkeypatch.setattr(privileges, "drop", lambda keep, who: DROP((), who))
    become = "exec setpriv --reuid 54321 --clear-groups"
    script = f"echo $$ >pid; {become} sh -c ': >theirs; exec sleep 1000'"
    monkeypatch.setattr(looking.snapshot, "processes", frozenset)

    def work() -> int:
        signal_when("theirs", signal.SIGTERM)
        return record("--", "sh", "-c", script)

    begin = time.monotonic()
    status = in_a_child(work)
    try:
        assert time.monotonic() - begin < 60
        assert status == 128 + signal.SIGTERM
        assert info().clean_end
    finally:
        os.kill(int(Path("pid").read_text()), signal.SIGKILL)


@pytest.fixture
def small(open_place: Path) -> Iterator[Path]:
    """A file system of our own, with room for little."""
    place = open_place / "small"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(place)]
    if subprocess.run(mount, check=False).returncode:
        pytest.skip("nothing can be mounted here")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def test_a_file_system_that_is_read_only(
    small: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """It is said before anything is compiled."""
    subprocess.run(["mount", "-o", "remount,ro", str(small)], check=True)
    assert main(["record", "-o", f"{small}/x.arrows", "--", "touch", "started"]) == 125
    assert capfd.readouterr().err.splitlines() == [
        f"cdmtrace: {small}/x.arrows: cannot create it: Read-only file system",
        "  hint: name a file on a writable disk with -o FILE",
    ]
    assert not Path("started").exists()


def test_a_file_system_that_is_full(
    small: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was written before can be read, and the command is ended."""
    monkeypatch.setattr(looking.snapshot, "processes", frozenset)
    FakeLoader.losses += [(Probe.ALLOC, Lost.RING, 1)] * 1000
    monkeypatch.setattr(session, "DRAIN_INTERVAL", 0.001)
    script = "echo $$ >pid; exec sleep 1000"
    words = ("--ring-pages", "1", "-o", f"{small}/x.arrows", "--", "sh", "-c", script)
    monkeypatch.setattr(
        FakeLoader, "lost", lambda self: self.log.append("enable") or LOST(self)
    )
    assert main(["record", *words]) == 125
    assert capfd.readouterr().err.splitlines()[-2:] == [
        f"cdmtrace: {small}/x.arrows: cannot write it: No space left on device",
        "  hint: make room there, or record to another disk with -o FILE",
    ]
    with TraceReader(small / "x.arrows") as trace:
        assert trace.info.lost["alloc"]["ring"] > 10
        assert trace.info.bytes_intact == (small / "x.arrows").stat().st_size
    with pytest.raises(ProcessLookupError):
        os.kill(int(Path("pid").read_text()), 0)
    assert FakeLoader.log[-1] == "close"


def test_an_interpreter_that_is_not_there(capfd: pytest.CaptureFixture[str]) -> None:
    """It is found only when the command is to start."""
    Path("script").write_text("#!/no/such/interpreter\n")
    Path("script").chmod(0o755)
    assert record("--", "./script") == 127
    assert "./script: command not found" in capfd.readouterr().err
    assert FakeLoader.log[-1] == "close"


# --- what is there, and looks at it ---------------------------------------------


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


# --- several files -------------------------------------------------------------------

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
