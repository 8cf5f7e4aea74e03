"""The kernels that the laboratory can boot, and the key of those that it builds."""

from __future__ import annotations

import difflib
import hashlib
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cdmtrace.errors import LabError
from cdmtrace.lab.paths import PACKAGE_DIR

if TYPE_CHECKING:
    from pathlib import Path

DEFAULT_KERNEL = "cdm-6.1"

# Raise it when the way of building changes what comes out.
_RECIPE = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class KernelSpec:
    """What a kernel is made of: a source package, patches, and configuration.

    ``patches`` is a directory; its ``*.patch`` files are applied in the order of
    their names.  ``fragments`` are laid over tinyconfig; later ones win.  ``suites``
    of Debian's archive have the source; none: those that this system has lists of.
    """

    name: str
    summary: str
    package: str
    patches: Path
    fragments: tuple[Path, ...]
    suites: tuple[str, ...] = ()

    def patch_files(self) -> list[Path]:
        """Return the patch files in the order in which they apply."""
        files = sorted(self.patches.glob("*.patch"))
        if not files:
            raise LabError(f"no patches for kernel {self.name} in {self.patches}")
        return files

    def fragment_texts(self) -> list[str]:
        """Return the configuration fragments, in order."""
        return [fragment.read_text() for fragment in self.fragments]

    def content(self, version: str) -> str:
        """Return the hash of all that the kernel is made of but the compiler."""
        parts = {
            "recipe": _RECIPE,
            "name": self.name,
            "source": [self.package, version],
            "patches": [
                [path.name, hashlib.sha256(path.read_bytes()).hexdigest()]
                for path in self.patch_files()
            ],
            "fragments": self.fragment_texts(),
        }
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


@dataclass(frozen=True, kw_only=True, slots=True)
class PackagedSpec:
    """A kernel that Debian has built.

    suites: where it is in Debian's archive. series: how its version begins. image,
    headers: packages that depend on those of the newest build, which have the same
    names with the release in place of ``flavour``.
    """

    name: str
    summary: str
    suites: tuple[str, ...]
    series: str
    image: str = "linux-image-amd64"
    headers: str = "linux-headers-amd64"
    flavour: str = "amd64"


def directory_name(spec: KernelSpec, version: str, compiler: str) -> str:
    """Return the name of the directory of a finished kernel.

    It holds the content and the compiler apart, so that a kernel can be found
    without a compiler at hand.
    """
    compiler_hash = hashlib.sha256(compiler.encode()).hexdigest()
    return f"{spec.name}-{spec.content(version)[:16]}-{compiler_hash[:8]}"


_PATCHES_6_1 = PACKAGE_DIR / "patches" / "6.1"
_CONFIGS = PACKAGE_DIR / "configs"

BUILT: dict[str, KernelSpec] = {
    spec.name: spec
    for spec in (
        KernelSpec(
            name=DEFAULT_KERNEL,
            summary="Debian's 6.1 with the CDM series and its quirks",
            package="linux-source-6.1",
            patches=_PATCHES_6_1,
            fragments=(_CONFIGS / "6.1.config",),
        ),
        KernelSpec(
            name="foreign-6.1",
            summary="the same, with another tag bit and inlined tagging helpers",
            package="linux-source-6.1",
            patches=_PATCHES_6_1,
            fragments=(_CONFIGS / "6.1.config", _CONFIGS / "foreign.config"),
        ),
        KernelSpec(
            name="cdm-5.10",
            summary="Debian 11's 5.10 with the same series and quirks",
            package="linux-source-5.10",
            patches=PACKAGE_DIR / "patches" / "5.10",
            fragments=(_CONFIGS / "6.1.config", _CONFIGS / "5.10.config"),
            suites=("bullseye", "bullseye-security"),
        ),
        KernelSpec(
            name="cdm-6.12",
            summary="Debian 13's 6.12 with the same series and quirks",
            package="linux-source-6.12",
            patches=PACKAGE_DIR / "patches" / "6.12",
            fragments=(_CONFIGS / "6.1.config", _CONFIGS / "6.12.config"),
            suites=("trixie", "trixie-security"),
        ),
    )
}

PACKAGED: dict[str, PackagedSpec] = {
    spec.name: spec
    for spec in (
        PackagedSpec(
            name=f"debian-{series}",
            summary=f"the kernel of {release}, as Debian has built it",
            suites=suites,
            series=f"{series}.",
        )
        for series, release, suites in (
            ("5.10", "Debian 11", ("bullseye", "bullseye-security")),
            ("6.1", "Debian 12", ("bookworm", "bookworm-security")),
            ("6.12", "Debian 13", ("trixie", "trixie-security")),
            ("7", "Debian unstable", ("sid",)),
        )
    )
}

Spec = KernelSpec | PackagedSpec

KERNELS: dict[str, Spec] = {**BUILT, **PACKAGED}


def find_spec(name: str) -> Spec:
    """Return the kernel called ``name``, or raise :class:`LabError`."""
    try:
        return KERNELS[name]
    except KeyError:
        close = difflib.get_close_matches(name, KERNELS, n=1)
        suggestion = f"; did you mean {close[0]}?" if close else ""
        raise LabError(
            f"unknown kernel {name!r}{suggestion}", hint="cdmtrace lab list"
        ) from None
