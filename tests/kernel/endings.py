"""Runs in the guest: recordings with few privileges, and recordings that end badly.

Each is a child of this process, as in recordings.py. What comes out is left in the
working directory, for test_endings.py to look at: traces, streams, exit statuses in
``statuses.json``, and what /proc said of recorders and commands. The last recording
ends with the guest.

Usage: endings.py
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from recordings import (
    NOBODY,
    PATIENCE,
    again,
    fetch,
    finish,
    place_of_all,
    prepared,
    start,
    wait_for_growth,
)

SOMEBODY = 54321
PAGES, AFTER = 10007, 101
STOPPED = 5.0
TRAPPED = 7
LEAST = (
    *("CAP_BPF", "CAP_PERFMON", "CAP_DAC_OVERRIDE", "CAP_SYSLOG"),
    "CAP_SYS_PTRACE",
)
KPROBES = Path("/sys/kernel/tracing/kprobe_events")
NG = ctypes.CDLL("libcap-ng.so.0")


def with_capabilities(*names: str) -> Callable[[], None]:
    """Return what makes a process one of somebody who is not root and has these."""

    def become() -> None:
        NG.capng_clear(16 | 32)
        for name in names:
            short = name.removeprefix("CAP_").lower().encode()
            number = NG.capng_name_to_capability(short)
            assert number >= 0, name
            assert NG.capng_update(1, 1 | 2, number) == 0
        assert NG.capng_change_id(SOMEBODY, SOMEBODY, 1) == 0

    return become


def wait_for(*files: str) -> None:
    """Wait until all of these are there."""
    deadline = time.monotonic() + PATIENCE
    while missing := [name for name in files if not Path(name).exists()]:
        if time.monotonic() > deadline:
            raise TimeoutError(f"{missing} do not come")
        time.sleep(0.1)


def keep(pid: int, name: str) -> None:
    """Leave what /proc says of a recorder that has given up what it need not keep."""
    deadline = time.monotonic() + PATIENCE
    while "NoNewPrivs:\t1" not in (text := Path(f"/proc/{pid}/status").read_text()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"{name} keeps its privileges")
        time.sleep(0.1)
    Path(f"{name}.proc").write_text(text)


def script(name: str, *lines: str) -> list[str]:
    """Return a command that says what it is like, waits for a word, and goes on."""
    told = "status limits stat"
    text = [
        f'for x in {told}; do cat /proc/$$/$x >"$1.own.$x"; done',
        'cat /proc/$PPID/status >"$1.recorder"; env -0 >"$1.own.env"',
        'ls -l /proc/self/fd >"$1.own.fd"; umask >"$1.own.umask"; pwd >"$1.own.cwd"',
        ': >"$1.started"; until [ -e "$1.go" ]; do sleep 0.1; done; shift',
        *lines,
    ]
    return ["sh", "-c", "\n".join(text), "sh", name, *again("fault")]


def alone() -> None:
    """Be a process group. At Ctrl-C, a busy machine may take longer than we give it."""
    from cdmtrace import command

    os.setsid()
    command.GRACE = 300


def record_two_at_once(statuses: dict[str, int]) -> None:
    """One with the fewest privileges, and one of who called sudo, which is stopped.

    The second one is sent SIGINT at last, as by Ctrl-C: it, and its command.
    """
    least = start(
        *("least", "--"),
        *script("least", f'"$@" {PAGES} 0'),
        become=with_capabilities(*LEAST),
        place=place_of_all(),
    )
    theirs = start(
        *("theirs", "--audit", "600", "--ring-pages", "8", "--"),
        *script(
            "theirs",
            f"trap 'echo interrupted; exit {TRAPPED}' INT",
            f'"$@" {PAGES} 0; : >theirs.flooded',
            "until [ -e theirs.more ]; do sleep 0.1; done",
            f'"$@" {AFTER} 0.05; : >theirs.done; while :; do sleep 0.1; done',
        ),
        sudo_uid=NOBODY,
        become=alone,
        place=place_of_all(),
    )
    wait_for("least.started", "theirs.started")
    keep(least, "least")
    keep(theirs, "theirs")
    os.kill(theirs, signal.SIGSTOP)
    Path("theirs.go").touch()
    wait_for("theirs.flooded")
    Path("least.go").touch()
    statuses["least"] = finish(least)
    shutil.copy(KPROBES, "least.kprobe_events")
    time.sleep(STOPPED)
    os.kill(theirs, signal.SIGCONT)
    Path("theirs.more").touch()
    wait_for("theirs.done")
    os.killpg(theirs, signal.SIGINT)
    statuses["theirs"] = finish(theirs)
    fetch("least")
    fetch("theirs")
    shutil.copy(KPROBES, "theirs.kprobe_events")


def record_where_there_is_no_room(statuses: dict[str, int]) -> None:
    """A disk that gets full, and beside it a process that is recorded and killed."""
    Path("small").mkdir()
    subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", "small"], check=True
    )
    words = again("fault", "1000003", "0.01")
    with contextlib.ExitStack() as stack:
        worker = stack.enter_context(subprocess.Popen(words, stderr=subprocess.DEVNULL))
        # Whatever happens: it would go on for hours, and be waited for.
        stack.callback(worker.kill)
        gone = start("gone", "--pid", str(worker.pid))
        # There is room for what is looked at before, and not for what comes.
        full = start("small/full", "--", *script("full", 'exec "$@" 100003 0'))
        wait_for("full.started")
        Path("full.go").touch()
        statuses["full"] = finish(full)
        wait_for_growth(Path("gone.arrows"), 1 << 14, gone)
        keep(gone, "gone")
    statuses["gone"] = finish(gone)
    shutil.copy(KPROBES, "gone.kprobe_events")
    for kind in ("arrows", "stdout", "stderr"):
        shutil.copy(f"small/full.{kind}", f"full.{kind}")
    subprocess.run(["umount", "small"], check=True)


def refuse_without(statuses: dict[str, int]) -> None:
    """Each privilege is missed, by its name, before anything is compiled."""
    for name in LEAST:
        rest = [other for other in LEAST if other != name]
        pid = start(f"no-{name}", "--", "true", become=with_capabilities(*rest))
        statuses[f"no-{name}"] = finish(pid)


def record_until_the_crash() -> None:
    """The guest does not come back from this."""
    pid = start("crash", "--", *again("fault", "1000003", "0.01"))
    wait_for_growth(Path("crash.arrows"), 1 << 16, pid)
    Path("crash.size").write_text(str(Path("crash.arrows").stat().st_size))
    os.sync()
    Path("/proc/sysrq-trigger").write_text("c")


def main() -> None:
    """Make all recordings."""
    statuses: dict[str, int] = {}
    # Not root's alone: others make files here.
    Path.cwd().chmod(0o1777)
    with prepared():
        Path(os.environ["BCC_KERNEL_SOURCE"]).chmod(0o755)
        for make in (
            *(refuse_without, record_two_at_once, record_where_there_is_no_room),
        ):
            make(statuses)
            Path("statuses.json").write_text(json.dumps(statuses))
        record_until_the_crash()


if __name__ == "__main__":
    main()
