"""Kernel modules that scenarios need, for kernels that nobody has patched."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from cdmtrace.errors import LabError
from cdmtrace.lab import toolchain
from cdmtrace.lab.machine import check_plain
from cdmtrace.lab.paths import PACKAGE_DIR
from cdmtrace.lab.processes import signals_as_errors, tail

if TYPE_CHECKING:
    from cdmtrace.lab.kernel import Kernel
    from cdmtrace.lab.paths import Layout
    from cdmtrace.lab.scenarios import Scenario

MODULE_DIR = PACKAGE_DIR / "modules"
HINT = "--kernel debian-6.1"
"""A kernel that modules can be built for."""

_TOOLS = (
    toolchain.Tool(command="make", package="make"),
    toolchain.Tool(command="gcc", package="gcc"),
)
_ENVIRONMENT = {
    "LC_ALL": "C",
    # Debian's headers ask for the very compiler of the kernel, by name. For a module
    # another version will do.
    "DEBIAN_KERNEL_NO_CC_VERSION_CHECK": "1",
}


def needed_by(scenario: Scenario) -> Path | None:
    """Return the source of the module that a scenario needs, None if it needs none.

    It has the scenario's name, and they share a header of that name.
    """
    path = MODULE_DIR / f"{scenario.name}.c"
    return path if path.is_file() else None


def check(scenario: Scenario, kernel: Kernel) -> Path:
    """Return the headers of a kernel, for a scenario that needs a module.

    Raises :class:`LabError` where there are none.
    """
    headers = kernel.headers
    if headers is None:
        raise LabError(
            f"the scenario {scenario.name} needs a module, and there are no headers to "
            f"build it with beside {kernel.image}",
            hint=HINT,
        )
    return headers.resolve()


def build(module: Path, scenario: Scenario, kernel: Kernel, layout: Layout) -> Path:
    """Return the module, compiled for a kernel unless that content was before.

    Raises :class:`LabError` where there are no headers of the kernel, the module does
    not compile, or make cannot be given the path.
    """
    headers = check(scenario, kernel)
    check_plain(layout.programs)
    inputs = [module, scenario.source.with_suffix(".h")]
    digest = hashlib.sha256(f"{headers}\0{toolchain.compiler_version()}\0".encode())
    for path in inputs:
        digest.update(path.read_bytes() + b"\0")
    target = layout.programs / digest.hexdigest()[:16] / f"{module.stem}.ko"
    if target.is_file():
        return target
    toolchain.require_tools(_TOOLS, "a module")
    layout.programs.mkdir(parents=True, exist_ok=True)
    with (
        signals_as_errors(),
        tempfile.TemporaryDirectory(dir=layout.programs, prefix=".ko-") as scratch,
    ):
        for path in inputs:
            shutil.copy(path, scratch)
        (Path(scratch) / "Kbuild").write_text(f"obj-m := {module.stem}.o\n")
        result = subprocess.run(
            # Of 5.10 they name a compiler that Debian 12 has not got.
            ["make", "-C", str(headers), f"M={scratch}", "CC=gcc", "modules"],
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            check=False,
            env={"PATH": os.environ.get("PATH", os.defpath), **_ENVIRONMENT},
        )
        if result.returncode != 0:
            raise LabError(
                f"module {module.stem} does not compile",
                details=tail(result.stdout, 30),
            )
        target.parent.mkdir(exist_ok=True)
        (Path(scratch) / target.name).rename(target)
    return target
