"""What a worker does with a recording. It is called by Dask, in a process of Dask's.

What goes back is a plain document, of an error too: a worker that cannot raise can
write neither traceback nor arguments to a log.
"""

from __future__ import annotations

import contextlib
import functools
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from msgspec.structs import replace

from cdmtrace import __version__
from cdmtrace.analysis import (
    aggregate,
    baseline,
    document,
    fleet,
    ownrules,
    permissions,
)
from cdmtrace.analysis.asked import Asked
from cdmtrace.analysis.baseline import Baseline
from cdmtrace.analysis.frames import Trace, load
from cdmtrace.analysis.permissions import Permissions
from cdmtrace.analysis.status import exit_status
from cdmtrace.errors import CdmtraceError
from cdmtrace.fleet import fetch
from cdmtrace.fleet.places import Place, said
from cdmtrace.format.schema import printable

Reply = dict[str, Any]
"""``version`` of who has done the work, and ``done``, a document, or ``error``."""

COPY_LIMIT: Final = 4 << 30
"""Bytes that a file may have to be copied, where nobody says."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Question:
    """What every worker is asked of its recordings.

    rules, profile, permissions: as Asked has them. own: files of rules, path and
    source each: a worker need not have the files. known, named, allow_inconclusive: as
    for exit_status(). full: whether the document itself is wanted, too. limit: bytes
    of a file that is copied.
    """

    rules: frozenset[str] | None = None
    profile: str = ""
    permissions: Permissions = permissions.DEFAULT
    own: tuple[tuple[str, bytes], ...] = ()
    known: Baseline = baseline.NONE
    named: bool = False
    allow_inconclusive: bool = False
    full: bool = False
    limit: int = COPY_LIMIT


def failed(message: str, hint: str | None = None) -> Reply:
    """Return the reply of work that came to nothing."""
    return _reply(CdmtraceError(message, hint=hint))


def error(one: CdmtraceError) -> dict[str, Any]:
    """Return an error as a document."""
    return {"message": one.message, "hint": one.hint, "details": one.details}


def _reply(one: CdmtraceError) -> Reply:
    return {"version": __version__, "error": error(one)}


def _replied(
    work: Callable[..., Any],
) -> Callable[..., Reply]:
    """Have whatever work raises be a reply."""

    @functools.wraps(work)
    def reply(places: Sequence[Place], *more: Any) -> Reply:
        try:
            return {"version": __version__, "done": work(places, *more)}
        except CdmtraceError as trouble:
            return _reply(trouble)
        except MemoryError:
            return failed(
                f"{places[0]}: a worker has not enough memory for it",
                "workers with more memory, or fewer of them on a machine",
            )
        except Exception as fault:
            where = traceback.extract_tb(fault.__traceback__)[-1]
            return _reply(
                CdmtraceError(
                    f"{places[0]}: this is a fault of cdmtrace: {said(fault)}",
                    details=f"{where.filename}, line {where.lineno}",
                )
            )

    return reply


@_replied
def head(places: Sequence[Place]) -> dict[str, Any]:
    """Return which part of which recording a file is, and where that was made."""
    header = fetch.header(places[0])
    return {
        "part": header.part and header.part.to_json(),
        "machine": printable(header.machine),
        "boot_id": printable(header.boot_id),
    }


@_replied
def check(places: Sequence[Place], question: Question) -> dict[str, Any]:
    """Return what ``check`` finds in a recording, of which these are the parts."""
    with _loaded(places, question.limit) as trace:
        asked = Asked(
            rules=question.rules,
            profile=question.profile,
            permissions=question.permissions,
            own=ownrules.run((Path(path), text) for path, text in question.own),
        )
        result = asked.judge(trace)
        found = document.check(result, question.known, named=question.named)
        status = exit_status(
            [result],
            named=question.named,
            allow_inconclusive=question.allow_inconclusive,
            known=question.known,
        )
    return fleet.judged(found, int(status), full=question.full)


@_replied
def report(places: Sequence[Place], question: Question) -> dict[str, Any]:
    """Return what ``report`` counts in a recording, of which these are the parts."""
    with _loaded(places, question.limit) as trace:
        return fleet.counted(trace, aggregate.report(trace), full=question.full)


@contextlib.contextmanager
def _loaded(places: Sequence[Place], limit: int) -> Iterator[Trace]:
    """Have a recording that is called as its places are, as errors about it are."""
    with fetch.local(places, limit) as paths:
        names = {
            str(path): place.name for path, place in zip(paths, places, strict=True)
        }
        try:
            trace = load(*paths)
            yield replace(
                trace,
                path=names[trace.path],
                files=tuple(names[file] for file in trace.files),
                cut=trace.cut and fetch.called(trace.cut, names),
            )
        except CdmtraceError as error:
            raise fetch.renamed(error, names) from error
