"""Runs in the guest: several recordings, by one process that has imported bcc once.

Importing it takes 20 s in an emulated guest, so each recording is made by a child
of this process. What comes out is left in the working directory, for
test_record.py to look at: for each recording its trace, its stdout and stderr, and
its exit status in ``statuses.json``.

The programs are compiled with -Werror here.

Usage: recordings.py STORY [ARGUMENT...]
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import mmap
import os
import platform
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

NOBODY = 65534
FLOOD_PAGES = 10007
STORY_STATUS = 23
STRICT = ["-Wall", "-Wextra", "-Werror", "-Wno-unused-parameter"]
"""A warning of the compiler makes every recording fail."""
MBIND, BIND, CDM_MASK = 237, 2, 1 << 1

LIBC = ctypes.CDLL(None, use_errno=True)


def fault(pages: int, pause: float = 0.0) -> None:
    """Fault in so many pages, one by one, in a VMA that is bound to the CDM node."""
    assert platform.machine() == "x86_64"
    size = pages * mmap.PAGESIZE
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    region = mmap.mmap(-1, size, flags=flags)
    region.madvise(mmap.MADV_NOHUGEPAGE)
    mask = ctypes.c_ulong(CDM_MASK)
    start = ctypes.addressof(ctypes.c_char.from_buffer(region))
    arguments = (start, size, BIND, ctypes.addressof(mask), 65, 0)
    if LIBC.syscall(MBIND, *map(ctypes.c_ulong, arguments)):
        raise OSError(ctypes.get_errno(), "mbind")
    for page in range(pages):
        region[page * mmap.PAGESIZE] = 1
        if pause:
            time.sleep(pause)


def start(name: str, *words: str, sudo_uid: int | None = None) -> int:
    """Begin a recording in a child; return its pid."""
    from cdmtrace.cli import main

    pid = os.fork()
    if pid:
        return pid
    status = 99
    try:
        for number, stream in ((1, "stdout"), (2, "stderr")):
            kept = os.open(f"{name}.{stream}", os.O_WRONLY | os.O_CREAT, 0o644)
            os.dup2(kept, number)
        if sudo_uid is not None:
            os.environ |= {"SUDO_UID": str(sudo_uid), "SUDO_GID": str(sudo_uid)}
        status = main(["record", "-o", f"{name}.arrows", *words])
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def finish(pid: int) -> int:
    """Wait for a recording; return its status, negative if a signal ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def wait_for_growth(path: Path, more: int, pid: int, seconds: float = 300) -> None:
    """Wait until the file that a recorder writes has grown by so many bytes."""
    deadline = time.monotonic() + seconds
    first = None
    while first is None or path.stat().st_size < first + more:
        if time.monotonic() > deadline:
            raise TimeoutError(f"{path} does not grow")
        if os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            raise ChildProcessError(f"the recorder of {path} has ended")
        time.sleep(0.1)
        if first is None and path.exists():
            first = path.stat().st_size


def again(*words: str) -> list[str]:
    """Return the command that runs this file again, as a workload.

    Its text is handed over, for who runs it may not be able to read the file.
    """
    python = shutil.which("python3", path="/usr/bin") or sys.executable
    return [python, "-c", Path(__file__).read_text(), *words]


def record_the_story(story: list[str]) -> int:
    """A command that fails must be told from one that does not, so this one does."""
    script = '"$@" >story.out; echo $? >story.status; exit "$STORY_STATUS"'
    os.environ["STORY_STATUS"] = str(STORY_STATUS)
    return finish(start("story", "--", "sh", "-c", script, "sh", *story))


def record_a_flood() -> int:
    """More than a small ring can hold, made by who called sudo, ended by a signal."""
    script = 'id -u; id -g; id -G; "$@"; kill -TERM $$'
    return finish(
        start(
            *("flood", "--ring-pages", "1", "--"),
            *("sh", "-c", script, "sh", *again("fault", str(FLOOD_PAGES), "0")),
            sudo_uid=NOBODY,
        )
    )


def record_and_be_killed() -> int:
    """Kill the recorder when it has written some batches."""
    pid = start("killed", "--", *again("fault", "100003", "0.01"))
    try:
        wait_for_growth(Path("killed.arrows"), 1 << 16, pid)
    finally:
        os.kill(pid, signal.SIGKILL)
    # Its command goes on: nobody is left to end it.
    return finish(pid)


def record_one_of_two() -> int:
    """Record one of two processes that do the same, for three seconds."""
    workers = [
        subprocess.Popen(again("fault", "100003", "0.01"), stderr=subprocess.DEVNULL)
        for _ in range(2)
    ]
    Path("pids.json").write_text(json.dumps([worker.pid for worker in workers]))
    try:
        pid = str(workers[0].pid)
        return finish(start("one", "--pid", pid, "--duration", "3"))
    finally:
        for worker in workers:
            worker.kill()
            worker.wait()


def strict(base: Any) -> Any:
    """Return bcc's class, with a compiler whose every warning is an error."""

    class Strict(base):
        def __init__(self, **options: Any) -> None:
            super().__init__(cflags=STRICT, **options)

    return Strict


def ask(verb: str, *words: str) -> None:
    """Leave what a verb says on stdout, and its status, in a file."""
    from cdmtrace.cli import main

    with (
        Path(f"{verb}.json").open("w") as file,
        contextlib.redirect_stdout(file),
    ):
        status = main([verb, *words])
    Path(f"{verb}.status").write_text(f"{int(status)}\n")


def run(story: list[str]) -> None:
    """Make all recordings."""
    from cdmtrace.loader.bcc import import_bcc

    bcc = import_bcc()
    bcc.BPF = strict(bcc.BPF)
    makers = {
        "story": lambda: record_the_story(story),
        "flood": record_a_flood,
        "killed": record_and_be_killed,
        "one": record_one_of_two,
    }
    statuses = {}
    for name, make in makers.items():
        statuses[name] = make()
        Path("statuses.json").write_text(json.dumps(statuses))
        shutil.copy("/sys/kernel/tracing/kprobe_events", f"{name}.kprobe_events")
    ask("doctor", "--format", "json")
    ask("probes", "--format", "json")


if __name__ == "__main__":
    if sys.argv[1] == "fault":
        fault(int(sys.argv[2]), float(sys.argv[3]))
    else:
        run(sys.argv[1:])
