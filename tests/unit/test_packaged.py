"""Kernels that Debian has built, and modules for them: what can be had without apt."""

from __future__ import annotations

from pathlib import Path

import pytest

from cdmtrace.errors import LabError
from cdmtrace.lab import debian, kernels, modules, packaged, source
from cdmtrace.lab.kernel import Kernel
from cdmtrace.lab.paths import Layout
from cdmtrace.lab.scenarios import find_scenario
from cdmtrace.lab.specs import PACKAGED, PackagedSpec

RELEASE = "6.1.0-7-amd64"
SPEC = PACKAGED["stock-6.1"]


def unpacked(root: Path) -> Path:
    """Lay out what the packages hold, with the links that they have."""
    headers = root / "usr" / "src" / f"linux-headers-{RELEASE}"
    common = root / "usr" / "src" / "linux-headers-6.1.0-7-common"
    module_directory = root / "lib" / "modules" / RELEASE
    for directory in (root / "boot", headers, common, module_directory):
        directory.mkdir(parents=True)
    (root / "boot" / f"vmlinuz-{RELEASE}").write_text("image")
    (root / "boot" / f"config-{RELEASE}").write_text("CONFIG_NUMA=y\n")
    (common / "Makefile").write_text("here:\n\t@echo common\n")
    (headers / "Makefile").write_text(
        "include /usr/src/linux-headers-6.1.0-7-common/Makefile\n"
    )
    (module_directory / "build").symlink_to(f"/usr/src/{headers.name}")
    (module_directory / "source").symlink_to(f"/usr/src/{common.name}")
    return root


def test_unpacked_packages_find_each_other_wherever_they_lie(tmp_path: Path) -> None:
    packaged.arrange(unpacked(tmp_path / "first"), RELEASE)
    root = (tmp_path / "first").rename(tmp_path / "second")
    kernel = Kernel(directory=root)
    assert kernel.image.read_text() == "image"
    assert kernel.config.read_text() == "CONFIG_NUMA=y\n"
    assert kernel.headers is not None
    debian.run_tool(["make", "-s", "-C", str(kernel.headers), "here"], tmp_path)
    assert (kernel.headers.parent / "source" / "Makefile").is_file()


def test_dependencies_are_those_of_the_newest_record() -> None:
    shown = (
        "Package: linux-headers-6.1.0-7-amd64\n"
        "Depends: linux-headers-6.1.0-7-common (= 6.1.1-2), linux-kbuild-6.1 "
        "(>= 6.1.1-2), gcc-12 | gcc, libc6\n"
        "\n"
        "Package: linux-headers-6.1.0-7-amd64\n"
        "Depends: older\n"
    )
    assert debian.parse_depends(shown) == [
        *("linux-headers-6.1.0-7-common", "linux-kbuild-6.1", "gcc-12", "libc6"),
    ]
    assert debian.parse_depends("Package: x\n\nDepends: y\n") == []


def test_a_fetched_kernel_is_found_without_apt(tmp_path: Path) -> None:
    layout = Layout(root=tmp_path)
    assert kernels.find(SPEC, layout) is None
    source.pin_version(layout, SPEC.image, "6.1.1-2")
    assert kernels.find(SPEC, layout) is None
    root = unpacked(layout.kernels / "stock-6.1-6.1.1-2")
    assert kernels.find(SPEC, layout) is None
    packaged.arrange(root, RELEASE)
    assert kernels.find(SPEC, layout) == Kernel(directory=root)
    assert kernels.provide(SPEC, layout) == Kernel(directory=root)


def test_packages_that_lead_to_no_kernel_are_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = PackagedSpec(
        name="none", summary="", image="linux-image-none", headers="no-headers"
    )
    monkeypatch.setattr(debian, "choose_version", lambda *_, **__: "1")
    with pytest.raises(LabError, match="linux-image-none and no-headers 1 lead to no"):
        kernels.provide(spec, Layout(root=tmp_path))
    assert source.pinned_version(Layout(root=tmp_path), spec.image) is None


def test_a_tool_that_is_not_installed_is_named(tmp_path: Path) -> None:
    with pytest.raises(LabError, match="no-such-tool is not installed") as e:
        debian.run_tool(["no-such-tool"], tmp_path)
    assert e.value.hint == "sudo apt-get install -y no-such-tool"


def test_every_module_has_a_scenario_with_its_header() -> None:
    sources = sorted(modules.MODULE_DIR.glob("*.c"))
    assert sources
    for path in sources:
        scenario = find_scenario(path.stem)
        assert modules.needed_by(scenario) == path
        assert scenario.source.with_suffix(".h").is_file()
    assert modules.needed_by(find_scenario("story")) is None


def test_a_kernel_without_headers_gets_no_module(tmp_path: Path) -> None:
    scenario = find_scenario("flag_writer")
    source_file = modules.needed_by(scenario)
    assert source_file is not None
    with pytest.raises(LabError, match="flag_writer needs a module, and kernel") as e:
        modules.build(
            source_file, scenario, Kernel(directory=tmp_path), Layout(root=tmp_path)
        )
    assert e.value.hint == "--kernel stock-6.1"


def test_a_module_that_does_not_compile_leaves_nothing(tmp_path: Path) -> None:
    root = unpacked(tmp_path / "kernel")
    packaged.arrange(root, RELEASE)
    scenario = find_scenario("flag_writer")
    source_file = modules.needed_by(scenario)
    assert source_file is not None
    layout = Layout(root=tmp_path / "lab")
    with pytest.raises(LabError, match="does not compile") as e:
        modules.build(source_file, scenario, Kernel(directory=root), layout)
    assert "modules" in str(e.value.details)
    assert list(layout.programs.iterdir()) == []
