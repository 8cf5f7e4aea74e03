from __future__ import annotations

import re
from pathlib import Path

import pytest

from cdmtrace.errors import LabError
from cdmtrace.lab import quirks, specs


def test_rfc_is_what_the_posted_patches_do_and_none_is_no_quirk() -> None:
    rfc = quirks.resolve("rfc")
    assert rfc == tuple(quirk.name for quirk in quirks.QUIRKS if quirk.in_rfc)
    assert (len(rfc), rfc[0], rfc[-1]) == (17, "bind-only", "numa-residual")
    assert not any(quirks.BY_NAME[name].crashes for name in rfc)
    assert quirks.resolve("none") == quirks.resolve("") == ()
    assert quirks.as_argument(()) == "none"


def test_what_a_quirk_needs_comes_with_it_through_several_steps() -> None:
    assert quirks.resolve("thp-untagged") == ("bind-only", "fault-tag", "thp-untagged")


def test_rfc_and_one_that_it_has_not_are_switched_on_together() -> None:
    assert set(quirks.resolve("rfc,null-vma")) == {*quirks.resolve("rfc"), "null-vma"}
    assert quirks.resolve("unlocked-clear") == ("one-way", "unlocked-clear")


def test_separators_order_and_repetition_do_not_matter() -> None:
    assert quirks.resolve("one-way,ksm-merge") == quirks.resolve(
        " ksm-merge  one-way, ksm-merge "
    )
    assert quirks.as_argument(quirks.resolve("whole-vma one-way")) == (
        "one-way,whole-vma"
    )


def test_unknown_name_suggests_close_ones() -> None:
    with pytest.raises(LabError, match=r"unknown quirk 'fault-tags'.*fault-tag"):
        quirks.resolve("fault-tags")
    with pytest.raises(LabError, match=r"unknown quirk 'zzz'$"):
        try:
            quirks.resolve("zzz")
        except LabError as error:
            raise LabError(error.message) from None


def test_none_beside_others_is_refused() -> None:
    with pytest.raises(LabError, match="cannot stand beside"):
        quirks.resolve("none,one-way")


def test_table_is_closed_and_says_where_the_series_has_each() -> None:
    for quirk in quirks.QUIRKS:
        assert set(quirk.needs) <= set(quirks.BY_NAME)
        assert "RFC V2" in quirk.source or quirk.source.startswith("wrong fix")
        assert quirk.in_rfc <= quirk.source.startswith(("RFC V2", "absent from RFC V2"))
        assert quirk.summary


def _hold_table(text: str, prefix: str, expected: list[str]) -> None:
    """Hold a table in C, whose names begin with the prefix, against ours."""
    entry = re.compile(rf'\[{prefix}_(\w+)\]\s*=\s*\{{\s*"([\w-]+)"([^}}]*)\}}')
    rows = list(entry.finditer(text))
    assert [row[2] for row in rows] == expected
    for row in rows:
        assert row[1] == row[2].upper().replace("-", "_")
        needed = re.findall(rf"\b{prefix}_(\w+)", row[3])
        names = {name.lower().replace("_", "-") for name in needed}
        assert quirks.resolve([row[2], *names]) == quirks.resolve(row[2])
        assert bool(names) == bool(quirks.BY_NAME[row[2]].needs)
        if prefix == "CDM":
            assert ("not_rfc = true" in row[3]) != quirks.BY_NAME[row[2]].in_rfc


@pytest.mark.parametrize("name", sorted(specs.BUILT))
def test_the_kernels_have_the_same_table_but_for_what_they_lack(name: str) -> None:
    """By their sources; what a booted kernel says, the guest tests compare."""
    text = "".join(
        re.sub(r"^\+", "", line)
        for patch in specs.BUILT[name].patch_files()
        for line in patch.read_text().splitlines(keepends=True)
        if line.startswith("+")
    )
    expected = [quirk.name for quirk in quirks.QUIRKS if name not in quirk.absent]
    _hold_table(text, "CDM", expected)


def test_the_scenarios_have_the_same_table() -> None:
    program = Path(quirks.__file__).parent / "scenarios" / "quirks.h"
    _hold_table(program.read_text(), "Q", [quirk.name for quirk in quirks.QUIRKS])


def test_what_a_kernel_lacks_is_refused_and_rfc_lacks_nothing() -> None:
    with pytest.raises(LabError, match=r"^cdm-6\.12 has no quirk null-vma") as caught:
        quirks.require(quirks.resolve("one-way,null-vma"), "cdm-6.12")
    assert "cdm-6.1 or" in (caught.value.hint or "")
    quirks.require(quirks.resolve("null-vma"), "cdm-6.1")
    for kernel in specs.BUILT:
        quirks.require(quirks.resolve("rfc"), kernel)
    # Nobody knows what a kernel at a path has.
    quirks.require(quirks.resolve("null-vma"), "/boot/vmlinuz")
    with pytest.raises(LabError, match=r"^debian-6\.1 has no quirks"):
        quirks.require(("one-way",), "debian-6.1")
    quirks.require((), "debian-6.1")
    for quirk in quirks.QUIRKS:
        assert set(quirk.absent) <= set(specs.BUILT)
