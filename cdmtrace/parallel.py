"""One recording, gone through by several processes, each of which has a share of it.

Processes and not threads: what takes the time is Python. Nobody listens to anything: a
process says what it has found through a pipe that it was given, and one that is told
nothing to write to any more, as whoever asked has died, ends.
"""

from __future__ import annotations

import contextlib
import dataclasses
import multiprocessing
import os
import signal
import traceback
from collections.abc import Callable, Iterator, Sequence
from multiprocessing import connection, resource_tracker
from typing import TYPE_CHECKING, Any, Final, TypeVar

from msgspec.structs import replace

from cdmtrace.analysis import partition
from cdmtrace.analysis.rows import Rows, no_ticker
from cdmtrace.errors import CdmtraceError
from cdmtrace.signals import signals_later, signals_to, signals_unwind

if TYPE_CHECKING:
    from multiprocessing.connection import Connection
    from multiprocessing.process import BaseProcess

    from cdmtrace.analysis.frames import Trace
    from cdmtrace.analysis.partition import Share

WORTH: Final = 200_000
"""Rows of a recording from which on the others, which take half a second to start, are
of use where nobody says how many there are to be."""

_UNEVEN: Final = 0.9
"""Part of all rows that the largest share may have."""

_Found = TypeVar("_Found")

Work = Callable[["Trace", "Share"], _Found]
"""What is done with a share. Like what it returns, it can be pickled."""


def shares(trace: Trace, workers: int | None) -> list[Share]:
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
    found = partition.shares((columns for columns, _ in rows.batches()), many)
    of = sum(share.rows for share in found)
    if len(found) < 2 or max(share.rows for share in found) > _UNEVEN * of:
        return []
    return found


def each(trace: Trace, found: Sequence[Share], work: Work[_Found]) -> list[_Found]:
    """Return what comes of the work on each share.

    Raises what the work raises, if that is a CdmtraceError, and one for a process that
    dies. Whatever is raised, also by a signal, no process is left.
    """
    rows = trace.events
    assert isinstance(rows, Rows)
    ticker, of = rows.ticker, sum(share.rows for share in found)
    what = f"going through {trace.count:,} events"
    # Who shows how far it is stays here.
    trace = replace(trace, events=dataclasses.replace(rows, ticker=no_ticker))
    done, results = [0] * len(found), dict[int, _Found]()
    with signals_unwind(), _started(trace, found, work) as workers:
        waiting = {one.pipe.fileno(): number for number, one in enumerate(workers)}
        while waiting:
            for pipe in connection.wait(list(waiting)):
                assert isinstance(pipe, int)
                number = waiting[pipe]
                kind, said = _heard(workers[number])
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


@contextlib.contextmanager
def _started(
    trace: Trace, found: Sequence[Share], work: Work[Any]
) -> Iterator[list[_Worker]]:
    """Have processes that work, for as long as the block takes."""
    context = multiprocessing.get_context("spawn")
    workers: list[_Worker] = []
    try:
        # Ctrl-C is sent to all processes of a terminal, and it is we who end them. What
        # multiprocessing starts beside its first process lets signals through again.
        resource_tracker.ensure_running()
        came: list[int] = []
        # A process of which the start is broken off complains. And while this thread
        # takes no signals, another one may.
        with signals_later(), signals_to(came.append):
            for share in found:
                ours, theirs = context.Pipe(duplex=False)
                process = context.Process(
                    target=_work, args=(theirs, trace, share, work), daemon=True
                )
                workers.append(_Worker(process=process, pipe=ours))
                process.start()
                theirs.close()
        if came:
            signal.raise_signal(came[0])
        yield workers
    finally:
        for one in workers:
            if one.process.pid is not None:
                one.process.kill()
                one.process.join()
            one.pipe.close()


def _heard(worker: _Worker) -> tuple[str, Any]:
    """Return what a process says; that it has died is a failure, too."""
    try:
        kind, said = worker.pipe.recv()
    except EOFError:
        worker.process.join()
        return "failed", CdmtraceError(
            "a process that had a share of the recording has died: "
            f"{_how(worker.process.exitcode or 0)}",
            hint="--workers 1 has one do it all; the kernel's log says whether memory "
            "was short",
        )
    return kind, said


def _how(status: int) -> str:
    return signal.Signals(-status).name if status < 0 else f"status {status}"


def _work(
    pipe: Connection[Any, Any], trace: Trace, share: Share, work: Work[Any]
) -> None:
    """Say how far it is, and what came of it. The process's main function."""
    rows = trace.events
    assert isinstance(rows, Rows)

    def tick(what: str, done: int, total: int) -> None:
        del what, total
        pipe.send(("rows", done))

    # Who asked may have died.
    with contextlib.suppress(BrokenPipeError):
        try:
            shown = replace(trace, events=dataclasses.replace(rows, ticker=tick))
            told: tuple[str, Any] = "found", work(shown, share)
        except BrokenPipeError:
            raise
        except (CdmtraceError, MemoryError) as error:
            told = "failed", error
        except Exception:
            told = (
                "failed",
                CdmtraceError(
                    "this is a fault of cdmtrace", details=traceback.format_exc()
                ),
            )
        pipe.send(told)
