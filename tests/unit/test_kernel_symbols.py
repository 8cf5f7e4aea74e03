from __future__ import annotations

from pathlib import Path

import pytest

from cdmtrace.kernel import symbols

KALLSYMS = """\
0000000000000000 A fixed_percpu_data
ffffffff81000000 T startup_64
ffffffff8123d000 t mbind_range
ffffffff8123d100 t mbind_range.isra.0
ffffffff8123d200 t vma_merge.constprop.0.isra.0
ffffffff8123d300 t split_vma.part.12
ffffffff8123d400 t exit_mmap.cold
ffffffff8123d500 W arch_weak
ffffffff82000000 D jiffies
ffffffff82000008 b mbind_data
ffffffffc0001000 t nvme_probe\t[nvme]
"""


@pytest.fixture
def known(tmp_path: Path) -> frozenset[str]:
    path = tmp_path / "kallsyms"
    path.write_text(KALLSYMS)
    return symbols.functions(path)


def test_functions_are_told_from_data(known: frozenset[str]) -> None:
    assert {"startup_64", "mbind_range", "arch_weak", "nvme_probe"} <= known
    assert not known & {"fixed_percpu_data", "jiffies", "mbind_data"}


def test_copies_by_the_compiler(known: frozenset[str]) -> None:
    assert symbols.twins(known) == {
        "mbind_range": ("mbind_range.isra.0",),
        "vma_merge": ("vma_merge.constprop.0.isra.0",),
        "split_vma": ("split_vma.part.12",),
    }


def test_a_kernel_that_does_not_tell(tmp_path: Path) -> None:
    with pytest.raises(symbols.SymbolsUnknown, match="functions are unknown") as caught:
        symbols.functions(tmp_path / "kallsyms")
    assert "CONFIG_KALLSYMS=y" in (caught.value.hint or "")


def test_the_running_kernel() -> None:
    assert "schedule" in symbols.functions()


def test_an_address_by_its_function(tmp_path: Path) -> None:
    path = tmp_path / "kallsyms"
    path.write_text(
        "ffffffff81002000 t second\n"
        "ffffffff81001000 T first\n"
        "ffffffff81001000 T alias\n"
        "ffffffff81001800 D data\n"
        "ffffffffc0001000 t of_a_module\t[module]\n"
        "0000000000000000 T nowhere\n"
    )
    names = symbols.Names(path)
    assert names.at(0xFFFFFFFF81001000) == "first+0x0"
    assert names.at(0xFFFFFFFF81001FFF) == "first+0xfff"
    assert names.at(0xFFFFFFFF81002000) == "second+0x0"
    assert names.at(0xFFFFFFFFC0001010) == "of_a_module+0x10"
    assert names.at(0xFFFFFFFF81000FFF) == "[unknown]"
    assert names.at(1) == "[unknown]"
