"""VM_CDM's bit, from text as include/linux/mm.h has it."""

from __future__ import annotations

from pathlib import Path

import pytest

from cdmtrace.errors import UsageTrouble
from cdmtrace.kernel.vmflags import (
    MM_H,
    BitTaken,
    MaskUnknown,
    definitions,
    evaluate,
    find_mask,
    parse_mask,
    read,
)

# In the manner of several kernels: what differs between them is all here.
HEADER = """\
#define VM_NONE\t\t0x00000000

#define VM_READ\t\t0x00000001\t/* currently active flags */
#define VM_HUGETLB\t0x00400000\t/* Huge TLB Page VM */
#define VM_MERGEABLE\tBIT(31)\t\t/* KSM may merge identical pages */
#ifdef CONFIG_MEM_SOFT_DIRTY
# define VM_SOFTDIRTY\t0x08000000
#else
# define VM_SOFTDIRTY\t0
#endif
#define VM_HIGH_ARCH_BIT_0\t32
#define VM_HIGH_ARCH_BIT_4\t(VM_HIGH_ARCH_BIT_0 + 4)
#define VM_HIGH_ARCH_0\tBIT(VM_HIGH_ARCH_BIT_0)
#define VM_HIGH_ARCH_4\tBIT(VM_HIGH_ARCH_BIT_4)
# define VM_PKEY_SHIFT\tVM_HIGH_ARCH_BIT_0
# define VM_PKEY_BIT0\tVM_HIGH_ARCH_0
#ifdef CONFIG_HAVE_ARCH_USERFAULTFD_MINOR
# define VM_UFFD_MINOR_BIT\t37
# define VM_UFFD_MINOR\t\tBIT(VM_UFFD_MINOR_BIT)
#else
# define VM_UFFD_MINOR\t\tVM_NONE
#endif
#define VM_CDM\t\tBIT_ULL(38)\t/* coherent device memory */
#define VM_ACCESS_FLAGS (VM_READ | VM_HUGETLB)
#define VM_STACK_FLAGS\t(VM_STACK | VM_STACK_DEFAULT_FLAGS)
#define VM_LOOP\t\tVM_LOOP
#define VM_CALL(x)\tBIT(x)
#define VM_FROM_CONFIG\tBIT(CONFIG_A_BIT)
"""


def test_every_flag_of_one_bit_is_found() -> None:
    flags = definitions(HEADER, {"CONFIG_A_BIT": "41"})
    assert flags == {
        "VM_READ": 1,
        "VM_HUGETLB": 1 << 22,
        "VM_MERGEABLE": 1 << 31,
        "VM_SOFTDIRTY": 1 << 27,
        "VM_HIGH_ARCH_0": 1 << 32,
        "VM_HIGH_ARCH_4": 1 << 36,
        "VM_PKEY_BIT0": 1 << 32,
        "VM_UFFD_MINOR": 1 << 37,
        "VM_CDM": 1 << 38,
        "VM_FROM_CONFIG": 1 << 41,
    }


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("0x10UL", 16),
        ("010", 8),
        ("0", 0),
        ("12ULL", 12),
        ("(1UL << 38)", 1 << 38),
        ("1 << (30 + 8)", 1 << 38),
        ("BIT(63)", 1 << 63),
        ("A | 2", 3),
        ("A - 1", 0),
    ],
)
def test_expressions(expression: str, value: int) -> None:
    assert evaluate(expression, {"A": "1"}, {}) == value


@pytest.mark.parametrize(
    "expression",
    ["", "B", "BIT(64)", "BIT(", "1 <<", "1 << 64", "~1", "(1", "1)", "f(1)", "A B"],
)
def test_what_cannot_be_told_is_not_guessed(expression: str) -> None:
    assert evaluate(expression, {"A": "1"}, {}) is None


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


def test_the_headers_say_it() -> None:
    flags = definitions(HEADER, {})
    mask, source, taken = find_mask(None, flags)
    assert (mask, taken) == (1 << 38, None)
    assert source == f"{MM_H} of the running kernel"


def test_what_was_given_comes_first() -> None:
    found = find_mask("bit:40", definitions(HEADER, {}))
    assert found == (1 << 40, "--vm-cdm-mask", None)


def test_nobody_says_it() -> None:
    with pytest.raises(MaskUnknown, match="do not define VM_CDM") as caught:
        find_mask(None, {"VM_READ": 1})
    assert "--vm-cdm-mask bit:38" in (caught.value.hint or "")
    assert caught.value.exit_status == 125


def test_a_bit_with_another_meaning() -> None:
    flags = definitions(HEADER, {})
    with pytest.raises(BitTaken, match="CDM020: 0x80000000 is VM_MERGEABLE") as caught:
        find_mask("bit:31", flags)
    assert "--force" in (caught.value.hint or "")
    assert caught.value.exit_status == 125
    assert find_mask("bit:31", flags, force=True)[2] == "VM_MERGEABLE"


def test_a_kernel_that_gives_its_own_vm_cdm_a_taken_bit() -> None:
    text = HEADER.replace("BIT_ULL(38)", "BIT_ULL(37)")
    with pytest.raises(BitTaken, match="VM_UFFD_MINOR"):
        find_mask(None, definitions(text, {}))


def test_the_first_directory_that_has_the_header(tmp_path: Path) -> None:
    arch, common = tmp_path / "arch", tmp_path / "common"
    arch.mkdir()
    (common / MM_H).parent.mkdir(parents=True)
    (common / MM_H).write_text(HEADER)
    assert read((arch, common), {})["VM_CDM"] == 1 << 38
    assert read((arch,), {}) == {}
