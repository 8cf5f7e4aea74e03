"""Debian's archive: which version of a package there is, fetched, unpacked."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

from cdmtrace.errors import LabError, apt_hint
from cdmtrace.lab.processes import tail

if TYPE_CHECKING:
    from collections.abc import Callable


_PACKAGE_OF = {"depmod": "kmod", "dpkg-deb": "dpkg"}


def parse_madison(output: str, package: str, series: str = "") -> str | None:
    """Return the newest version that ``apt-cache madison`` lists for ``package``.

    Of those that begin with ``series``.
    """
    for line in output.splitlines():
        fields = [field.strip() for field in line.split("|")]
        # "Sources" lines offer the source package, which is something else.
        if len(fields) != 3 or fields[2].endswith("Sources"):
            continue
        if fields[0] == package and fields[1].startswith(series):
            return fields[1]
    return None


def candidate_version(package: str, series: str = "") -> str | None:
    """Return the newest version of ``package`` in that series, or None."""
    if shutil.which("apt-cache") is None:
        raise LabError(
            "kernels come from Debian's archive, and there is no apt here",
            hint="run the laboratory on Debian 12",
        )
    result = subprocess.run(
        ["apt-cache", "madison", package], text=True, capture_output=True, check=False
    )
    return parse_madison(result.stdout, package, series)


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


def choose_version(
    package: str, stage: Callable[[str], None], *, fresh: bool, series: str = ""
) -> str:
    """Return the version of ``package`` to use, asking apt: the newest of a series.

    With ``fresh`` the package lists are refreshed first, otherwise only if they do
    not know the package.
    """
    if fresh:
        update_lists(stage)
    version = candidate_version(package, series)
    if version is None and not fresh:
        update_lists(stage)
        version = candidate_version(package, series)
    if version is None:
        which = f"{package} {series}*" if series else package
        raise LabError(
            f"no package {which} in this system's package lists",
            hint="use Debian 12, or add its archive to the apt sources",
        )
    return version


def parse_depends(output: str) -> list[str]:
    """Return the packages that the first record of ``apt-cache show`` depends on.

    Of alternatives, the first.
    """
    for line in output.splitlines():
        if not line:
            break
        name, _, value = line.partition(": ")
        if name == "Depends":
            return re.findall(r"(?:^|, )([a-z0-9][a-z0-9.+-]+)", value)
    return []


def depends(package: str, version: str) -> list[str]:
    """Return what that version of ``package`` depends on."""
    result = subprocess.run(
        ["apt-cache", "show", f"{package}={version}"],
        text=True,
        capture_output=True,
        check=False,
    )
    return parse_depends(result.stdout)


def download(
    package: str,
    version: str,
    directory: Path,
    stage: Callable[[str], None],
    *,
    kernel: str = "",
) -> Path:
    """Fetch the package's file into ``directory``. Raises :class:`LabError`.

    kernel: what it is for, to say how to take a newer one.
    """
    command = ["apt-get", "download", "-q", f"{package}={version}"]
    said = []
    for again in (True, False):
        result = subprocess.run(
            command, cwd=directory, text=True, capture_output=True, check=False
        )
        found = next(directory.glob(f"{package}_*.deb"), None)
        if result.returncode == 0 and found is not None:
            return found
        said.append(tail(result.stderr or result.stdout, 10))
        if again:
            # The lists may be older than the archive.
            try:
                update_lists(stage)
            except LabError as error:
                said.append(str(error))
                break
    raise LabError(
        f"cannot download {package} {version}",
        details="\n".join(said),
        hint="cdmtrace lab build --update" + (f" --kernel {kernel}" if kernel else ""),
    )


def run_tool(command: list[str], directory: Path) -> None:
    """Run ``command`` in ``directory``. Raises :class:`LabError` if it fails."""
    # depmod is an administrator's command, and not on everybody's PATH.
    path = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"])
    found = shutil.which(command[0], path=path)
    if found is None:
        raise LabError(
            f"{command[0]} is not installed",
            hint=apt_hint(_PACKAGE_OF.get(command[0], command[0])),
        )
    result = subprocess.run(
        [found, *command[1:]],
        cwd=directory,
        text=True,
        capture_output=True,
        check=False,
    )
    if result.returncode != 0:
        raise LabError(
            f"{command[0]} failed ({result.returncode})",
            details=tail(result.stderr, 10),
        )
