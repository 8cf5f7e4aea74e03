"""Scenario programs: small C programs that run in a guest and judge themselves.

Each takes ``--quirks LIST`` (``none``, or names separated by commas), prints TAP on
stdout and exits 0 or 1.
"""

from __future__ import annotations

import difflib
import hashlib
import os
import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cdmtrace.errors import LabError
from cdmtrace.lab import toolchain
from cdmtrace.lab.paths import PACKAGE_DIR
from cdmtrace.lab.processes import tail

if TYPE_CHECKING:
    from cdmtrace.lab.paths import Layout

SCENARIO_DIR = PACKAGE_DIR / "scenarios"

_FLAGS = ("-O2", "-g", "-std=gnu11", "-Wall", "-Wextra", "-Werror", "-pthread")
_COMPILER = (
    toolchain.Tool(command="gcc", package="gcc"),
    toolchain.Tool(header="stdlib.h", package="libc6-dev"),
)
_COMMENT = re.compile(r"/\*(.*?)\*/", re.DOTALL)


@dataclass(frozen=True, kw_only=True, slots=True)
class Scenario:
    """A scenario's name, its C source and what its first comment says of it."""

    name: str
    source: Path
    summary: str


def summary_of(text: str) -> str:
    """Return the first sentence or line of the first comment that says something.

    The licence line that stands before it is passed over.
    """
    for match in _COMMENT.finditer(text):
        for raw in match[1].splitlines():
            line = raw.strip().lstrip("*").strip()
            if line and not line.startswith("SPDX-"):
                return line
    return ""


def scenarios(directory: Path = SCENARIO_DIR) -> dict[str, Scenario]:
    """Return the scenarios by name, sorted."""
    return {
        path.stem: Scenario(
            name=path.stem, source=path, summary=summary_of(path.read_text())
        )
        for path in sorted(directory.glob("*.c"))
    }


def find_scenario(name: str, directory: Path = SCENARIO_DIR) -> Scenario:
    """Return the scenario called ``name``, or raise :class:`LabError`."""
    known = scenarios(directory)
    if name not in known:
        close = difflib.get_close_matches(name, known, n=1)
        suggestion = f"; did you mean {close[0]}?" if close else ""
        raise LabError(
            f"unknown scenario {name!r}{suggestion}", hint="cdmtrace lab list"
        )
    return known[name]


def compile_scenario(scenario: Scenario, layout: Layout) -> Path:
    """Return the compiled program, compiling it unless that content was before.

    Linked statically where that is possible, so that it starts fast in a guest
    whose libraries come over 9p.
    """
    inputs = [scenario.source, *sorted(scenario.source.parent.glob("*.h"))]
    digest = hashlib.sha256()
    for text in (" ".join(_FLAGS), toolchain.compiler_version() or ""):
        digest.update(text.encode() + b"\0")
    for path in inputs:
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    # Its own name and nothing else: that is the comm that reports will show.
    program = layout.programs / digest.hexdigest()[:16] / scenario.name
    if program.is_file():
        return program
    toolchain.require_tools(_COMPILER, "a scenario")
    layout.programs.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=layout.programs, prefix=".cc-") as scratch:
        output = Path(scratch) / "program"
        complaint = ""
        for extra in (["-static"], []):
            result = subprocess.run(
                ["gcc", *_FLAGS, *extra, "-o", str(output), str(scenario.source)],
                text=True,
                capture_output=True,
                check=False,
                env={**os.environ, "LC_ALL": "C"},
            )
            complaint = result.stderr
            if result.returncode == 0:
                program.parent.mkdir(exist_ok=True)
                output.rename(program)
                return program
    raise LabError(
        f"scenario {scenario.name} does not compile", details=tail(complaint, 30)
    )
