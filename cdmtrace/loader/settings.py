"""What the BPF program is told before it is loaded, by name.

bcc gets these as macros. A program that is compiled once has a place for each in its
read-only data (bpf/libbpf.h), in the order of SETTINGS.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import numpy as np

from cdmtrace.errors import RecordError
from cdmtrace.filters import Filters
from cdmtrace.kernel import layout
from cdmtrace.kernel.watchpoints import REGISTERS
from cdmtrace.planning import macros

OWN: Final = (
    *("CDM_NODES", "CDM_MASK", "MEMORY_NODES", "KEY0", "KEY1"),
    *("ALL", "RECORDER", "VIEWER", "WATCHED_TGID", "RING_PAGES"),
)
"""Those that neither the kernel's layout nor a filter nor an argument is: see
bpf/cdmtrace.bpf.c."""

SETTINGS: Final = tuple(
    sorted({*OWN, *layout.NAMES, *macros(()), *Filters().numbers()})
)
"""All of them, in the order in which a compiled program has them."""

SIZES: Final[Mapping[str, int]] = {"MAP_SIZE": 0x10000001, "LOST_PLACES": 0x10000002}
"""Entries of a map, and what a program has that is compiled once: see bpf/libbpf.h."""

ROOM: Final[Mapping[str, int]] = {"VMA_HEAD_WORDS": 12, "SEM_HEAD_WORDS": 4}
"""Words that such a program reads at once, whatever the kernel: see bpf/libbpf.h."""


class NoRoom(RecordError):
    """The compiled program cannot read what this kernel has (exit status 125)."""


def header() -> str:
    """Return settings.h: where each setting is, for bpf/libbpf.h."""
    lines = [f"#define {name} settings[{at}]" for at, name in enumerate(SETTINGS)]
    constants = {**ROOM, **SIZES, "WATCHES": REGISTERS, "SETTINGS": len(SETTINGS)}
    lines += [f"#define {name} {value}" for name, value in constants.items()]
    return "\n".join(lines) + "\n"


def values(numbers: Mapping[str, int]) -> bytes:
    """Return the read-only data for these numbers: macro -> value.

    WATCHED_TGID is 0 where it is not among them. Raises ValueError for a name that the
    program has no place for, KeyError for one that is missing, and NoRoom.
    """
    rest = {*numbers} - {*SETTINGS, *SIZES, *ROOM}
    if rest:
        raise ValueError(f"no setting of the program: {', '.join(sorted(rest))}")
    if tight := [name for name, room in ROOM.items() if numbers[name] > room]:
        raise NoRoom(
            f"this kernel's {tight[0]} is {numbers[tight[0]]}, and the compiled probes "
            f"have room for {ROOM[tight[0]]}",
            hint="--loader bcc",
        )
    found = [{"WATCHED_TGID": 0, **numbers}[name] for name in SETTINGS]
    return np.array(found, np.uint64).tobytes()
