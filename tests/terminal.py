"""A terminal of 80 columns and 24 lines, what is drawn on it, and who draws."""

from __future__ import annotations

import fcntl
import os
import re
import select
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

ROOT = Path(__file__).resolve().parents[1]
ALTERNATE, MAIN = b"\x1b[?1049h", b"\x1b[?1049l"
HIDDEN, SHOWN = b"\x1b[?25l", b"\x1b[?25h"
_HEED = (
    "import os, signal, sys; signal.signal(signal.SIGINT, signal.SIG_DFL); "
    "signal.signal(signal.SIGQUIT, signal.SIG_DFL); "
    "os.execv(sys.executable, [sys.executable, *sys.argv[1:]])"
)


class Terminal:
    """A pseudo terminal. ``raw``: all that was written to it."""

    def __init__(self, columns: int = 80, lines: int = 24) -> None:
        self.ours, self.theirs = os.openpty()
        size = struct.pack("4H", lines, columns, 0, 0)
        fcntl.ioctl(self.theirs, termios.TIOCSWINSZ, size)
        self.raw = b""

    def run(
        self,
        *words: str,
        environment: Mapping[str, str] | None = None,
        stdout: int | None = None,
    ) -> subprocess.Popen[bytes]:
        """Start a command whose streams are the terminal, but for those given."""
        inherited = {
            name: value
            for name, value in os.environ.items()
            if name not in ("FORCE_COLOR", "NO_COLOR")
        }
        # A shell starts what runs behind it with SIGINT and SIGQUIT ignored.
        words = ("-c", _HEED, *words)
        return subprocess.Popen(
            [sys.executable, *words],
            stdin=self.theirs,
            stdout=self.theirs if stdout is None else stdout,
            stderr=self.theirs,
            start_new_session=True,
            env={
                **inherited,
                "TERM": "xterm-256color",
                "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}",
                **(environment or {}),
            },
        )

    def read(self, seconds: float = 0.05) -> None:
        """Take what is written meanwhile."""
        until = time.monotonic() + seconds
        while True:
            left = max(until - time.monotonic(), 0)
            if not select.select([self.ours], [], [], left)[0]:
                return
            try:
                self.raw += os.read(self.ours, 1 << 16)
            except OSError:
                return

    def until(
        self, done: Callable[[], object], what: str = "", seconds: float = 60
    ) -> None:
        """Read until something is so. Raises TimeoutError with what there is."""
        deadline = time.monotonic() + seconds
        while not done():
            self.read()
            if time.monotonic() > deadline:
                raise TimeoutError(f"{what}\n{self.raw.decode(errors='replace')}")

    def shows(self, text: str) -> None:
        """Wait until this is somewhere in what was drawn."""
        self.until(lambda: text in self.text, text)

    def finish(self, process: subprocess.Popen[bytes], seconds: float = 60) -> int:
        """Read until the command has ended; return its status."""
        self.until(lambda: process.poll() is not None, "it does not end", seconds)
        self.read()
        code = process.returncode
        assert code is not None
        return code

    @property
    def text(self) -> str:
        """What was written, without control sequences."""
        return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", self.raw.decode(errors="replace"))

    @property
    def in_order(self) -> bool:
        """Whether the screen is the usual one, with its cursor."""
        return self.raw.rfind(MAIN) >= self.raw.rfind(ALTERNATE) and (
            self.raw.rfind(SHOWN) >= self.raw.rfind(HIDDEN)
        )

    def hang_up(self) -> None:
        """Take the terminal away."""
        os.close(self.theirs)
        os.close(self.ours)
        self.ours = self.theirs = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.ours >= 0:
            self.hang_up()
