"""Who makes the program: bcc, or libbpf where bcc cannot.

bcc compiles for the kernel that runs, with its headers. libbpf loads what was compiled
before, and needs neither compiler nor headers.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Final

from cdmtrace.errors import RecordError
from cdmtrace.kernel import headers, mmheader
from cdmtrace.kernel.watchpoints import REGISTERS
from cdmtrace.loader import build
from cdmtrace.loader.bcc import BccMissing, BccProgram
from cdmtrace.loader.libbpf import LibbpfProgram
from cdmtrace.loader.program import Program, ProgramLoader, ProgramRejected
from cdmtrace.loader.sources import WATCH
from cdmtrace.loader.watch import WatchLoader

LOADERS: Final = ("auto", "bcc", "libbpf")

Say = Callable[[str], None]


@contextlib.contextmanager
def headers_for(how: str) -> Iterator[Path | None]:
    """Yield the kernel's headers, for who makes the program, and for names of flags.

    how: one of LOADERS. None where there are none and it is not bcc that must have
    them. Raises HeadersMissing.
    """
    wanted = (mmheader.MM_H,) if how == "libbpf" else ()
    with contextlib.ExitStack() as stack:
        found: Path | None = None
        try:
            found = stack.enter_context(headers.available(*wanted))
        except headers.HeadersMissing:
            # What somebody has named is meant.
            named = headers.SOURCE_VARIABLE in os.environ
            if how == "bcc" or (how == "auto" and (named or not build.is_there())):
                raise
        yield found


def require_compiled(how: str) -> None:
    """Raise ObjectMissing where libbpf alone is to load what is not there."""
    if how == "libbpf":
        build.find()


def make_program(
    how: str,
    numbers: Mapping[str, int],
    say: Say = lambda _: None,
    *,
    with_headers: bool = True,
    watch: bool = False,
) -> Program:
    """Return the program, not loaded yet.

    how: one of LOADERS. numbers: macro -> value. say: is told what is done instead of
    what cannot be. with_headers: whether the kernel's are there. watch: it is that of
    ``watch``. Raises RecordError and its kin.
    """
    if how == "libbpf":
        say("telling the probes of this kernel")
        return LibbpfProgram(numbers)
    why: RecordError | None = None
    if with_headers or how == "bcc":
        say("compiling the probes")
        try:
            return BccProgram(_for_bcc(numbers, watch), more=(WATCH,) if watch else ())
        except (BccMissing, ProgramRejected) as error:
            if how == "bcc" or not build.is_there():
                raise
            why = error
    reason = why.message if why else "this kernel's headers are not here"
    say(f"{reason}: libbpf loads what was compiled before")
    return LibbpfProgram(numbers)


def _for_bcc(numbers: Mapping[str, int], watch: bool) -> Mapping[str, int]:
    return {**numbers, "WATCHES": REGISTERS} if watch else numbers


def record_loader(
    how: str,
    numbers: Mapping[str, int],
    say: Say = lambda _: None,
    *,
    with_headers: bool = True,
) -> ProgramLoader:
    """Return the program of ``record``. See make_program()."""
    return ProgramLoader(make_program(how, numbers, say, with_headers=with_headers))


def watch_loader(
    how: str,
    numbers: Mapping[str, int],
    say: Say = lambda _: None,
    *,
    with_headers: bool = True,
) -> WatchLoader:
    """Return the program of ``watch``. See make_program()."""
    program = make_program(how, numbers, say, with_headers=with_headers, watch=True)
    return WatchLoader(program, numbers["OFF_vm_area_struct_vm_flags"])
