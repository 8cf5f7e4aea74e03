"""The workers: a Dask cluster that is there, or one of this machine for one call.

A worker that dies is Dask's affair: what it was doing is done by another. But Dask
blames a death on all that the worker was to do, also on what only waited there; after
some deaths it gives all of that up. So what is given up is tried once more, one at a
time: who kills workers then, is guilty alone.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import shlex
import sys
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from multiprocessing import resource_tracker
from typing import TYPE_CHECKING, Any, Final

from cdmtrace import __version__
from cdmtrace.errors import CdmtraceError, UsageTrouble
from cdmtrace.fleet.places import Place, said
from cdmtrace.fleet.work import failed
from cdmtrace.format.schema import printable
from cdmtrace.safepath import safe_path
from cdmtrace.scratch import scratch
from cdmtrace.signals import signals_later

if TYPE_CHECKING:
    from distributed import Client, Future

Work = Callable[..., Mapping[str, Any]]
Reply = Mapping[str, Any]
Job = Sequence[Place]

AHEAD: Final = 256
"""Recordings that the scheduler knows of at a time: no more results wait for us."""

_LOOK: Final = 2.0
"""Seconds between two looks whether there are workers still."""

PATIENCE: Final = 60.0
"""Seconds without a worker after which nobody waits for one any more."""

_ANSWER: Final = 10.0
"""Seconds that a scheduler has to answer."""

_SETTINGS: Final = {
    # Of a cluster of our own: what was given up is tried anew anyway.
    "distributed.scheduler.allowed-failures": 1,
    # A worker that has been paused for want of memory may stay so for ever.
    "distributed.worker.memory.target": False,
    "distributed.worker.memory.spill": False,
    "distributed.worker.memory.pause": False,
    "distributed.worker.memory.terminate": 0.95,
    # Pages for browsers, which nobody looks at; they ask for no key.
    "distributed.scheduler.http.routes": [],
    "distributed.worker.http.routes": [],
}

_ALIKE: Final = "workers need the same cdmtrace, Python and Dask as this machine"

_ANY_PORT: Final = "127.0.0.1:0"

REQUIREMENTS: Final = (
    "cryptography>=41",
    "distributed>=2024.8",
    "fsspec[http]>=2024.6",
)
"""The extra ``fleet``."""


class Crew:
    """Workers that can be given work."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._seen = time.monotonic()

    def each(
        self, work: Work, jobs: Sequence[Job], *more: Any
    ) -> Iterator[tuple[int, Reply]]:
        """Yield the number of each job and the reply to it, in the order of replies.

        more: arguments of the work beside the job, the same for all.
        """
        suspects = []
        for number, reply in self._each(work, dict(enumerate(jobs)), more):
            if reply is None:
                suspects.append(number)
            else:
                yield number, reply
        for number in suspects:
            for _, reply in self._each(work, {number: jobs[number]}, more):
                yield (
                    number,
                    reply
                    or failed(
                        f"{jobs[number][0]}: each worker that was given it has died",
                        "it may need more memory than a worker has; the log of the "
                        "kernel, or of the worker, says what ended it",
                    ),
                )

    def _each(
        self, work: Work, jobs: Mapping[int, Job], more: Sequence[Any]
    ) -> Iterator[tuple[int, Reply | None]]:
        """Yield the same; None is the reply of what Dask has given up."""
        # A name of its own, for Dask remembers how many have died of one.
        name = f"cdmtrace-{secrets.token_hex(8)}"
        waiting = iter(jobs.items())
        running: dict[Future, int] = {}

        def lost(why: str, *numbers: int) -> Iterator[tuple[int, Reply]]:
            """Yield that of these, and of what is running or waiting."""
            rest = (number for number, _ in waiting)
            for number in (*numbers, *running.values(), *rest):
                yield number, failed(f"{jobs[number][0]}: {why}")

        while True:
            while len(running) < AHEAD and (job := next(waiting, None)):
                number, places = job
                key = f"{name}-{number}"
                try:
                    future = self._client.submit(
                        work, places, *more, key=key, pure=False
                    )
                except Exception:
                    # What is raised differs between releases.
                    if self._client.status != "closed":
                        raise
                    yield from lost("the scheduler does not answer any more", number)
                    return
                running[future] = number
            if not running:
                return
            done = _done(running)
            if done:
                self._seen = time.monotonic()
            elif not self._manned():
                yield from lost("there is no worker any more to read it")
                return
            for future in done:
                number = running.pop(future)
                reply = _reply(future, jobs[number])
                # What is still wanted is worked out anew when who has it dies.
                future.release()
                yield number, reply

    def _manned(self) -> bool:
        """Return whether there is still a worker, or one may come."""
        now = time.monotonic()
        # It may be lost while it is asked.
        with contextlib.suppress(OSError):
            client = self._client
            if client.status == "running" and client.scheduler_info().get("workers"):
                self._seen = now
        return now - self._seen < PATIENCE


@contextlib.contextmanager
def crew(scheduler: str | None, workers: int | None) -> Iterator[Crew]:
    """Have a crew for the block.

    scheduler: its address; None: workers are processes of this machine that end with
    the block, as many as workers says, or as there are CPUs for us. Raises UsageTrouble
    where no scheduler is, or where it has no worker, and CdmtraceError where Dask is
    not installed.
    """
    _require()
    with (
        _remote(scheduler) if scheduler else _local(workers) as client,
        client.as_current(),
    ):
        yield Crew(client)


def _require() -> None:
    try:
        import cryptography  # noqa: F401
        import distributed  # noqa: F401
        import fsspec  # noqa: F401
    except ImportError as error:
        raise CdmtraceError(
            f"a directory, a URL or --scheduler needs the package {error.name}, which "
            "is not installed",
            hint=shlex.join([sys.executable, "-m", "pip", "install", *REQUIREMENTS]),
        ) from error


@contextlib.contextmanager
def _remote(scheduler: str) -> Iterator[Client]:
    from distributed import Client

    shown = printable(scheduler)
    try:
        client = Client(scheduler, timeout=_ANSWER, set_as_default=False)
    except (OSError, ValueError, TypeError) as error:
        raise UsageTrouble(
            f"--scheduler {shown}: nobody answers there: {said(error)}",
            hint="such as tcp://HOST:8786, which `dask scheduler` prints",
        ) from error
    with client:
        try:
            client.wait_for_workers(1, timeout=_ANSWER)
        except TimeoutError as error:
            raise UsageTrouble(
                f"--scheduler {shown}: it has no workers",
                hint=f"dask worker {shown}, on every machine that has cdmtrace",
            ) from error
        yield client


@contextlib.contextmanager
def _local(workers: int | None) -> Iterator[Client]:
    """Have workers of this machine. They listen to nobody who has not our key, for
    whoever may talk to a worker may have it do anything.
    """
    import dask
    from distributed import Client, LocalCluster, Security

    with contextlib.ExitStack() as stack:
        directory = stack.enter_context(scratch("fleet", "a cluster"))
        stack.enter_context(dask.config.set(_SETTINGS))
        # Ctrl-C is sent to all processes of a terminal, and it is we who end workers:
        # they, and the thread that starts them, take no signals. What multiprocessing
        # starts beside its first process lets signals through again, so it is first.
        # Workers that die are started anew, so it is for all the time.
        stack.enter_context(safe_path())
        resource_tracker.ensure_running()
        with signals_later():
            cluster = LocalCluster(
                n_workers=workers or len(os.sched_getaffinity(0)),
                threads_per_worker=1,
                processes=True,
                host="127.0.0.1",
                dashboard_address=None,
                scheduler_kwargs={"dashboard": False, "dashboard_address": _ANY_PORT},
                security=Security.temporary(),
                silence_logs=logging.CRITICAL,
                local_directory=str(directory),
            )
            stack.enter_context(cluster)
        yield stack.enter_context(Client(cluster, set_as_default=False))


def _done(running: Mapping[Future, int]) -> Collection[Future]:
    """Return those that have ended; wait some time for one."""
    from distributed import CancelledError, wait

    with contextlib.suppress(TimeoutError, CancelledError):
        wait(list(running), timeout=_LOOK, return_when="FIRST_COMPLETED")
    return [future for future in running if future.done()]


def _reply(future: Future, job: Job) -> Reply | None:
    """Return what has come of a job, None if Dask has given it up."""
    from distributed.scheduler import KilledWorker

    try:
        if future.status == "error":
            error = future.exception(timeout=PATIENCE)
            if isinstance(error, KilledWorker):
                return None
            why = said(error) if error else "it does not say why"
            return failed(f"{job[0]}: a worker cannot do it: {why}", _ALIKE)
        reply: Reply = future.result(timeout=PATIENCE)
    except Exception as error:
        # Whatever becomes of a connection, and of what came by it.
        return failed(f"{job[0]}: its result is lost: {said(error)}", _ALIKE)
    if (version := reply.get("version")) != __version__:
        return failed(
            f"{job[0]}: was read by cdmtrace {printable(str(version))}, and this is "
            f"{__version__}",
            _ALIKE,
        )
    return reply
