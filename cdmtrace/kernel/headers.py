"""Find, or unpack, the headers of the running kernel.

bcc compiles with them. It looks in /lib/modules/RELEASE/build; where that is missing
and the kernel carries its headers (CONFIG_IKHEADERS), it would unpack them itself,
but version 0.26 fails at that, so it is done here.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from cdmtrace.errors import RecordError

KHEADERS: Final = Path("/sys/kernel/kheaders.tar.xz")
SOURCE_VARIABLE: Final = "BCC_KERNEL_SOURCE"
"""Where bcc looks first."""


class HeadersMissing(RecordError):
    """The running kernel's headers were not found (exit status 125)."""


def find(release: str | None = None) -> Path | None:
    """Return the headers' directory, KHEADERS if they are in the kernel, or None."""
    release = release or os.uname().release
    given = os.environ.get(SOURCE_VARIABLE)
    if given:
        return Path(given)
    installed = Path(f"/lib/modules/{release}/build")
    if (installed / "include").is_dir():
        return installed
    return KHEADERS if KHEADERS.exists() else None


def roots(directory: Path) -> tuple[Path, ...]:
    """Return where the headers really are: Debian splits them over two packages.

    The directory of the architecture holds a Makefile that includes that of the
    common one.
    """
    makefile = directory / "Makefile"
    if makefile.is_file():
        for line in makefile.read_text(errors="replace").splitlines():
            if line.startswith("include ") and line.endswith("/Makefile"):
                place = line.removeprefix("include ").removesuffix("/Makefile")
                # Not from where we are: make reads it in the directory itself.
                common = directory / place
                if common.is_dir() and common != directory:
                    return (directory, common)
    return (directory,)


def require(release: str | None = None) -> Path:
    """Return what find() does. Raises HeadersMissing where that is nothing."""
    release = release or os.uname().release
    found = find(release)
    if found is None:
        raise HeadersMissing(
            f"the headers of kernel {release} were not found in "
            f"/lib/modules/{release}/build or {KHEADERS}",
            hint=f"sudo apt-get install -y linux-headers-{release}, or boot a kernel "
            f"with CONFIG_IKHEADERS=y, or set {SOURCE_VARIABLE}",
        )
    if not found.exists():
        raise HeadersMissing(
            f"{SOURCE_VARIABLE} names {found}, which does not exist",
            hint=f"unset {SOURCE_VARIABLE}",
        )
    return found


@contextmanager
def available(*wanted: Path) -> Iterator[Path]:
    """Yield a directory with the headers; bcc is told of it. Raises HeadersMissing.

    wanted: those that will do, such as include/linux/mm.h; none: all. To unpack only
    some of what the kernel carries takes less time.
    """
    found = require()
    if found != KHEADERS:
        yield found
        return
    with tempfile.TemporaryDirectory(prefix="cdmtrace-headers-") as directory:
        # With --occurrence, tar ends where it has them all.
        some = ["--occurrence=1", *(f"./{path}" for path in wanted)] if wanted else []
        words = ["tar", "--extract", "--xz", "--file", str(KHEADERS), "-C", directory]
        try:
            subprocess.run(
                [*words, *some],
                check=True,
                capture_output=True,
                text=True,
            )
        except (OSError, subprocess.CalledProcessError) as error:
            raise HeadersMissing(
                f"{KHEADERS} cannot be unpacked: "
                f"{getattr(error, 'stderr', None) or error}",
                hint="sudo apt-get install -y tar xz-utils",
            ) from error
        os.environ[SOURCE_VARIABLE] = directory
        try:
            yield Path(directory)
        finally:
            del os.environ[SOURCE_VARIABLE]
