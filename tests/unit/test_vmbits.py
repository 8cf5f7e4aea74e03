"""The table of vm_flags: what each release of Linux has."""

from __future__ import annotations

import itertools

import pytest

from cdmtrace import vmbits

LOW = set(range(32)) - {11}
X86 = {32: "VM_PKEY_BIT0", 35: "VM_PKEY_BIT3", 36: "VM_HIGH_ARCH_4"}

KERNELS = {
    "5.10.0-46-amd64": {11: "VM_DENYWRITE", 37: None},
    "6.1.0-56-amd64": {11: None, 37: "VM_UFFD_MINOR", 38: None},
    "6.12.118+deb13-amd64": {
        11: None,
        37: "VM_SHADOW_STACK",
        38: "VM_UFFD_MINOR",
        39: "VM_ALLOW_ANY_UNCACHED",
        40: "VM_DROPPABLE",
        42: None,
        63: "VM_SEALED",
    },
    "7.2.13+deb14-amd64": {
        11: "VM_MAYBE_GUARD",
        37: "VM_SHADOW_STACK",
        38: "VM_HIGH_ARCH_6",
        39: "VM_ALLOW_ANY_UNCACHED",
        40: "VM_DROPPABLE",
        41: "VM_UFFD_MINOR",
        42: "VM_SEALED",
        43: None,
        63: None,
    },
}
"""Release -> what include/linux/mm.h of Debian's build of it has where they differ."""

COUNT = {"5.10": 37, "6.1.": 37, "6.12": 41, "7.2.": 43}
"""How many bits such a header gives a name, by the beginning of the release."""


def named(release: str, machine: str = "x86_64") -> dict[int, str]:
    return vmbits.names(vmbits.release_of(release), machine)


@pytest.mark.parametrize("release", KERNELS)
def test_the_kernels_whose_headers_were_read(release: str) -> None:
    names = named(release)
    assert names.keys() >= LOW
    assert len(names) == COUNT[release[:4]]
    for bit, name in {**X86, **KERNELS[release]}.items():
        assert names.get(bit) == name, bit
    assert names[31] == "VM_MERGEABLE"


@pytest.mark.parametrize(
    ("before", "after", "changes"),
    [
        ("5.12", "5.13", {37: (None, "VM_UFFD_MINOR")}),
        ("5.14", "5.15", {11: ("VM_DENYWRITE", None)}),
        (
            *("6.5", "6.6"),
            {37: ("VM_UFFD_MINOR", "VM_SHADOW_STACK"), 38: (None, "VM_UFFD_MINOR")},
        ),
        ("6.8", "6.9", {39: (None, "VM_ALLOW_ANY_UNCACHED")}),
        ("6.9", "6.10", {63: (None, "VM_SEALED")}),
        ("6.10", "6.11", {40: (None, "VM_DROPPABLE")}),
        ("6.13", "6.14", {41: (None, "VM_UFFD_MINOR")}),
        ("6.14", "6.15", {38: ("VM_UFFD_MINOR", "VM_HIGH_ARCH_6")}),
        ("6.16", "6.17", {42: (None, "VM_SEALED"), 63: ("VM_SEALED", None)}),
        ("6.17", "6.18", {11: (None, "VM_MAYBE_GUARD")}),
    ],
)
def test_what_a_release_changes(
    before: str, after: str, changes: dict[int, tuple[str | None, str | None]]
) -> None:
    old, new = named(before), named(after)
    bits = old.keys() | new.keys()
    assert changes == {
        bit: (old.get(bit), new.get(bit))
        for bit in bits
        if old.get(bit) != new.get(bit)
    }


def test_no_two_flags_have_a_bit_in_one_release() -> None:
    for one, other in itertools.combinations(vmbits.TABLE, 2):
        if one.number != other.number:
            continue
        for release in itertools.product((5, 6, 7), range(30)):
            assert not (one.is_in(release) and other.is_in(release)), (one, other)


def test_other_architectures_have_other_flags_there() -> None:
    names = named("6.12", "aarch64")
    assert not names.keys() & X86.keys()
    assert names[40] == "VM_DROPPABLE"
    assert "without those of aarch64" in vmbits.limits((6, 12), "aarch64")


@pytest.mark.parametrize(
    ("text", "release"),
    [
        ("6.1.0-56-amd64", (6, 1)),
        ("7.2", (7, 2)),
        ("5.10.0-60.oe2203.x86_64", (5, 10)),
        ("6", None),
        ("", None),
        ("x6.1", None),
        ("6.99999999999", None),
    ],
)
def test_releases(text: str, release: vmbits.Release | None) -> None:
    assert vmbits.release_of(text) == release


@pytest.mark.parametrize(
    ("release", "taken", "words"),
    [
        ((6, 1), (6, 1), "Linux 6.1"),
        ((4, 19), (5, 10), "Linux 5.10, as 4.19 is not in it"),
        ((7, 3), (7, 2), "Linux 7.2, as 7.3 is not in it"),
        (None, (7, 2), "Linux 7.2"),
    ],
)
def test_the_nearest_release(
    release: vmbits.Release | None, taken: vmbits.Release, words: str
) -> None:
    assert vmbits.nearest(release) == taken
    assert vmbits.names(release, "x86_64") == vmbits.names(taken, "x86_64")
    assert vmbits.limits(release, "x86_64") == words


def test_what_all_have() -> None:
    assert vmbits.COMMON.keys() == LOW


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("VM_READ", "rd"),
        ("VM_DENYWRITE", "dw"),
        ("VM_MAYBE_GUARD", "gu"),
        ("VM_SEALED", "sl"),
        ("VM_PKEY_BIT0", "pkey_bit0"),
        ("VM_ALLOW_ANY_UNCACHED", "allow_any_uncached"),
        (None, "bit45"),
    ],
)
def test_how_a_flag_is_shown(name: str | None, text: str) -> None:
    assert vmbits.word(45, name) == text


def test_a_number_in_vm_flags() -> None:
    field = vmbits.FIELDS["VM_CHECKNODE"]
    assert field.mask == 0x3F << 48
    assert field.value(5 << 48 | 1 << 54 | 1 << 47) == 5
