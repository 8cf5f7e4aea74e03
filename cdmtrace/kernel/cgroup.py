"""Freeze a cgroup for a while (Documentation/admin-guide/cgroup-v2.rst)."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from cdmtrace.errors import RecordError, UsageTrouble

SECONDS: Final = 10.0
"""How long to wait until every task of a cgroup stands still."""
INTERVAL: Final = 0.01
"""How long to wait before looking again whether they do, s."""


def require(group: Path) -> None:
    """Raise UsageTrouble for what is no cgroup that we may freeze."""
    if not (group / "cgroup.freeze").exists():
        raise UsageTrouble(
            f"--freeze {group}: no cgroup v2 that can be frozen",
            hint="give its directory, such as /sys/fs/cgroup/NAME",
        )
    own = str(os.getpid())
    members = (path.read_text().split() for path in group.rglob("cgroup.procs"))
    if any(own in pids for pids in members):
        raise UsageTrouble(
            f"--freeze {group}: the recorder is in it and would freeze itself",
            hint="start the recorder outside of it",
        )


@contextlib.contextmanager
def frozen(group: Path, meanwhile: Callable[[], None]) -> Iterator[None]:
    """Let every task of a cgroup stand still inside the block.

    meanwhile: called again and again until they do. Raises RecordError if they do not
    within SECONDS, or if the cgroup is gone; they go on in any case.
    """
    switch = group / "cgroup.freeze"
    try:
        _freeze(group, switch, meanwhile)
        yield
    finally:
        with contextlib.suppress(OSError):
            switch.write_text("0")


def _freeze(group: Path, switch: Path, meanwhile: Callable[[], None]) -> None:
    deadline = time.monotonic() + SECONDS
    with _explained(group):
        switch.write_text("1")
    while not _stands_still(group):
        if time.monotonic() > deadline:
            raise RecordError(f"{group}: does not freeze within {SECONDS:g} s")
        meanwhile()
        time.sleep(INTERVAL)


def _stands_still(group: Path) -> bool:
    with _explained(group):
        return "frozen 1" in (group / "cgroup.events").read_text()


@contextlib.contextmanager
def _explained(group: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise RecordError(f"{group}: cannot be frozen: {error.strerror}") from error
