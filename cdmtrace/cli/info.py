"""``cdmtrace info``."""

from __future__ import annotations

from pathlib import Path

import click

from cdmtrace.cli.options import option


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@option(
    "--format",
    "form",
    type=click.Choice(["table", "json"]),
    default="table",
    show_default=True,
)
def info(file: Path, form: str) -> int:
    """Show what FILE says about itself, what it holds, and what was lost.

    A file that was cut is read up to the tear, and it is said where that is.
    """
    from cdmtrace.format.reader import TraceReader, count_kinds
    from cdmtrace.render.info import info_json, info_text

    with TraceReader(file) as trace:
        kinds = count_kinds(trace)
        show = info_json if form == "json" else info_text
        click.echo(show(trace.info, kinds))
    return 0
