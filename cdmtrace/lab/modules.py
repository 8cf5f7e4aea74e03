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
from cdmtrace.lab.paths import PACKAGE_DIR
from cdmtrace.lab.processes import tail

if TYPE_CHECKING:
    from cdmtrace.lab.kernel import Kernel
    from cdmtrace.lab.paths import Layout
    from cdmtrace.lab.scenarios import Scenario

MODULE_DIR = PACKAGE_DIR / "modules"

_TOOLS = (
    toolchain.Tool(command="make", package="make"),
    toolchain.Tool(command="gcc", package="gcc"),
)


def needed_by(scenario: Scenario) -> Path | None:
    """Return the source of the module that a scenario needs, None if it needs none.

    It has the scenario's name, and they share a header of that name.
    """
    path = MODULE_DIR / f"{scenario.name}.c"
    return path if path.is_file() else None


def build(module: Path, scenario: Scenario, kernel: Kernel, layout: Layout) -> Path:
    """Return the module, compiled for a kernel unless that content was before.

    Raises :class:`LabError` where there are no headers of the kernel, or the module
    does not compile.
    """
    headers = kernel.headers
    if headers is None:
        raise LabError(
            f"the scenario {scenario.name} needs a module, and kernel "
            f"{kernel.directory.name} has no headers here to build it with",
            hint="--kernel stock-6.1",
        )
    inputs = [module, scenario.source.with_suffix(".h")]
    digest = hashlib.sha256(kernel.directory.name.encode() + b"\0")
    for path in inputs:
        digest.update(path.read_bytes() + b"\0")
    target = layout.programs / digest.hexdigest()[:16] / f"{module.stem}.ko"
    if target.is_file():
        return target
    toolchain.require_tools(_TOOLS)
    layout.programs.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=layout.programs, prefix=".ko-") as scratch:
        for path in inputs:
            shutil.copy(path, scratch)
        (Path(scratch) / "Kbuild").write_text(f"obj-m := {module.stem}.o\n")
        result = subprocess.run(
            ["make", "-C", str(headers.resolve()), f"M={scratch}", "modules"],
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            check=False,
            env={"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C"},
        )
        if result.returncode != 0:
            raise LabError(
                f"module {module.stem} does not compile",
                details=tail(result.stdout, 30),
            )
        target.parent.mkdir(exist_ok=True)
        (Path(scratch) / target.name).rename(target)
    return target
