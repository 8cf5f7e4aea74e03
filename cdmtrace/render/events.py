"""Events of ``export``, as bytes that others read: Parquet, CSV, NDJSON."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import IO, Final

import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq

Batches = Iterable[pa.RecordBatch]

GROUP: Final = 1 << 16
"""Rows of a row group, or some more: batches of a recording may have ten rows each."""

_SLICE: Final = 512
"""Rows that are made into objects at a time."""


def write(batches: Batches, schema: pa.Schema, how: str, file: IO[bytes]) -> None:
    """Write batches of a schema, in one of the formats of ``export``.

    Not more than GROUP rows and a batch are in memory. Raises KeyError for another
    format, and OSError.
    """
    _FORMS[how](batches, schema, file)


def _parquet(batches: Batches, schema: pa.Schema, file: IO[bytes]) -> None:
    with pq.ParquetWriter(file, schema) as writer:
        for table in _gathered(batches, schema):
            writer.write_table(table, row_group_size=table.num_rows)


def _gathered(batches: Batches, schema: pa.Schema) -> Iterator[pa.Table]:
    """Yield the rows in tables of at least GROUP rows, but for the last one."""
    held: list[pa.RecordBatch] = []
    for batch in batches:
        held.append(batch)
        if sum(one.num_rows for one in held) >= GROUP:
            yield pa.Table.from_batches(held, schema)
            held = []
    if any(one.num_rows for one in held):
        yield pa.Table.from_batches(held, schema)


def _csv(batches: Batches, schema: pa.Schema, file: IO[bytes]) -> None:
    _write_csv(schema.empty_table(), file, head=True)
    for batch in batches:
        _write_csv(batch, file, head=False)


def _write_csv(rows: pa.Table | pa.RecordBatch, file: IO[bytes], *, head: bool) -> None:
    # Through memory, for an error of the file is one of ours then, and none of Arrow's.
    made = pa.BufferOutputStream()
    pacsv.write_csv(rows, made, pacsv.WriteOptions(include_header=head))
    file.write(made.getvalue())


def _ndjson(batches: Batches, schema: pa.Schema, file: IO[bytes]) -> None:
    del schema
    for batch in batches:
        for first in range(0, batch.num_rows, _SLICE):
            rows = batch.slice(first, _SLICE).to_pylist()
            lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
            file.write("".join(lines).encode())


_FORMS: Final[Mapping[str, Callable[[Batches, pa.Schema, IO[bytes]], None]]] = {
    "parquet": _parquet,
    "csv": _csv,
    "ndjson": _ndjson,
}
