"""Kernels that Debian has built, and modules for them; nothing here asks apt."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from cdmtrace.cli.main import main
from cdmtrace.errors import LabError
from cdmtrace.lab import debian, kernels, modules, packaged
from cdmtrace.lab.kernel import Kernel
from cdmtrace.lab.paths import Layout
from cdmtrace.lab.scenarios import find_scenario
from cdmtrace.lab.specs import PACKAGED

if TYPE_CHECKING:
    from collections.abc import Callable

RELEASE = "6.1.0-7-amd64"
SPEC = PACKAGED["debian-6.1"]


def unpacked(root: Path) -> Path:
    """Lay out what Debian 12's packages hold, with the links that they have."""
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
    (root / "kernel.json").write_text("{}\n")
    (module_directory / "build").symlink_to(f"/usr/src/{headers.name}")
    (module_directory / "source").symlink_to(f"/usr/src/{common.name}")
    return root


def unpacked_under_usr(root: Path) -> Path:
    """Lay out what those of Debian 13 hold."""
    unpacked(root)
    (root / "lib").rename(root / "usr" / "lib")
    for name in ("build", "source"):
        link = root / "usr" / "lib" / "modules" / RELEASE / name
        place = link.readlink().name
        link.unlink()
        link.symlink_to(f"../../../src/{place}")
    return root


def unpacked_among_modules(root: Path) -> Path:
    """Lay out what those of 7 hold."""
    modules = unpacked_under_usr(root) / "usr" / "lib" / "modules" / RELEASE
    for name in ("vmlinuz", "config"):
        (root / "boot" / f"{name}-{RELEASE}").rename(modules / name)
    (root / "boot").rmdir()
    return root


@pytest.mark.parametrize(
    "lay_out", [unpacked, unpacked_under_usr, unpacked_among_modules]
)
def test_unpacked_packages_find_each_other_wherever_they_lie(
    tmp_path: Path, lay_out: Callable[[Path], Path]
) -> None:
    packaged.arrange(lay_out(tmp_path / "first"), RELEASE)
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


@pytest.fixture(autouse=True)
def no_apt(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have every question to apt fail the test that asks it."""

    def refuse(suites: tuple[str, ...], layout: Layout) -> None:
        pytest.fail(f"apt was asked for {suites}")

    monkeypatch.setattr(debian.Archive, "of", refuse)


def test_mirrors_are_the_first_of_each_archive_of_debian() -> None:
    told = (
        "Debian|Debian|http://a/debian/\n"
        "other|Debian|http://b/\n"
        "Debian|Debian-Security|http://c/\n"
        "Debian|Debian|http://d/debian/\n"
    )
    assert debian.parse_targets(told) == {
        debian.MAIN: "http://a/debian/",
        debian.SECURITY: "http://c/",
    }


@dataclass
class FakeArchive:
    """Debian's archive, as far as it is asked."""

    version: str = "6.1.1-2"
    kbuild: str = "6.1.1-3"
    release: str = RELEASE
    broken: str = ""
    parts: tuple[str, ...] = ()
    nothing: bool = False
    asked: list[str] = field(default_factory=list)

    def choose_version(
        self, package: str, *_: object, series: str, **__: object
    ) -> str:
        assert (package, series) == (SPEC.image, "6.1.")
        return self.version

    def candidate_version(self, package: str) -> str:
        assert package == "linux-kbuild-6.1"
        return self.kbuild

    def depends(self, package: str, version: str) -> list[str]:
        assert version == self.version
        if self.nothing:
            return ["linux-base"]
        return {
            SPEC.image: [f"linux-image-{self.release}"],
            SPEC.headers: [f"linux-headers-{self.release}"],
            f"linux-image-{self.release}": ["kmod", *self.parts],
            f"linux-headers-{self.release}": [
                *("linux-headers-6.1.0-7-common", "linux-kbuild-6.1", "linux-compiler"),
            ],
        }[package]

    def download(
        self, package: str, version: str, directory: Path, *_: object, kernel: str
    ) -> Path:
        assert kernel == SPEC.name
        self.asked.append(f"{package} {version}")
        if package == self.broken:
            raise LabError(f"cannot download {package}")
        path = directory / f"{package}_{version}.deb"
        path.touch()
        return path


@pytest.fixture
def archive(monkeypatch: pytest.MonkeyPatch) -> FakeArchive:
    """An archive whose image package holds all, and the others nothing."""
    it = FakeArchive()

    def of(suites: tuple[str, ...], layout: Layout) -> FakeArchive:
        assert suites == SPEC.suites
        return it

    def run_tool(command: list[str], directory: Path) -> None:
        if command[0] == "dpkg-deb" and command[2].startswith("linux-image"):
            unpacked(directory / command[3])

    monkeypatch.setattr(debian.Archive, "of", of)
    monkeypatch.setattr(debian, "run_tool", run_tool)
    return it


def test_a_kernel_is_fetched_once_and_then_found(
    tmp_path: Path, archive: FakeArchive
) -> None:
    layout = Layout(root=tmp_path)
    assert kernels.find(SPEC, layout) is None
    kernel = kernels.provide(SPEC, layout)
    assert archive.asked == [
        f"linux-image-{RELEASE} 6.1.1-2",
        f"linux-headers-{RELEASE} 6.1.1-2",
        "linux-headers-6.1.0-7-common 6.1.1-2",
        "linux-kbuild-6.1 6.1.1-3",
    ]
    assert json.loads((kernel.directory / "kernel.json").read_text())["release"] == (
        RELEASE
    )
    assert kernel.headers is not None
    assert kernels.find(SPEC, layout) == kernel
    assert kernels.provide(SPEC, layout) == kernel
    assert len(archive.asked) == 4


def test_an_update_that_fails_leaves_the_kernel_that_was_there(
    tmp_path: Path, archive: FakeArchive
) -> None:
    layout = Layout(root=tmp_path)
    kernel = kernels.provide(SPEC, layout)
    archive.version, archive.broken = "6.1.2-1", "linux-kbuild-6.1"
    with pytest.raises(LabError, match="cannot download linux-kbuild"):
        kernels.provide(SPEC, layout, update=True)
    assert kernels.provide(SPEC, layout) == kernel
    assert [one.name for one in layout.kernels.iterdir() if one.is_dir()] == [
        kernel.directory.name
    ]
    archive.broken = ""
    assert kernels.provide(SPEC, layout, update=True) != kernel


def test_an_image_of_several_packages_is_fetched_whole(
    tmp_path: Path, archive: FakeArchive
) -> None:
    archive.parts = (f"linux-modules-{RELEASE}", "linux-base")
    kernels.provide(SPEC, Layout(root=tmp_path))
    assert archive.asked[2] == f"linux-modules-{RELEASE} 6.1.1-2"
    assert len(archive.asked) == 5


def test_packages_that_lead_to_no_kernel_are_an_error(
    tmp_path: Path, archive: FakeArchive
) -> None:
    archive.nothing = True
    with pytest.raises(
        LabError, match=r"linux-headers-amd64 6\.1\.1-2 lead to no"
    ) as e:
        kernels.provide(SPEC, Layout(root=tmp_path))
    assert e.value.hint == "cdmtrace lab build --update --kernel debian-6.1"
    assert archive.asked == []


def test_packages_that_are_laid_out_otherwise_are_an_error(
    tmp_path: Path, archive: FakeArchive
) -> None:
    archive.release = "6.1.0-8-amd64"
    with pytest.raises(LabError, match="8-amd64 are not laid out as expected"):
        kernels.provide(SPEC, Layout(root=tmp_path))
    assert kernels.find(SPEC, Layout(root=tmp_path)) is None


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
    with pytest.raises(LabError, match="flag_writer needs a module, and there") as e:
        modules.build(
            source_file, scenario, Kernel(directory=tmp_path), Layout(root=tmp_path)
        )
    assert e.value.hint == "--kernel debian-6.1"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ("run", "--scenario", "flag_writer"),
            "needs a module, and cdm-6.1 takes none",
        ),
        (("matrix", "--scenarios", "flag_writer"), "and no row of the matrix has one"),
    ],
)
def test_where_it_cannot_be_had_is_told_before_anything_is_built(
    words: tuple[str, ...],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(kernels, "provide", lambda *_, **__: pytest.fail("built"))
    assert main(["lab", *words]) == 125
    assert said in capsys.readouterr().err
    assert not (tmp_path / "cdmtrace" / "runs").exists()


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
