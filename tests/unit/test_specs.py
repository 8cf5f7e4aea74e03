from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from cdmtrace.errors import LabError
from cdmtrace.lab import debian, kconfig, source, toolchain, tree
from cdmtrace.lab.kernel import find_built
from cdmtrace.lab.paths import Layout
from cdmtrace.lab.specs import (
    BUILT,
    DEFAULT_KERNEL,
    KERNELS,
    KernelSpec,
    directory_name,
    find_spec,
)


@pytest.fixture
def spec(tmp_path: Path) -> KernelSpec:
    patches = tmp_path / "patches"
    patches.mkdir()
    (patches / "0002-b.patch").write_text("b")
    (patches / "0001-a.patch").write_text("a")
    fragment = tmp_path / "x.config"
    fragment.write_text("CONFIG_A=y\n")
    return KernelSpec(
        name="toy",
        summary="",
        package="linux-source-0",
        patches=patches,
        fragments=(fragment,),
    )


def test_patches_apply_in_the_order_of_their_names(spec: KernelSpec) -> None:
    assert [path.name for path in spec.patch_files()] == [
        "0001-a.patch",
        "0002-b.patch",
    ]


def test_everything_that_goes_in_changes_the_key(spec: KernelSpec) -> None:
    keys = {directory_name(spec, "1", "gcc 1")}
    keys.add(directory_name(spec, "2", "gcc 1"))
    keys.add(directory_name(spec, "1", "gcc 2"))
    keys.add(directory_name(replace(spec, name="other"), "1", "gcc 1"))
    (spec.patches / "0001-a.patch").write_text("changed")
    keys.add(directory_name(spec, "1", "gcc 1"))
    (spec.patches / "0003-c.patch").write_text("c")
    keys.add(directory_name(spec, "1", "gcc 1"))
    spec.fragments[0].write_text("CONFIG_A=n\n")
    keys.add(directory_name(spec, "1", "gcc 1"))
    assert len(keys) == 7


def test_the_key_is_stable_and_leaves_out_other_files(spec: KernelSpec) -> None:
    before = directory_name(spec, "1", "gcc")
    (spec.patches / "README").write_text("not a patch")
    assert directory_name(spec, "1", "gcc") == before


def test_a_spec_without_patches_is_an_error(tmp_path: Path, spec: KernelSpec) -> None:
    with pytest.raises(LabError, match="no patches"):
        replace(spec, patches=tmp_path / "none").patch_files()


@pytest.mark.parametrize("name", BUILT)
def test_the_patches_are_one_series_whatever_the_kernel(name: str) -> None:
    """Title and licence of each are those of the patches for 6.1, in their order."""
    heads = []
    for spec in (BUILT[name], BUILT[DEFAULT_KERNEL]):
        texts = [path.read_text() for path in spec.patch_files()]
        heads.append([text.splitlines()[:2] for text in texts])
        for text in texts:
            assert tree.touched_files(text)
            assert text.splitlines()[0] == "SPDX-License-Identifier: GPL-2.0-only"
    assert heads[0] == heads[1]


def test_5_10_is_asked_for_what_6_1_is_but_for_what_it_has_not() -> None:
    old, new = (
        kconfig.merge(BUILT[name].fragment_texts())
        for name in ("cdm-5.10", DEFAULT_KERNEL)
    )
    assert {option for option in new if old[option] != new[option]} == {
        "CONFIG_FPROBE",
        "CONFIG_DEBUG_INFO_DWARF_TOOLCHAIN_DEFAULT",
    }
    assert old.keys() - new.keys() == {"CONFIG_DEBUG_INFO", "CONFIG_ARCH_RANDOM"}


def test_find_spec_suggests() -> None:
    assert find_spec("cdm-6.1") is KERNELS["cdm-6.1"]
    with pytest.raises(LabError, match=r"did you mean cdm-6\.1"):
        find_spec("cdm-6.2")


def _publish(layout: Layout, name: str) -> Path:
    directory = layout.kernels / name
    directory.mkdir(parents=True)
    (directory / "bzImage").write_bytes(b"kernel")
    return directory


def test_a_built_kernel_is_found_without_apt(
    spec: KernelSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    layout = Layout(root=tmp_path / "lab")
    assert find_built(spec, layout) is None
    source.pin_version(layout, spec.package, "1")
    monkeypatch.setattr(toolchain, "compiler_version", lambda: "gcc 1")
    assert find_built(spec, layout) is None
    directory = _publish(layout, directory_name(spec, "1", "gcc 1"))
    found = find_built(spec, layout)
    assert found is not None
    assert found.directory == directory
    monkeypatch.setattr(toolchain, "compiler_version", lambda: "gcc 2")
    assert find_built(spec, layout) is None


def test_without_a_compiler_any_build_of_the_content_will_do(
    spec: KernelSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    layout = Layout(root=tmp_path / "lab")
    source.pin_version(layout, spec.package, "1")
    directory = _publish(layout, directory_name(spec, "1", "gcc 1"))
    monkeypatch.setattr(toolchain, "compiler_version", lambda: None)
    found = find_built(spec, layout)
    assert found is not None
    assert found.directory == directory
    (spec.patches / "0001-a.patch").write_text("changed")
    assert find_built(spec, layout) is None


def test_pinning_keeps_the_others_and_a_damaged_index_is_an_error(
    tmp_path: Path,
) -> None:
    layout = Layout(root=tmp_path)
    source.pin_version(layout, "a", "1")
    source.pin_version(layout, "b", "2")
    source.pin_version(layout, "a", "3")
    assert source.pinned_version(layout, "a") == "3"
    assert source.pinned_version(layout, "b") == "2"
    layout.index.write_text("{")
    with pytest.raises(LabError, match="cannot read"):
        source.pinned_version(layout, "a")


def test_madison_takes_the_newest_binary_package() -> None:
    output = (
        " linux-source-6.1 | 6.1.192-2 | http://x security/main amd64 Packages\n"
        " linux-source-6.1 | 6.1.190-1 | http://x bookworm/main amd64 Packages\n"
    )
    assert debian.parse_madison(output, "linux-source-6.1") == "6.1.192-2"
    assert debian.parse_madison(output, "linux-source-6.12") is None
    assert debian.parse_madison("N: Unable to locate package x\n", "x") is None
    sources_first = "x | 1 | http://x bookworm/main Sources\nx | 2 | y Packages\n"
    assert debian.parse_madison(sources_first, "x") == "2"
    backports = "x | 6.12.30-1~bpo12+1 | y Packages\nx | 6.1.9-1 | y Packages\n"
    assert debian.parse_madison(backports, "x", "6.1.") == "6.1.9-1"
    assert debian.parse_madison(backports, "x", "6.6.") is None


def test_missing_tools_are_named_with_the_command_that_mends_it() -> None:
    tools = (
        toolchain.Tool(command="sh", package="dash"),
        toolchain.Tool(command="no-such-command-here", package="some-package"),
        toolchain.Tool(header="no/such/header.h", package="other-dev"),
    )
    with pytest.raises(LabError, match="no-such-command-here") as caught:
        toolchain.require_tools(tools)
    assert caught.value.hint == "sudo apt-get install -y some-package other-dev"
