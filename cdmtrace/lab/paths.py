"""Where the laboratory keeps what it fetched, built and ran."""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

PACKAGE_DIR = Path(__file__).resolve().parent
"""The directory of the installed ``cdmtrace.lab``."""


def user_cache_dir() -> Path:
    """Return the user's cache directory for cdmtrace; it need not exist."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    # The specification tells to ignore a relative path.
    root = Path(base) if base.startswith("/") else Path.home() / ".cache"
    return root / "cdmtrace"


@dataclass(frozen=True, kw_only=True, slots=True)
class Layout:
    """The directories of the laboratory under one root."""

    root: Path

    @classmethod
    def default(cls) -> Layout:
        """Return the layout under the user's cache directory."""
        return cls(root=user_cache_dir())

    @property
    def index(self) -> Path:
        """JSON file: package name → version in use."""
        return self.root / "index.json"

    @property
    def sources(self) -> Path:
        """Unpacked source packages, never modified."""
        return self.root / "sources"

    @property
    def lists(self) -> Path:
        """Package lists of releases of Debian other than this system's."""
        return self.root / "lists"

    @property
    def work(self) -> Path:
        """Patched trees and object trees, kept for incremental builds."""
        return self.root / "work"

    @property
    def kernels(self) -> Path:
        """Kernels to boot, one directory each, named by content or by version."""
        return self.root / "kernels"

    @property
    def programs(self) -> Path:
        """Compiled scenario programs and modules, named by content."""
        return self.root / "programs"

    @property
    def runs(self) -> Path:
        """One directory per guest that was run."""
        return self.root / "runs"

    @property
    def kvm_verdict(self) -> Path:
        """JSON file: whether KVM worked, and for which boot of this host."""
        return self.root / "kvm.json"


@contextlib.contextmanager
def exclusive(path: Path, on_wait: Callable[[], None] | None = None) -> Iterator[None]:
    """Hold an exclusive lock on ``path`` (created if missing) for the block.

    The kernel drops the lock when its holder dies, so none is ever stale.
    ``on_wait`` is called once if another process holds it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if on_wait is not None:
                on_wait()
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def write_atomically(path: Path, data: bytes, *, mode: int = 0o644) -> None:
    """Write ``data`` to ``path`` so that a reader sees the old file or the new."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.chmod(mode)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def new_run_dir(layout: Layout) -> Path:
    """Create and return a fresh directory for one run: ``runs/TIME-N``, mode 0700."""
    layout.runs.mkdir(parents=True, exist_ok=True)
    stamp = time.strftime("%Y%m%d-%H%M%S", time.gmtime())
    number = 1
    while True:
        path = layout.runs / f"{stamp}-{number}"
        try:
            path.mkdir(mode=0o700)
        except FileExistsError:
            number += 1
        else:
            return path
