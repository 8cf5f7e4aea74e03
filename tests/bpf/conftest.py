"""Machines on which the program's handlers run; see nativemachine.py."""

from __future__ import annotations

import functools
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
import recording
from nativemachine import NATIVE, NUMBERS, Machine

from cdmtrace.loader.sources import WATCH, program_text


@pytest.fixture(scope="session")
def build(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Return what compiles the program, once for each set of numbers."""

    @functools.cache
    def compiled(**numbers: int) -> Path:
        folder = tmp_path_factory.mktemp("native")
        program, library = folder / "program.c", folder / "native.so"
        more = (WATCH,) if "WATCHES" in numbers else ()
        program.write_text(program_text(NUMBERS | numbers, more))
        compiler = next(filter(None, map(shutil.which, ("cc", "gcc", "clang"))), None)
        assert compiler, "no C compiler: apt-get install gcc"
        # Not optimised: that takes three times as long, and a test has microseconds.
        flags = ["-O0", "-shared", "-fPIC", f'-DPROGRAM="{program}"']
        subprocess.run([compiler, *flags, "-o", library, NATIVE], check=True)
        return library

    return compiled


@pytest.fixture
def boot(build: Callable[..., Path], tmp_path: Path) -> Callable[..., Machine]:
    """Return what makes a machine, each with variables of its own."""

    def booted(**numbers: int) -> Machine:
        folder = tempfile.mkdtemp(dir=tmp_path)
        return Machine(Path(shutil.copy(build(**numbers), folder)))

    return booted


@pytest.fixture
def machine(boot: Callable[..., Machine]) -> Machine:
    return boot()


@pytest.fixture
def recording_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have `record` take place in the test's directory, with a stand-in for probes."""
    recording.prepare(tmp_path, monkeypatch)
