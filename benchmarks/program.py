"""Runs in the guest: the program of ``record``, attached and detached at will."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any
from unittest import mock

from cdmtrace import recorder
from cdmtrace.loader import bcc
from cdmtrace.options import Options
from cdmtrace.probes import Kind, Plan

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


def detach(bpf: Any, plans: tuple[Plan, ...]) -> None:
    """Detach what attach() of the loader has attached."""
    for item in reversed(plans):
        pairs = zip(item.probe.attachments, item.symbols, strict=not item.missing)
        for attachment, symbol in reversed(list(pairs)):
            match attachment.kind:
                case Kind.KPROBE:
                    bpf.detach_kprobe(event=symbol, fn_name=attachment.handler)
                case Kind.KRETPROBE:
                    bpf.detach_kretprobe(event=symbol, fn_name=attachment.handler)
                case Kind.TRACEPOINT:
                    bpf.detach_tracepoint(tp=symbol)
