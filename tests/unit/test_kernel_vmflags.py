"""Which bit is VM_CDM, and whose it is otherwise."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import cast

import pytest
from signatures import FakeTypes

from cdmtrace.errors import UsageTrouble
from cdmtrace.kernel.btf import Btf, BtfMissing
from cdmtrace.kernel.mmheader import MM_H
from cdmtrace.kernel.profiles import OPENEULER, UPSTREAM, Profile
from cdmtrace.kernel.vmflags import (
    BitTaken,
    Flags,
    MaskUnknown,
    find_mask,
    of_kernel,
    parse_mask,
)

HEADER = """\
#define VM_READ 0x1
#define VM_GROWSDOWN 0x100
#define VM_STACK VM_GROWSDOWN
#define VM_HIGH_ARCH_0 BIT(32)
#define VM_PKEY_BIT0 VM_HIGH_ARCH_0
#define VM_HIGH_ARCH_4 BIT(36)
#define VM_UFFD_MINOR BIT(37)
#ifdef CONFIG_COHERENT_DEVICE
#define VM_CDM BIT(38)
#endif
"""
CONFIG = {"CONFIG_COHERENT_DEVICE": "y"}

ENUM = {
    "VMA_READ_BIT": 0,
    "VMA_HIGH_ARCH_0_BIT": 32,
    "VMA_HIGH_ARCH_4_BIT": 36,
    "VMA_HIGH_ARCH_5_BIT": 37,
    "VMA_PKEY_BIT0_BIT": 32,
    # What other architectures make of these bits.
    "VMA_MTE_BIT": 36,
    "VMA_SHADOW_STACK_BIT": 37,
    "VMA_MTE_ALLOWED_BIT": 37,
    "VMA_NUMBER_BIT": 64,
}


def no_types() -> Btf:
    raise BtfMissing("there is none")


def flags_of(
    root: Path,
    *,
    header: str = "",
    types: Mapping[str, int] | None = None,
    config: Mapping[str, str] = CONFIG,
    release: str = "6.1.0-56-amd64",
    machine: str = "x86_64",
    profile: Profile = UPSTREAM,
) -> Flags:
    """Return the flags of a kernel that has this header and this enum in its BTF."""
    if header:
        (root / MM_H).parent.mkdir(parents=True)
        (root / MM_H).write_text(header)

    def load() -> Btf:
        return no_types() if types is None else cast(Btf, FakeTypes(enums=[types]))

    return of_kernel(
        (root,), config, load, release=release, machine=machine, profile=profile
    )


@pytest.mark.parametrize(
    ("text", "mask"),
    [("0x4000000000", 1 << 38), ("bit:38", 1 << 38), ("4096", 4096), ("bit:0", 1)],
)
def test_a_mask_as_it_is_given(text: str, mask: int) -> None:
    assert parse_mask(text) == mask


@pytest.mark.parametrize(
    "text",
    ["", "0", "-4", "3", "0x4000000001", "bit:64", "bit:-1", "bit:", "x", str(1 << 64)],
)
def test_what_is_no_mask(text: str) -> None:
    with pytest.raises(UsageTrouble, match="not a mask of one bit") as caught:
        parse_mask(text)
    assert caught.value.exit_status == 2
    assert "bit:38" in (caught.value.hint or "")


# --- where it is known from ----------------------------------------------------


def test_the_headers_say_it(tmp_path: Path) -> None:
    flags = flags_of(tmp_path, header=HEADER, types=ENUM)
    assert flags.source == f"{MM_H} of the running kernel"
    assert flags.sure
    # The name that says most of those that a bit has.
    assert flags.names == {
        0: "VM_READ",
        8: "VM_GROWSDOWN",
        32: "VM_PKEY_BIT0",
        36: "VM_HIGH_ARCH_4",
        37: "VM_UFFD_MINOR",
        38: "VM_CDM",
    }
    assert find_mask(None, flags) == (1 << 38, flags.source, None)


def test_what_this_kernel_was_not_built_with_is_not_there(tmp_path: Path) -> None:
    flags = flags_of(tmp_path, header=HEADER, config={"CONFIG_X86": "y"})
    assert flags.owner(1 << 38) is None
    with pytest.raises(MaskUnknown, match=r"mm\.h of the running kernel does not def"):
        find_mask(None, flags)


def test_type_information_comes_next(tmp_path: Path) -> None:
    flags = flags_of(tmp_path, types=ENUM, release="7.2.13+deb14-amd64")
    assert flags.source == "the type information of the running kernel"
    assert flags.sure
    assert flags.names == {
        0: "VM_READ",
        32: "VM_PKEY_BIT0",
        36: "VM_HIGH_ARCH_4",
        37: "VM_SHADOW_STACK",
    }
    assert flags.owner(1 << 36) == "VM_HIGH_ARCH_4"
    assert flags.owner(1 << 43) is None
    cdm = flags_of(tmp_path, types={**ENUM, "VMA_CDM_BIT": 43})
    assert find_mask(None, cdm) == (1 << 43, cdm.source, None)


@pytest.mark.parametrize("types", [None, {}])
def test_a_table_comes_last(tmp_path: Path, types: Mapping[str, int] | None) -> None:
    flags = flags_of(tmp_path, types=types)
    assert flags.source == "cdmtrace's table, Linux 6.1"
    assert flags.sure
    assert len(flags.names) == 37
    assert flags.owner(1 << 37) == "VM_UFFD_MINOR"
    assert flags.owner(1 << 38) is None
    assert find_mask("bit:38", flags) == (1 << 38, "--vm-cdm-mask", None)
    with pytest.raises(MaskUnknown, match=r"table, Linux 6\.1 does not define it"):
        find_mask(None, flags)


def test_a_release_that_is_not_in_the_table(tmp_path: Path) -> None:
    flags = flags_of(tmp_path, release="7.9.0")
    assert flags.source == "cdmtrace's table, Linux 7.2, as 7.9 is not in it"
    assert not flags.sure


def test_a_header_without_a_flag_says_nothing(tmp_path: Path) -> None:
    assert "table" in flags_of(tmp_path, header="#define VM_FAULT(x) x\n").source


# --- whose bit it is -----------------------------------------------------------


def test_what_was_given_comes_first(tmp_path: Path) -> None:
    flags = flags_of(tmp_path, header=HEADER)
    assert find_mask("bit:40", flags) == (1 << 40, "--vm-cdm-mask", None)
    # Whatever the kernel makes of it, this bit is the one that it calls VM_CDM.
    assert find_mask("bit:38", flags)[2] is None


def test_nobody_says_it(tmp_path: Path) -> None:
    with pytest.raises(MaskUnknown, match="which bit is VM_CDM is not") as caught:
        find_mask(None, flags_of(tmp_path))
    assert "--vm-cdm-mask bit:38" in (caught.value.hint or "")
    assert "--cdm-nodes" in (caught.value.hint or "")
    assert caught.value.exit_status == 125


def test_where_nobody_says_it_there_may_be_none(tmp_path: Path) -> None:
    """Only where nobody does: a bit that is given, or taken, is what it was."""
    flags = flags_of(tmp_path)
    source = f"none: shadow mode; {flags.source} does not define it"
    assert find_mask(None, flags, shadow=True) == (0, source, None)
    assert find_mask("bit:38", flags, shadow=True)[:2] == (1 << 38, "--vm-cdm-mask")
    with pytest.raises(BitTaken):
        find_mask("bit:32", flags, shadow=True)
    openeuler = flags_of(tmp_path, release="5.10.0-60.oe2203", profile=OPENEULER)
    assert find_mask(None, openeuler, OPENEULER, shadow=True)[0] == 1 << 32
    known = flags_of(tmp_path, header=HEADER)
    assert find_mask(None, known, shadow=True) == find_mask(None, known)


@pytest.mark.parametrize("header", [HEADER, ""])
def test_a_bit_with_another_meaning(tmp_path: Path, header: str) -> None:
    """Bit 32 is a protection key's on x86-64, with headers and without."""
    flags = flags_of(tmp_path, header=header)
    taken = f"CDM020: 0x100000000 is VM_PKEY_BIT0 .*from {flags.source}"
    with pytest.raises(BitTaken, match=taken) as caught:
        find_mask("bit:32", flags)
    assert "--force" in (caught.value.hint or "")
    assert caught.value.exit_status == 125
    assert find_mask("bit:32", flags, force=True)[2] == "VM_PKEY_BIT0"


def test_a_kernel_that_gives_its_own_vm_cdm_a_taken_bit(tmp_path: Path) -> None:
    text = HEADER.replace("BIT(38)", "BIT(37)")
    with pytest.raises(BitTaken, match="VM_UFFD_MINOR"):
        find_mask(None, flags_of(tmp_path, header=text))


# --- openEuler -----------------------------------------------------------------


def test_openeuler_without_its_headers(tmp_path: Path) -> None:
    flags = flags_of(tmp_path, release="5.10.0-60.oe2203", profile=OPENEULER)
    assert flags.source == "cdmtrace's table, Linux 5.10, and the profile openeuler"
    assert (flags.names[11], flags.names[32]) == ("VM_DENYWRITE", "VM_CDM")
    assert find_mask(None, flags, OPENEULER) == (1 << 32, flags.source, None)
    # The node that goes with VM_CHECKNODE has bits 48 to 53.
    for bit, owner in ((33, "VM_CHECKNODE"), (48, "VM_CHECKNODE"), (54, None)):
        assert flags.owner(1 << bit) == owner, bit
    assert flags.owner(1 << 53) == "VM_CHECKNODE"
    assert flags.owner(1 << 47) is None


def test_the_profile_stands_in_for_headers_that_are_silent(tmp_path: Path) -> None:
    header = HEADER.replace("VM_PKEY_BIT0 VM_HIGH_ARCH_0", "VM_PKEY_BIT0 0")
    flags = flags_of(tmp_path, header=header, config={"CONFIG_ARM64": "y"})
    assert find_mask("bit:41", flags, OPENEULER)[0] == 1 << 41
    with pytest.raises(BitTaken, match="VM_HIGH_ARCH_0"):
        find_mask(None, flags, OPENEULER)
    free = Flags(masks={"VM_READ": 1}, names={0: "VM_READ"}, source="mm.h")
    assert find_mask(None, free, OPENEULER) == (1 << 32, "the profile openeuler", None)


def test_headers_are_right_where_the_profile_is_wrong(tmp_path: Path) -> None:
    """On a kernel of x86-64 that is none of openEuler's, whatever was asked."""
    flags = flags_of(
        tmp_path, header=HEADER, config={"CONFIG_X86": "y"}, profile=OPENEULER
    )
    with pytest.raises(BitTaken, match=r"0x100000000 is VM_PKEY_BIT0 .*mm\.h"):
        find_mask(None, flags, OPENEULER)


def test_headers_come_before_the_profile(tmp_path: Path) -> None:
    flags = flags_of(tmp_path, header=HEADER, profile=OPENEULER)
    assert find_mask(None, flags, OPENEULER)[0] == 1 << 38


def test_one_of_openeuler_s_own_headers(tmp_path: Path) -> None:
    """As on arm64, where no key has these bits."""
    header = "#define VM_CDM 0x100000000\n#define VM_CHECKNODE\t0x200000000\n"
    flags = flags_of(tmp_path, header=header, profile=OPENEULER)
    assert find_mask(None, flags, OPENEULER) == (1 << 32, flags.source, None)
    assert flags.names == {32: "VM_CDM", 33: "VM_CHECKNODE"}
    assert flags.owner(1 << 50) == "VM_CHECKNODE"
    # Its VM_CDM and the keys of x86-64 in one kernel would be a fault of that kernel.
    header += "#define VM_HIGH_ARCH_0 BIT(32)\n#define VM_PKEY_BIT0 BIT(32)\n"
    both = flags_of(tmp_path / "both", header=header, profile=OPENEULER)
    with pytest.raises(BitTaken, match="is VM_PKEY_BIT0"):
        find_mask(None, both, OPENEULER)
