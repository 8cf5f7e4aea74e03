"""What recording needs of privileges, and how it lets go of them: capabilities(7).

The sets are changed by libcap-ng, which every Debian has, as setpriv(1) needs it. Its
Python binding is for the system's Python alone, and those of prctl(2) on PyPI have had
no release for years; so its C functions are called.
"""

from __future__ import annotations

import contextlib
import ctypes
import enum
import os
import re
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from cdmtrace.caller import Caller, caller
from cdmtrace.errors import RecordError, apt_hint
from cdmtrace.kernel.symbols import KALLSYMS
from cdmtrace.kernel.tracefs import TRACEFS


class Capability(enum.IntEnum):
    """Those that matter here, by their numbers in include/uapi/linux/capability.h."""

    DAC_OVERRIDE = 1
    KILL = 5
    SETGID = 6
    SETUID = 7
    SETPCAP = 8
    SYS_PTRACE = 19
    SYSLOG = 34
    PERFMON = 38
    BPF = 39

    def __str__(self) -> str:
        """Return what people call it."""
        return f"CAP_{self.name}"


NEEDED: Final[Mapping[Capability, str]] = {
    Capability.BPF: "to load programs and make maps",
    Capability.PERFMON: "to attach programs that read the kernel's memory",
    Capability.DAC_OVERRIDE: "to open tracefs, which is root's",
    Capability.SYSLOG: "to see the addresses of /proc/kallsyms, which name stacks",
    Capability.SYS_PTRACE: "to look at what other users' processes hold",
}
"""What recording needs, and for what, until all probes are attached."""

_FOR_THE_CALLER: Final[Mapping[Capability, str]] = {
    Capability.SETUID: "to make the file and start the command as who called sudo",
    Capability.SETGID: "to make the file and start the command in their groups",
}

SINGLE: Final = {
    "OPENBLAS_NUM_THREADS": "1",
    "JE_ARROW_MALLOC_CONF": "background_thread:false",
}
"""What keeps numpy and pyarrow from starting threads when they are imported."""

# prctl(2)
_SET_NO_NEW_PRIVS: Final = 38
# cap-ng.h
_ADD: Final = 1
_EFFECTIVE_AND_PERMITTED: Final = 1 | 2
_SELECT_CAPS, _SELECT_BOUNDS, _SELECT_AMBIENT = 16, 32, 64
_CLEAR_BOUNDING, _CLEAR_AMBIENT = 2, 8
_UNCHANGED: Final = -1


def held(kind: str = "CapEff", task: str = "self") -> frozenset[int]:
    """Return the numbers of the capabilities in one of our sets.

    kind: as /proc/PID/status calls it; task: its directory below /proc.
    """
    text = Path("/proc", task, "status").read_text()
    match = re.search(rf"^{kind}:\s*([0-9a-f]+)$", text, re.MULTILINE)
    bits = int(match[1], 16) if match else 0
    return frozenset(n for n in range(bits.bit_length()) if bits >> n & 1)


def missing() -> dict[Capability, str]:
    """Return what recording needs and we have not: capability -> for what.

    What can be done without one, as this machine is, is not missing.
    """
    wanted = {**NEEDED, **(_FOR_THE_CALLER if caller() else {})}
    lacking = {cap: why for cap, why in wanted.items() if cap not in held()}
    if _may_write(TRACEFS[0] / "kprobe_events"):
        lacking.pop(Capability.DAC_OVERRIDE, None)
    if _addresses_are_shown(KALLSYMS):
        lacking.pop(Capability.SYSLOG, None)
    return lacking


def sentence(lacking: Mapping[Capability, str]) -> str:
    """Return the names of capabilities, and what each of them is for."""
    return ", ".join(f"{cap} ({why})" for cap, why in lacking.items())


def hint(command: str) -> str:
    """Return what gives a command of ours the capabilities that it misses."""
    if os.geteuid() != 0:
        return f"sudo {command}"
    return "they were taken from this root: start it outside of what took them away"


def require() -> None:
    """Raise RecordError, with their names, where capabilities are missing."""
    if lacking := missing():
        raise RecordError(
            f"recording needs {sentence(lacking)}", hint=hint("cdmtrace record …")
        )


@contextlib.contextmanager
def single_threaded() -> Iterator[None]:
    """Import numpy and pyarrow inside the block: they start no threads then.

    Each thread has capabilities of its own, and no thread can take another's.
    """
    before = {name: os.environ.get(name) for name in SINGLE}
    os.environ |= SINGLE
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def nothing_to_inherit() -> None:
    """Let no program that is started have capabilities of ours.

    They would come with the ambient set, by which somebody who is not root was given
    them. Raises RecordError.
    """
    library = _library()
    library.capng_get_caps_process()
    library.capng_clear(_SELECT_AMBIENT)
    if library.capng_apply(_SELECT_AMBIENT):
        raise RecordError("the ambient capabilities cannot be given up")


def drop(keep: Collection[Capability], who: Caller | None) -> list[str]:
    """Give up every capability but a few, for good, and be a user who is not root.

    Afterwards the effective and permitted sets are those of keep that there were; the
    inheritable and ambient sets are empty, and so is the bounding set, if we could
    change it; and no program that we start gains any (no_new_privs). who: whose ids
    and groups we take; None: we keep our own. Return a sentence for each other thread
    that has more: there is none if all was imported in single_threaded(). Raises
    RecordError.
    """
    library = _library()
    kept = held("CapPrm") & {int(cap) for cap in keep}
    unbound = Capability.SETPCAP in held()
    try:
        if who is not None:
            os.setgroups(who.groups)
    except OSError as error:
        raise _cannot(error) from error
    library.capng_clear(_SELECT_CAPS | _SELECT_AMBIENT)
    for number in sorted(kept):
        library.capng_update(_ADD, _EFFECTIVE_AND_PERMITTED, number)
    status = library.capng_change_id(
        _UNCHANGED if who is None else who.uid,
        _UNCHANGED if who is None else who.gid,
        _CLEAR_AMBIENT | (_CLEAR_BOUNDING if unbound else 0),
    )
    if status:
        raise RecordError(f"privileges cannot be given up: capng_change_id() {status}")
    if _libc().prctl(_SET_NO_NEW_PRIVS, 1, 0, 0, 0):
        raise _cannot(OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno())))
    return _threads_with_more(kept)


def _threads_with_more(kept: Collection[int]) -> list[str]:
    more = []
    for task in Path("/proc/self/task").iterdir():
        if held("CapPrm", f"self/task/{task.name}") - set(kept):
            name = (task / "comm").read_text().strip()
            more.append(f"thread {task.name} ({name}) keeps its privileges")
    return more


def _may_write(path: Path) -> bool:
    return os.access(path, os.W_OK, effective_ids=True)


def _addresses_are_shown(path: Path) -> bool:
    """Return whether symbols have addresses: to others, the kernel says they are 0."""
    try:
        with path.open() as lines:
            return any(int(line.split(maxsplit=1)[0], 16) for line in lines)
    except OSError:
        return False


def _cannot(error: OSError) -> RecordError:
    return RecordError(f"privileges cannot be given up: {error.strerror}")


def _libc() -> Any:
    return ctypes.CDLL(None, use_errno=True)


def _library() -> Any:
    try:
        return ctypes.CDLL("libcap-ng.so.0")
    except OSError as error:
        raise RecordError(
            "libcap-ng.so.0 is missing: privileges cannot be given up",
            hint=apt_hint("libcap-ng0"),
        ) from error
