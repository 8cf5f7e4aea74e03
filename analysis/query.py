"""SQL over a recording, by DuckDB: the tables that it may name, and how it is run.

The rows are copied, a batch at a time, to a database of its own in a directory that
goes again. They are not given to DuckDB as they are read: a query that names the table
twice would find it empty the second time. That database is opened anew for the query,
read-only and without access to anything else, so that SQL from wherever can neither
change a row nor touch a file. What does not fit into memory goes to that directory.
"""

from __future__ import annotations

import contextlib
import re
import signal
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

from cdmtrace.analysis import export, frames, relations
from cdmtrace.analysis.rows import Ticker, no_ticker
from cdmtrace.errors import CdmtraceError, UsageTrouble
from cdmtrace.format.schema import printable
from cdmtrace.scratch import scratch
from cdmtrace.signals import signals_to

if TYPE_CHECKING:
    import duckdb
    import pyarrow as pa

    from cdmtrace.analysis.result import Result
    from cdmtrace.format.reader import TraceInfo

EVENTS: Final = "events"

TABLES: Final = (EVENTS, *relations.SCHEMAS)
"""What SQL may name. All but the first three (events, recording, losses) come of a
replay, which has the whole recording in memory, as check has."""

REQUIREMENT: Final = "duckdb>=1.4"
"""As in pyproject.toml."""

_LOCKED: Final = {
    "enable_external_access": False,
    "python_enable_replacements": False,
    "lock_configuration": True,
}
"""No file, no variable of Python's is a table, and none of this can be set anew."""

_Made = TypeVar("_Made")

_PATIENCE: Final = 0.1
"""Seconds until it is looked again whether a signal has come."""

_ROWS: Final = 1 << 12
"""Rows of an answer that are made into objects at a time."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """What comes of a query.

    columns: names, each once. rows: in lists of some thousand, to be taken once. infos:
    what was read of each file. left_out: as of an Exporter.
    """

    columns: tuple[str, ...]
    rows: Iterator[Sequence[Sequence[Any]]]
    infos: Sequence[TraceInfo]
    left_out: int


@contextlib.contextmanager
def asked(
    files: Sequence[Path],
    sql: str,
    *,
    memory: int,
    judge: Callable[[], Result],
    ticker: Ticker = no_ticker,
) -> Iterator[Answer]:
    """Have the answer to SQL inside the block, of the last statement if of several.

    files: parts of one recording, in order. memory: bytes that DuckDB may use. judge:
    is called where a table is named that comes of a replay. ticker: is told, by another
    thread, how far the rows are copied.

    Raises UsageTrouble for SQL that is none or may not be run, TraceFileError, and
    CdmtraceError where DuckDB is not there, or memory or disk do not suffice.
    """
    duckdb = _duckdb()
    with _told():
        if not duckdb.extract_statements(sql):
            raise UsageTrouble(
                "there is no SQL in it", hint=f'such as "SELECT * FROM {EVENTS}"'
            )
    named = _named(sql)
    infos: list[TraceInfo] = []
    with scratch("query", "a query") as directory:
        path, limit = directory / "query.duckdb", {"memory_limit": f"{memory}B"}
        with _told(), duckdb.connect(path, config=limit) as database:
            left_out = _fill(database, named, files, infos, judge, ticker)
        with duckdb.connect(path, read_only=True, config=limit | _LOCKED) as database:
            with _told():
                _interruptible(database, lambda: database.execute(sql))
            yield Answer(
                columns=_once(column[0] for column in database.description or ()),
                rows=_rows(database),
                infos=infos,
                left_out=left_out,
            )


def _duckdb() -> Any:
    try:
        import duckdb
    except ImportError as error:
        raise CdmtraceError(
            "query needs DuckDB, and it is not installed",
            hint=f"{sys.executable} -m pip install '{REQUIREMENT}'",
        ) from error
    return duckdb


@contextlib.contextmanager
def _told() -> Iterator[None]:
    """Make errors of DuckDB ours, with what it says of them."""
    import duckdb

    try:
        yield
    except (duckdb.OutOfMemoryException, duckdb.IOException) as error:
        raise CdmtraceError(
            "the query needs more memory or disk than it may have",
            # It goes on with advice about what is locked here.
            details=_lines(str(error).split("\n\n")[0]),
            hint="--memory 4G gives it more, TMPDIR=DIRECTORY another disk",
        ) from error
    except duckdb.Error as error:
        raise UsageTrouble(
            "the SQL cannot be run",
            details=_lines(str(error)),
            hint=f'tables: {", ".join(TABLES)}; "DESCRIBE {EVENTS}" has its columns',
        ) from error


def _lines(text: str) -> str:
    return "\n".join(printable(line) for line in text.splitlines() if line)


def _named(sql: str) -> frozenset[str]:
    """Return the tables that are named, in lower case, or a column is called like."""
    import duckdb

    text = sql.encode()
    words = (
        re.match(rb"[\"']?(\w*)", text[offset:]) for offset, _ in duckdb.tokenize(sql)
    )
    found = {word[1].decode().lower() for word in words if word}
    return frozenset(found.intersection(TABLES))


def _fill(
    database: duckdb.DuckDBPyConnection,
    named: frozenset[str],
    files: Sequence[Path],
    infos: list[TraceInfo],
    judge: Callable[[], Result],
    ticker: Ticker,
) -> int:
    """Make the tables that are named; return what is left out of events."""
    from cdmtrace.format.reader import TraceReader

    with TraceReader(files[0]) as first:
        terms = frames.terms_of(first.header, first.path)
    exporter = export.Exporter(terms, text=False)
    if EVENTS in named:
        batches = export.batches(files, exporter, infos, ticker)
        _make(database, EVENTS, export.schema(text=False), batches)
    else:
        for file in files:
            with TraceReader(file) as reader:
                infos.append(reader.info)
    tables = {
        "recording": lambda: relations.recording(str(files[0]), terms),
        "losses": lambda: relations.losses(frames.gaps_of(infos)),
    }
    for name in named & tables.keys():
        _make(database, name, relations.SCHEMAS[name], tables[name]().to_batches())
    if of_replay := named & relations.JUDGED.keys():
        result = judge()
        for name in of_replay:
            table = relations.judged(name, result)
            _make(database, name, table.schema, table.to_batches())
    return exporter.left_out


def _make(
    database: duckdb.DuckDBPyConnection,
    name: str,
    schema: pa.Schema,
    batches: Iterable[pa.RecordBatch],
) -> None:
    """Make a table of these batches, a few of which are in memory at a time.

    In one statement: what a transaction has registered is held until it ends.
    """
    import pyarrow as pa

    failed: list[BaseException] = []

    def read() -> Iterator[pa.RecordBatch]:
        # DuckDB would make an error of its own of one of ours, and of Ctrl-C.
        try:
            yield from batches
        except GeneratorExit:
            raise
        except BaseException as error:
            failed.append(error)

    def make() -> None:
        reader = pa.RecordBatchReader.from_batches(schema, read())
        database.register("rows", reader)
        database.execute(f"CREATE TABLE {name} AS FROM rows")
        database.unregister("rows")

    _interruptible(database, make)
    if failed:
        raise failed[0]


def _interruptible(
    database: duckdb.DuckDBPyConnection, work: Callable[[], _Made]
) -> _Made:
    """Do work that may take long, so that Ctrl-C, or another signal, ends it.

    Where the main thread works for DuckDB itself, it sees no signal before it is done,
    or DuckDB makes an error of its own of what the signal raises. So another thread
    works, and the signal does what it would have done when that has ended. For the main
    thread only.
    """
    came: list[int] = []
    with ThreadPoolExecutor(1) as pool, signals_to(came.append):
        made = pool.submit(work)
        while wait([made], timeout=_PATIENCE).not_done:
            # More than once: one that comes before the statement begins is forgotten.
            if came:
                database.interrupt()
    if came:
        signal.raise_signal(came[0])
    return made.result()


def _once(names: Iterable[str]) -> tuple[str, ...]:
    """Return names of which none is there twice: seq, seq_1, as DuckDB has them."""
    found: dict[str, None] = {}
    for name in names:
        number, free = 0, name
        while free in found:
            number += 1
            free = f"{name}_{number}"
        found[free] = None
    return tuple(found)


def _rows(database: duckdb.DuckDBPyConnection) -> Iterator[Sequence[Sequence[Any]]]:
    while True:
        with _told():
            rows = _interruptible(database, lambda: database.fetchmany(_ROWS))
        if not rows:
            return
        yield rows
