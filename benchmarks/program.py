"""Runs in the guest: the program of ``record``, attached and detached at will."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any
from unittest import mock

from cdmtrace import recorder
from cdmtrace.loader import bcc
from cdmtrace.loader.program import ProgramLoader
from cdmtrace.options import Options

RING_PAGES = 4096


class Compiled(Exception):
    """Carries the loader out of record(), which would go on otherwise."""


def load(more: str = "", **options: Any) -> ProgramLoader:
    """Return the program as ``record`` compiles it for this machine, and more text."""
    text = bcc.program_text

    def compiled(numbers: Mapping[str, int]) -> Any:
        raise Compiled(ProgramLoader(bcc.BccProgram(numbers)))

    wanted = Options(
        output=Path("none.arrows"), ring_pages=RING_PAGES, loader="bcc", **options
    )
    try:
        with mock.patch.object(bcc, "program_text", lambda *words: text(*words) + more):
            recorder.record(wanted, load=compiled)
    except Compiled as caught:
        loader: ProgramLoader = caught.args[0]
        return loader
    raise AssertionError("nothing was compiled")


def bpf_of(loader: ProgramLoader) -> Any:
    """Return bcc's own object."""
    return program_of(loader)._bpf


def program_of(loader: ProgramLoader) -> bcc.BccProgram:
    """Return the program, which bcc has compiled."""
    if not isinstance(loader.program, bcc.BccProgram):
        raise TypeError(loader.program)
    return loader.program


def detach(loader: ProgramLoader) -> None:
    """Detach what attach() of the loader has attached; the programs stay."""
    program_of(loader).detach()
    if loader._returns is not None:
        loader._returns.close()
        loader._returns = None
