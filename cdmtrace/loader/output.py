"""What libraries written in C do behind Python's back, and what is done about it."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import sys
import tempfile
from collections.abc import Iterator


@contextlib.contextmanager
def stderr_kept(kept: list[str]) -> Iterator[None]:
    """Keep what C code writes to stderr: that is where compilers say what is wrong."""
    sys.stderr.flush()
    saved = os.dup(2)
    with tempfile.TemporaryFile() as file:
        os.dup2(file.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(saved, 2)
            os.close(saved)
            file.seek(0)
            kept.append(file.read().decode(errors="replace"))


@contextlib.contextmanager
def signals_later() -> Iterator[None]:
    """Have signals that would end us wait until the end of the block."""
    kinds = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, kinds)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextlib.contextmanager
def memlock_kept() -> Iterator[None]:
    """Set the limit of locked memory back: libraries raise it, our command inherits."""
    before = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_MEMLOCK, before)
