"""``cdmtrace check``, also known as ``diff``."""

from __future__ import annotations

import json
from pathlib import Path

import click

from cdmtrace.cli import judging
from cdmtrace.cli.options import judged_by, option


@click.command()
@click.argument(
    "files",
    nargs=-1,
    required=True,
    metavar="FILE...",
    type=click.Path(path_type=Path),
)
@judged_by
@option(
    "--format",
    "form",
    type=click.Choice(("table", "json")),
    default="table",
    show_default=True,
    help="json: one document, for several recordings a list of them.",
)
@option(
    "--allow-inconclusive",
    is_flag=True,
    help="Exit with 0, not 3, whatever left a rule open; findings still give 1.",
)
def check(
    files: tuple[Path, ...],
    rules: str | None,
    profile: str,
    allow: tuple[str, ...],
    permissions: Path | None,
    form: str,
    allow_inconclusive: bool,
) -> int:
    """Hold traces against the reference model and print every divergence.

    Files that are parts of one recording (record --rotate) are put together, in
    whatever order they are given; other files are judged one by one.

    The exit status is the verdict: 1 for a finding that is a warning or an error, 3
    for a rule that is inconclusive (or unchecked, if --rules names it), 0 for none of
    these, 2 for trouble.
    """
    from cdmtrace.analysis import document, parts, status
    from cdmtrace.render import divergence

    asked = judging.asked_for(rules, profile, allow, permissions)
    results = judging.results(parts.recordings(files), asked)
    documents = [document.check(result) for result in results]
    one = len(documents) == 1
    if form == "json":
        click.echo(json.dumps(documents[0] if one else documents, indent=2))
    else:
        click.echo("\n".join(map(divergence.check, documents)), nl=False)
        shown = documents[0]["findings"]
        if one and shown:
            command = divergence.explained(
                map(str, files),
                judging.typed(profile, allow, permissions),
                shown[0]["fingerprint"],
            )
            click.echo(f"cdmtrace: the first one as an argument: {command}", err=True)
    return status.exit_status(
        results,
        named=asked.rules is not None,
        allow_inconclusive=allow_inconclusive,
    )
