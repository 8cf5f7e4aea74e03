"""``cdmtrace info``."""

from __future__ import annotations

import json
from pathlib import Path

import click

from cdmtrace.cli.options import files_argument, format_option


@click.command()
@files_argument()
@format_option(("table", "json"))
def info(files: tuple[Path, ...], form: str) -> int:
    """Show what each FILE says about itself, what it holds, and what was lost.

    A file that was cut is read up to the tear, and it is said where that is.
    """
    from cdmtrace.format.reader import TraceReader, count_kinds
    from cdmtrace.render.info import info_json, info_text

    found = []
    for file in files:
        with TraceReader(file) as trace:
            kinds = count_kinds(trace)
            found.append((trace.info, kinds))
    if form == "json":
        documents = [info_json(*one) for one in found]
        told = documents[0] if len(found) == 1 else documents
        click.echo(json.dumps(told, indent=2))
    else:
        click.echo("\n\n".join(info_text(*one) for one in found))
    return 0
