"""Rows that no kernel can have told: a file that has one is not replayed.

The model takes a row at its word. Whole though it is, a file may have been made up,
and a page of 2^60 bytes would be split into base pages until the memory is full. What
is only odd (a kind, node, lock or policy that nobody knows, ranges that overlap, times
that run back) is none of this, and the model lives with it.
"""

from __future__ import annotations

import resource
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from cdmtrace import units
from cdmtrace.events import EventKind, Probe
from cdmtrace.format.schema import column_values

if TYPE_CHECKING:
    import pyarrow as pa

_PAGE_COST: Final = 450
"""Bytes of memory that a page costs whoever replays a recording."""
_ENTRY: Final = 8
MAPPED: Final = (EventKind.MAP, EventKind.MIGRATE, EventKind.UNMAP)
"""Kinds of rows that tell of pages, by address and size."""
_PAIR: Final = np.dtype([("start", "=u8"), ("size", "=u8")])

Column = npt.NDArray[np.uint64]


def implausible(columns: pa.RecordBatch, page: int) -> str:
    """Return which row of a batch no kernel can have told, and why; "" if all may be.

    page: bytes of a base page.
    """
    values = {
        name: column_values(columns.column(name))
        for name in ("seq", "kind", "probe", "addr", "size", "other")
    }
    kind, addr, size = values["kind"], values["addr"], values["size"]
    within = np.uint64(page - 1)
    mapped = np.isin(kind, MAPPED)
    wrong = mapped & ~_is_page(addr, size, page)
    if wrong.any():
        row = int(np.argmax(wrong))
        return (
            f"row {values['seq'][row]} is about a page of {size[row]} bytes at "
            f"{int(addr[row]):#x}"
        )
    moved = (kind == EventKind.MOVE) | (
        (kind == EventKind.CALL)
        & (values["probe"] == Probe.SYS_MREMAP)
        & (values["other"] != 0)
    )
    wrong = moved & (((addr | values["other"]) & within) != 0)
    if wrong.any():
        return f"row {values['seq'][np.argmax(wrong)]} moves a part of a page"
    return ""


def table(page: int) -> int:
    """Return how many bytes the entries of one page table map: a huge page."""
    return page * (page // _ENTRY) if page > _ENTRY else page


def _is_page(addr: Column, size: Column, page: int) -> npt.NDArray[np.bool_]:
    """Return where [addr, addr + size) can be entries of a page table, or a huge one.

    The latter is as large as a whole table, and what is smaller lies in one.
    """
    whole = np.uint64(table(page))
    one, within = np.uint64(1), np.uint64(page - 1)
    fits = (size >= page) & (size <= whole) & (((addr | size) & within) == 0)
    together = (addr ^ (addr + size - one)) < whole
    both: npt.NDArray[np.bool_] = fits & together
    return both


def batched(columns: pa.RecordBatch, page: int) -> int:
    """Return how many pages are told of by rows that tell of several small ones."""
    values = {name: column_values(columns.column(name)) for name in ("kind", "size")}
    return int(values["size"][several(values, page)].sum()) // page


def several(values: Mapping[str, npt.NDArray[Any]], page: int) -> npt.NDArray[np.bool_]:
    """Return which rows tell of several small pages. values: name -> column."""
    kind, size = values["kind"], values["size"]
    which: npt.NDArray[np.bool_] = (size > page) & (size < table(page))
    if which.any():
        which &= np.isin(kind, MAPPED)
    return which


def pages_before(columns: pa.RecordBatch, page: int) -> int:
    """Return how many pages were there before, as the rows of a batch have it.

    Raises ValueError for a row that has them where they cannot be.
    """
    rows = np.flatnonzero(
        column_values(columns.column("kind")) == EventKind.SNAP_RANGES
    ).tolist()
    seqs, starts, ends = (columns.column(name) for name in ("seq", "start", "end"))
    payloads = columns.column("payload")
    total = 0
    for row in rows:
        payload = payloads[row].as_py() or b""
        seq = seqs[row].as_py()
        if len(payload) % _PAIR.itemsize:
            raise ValueError(f"row {seq} has half a range of pages")
        pairs = np.frombuffer(payload, _PAIR)
        start, size = pairs["start"], pairs["size"]
        low, high = np.uint64(starts[row].as_py()), np.uint64(ends[row].as_py())
        fits = (start >= low) & (start <= high) & (size <= high - start)
        fits &= ((start | size) & np.uint64(page - 1)) == 0
        if not fits.all():
            raise ValueError(f"row {seq} has pages outside of their VMA")
        total += sum(size.tolist()) // page
    return total


def too_many(pages: int) -> str:
    """Return why so many pages cannot be followed; "" if they can."""
    needed, there = pages * _PAGE_COST, _available()
    if needed <= there:
        return ""
    return (
        f"{pages:,} pages were there when it began or came in batches, and to follow "
        "them takes "
        f"{units.size(needed)} of memory, of which {units.size(there)} are available"
    )


def _available() -> int:
    """Return bytes of memory that may be used."""
    soft, _ = resource.getrlimit(resource.RLIMIT_AS)
    most = soft if soft != resource.RLIM_INFINITY else 1 << 62
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            most = min(most, int(line.split()[1]) << 10)
    return most
