"""Runs in the guest: the program of ``record``, attached and detached at will."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any
from unittest import mock

from cdmtrace import recorder
from cdmtrace.loader import bcc
from cdmtrace.options import Options

RING_PAGES = 4096


class Compiled(Exception):
    """Carries the loader out of record(), which would go on otherwise."""


def load(more: str = "", **options: Any) -> bcc.BccLoader:
    """Return the program as ``record`` compiles it for this machine, and more text."""
    text = bcc.program_text

    def compiled(numbers: Mapping[str, int]) -> Any:
        raise Compiled(bcc.BccLoader(numbers))

    try:
        with (
            mock.patch.object(bcc, "program_text", lambda *words: text(*words) + more),
            mock.patch.object(recorder, "BccLoader", compiled),
        ):
            recorder.record(
                Options(output=Path("none.arrows"), ring_pages=RING_PAGES, **options)
            )
    except Compiled as caught:
        loader: bcc.BccLoader = caught.args[0]
        return loader
    raise AssertionError("nothing was compiled")


def detach(loader: bcc.BccLoader) -> None:
    """Detach what attach() of the loader has attached; the programs stay."""
    close, bpf = loader._module.lib.bpf_close_perf_event_fd, loader._bpf
    for fds in bpf.kprobe_fds.values():
        for fd in fds.values():
            close(fd)
    bpf.kprobe_fds.clear()
    while loader._return_fds:
        close(loader._return_fds.pop())
    if loader._returns is not None:
        loader._returns.close()
        loader._returns = None
    for name in list(bpf.tracepoint_fds):
        bpf.detach_tracepoint(name)
