"""The event record and its numbers: the mirror of ``bpf/events.h``.

What each field means is told there, beside the struct, and nowhere twice.
``tests/unit/test_events.py`` compiles the header and compares every offset,
size and enumerator with this module.

Addresses and flag words are unsigned and may exceed the largest ``int64``:
keep them in ``uint64`` arrays, or in Python's ``int``, and never mix the two.
"""

from __future__ import annotations

from enum import IntEnum, unique
from typing import Any, Final

import numpy as np
import numpy.typing as npt

__all__ = [
    "COMM_LEN",
    "C_ENUMS",
    "EVENT_DTYPE",
    "NO_NODE",
    "POLICY_UNREAD",
    "STACKS",
    "Bit",
    "Cause",
    "EventKind",
    "Events",
    "Lock",
    "Lost",
    "Mpol",
    "MpolFlag",
    "Probe",
    "VmaLock",
    "comm_bytes",
    "lock_byte",
    "mmap_lock",
    "policy_byte",
    "policy_flags",
    "policy_mode",
    "vma_lock",
]

NO_NODE: Final = -1
"""Stands for "no page" or "node unknown" in the columns node and src_node."""

STACKS: Final = 4096
"""The numbers that a record's ``stack`` can have: 1 to this; 0 is none."""

COMM_LEN: Final = 16
"""Bytes of a task name, the terminating NUL included (the kernel's
TASK_COMM_LEN)."""

Events = npt.NDArray[np.void]
"""A one-dimensional array whose dtype is EVENT_DTYPE."""

EVENT_DTYPE: Final[np.dtype[np.void]] = np.dtype(
    [
        ("ts", "=u8"),
        ("ts_entry", "=u8"),
        ("mm", "=u8"),
        ("vma", "=u4"),
        ("stack", "=u4"),
        ("start", "=u8"),
        ("end", "=u8"),
        ("addr", "=u8"),
        ("size", "=u8"),
        ("flags_before", "=u8"),
        ("flags_after", "=u8"),
        ("nodes", "=u8"),
        ("other", "=u8"),
        ("pid", "=u4"),
        ("tid", "=u4"),
        ("call", "=u4"),
        ("ret", "=i4"),
        ("arg", "=u2"),
        ("cpu", "=u2"),
        ("node", "=i2"),
        ("src_node", "=i2"),
        ("kind", "=u1"),
        ("probe", "=u1"),
        ("cause", "=u1"),
        ("bits", "=u1"),
        ("lock_entry", "=u1"),
        ("lock_exit", "=u1"),
        ("policy", "=u1"),
        ("other_policy", "=u1"),
    ]
)
"""``struct cdm_event``: 128 bytes, native byte order, no padding."""


@unique
class EventKind(IntEnum):
    """What happened (``enum cdm_kind``)."""

    ALLOC = 1
    MAP = 2
    MIGRATE = 3
    UNMAP = 4
    ZAP = 5
    COPY = 6
    MOVE = 7
    KSM_PAGE = 8
    NUMA_SCAN = 9
    COLLAPSE = 10
    NUMA_MOVE = 11
    FLAGS = 16
    POLICY = 17
    KSM_ADVICE = 18
    WRITE = 19
    WATCH = 20
    VMA_NEW = 24
    VMA_SPLIT = 25
    VMA_MERGE = 26
    VMA_DUP = 27
    VMA_FREE = 28
    MM_EXIT = 29
    WRITE_SECTION = 30
    VMA_SEEN = 31
    CALL = 40
    CALL_OPEN = 41
    COMM = 64
    SNAP_VMA = 80
    SNAP_PAGES = 81
    STACK = 82
    SNAP_MM = 83
    SNAP_RANGES = 84


@unique
class Probe(IntEnum):
    """Which logical probe saw it (``enum cdm_probe``)."""

    NONE = 0
    ALLOC = 1
    MBIND_RANGE = 2
    VMA_POLICY = 3
    REMOVE_MIGRATION_PTE = 4
    MIGRATE_PAGES = 5
    KSM_MADVISE = 6
    ZAP = 7
    COPY_PAGE_RANGE = 8
    MOVE_PAGE_TABLES = 9
    RMAP_ADD = 10
    RMAP_REMOVE = 11
    FAULT = 12
    VMA_SPLIT = 13
    VMA_MERGE = 14
    VMA_DUP = 15
    VMA_FREE = 16
    EXIT_MMAP = 17
    NUMA_SCAN = 18
    NUMA_MIGRATE = 19
    KSM_MERGE = 20
    COLLAPSE = 21
    MPOL_REBIND = 22
    MMAP_LOCK = 23
    WATCHPOINT = 24
    TASK = 25
    WATCH = 26
    RMAP_WALK = 27
    MMU_GATHER = 28
    DRIVER_PAGE = 29
    SHARED_POLICY = 30
    FOLLOW = 31
    MPROTECT_FIXUP = 40
    MLOCK_FIXUP = 41
    VMA_NEW = 42
    SYS_MBIND = 64
    SYS_SET_MEMPOLICY = 65
    SYS_MIGRATE_PAGES = 66
    SYS_MOVE_PAGES = 67
    SYS_MADVISE = 68
    SYS_MMAP = 69
    SYS_MUNMAP = 70
    SYS_MREMAP = 71
    SYS_MPROTECT = 72
    SYS_MLOCK = 73
    SYS_PRCTL = 74
    SYS_FORK = 75
    SYS_EXEC = 76
    SYS_SET_HOME_NODE = 77
    SYS_BRK = 78
    SNAPSHOT = 96
    MAX = 128


@unique
class Cause(IntEnum):
    """On whose behalf it happened (``enum cdm_cause``)."""

    UNKNOWN = 0
    CALL = 1
    FAULT = 2
    COW = 3
    SWAP_IN = 4
    NUMA_BALANCING = 5
    KHUGEPAGED = 6
    KSM = 7
    RECLAIM = 8
    COMPACTION = 9
    HOTPLUG = 10
    DRIVER = 11
    EXIT = 12
    FILE = 13
    USERFAULTFD = 14
    CPUSET = 15
    READAHEAD = 16


@unique
class Lock(IntEnum):
    """How the mmap lock of the VMA's mm was held (``enum cdm_lock``)."""

    UNKNOWN = 0
    NONE = 1
    READ = 2
    WRITE_SELF = 3
    WRITE_OTHER = 4


@unique
class VmaLock(IntEnum):
    """How the VMA's own lock was held (``enum cdm_vma_lock``)."""

    UNKNOWN = 0
    NONE = 1
    READ = 2
    WRITE = 3
    DETACHED = 4


@unique
class Bit(IntEnum):
    """What else there is to know of an event (``enum cdm_bit``): one bit each.

    No IntFlag: what ``&`` gives is a plain number, and takes a tenth of the time.
    """

    FOREIGN = 1
    KTHREAD = 2
    VMA_UNREAD = 4
    FILE = 8
    NODES_CUT = 16
    EXITING = 32
    UNLINKED = 64
    KSM = 128


@unique
class Mpol(IntEnum):
    """Mode of a memory policy (``enum cdm_mpol``)."""

    DEFAULT = 0
    PREFERRED = 1
    BIND = 2
    INTERLEAVE = 3
    LOCAL = 4
    PREFERRED_MANY = 5
    WEIGHTED_INTERLEAVE = 6
    UNREAD = 15


@unique
class MpolFlag(IntEnum):
    """Flags of a memory policy as an event holds them (``enum cdm_mpol_flag``)."""

    SHARED = 16
    NUMA_BALANCING = 32
    RELATIVE_NODES = 64
    STATIC_NODES = 128


@unique
class Lost(IntEnum):
    """Why an event is missing (``enum cdm_lost``)."""

    RING = 0
    UNPAIRED = 1
    MAP = 2
    READ = 3
    MAX = 4


POLICY_UNREAD: Final = int(Mpol.UNREAD)
"""A policy column's value where no policy was read."""

C_ENUMS: Final[dict[str, tuple[str, type[IntEnum]]]] = {
    "cdm_kind": ("CDM_EV_", EventKind),
    "cdm_probe": ("CDM_PROBE_", Probe),
    "cdm_cause": ("CDM_CAUSE_", Cause),
    "cdm_lock": ("CDM_LOCK_", Lock),
    "cdm_vma_lock": ("CDM_VMA_LOCK_", VmaLock),
    "cdm_bit": ("CDM_BIT_", Bit),
    "cdm_mpol": ("CDM_MPOL_", Mpol),
    "cdm_mpol_flag": ("CDM_MPOL_F_", MpolFlag),
    "cdm_lost": ("CDM_LOST_", Lost),
}
"""C enum -> (prefix of its enumerators, the class here)."""

_VMA_LOCK_SHIFT: Final = 4
_MODE_MASK: Final = 15


def lock_byte(mmap: Lock, vma: VmaLock = VmaLock.UNKNOWN) -> int:
    """Return the byte of lock_entry and lock_exit (``CDM_LOCK()``)."""
    return mmap | vma << _VMA_LOCK_SHIFT


def mmap_lock(lock: int) -> Lock:
    """Return how the mmap lock was held, from lock_entry or lock_exit.

    Raises ValueError for a number that this version does not know.
    """
    return Lock(lock & (1 << _VMA_LOCK_SHIFT) - 1)


def vma_lock(lock: int) -> VmaLock:
    """Return how the VMA's own lock was held, from lock_entry or lock_exit.

    Raises ValueError for a number that this version does not know.
    """
    return VmaLock(lock >> _VMA_LOCK_SHIFT)


def policy_byte(mode: Mpol, flags: int = 0) -> int:
    """Return the byte of policy and other_policy (``CDM_POLICY()``).

    flags are those of mbind(2): bits 13 to 15, others are dropped.
    """
    return mode | (flags >> 8 & 0xE0)


def policy_mode(policy: int) -> Mpol:
    """Return the mode in a policy byte.

    Raises ValueError for a mode that this version does not know.
    """
    return Mpol(policy & _MODE_MASK)


def policy_flags(policy: int) -> int:
    """Return the flags in a policy byte."""
    return policy & ~_MODE_MASK


def comm_bytes(event: Any) -> bytes:
    """Return the task name in a COMM record as it came from the ring.

    event is one element of an Events array. The result ends before the first
    NUL; it is whatever the task chose and need not be UTF-8.
    """
    raw = event["nodes"].tobytes() + event["other"].tobytes()
    return bytes(raw.split(b"\0", 1)[0])
