"""Flags, from text as include/linux/mm.h of several kernels has it."""

from __future__ import annotations

from pathlib import Path

import pytest

from cdmtrace.kernel.mmheader import MM_H, definitions, evaluate, read

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
#define VM_SEALED	_BITUL(63)
#define VM_FROM_CONFIG\tBIT(CONFIG_A_BIT)
"""


# As from 6.19 on: the numbers are in an enum, and an alias names another of them.
ENUM = """\
#define DECLARE_VMA_BIT(name, bitnum) \\
\tVMA_ ## name ## _BIT = ((__force vma_flag_t)bitnum)
enum {
\tDECLARE_VMA_BIT(READ, 0),
\tDECLARE_VMA_BIT(UFFD_MISSING, 9),/* missing pages tracking */
\tDECLARE_VMA_BIT(HIGH_ARCH_0, 32),
\tDECLARE_VMA_BIT(HIGH_ARCH_4, 36),
\tDECLARE_VMA_BIT_ALIAS(PKEY_BIT0, HIGH_ARCH_0),
\tDECLARE_VMA_BIT_ALIAS(MTE, HIGH_ARCH_4),\t/* arm64 */
};
#define INIT_VM_FLAG(name) BIT((__force int) VMA_ ## name ## _BIT)
#define VM_READ\t\tINIT_VM_FLAG(READ)
#define VM_UFFD_MISSING\tINIT_VM_FLAG(UFFD_MISSING)
#define VM_PKEY_BIT0\tINIT_VM_FLAG(PKEY_BIT0)
#define VM_LOST\t\tINIT_VM_FLAG(LOST)
#define VMA_READ\tmk_vma_flags(VMA_READ_BIT)
#ifdef CONFIG_ARM64_MTE
#define VM_MTE\t\tINIT_VM_FLAG(MTE)
#endif
"""

OPTIONS = {
    "CONFIG_A_BIT": "41",
    "CONFIG_MEM_SOFT_DIRTY": "y",
    "CONFIG_HAVE_ARCH_USERFAULTFD_MINOR": "y",
}


def test_every_flag_of_one_bit_is_found() -> None:
    flags = definitions(HEADER, OPTIONS)
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
        "VM_SEALED": 1 << 63,
        "VM_FROM_CONFIG": 1 << 41,
    }


def test_what_is_not_built_is_no_flag() -> None:
    flags = definitions(HEADER, {"CONFIG_A_BIT": "41"})
    assert not flags.keys() & {"VM_SOFTDIRTY", "VM_UFFD_MINOR"}
    assert flags["VM_CDM"] == 1 << 38


def test_without_a_configuration_every_line_counts() -> None:
    assert definitions(HEADER, {}).keys() >= {"VM_SOFTDIRTY", "VM_UFFD_MINOR"}


def test_a_number_of_another_header_is_the_option_of_that_name() -> None:
    header = "#define VM_CDM BIT(CDM_VMA_BIT)\n"
    assert definitions(header, {"CONFIG_CDM_VMA_BIT": "45"}) == {"VM_CDM": 1 << 45}
    assert definitions(header, {"CONFIG_CDM_VMA_BIT": "y"}) == {}
    assert definitions(header, {"CONFIG_VMA_BIT": "45"}) == {}
    here = "#define VM_A_BIT 4\n#define VM_A BIT(VM_A_BIT)\n"
    assert definitions(here, {"CONFIG_VM_A_BIT": "45"}) == {"VM_A": 1 << 4}


def test_numbers_in_an_enum() -> None:
    assert definitions(ENUM, {"CONFIG_X86": "y"}) == {
        "VM_READ": 1,
        "VM_UFFD_MISSING": 1 << 9,
        "VM_PKEY_BIT0": 1 << 32,
        # Reserved, and without a definition of their own. MTE is of another kernel.
        "VM_HIGH_ARCH_0": 1 << 32,
        "VM_HIGH_ARCH_4": 1 << 36,
    }


@pytest.mark.parametrize(
    ("condition", "holds"),
    [
        ("#ifdef CONFIG_A", True),
        ("#ifdef CONFIG_NONE", False),
        # As a module, it is CONFIG_MODULAR_MODULE that is defined.
        ("#ifdef CONFIG_MODULAR", False),
        ("#ifndef CONFIG_A", False),
        ("#ifndef CONFIG_NONE /* why */", True),
        ("#if defined(CONFIG_A)", True),
        ("# if !defined CONFIG_A", False),
        ("#if defined(CONFIG_NONE) || defined(CONFIG_A)", True),
        ("#if defined(CONFIG_NONE) || \\\n\tdefined(CONFIG_A)", True),
        ("#if defined(CONFIG_NONE) || defined(CONFIG_GONE)", False),
        ("#if defined(CONFIG_A) && defined(CONFIG_NONE)", False),
        ("#if defined(CONFIG_A) && !defined(CONFIG_NONE)", True),
        ("#if CONFIG_BITS > 3", True),
        ("#if CONFIG_BITS > 4", False),
        ("#if CONFIG_BITS >= 4", True),
        ("#if CONFIG_BITS < 4", False),
        ("#if CONFIG_BITS <= 4", True),
        ("#if CONFIG_BITS == 4", True),
        ("#if CONFIG_BITS != 4", False),
    ],
)
def test_conditions(condition: str, holds: bool) -> None:
    config = {"CONFIG_A": "y", "CONFIG_MODULAR": "m", "CONFIG_BITS": "4"}
    text = f"{condition}\n#define VM_IF 1\n#else\n#define VM_ELSE 2\n#endif\n"
    assert definitions(text, config).keys() == {"VM_IF" if holds else "VM_ELSE"}


@pytest.mark.parametrize(
    "condition",
    [
        "#ifndef VM_X",
        "#ifdef __KERNEL__",
        "#if VM_X",
        "#if CONFIG_NONE > 3",
        "#if f(CONFIG_A)",
        "#if defined(CONFIG_NONE) || defined(VM_X)",
        "#if defined(CONFIG_A) && VM_X",
    ],
)
def test_what_cannot_be_told_hides_nothing(condition: str) -> None:
    text = f"{condition}\n#define VM_IF 1\n#else\n#define VM_ELSE 2\n#endif\n"
    found = definitions(text, {"CONFIG_A": "y"})
    assert found == {"VM_IF": 1, "VM_ELSE": 2}


@pytest.mark.parametrize(
    ("config", "name"),
    [
        ({"CONFIG_A": "y"}, "VM_A"),
        ({"CONFIG_B": "y"}, "VM_B"),
        ({"CONFIG_A": "y", "CONFIG_B": "y"}, "VM_A"),
        ({"CONFIG_C": "y"}, "VM_ELSE"),
    ],
)
def test_one_of_several(config: dict[str, str], name: str) -> None:
    text = (
        "#if defined(CONFIG_A)\n#define VM_A 1\n"
        "#elif defined(CONFIG_B)\n"
        "#ifdef CONFIG_B\n#define VM_B 2\n#else\n#define VM_NOT_B 2\n#endif\n"
        "#else\n#define VM_ELSE 4\n#endif\n#define VM_AFTER 8\n"
    )
    assert definitions(text, config).keys() == {name, "VM_AFTER"}


def test_ends_without_a_beginning_do_no_harm() -> None:
    text = "#endif\n#else\n#define VM_READ 1\n"
    assert definitions(text, {"CONFIG_A": "y"}) == {"VM_READ": 1}


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
        ("_BITUL(63)", 1 << 63),
        ("_BITULL(A)", 2),
        ("A | 2", 3),
        ("A - 1", 0),
    ],
)
def test_expressions(expression: str, value: int) -> None:
    assert evaluate(expression, {"A": "1"}, {}) == value


@pytest.mark.parametrize(
    "expression",
    [
        "",
        "B",
        "BIT(64)",
        "BIT(",
        "INIT_VM_FLAG(A)",
        "1 <<",
        "1 << 64",
        "~1",
        "(1",
        "1)",
        "f(1)",
        "A B",
    ],
)
def test_what_cannot_be_told_is_not_guessed(expression: str) -> None:
    assert evaluate(expression, {"A": "1"}, {}) is None


def test_the_first_directory_that_has_the_header(tmp_path: Path) -> None:
    arch, common = tmp_path / "arch", tmp_path / "common"
    arch.mkdir()
    (common / MM_H).parent.mkdir(parents=True)
    (common / MM_H).write_text(HEADER)
    assert read((arch, common), {})["VM_CDM"] == 1 << 38
    assert read((arch,), {}) == {}
