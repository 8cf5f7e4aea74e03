"""Debian's kernel source: which version is in use, fetched, unpacked once."""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from cdmtrace.errors import LabError
from cdmtrace.lab import debian
from cdmtrace.lab.paths import exclusive, write_atomically

if TYPE_CHECKING:
    from collections.abc import Callable

    from cdmtrace.lab.paths import Layout
    from cdmtrace.lab.specs import KernelSpec


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
    with exclusive(layout.index.with_suffix(".lock")):
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


def fetch(
    spec: KernelSpec, layout: Layout, version: str, stage: Callable[[str], None]
) -> Path:
    """Return the unpacked source tree of a kernel's package, fetching it if need be.

    The caller holds the build lock.  The tree appears under its name only when it
    is complete; it is never written to afterwards.
    """
    package = spec.package
    target = source_dir(layout, package, version)
    if target.is_dir():
        return target
    layout.sources.mkdir(parents=True, exist_ok=True)
    for stale in layout.sources.glob(".unpack-*"):
        shutil.rmtree(stale, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=".unpack-", dir=layout.sources) as scratch:
        directory = Path(scratch)
        stage(f"fetching {package} {version}")
        archive = debian.Archive.of(spec.suites, layout)
        file = archive.download(package, version, directory, stage)
        stage(f"unpacking {package} {version}")
        debian.run_tool(["dpkg-deb", "-x", file.name, "deb"], directory)
        file.unlink()
        tarball = directory / "deb" / "usr" / "src" / f"{package}.tar.xz"
        if not tarball.is_file():
            raise LabError(f"{package} {version} holds no {tarball.name}")
        debian.run_tool(["tar", "-xJf", str(tarball)], directory)
        (directory / package).rename(target)
    return target
