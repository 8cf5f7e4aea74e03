"""The host's side of a run, with a stand-in for virtme-ng.

Only what a real guest cannot be made to do at will is tried here; what can run in
the laboratory is tried there (tests/kernel).
"""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from cdmtrace.errors import GuestDied, LabError, Terminated, TimedOut
from cdmtrace.lab.accel import Accelerator
from cdmtrace.lab.guest import GuestRun, run_guest
from cdmtrace.lab.machine import Tools
from cdmtrace.lab.watchdog import Limits

# The run directory is this script's working directory, as it is the guest's.
FAKE = """\
#!/bin/sh
echo "args: $*"
{body}
"""


def make_run(
    tmp_path: Path, body: str, *, total: float = 20.0
) -> tuple[GuestRun, Tools]:
    vng = tmp_path / "vng"
    vng.write_text(FAKE.format(body=textwrap.dedent(body)))
    vng.chmod(0o755)
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    run = GuestRun(
        kernel=tmp_path / "bzImage",
        command=("true",),
        run_dir=run_dir,
        accelerator=Accelerator.TCG,
        limits=Limits(total=total, boot=10, panic=0.3, oops=5),
    )
    return run, Tools(vng=vng, path=os.environ["PATH"])


def go(
    tmp_path: Path, body: str, *, total: float = 20.0
) -> tuple[int, bytes, bytes, list[str]]:
    run, tools = make_run(tmp_path, body, total=total)
    out, err = io.BytesIO(), io.BytesIO()
    notes: list[str] = []
    status = run_guest(run, stdout=out, stderr=err, tools=tools, note=notes.append)
    return status, out.getvalue(), err.getvalue(), notes


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def wait_until_gone(pid: int) -> None:
    deadline = time.monotonic() + 5
    while alive(pid):
        assert time.monotonic() < deadline, f"process {pid} is still there"
        time.sleep(0.02)


def test_status_output_and_console_are_kept_apart(tmp_path: Path) -> None:
    status, out, err, notes = go(
        tmp_path,
        r"""
        touch started
        printf 'a\0b\r\n' > stdout; echo warning > stderr
        echo 'Linux version 6.1'
        echo 42 > .t; mv .t status
        """,
    )
    assert (status, out, err, notes) == (42, b"a\0b\r\n", b"warning\n", [])
    run_dir = tmp_path / "run"
    assert "Linux version 6.1" in (run_dir / "console.log").read_text()
    assert (run_dir / "run.json").exists()


def test_output_is_passed_on_while_the_command_runs(tmp_path: Path) -> None:
    run, tools = make_run(
        tmp_path,
        """
        touch started; echo first > stdout
        while ! test -e seen; do sleep 0.05; done
        echo second >> stdout; echo 0 > .t; mv .t status
        """,
    )

    class Stream(io.BytesIO):
        def flush(self) -> None:
            if self.getvalue() == b"first\n":
                (run.run_dir / "seen").touch()

    out = Stream()
    assert run_guest(run, stdout=out, stderr=io.BytesIO(), tools=tools) == 0
    assert out.getvalue() == b"first\nsecond\n"


def test_time_out_kills_the_whole_tree(tmp_path: Path) -> None:
    body = """
    touch started; echo partial > stdout
    sh -c 'trap "" TERM HUP; echo $$ > pid; sleep 1000' &
    sleep 1000
    """
    run, tools = make_run(tmp_path, body, total=1.0)
    out = io.BytesIO()
    with pytest.raises(TimedOut) as caught:
        run_guest(run, stdout=out, stderr=io.BytesIO(), tools=tools)
    assert caught.value.exit_status == 124
    assert out.getvalue() == b"partial\n"
    wait_until_gone(int((run.run_dir / "pid").read_text()))


def test_panic_is_death_though_the_emulator_hangs(tmp_path: Path) -> None:
    with pytest.raises(GuestDied, match="panicked") as caught:
        go(
            tmp_path,
            """
            touch started; echo 'Kernel panic - not syncing: boom'; sleep 1000
            """,
        )
    assert caught.value.exit_status == 134
    assert "boom" in str(caught.value.details)


def test_an_end_without_a_status_is_death(tmp_path: Path) -> None:
    with pytest.raises(GuestDied, match="without the command's status"):
        go(tmp_path, "touch started; exit 0")


def test_an_emulator_that_fails_is_a_lab_that_could_not_start(tmp_path: Path) -> None:
    with pytest.raises(LabError, match="could not start") as caught:
        go(tmp_path, "echo 'qemu: bad machine' >&2; exit 1")
    assert caught.value.exit_status == 125
    assert "qemu: bad machine" in str(caught.value.details)


def test_a_refusal_of_the_guest_is_told(tmp_path: Path) -> None:
    with pytest.raises(LabError, match="this kernel has no quirks"):
        go(tmp_path, "echo 'this kernel has no quirks' > .t; mv .t refused; sleep 9")


def test_a_vng_that_cannot_be_executed_is_an_error(tmp_path: Path) -> None:
    run, tools = make_run(tmp_path, "")
    tools.vng.chmod(0o644)
    with pytest.raises(LabError, match="cannot start"):
        run_guest(run, stdout=io.BytesIO(), stderr=io.BytesIO(), tools=tools)


def test_an_oops_that_the_guest_survives_is_told(tmp_path: Path) -> None:
    status, _, _, notes = go(
        tmp_path,
        """
        touch started; echo 'BUG: unable to handle page fault'; sleep 0.3
        echo 0 > .t; mv .t status
        """,
    )
    assert status == 0
    assert len(notes) == 1
    assert "unable to handle page fault" in notes[0]


def test_sigterm_takes_the_guest_along(tmp_path: Path) -> None:
    body = f"""
    touch started; echo $$ > pid; kill -TERM {os.getpid()}; sleep 1000
    """
    run, tools = make_run(tmp_path, body)
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Terminated):
        run_guest(run, stdout=io.BytesIO(), stderr=io.BytesIO(), tools=tools)
    assert signal.getsignal(signal.SIGTERM) is before
    wait_until_gone(int((run.run_dir / "pid").read_text()))


def test_sigterm_between_the_guest_and_its_guard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With another thread, which takes the signal that this one has blocked."""

    pids = []

    class Popen(subprocess.Popen[bytes]):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            pids.append(self.pid)
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.1)

    run, tools = make_run(tmp_path, "sleep 1000")
    done = threading.Event()
    thread = threading.Thread(target=done.wait)
    thread.start()
    try:
        monkeypatch.setattr("cdmtrace.lab.processes.subprocess.Popen", Popen)
        with pytest.raises(Terminated):
            run_guest(run, stdout=io.BytesIO(), stderr=io.BytesIO(), tools=tools)
    finally:
        done.set()
        thread.join()
    assert len(pids) == 2
    for pid in pids:
        wait_until_gone(pid)


def test_nothing_outlives_a_parent_that_was_killed(tmp_path: Path) -> None:
    body = """
    sh -c 'trap "" TERM HUP; echo $$ > pid; touch started; sleep 1000' &
    sleep 1000
    """
    run, _ = make_run(tmp_path, body)
    code = f"""
import sys, pathlib
from cdmtrace.lab.accel import Accelerator
from cdmtrace.lab.guest import GuestRun, run_guest
from cdmtrace.lab.machine import Tools
from cdmtrace.lab.watchdog import Limits
run = GuestRun(
    kernel=pathlib.Path({str(run.kernel)!r}), command=("true",),
    run_dir=pathlib.Path({str(run.run_dir)!r}), accelerator=Accelerator.TCG,
    limits=Limits(total=60),
)
tools = Tools(vng=pathlib.Path({str(tmp_path / "vng")!r}), path="/usr/bin:/bin")
run_guest(run, stdout=sys.stdout.buffer, stderr=sys.stderr.buffer, tools=tools)
"""
    with subprocess.Popen([sys.executable, "-c", code]) as parent:
        deadline = time.monotonic() + 20
        while not (run.run_dir / "started").exists():
            assert time.monotonic() < deadline
            time.sleep(0.05)
        pid = int((run.run_dir / "pid").read_text())
        assert alive(pid)
        parent.kill()
    wait_until_gone(pid)
