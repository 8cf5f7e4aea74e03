"""Runs in the guest: the same of a fault as bcc's documentation would have it.

A struct, a perf buffer's successor, and a callback that makes an object of each event
and prints it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

TEXT = Path(__file__).with_name("idiom.bpf.c").read_text()

PROBES: Mapping[str, tuple[str, str]] = {
    "idiom_return": ("kretprobe", "vma_alloc_folio"),
    "idiom_entry": ("kprobe", "vma_alloc_folio"),
    "idiom_map": ("kprobe", "page_add_new_anon_rmap"),
}


class Idiom:
    """Prints every event into a file."""

    def __init__(self, bpf: Any, path: Path) -> None:
        """Open the buffer and the file."""
        self._bpf = bpf
        self._file = path.open("w")
        bpf["told_of"].open_ring_buffer(self._told)

    def _told(self, context: Any, data: Any, size: int) -> int:
        del context, size
        event = self._bpf["told_of"].event(data)
        print(
            *(event.ts, event.since, event.pid, event.tid, event.comm.decode()),
            *(hex(event.mm), hex(event.start), hex(event.end), hex(event.addr)),
            *(hex(event.before), hex(event.after)),
            *(event.lock_before, event.lock_after, event.kind, event.stack),
            file=self._file,
        )
        return 0

    def __call__(self) -> None:
        """Take out what is there."""
        self._bpf.ring_buffer_consume()
