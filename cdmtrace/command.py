"""The command that is recorded, which runs as who called sudo."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from cdmtrace.caller import Caller, caller
from cdmtrace.errors import CommandNotExecutable, CommandNotFound

LINGER: Final = 5.0
"""Seconds that a command gets to end after SIGTERM, when recording was stopped."""

GRACE: Final = 2.0
"""Seconds that a command gets to end by itself after Ctrl-C, before SIGTERM."""

PAUSE: Final = 0.1
"""Seconds between two looks whether it has ended."""

_ROOTS: Final = re.compile("(SUDO|CDMTRACE|BCC)_|LD_|PYTHON|(MAIL|XDG_RUNTIME_DIR)$")
"""Variables that are about the recorder, or about root, and not for the command."""


class Command:
    """A command that runs."""

    def __init__(self, words: Sequence[str]) -> None:
        """Start it. Raises CommandNotFound, CommandNotExecutable."""
        self._process = _spawn(words)
        self._given_up = False

    @property
    def pid(self) -> int:
        """Its process."""
        return self._process.pid

    def finish(self, meanwhile: Callable[[], None], *, told: bool = False) -> int:
        """End it if it runs still; return its status, 128 + N if signal N ended it.

        meanwhile: is called again and again until it has ended. told: it was sent what
        ended us, as by Ctrl-C: before SIGTERM it gets GRACE to do what it does then.
        One that we may not end, for it runs as another user now, is left alone after
        LINGER.
        """
        grace = time.monotonic() + GRACE
        while told and self._process.poll() is None and time.monotonic() < grace:
            meanwhile()
            time.sleep(PAUSE)
        if self._process.poll() is None:
            self._signal(signal.SIGTERM)
        until = time.monotonic() + LINGER
        while self._process.poll() is None:
            meanwhile()
            if time.monotonic() > until and not self._signal(signal.SIGKILL):
                self._given_up = True
                return 128 + signal.SIGTERM
            time.sleep(PAUSE)
        code: int = self._process.returncode
        return code if code >= 0 else 128 - code

    def abandon(self) -> None:
        """End it if it runs still: recording has failed."""
        if self._given_up or self._process.poll() is not None:
            return
        self._signal(signal.SIGTERM)
        try:
            self._process.wait(LINGER)
        except subprocess.TimeoutExpired:
            if self._signal(signal.SIGKILL):
                self._process.wait()

    def _signal(self, number: int) -> bool:
        """Send a signal; return whether we may: it can have become another user's."""
        try:
            self._process.send_signal(number)
        except PermissionError:
            return False
        return True


def environment(ours: Mapping[str, str], who: Caller | None) -> dict[str, str]:
    """Return the command's environment, as ``sudo -u`` would give it to who called.

    ours: what sudo has let through, with what is root's. who: None if nobody called
    sudo; then ours is the caller's own, and nothing in it is for us to take away.
    """
    if who is None:
        return dict(ours)
    kept = {name: text for name, text in ours.items() if not _ROOTS.match(name)}
    return {**kept, **who.names}


def _spawn(command: Sequence[str]) -> subprocess.Popen[bytes]:
    """Start the command as the user who called sudo."""
    who = caller()
    ids: dict[str, Any] = {}
    if who is not None:
        ids = {"user": who.uid, "group": who.gid, "extra_groups": who.groups}
    try:
        return subprocess.Popen(command, env=environment(os.environ, who), **ids)
    except FileNotFoundError as error:
        raise CommandNotFound(f"{command[0]}: command not found") from error
    except OSError as error:
        raise CommandNotExecutable(
            f"{command[0]}: cannot be executed: {error.strerror}"
        ) from error
