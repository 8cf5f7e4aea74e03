"""Which bit of vm_flags is VM_CDM on this kernel, and whose the other bits are.

The kernel's headers say it, else its type information, from 6.19 on; where there is
neither, a table of releases does.
"""

from __future__ import annotations

import platform
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cdmtrace import vmbits
from cdmtrace.errors import RecordError, UsageTrouble
from cdmtrace.kernel import headers, mmheader
from cdmtrace.kernel.btf import Btf, BtfMissing
from cdmtrace.kernel.profiles import UPSTREAM, Profile

SHADOW: Final = "none: shadow mode"
"""How a header's account of VM_CDM begins where the kernel has no such flag."""

_GENERIC: Final = re.compile(r"VM_(HIGH_)?ARCH_\d$")
"""Names of bits that each architecture gives a meaning of its own."""


class MaskUnknown(RecordError):
    """It is not known which bit is VM_CDM (exit status 125)."""


class BitTaken(RecordError):
    """The bit has another meaning on this kernel: CDM020 (exit status 125)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Flags:
    """The flags of one kernel: name -> mask, in the order of their definition.

    Several names may have one bit; names: bit -> the one that says most. source: where
    this is known from. sure: the kernel itself says so, or the table has its release.
    """

    masks: Mapping[str, int]
    names: Mapping[int, str]
    source: str
    sure: bool = True

    def owner(self, mask: int) -> str | None:
        """Return which flag, VM_CDM aside, has a bit; None where it is free."""
        others = [n for n, m in self.masks.items() if m == mask and n != "VM_CDM"]
        if others:
            return _telling(others, self.names.get(mask.bit_length() - 1))
        for name, field in vmbits.FIELDS.items():
            if name in self.masks and mask & field.mask:
                return name
        return None


def parse_mask(text: str) -> int:
    """Return the mask that was given: one bit, or ``bit:38``. Raises UsageTrouble."""
    try:
        mask = 1 << int(text[4:], 0) if text.startswith("bit:") else int(text, 0)
    except ValueError:
        mask = 0
    if mask <= 0 or mask & (mask - 1) or mask >= 1 << vmbits.BITS:
        raise UsageTrouble(
            f"--vm-cdm-mask {text}: not a mask of one bit among {vmbits.BITS}",
            hint="write it as 0x4000000000 or bit:38",
        )
    return mask


def of_kernel(
    roots: tuple[Path, ...],
    config: Mapping[str, str],
    types: Callable[[], Btf],
    *,
    release: str,
    machine: str,
    profile: Profile = UPSTREAM,
) -> Flags:
    """Return the flags of a kernel, from the best that there is of it.

    roots: where its headers may be. types: how to get at its type information, which
    may raise BtfMissing. release, machine: as uname has them. profile: is asked where
    the kernel itself says nothing.
    """
    version = vmbits.release_of(release)
    table = {**vmbits.names(version, machine), **profile.bits}
    if masks := mmheader.read(roots, config):
        source = f"{mmheader.MM_H} of the running kernel"
    elif masks := _of_types(types):
        source = "the type information of the running kernel"
    else:
        source = f"cdmtrace's table, {vmbits.limits(version, machine)}"
        if profile.bits:
            source += f", and the profile {profile.name}"
        return Flags(
            masks={name: 1 << number for number, name in table.items()},
            names=table,
            source=source,
            sure=version == vmbits.nearest(version),
        )
    found: dict[int, list[str]] = {}
    for name, mask in masks.items():
        found.setdefault(mask.bit_length() - 1, []).append(name)
    names = {bit: _telling(found[bit], table.get(bit)) for bit in sorted(found)}
    return Flags(masks=masks, names=names, source=source)


def running(
    directory: Path | None,
    config: Mapping[str, str],
    types: Callable[[], Btf],
    profile: Profile,
) -> Flags:
    """Return the flags of the kernel we run on. directory: its headers, None: none."""
    return of_kernel(
        () if directory is None else headers.roots(directory),
        config,
        types,
        release=platform.release(),
        machine=platform.machine(),
        profile=profile,
    )


def _of_types(types: Callable[[], Btf]) -> dict[str, int]:
    """Return the flags of the enum that has their numbers since 6.19."""
    try:
        numbers = types().constants("VMA_READ_BIT")
    except BtfMissing:
        return {}
    return {
        f"VM_{name.removeprefix('VMA_').removesuffix('_BIT')}": 1 << number
        for name, number in numbers.items()
        if 0 <= number < vmbits.BITS
    }


def _telling(names: list[str], known: str | None) -> str:
    """Return that of a bit's names which says most.

    known: what it is called elsewhere. That comes before all others, as the enum of a
    kernel for x86-64 has the flags of other architectures in it.
    """
    return min(names, key=lambda name: (name != known, bool(_GENERIC.match(name))))


def find_mask(
    given: str | None,
    flags: Flags,
    profile: Profile = UPSTREAM,
    *,
    force: bool = False,
    shadow: bool = False,
) -> tuple[int, str, str | None]:
    """Return VM_CDM's mask, where it is from, and whose bit it is otherwise.

    What was given comes first, then what the kernel says, then the profile. Where
    nobody says it the mask is 0 if the recording may be made without one (shadow).
    Raises MaskUnknown if it may not, BitTaken if another flag has the same bit (unless
    forced; rule CDM020).
    """
    if given is not None:
        mask, source = parse_mask(given), "--vm-cdm-mask"
    elif "VM_CDM" in flags.masks:
        mask, source = flags.masks["VM_CDM"], flags.source
    elif profile.vm_cdm is not None:
        mask, source = profile.vm_cdm, f"the profile {profile.name}"
    elif shadow:
        return 0, f"{SHADOW}; {flags.source} does not define it", None
    else:
        raise MaskUnknown(
            f"which bit is VM_CDM is not known: {flags.source} does not define it",
            hint="name its bit with --vm-cdm-mask, such as --vm-cdm-mask bit:38; on a "
            "kernel that has none, name the nodes with --cdm-nodes: then it is "
            "recorded in shadow mode",
        )
    owner = flags.owner(mask)
    if owner and not force:
        raise BitTaken(
            f"CDM020: {mask:#x} is {owner} on this kernel, not VM_CDM "
            f"(from {flags.source})",
            hint="give another bit with --vm-cdm-mask, or record all the same "
            "with --force",
        )
    return mask, source, owner
