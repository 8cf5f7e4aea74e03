"""A recording as DataFrames, for notebooks (docs/query.md, examples/).

    frames = load("my.arrows").dataframes()
    frames.events, frames.findings, frames.vmas, ...

The tables and their columns are those of SQL (``relations.py``, ``export.py``); only
the types are pandas' own:

- words that occur again and again are categories, sentences are strings;
- times are timedelta64[ns] since the machine was booted (CLOCK_MONOTONIC), and
  since_start since the recording began, so that a difference may be less than nothing;
  events.utc is datetime64[ns, UTC];
- addresses, sizes and words of flags are uint64, so that & works on them;
- what a row may lack (node, call, tagged, ...) is of pandas' nullable types.

Here, and in ``frames.dataframe``, pandas is imported, and nowhere else.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pyarrow as pa

from cdmtrace.analysis import export, relations
from cdmtrace.analysis.permissions import DEFAULT, Permissions
from cdmtrace.analysis.replay import check
from cdmtrace.analysis.result import Result
from cdmtrace.analysis.rules import Rule
from cdmtrace.errors import TraceFileError

if TYPE_CHECKING:
    import pandas as pd

    from cdmtrace.analysis.frames import Trace
    from cdmtrace.format.reader import TraceInfo

_PROSE: Final = frozenset(
    {"what", "expected", "observed", "breaks", "why", "fingerprint", "path"}
)
"""Columns of text that are no categories."""

_TIMES: Final = frozenset({"ts", "ts_entry", "since", "until", "started"})

_MAY_LACK: Final = {
    "events": frozenset({"vma", "call", "node", "src_node"}),
    "losses": frozenset({"start", "end"}),
    "findings": frozenset({"pid", "start", "end"}),
    "vmas": frozenset({"pid", "tagged"}),
}
"""Table -> its columns that a row may be without, and that are no text."""

_CATEGORY: Final = pa.dictionary(pa.int32(), pa.string())


class DataFrames:
    """The tables of one recording, each made when it is asked for first, and kept.

    What comes of a judgement (rules, findings, witnesses, vmas) is as check has it by
    the same profile, rules, permissions and own rules.
    """

    def __init__(
        self,
        trace: Trace,
        *,
        profile: str = "intended",
        rules: Collection[str] | None = None,
        permissions: Permissions = DEFAULT,
        own: Sequence[Rule] = (),
    ) -> None:
        """Begin; nothing is read or judged yet. The arguments are those of check()."""
        self.trace = trace
        self._asked: dict[str, Any] = {
            "profile": profile,
            "rules": rules,
            "permissions": permissions,
            "own": own,
        }

    @cached_property
    def result(self) -> Result:
        """What check() says. Raises KeyError for a profile that does not exist."""
        return check(self.trace, **self._asked)

    @cached_property
    def events(self) -> pd.DataFrame:
        """The rows of the recording, by seq: the columns of export, and utc.

        Read from the files again. Raises TraceFileError if the trace is of none.
        """
        trace = self.trace
        if not trace.files:
            raise TraceFileError(
                f"{trace.path}: its events come from no file",
                hint="cdmtrace.analysis.load(FILE).dataframes()",
            )
        infos: list[TraceInfo] = []
        exporter = export.Exporter(trace.terms, text=False)
        batches = export.batches(map(Path, trace.files), exporter, infos)
        frame = _frame("events", export.schema(text=False), batches)
        frame["since_start"] = frame["ts"] - _nanoseconds(trace.terms.started)
        frame["utc"] = _epoch() + _nanoseconds(trace.terms.utc_offset) + frame["ts"]
        return frame.set_index("seq")

    @cached_property
    def losses(self) -> pd.DataFrame:
        """What was lost, a row for each interval; NaT and NA for no bound."""
        return _of("losses", relations.losses(self.trace.gaps))

    @cached_property
    def rules(self) -> pd.DataFrame:
        """The verdict on each rule, by id."""
        return self._judged("rules").set_index("rule")

    @cached_property
    def findings(self) -> pd.DataFrame:
        """The divergences, by their number."""
        return self._judged("findings").set_index("finding")

    @cached_property
    def witnesses(self) -> pd.DataFrame:
        """The rows that show each finding, by its number: join events on seq."""
        return self._judged("witnesses").set_index("finding")

    @cached_property
    def vmas(self) -> pd.DataFrame:
        """The VMAs at the end, or just before their address space ended."""
        return self._judged("vmas")

    def _judged(self, name: str) -> pd.DataFrame:
        return _of(name, relations.judged(name, self.result))


def _of(name: str, table: pa.Table) -> pd.DataFrame:
    return _frame(name, table.schema, table.to_batches())


def _frame(
    name: str, schema: pa.Schema, batches: Iterable[pa.RecordBatch]
) -> pd.DataFrame:
    """Return batches of a schema with the types that are told above."""
    # Batch by batch, for a stack may be there a million times.
    made = pa.schema((one.name, _type(one)) for one in schema)
    table = pa.Table.from_batches((_cast(one, made) for one in batches), made)
    table = table.unify_dictionaries()
    lacking = [one for one in table.schema.names if one in _MAY_LACK.get(name, ())]
    frame: pd.DataFrame = table.drop_columns(lacking).to_pandas()
    for column in lacking:
        frame[column] = _nullable(table.column(column))
    return frame.reindex(columns=table.schema.names)


def _type(field: pa.Field) -> pa.DataType:
    if field.name in _TIMES:
        return pa.duration("ns")
    if pa.types.is_string(field.type) and field.name not in _PROSE:
        return _CATEGORY
    return field.type


def _cast(batch: pa.RecordBatch, schema: pa.Schema) -> pa.RecordBatch:
    columns = [
        _converted(column, field.type)
        for column, field in zip(batch.columns, schema, strict=True)
    ]
    return pa.record_batch(columns, schema=schema)


def _converted(column: pa.Array, type_: pa.DataType) -> pa.Array:
    if type_ == _CATEGORY:
        return column.dictionary_encode()
    if pa.types.is_duration(type_):
        # A file may say what it likes; it is as odd then as what it says.
        return column.cast(pa.int64(), safe=False).cast(type_)
    return column


def _nullable(column: pa.ChunkedArray) -> pd.Series[Any]:
    import pandas as pd

    name = str(column.type)
    name = "boolean" if name == "bool" else name.replace("u", "U").replace("i", "I", 1)
    return pd.Series(pd.array(column.to_pylist(), dtype=name))


def _nanoseconds(number: int) -> pd.Timedelta:
    import pandas as pd

    return pd.Timedelta(number, "ns")


def _epoch() -> pd.Timestamp:
    import pandas as pd

    return pd.Timestamp(0, tz="UTC")
