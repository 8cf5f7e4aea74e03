"""Debian's archive: which version of a package there is, fetched, unpacked.

The system's own package lists have the packages of its own release. Those of other
releases are asked for in lists of their own, from the same mirror, which need no root.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from cdmtrace.errors import LabError, apt_hint
from cdmtrace.lab.paths import write_atomically
from cdmtrace.lab.processes import tail

if TYPE_CHECKING:
    from collections.abc import Callable

    from cdmtrace.lab.paths import Layout


MAIN: Final = "Debian"
SECURITY: Final = "Debian-Security"
"""What archives call themselves (``Label`` in their Release file)."""
KEYRING: Final = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
"""Of the package debian-archive-keyring, which any Debian has."""

ARCHIVED: Final = ("bullseye",)
"""Releases that get no updates any more: what they say of themselves may run out."""

_TARGET = "$(ORIGIN)|$(LABEL)|$(REPO_URI)"
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


def parse_targets(output: str) -> dict[str, str]:
    """Return label -> mirror, of what ``apt-get indextargets`` tells by our format.

    Of several mirrors, the first.
    """
    mirrors: dict[str, str] = {}
    for line in output.splitlines():
        origin, label, mirror = line.split("|", 2)
        if origin == "Debian":
            mirrors.setdefault(label, mirror)
    return mirrors


@dataclass(frozen=True, slots=True)
class Archive:
    """Packages of the suites, by lists that are kept in ``directory``.

    Without suites: what the system's own lists have, which only root can refresh.
    """

    directory: Path
    suites: tuple[str, ...] = ()

    @classmethod
    def of(cls, suites: tuple[str, ...], layout: Layout) -> Archive:
        """Return the archive of these suites, its lists in the cache."""
        return cls(layout.lists / "-".join(suites), suites)

    def candidate_version(self, package: str, series: str = "") -> str | None:
        """Return the newest version of ``package`` in that series, or None."""
        output = self._ask("madison", package)
        return parse_madison(output, package, series)

    def choose_version(
        self,
        package: str,
        stage: Callable[[str], None],
        *,
        fresh: bool,
        series: str = "",
    ) -> str:
        """Return the version of ``package`` to use, asking apt: the newest of a series.

        With ``fresh`` the package lists are refreshed first, otherwise only if they do
        not know the package. Raises :class:`LabError`.
        """
        version = None if fresh else self.candidate_version(package, series)
        if version is None:
            self.update(stage)
            version = self.candidate_version(package, series)
        if version is None:
            which = f"{package} {series}*" if series else package
            where = " ".join(self.suites) or "this system's package lists"
            raise LabError(
                f"no package {which} in {where}",
                hint=f"apt-get update must find {where}: see {self._sources}"
                if self.suites
                else "use Debian 12, or add its archive to the apt sources",
            )
        return version

    def depends(self, package: str, version: str) -> list[str]:
        """Return what that version of ``package`` depends on."""
        return parse_depends(self._ask("show", f"{package}={version}"))

    def download(
        self,
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
        command = ["apt-get", *self._options(), "download", "-q"]
        said = []
        for again in (True, False):
            result = _run([*command, f"{package}={version}"], directory)
            found = next(directory.glob(f"{package}_*.deb"), None)
            if result.returncode == 0 and found is not None:
                return found
            said.append(tail(result.stderr or result.stdout, 10))
            if again:
                # The lists may be older than the archive.
                try:
                    self.update(stage)
                except LabError as error:
                    said.append(str(error))
                    break
        raise LabError(
            f"cannot download {package} {version}",
            details="\n".join(said),
            hint="cdmtrace lab build --update"
            + (f" --kernel {kernel}" if kernel else ""),
        )

    def update(self, stage: Callable[[str], None]) -> None:
        """Refresh the package lists, the system's own through sudo unless root.

        Raises :class:`LabError`.
        """
        command = ["apt-get", *self._options(), "update", "-q"]
        if self.suites:
            stage(f"refreshing the package lists of {' '.join(self.suites)}")
            self._arrange(stage)
        else:
            stage("refreshing the package lists (apt-get update)")
            if os.geteuid() != 0:
                # Never asks: a password prompt in the middle of a build helps nobody.
                command = ["sudo", "-n", *command]
        try:
            result = _run(command)
        except FileNotFoundError as error:
            raise LabError(
                "the package lists are missing", hint="apt-get update (as root)"
            ) from error
        if result.returncode != 0:
            raise LabError(
                "apt-get update failed",
                details=tail(result.stderr or result.stdout, 10),
                hint=f"rm -r {self.directory}, and again; the mirrors are in "
                f"{self._sources}, the keys in the package debian-archive-keyring"
                if self.suites
                else "sudo apt-get update",
            )

    def _ask(self, *words: str) -> str:
        if shutil.which("apt-cache") is None:
            raise LabError(
                "kernels come from Debian's archive, and there is no apt here",
                hint="run the laboratory on Debian 12",
            )
        return _run(["apt-cache", *self._options(), *words]).stdout

    @property
    def _sources(self) -> Path:
        return self.directory / "sources.list"

    def _options(self) -> list[str]:
        """Return what makes apt use these lists, and nothing of the system's."""
        if not self.suites:
            return []
        settings = {
            "Dir::Etc::SourceList": self._sources,
            "Dir::Etc::SourceParts": "/dev/null",
            "Dir::State": self.directory,
            "Dir::State::Status": "/dev/null",
            "Dir::Cache": self.directory,
            # No other user can write there.
            "APT::Sandbox::User": "root",
            # Else a mirror that cannot be reached is no error.
            "APT::Update::Error-Mode": "any",
            "Acquire::Languages": "none",
        }
        return [word for n, text in settings.items() for word in ("-o", f"{n}={text}")]

    def _arrange(self, stage: Callable[[str], None]) -> None:
        """Write the sources: the system's mirrors, with our suites."""
        mirrors = _mirrors()
        if not mirrors:
            # As in a container that has just been made.
            Archive(self.directory).update(stage)
            mirrors = _mirrors()
        lines = []
        for suite in self.suites:
            label = SECURITY if suite.endswith("-security") else MAIN
            if mirror := mirrors.get(label):
                options = f"arch=amd64 signed-by={KEYRING}"
                if suite.startswith(ARCHIVED):
                    options += " check-valid-until=no"
                lines.append(f"deb [{options}] {mirror} {suite} main\n")
        if not lines:
            raise LabError(
                "no mirror of Debian's archive in this system's package lists",
                hint="sudo apt-get update",
            )
        for part in (Path("lists", "partial"), Path("archives", "partial")):
            (self.directory / part).mkdir(parents=True, exist_ok=True)
        write_atomically(self._sources, "".join(lines).encode())


def _mirrors() -> dict[str, str]:
    command = ["apt-get", "indextargets", "--format", _TARGET, "Created-By: Packages"]
    return parse_targets(_run(command).stdout)


def _run(
    command: list[str], directory: Path | None = None
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, cwd=directory, text=True, capture_output=True, check=False
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
