"""The command that is recorded, which runs as who called sudo."""

from __future__ import annotations

import os
import pwd
import subprocess
import time
from collections.abc import Callable, Sequence
from typing import Any, Final

from cdmtrace.errors import CommandNotExecutable, CommandNotFound

LINGER: Final = 5.0
"""Seconds that a command gets to end after SIGTERM, when recording was stopped."""

PAUSE: Final = 0.1
"""Seconds between two looks whether it has ended."""


def caller() -> tuple[int, int] | None:
    """Return (uid, gid) of who called sudo; None if nobody did."""
    uid, gid = os.environ.get("SUDO_UID", ""), os.environ.get("SUDO_GID", "")
    if os.geteuid() != 0 or not (uid.isdecimal() and gid.isdecimal()):
        return None
    return int(uid), int(gid)


class Command:
    """A command that runs."""

    def __init__(self, words: Sequence[str]) -> None:
        """Start it. Raises CommandNotFound, CommandNotExecutable."""
        self._process = _spawn(words)

    @property
    def pid(self) -> int:
        """Its process."""
        return self._process.pid

    def finish(self, meanwhile: Callable[[], None]) -> int:
        """End it if it runs still; return its status, 128 + N if signal N ended it.

        meanwhile: is called again and again until it has ended.
        """
        if self._process.poll() is None:
            self._process.terminate()
        until = time.monotonic() + LINGER
        while self._process.poll() is None:
            meanwhile()
            if time.monotonic() > until:
                self._process.kill()
            time.sleep(PAUSE)
        code: int = self._process.returncode
        return code if code >= 0 else 128 - code

    def abandon(self) -> None:
        """End it if it runs still: recording has failed."""
        if self._process.poll() is not None:
            return
        self._process.terminate()
        try:
            self._process.wait(LINGER)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def _spawn(command: Sequence[str]) -> subprocess.Popen[bytes]:
    """Start the command as the user who called sudo."""
    who: dict[str, Any] = {}
    ids = caller()
    if ids is not None:
        uid, gid = ids
        try:
            user = pwd.getpwuid(uid)
        except KeyError:
            groups, environment = [gid], {}
        else:
            groups = os.getgrouplist(user.pw_name, gid)
            environment = {
                "HOME": user.pw_dir,
                "LOGNAME": user.pw_name,
                "USER": user.pw_name,
            }
        who = {
            "user": uid,
            "group": gid,
            "extra_groups": groups,
            "env": {**os.environ, **environment},
        }
    try:
        return subprocess.Popen(command, **who)
    except FileNotFoundError as error:
        raise CommandNotFound(f"{command[0]}: command not found") from error
    except OSError as error:
        raise CommandNotExecutable(
            f"{command[0]}: cannot be executed: {error.strerror}"
        ) from error
