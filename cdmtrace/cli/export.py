"""``cdmtrace export``."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from cdmtrace.cli.options import SPECIFICATIONS, files_argument, of_no_use, option
from cdmtrace.cli.progress import ticker
from cdmtrace.errors import UsageTrouble

if TYPE_CHECKING:
    from cdmtrace.format.reader import TraceInfo

FORMATS: Final = ("parquet", "csv", "ndjson", "perfetto")
"""What a recording is exported to."""

_BINARY: Final = {"parquet": "events.parquet", "perfetto": "my.pftrace"}
"""Those that are for a file alone, and how one may be called."""


@click.command()
@click.argument("form", metavar="FORMAT", type=click.Choice(FORMATS))
@files_argument()
@option(
    "--output",
    "-o",
    type=click.Path(path_type=Path),
    metavar="OUT",
    help="Where it goes; csv and ndjson go to stdout without it.",
)
@option("--force", is_flag=True, help="Replace OUT if it is there.")
@option(
    "--profile",
    type=click.Choice(SPECIFICATIONS),
    help="perfetto: under which specification findings are shown; intended without it.",
)
def export(
    form: str,
    files: tuple[Path, ...],
    output: Path | None,
    force: bool,
    profile: str | None,
) -> None:
    """Write a recording as parquet, csv, ndjson or perfetto.

    Several files have to be parts of one recording (record --rotate). parquet, csv and
    ndjson: as many rows as there are in the file come out, with names for numbers, and
    with each row the name that its task had, and its stack. A batch at a time is in
    memory.

    perfetto: a trace for Perfetto (ui.perfetto.dev, trace_processor): VMAs that are
    worth a look, as tracks of their processes, with tags, pages by node and findings,
    and system calls.
    """
    if output is None and form in _BINARY:
        raise UsageTrouble(
            f"{form} is not for a terminal or a pipe: no -o", hint=f"-o {_BINARY[form]}"
        )
    if output is None and force:
        why = "--force without -o replaces nothing"
        of_no_use("force", why, hint="-o OUT --force")
    if profile and form != "perfetto":
        of_no_use(
            "profile",
            f"--profile is about findings, which {form} does not have",
            hint=f"export perfetto --profile {profile}",
        )
    if form == "perfetto" and output:
        _tracks(files, output, force, profile or SPECIFICATIONS[0])
    else:
        _rows(form, files, output, force)


def _tracks(files: tuple[Path, ...], output: Path, force: bool, profile: str) -> None:
    """Write a recording as tracks of time."""
    from cdmtrace.analysis import frames
    from cdmtrace.analysis.tracks import Tracks
    from cdmtrace.output import created
    from cdmtrace.render import perfetto
    from cdmtrace.units import count

    perfetto.require()
    trace = frames.load(*files, ticker=ticker())
    tracks = Tracks(trace, profile=profile)
    with created(output, force=force) as file:
        packets = perfetto.write(tracks.items(), tracks.clock, file)
    told = [f"{trace.path}: cut: {trace.cut}"] if trace.cut else []
    if trace.lost:
        told.append(f'{count(trace.lost, "event")} lost: the track "lost" has when')
    vmas, found = count(tracks.vmas, "VMA"), count(tracks.found, "finding")
    told += [f"{vmas}, {found}, {count(packets, 'packet')}: open it in ui.perfetto.dev"]
    for line in told:
        click.echo(f"cdmtrace: {line}", err=True)


def _rows(form: str, files: tuple[Path, ...], output: Path | None, force: bool) -> None:
    """Write the rows of a recording."""
    from cdmtrace.analysis import export as exporting
    from cdmtrace.analysis import frames, parts
    from cdmtrace.format.reader import TraceReader
    from cdmtrace.output import created
    from cdmtrace.render import events

    in_order = parts.one_recording(files)
    text = form != "parquet"
    with TraceReader(in_order[0]) as first:
        terms = frames.terms_of(first.header, first.path)
    exporter = exporting.Exporter(terms, text=text)
    infos: list[TraceInfo] = []
    batches = exporting.batches(in_order, exporter, infos, ticker())
    schema = exporting.schema(text=text)
    if output is None:
        events.write(batches, schema, form, sys.stdout.buffer)
        sys.stdout.buffer.flush()
    else:
        with created(output, force=force) as file:
            events.write(batches, schema, form, file)
    tell_missing(infos, exporter.left_out)
    if output is not None:
        rows = sum(info.events for info in infos)
        click.echo(f"cdmtrace: {rows:,} rows: {_reads(form, output)}", err=True)


def tell_missing(infos: Sequence[TraceInfo], left_out: int) -> None:
    """Say on stderr what is not among the rows."""
    from cdmtrace.analysis import frames
    from cdmtrace.units import count

    told = [f"{info.path}: cut: {info.torn}" for info in infos if info.torn]
    told += [
        f"{hole.gap.count:,} rows are missing {hole.gap.reason}"
        for hole in frames.joints(infos)
    ]
    if lost := sum(loss.count for info in infos for loss in info.losses):
        told.append(
            "1 event was lost, and has no row"
            if lost == 1
            else f"{lost:,} events were lost, and have no row"
        )
    if left_out:
        rows = count(left_out, "row")
        told.append(f"which pages they list is left out of {rows} of kind snap_ranges")
    for line in told:
        click.echo(f"cdmtrace: {line}", err=True)


def _reads(form: str, output: Path) -> str:
    """Return a command that reads it."""
    if form == "ndjson":
        return f"pandas.read_json({str(output)!r}, lines=True)"
    return f"pandas.read_{form}({str(output)!r})"
