"""Names for the numbers of a trace, as the kernel and its people write them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

from cdmtrace import units, vmbits
from cdmtrace.analysis import stacks
from cdmtrace.events import Cause, EventKind, Lock, Mpol, MpolFlag, Probe, VmaLock

if TYPE_CHECKING:
    from cdmtrace.analysis.frames import Terms

VM_MERGEABLE: Final = 0x80000000
"""KSM may merge identical pages (include/linux/mm.h, since 2.6.32)."""

_MMAP_LOCK: Final[Mapping[int, str]] = {
    Lock.UNKNOWN: "?",
    Lock.NONE: "none",
    Lock.READ: "read",
    Lock.WRITE_SELF: "write",
    Lock.WRITE_OTHER: "other's",
}
_VMA_LOCKS: Final = {int(lock): lock.name.lower() for lock in VmaLock}
_PROBES: Final = {int(probe): probe.name.lower() for probe in Probe}
_KINDS: Final = {int(kind): kind.name.lower() for kind in EventKind}
_CAUSES: Final = {int(cause): cause.name.lower() for cause in Cause}
_MODES: Final = {int(mode): mode.name for mode in Mpol}
_ERRNO: Final = {
    1: "EPERM",
    2: "ENOENT",
    3: "ESRCH",
    4: "EINTR",
    5: "EIO",
    7: "E2BIG",
    11: "EAGAIN",
    12: "ENOMEM",
    13: "EACCES",
    14: "EFAULT",
    16: "EBUSY",
    17: "EEXIST",
    22: "EINVAL",
    95: "EOPNOTSUPP",
}
_ADVICE: Final = {
    0: "NORMAL",
    1: "RANDOM",
    2: "SEQUENTIAL",
    3: "WILLNEED",
    4: "DONTNEED",
    8: "FREE",
    9: "REMOVE",
    10: "DONTFORK",
    11: "DOFORK",
    12: "MERGEABLE",
    13: "UNMERGEABLE",
    14: "HUGEPAGE",
    15: "NOHUGEPAGE",
    16: "DONTDUMP",
    17: "DODUMP",
    18: "WIPEONFORK",
    19: "KEEPONFORK",
    20: "COLD",
    21: "PAGEOUT",
    22: "POPULATE_READ",
    23: "POPULATE_WRITE",
    25: "COLLAPSE",
    100: "HWPOISON",
    101: "SOFT_OFFLINE",
}


def flags(word: int, terms: Terms) -> tuple[str, ...]:
    """Return the names of the set bits; VM_CDM comes last and is "cd".

    A flag that brings a number with it has it after a colon: "checknode:1".
    """
    shown = []
    rest = word & ~terms.tag
    for bit in range(rest.bit_length()):
        if not rest >> bit & 1:
            continue
        name = terms.flags.get(bit)
        text = vmbits.word(bit, name)
        if field := vmbits.FIELDS.get(name or ""):
            text += f":{field.value(rest)}"
            rest &= ~field.mask
        shown.append(text)
    return (*shown, "cd") if word & terms.tag else tuple(shown)


def changed(before: int, after: int, terms: Terms) -> tuple[str, str]:
    """Return before and after, told by what differs and by VM_CDM and VM_MERGEABLE."""
    shown = (before ^ after) | terms.tag | VM_MERGEABLE
    for bit, name in terms.flags.items():
        field = vmbits.FIELDS.get(name)
        if field and shown & (field.mask | 1 << bit):
            shown |= field.mask | 1 << bit
    pair = flags(before & shown, terms), flags(after & shown, terms)
    return " ".join(pair[0]) or "-", " ".join(pair[1]) or "-"


def nodes(mask: int) -> str:
    """Return a node list: "1", "0-1,3"; "none" for an empty mask."""
    found = [n for n in range(mask.bit_length()) if mask >> n & 1]
    runs: list[list[int]] = []
    for n in found:
        if runs and runs[-1][-1] == n - 1:
            runs[-1][1:] = [n]
        else:
            runs.append([n])
    return ",".join("-".join(map(str, run)) for run in runs) or "none"


def mode(policy: int) -> str:
    """Return the mode in a policy byte, with its flags: "BIND", "BIND|STATIC"."""
    number = policy & 15
    text = _MODES.get(number) or f"mode{number}"
    for flag in MpolFlag:
        if policy & flag:
            text += f"|{str(flag.name).removesuffix('_NODES')}"
    return text


def policy(byte: int, mask: int) -> str:
    """Return a policy in short: "BIND:1", "DEFAULT", "unread"."""
    if byte & 15 == Mpol.UNREAD:
        return "unread"
    if byte & 15 in (Mpol.DEFAULT, Mpol.LOCAL):
        return mode(byte)
    return f"{mode(byte)}:{nodes(mask)}"


def lock(byte: int) -> str:
    """Return how the mmap lock was held: write (by this task), read, other's, …

    Where the kernel has a lock in each VMA, its state follows: "read+vma:read".
    """
    low, high = byte & 15, byte >> 4
    text = _MMAP_LOCK.get(low, "?")
    if high and high in _VMA_LOCKS:
        text += f"+vma:{_VMA_LOCKS[high]}"
    return text


def locks(entry: int, exit_: int) -> str:
    """Return the lock's state at both ends, once if it is the same."""
    first, last = lock(entry), lock(exit_)
    return first if first == last else f"{first}>{last}"


def probe(number: int) -> str:
    """Return a logical probe's name as the trace's header has it."""
    return _PROBES.get(number) or str(number)


def instruction(payload: bytes | None) -> str:
    """Return name+0xoffset of a WRITE row, "" if no stack could be taken."""
    return (payload or b"").decode(errors="replace")


def function(payload: bytes | None) -> str:
    """Return the function alone, without what the compiler adds, "" as above."""
    return stacks.function(instruction(payload))


def kind(number: int) -> str:
    """Return an event kind's name in lower case."""
    return _KINDS.get(number) or str(number)


def cause(number: int) -> str:
    """Return a cause's name in lower case."""
    return _CAUSES.get(number) or str(number)


def errno(ret: int) -> str:
    """Return "0", a count, or the name of a negative errno."""
    return _ERRNO.get(-ret, str(ret)) if ret < 0 else str(ret)


def advice(number: int) -> str:
    """Return the name of madvise()'s advice."""
    return _ADVICE.get(number, str(number))


def size(count: int, page: int) -> str:
    """Return bytes as pages: "1 page", "1,536 pages"."""
    return units.count(count // page, "page")


# --- the ways by which pages come ----------------------------------------------

BY_CALL: Final[Mapping[int, str]] = {
    Probe.SYS_MBIND: "mbind",
    Probe.SYS_MOVE_PAGES: "move_pages",
    Probe.SYS_MIGRATE_PAGES: "migrate_pages",
}
"""A system call that migrates -> the way of what it has moved."""

BY_MIGRATION: Final[Mapping[int, str]] = {
    Cause.COMPACTION: "compaction",
    Cause.CPUSET: "cpuset",
    Cause.DRIVER: "driver",
    Cause.HOTPLUG: "hotplug",
    Cause.NUMA_BALANCING: "numa-balancing",
    Cause.RECLAIM: "demotion",
}
"""Why a page was migrated, by its stack -> its way."""

BY_REASON: Final = {0: "compaction", 2: "hotplug", 5: "numa-balancing", 8: "demotion"}
"""enum migrate_reason, include/linux/migrate_mode.h of 6.1 -> the way.

It can lie, so it is asked only where neither a stack nor a system call tells more.
"""

BY_FAULT: Final[Mapping[int, str]] = {
    Cause.COW: "cow",
    Cause.SWAP_IN: "swap-in",
    Cause.NUMA_BALANCING: "numa-balancing",
    Cause.KHUGEPAGED: "khugepaged",
    Cause.KSM: "ksm",
    Cause.DRIVER: "driver",
    Cause.FILE: "file",
    Cause.USERFAULTFD: "userfaultfd",
}
"""Why a page was mapped, by its stack -> its way; any other is a plain fault."""
