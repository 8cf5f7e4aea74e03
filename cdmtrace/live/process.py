"""The recorder's side of the live view: start a viewer, hand it the file, outlive it.

The viewer is a process of its own, niced and without root's rights. Recording waits for
it in nothing: what is said to it may be lost, and if it dies it is told once, and the
recording goes on.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final, Protocol

import cdmtrace
from cdmtrace.caller import caller
from cdmtrace.signals import signals_later

PATIENCE: Final = 2.0
"""Seconds that the viewer gets to leave the terminal as it was when all has ended."""

AS_IT_WAS: Final = b"\x1b[?1049l\x1b[?25h\x1b[0m"
"""Out of the alternate screen, cursor on, no colour: what a viewer that was killed
leaves undone (xterm's control sequences, rmcup, cnorm and sgr0 of terminfo)."""

TAKEN: Final = b"\x1b[?1049h\x1b[?25l"
"""Into the alternate screen, cursor off (smcup, civis)."""

_KEYBOARD: Final = (signal.SIGINT, signal.SIGQUIT)
_NOBODY: Final = 65534
_START: Final = (
    "import sys; sys.path.insert(0, sys.argv.pop(1)); "
    "from cdmtrace.live.child import main; sys.exit(main())"
)

Say = Callable[[str], None]


class Beside(Protocol):
    """Who is told of a recording, besides the file."""

    pid: int
    """Of the process that draws it, 0 where there is none."""

    def say(self, text: str) -> None:
        """Tell what happens, in a line."""

    def show(self, path: Path, fd: int) -> None:
        """Tell which file is written. fd: open for whatever; it stays the caller's."""

    def watch(self) -> None:
        """Wait beside for its end from now on: what privileges we had are given up."""


class Nobody:
    """No live view: what is said is said."""

    pid = 0

    def __init__(self, say: Say) -> None:
        self.say = say

    def show(self, path: Path, fd: int) -> None:
        """Do nothing."""

    def watch(self) -> None:
        """Do nothing."""


class Viewer:
    """A viewer that runs. It draws from show() on; watch() waits for it."""

    def __init__(self, say: Say) -> None:
        """Start it. say: where what is said goes while nothing is drawn."""
        self._say = say
        self._kept: list[str] = []
        self._drawing = False
        self._shown = False
        self._closing = False
        self._lock = threading.Lock()
        self._waiter: threading.Thread | None = None
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._socket.setblocking(False)
        with theirs:
            # Root imports nothing from the directory in which somebody calls it (-P).
            words = [sys.executable, "-I" if sys.flags.isolated else "-P", "-c", _START]
            words.append(str(Path(cdmtrace.__file__).resolve().parents[1]))
            words += [str(theirs.fileno()), *map(str, _ids())]
            # The keyboard's are the recorder's, from the viewer's first instruction on.
            before = signal.pthread_sigmask(signal.SIG_BLOCK, _KEYBOARD)
            try:
                self._process = subprocess.Popen(
                    words,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    pass_fds=[theirs.fileno()],
                )
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, before)
        self.pid = self._process.pid

    def say(self, text: str) -> None:
        """Have it shown, and keep it for when nothing is drawn any more."""
        with self._lock:
            if self._drawing:
                self._kept.append(text)
                self._send(text.encode(errors="replace"))
                return
        self._say(text)

    def show(self, path: Path, fd: int) -> None:
        """Have the file drawn, for reading alone, whoever may open it."""
        try:
            # A descriptor of its own: one that is shared could be written to.
            own = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            self._say(f"no live view: {path}: {error.strerror}")
            return
        try:
            with self._lock:
                socket.send_fds(self._socket, [os.fsencode(path)], [own])
                self._drawing = True
        except OSError:
            # It has died already: whoever waits for it tells of that.
            self._drawing = True
        finally:
            os.close(own)
        self._shown = True

    def watch(self) -> None:
        """Wait for its end in a thread, where it has a file to draw."""
        if not self._shown or self._waiter is not None:
            return
        self._waiter = threading.Thread(target=self._wait, daemon=True)
        # What the main thread holds back is to come through nowhere else.
        with signals_later():
            self._waiter.start()

    def close(self) -> None:
        """End it, and say what was kept."""
        self._closing = True
        self._socket.close()
        self.watch()
        if self._waiter is None:
            # It may still be importing, and has drawn nothing.
            if self._kill():
                self._process.wait()
            return
        self._waiter.join(PATIENCE)
        if not self._waiter.is_alive() or self._kill():
            self._waiter.join()
            self._process.wait()
            return
        self._tell("the live view does not end, and is left alone")

    def _kill(self) -> bool:
        """Kill it; return whether we may: root that never had CAP_KILL may not.

        One that we may not kill ends by itself, as the socket has.
        """
        try:
            self._process.kill()
        except PermissionError:
            return False
        return True

    def _send(self, message: bytes) -> None:
        # One who does not listen, or is gone, misses it.
        with contextlib.suppress(OSError):
            self._socket.send(message)

    def _wait(self) -> None:
        """Wait until it has ended, whoever ends it; leave the terminal in order."""
        # Not reaped before close(): the program leaves this pid out, so nobody else may
        # have it meanwhile.
        ended = os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT)
        status = ended.si_status if ended is not None else 0
        if ended is not None and ended.si_code != os.CLD_EXITED:
            status = -status
        if status:
            with contextlib.suppress(OSError):
                os.write(2, AS_IT_WAS)
        if status and not self._closing:
            self._tell(f"the live view has ended ({_how(status)}); recording goes on")
        else:
            self._tell()

    def _tell(self, *last: str) -> None:
        """Say what was kept, and from now on what is said when it is said."""
        with self._lock:
            self._drawing = False
            kept, self._kept = [*self._kept, *last], []
        # A terminal that has gone is no reason to fail.
        with contextlib.suppress(OSError):
            for text in kept:
                self._say(text)


@contextlib.contextmanager
def beside(say: Say, *, live: bool) -> Iterator[Beside]:
    """Give who is told of a recording: a viewer if it is to be looked at."""
    if not live:
        yield Nobody(say)
        return
    with contextlib.closing(Viewer(say)) as viewer:
        yield viewer


def _ids() -> tuple[int, ...]:
    """Return the uid, gid and groups of who looks: who called sudo, else nobody.

    Empty where we are not root, and nothing is to be given up.
    """
    if os.geteuid() != 0:
        return ()
    who = caller()
    if who is None:
        return _NOBODY, _NOBODY
    return who.uid, who.gid, *who.groups


def _how(status: int) -> str:
    if status >= 0:
        return f"status {status}"
    try:
        return signal.Signals(-status).name
    except ValueError:
        return f"signal {-status}"
