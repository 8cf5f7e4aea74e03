from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from cdmtrace.kernel import headers

VARIABLE = headers.SOURCE_VARIABLE


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Look for /lib/modules and the archive below tmp_path, where there is nothing."""

    def below(*parts: Any) -> Path:
        path = Path(*parts)
        inside = path.is_relative_to("/lib/modules")
        return tmp_path / path.relative_to("/") if inside else path

    monkeypatch.setattr(headers, "Path", below)
    monkeypatch.setattr(headers, "KHEADERS", tmp_path / "kheaders.tar.xz")
    monkeypatch.delenv(VARIABLE, raising=False)
    return tmp_path


def pack(root: Path) -> Path:
    source = root / "source"
    (source / "include/linux").mkdir(parents=True)
    (source / "include/linux/mm.h").write_text("#define VM_CDM 0x4000000000\n")
    archive = root / "kheaders.tar.xz"
    words = ["tar", "-cJf", str(archive), "-C", str(source), "."]
    subprocess.run(words, check=True)
    return archive


def test_the_directory_that_was_named_comes_first(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pack(root)
    monkeypatch.setenv(VARIABLE, str(root))
    with headers.available() as found:
        assert found == root


def test_a_directory_that_is_not_there(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pack(root)
    monkeypatch.setenv(VARIABLE, str(root / "gone"))
    with pytest.raises(headers.HeadersMissing, match="does not exist") as caught:
        headers.require()
    assert caught.value.hint == f"unset {VARIABLE}"


def test_those_that_are_installed(root: Path) -> None:
    pack(root)
    build = root / "lib/modules/6.1.0-x/build"
    build.mkdir(parents=True)
    assert headers.find("6.1.0-x") == root / "kheaders.tar.xz"
    (build / "include").mkdir()
    assert headers.find("6.1.0-x") == build


def test_those_in_the_kernel_are_unpacked_and_taken_away_again(root: Path) -> None:
    pack(root)
    with headers.available() as found:
        assert "VM_CDM" in (found / "include/linux/mm.h").read_text()
        assert os.environ[VARIABLE] == str(found)
    assert VARIABLE not in os.environ
    assert not found.exists()


def test_an_archive_that_is_damaged(root: Path) -> None:
    archive = pack(root)
    archive.write_bytes(archive.read_bytes()[:40])
    with (
        pytest.raises(headers.HeadersMissing, match="cannot be unpacked") as caught,
        headers.available(),
    ):
        pass
    assert "xz-utils" in (caught.value.hint or "")
    assert VARIABLE not in os.environ


@pytest.mark.usefixtures("root")
def test_none_are_found() -> None:
    with pytest.raises(headers.HeadersMissing, match="were not found") as caught:
        headers.require("6.1.0-x")
    assert "apt-get install -y linux-headers-6.1.0-x" in (caught.value.hint or "")
    assert caught.value.exit_status == 125


def test_debian_has_two_directories(tmp_path: Path) -> None:
    arch, common = tmp_path / "headers-amd64", tmp_path / "headers-common"
    arch.mkdir()
    common.mkdir()
    assert headers.roots(arch) == (arch,)
    (arch / "Makefile").write_text(f"# comment\ninclude {common}/Makefile\n")
    assert headers.roots(arch) == (arch, common)
    (arch / "Makefile").write_text(f"include {tmp_path}/gone/Makefile\n")
    assert headers.roots(arch) == (arch,)
    # As the laboratory unpacks them, with a link that leads there from elsewhere.
    (arch / "Makefile").write_text("include ../headers-common/Makefile\n")
    (tmp_path / "modules").mkdir()
    build = tmp_path / "modules/build"
    build.symlink_to(arch)
    found = headers.roots(build)
    assert [root.resolve() for root in found] == [arch, common]
