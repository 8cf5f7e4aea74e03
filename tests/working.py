"""What processes of cdmtrace.parallel can be told to do with a share."""

from __future__ import annotations

import contextlib
import os
import signal
import struct
import time
from pathlib import Path

from cdmtrace.analysis import Trace
from cdmtrace.analysis.partition import Share
from cdmtrace.errors import TraceFileError


def address_spaces(trace: Trace, share: Share) -> list[int]:
    """Go through the rows, and return whose the share has."""
    seen = {event.mm for event in trace.events}
    return sorted(seen.intersection(share.mms.tolist()))


def killed(trace: Trace, share: Share) -> None:
    """Die, one as soon as it begins, and the other would never end."""
    if share.first is not None:
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(600)


def interrupted(trace: Trace, share: Share) -> None:
    """Die when the beginning of a message has been sent."""
    for path in Path("/proc/self/fd").iterdir():
        # One is that of the directory, which is closed by then.
        with contextlib.suppress(OSError):
            if str(path.readlink()).startswith("socket:"):
                os.write(int(path.name), struct.pack("!i", 1000) + b"half")
    os.kill(os.getpid(), signal.SIGKILL)


def refused(trace: Trace, share: Share) -> None:
    """Find something wrong with a file."""
    raise TraceFileError(f"{trace.path}: odd", hint="look", details="at it")


def too_large(trace: Trace, share: Share) -> None:
    """Have no memory left."""
    raise MemoryError


def faulty(trace: Trace, share: Share) -> None:
    """Do what nobody has thought of."""
    raise ZeroDivisionError("odd")


def endless(trace: Trace, share: Share) -> None:
    """Go through the rows again and again."""
    while True:
        for _ in trace.events:
            pass
