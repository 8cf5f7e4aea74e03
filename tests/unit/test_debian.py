"""What apt is asked, and what is said when it fails; ours is first on PATH."""

from __future__ import annotations

from pathlib import Path

import pytest

from cdmtrace.errors import LabError
from cdmtrace.lab.debian import Archive
from cdmtrace.lab.paths import Layout

APT = """\
#!/bin/sh
echo "${0##*/} $*" >>ROOT/asked
case "$*" in
*indextargets*)
	cat ROOT/targets ;;
*update*)
	test ! -e ROOT/offline || { echo "E: cannot be reached" >&2; exit 100; }
	test ! -e ROOT/late-targets || mv ROOT/late-targets ROOT/targets
	touch ROOT/updated ;;
*madison*)
	test ! -e ROOT/updated || echo "linux-image-amd64 | 6.12.9-1 | http://m trixie" ;;
esac
"""
TARGETS = "Debian|Debian|http://m/debian/\nDebian|Debian-Security|http://s/\n"
SUITES = ("trixie", "trixie-security")


@pytest.fixture
def apt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory: what apt is asked is in ``asked``; see APT for what it heeds."""
    for name in ("apt-get", "apt-cache"):
        program = tmp_path / name
        program.write_text(APT.replace("ROOT", str(tmp_path)))
        program.chmod(0o755)
    (tmp_path / "targets").write_text(TARGETS)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setattr("os.geteuid", lambda: 0)
    return tmp_path


def quiet(stage: str) -> None:
    pass


def choose(archive: Archive) -> str:
    return archive.choose_version(
        "linux-image-amd64", quiet, fresh=False, series="6.12."
    )


def test_lists_of_other_suites_are_fetched_from_the_system_s_mirrors(apt: Path) -> None:
    layout = Layout(root=apt / "cache")
    archive = Archive.of(SUITES, layout)
    assert choose(archive) == "6.12.9-1"
    sources = (archive.directory / "sources.list").read_text().splitlines()
    assert [line.split("] ")[1] for line in sources] == [
        "http://m/debian/ trixie main",
        "http://s/ trixie-security main",
    ]
    assert all("signed-by=" in line and "arch=amd64" in line for line in sources)
    assert "check-valid-until" not in "".join(sources)
    (update,) = [
        line
        for line in (apt / "asked").read_text().splitlines()
        if line.endswith("update -q")
    ]
    assert f"Dir::Etc::SourceList={archive.directory}/sources.list" in update
    assert f"Dir::State={archive.directory}" in update
    assert "sudo" not in update


def test_the_lists_of_the_system_are_its_own(apt: Path) -> None:
    assert choose(Archive.of((), Layout(root=apt / "cache"))) == "6.12.9-1"
    assert "apt-get update -q" in (apt / "asked").read_text().splitlines()
    assert not (apt / "cache").exists()


def test_an_archived_release_may_be_out_of_date(apt: Path) -> None:
    archive = Archive.of(("bullseye",), Layout(root=apt / "cache"))
    archive.update(quiet)
    assert "check-valid-until=no" in (archive.directory / "sources.list").read_text()


def test_a_system_that_has_no_lists_yet_gets_them(apt: Path) -> None:
    (apt / "targets").rename(apt / "late-targets")
    (apt / "targets").touch()
    archive = Archive.of(SUITES, Layout(root=apt / "cache"))
    assert choose(archive) == "6.12.9-1"
    assert "apt-get update -q" in (apt / "asked").read_text().splitlines()


def test_a_system_without_debian_s_mirrors(apt: Path) -> None:
    (apt / "targets").write_text("Other|Debian|http://m/\n")
    with pytest.raises(LabError, match="no mirror of Debian's archive"):
        choose(Archive.of(SUITES, Layout(root=apt / "cache")))


def test_a_mirror_that_cannot_be_reached(apt: Path) -> None:
    (apt / "offline").touch()
    archive = Archive.of(SUITES, Layout(root=apt / "cache"))
    with pytest.raises(LabError, match="apt-get update failed") as caught:
        choose(archive)
    assert caught.value.details == "E: cannot be reached"
    assert str(archive.directory) in (caught.value.hint or "")
    with pytest.raises(LabError) as caught:
        choose(Archive.of((), Layout(root=apt / "cache")))
    assert caught.value.hint == "sudo apt-get update"


def test_a_series_that_the_suites_have_not(apt: Path) -> None:
    archive = Archive.of(SUITES, Layout(root=apt / "cache"))
    with pytest.raises(LabError, match=r"no package linux-image-amd64 7\.\* in trixie"):
        archive.choose_version("linux-image-amd64", quiet, fresh=False, series="7.")
