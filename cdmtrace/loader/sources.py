"""The BPF program's sources, as one text."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final

BPF_DIRECTORY: Final = Path(__file__).parent.parent / "bpf"

SOURCES: Final = (
    *("events.h", "compat.h", "maps.h", "filters.h", "cdmtrace.bpf.c"),
    *("calls.bpf.c", "pages.bpf.c", "vmas.bpf.c", "older.bpf.c"),
    *("snapshots.bpf.c", "processes.bpf.c"),
)
"""In the order in which they make one program."""
WATCH: Final = "watch.bpf.c"
"""What comes behind them in the program of ``watch``."""


def program_text(defines: Mapping[str, int], more: tuple[str, ...] = ()) -> str:
    """Return the whole program: macros, then the sources as one text.

    more: sources that come behind those of ``record``.
    """
    macros = [f"#define {name} {value:#x}ULL" for name, value in defines.items()]
    sources = [
        # One text: line numbers in the compiler's messages are those of a file.
        f'#line 1 "{name}"\n{(BPF_DIRECTORY / name).read_text()}'
        for name in (*SOURCES, *more)
    ]
    return "\n".join([*macros, *sources])
