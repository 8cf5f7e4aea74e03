"""``cdmtrace report``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cdmtrace.cli import judging
from cdmtrace.cli.fleet import Fleet, of_recordings, tell_failed
from cdmtrace.cli.options import format_option, of_no_use, option, profile_option
from cdmtrace.cli.progress import ticker
from cdmtrace.errors import ExitStatus, UsageTrouble
from cdmtrace.render.tables import FORMATS

if TYPE_CHECKING:
    from cdmtrace.analysis.frames import Trace


@click.command()
@of_recordings
@format_option(FORMATS, "How to print the tables.")
@option(
    "--html",
    type=click.Path(path_type=Path),
    metavar="OUT",
    help="Instead of printing tables, write a page to look at: VMAs over time, "
    "findings, migrations. One file, which needs no network.",
)
@option("--force", is_flag=True, help="Replace OUT if it is there.")
@profile_option("Under which specification the page has findings.")
def report(
    fleet: Fleet,
    form: str,
    html: Path | None,
    force: bool,
    profile: str,
) -> int:
    """What happened: processes, VMAs, nodes, migrations, writes of vm_flags.

    Several files have to be parts of one recording (record --rotate). A FILE may be a
    directory, or a URL such as s3://BUCKET/PREFIX: then the tables are sums over every
    recording in it, which several processes read, or a Dask cluster (--scheduler).

    Tables are cut after 20 rows, those that count most first; json, ndjson and csv
    have all rows, and sizes in bytes.
    """
    from cdmtrace.analysis import frames
    from cdmtrace.render import tables

    unused = ("force", "profile") if html is None else ("form",)
    for name in unused:
        option_name = {"form": "--format"}.get(name, f"--{name}")
        what = "is about --html" if html is None else "is not about --html"
        of_no_use(
            name,
            f"{option_name} {what}",
            hint="cdmtrace report --html OUT FILE writes a page, and no table",
        )
    if html is not None:
        of_no_use(
            "workers",
            "--workers is about tables: a page is made by one process",
            hint="leave it out",
        )
    if fleet.wanted:
        if html is not None:
            raise UsageTrouble(
                "--html is about one recording",
                hint="cdmtrace report --html OUT FILE, and the parts of it, if any",
            )
        return _fleet(fleet, form)
    files = fleet.paths
    if html is None:
        trace = frames.load(*files, ticker=ticker())
        click.echo(tables.render(_tables(trace, fleet.workers), form), nl=False)
    else:
        trace = _page(files, html, force, profile)
    _tell(trace)
    return ExitStatus.OK


def _tables(trace: Trace, workers: int | None) -> dict[str, list[dict[str, Any]]]:
    """Return what a recording comes to, by as many processes as are of use."""
    from cdmtrace import parallel
    from cdmtrace.analysis import aggregate

    found = parallel.parted(trace, workers)
    if not found:
        return aggregate.report(trace)
    return aggregate.put_together(
        trace, parallel.each(trace, found, aggregate.of_share)
    )


def _fleet(fleet: Fleet, form: str) -> int:
    """Print what many recordings come to, and return the status."""
    from cdmtrace.analysis import fleet as whole
    from cdmtrace.fleet import work
    from cdmtrace.render import fleet as render

    survey = fleet.survey(work.report, full=form == "json")
    told = whole.report(survey.recordings, survey.failed)
    click.echo(render.report(told, form), nl=False)
    tell_failed(told)
    status: int = told["status"]
    return status


def _page(files: Sequence[Path], out: Path, force: bool, profile: str) -> Trace:
    """Write the page, and return what it is about."""
    from cdmtrace import units
    from cdmtrace.analysis import frames, page
    from cdmtrace.output import created
    from cdmtrace.render import html

    plotly = html.plotly_js()
    trace = frames.load(*files, ticker=ticker())
    with created(out, force=force) as file:
        judged_by = judging.JudgedBy(profile=profile).typed()
        built = page.build(trace, profile=profile, judged_by=judged_by)
        text = html.page(built, plotly=plotly)
        # A name of a file need not be text.
        size = file.write(text.encode(errors="backslashreplace"))
    click.echo(f"cdmtrace: {out}: {units.size(size)}, for any browser", err=True)
    return trace


def _tell(trace: Trace) -> None:
    """Say on stderr what the recording has not."""
    from cdmtrace import units

    file = trace.path
    if trace.cut:
        click.echo(f"cdmtrace: {file}: cut: {trace.cut}", err=True)
    missing = [name for name, symbol in trace.terms.probes.items() if symbol is None]
    if missing:
        click.echo(
            f"cdmtrace: {file}: not attached, so not counted: {', '.join(missing)}",
            err=True,
        )
    if trace.before:
        click.echo(
            f"cdmtrace: {file}: {trace.before.count:,} rows of this recording came "
            "before; what was there then is not counted",
            err=True,
        )
    if trace.lost:
        lost = units.count(trace.lost, "event")
        click.echo(f"cdmtrace: {file}: {lost} lost; the counts are too low", err=True)
