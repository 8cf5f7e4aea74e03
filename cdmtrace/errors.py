"""The one place where exit statuses and remedies live.

Every error that a person may see is a :class:`CdmtraceError`: one sentence that
says what is wrong, and, where there is one, the command that mends it.  The class
decides the exit status; nothing else in cdmtrace calls ``exit``.
"""

from __future__ import annotations

import enum
from typing import ClassVar


class ExitStatus(enum.IntEnum):
    """Exit statuses that scripts depend on."""

    OK = 0
    FINDINGS = 1
    TROUBLE = 2
    INCONCLUSIVE = 3
    TIMED_OUT = 124
    NOT_STARTED = 125
    NOT_EXECUTABLE = 126
    NOT_FOUND = 127
    INTERRUPTED = 130
    GUEST_DIED = 134
    BROKEN_PIPE = 141
    TERMINATED = 143


class CdmtraceError(Exception):
    """Something a person has to know about; exit status 2 unless a subclass differs.

    ``message`` is one sentence without a full stop, ``hint`` the command (or the
    change) that mends it, ``details`` further lines such as the end of a log.
    """

    exit_status: ClassVar[ExitStatus] = ExitStatus.TROUBLE

    def __init__(
        self, message: str, *, hint: str | None = None, details: str | None = None
    ) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.details = details

    def __str__(self) -> str:
        parts = [self.message]
        if self.details:
            parts.append(self.details.rstrip("\n"))
        if self.hint:
            parts.append(f"hint: {self.hint}")
        return "\n".join(parts)


class UsageTrouble(CdmtraceError):
    """An argument that cannot be used as given (exit status 2)."""


class UnreadableFile(CdmtraceError):
    """A file that is missing or is not what it should be (exit status 2)."""


class TraceFileError(UnreadableFile):
    """A trace file of which nothing can be read (exit status 2)."""


class RuleFault(CdmtraceError):
    """A rule from a file of one's own that failed to judge (exit status 2)."""


class RecordError(CdmtraceError):
    """``record`` could not record (exit status 125)."""

    exit_status = ExitStatus.NOT_STARTED


class TraceWriteError(RecordError):
    """The trace file cannot be created or written (exit status 125)."""


class RingError(RecordError):
    """The ring holds what cannot be in it, or cannot be read (exit status 125)."""


class LabError(CdmtraceError):
    """The laboratory could not start or build (exit status 125)."""

    exit_status = ExitStatus.NOT_STARTED


class TimedOut(CdmtraceError):
    """A run took longer than its time-out (exit status 124)."""

    exit_status = ExitStatus.TIMED_OUT


class CommandNotExecutable(CdmtraceError):
    """The command to run exists but cannot be executed (exit status 126)."""

    exit_status = ExitStatus.NOT_EXECUTABLE


class CommandNotFound(CdmtraceError):
    """The command to run was not found (exit status 127)."""

    exit_status = ExitStatus.NOT_FOUND


class GuestDied(CdmtraceError):
    """The guest ended without the command's status (exit status 134)."""

    exit_status = ExitStatus.GUEST_DIED


class Interrupted(CdmtraceError):
    """Stopped by Ctrl-C (exit status 130)."""

    exit_status = ExitStatus.INTERRUPTED


class Terminated(CdmtraceError):
    """Stopped by SIGTERM or SIGHUP (exit status 143)."""

    exit_status = ExitStatus.TERMINATED


def apt_hint(*packages: str) -> str:
    """Return the command that installs ``packages`` on Debian and Ubuntu."""
    return "sudo apt-get install -y " + " ".join(packages)
