"""Runs on a terminal: ``record`` on a machine that is made up, and its ring as well.

What comes out of the ring is the story of a simulated kernel with the RFC's defects, a
few rows at a time.

Usage: livescript.py DIRECTORY [OPTION...]
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import simstory
from fakemachine import pretend
from recording import FakeLoader
from simfile import rows_of
from simkernel import SimKernel

from cdmtrace import drain, looking, privileges, recorder
from cdmtrace.cli import main
from cdmtrace.events import EVENT_DTYPE

AT_A_TIME = 100


def rows() -> Any:
    """Return what happens: the times are of now, or nothing would be of late."""
    kernel = SimKernel("rfc")
    simstory.tell(kernel)
    told = rows_of(kernel.trace())
    shift = np.uint64(time.monotonic_ns())
    told["ts"] += shift
    told["ts_entry"] += shift
    return told


class Ring:
    """Stands in for the ring: rows come as long as there are any."""

    def __init__(self, *_: object) -> None:
        self._left = rows()

    pending = 0

    def drain(self, limit: int) -> Any:
        """Return the next rows, once there is somebody to look at them.

        Who asks for more than there are has written all of them.
        """
        if not Path("go").exists():
            return np.empty(0, EVENT_DTYPE)
        if not len(self._left):
            Path("written").touch()
        some, self._left = self._left[:AT_A_TIME], self._left[AT_A_TIME:]
        return some.copy()

    def close(self) -> None:
        """There is nothing to let go of."""


def run(directory: str, *words: str) -> int:
    """Record; return the status."""
    sudo = {name: os.environ.get(name) for name in ("SUDO_UID", "SUDO_GID")}
    drop = privileges.drop
    with pytest.MonkeyPatch.context() as patch:
        pretend(Path(directory), patch)
        # These privileges are this process's own.
        patch.setattr(privileges, "drop", drop)
        for name, number in sudo.items():
            if number:
                patch.setenv(name, number)
        patch.setattr(recorder, "record_loader", FakeLoader.make)
        patch.setattr(drain, "Ring", Ring)
        patch.setattr(looking.snapshot, "processes", frozenset)
        return main(["record", "--ring-pages", "1", "-o", "x.arrows", *words])


if __name__ == "__main__":
    sys.exit(run(*sys.argv[1:]))
