"""What the bits of vm_flags are called, by kernel release.

A kernel's own headers and type information say it better; this is for where neither is
at hand, and for the two letters that /proc/PID/smaps has for a flag.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

Release = tuple[int, int]

FIRST: Final[Release] = (5, 10)
LAST: Final[Release] = (7, 2)
"""The releases that the table is about, first and last."""

BITS: Final = 64
"""vm_flags has so many."""

_MACHINE: Final = "x86_64"


@dataclass(frozen=True, slots=True)
class Bit:
    """One flag. letters: in VmFlags of /proc/PID/smaps, "" where it has none.

    since: the first release that has it; until: the first that has it no more. arch:
    the bit is for each architecture to use, and this is what x86-64 does.
    """

    number: int
    name: str
    letters: str = ""
    since: Release = FIRST
    until: Release | None = None
    arch: bool = False

    def is_in(self, release: Release) -> bool:
        """Return whether a release has it."""
        return self.since <= release and (self.until is None or release < self.until)


@dataclass(frozen=True, slots=True)
class Field:
    """A number that a flag brings with it, in bits of vm_flags of its own."""

    shift: int
    width: int

    @property
    def mask(self) -> int:
        """Which bits these are."""
        return (1 << self.width) - 1 << self.shift

    def value(self, word: int) -> int:
        """Return the number."""
        return (word & self.mask) >> self.shift


TABLE: Final[tuple[Bit, ...]] = (
    Bit(0, "VM_READ", "rd"),
    Bit(1, "VM_WRITE", "wr"),
    Bit(2, "VM_EXEC", "ex"),
    Bit(3, "VM_SHARED", "sh"),
    Bit(4, "VM_MAYREAD", "mr"),
    Bit(5, "VM_MAYWRITE", "mw"),
    Bit(6, "VM_MAYEXEC", "me"),
    Bit(7, "VM_MAYSHARE", "ms"),
    Bit(8, "VM_GROWSDOWN", "gd"),
    Bit(9, "VM_UFFD_MISSING", "um"),
    Bit(10, "VM_PFNMAP", "pf"),
    Bit(11, "VM_DENYWRITE", "dw", until=(5, 15)),
    # Of 6.19, and of 6.18.37.
    Bit(11, "VM_MAYBE_GUARD", "gu", since=(6, 18)),
    Bit(12, "VM_UFFD_WP", "uw"),
    Bit(13, "VM_LOCKED", "lo"),
    Bit(14, "VM_IO", "io"),
    Bit(15, "VM_SEQ_READ", "sr"),
    Bit(16, "VM_RAND_READ", "rr"),
    Bit(17, "VM_DONTCOPY", "dc"),
    Bit(18, "VM_DONTEXPAND", "de"),
    Bit(19, "VM_LOCKONFAULT", "lf"),
    Bit(20, "VM_ACCOUNT", "ac"),
    Bit(21, "VM_NORESERVE", "nr"),
    Bit(22, "VM_HUGETLB", "ht"),
    Bit(23, "VM_SYNC", "sf"),
    Bit(24, "VM_ARCH_1", "ar"),
    Bit(25, "VM_WIPEONFORK", "wf"),
    Bit(26, "VM_DONTDUMP", "dd"),
    Bit(27, "VM_SOFTDIRTY", "sd"),
    Bit(28, "VM_MIXEDMAP", "mm"),
    Bit(29, "VM_HUGEPAGE", "hg"),
    Bit(30, "VM_NOHUGEPAGE", "nh"),
    Bit(31, "VM_MERGEABLE", "mg"),
    Bit(32, "VM_PKEY_BIT0", arch=True),
    Bit(33, "VM_PKEY_BIT1", arch=True),
    Bit(34, "VM_PKEY_BIT2", arch=True),
    Bit(35, "VM_PKEY_BIT3", arch=True),
    Bit(36, "VM_HIGH_ARCH_4", arch=True),
    Bit(37, "VM_UFFD_MINOR", "ui", since=(5, 13), until=(6, 6)),
    Bit(37, "VM_SHADOW_STACK", "ss", since=(6, 6), arch=True),
    Bit(38, "VM_UFFD_MINOR", "ui", since=(6, 6), until=(6, 15)),
    Bit(38, "VM_HIGH_ARCH_6", since=(6, 15), arch=True),
    Bit(39, "VM_ALLOW_ANY_UNCACHED", since=(6, 9)),
    Bit(40, "VM_DROPPABLE", "dp", since=(6, 11)),
    # Of 6.15, and of 6.14.9.
    Bit(41, "VM_UFFD_MINOR", "ui", since=(6, 14)),
    Bit(42, "VM_SEALED", "sl", since=(6, 17)),
    Bit(63, "VM_SEALED", "sl", since=(6, 10), until=(6, 17)),
)
"""Compared with include/linux/mm.h of 5.10.262, 6.1.192, 6.12.118 and 7.2.13; between
these, with the patches that changed it."""

CHECKNODE: Final = "VM_CHECKNODE"

FIELDS: Final[Mapping[str, Field]] = {CHECKNODE: Field(48, 6)}
"""Flag -> its number. openEuler's target node comes out of the six bits of mmap()'s
flags that otherwise have a huge page's size (set_vm_checknode(), linux/mman.h)."""

_LETTERS: Final = {bit.name: bit.letters for bit in TABLE if bit.letters}


def word(number: int, name: str | None) -> str:
    """Return how a bit is shown: "rd" as in smaps, else "pkey_bit0", else "bit45"."""
    if name is None:
        return f"bit{number}"
    return _LETTERS.get(name) or name.removeprefix("VM_").lower()


def release_of(text: str) -> Release | None:
    """Return (6, 1) of "6.1.0-56-amd64", None if it does not begin like that."""
    match = re.match(r"(\d{1,4})\.(\d{1,4})(?!\d)", text)
    return (int(match[1]), int(match[2])) if match else None


def nearest(release: Release | None) -> Release:
    """Return the release that the table takes another one for."""
    return min(max(release or LAST, FIRST), LAST)


def names(release: Release | None, machine: str) -> dict[int, str]:
    """Return bit -> name; one that two flags share has the later's."""
    return {
        bit.number: bit.name
        for bit in TABLE
        if bit.is_in(nearest(release)) and (machine == _MACHINE or not bit.arch)
    }


def limits(release: Release | None, machine: str) -> str:
    """Return in words which part of the table names() takes, and what it lacks."""
    taken = nearest(release)
    text = f"Linux {taken[0]}.{taken[1]}"
    if release is not None and release != taken:
        text += f", as {release[0]}.{release[1]} is not in it"
    return text if machine == _MACHINE else f"{text}, without those of {machine}"


COMMON: Final[Mapping[int, str]] = {
    bit.number: bit.name
    for bit in TABLE
    if bit.since == FIRST and bit.until is None and not bit.arch
}
"""Bit -> name of the flags that every release of the table has."""
