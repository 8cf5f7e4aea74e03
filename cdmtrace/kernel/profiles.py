"""Kernels that tag by themselves, and how each of them does it.

A profile is what a distribution has made of VM_CDM, as data. Where the kernel's own
headers say it otherwise, they are right.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from cdmtrace.vmbits import CHECKNODE


@dataclass(frozen=True, kw_only=True, slots=True)
class Profile:
    """What is known of a kind of kernel.

    marks: what its release looks like, as a regular expression. option: what its
    configuration has where it tags. bits: bit -> name of its flags, instead of those
    that the release of Linux has which it is made of.
    """

    name: str
    marks: str | None = None
    option: str | None = None
    bits: Mapping[int, str]

    @property
    def vm_cdm(self) -> int | None:
        """VM_CDM's mask, None where such a kernel has not got it."""
        return next((1 << n for n, name in self.bits.items() if name == "VM_CDM"), None)


UPSTREAM: Final = Profile(name="upstream", bits={})

OPENEULER: Final = Profile(
    name="openeuler",
    marks=r"\.oe\d",
    option="CONFIG_COHERENT_DEVICE",
    bits={
        32: "VM_CDM",
        33: CHECKNODE,
        34: "VM_PA32BIT",
        36: "VM_SHARE_POOL",
        61: "VM_USWAP",
    },
)
"""include/linux/mm.h of openEuler's 5.10. The bits are those that Linux leaves to the
architectures; x86-64 has its protection keys there. Its CDM nodes are a boot parameter,
cdm-nodes=MASK, which cdmtrace.kernel.nodes reads whatever the kernel.
"""

PROFILES: Final[Mapping[str, Profile]] = {
    profile.name: profile for profile in (UPSTREAM, OPENEULER)
}


def choose(asked: str | None, release: str, config: Mapping[str, str]) -> Profile:
    """Return the profile that was asked for, else the one of which the kernel is.

    Being built by a distribution does not make a kernel one that tags: its
    configuration must say so, too.
    """
    if asked is not None:
        return PROFILES[asked]
    for profile in PROFILES.values():
        if profile.marks is None or profile.option is None:
            continue
        if re.search(profile.marks, release) and config.get(profile.option) == "y":
            return profile
    return UPSTREAM
