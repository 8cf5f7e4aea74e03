"""From words of a command line to what is known of each recording, and what is not."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cdmtrace.analysis.parts import in_order, together
from cdmtrace.analysis.rows import Ticker, no_ticker
from cdmtrace.errors import UsageTrouble
from cdmtrace.fleet import places, work
from cdmtrace.fleet.crew import Crew, Reply, Work, crew
from cdmtrace.fleet.places import Place
from cdmtrace.format.schema import Part

Document = dict[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class Survey:
    """What came of it.

    recordings: what the work gave, with name, machine and boot_id, in the order in
    which they were named. failed: name, files, message, hint and details of those of
    which it gave nothing.
    """

    recordings: list[Document]
    failed: list[Document]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Recording:
    """The parts of one, in order, and where it was made."""

    parts: list[Place]
    made: Document


def survey(
    words: Iterable[str | Path],
    job: Work,
    question: work.Question,
    *,
    scheduler: str | None = None,
    workers: int | None = None,
    ticker: Ticker = no_ticker,
) -> Survey:
    """Have workers do a job of ``work`` on every recording that words name.

    scheduler, workers: as for crew(), but that there are no more workers than files.
    ticker: is told how many recordings are done. Raises what find() and crew() raise;
    what is wrong with a recording is told of that one.
    """
    files = places.find(words)
    most = min(workers or len(os.sched_getaffinity(0)), len(files))
    with crew(scheduler, most) as hands:
        recordings, failed = _recordings(files, hands, ticker)
        done: dict[int, Document] = {}
        jobs = [one.parts for one in recordings]
        for number, reply in _ticking(hands, job, jobs, question, ticker):
            one = recordings[number]
            if "error" in reply:
                failed.append(_failure(one.parts, reply["error"]))
            else:
                done[number] = {
                    "name": str(one.parts[0]),
                    **one.made,
                    **reply["done"],
                }
    return Survey(
        recordings=[done[number] for number in sorted(done)],
        failed=sorted(failed, key=lambda one: one["name"]),
    )


def _recordings(
    files: Sequence[Place], hands: Crew, ticker: Ticker
) -> tuple[list[_Recording], list[Document]]:
    """Return the files by recording, and those of which nobody knows what they are."""
    made: dict[str, Document] = {}
    failed = []
    jobs = [[file] for file in files]
    for number, reply in _ticking(hands, work.head, jobs, None, ticker):
        if "error" in reply:
            failed.append(_failure(jobs[number], reply["error"]))
        else:
            made[files[number].at] = reply["done"]
    known = [file for file in files if file.at in made]
    recordings = []
    for group in together((file, _part(made[file.at])) for file in known):
        try:
            parts = in_order(group)
        except UsageTrouble as error:
            several = [file for number in sorted(group) for file in group[number]]
            failed.append(_failure(several, work.error(error)))
            continue
        told = {key: made[parts[0].at][key] for key in ("machine", "boot_id")}
        recordings.append(_Recording(parts=parts, made=told))
    return recordings, failed


def _ticking(
    hands: Crew,
    job: Work,
    jobs: Sequence[Sequence[Place]],
    question: work.Question | None,
    ticker: Ticker,
) -> Iterable[tuple[int, Reply]]:
    """Yield the replies, and tell how many there are."""
    what = "reading headers" if question is None else "reading recordings"
    more = () if question is None else (question,)
    ticker(what, 0, len(jobs))
    for many, found in enumerate(hands.each(job, jobs, *more), 1):
        yield found
        ticker(what, many, len(jobs))


def _part(head: Mapping[str, Any]) -> Part | None:
    told = head["part"]
    return Part.from_json(told) if told else None


def _failure(files: Sequence[Place], error: Document) -> Document:
    names = [str(file) for file in files]
    return {"name": names[0], "files": names, **error}
