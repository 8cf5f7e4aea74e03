"""Ask the running kernel what of BPF it has, by trying it: libbpf's probes.

libbpf loads the smallest program of a type, or makes the smallest map, and throws it
away. That needs root, and says more than any version or configuration does.
"""

from __future__ import annotations

import os
from typing import Final

from cdmtrace.errors import RecordError
from cdmtrace.kernel.btf import load_library

# include/uapi/linux/bpf.h
MAP_RINGBUF: Final = 27
PROG_KPROBE: Final = 2
PROG_TRACEPOINT: Final = 5


def has_map_type(number: int) -> bool:
    """Return whether the kernel has a type of map. Raises RecordError."""
    return _probe("libbpf_probe_bpf_map_type", number)


def has_program_type(number: int) -> bool:
    """Return whether the kernel has a type of program. Raises RecordError."""
    return _probe("libbpf_probe_bpf_prog_type", number)


def _probe(function: str, number: int) -> bool:
    answer = getattr(load_library(), function)(number, None)
    if answer < 0:
        raise RecordError(
            f"what BPF can do here cannot be found out: {os.strerror(-answer)}"
        )
    return bool(answer)
