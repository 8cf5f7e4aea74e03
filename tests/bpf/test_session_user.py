"""As whom a recording runs and what it may, its command's user, and its places."""

from __future__ import annotations

import contextlib
import os
import pwd
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from recording import DROP, LOST, FakeLoader, in_a_child, info, record, signal_when

from cdmtrace import command, looking, privileges, session
from cdmtrace.caller import user
from cdmtrace.cli import main
from cdmtrace.errors import TraceWriteError
from cdmtrace.events import Lost, Probe
from cdmtrace.format.reader import TraceReader
from cdmtrace.format.writer import TraceWriter
from cdmtrace.privileges import Capability

pytestmark = [pytest.mark.bpf, pytest.mark.usefixtures("recording_here")]


@pytest.fixture
def open_place(recording_here: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
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
