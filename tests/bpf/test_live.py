"""``record --live``: the viewer is another process, and recording does not need it."""

from __future__ import annotations

import os
import pwd
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from terminal import ALTERNATE, ROOT, Terminal

from cdmtrace import privileges
from cdmtrace.errors import RecordError
from cdmtrace.format.reader import TraceReader
from cdmtrace.kernel import bpf
from cdmtrace.privileges import Capability

pytestmark = pytest.mark.bpf

SCRIPT = str(ROOT / "tests/bpf/livescript.py")
OWN = ("ts", "ts_entry", "seq")
LONG = 120
"""Seconds: who draws is niced, and has to wait where a guest keeps each cpu busy."""
STOPPED = "cdmtrace: stopped by SIGTERM; "


@pytest.fixture(autouse=True)
def _root() -> None:
    try:
        able = os.geteuid() == 0 and bpf.has_map_type(bpf.MAP_RINGBUF)
    except RecordError:
        able = False
    if not able:
        if os.environ.get("CDMTRACE_KERNEL_TESTS") == "1":
            pytest.fail("making a BPF ring needs root and a kernel that has them")
        pytest.skip("making a BPF ring needs root and a kernel that has them")


def wait_for(what: Callable[[], object]) -> None:
    deadline = time.monotonic() + LONG
    while not what():
        if time.monotonic() > deadline:
            raise TimeoutError(what)
        time.sleep(0.05)


class Recording:
    """A recorder on a terminal of its own, in a directory of its own."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.path = directory / "x.arrows"
        self.terminal = Terminal()
        self.process: subprocess.Popen[bytes] | None = None
        self.out = directory.with_name(f"{directory.name}.out")

    def start(self, *words: str, first: str = "", **environment: str) -> None:
        """Record. first: what is done in the process before."""
        self.directory.mkdir()
        # For who called sudo.
        self.directory.chmod(0o1777)
        run = f"runpy.run_path({SCRIPT!r}, run_name='__main__')"
        code = f"import runpy, signal; {first}\n{run}"
        with self.out.open("wb") as out:
            self.process = self.terminal.run(
                *("-c", code, str(self.directory), *words),
                stdout=out.fileno(),
                environment={
                    "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}:{ROOT / 'tests/bpf'}",
                    # No thread that would keep the recorder's privileges.
                    **privileges.SINGLE,
                    **environment,
                },
            )

    @property
    def viewer(self) -> int:
        """The process that draws, 0 as long as there is none."""
        assert self.process is not None
        pid = self.process.pid
        try:
            children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        except FileNotFoundError:
            return 0
        found = [
            int(child)
            for child in children
            if b"cdmtrace.live.child" in Path(f"/proc/{child}/cmdline").read_bytes()
        ]
        return found[0] if found else 0

    def shows(self, text: str) -> None:
        """Wait until this is somewhere in what was drawn."""
        terminal = self.terminal
        terminal.until(lambda: text in terminal.text, text, LONG)

    def go(self) -> None:
        """Let events come."""
        (self.directory / "go").touch()

    def end(self) -> None:
        """End the recording, when all events are written; nothing drawn is read."""
        assert self.process is not None
        wait_for((self.directory / "written").exists)
        self.process.send_signal(signal.SIGTERM)

    def finish(self) -> int:
        assert self.process is not None
        return self.terminal.finish(self.process, LONG)

    def is_whole(self) -> bool:
        """Whether the file has its end."""
        with TraceReader(self.path) as trace:
            return trace.info.clean_end

    def rows(self) -> list[dict[str, Any]]:
        """Return what is in the file, but for times."""
        with TraceReader(self.path) as trace:
            assert trace.info.clean_end
            assert trace.info.torn is None
            rows: list[dict[str, Any]] = trace.read().to_pylist()
        return [{k: v for k, v in row.items() if k not in OWN} for row in rows]

    def close(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        with self.terminal:
            pass


@pytest.fixture
def recording() -> Iterator[Recording]:
    # What is pytest's is root's alone.
    with tempfile.TemporaryDirectory() as place:
        Path(place).chmod(0o755)
        one = Recording(Path(place) / "live")
        yield one
        one.close()


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """The rows of a recording that nobody looks at."""
    one = Recording(tmp_path_factory.mktemp("plain") / "plain")
    one.start()
    one.go()
    one.end()
    assert one.finish() == 0
    assert ALTERNATE not in one.terminal.raw
    rows = one.rows()
    one.close()
    assert len(rows) > 500
    return rows


def test_it_is_shown_and_the_file_is_the_same(
    recording: Recording, plain: list[dict[str, Any]]
) -> None:
    recording.start("--live")
    terminal = recording.terminal
    recording.shows("recording")
    recording.go()
    recording.shows("CDM014 implicit-allocation")
    recording.shows("up to date")
    recording.end()
    assert recording.finish() == 0
    assert terminal.in_order
    assert recording.rows() == plain
    # stdout is left empty, and the usual lines come when nothing is drawn any more.
    assert recording.out.read_bytes() == b""
    before, _, after = terminal.raw.decode().partition("\x1b[?1049l")
    assert before.startswith(
        "cdmtrace: compiling the probes\r\ncdmtrace: attaching\r\n"
    )
    said = after[after.index("cdmtrace: looking") :].splitlines()
    assert said[:2] == ["cdmtrace: looking at what is there", "cdmtrace: recording"]
    assert said[2].startswith(STOPPED)
    assert said[3] == "cdmtrace: next: cdmtrace check x.arrows"
    assert len(said) == 4


def test_a_viewer_that_is_killed(
    recording: Recording, plain: list[dict[str, Any]]
) -> None:
    recording.start("--live")
    terminal = recording.terminal
    recording.shows("recording")
    viewer = recording.viewer
    os.kill(viewer, signal.SIGKILL)
    recording.shows("the live view has ended (SIGKILL); recording goes on")
    assert terminal.in_order
    # The program leaves this pid out: while it records, nobody else may have it.
    assert Path(f"/proc/{viewer}").exists()
    recording.go()
    recording.end()
    assert recording.finish() == 0
    assert recording.rows() == plain
    assert STOPPED in terminal.text
    assert "Traceback" not in terminal.text


def test_a_viewer_that_does_nothing_any_more(
    recording: Recording, plain: list[dict[str, Any]]
) -> None:
    recording.start("--live")
    terminal = recording.terminal
    recording.shows("recording")
    os.kill(recording.viewer, signal.SIGSTOP)
    recording.go()
    recording.end()
    assert recording.finish() == 0
    assert terminal.in_order
    assert recording.rows() == plain
    assert "has ended" not in terminal.text


def test_a_terminal_that_takes_nothing_any_more(
    recording: Recording, plain: list[dict[str, Any]]
) -> None:
    """Ctrl-S, or a connection that hangs: whoever draws waits, and nobody else."""
    recording.start("--live")
    recording.shows("recording")
    recording.go()
    # Nobody reads what is drawn: some 4 KiB fit.
    time.sleep(7)
    recording.end()
    wait_for(recording.is_whole)
    assert recording.finish() == 0
    assert recording.rows() == plain


def test_a_terminal_that_goes_away(
    recording: Recording, plain: list[dict[str, Any]]
) -> None:
    ignore = "signal.signal(signal.SIGHUP, signal.SIG_IGN)"
    recording.start("--live", first=ignore)
    recording.shows("recording")
    recording.terminal.hang_up()
    recording.go()
    recording.end()
    assert recording.process is not None
    recording.process.wait(LONG)
    assert recording.rows() == plain


def test_ctrl_c_ends_the_recording_and_not_the_view_alone(
    recording: Recording,
) -> None:
    assert recording.process is None
    default = "signal.signal(signal.SIGINT, signal.default_int_handler)"
    recording.start("--live", first=default)
    terminal = recording.terminal
    recording.shows("recording")
    recording.go()
    recording.shows("Tagged VMAs  ")
    assert recording.process is not None
    os.killpg(recording.process.pid, signal.SIGINT)
    assert recording.finish() == 0
    assert terminal.in_order
    assert "cdmtrace: stopped by SIGINT; " in terminal.text
    assert "has ended" not in terminal.text
    with TraceReader(recording.path) as trace:
        assert trace.info.end == "stopped by SIGINT"


@pytest.mark.parametrize("sudo", [True, False])
def test_the_viewer_has_no_right_that_it_does_not_need(
    sudo: bool, recording: Recording
) -> None:
    """It is who called sudo, or nobody, may only read the file, and gives way.

    The recorder has given its own up by then, and can end it all the same.
    """
    user = pwd.getpwnam("daemon" if sudo else "nobody")
    ids = {"SUDO_UID": str(user.pw_uid), "SUDO_GID": str(user.pw_gid)}
    recording.start("--live", **(ids if sudo else {}))
    recording.shows("recording")
    viewer = Path(f"/proc/{recording.viewer}")
    status = dict(
        line.split(":\t", 1)
        for line in (viewer / "status").read_text().splitlines()
        if ":\t" in line
    )
    assert set(status["Uid"].split()) == {str(user.pw_uid)}
    assert set(status["Gid"].split()) == {str(user.pw_gid)}
    assert int(status["CapEff"], 16) == int(status["CapPrm"], 16) == 0
    wanted = os.getgrouplist(user.pw_name, user.pw_gid) if sudo else []
    assert sorted(map(int, status["Groups"].split())) == sorted(wanted)
    assert os.getpriority(os.PRIO_PROCESS, recording.viewer) == 19
    fds = list((viewer / "fd").iterdir())
    (fd,) = [fd for fd in fds if fd.readlink() == recording.path]
    info = (viewer / "fdinfo" / fd.name).read_text().splitlines()
    flags = next(line.split()[1] for line in info if line.startswith("flags"))
    assert int(flags, 8) & os.O_ACCMODE == os.O_RDONLY
    # Standard streams, the file, and the recorder's voice.
    assert len(fds) == 5
    assert recording.process is not None
    recorder = recording.process.pid
    assert Path(f"/proc/{recorder}").stat().st_uid == (user.pw_uid if sudo else 0)
    tasks = list(Path(f"/proc/{recorder}/task").iterdir())
    # Ours, and who waits for the viewer's end.
    assert len(tasks) == 2
    kept = set() if sudo else {Capability.KILL}
    for task in tasks:
        assert privileges.held("CapPrm", f"{recorder}/task/{task.name}") == kept
    os.kill(recording.viewer, signal.SIGSTOP)
    recording.process.send_signal(signal.SIGTERM)
    assert recording.finish() == 0
    assert not viewer.exists()
    assert recording.terminal.in_order


def test_a_file_of_the_caller_s_is_not_imported(recording: Recording) -> None:
    """The viewer begins as root, in a directory that may be anybody's."""
    recording.start("--live")
    (recording.directory / "rich.py").write_text("raise SystemExit('imported')")
    recording.shows("recording")
    assert recording.process is not None
    recording.process.send_signal(signal.SIGTERM)
    assert recording.finish() == 0
    assert "imported" not in recording.terminal.text
