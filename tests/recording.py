"""Recordings whose ring is a real one, and what fills it is not.

There are no kprobes on the machines that this runs on, so the loader is a stand-in that
makes an empty ring and counts losses that we invent.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import pytest
from fakemachine import pretend

from cdmtrace import privileges, recorder
from cdmtrace.cli import main
from cdmtrace.errors import RecordError
from cdmtrace.events import Lost, Probe
from cdmtrace.format.reader import TraceInfo, TraceReader
from cdmtrace.kernel import bpf
from cdmtrace.kernel.btf import load_library
from cdmtrace.losses import Losses, Missing, Waiting, Where
from cdmtrace.planning import Plan


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


def require_rings() -> None:
    """Skip the test, or fail where all have to run, if no BPF ring can be made here."""
    try:
        able = os.geteuid() == 0 and bpf.has_map_type(bpf.MAP_RINGBUF)
    except RecordError:
        able = False
    if not able:
        reason = "making a BPF ring needs root and a kernel that has them"
        if os.environ.get("CDMTRACE_KERNEL_TESTS") == "1":
            pytest.fail(reason)
        pytest.skip(reason)


def prepare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have `record` take place in a directory, with the stand-in."""
    require_rings()
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
