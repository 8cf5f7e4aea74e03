"""Kernels that Debian has built: fetched, unpacked, and nothing installed.

The packages' files lie in one directory of the cache, which is a small root of its own:
virtme-ng finds the modules in its ``lib/modules``, and gives them to the guest as
``/lib/modules/RELEASE``; ``build`` there leads to the headers, for bcc and for modules
of ours.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from cdmtrace.errors import LabError
from cdmtrace.lab import debian, source
from cdmtrace.lab.kernel import IMAGE, Kernel
from cdmtrace.lab.paths import exclusive
from cdmtrace.lab.processes import signals_as_errors

if TYPE_CHECKING:
    from collections.abc import Callable

    from cdmtrace.lab.kernel import Progress
    from cdmtrace.lab.paths import Layout
    from cdmtrace.lab.specs import PackagedSpec


# Raise it when the way of arranging changes what comes out.
_RECIPE = 1


def _directory(spec: PackagedSpec, version: str, layout: Layout) -> Path:
    return layout.kernels / f"{spec.name}-{version}-{_RECIPE}"


def find(spec: PackagedSpec, layout: Layout) -> Kernel | None:
    """Return the kernel that was fetched, or None. Asks neither apt nor the network."""
    version = source.pinned_version(layout, spec.name)
    if version is None:
        return None
    directory = _directory(spec, version, layout)
    return Kernel(directory=directory) if (directory / IMAGE).is_file() else None


def fetch(
    spec: PackagedSpec, layout: Layout, *, update: bool, progress: Progress
) -> Kernel:
    """Return the kernel, fetching it if need be. Raises :class:`LabError`.

    With ``update`` the package lists are refreshed and the newest one is taken.
    """
    if not update and (kernel := find(spec, layout)):
        return kernel
    with (
        signals_as_errors(),
        # Not the lock of the builds: one of them may take minutes.
        exclusive(
            layout.kernels / ".lock",
            lambda: progress.stage("waiting for another download to end"),
        ),
    ):
        if not update and (kernel := find(spec, layout)):
            return kernel
        archive = debian.Archive.of(spec.suites, layout)
        version = archive.choose_version(
            spec.image, progress.stage, fresh=update, series=spec.series
        )
        target = _directory(spec, version, layout)
        if not (target / IMAGE).is_file():
            _unpack(spec, archive, version, target, progress.stage)
        # Pinned only now, so that a failed download leaves the old one in use.
        source.pin_version(layout, spec.name, version)
        return Kernel(directory=target)


def _unpack(
    spec: PackagedSpec,
    archive: debian.Archive,
    version: str,
    target: Path,
    stage: Callable[[str], None],
) -> None:
    packages = _packages(spec, archive, version)
    release = packages[0][0].removeprefix(spec.image.removesuffix(spec.flavour))
    for stale in target.parent.glob(".unpack-*"):
        shutil.rmtree(stale, ignore_errors=True)
    # What is interrupted may still be writing there.
    with tempfile.TemporaryDirectory(
        prefix=".unpack-", dir=target.parent, ignore_cleanup_errors=True
    ) as scratch:
        directory = Path(scratch)
        root = directory / "root"
        for package, wanted in packages:
            stage(f"fetching {package} {wanted}")
            file = archive.download(package, wanted, directory, stage, kernel=spec.name)
            debian.run_tool(["dpkg-deb", "-x", file.name, root.name], directory)
            file.unlink()
        stage(f"arranging {release}")
        arrange(root, release)
        debian.run_tool(["depmod", "-b", str(root), release], directory)
        record = {"name": spec.name, "packages": packages, "release": release}
        (root / "kernel.json").write_text(json.dumps(record, indent=2) + "\n")
        if target.exists():
            # Only a damaged one can be here: a whole one would have been found.
            shutil.rmtree(target)
        root.rename(target)


def _packages(
    spec: PackagedSpec, archive: debian.Archive, version: str
) -> list[tuple[str, str]]:
    """Return the packages, with their versions: the image first."""
    found = [
        (name, version)
        for package in (spec.image, spec.headers)
        for name in archive.depends(package, version)
        if name.startswith(package.removesuffix(spec.flavour))
    ]
    if len(found) != 2:
        raise LabError(
            f"{spec.image} and {spec.headers} {version} lead to no kernel",
            details=", ".join(name for name, _ in found) or None,
            hint=f"cdmtrace lab build --update --kernel {spec.name}",
        )
    image, headers = (name for name, _ in found)
    release = image.removeprefix(spec.image.removesuffix(spec.flavour))
    # From 7 on the image's package holds nothing: its parts are packages.
    found += [
        (name, version)
        for name in archive.depends(image, version)
        if name.endswith(f"-{release}")
    ]
    for name in archive.depends(headers, version):
        if name.endswith("-common"):
            found.append((name, version))
        elif name.startswith("linux-kbuild-"):
            # Its version may be newer: it is for all builds of that source.
            found.append((name, archive.candidate_version(name) or version))
    return found


def arrange(root: Path, release: str) -> None:
    """Make the unpacked packages find each other where they lie.

    They are made to be unpacked in /: there are links and a Makefile that lead there.
    Afterwards everything leads to its place by a relative path. Raises
    :class:`LabError` where they are not laid out as Debian 11 to 14 do it.
    """
    try:
        _arrange(root, release)
    except (OSError, ValueError) as error:
        raise LabError(
            f"the packages of {release} are not laid out as expected: {error}"
        ) from error


def _arrange(root: Path, release: str) -> None:
    modules = root / "lib" / "modules" / release
    if not modules.is_dir():
        # From Debian 13 on.
        modules.parent.mkdir(parents=True)
        (root / "usr" / modules.relative_to(root)).rename(modules)
    for name, ours in (("vmlinuz", IMAGE), ("config", "config")):
        # From 7 on they lie among the modules.
        places = (root / "boot" / f"{name}-{release}", modules / name)
        next((p for p in places if p.is_file()), places[0]).rename(root / ours)
    for name in ("build", "source"):
        link = modules / name
        place = link.readlink().name
        link.unlink()
        link.symlink_to(Path("../../../usr/src") / place)
    makefile = modules / "build" / "Makefile"
    makefile.write_text(makefile.read_text().replace("/usr/src/", "../"))
