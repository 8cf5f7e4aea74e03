"""``cdmtrace check``, also known as ``diff``."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cdmtrace.cli import judging
from cdmtrace.cli.fleet import Fleet, of_recordings, tell_failed
from cdmtrace.cli.options import format_option, of_no_use, option
from cdmtrace.errors import UsageTrouble
from cdmtrace.render.check import FORMATS

if TYPE_CHECKING:
    from cdmtrace.analysis.asked import Asked
    from cdmtrace.analysis.baseline import Baseline, Entry
    from cdmtrace.analysis.result import Result
    from cdmtrace.render.outcomes import Document


@click.command()
@of_recordings
@judging.judged_by
@format_option(
    FORMATS,
    "json: one document, for several recordings a list of them. sarif, junit, tap "
    "and github are for services that run tests.",
)
@option(
    "--baseline",
    "known_file",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Findings that are known, in TOML, each with a reason: they are counted, and "
    "set no exit status.",
)
@option(
    "--write-baseline",
    "new_file",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Write what was found as a baseline. What --baseline names is kept, with its "
    "reasons, but for entries that are stale.",
)
@option(
    "--reason",
    default="",
    metavar="TEXT",
    help="The reason of all that --write-baseline adds; without it, it is to be filled "
    "in.",
)
@option(
    "--force", is_flag=True, help="Let --write-baseline replace a file that is there."
)
@option(
    "--allow-inconclusive",
    is_flag=True,
    help="Exit with 0, not 3, whatever left a rule open; findings still give 1.",
)
def check(
    fleet: Fleet,
    by: judging.JudgedBy,
    form: str,
    known_file: Path | None,
    new_file: Path | None,
    reason: str,
    force: bool,
    allow_inconclusive: bool,
) -> int:
    """Hold traces against the reference model and print every divergence.

    Files that are parts of one recording (record --rotate) are put together, in
    whatever order they are given; other files are judged one by one.

    A FILE may be a directory, or a URL such as s3://BUCKET/PREFIX: then every recording
    in it is judged, each by itself, by several processes or a Dask cluster
    (--scheduler), and what is told is in how many of them there is what.

    The exit status is the verdict: 1 for a finding that is a warning or an error, and
    is not in the baseline, 3 for a rule that is inconclusive and not for information
    only (or that --rules names, and is inconclusive or unchecked), 0 for none of these,
    2 for trouble. It is the same in every format.
    """
    from cdmtrace.analysis import baseline, parts
    from cdmtrace.render import check as render

    for name in ("reason", "force") if new_file is None else ():
        about = f"--{name} is about --write-baseline"
        of_no_use(name, about, hint="--write-baseline FILE")
    sources = by.sources()
    asked = by.asked(sources)
    known = judging.known(known_file)
    if fleet.wanted:
        if new_file is not None:
            raise UsageTrouble(
                "--write-baseline is about recordings that are named one by one",
                hint="cdmtrace check --write-baseline FILE, and the recordings",
            )
        fleet.require_form(form)
        question = judging.question(asked, sources, known)
        question |= {"allow_inconclusive": allow_inconclusive, "full": form == "json"}
        return _fleet(fleet, asked, known, question, form, by.typed())
    if by.rules_from and fleet.workers != 1:
        of_no_use(
            "workers",
            "--workers is not for rules from files, which one process knows",
            hint="leave --workers or --rules-from out",
        )
    files = fleet.paths
    results = judging.results(parts.recordings(files), asked, workers=fleet.workers)
    if new_file is not None:
        _write(results, known, new_file, reason=reason, force=force)
    call = judging.told(
        results,
        known,
        named=asked.rules is not None,
        allow_inconclusive=allow_inconclusive,
    )
    click.echo(render.render(call, form), nl=False)
    if form == FORMATS[0]:
        _say_what_next(call.documents, list(map(str, files)), by.typed())
    _say_stale(known, baseline.stale(known, results))
    return call.status


def _fleet(
    fleet: Fleet,
    asked: Asked,
    known: Baseline,
    question: dict[str, Any],
    form: str,
    again: Sequence[str],
) -> int:
    """Check a fleet of recordings, tell what came of it, and return the status."""
    from cdmtrace.analysis import fleet as whole
    from cdmtrace.analysis.permissions import require_nodes
    from cdmtrace.fleet import work
    from cdmtrace.render import fleet as render

    survey = fleet.survey(work.check, **question)
    if not survey.failed:
        require_nodes(asked.permissions, whole.nodes(survey.recordings))
    told = whole.check(survey.recordings, survey.failed, asked.profile)
    click.echo(render.check(told, form), nl=False)
    tell_failed(told)
    if form == FORMATS[0] and (command := render.next_command(told, again)):
        click.echo(f"cdmtrace: the first one as an argument: {command}", err=True)
    _say_stale(known, whole.stale(known, told))
    status: int = told["status"]
    return status


def _write(
    results: Sequence[Result], known: Baseline, file: Path, *, reason: str, force: bool
) -> None:
    """Write what was found as a baseline. Raises UsageTrouble where one is there."""
    from cdmtrace.analysis import baseline
    from cdmtrace.output import created
    from cdmtrace.units import count

    drawn_up = baseline.drawn_up(results, reason, known)
    with created(file, force=force) as opened:
        opened.write(baseline.text(drawn_up).encode())
    empty = sum(not one.reason.strip() for one in drawn_up.entries.values())
    told = f"{file}: {count(len(drawn_up.entries), 'entry', 'entries')}"
    click.echo(
        f"cdmtrace: {told}, of which {empty} want a reason"
        if empty
        else f"cdmtrace: {told}: check --baseline {file}",
        err=True,
    )


def _say_what_next(
    documents: Sequence[Document], files: list[str], again: Sequence[str]
) -> None:
    """Say how to see the first finding as an argument."""
    from cdmtrace.render import divergence

    shown = [one for one in documents[0]["findings"] if not one["suppressed"]]
    # What was a stream is over.
    if any(file.startswith(("/dev/", "/proc/")) for file in files):
        return
    if len(documents) == 1 and shown:
        command = divergence.explained(files, again, shown[0]["fingerprint"])
        click.echo(f"cdmtrace: the first one as an argument: {command}", err=True)


def _say_stale(known: Baseline, entries: Iterable[Entry]) -> None:
    """Say which entries of a baseline nothing was found of."""
    for entry in entries:
        click.echo(
            f"cdmtrace: {known.file}: stale, nothing was found of {entry}", err=True
        )
