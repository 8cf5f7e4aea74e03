"""The rows of a trace file as columns that need no table of numbers to be read.

Batch by batch, so that no more than one is in memory: enumerators by name, nodes as a
list, flags by name beside the number, and what has rows of its own in the file (names
of tasks, stacks) with the rows that it belongs to.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pyarrow as pa

from cdmtrace.analysis import names
from cdmtrace.analysis.frames import Terms
from cdmtrace.analysis.rows import Ticker, cause_of, no_ticker
from cdmtrace.analysis.stacks import Stack
from cdmtrace.events import Bit, Cause, EventKind
from cdmtrace.format.schema import printable

if TYPE_CHECKING:
    from cdmtrace.format.reader import TraceInfo

_TEXT: Final = pa.string()
WORDS: Final = ("start", "end", "addr", "flags_before", "flags_after", "other")
"""Columns that may pass 2**53, beyond which readers of JSON and spreadsheets round."""

_COLUMNS: Final[dict[str, pa.DataType]] = {
    "seq": pa.uint64(),
    "ts": pa.uint64(),
    "ts_entry": pa.uint64(),
    "since_start": pa.float64(),
    "kind": _TEXT,
    "probe": _TEXT,
    "cause": _TEXT,
    "cpu": pa.uint16(),
    "pid": pa.uint32(),
    "tid": pa.uint32(),
    "comm": _TEXT,
    "mm": _TEXT,
    "vma": pa.uint32(),
    "start": pa.uint64(),
    "end": pa.uint64(),
    "addr": pa.uint64(),
    "size": pa.uint64(),
    "node": pa.int16(),
    "src_node": pa.int16(),
    "flags_before": pa.uint64(),
    "flags_after": pa.uint64(),
    "flags_before_names": _TEXT,
    "flags_after_names": _TEXT,
    "policy": _TEXT,
    "nodes": _TEXT,
    "other_policy": _TEXT,
    "other": pa.uint64(),
    "lock_entry": _TEXT,
    "lock_exit": _TEXT,
    "bits": _TEXT,
    "call": pa.uint32(),
    "ret": pa.int32(),
    "arg": pa.uint16(),
    "stack": _TEXT,
    "instruction": _TEXT,
}
"""Column -> its type. README.md says what is in which."""

_HAVE_NO_VMA: Final = frozenset(
    {
        *(EventKind.CALL, EventKind.CALL_OPEN, EventKind.MM_EXIT, EventKind.COMM),
        *(EventKind.STACK, EventKind.SNAP_MM, EventKind.WRITE_SECTION),
    }
)
"""Rows of these kinds have no policy of a VMA."""

_HAVE_ANOTHER: Final = frozenset(
    {EventKind.ALLOC, EventKind.POLICY, EventKind.CALL, EventKind.CALL_OPEN}
)
"""Rows of these kinds have another policy: the task's, the one before, the one asked
for (bpf/events.h)."""


def schema(*, text: bool) -> pa.Schema:
    """Return the columns. text: addresses and words of flags are hexadecimal."""
    return pa.schema(
        (name, _TEXT if text and name in WORDS else type_)
        for name, type_ in _COLUMNS.items()
    )


class Exporter:
    """The batches of one recording, one after the other; parts in their order.

    left_out: rows so far of which something is in no column.
    """

    def __init__(self, terms: Terms, *, text: bool) -> None:
        """Begin. text: as for schema()."""
        self.left_out = 0
        self._terms = terms
        self._schema = schema(text=text)
        self._text = text
        self._comms: dict[int, str] = {}
        self._stacks: dict[int, str] = {}
        self._causes: dict[int, Cause | None] = {}
        self._flags = lru_cache(4096)(self._flags_of)

    def take(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """Return a batch of the file in the columns of schema(), as many rows."""
        column = _Columns(batch)
        kind = column["kind"]
        comms = self._learn(column)
        made: dict[str, Iterable[Any]] = {
            **{name: column[name] for name in _COLUMNS if name in column.plain},
            "since_start": ((ts - self._terms.started) / 1e9 for ts in column["ts"]),
            "kind": map(names.kind, kind),
            "probe": map(names.probe, column["probe"]),
            "cause": (
                names.cause(self._cause(*row))
                for row in zip(kind, column["cause"], column["stack"], strict=True)
            ),
            "comm": comms,
            "mm": (f"{mm:016x}" if mm else None for mm in column["mm"]),
            "vma": (vma or None for vma in column["vma"]),
            "call": (call or None for call in column["call"]),
            "node": (None if node < 0 else node for node in column["node"]),
            "src_node": (None if node < 0 else node for node in column["src_node"]),
            "flags_before_names": map(self._flags, column["flags_before"]),
            "flags_after_names": map(self._flags, column["flags_after"]),
            "policy": _policies(column, "policy", "nodes", without=_HAVE_NO_VMA),
            "nodes": (names.nodes(mask) if mask else None for mask in column["nodes"]),
            "other_policy": _policies(
                column, "other_policy", "other", only=_HAVE_ANOTHER
            ),
            "lock_entry": map(_lock, column["lock_entry"]),
            "lock_exit": map(_lock, column["lock_exit"]),
            "bits": map(_bits, column["bits"]),
            "stack": map(self._stacks.get, column["stack"]),
            "instruction": (
                printable(names.instruction(payload)) or None
                if one == EventKind.WRITE
                else None
                for one, payload in zip(kind, column["payload"], strict=True)
            ),
        }
        if self._text:
            made |= {name: map(hex, column[name]) for name in WORDS}
        return pa.record_batch(
            [
                pa.array(values if isinstance(values, list) else list(values), type_)
                for values, type_ in (
                    (made[name], self._schema.field(name).type) for name in _COLUMNS
                )
            ],
            schema=self._schema,
        )

    def _learn(self, column: _Columns) -> list[str | None]:
        """Take names and stacks from their rows; return who each row is of.

        A row has the name that its task had then: it comes before it in the file.
        """
        comms = []
        for kind, tid, stack, payload in zip(
            *(column[name] for name in ("kind", "tid", "stack", "payload")),
            strict=True,
        ):
            if kind == EventKind.COMM:
                name = (payload or b"").split(b"\0")[0].decode(errors="replace")
                self._comms[tid] = printable(name)
            elif kind == EventKind.STACK:
                lines = (payload or b"").decode(errors="replace").splitlines()
                self._stacks[stack] = ";".join(map(printable, lines))
                self._causes[stack] = Stack.parse(payload).cause
            elif kind == EventKind.SNAP_RANGES:
                self.left_out += 1
            comms.append(self._comms.get(tid) or None)
        return comms

    def _cause(self, kind: int, seen: int, stack: int) -> int:
        """Return the cause that every verb goes by. A stack itself has none."""
        if kind == EventKind.STACK:
            return seen
        return cause_of(seen, self._causes.get(stack))

    def _flags_of(self, word: int) -> str | None:
        return " ".join(names.flags(word, self._terms)) or None


def batches(
    files: Iterable[Path],
    exporter: Exporter,
    infos: list[TraceInfo],
    ticker: Ticker = no_ticker,
) -> Iterator[pa.RecordBatch]:
    """Yield what becomes of each batch; what was read of a file goes to infos.

    files: the parts of one recording, in order. ticker: is told how far it is. Raises
    TraceFileError.
    """
    from cdmtrace.format.reader import TraceReader

    for file in files:
        what = f"reading {printable(file.name)}"
        with TraceReader(file) as reader:
            for batch in reader:
                ticker(what, batch.offset, reader.size)
                yield exporter.take(batch.columns)
            ticker(what, reader.size, reader.size)
            infos.append(reader.info)


class _Columns:
    """The columns of a batch as lists, each made when it is asked for first."""

    plain: Final = frozenset(
        {
            *("seq", "ts", "ts_entry", "cpu", "pid", "tid", "size", "ret", "arg"),
            *WORDS,
        }
    )
    """Those that are as they are in the file."""

    def __init__(self, batch: pa.RecordBatch) -> None:
        self._batch = batch
        self._lists: dict[str, list[Any]] = {}

    def __getitem__(self, name: str) -> list[Any]:
        if name not in self._lists:
            self._lists[name] = self._batch.column(name).to_pylist()
        return self._lists[name]


def _policies(
    column: _Columns,
    policy: str,
    nodes: str,
    *,
    only: Collection[int] | None = None,
    without: Collection[int] = (),
) -> Iterator[str | None]:
    """Yield policies in short, None for rows of a kind that has none."""
    named: Callable[[int, int], str] = lru_cache(4096)(names.policy)
    for kind, byte, mask in zip(
        *(column[name] for name in ("kind", policy, nodes)), strict=True
    ):
        has = kind not in without and (only is None or kind in only)
        yield named(byte, mask) if has else None


@lru_cache(256)
def _lock(byte: int) -> str | None:
    """Return how locks were held, None where nothing is known."""
    return names.lock(byte) if byte else None


@lru_cache(256)
def _bits(byte: int) -> str | None:
    """Return the names of bits, None for none; one without a name is not known."""
    known: Sequence[Bit] = [bit for bit in Bit if byte & bit]
    return " ".join(str(bit.name).lower() for bit in known) or None
