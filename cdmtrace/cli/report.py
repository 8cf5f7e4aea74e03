"""``cdmtrace report``."""

from __future__ import annotations

from pathlib import Path

import click

from cdmtrace.cli.options import option
from cdmtrace.cli.progress import ticker
from cdmtrace.render.tables import FORMATS


@click.command()
@click.argument(
    "files",
    nargs=-1,
    required=True,
    metavar="FILE...",
    type=click.Path(path_type=Path),
)
@option(
    "--format",
    "form",
    type=click.Choice(FORMATS),
    default=FORMATS[0],
    show_default=True,
    help="How to print the tables.",
)
def report(files: tuple[Path, ...], form: str) -> None:
    """What happened: processes, VMAs, nodes, migrations, writes of vm_flags.

    Several files have to be parts of one recording (record --rotate).

    Tables are cut after 20 rows, those that count most first; json, ndjson and csv
    have all rows, and sizes in bytes.
    """
    from cdmtrace.analysis import aggregate, frames
    from cdmtrace.render import tables
    from cdmtrace.render.units import count

    trace = frames.load(*files, ticker=ticker())
    file = trace.path
    click.echo(tables.render(aggregate.report(trace), form), nl=False)
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
        lost = count(trace.lost, "event")
        click.echo(f"cdmtrace: {file}: {lost} lost; the counts are too low", err=True)
