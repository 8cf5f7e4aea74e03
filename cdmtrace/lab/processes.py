"""Child processes that cannot outlive us.

A guest is a tree of processes (vng, virtme-run, QEMU), a kernel build another.  Each
gets a session of its own, which is killed as one.  Two things see to it that none is
left when we are killed ourselves and can clean up nothing: the kernel sends the
leader SIGKILL (PR_SET_PDEATHSIG), and a guard, a shell blocked in ``read`` on a pipe
that only we hold open, kills the rest of the session at end-of-file.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
from typing import TYPE_CHECKING, Self

from cdmtrace.errors import Interrupted, Terminated
from cdmtrace.signals import ENDING, no_more_signals, signals_to

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None, use_errno=True)

# $1 is the process group.  A line means "all done"; end-of-file means that the
# process which held the other end is gone.
# -s, because dash takes the "--" after a "-KILL" for a number.
_GUARD = 'read -r _ || kill -s KILL -- "-$1" 2>/dev/null'


class _Held:
    """Signals that wait until the session that is being made has been entered.

    To block them is not enough: the kernel then gives them to another thread of ours,
    where there is one, and Python runs the handler in this one all the same.
    """

    sessions = 0
    pending: int | None = None


def _die_with_parent() -> None:
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDING)


class Session:
    """A command in a session of its own, with a guard beside it.

    Use as a context manager, at once: on leaving it, whatever still runs in the
    session is killed and the leader is reaped. SIGINT, SIGTERM and SIGHUP are held
    back until it is entered: one that arrived between fork and there would unwind
    the stack and leave children that nobody knows of.
    """

    def __init__(
        self,
        arguments: Sequence[str],
        *,
        stdin: int,
        stdout: int,
        stderr: int,
        cwd: Path,
        env: Mapping[str, str],
    ) -> None:
        self._ended = False
        _Held.sessions += 1
        self._mask = signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)
        try:
            self.process = subprocess.Popen(
                list(arguments),
                stdin=stdin,
                stdout=stdout,
                stderr=stderr,
                cwd=cwd,
                env=dict(env),
                start_new_session=True,
                preexec_fn=_die_with_parent,  # noqa: PLW1509 (no locks)
            )
            try:
                self._guard = subprocess.Popen(
                    ["/bin/sh", "-c", _GUARD, "guard", str(self.process.pid)],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    start_new_session=True,
                )
            except BaseException:
                self._kill_group()
                self.process.wait()
                raise
        except BaseException:
            self._let_through()
            raise

    def _let_through(self) -> None:
        """Let what was held back arrive, as an error that is raised here."""
        _Held.sessions -= 1
        signal.pthread_sigmask(signal.SIG_SETMASK, self._mask)
        number, _Held.pending = _Held.pending, None
        if number is not None:
            signal.raise_signal(number)

    def __enter__(self) -> Self:
        try:
            self._let_through()
        except BaseException:
            self.end()
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        self.end()

    def _kill_group(self) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)

    def leader_ended(self) -> bool:
        """Return whether the leader has ended; it is not reaped by this."""
        if self.process.returncode is not None:
            return True
        flags = os.WEXITED | os.WNOHANG | os.WNOWAIT
        return os.waitid(os.P_PID, self.process.pid, flags) is not None

    def wait(self) -> int:
        """Wait for the leader, end the rest of the session, return its status."""
        os.waitid(os.P_PID, self.process.pid, os.WEXITED | os.WNOWAIT)
        return self.end()

    def end(self) -> int:
        """Kill whatever runs in the session, and return the leader's status."""
        if not self._ended:
            # Before the leader is reaped: until then its number is not given away,
            # so the signal cannot hit a stranger.
            self._kill_group()
            assert self._guard.stdin is not None
            with contextlib.suppress(OSError):
                self._guard.stdin.write(b"done\n")
                self._guard.stdin.close()
            self._guard.wait()
            self.process.wait()
            if self.process.stdout is not None:
                self.process.stdout.close()
            self._ended = True
        return self.process.returncode


@contextlib.contextmanager
def signals_as_errors() -> Iterator[None]:
    """Let SIGINT, SIGTERM and SIGHUP unwind the stack as errors within the block.

    Raises :class:`Interrupted` or :class:`Terminated` at the place where the signal
    arrives, so that every ``with`` on the way cleans up.
    """

    def interrupt(number: int) -> None:
        if _Held.sessions:
            _Held.pending = number
            return
        no_more_signals()
        if number == signal.SIGINT:
            raise Interrupted("interrupted")
        raise Terminated(f"ended by {signal.Signals(number).name}")

    with signals_to(interrupt):
        yield


def tail(text: str, count: int) -> str:
    """Return the last ``count`` lines of ``text``."""
    return "\n".join(text.rstrip("\n").splitlines()[-count:])
