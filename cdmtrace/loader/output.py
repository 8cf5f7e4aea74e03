"""What libraries written in C do behind Python's back, and what is done about it."""

from __future__ import annotations

import contextlib
import os
import resource
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
def memlock_kept() -> Iterator[None]:
    """Set the limit of locked memory back: libraries raise it, our command inherits."""
    before = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_MEMLOCK, before)
