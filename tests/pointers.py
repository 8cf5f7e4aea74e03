"""Look for addresses of the kernel in a trace file."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from cdmtrace.format.reader import TraceReader
from cdmtrace.format.schema import column_values

KERNEL: Final = 0xFFFF_8000_0000_0000
"""On x86-64, all that is the kernel's lies from here on."""
_LAST: Final = (1 << 64) - 4096
"""From here on are errors, small negative numbers, and "to the end"."""


def suspects(values: npt.NDArray[Any]) -> list[int]:
    """Return those that can be addresses of the kernel, each once."""
    if values.dtype.itemsize < 8:
        return []
    raw = np.unique(values.astype(np.uint64))
    chosen: list[int] = raw[(raw >= np.uint64(KERNEL)) & (raw < _LAST)].tolist()
    return chosen


def found_in(path: Path) -> list[str]:
    """Return where in a file such values are: columns, payloads at any offset, head.

    The ids of address spaces are numbers drawn by lot, of which one in 131,072 lies
    there by chance. So they are suspect only where half of them do.
    """
    with TraceReader(path) as trace:
        table = trace.read()
    found = []
    for name in table.schema.names:
        if name == "payload":
            continue
        values = column_values(table.column(name).combine_chunks())
        some = suspects(values)
        if name == "mm" and len(some) * 2 < len(np.unique(values)):
            continue
        found += [f"{name}: {value:#x}" for value in some]
    for payload in filter(None, table.column("payload").to_pylist()):
        for offset in range(8):
            size = (len(payload) - offset) // 8 * 8
            if size > 0:
                words = np.frombuffer(payload[offset : offset + size], "<u8")
                found += [f"payload: {value:#x}" for value in suspects(words)]
    with pa.OSFile(str(path)) as file, pa.ipc.open_stream(file) as stream:
        head = (stream.schema.metadata or {})[b"cdmtrace"].decode()
    for text in re.findall(r"0x[0-9a-f]+|\d{15,}|[0-9a-f]{16}", head):
        value = int(text, 10 if text.isdecimal() and len(text) > 16 else 16)
        if KERNEL <= value < _LAST:
            found.append(f"head: {text}")
    return found
