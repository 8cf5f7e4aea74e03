"""The rows of trace files as events, decoded batch by batch.

No more than a batch is in memory: a recording may have more rows than would fit. So
it is read once when it is opened, to learn what the rows lean on (stacks, losses, and
whether a kernel can have told all that), and once each time that its rows are asked
for.
"""

from __future__ import annotations

import itertools
import os
import shlex
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt
from msgspec.structs import fields, replace

from cdmtrace.analysis import sanity
from cdmtrace.analysis.frames import Event
from cdmtrace.analysis.stacks import Stack
from cdmtrace.errors import TraceFileError
from cdmtrace.events import Cause, EventKind
from cdmtrace.format.schema import column_values, printable

if TYPE_CHECKING:
    import pyarrow as pa

    from cdmtrace.analysis.partition import Share
    from cdmtrace.format.reader import TraceInfo

FIELDS: Final = tuple(field.name for field in fields(Event))
"""Names of the columns that a row is made of."""

_FIXED: Final = tuple(name for name in FIELDS if name != "payload")

_SLICE: Final = 4096
"""Rows that are made into events at a time: a batch may have 65,536."""

Columns = Mapping[str, npt.NDArray[Any]]
Chosen = npt.NDArray[np.bool_] | npt.NDArray[np.intp]

Ticker = Callable[[str, int, int], None]
"""Is told now and then how far it is: with what, how much is done, and of how much."""


def no_ticker(what: str, done: int, total: int) -> None:
    """Nobody wants to know how far it is."""


def only(events: Iterable[Event], kinds: Collection[int]) -> Iterable[Event]:
    """Return those of the rows that are of some kinds; of a file, only they are made
    into events.
    """
    if isinstance(events, Rows):
        return events.only(kinds)
    return (event for event in events if event.kind in kinds)


@dataclass(frozen=True, kw_only=True, slots=True)
class Rows:
    """The rows of a recording. They can be iterated more than once.

    infos: what was read of each of its files, in order. stacks: by the number that rows
    name them with. The cause of each row is what its stack says. kinds: of all rows.
    ticker: is told how far it is each time that they are gone through. share: only the
    rows that this one needs are gone through, None: all.
    """

    infos: tuple[TraceInfo, ...]
    stacks: Mapping[int, Stack]
    kinds: frozenset[int]
    ticker: Ticker = no_ticker
    share: Share | None = None

    @classmethod
    def of(
        cls, paths: Sequence[str | os.PathLike[str]], ticker: Ticker = no_ticker
    ) -> Rows:
        """Read the files through. paths: the parts of one recording, in order.

        Raises TraceFileError if nothing can be read of one, or where it has rows that
        no kernel can have told.
        """
        from cdmtrace.format.reader import TraceReader

        stacks: dict[int, Stack] = {}
        kinds: set[int] = set()
        infos = []
        for path in paths:
            with TraceReader(path) as reader:
                plausible = _Plausible(reader.path, reader.header.page_size)
                what = f"reading {printable(reader.path.name)}"
                for batch in reader:
                    ticker(what, batch.offset, reader.size)
                    plausible.require(batch.columns)
                    stacks |= stacks_of(batch.columns)
                    kinds |= {*np.unique(column_values(batch.columns["kind"])).tolist()}
                ticker(what, reader.size, reader.size)
                infos.append(reader.info)
        return cls(
            infos=tuple(infos), stacks=stacks, kinds=frozenset(kinds), ticker=ticker
        )

    def __iter__(self) -> Iterator[Event]:
        for piece in self.pieces():
            yield from piece.events()

    def only(self, kinds: Collection[int]) -> Iterator[Event]:
        """Yield the rows of some kinds."""
        wanted = self.kinds.intersection(kinds)
        return self.where(lambda values: np.isin(values["kind"], list(wanted)), wanted)

    def where(
        self, test: Callable[[Columns], npt.NDArray[np.bool_]], kinds: Collection[int]
    ) -> Iterator[Event]:
        """Yield the rows for which a test of their columns holds; nothing else is made
        into events. kinds: those that it can hold for.
        """
        if self.kinds.isdisjoint(kinds):
            return
        for piece in self.pieces():
            chosen = test(piece.values)
            if chosen.any():
                yield from piece.events(chosen)

    def batches(self) -> Iterator[tuple[pa.RecordBatch, int]]:
        """Yield what was read of the files, and how many bytes a base page has.

        Raises TraceFileError for a file that has changed since.
        """
        from cdmtrace.format.reader import TraceReader

        for info in self.infos:
            left = info.events
            with TraceReader(info.path) as reader:
                same = reader.header == info.header
                plausible = _Plausible(info.path, info.header.page_size)
                for batch in reader if same else ():
                    # It may have grown: what came later nobody has looked at.
                    if not left:
                        break
                    # And it may be anybody's, who has changed it.
                    plausible.require(batch.columns, counted=False)
                    yield batch.columns, info.header.page_size
                    left -= batch.columns.num_rows
            if left:
                raise TraceFileError(
                    f"{info.path}: it has changed while it was read",
                    hint="a recording that goes on can be followed: cdmtrace live "
                    f"{shlex.quote(str(info.path))}",
                )

    def _wanted(self) -> Iterator[tuple[pa.RecordBatch, int]]:
        """Yield what there is of the share in each batch, if anything."""
        for columns, page in self.batches():
            wanted = columns if self.share is None else self.share.rows_of(columns)
            if wanted.num_rows:
                yield wanted, page

    def pieces(self, most: int = _SLICE) -> Iterator[Piece]:
        """Yield the rows in pieces, none of which has more rows than most.

        A recorder writes what there is ten times a second, be it little.
        """
        causes = {number: stack.cause for number, stack in self.stacks.items()}
        total, done = sum(info.events for info in self.infos), 0
        what = f"going through {total:,} events"
        for columns, page in _joined(self._wanted(), most):
            for part in _slices(columns, most):
                yield Piece(part, causes, page)
                done += part.num_rows
                self.ticker(what, done, total)


def _joined(
    batches: Iterable[tuple[pa.RecordBatch, int]], most: int
) -> Iterator[tuple[pa.RecordBatch, int]]:
    """Yield batches, small ones of the same size of page together."""
    parts: list[pa.RecordBatch] = []
    of = rows = 0
    for columns, page in batches:
        # They say of which file they are.
        other = parts and not columns.schema.equals(parts[0].schema, True)
        if parts and (other or rows + columns.num_rows > most):
            yield _one(parts), of
            parts, rows = [], 0
        parts.append(columns)
        rows += columns.num_rows
        of = page
    if parts:
        yield _one(parts), of


def _one(parts: Sequence[pa.RecordBatch]) -> pa.RecordBatch:
    import pyarrow as pa

    if len(parts) == 1:
        return parts[0]
    (one,) = pa.Table.from_batches(parts).combine_chunks().to_batches()
    return one


class Piece:
    """Some rows that follow each other, as columns."""

    def __init__(
        self, columns: pa.RecordBatch, causes: Mapping[int, Cause | None], page: int
    ) -> None:
        """Take rows of a batch. causes: what each stack says. page: bytes of a base
        page.
        """
        self._causes, self._page = causes, page
        self._payloads = columns.column("payload")
        self.values: Columns = {
            name: column_values(columns.column(name)) for name in _FIXED
        }

    def __len__(self) -> int:
        return len(self._payloads)

    def until(self, seq: int) -> int:
        """Return how many of the rows come before that after the one of a number."""
        return int(np.searchsorted(self.values["seq"], seq, side="right"))

    @property
    def single(self) -> bool:
        """Whether each row is one event."""
        return not sanity.several(self.values, self._page).any()

    def events(self, chosen: Chosen | None = None) -> Iterator[Event]:
        """Yield the rows as events, those that are chosen; None: all.

        chosen: which, or their numbers, ascending. A row about several small pages of a
        folio, which newer kernels map and unmap together, is an event for each.
        """
        arrays = self.values
        if chosen is not None:
            arrays = {name: values[chosen] for name, values in arrays.items()}
        told = {name: values.tolist() for name, values in arrays.items()}
        told["cause"] = [
            cause
            if not stack or kind == EventKind.STACK
            # Of a stack that is not there nothing is told.
            else cause_of(cause, self._causes.get(stack))
            for cause, stack, kind in zip(
                told["cause"], told["stack"], told["kind"], strict=True
            )
        ]
        told["payload"] = self._told(chosen, len(told["seq"]))
        events = map(Event, *(told[name] for name in FIELDS))
        if not sanity.several(arrays, self._page).any():
            return events
        return itertools.chain.from_iterable(
            _singly(event, self._page) for event in events
        )

    def _told(self, chosen: Chosen | None, count: int) -> list[bytes | None]:
        """Return the payloads of rows; most have none."""
        if self._payloads.null_count == len(self._payloads):
            return [None] * count
        there: list[bytes | None] = self._payloads.to_pylist()
        if chosen is None:
            return there
        rows = np.arange(len(there))[chosen].tolist()
        return [there[row] for row in rows]


class Decoder:
    """Batches that come one by one, as rows: for a file that is still written.

    A recorder writes a stack before the first row that names it, so nothing is known
    of a row's cause later that is not known when it comes.
    """

    def __init__(self, path: str | os.PathLike[str], page: int) -> None:
        """Begin. path: what to call the file; page: bytes of a base page."""
        self.stacks: dict[int, Stack] = {}
        self._causes: dict[int, Cause | None] = {}
        self._plausible = _Plausible(path, page)
        self._page = page

    def rows(self, columns: pa.RecordBatch) -> Iterator[Event]:
        """Yield the rows of one batch, each with the cause that its stack tells.

        What was yielded is not kept, but for the stacks. Raises TraceFileError for
        rows that no kernel can have told.
        """
        self._plausible.require(columns)
        new = stacks_of(columns)
        self.stacks |= new
        self._causes |= {number: stack.cause for number, stack in new.items()}
        for part in _slices(columns):
            yield from Piece(part, self._causes, self._page).events()


class _Plausible:
    """The batches of one file, each looked at before its rows are made of it."""

    def __init__(self, path: str | os.PathLike[str], page: int) -> None:
        self._path, self._page = path, page
        self._pages = 0

    def require(self, columns: pa.RecordBatch, *, counted: bool = True) -> None:
        """Raise TraceFileError for a batch that has a row which cannot be.

        counted: and for more pages, with those of the batches before, than there is
        memory for.
        """
        try:
            self._pages += sanity.pages_before(columns, self._page)
            self._pages += sanity.batched(columns, self._page)
            why = sanity.implausible(columns, self._page)
            if counted:
                why = why or sanity.too_many(self._pages)
        except ValueError as error:
            why = str(error)
        if why:
            raise TraceFileError(
                f"{self._path}: {why}",
                hint=f"cdmtrace info {shlex.quote(str(self._path))} says what made it",
            )


def stacks_of(columns: pa.RecordBatch) -> dict[int, Stack]:
    """Return the stacks that a batch tells, by number."""
    rows = np.flatnonzero(column_values(columns.column("kind")) == EventKind.STACK)
    numbers, payloads = columns.column("stack"), columns.column("payload")
    return {
        numbers[row].as_py(): Stack.parse(payloads[row].as_py())
        for row in rows.tolist()
    }


def _slices(columns: pa.RecordBatch, most: int = _SLICE) -> Iterator[pa.RecordBatch]:
    for first in range(0, columns.num_rows, most):
        yield columns.slice(first, most)


def cause_of(seen: int, told: Cause | None) -> int:
    """Return the cause of a row. seen: what its probe says; told: what its stack says,
    None if that is nothing, or there is none.
    """
    if told is None:
        return seen
    # A page that a driver or a file has given out is faulted in like any other.
    faulted = seen == Cause.FILE and told is Cause.FAULT
    return seen if faulted or seen in (Cause.DRIVER, Cause.CPUSET) else told


def _singly(event: Event, page: int) -> Iterable[Event]:
    several = page < event.size < sanity.table(page)
    if not several or not event.addr or event.kind not in sanity.MAPPED:
        return (event,)
    return (
        replace(event, addr=addr, size=page)
        for addr in range(event.addr, event.addr + event.size, page)
    )
