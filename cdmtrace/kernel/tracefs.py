"""The kernel's tracing file system."""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
from pathlib import Path
from typing import Final

from cdmtrace.errors import RecordError

_OF_BCC: Final = re.compile(r"[pr]\d*:(?P<name>kprobes/\w+_bcc_(?P<pid>\d+)) ")
"""A probe in kprobe_events that bcc defined, named after its process."""

GROUP: Final = "kprobes"
"""Where in events/ the probes are that are defined in kprobe_events."""

TRACEFS: Final = (Path("/sys/kernel/tracing"), Path("/sys/kernel/debug/tracing"))


def find() -> Path | None:
    """Return where tracefs is mounted, None if it is not, or not for us to see."""
    # Path.is_dir() raises where a directory above may not be searched.
    return next((path for path in TRACEFS if os.path.isdir(path / "events")), None)  # noqa: PTH112


def mounted() -> Path:
    """Return where tracefs is, mounting it if need be. Raises RecordError."""
    found = find()
    if found is not None:
        return found
    library = ctypes.CDLL(None, use_errno=True)
    if library.mount(b"tracefs", os.fsencode(TRACEFS[0]), b"tracefs", 0, None):
        raise RecordError(
            f"tracefs cannot be mounted: {os.strerror(ctypes.get_errno())}",
            hint=f"sudo mount -t tracefs tracefs {TRACEFS[0]}; the kernel needs "
            "CONFIG_FTRACE=y",
        )
    return TRACEFS[0]


def traceable(root: Path, functions: frozenset[str]) -> frozenset[str]:
    """Return those of the functions that a probe can be attached to.

    A kernel with function tracing refuses the others: within_notrace_func() in
    kernel/trace/trace_kprobe.c. In 5.10 all of kernel/events is such, as
    perf_event_mmap(), whatever BTF tells of it. All of them where there is no list.
    """
    try:
        lines = (root / "available_filter_functions").read_text().splitlines()
    except OSError:
        return functions
    listed = frozenset(line.partition(" ")[0] for line in lines)
    return functions & listed if listed else functions


def tracepoints(root: Path, category: str = "syscalls") -> frozenset[str]:
    """Return the tracepoints of a category, each as ``category:name``."""
    try:
        entries = os.scandir(root / "events" / category)
    except (FileNotFoundError, NotADirectoryError):
        return frozenset()
    with entries:
        return frozenset(f"{category}:{one.name}" for one in entries if one.is_dir())


class Returns:
    """Return probes that are defined in kprobe_events, until close().

    The file is opened once: to open it again, at the end, takes privileges that a
    recorder has given up by then. To write to what is open does not.
    """

    def __init__(self, root: Path) -> None:
        """Open the file. Raises OSError."""
        # Appended: a write at the start would remove all probes, of anybody.
        flags = os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC
        self._fd = os.open(root / "kprobe_events", flags)
        self._names: list[str] = []

    def define(self, symbol: str, maxactive: int) -> str:
        """Define a probe of a function's return; return its name, of our process.

        maxactive: calls that it can wait for at a time. One probe is enough for all
        handlers of a function. Raises OSError.
        """
        # As bcc would call it: sweep() knows whose it is.
        name = f"r_{re.sub(r'[.+]', '_', symbol)}_bcc_{os.getpid()}"
        if name in self._names:
            return name
        # First noted: a signal may come as soon as it is there.
        self._names.append(name)
        os.write(self._fd, f"r{maxactive}:{GROUP}/{name} {symbol}\n".encode())
        return name

    def close(self) -> None:
        """Remove what was defined; nothing may use it any more. Raises OSError."""
        try:
            while self._names:
                with contextlib.suppress(FileNotFoundError):
                    os.write(self._fd, f"-:{GROUP}/{self._names.pop()}\n".encode())
        finally:
            os.close(self._fd)


def sweep(root: Path) -> tuple[str, ...]:
    """Remove what recorders that were killed left behind; return the names.

    bcc defines return probes here when many may wait at a time (maxactive), and
    definitions do not end with their process. Nothing runs at one that is left,
    but it would stay until the next boot. One that somebody uses cannot be removed.
    """
    path = root / "kprobe_events"
    gone = []
    for line in path.read_text().splitlines() if path.exists() else ():
        match = _OF_BCC.match(line)
        if match is None or Path("/proc", match["pid"]).exists():
            continue
        # Appended: a write at the start would remove all probes, of anybody.
        fd = os.open(path, os.O_WRONLY | os.O_APPEND)
        try:
            with contextlib.suppress(OSError):
                os.write(fd, f"-:{match['name']}\n".encode())
                gone.append(match["name"])
        finally:
            os.close(fd)
    return tuple(gone)
