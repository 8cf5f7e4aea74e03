"""Hardware watchpoints on kernel addresses: perf events, one on each cpu.

perf_event_open(2) with PERF_TYPE_BREAKPOINT. The kernel shares the processor's debug
registers out among all who ask: perf, ptrace and kgdb have their part of them.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import platform
import struct
import sys
from pathlib import Path
from typing import Final

from cdmtrace.errors import RecordError

REGISTERS: Final = 4
"""Debug registers of a processor (x86: DR0 to DR3)."""

_ONLINE: Final = Path("/sys/devices/system/cpu/online")
_PERF_EVENT_OPEN: Final = {"x86_64": 298}
"""Machines on which it is known that the handler runs after the write."""
_CLOEXEC: Final = 1 << 3

# include/uapi/linux/perf_event.h: struct perf_event_attr, and ioctls.
_ATTR: Final = struct.Struct("=IIQQQQQIIQQ")
_ATTR_SIZE: Final = 72
"""PERF_ATTR_SIZE_VER1: the first with bp_addr and bp_len."""
_NOWHERE: Final = (1 << 64) - (1 << 12)
"""An address of the kernel's, for a register that is never set."""
_TYPE_BREAKPOINT: Final = 5
_WRITE: Final = 2
_DISABLED, _PINNED, _EXCLUDE_USER = 1 << 0, 1 << 2, 1 << 4
_ENABLE, _DISABLE, _SET_BPF = 0x2400, 0x2401, 0x40042408


class NoWatchpoint(RecordError):
    """A debug register cannot be had (exit status 125)."""


def check_machine() -> None:
    """Raise NoWatchpoint where it is not known how the processor's watchpoints work."""
    machine = platform.machine()
    if machine not in _PERF_EVENT_OPEN:
        raise NoWatchpoint(
            f"watchpoints of {machine} are not known here: on x86_64 alone the write "
            "is done when it is told",
            hint="cdmtrace record",
        )


def cpus() -> tuple[int, ...]:
    """Return the cpus that are online."""
    found: list[int] = []
    for part in _ONLINE.read_text().strip().split(","):
        first, _, last = part.partition("-")
        found += range(int(first), int(last or first) + 1)
    return tuple(found)


def check_free(number: int) -> None:
    """Raise NoWatchpoint unless each cpu has so many debug registers left."""
    taken: list[int] = []
    try:
        for cpu in cpus():
            taken += [open_event(_NOWHERE, cpu) for _ in range(number)]
    except OSError as error:
        raise _refused(error) from error
    finally:
        for fd in taken:
            os.close(fd)


class Watchpoint:
    """Eight bytes of the kernel that a debug register of every cpu looks at.

    A cpu that comes online later does not look.
    """

    def __init__(self, address: int, program: int) -> None:
        """Run a BPF program, by its file descriptor, after each write to the address.

        Raises NoWatchpoint where a cpu has no debug register left, or we may not.
        """
        self._fds: list[int] = []
        try:
            for cpu in cpus():
                self._fds.append(open_event(address, cpu))
            for fd in self._fds:
                fcntl.ioctl(fd, _SET_BPF, program)
            for fd in self._fds:
                fcntl.ioctl(fd, _ENABLE, 0)
        except BaseException as error:
            self.close()
            if isinstance(error, OSError):
                raise _refused(error) from error
            raise

    def stop(self) -> int:
        """Look no more, and return how many writes there were, by the kernel's count.

        No program runs any more when this returns.
        """
        for fd in self._fds:
            fcntl.ioctl(fd, _DISABLE, 0)
        # One that the kernel could not keep in its register has nothing to read.
        counts = [os.read(fd, 8) for fd in self._fds]
        return sum(int.from_bytes(count, sys.byteorder) for count in counts)

    def close(self) -> None:
        """Give the debug registers back. Closing twice is harmless."""
        while self._fds:
            os.close(self._fds.pop())


def attributes(address: int) -> bytes:
    """Return a struct perf_event_attr: each write to eight bytes runs the program."""
    return _ATTR.pack(
        *(_TYPE_BREAKPOINT, _ATTR_SIZE),
        *(0, 1, 0, 0),  # config, sample_period, sample_type, read_format
        _DISABLED | _PINNED | _EXCLUDE_USER,
        *(0, _WRITE),
        *(address, 8),
    )


def open_event(address: int, cpu: int) -> int:
    """Return the file descriptor of a perf event that is switched off yet.

    Raises OSError.
    """
    fd: int = ctypes.CDLL(None, use_errno=True).syscall(
        ctypes.c_long(_PERF_EVENT_OPEN[platform.machine()]),
        ctypes.c_char_p(attributes(address)),
        ctypes.c_long(-1),
        ctypes.c_long(cpu),
        ctypes.c_long(-1),
        ctypes.c_long(_CLOEXEC),
    )
    if fd < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), f"cpu {cpu}")
    return fd


def _refused(error: OSError) -> NoWatchpoint:
    where = f" of {error.filename}" if error.filename else ""
    if error.errno in (errno.ENOSPC, errno.EBUSY):
        return NoWatchpoint(
            f"no debug register{where} is left: there are {REGISTERS}, and others have "
            "some of them",
            hint="end perf, gdb or kgdb with hardware breakpoints, or watch fewer "
            "addresses",
        )
    if error.errno in (errno.EPERM, errno.EACCES):
        return NoWatchpoint(
            "the kernel allows no watchpoint on its own memory: it takes CAP_SYS_ADMIN",
            hint="sudo cdmtrace watch …",
        )
    return NoWatchpoint(
        f"the kernel gives no watchpoint{where}: {error.strerror}",
        hint="cdmtrace doctor",
    )
