"""One recording, gone through by several processes, each of which has a share of it.

Processes and not threads: what takes the time is Python. Nobody listens to anything:
each process and this one have a pair of sockets. One that has nobody to write to any
more, as whoever asked has died, ends when it would say how far it is.
"""

from __future__ import annotations

import contextlib
import dataclasses
import multiprocessing
import os
import pickle
import signal
import traceback
from collections.abc import Callable, Iterator, Sequence
from multiprocessing import connection, resource_tracker
from typing import TYPE_CHECKING, Any, Final, TypeVar

from msgspec.structs import replace

from cdmtrace.analysis import partition
from cdmtrace.analysis.rows import Rows, no_ticker
from cdmtrace.errors import CdmtraceError
from cdmtrace.safepath import safe_path
from cdmtrace.signals import signals_held, signals_unwind

if TYPE_CHECKING:
    from multiprocessing.connection import Connection
    from multiprocessing.process import BaseProcess

    import pyarrow as pa

    from cdmtrace.analysis.frames import Trace
    from cdmtrace.analysis.partition import Share

WORTH: Final = 200_000
"""Rows of a recording from which on the others, which take a third of a second to
start, are of use where nobody says how many there are to be."""

_UNEVEN: Final = 0.9
"""Part of all rows that the largest share may have."""

_OURS_ALONE: Final = ("/dev/", "/proc/")
"""Places of files that are something else for another process."""

_Found = TypeVar("_Found")

Work = Callable[["Trace", "Share"], _Found]
"""What is done with a share. Like what it returns, it can be pickled."""


def parted(trace: Trace, workers: int | None) -> list[Share]:
    """Return the shares of a recording that processes are to have; none where one
    process is as good, or has to do it.

    workers: how many; None: as many as there are CPUs for us, if it is large.
    """
    many = workers or len(os.sched_getaffinity(0))
    rows = trace.events
    # Where rows are missing, what comes after begins anew, in all address spaces.
    if many < 2 or trace.breaks or not isinstance(rows, Rows):
        return []
    if workers is None and trace.count < WORTH:
        return []
    if any(file.startswith(_OURS_ALONE) for file in trace.files):
        return []
    found = partition.shares(_batches(rows, trace.count), many)
    of = sum(share.rows for share in found)
    if len(found) < 2 or max(share.rows for share in found) > _UNEVEN * of:
        return []
    return found


def _batches(rows: Rows, total: int) -> Iterator[pa.RecordBatch]:
    """Yield the batches of a recording, and tell how far it is."""
    done = 0
    for columns, _ in rows.batches():
        yield columns
        done += columns.num_rows
        rows.ticker(f"sharing {total:,} events", done, total)


def each(trace: Trace, found: Sequence[Share], work: Work[_Found]) -> list[_Found]:
    """Return what comes of the work on each share.

    Raises what the work raises, if that is a CdmtraceError or a MemoryError, and a
    CdmtraceError for a process that dies. Whatever is raised, also by a signal, no
    process is left. For the main thread only.
    """
    rows = trace.events
    assert isinstance(rows, Rows)
    ticker, of = rows.ticker, sum(share.rows for share in found)
    what = f"going through {trace.count:,} events"
    # Who shows how far it is stays here.
    trace = replace(trace, events=dataclasses.replace(rows, ticker=no_ticker))
    done, results = [0] * len(found), dict[int, _Found]()
    with signals_unwind() as raise_dropped, _started(len(found)) as workers:
        for worker, share in zip(workers, found, strict=True):
            worker.give((trace, share, work))
        waiting = {one.pipe.fileno(): number for number, one in enumerate(workers)}
        while waiting:
            for pipe in connection.wait(list(waiting)):
                raise_dropped()
                assert isinstance(pipe, int)
                number = waiting[pipe]
                kind, said = workers[number].hear()
                if kind == "rows":
                    # Some rows are for several shares.
                    done[number] = min(said, found[number].rows)
                elif kind == "found":
                    results[number] = said
                    done[number] = found[number].rows
                    del waiting[pipe]
                else:
                    raise said
                ticker(what, sum(done), of)
    return [results[number] for number in range(len(found))]


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class _Worker:
    process: BaseProcess
    pipe: Connection[Any, Any]

    def give(self, task: object) -> None:
        """Tell it what to do. One that has died is heard of when it is listened to."""
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self.pipe.send(task)

    def hear(self) -> tuple[str, Any]:
        """Return what it says; that it has died is a failure, too."""
        try:
            kind, said = self.pipe.recv()
        except (EOFError, OSError):
            # Be it in the middle of what it had to say.
            self.process.join()
            return "failed", _died(self.process.exitcode or 0)
        return kind, said


@contextlib.contextmanager
def _started(many: int) -> Iterator[list[_Worker]]:
    """Have processes that work, for as long as the block takes."""
    context = multiprocessing.get_context("spawn")
    workers: list[_Worker] = []
    try:
        # Ctrl-C is sent to all processes of a terminal, and it is we who end them: they
        # take no signals. What multiprocessing starts beside its first process lets
        # signals through again, so it is first. A process of which the start is broken
        # off complains, so none is.
        with safe_path():
            resource_tracker.ensure_running()
        with signals_held(), safe_path():
            for _ in range(many):
                ours, theirs = context.Pipe()
                # What it is given here goes through a pipe that nobody may read.
                process = context.Process(target=_work, args=(theirs,), daemon=True)
                workers.append(_Worker(process=process, pipe=ours))
                process.start()
                theirs.close()
        yield workers
    finally:
        with signals_held():
            started = [one for one in workers if one.process.pid is not None]
            for one in started:
                one.process.kill()
            for one in started:
                one.process.join()
            for one in workers:
                one.pipe.close()


def _died(status: int) -> CdmtraceError:
    """Return what to say of a process that has ended before it was done."""
    killed = status < 0
    how = signal.Signals(-status).name if killed else f"it has exited with {status}"
    why = "; the kernel's log says whether memory was short" if killed else ""
    return CdmtraceError(
        f"a process that had a share of the recording has died: {how}",
        hint=f"--workers 1 has one do it all{why}",
    )


def _work(pipe: Connection[Any, Any]) -> None:
    """Do what is to be done; say how far it is, and what came of it. The process's
    main function.
    """
    # Who asked may have died.
    with contextlib.suppress(BrokenPipeError, ConnectionResetError, EOFError):
        trace, share, work = pipe.recv()

        def tick(what: str, done: int, total: int) -> None:
            del what, total
            pipe.send(("rows", done))

        try:
            shown = replace(
                trace, events=dataclasses.replace(trace.events, ticker=tick)
            )
            told = pickle.dumps(("found", work(shown, share)))
        except ConnectionError:
            raise
        except (CdmtraceError, MemoryError) as error:
            told = pickle.dumps(("failed", error))
        except Exception:
            fault = CdmtraceError(
                "this is a fault of cdmtrace", details=traceback.format_exc()
            )
            told = pickle.dumps(("failed", fault))
        pipe.send_bytes(told)
