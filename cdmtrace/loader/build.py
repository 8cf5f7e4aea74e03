"""Compile the BPF program once, for all kernels: ``python -m cdmtrace.loader.build``.

The object lies beside the sources. What it was made of is written in it, so that one
which is left from other sources is never taken for theirs.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final

from cdmtrace.errors import CdmtraceError, RecordError, apt_hint
from cdmtrace.loader import settings
from cdmtrace.loader.sources import BPF_DIRECTORY, SOURCES, WATCH

OBJECT: Final = "cdmtrace.bpf.o"
PRELUDE: Final = "libbpf.h"
MODULE: Final = "cdmtrace.loader.build"

_FLAGS: Final = (
    *("-target", "bpf", "-O2", "-g", "-mcpu=v2"),
    *("-Wall", "-Wextra", "-Werror", "-Wno-unused-parameter", "-Wno-unused-function"),
    # Where Debian has asm/ptrace.h, of the one machine that this is for.
    "-I/usr/include/x86_64-linux-gnu",
)
_MARK: Final = "cdmtrace sources "


class ObjectMissing(RecordError):
    """There is no compiled program, or one of other sources (exit status 125)."""


class CannotBuild(RecordError):
    """The program cannot be compiled here (exit status 125)."""


def text() -> str:
    """Return the whole program, as clang gets it."""
    sources = [
        f'#line 1 "{name}"\n{(BPF_DIRECTORY / name).read_text()}'
        for name in (PRELUDE, *SOURCES, WATCH)
    ]
    whole = "\n".join([settings.header(), *sources, "#pragma clang attribute pop\n"])
    made_of = " ".join([*_FLAGS, whole])
    mark = f"{_MARK}{hashlib.sha256(made_of.encode()).hexdigest()}"
    return f'{whole}\nconst char sources[] SEC("made_of") = "{mark}";\n'


def build(output: Path) -> None:
    """Compile the program into a file. Raises CannotBuild."""
    clang = shutil.which("clang")
    if clang is None:
        raise CannotBuild("clang is missing", hint=apt_hint("clang"))
    try:
        _compile(clang, output)
    except OSError as error:
        raise CannotBuild(f"{output}: cannot be written: {error.strerror}") from error


def _compile(clang: str, output: Path) -> None:
    with tempfile.TemporaryDirectory(dir=output.parent) as folder:
        source, compiled = Path(folder, "cdmtrace.bpf.c"), Path(folder, OBJECT)
        source.write_text(text())
        words = [clang, *_FLAGS, "-c", "-o", str(compiled), str(source)]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        if done.returncode:
            raise CannotBuild(
                "clang cannot compile the BPF program",
                details="\n".join(done.stderr.splitlines()[:30]),
                hint=apt_hint("clang", "libc6-dev"),
            )
        compiled.replace(output)


def find(path: Path = BPF_DIRECTORY / OBJECT) -> bytes:
    """Return the compiled program. Raises ObjectMissing."""
    # -I: root loads nothing from the current directory.
    mend = f"sudo {sys.executable} -I -m {MODULE}"
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ObjectMissing(
            f"{path}: the BPF program is not compiled: {error.strerror}", hint=mend
        ) from error
    mark = text().rpartition(_MARK)[2].partition('"')[0]
    if f"{_MARK}{mark}".encode() not in data:
        raise ObjectMissing(f"{path} was compiled of other sources", hint=mend)
    return data


def is_there() -> bool:
    """Return whether there is a compiled program of these sources."""
    try:
        find()
    except ObjectMissing:
        return False
    return True


def main() -> int:
    """Compile it, unless it is there."""
    path = BPF_DIRECTORY / OBJECT
    try:
        find(path)
    except ObjectMissing:
        try:
            build(path)
        except CdmtraceError as error:
            sys.stderr.write(f"{error}\n")
            return int(error.exit_status)
    return 0


if __name__ == "__main__":
    sys.exit(main())
