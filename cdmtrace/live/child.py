"""The viewer that the recorder starts: root until it has imported, nobody special then.

    python -c … SOCKET [UID GID GROUP...]

The socket brings one message a time: the file's name and its descriptor first, then
what the recorder says. When it ends, so does this.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final, NoReturn

from cdmtrace.errors import CdmtraceError, ExitStatus

if TYPE_CHECKING:
    from cdmtrace.live.view import View

LONGEST: Final = 1 << 16
"""Bytes of a message at most."""

NICEST: Final = 19


def become(uid: int, gid: int, groups: Sequence[int]) -> None:
    """Give root up for good. Does nothing where we are not root.

    Raises OSError if the kernel will not have it, PermissionError if it can be undone.
    """
    if os.geteuid() != 0:
        return
    os.setgroups(groups)
    os.setresgid(gid, gid, gid)
    os.setresuid(uid, uid, uid)
    if uid:
        try:
            os.setresuid(0, 0, 0)
        except PermissionError:
            return
        raise PermissionError("root could be had again")


def main() -> int:
    """Draw what the recorder records, until it ends. Return the exit status."""
    # Ctrl-C and Ctrl-\\ are for the recorder, which has them blocked here and ends us.
    for kind in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(kind) is not signal.SIG_IGN:
            signal.signal(kind, _leave)
    # Before the imports: the recorder compiles meanwhile.
    os.nice(NICEST)
    number, *ids = map(int, sys.argv[1:])
    control = socket.socket(fileno=number)
    # Whoever we become may not be able to read what has not been imported by then.
    from cdmtrace.live import view
    from cdmtrace.render import live as render

    console = view.console_for(2)
    with console.capture():
        console.print(render.render(render.EMPTY))
    try:
        if ids:
            become(ids[0], ids[1], ids[2:])
    except OSError as error:
        sys.stderr.write(f"cdmtrace: no live view as root: {error.strerror}\n")
        return ExitStatus.TROUBLE
    try:
        path, fds, _, _ = socket.recv_fds(control, LONGEST, 1)
        if not fds:
            return ExitStatus.OK
        shown = view.View(fds[0], path.decode(errors="surrogateescape"))
        view.stoppable(2)
        view.follow(shown, console, Control(control, shown).wait)
    except CdmtraceError as error:
        sys.stderr.write(f"cdmtrace: {error.message}\n")
        return ExitStatus.TROUBLE
    except OSError:
        # The terminal has gone. Nobody is left to be told.
        return ExitStatus.TROUBLE
    return ExitStatus.OK


class Control:
    """What the recorder says while we draw."""

    def __init__(self, control: socket.socket, shown: View) -> None:
        self._control = control
        self._shown = shown

    def wait(self, seconds: float) -> bool:
        """Wait for so long, or until the recorder ends: then return False."""
        until = time.monotonic() + seconds
        while True:
            self._control.settimeout(max(until - time.monotonic(), 0.0))
            try:
                said = self._control.recv(LONGEST)
            except (TimeoutError, BlockingIOError):
                return True
            if not said:
                return False
            self._shown.stage = said.decode(errors="replace")


def _leave(number: int, frame: object) -> NoReturn:
    """Leave the terminal as it was, and go."""
    del frame
    raise SystemExit(128 + number)
