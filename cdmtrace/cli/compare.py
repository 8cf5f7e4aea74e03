"""``cdmtrace compare``."""

from __future__ import annotations

from pathlib import Path

import click

from cdmtrace.cli import judging
from cdmtrace.cli.options import files_argument, format_option
from cdmtrace.errors import UsageTrouble
from cdmtrace.render.tables import FORMATS


@click.command()
@files_argument(metavar="A B")
@judging.judged_by
@format_option(FORMATS, "How to print it; json is one document.")
def compare(
    files: tuple[Path, ...],
    by: judging.JudgedBy,
    form: str,
) -> int:
    """Compare the findings of two recordings: new in B, gone, unchanged.

    A is the one before, B the one after: another kernel, or another version of a patch.
    Either may be all parts of a recording (record --rotate); A is the one whose file is
    given first.

    Findings are the same that have the same id, in which is no address, pid or time.
    Where a rule could not be judged in B, its findings are not gone, and where it could
    not be judged in A, it is told that they may not be new.

    The exit status: 1 for a finding in B that is a warning or an error and was not in
    A, 0 if there is none, 2 for trouble.
    """
    from cdmtrace.analysis import compare as comparing
    from cdmtrace.analysis import document, parts, status
    from cdmtrace.render import compare as render

    asked = by.asked()
    recordings = parts.recordings(files)
    if len(recordings) != 2:
        many = "one" if len(recordings) == 1 else str(len(recordings))
        raise UsageTrouble(
            f"compare takes two recordings, and this is {many}",
            hint="cdmtrace compare BEFORE.arrows AFTER.arrows",
        )
    comparison = comparing.compare(*judging.results(recordings, asked))
    shown = document.compare(comparison, named=asked.rules is not None)
    click.echo(render.render(shown, form), nl=False)
    if form == FORMATS[0]:
        click.echo(f"cdmtrace: {render.next_command(shown, by.typed())}", err=True)
    return status.compared(comparison)
