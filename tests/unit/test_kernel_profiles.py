"""Which kernel is one that tags by itself."""

from __future__ import annotations

import pytest

from cdmtrace.kernel.profiles import OPENEULER, PROFILES, UPSTREAM, choose

TAGS = {"CONFIG_COHERENT_DEVICE": "y"}


@pytest.mark.parametrize(
    "release",
    [
        "5.10.0-60.18.0.50.oe2203.x86_64",
        "4.19.90-2003.4.0.0036.oe1.aarch64",
        "6.6.0-72.0.0.76.oe2403sp1.x86_64",
    ],
)
def test_openeuler_by_its_release(release: str) -> None:
    assert choose(None, release, TAGS) is OPENEULER
    # Built without it, bit 32 is what Linux has there.
    assert choose(None, release, {}) is UPSTREAM
    assert choose(None, release, {"CONFIG_COHERENT_DEVICE": "n"}) is UPSTREAM


@pytest.mark.parametrize("release", ["6.1.192", "6.1.0-56-amd64", "5.10.0-oe", ""])
def test_others_are_not(release: str) -> None:
    """The laboratory's kernel has the option of that name, too."""
    assert choose(None, release, TAGS) is UPSTREAM


def test_what_was_asked_for() -> None:
    assert choose("openeuler", "6.1.0-56-amd64", {}) is OPENEULER
    assert choose("upstream", "5.10.0-60.oe2203.x86_64", TAGS) is UPSTREAM


def test_what_they_take() -> None:
    assert set(PROFILES) == {"upstream", "openeuler"}
    assert UPSTREAM.vm_cdm is None
    assert OPENEULER.vm_cdm == 0x100000000
    assert OPENEULER.bits[33] == "VM_CHECKNODE"
