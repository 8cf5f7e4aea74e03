"""Debian's kernel source: which version, fetched, unpacked once."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from cdmtrace.errors import LabError
from cdmtrace.lab.paths import write_atomically

if TYPE_CHECKING:
    from collections.abc import Callable

    from cdmtrace.lab.paths import Layout


def pinned_version(layout: Layout, package: str) -> str | None:
    """Return the version in use of ``package``, or None if none was chosen yet.

    Once chosen it stays, so that a finished kernel is found without asking apt.
    """
    try:
        index = json.loads(layout.index.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise LabError(
            f"cannot read {layout.index}: {error}", hint=f"rm {layout.index}"
        ) from error
    version = index.get(package) if isinstance(index, dict) else None
    return version if isinstance(version, str) else None


def pin_version(layout: Layout, package: str, version: str) -> None:
    """Remember ``version`` as the one in use of ``package``."""
    try:
        index = json.loads(layout.index.read_bytes())
    except (OSError, ValueError):
        index = {}
    if not isinstance(index, dict):
        index = {}
    index[package] = version
    write_atomically(layout.index, json.dumps(index, indent=2).encode() + b"\n")


def source_dir(layout: Layout, package: str, version: str) -> Path:
    """Return where the unpacked source of that version is, or will be."""
    return layout.sources / f"{package}_{version}"


def parse_madison(output: str, package: str) -> str | None:
    """Return the newest version that ``apt-cache madison`` lists for ``package``."""
    for line in output.splitlines():
        fields = [field.strip() for field in line.split("|")]
        # "Sources" lines offer the source package, which is something else.
        if len(fields) != 3 or fields[2].endswith("Sources"):
            continue
        if fields[0] == package:
            return fields[1]
    return None


def candidate_version(package: str) -> str | None:
    """Return the version of ``package`` that apt offers, or None."""
    if shutil.which("apt-cache") is None:
        raise LabError(
            "the kernel source comes from Debian's archive, and there is no apt here",
            hint="run the laboratory on Debian 12",
        )
    result = subprocess.run(
        ["apt-cache", "madison", package], text=True, capture_output=True, check=False
    )
    return parse_madison(result.stdout, package)


def update_lists(stage: Callable[[str], None]) -> None:
    """Run ``apt-get update``, through sudo unless root."""
    command = ["apt-get", "update", "-q"]
    if os.geteuid() != 0:
        # Never asks: a password prompt in the middle of a build helps nobody.
        command = ["sudo", "-n", *command]
    stage("refreshing the package lists (apt-get update)")
    try:
        result = subprocess.run(command, text=True, capture_output=True, check=False)
    except FileNotFoundError as error:
        raise LabError(
            "the package lists are missing", hint="apt-get update (as root)"
        ) from error
    if result.returncode != 0:
        raise LabError(
            "apt-get update failed",
            details=tail(result.stderr or result.stdout, 10),
            hint="sudo apt-get update",
        )


def choose_version(package: str, stage: Callable[[str], None], *, fresh: bool) -> str:
    """Return the version of ``package`` to use, asking apt.

    With ``fresh`` the package lists are refreshed first, otherwise only if they do
    not know the package.
    """
    if fresh:
        update_lists(stage)
    version = candidate_version(package)
    if version is None and not fresh:
        update_lists(stage)
        version = candidate_version(package)
    if version is None:
        raise LabError(
            f"no package {package} in this system's package lists",
            hint="use Debian 12, or add its archive to the apt sources",
        )
    return version


def fetch(
    layout: Layout, package: str, version: str, stage: Callable[[str], None]
) -> Path:
    """Return the unpacked source tree of ``package``, fetching it if need be.

    The caller holds the build lock.  The tree appears under its name only when it
    is complete; it is never written to afterwards.
    """
    target = source_dir(layout, package, version)
    if target.is_dir():
        return target
    layout.sources.mkdir(parents=True, exist_ok=True)
    for stale in layout.sources.glob(".unpack-*"):
        shutil.rmtree(stale, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=".unpack-", dir=layout.sources) as scratch:
        directory = Path(scratch)
        stage(f"fetching {package} {version}")
        _download(package, version, directory, stage)
        stage(f"unpacking {package} {version}")
        archive = next(iter(directory.glob("*.deb")))
        _run(["dpkg-deb", "-x", archive.name, "deb"], directory)
        archive.unlink()
        tarball = directory / "deb" / "usr" / "src" / f"{package}.tar.xz"
        if not tarball.is_file():
            raise LabError(f"{package} {version} holds no {tarball.name}")
        _run(["tar", "-xJf", str(tarball)], directory)
        (directory / package).rename(target)
    return target


def _download(
    package: str, version: str, directory: Path, stage: Callable[[str], None]
) -> None:
    command = ["apt-get", "download", "-q", f"{package}={version}"]
    result = subprocess.run(
        command, cwd=directory, text=True, capture_output=True, check=False
    )
    if not list(directory.glob("*.deb")):
        # The lists may be older than the archive.
        update_lists(stage)
        result = subprocess.run(
            command, cwd=directory, text=True, capture_output=True, check=False
        )
    if result.returncode != 0 or not list(directory.glob("*.deb")):
        raise LabError(
            f"cannot download {package} {version}",
            details=tail(result.stderr or result.stdout, 10),
            hint="cdmtrace lab build --update",
        )


def _run(command: list[str], directory: Path) -> None:
    result = subprocess.run(
        command, cwd=directory, text=True, capture_output=True, check=False
    )
    if result.returncode != 0:
        raise LabError(
            f"{command[0]} failed ({result.returncode})",
            details=tail(result.stderr, 10),
        )


def tail(text: str, count: int) -> str:
    """Return the last ``count`` lines of ``text``."""
    return "\n".join(text.rstrip("\n").splitlines()[-count:])
