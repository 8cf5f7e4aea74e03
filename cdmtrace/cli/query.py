"""``cdmtrace query``."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import click

from cdmtrace.cli import judging
from cdmtrace.cli.options import format_option, of_no_use, option, size, typed
from cdmtrace.cli.progress import ticker
from cdmtrace.errors import UnreadableFile, UsageTrouble
from cdmtrace.render.tables import FORMATS
from cdmtrace.signals import signals_unwind

_EITHER: Final = "--file and --recipe exclude each other"


@click.command()
@click.argument("words", nargs=-1, metavar="FILE... SQL")
@option(
    "--file",
    "-f",
    "script",
    type=click.Path(path_type=Path),
    metavar="SCRIPT",
    help="Take the SQL from this file, and not from the command line.",
)
@option("--recipe", metavar="NAME", help="Run one of those that --list has.")
@option(
    "--list",
    "listed",
    is_flag=True,
    help="The recipes there are; with --recipe, the SQL of this one.",
)
@format_option(
    FORMATS,
    "How to print the answer; table and markdown show the first 1,000 rows.",
)
@option(
    "--memory",
    default="1G",
    show_default=True,
    metavar="SIZE",
    help="What the query may have of it. More than that goes to a directory in TMPDIR.",
)
@judging.judged_by
def query(
    words: tuple[str, ...],
    script: Path | None,
    recipe: str | None,
    listed: bool,
    form: str,
    memory: str,
    by: judging.JudgedBy,
) -> None:
    """Ask a recording in SQL.

    Tables are events, with the columns of export; recording, losses; and what comes of
    check by the same options: rules, findings, witnesses, vmas. SQL is DuckDB's. It can
    change nothing, and reads no other file. Several files have to be parts of one
    recording.
    """
    from cdmtrace.analysis import parts
    from cdmtrace.analysis import query as asking
    from cdmtrace.analysis.book import CHECK
    from cdmtrace.cli.export import tell_missing
    from cdmtrace.render import query as render

    if listed and (words or (script and typed("script"))):
        of_no_use(
            "listed",
            "--list is of the recipes there are, and asks no recording",
            hint="cdmtrace query --list",
        )
        listed = False
    if listed:
        click.echo(_recipes(recipe, form), nl=False)
        return
    names, sql = _asked(words, script, recipe)
    files = parts.one_recording(names)
    asked = by.asked()
    with (
        signals_unwind(),
        asking.asked(
            files,
            sql,
            memory=size(memory),
            judge=lambda: judging.results([files], asked, bounds=CHECK)[0],
            ticker=ticker(),
        ) as answer,
    ):
        for text in render.render(answer.columns, answer.rows, form):
            click.echo(text, nl=False)
        tell_missing(answer.infos, answer.left_out)


def _recipes(name: str | None, form: str) -> str:
    """Return the list of recipes, or the SQL of one."""
    from cdmtrace.analysis.recipes import recipes
    from cdmtrace.render import tables

    if name is not None:
        return _recipe(name)
    rows = [{"recipe": one.name, "about": one.about} for one in recipes().values()]
    return tables.render({"Recipes": rows}, form, None)


def _recipe(name: str) -> str:
    from cdmtrace.analysis.recipes import recipes

    found = recipes().get(name)
    if found is None:
        near = difflib.get_close_matches(name, recipes(), 1)
        raise UsageTrouble(
            f"--recipe {name}: there is none of this name",
            hint=f"--recipe {near[0]}" if near else "cdmtrace query --list has them",
        )
    return found.sql


def _asked(
    words: Sequence[str], script: Path | None, recipe: str | None
) -> tuple[Sequence[str], str]:
    """Return the files and the SQL. Raises UsageTrouble where one is missing."""
    if script is not None and recipe is not None:
        # What is typed counts, and a variable does nothing.
        if typed("script"):
            of_no_use("recipe", _EITHER, hint=f"--recipe {recipe}")
            recipe = None
        else:
            script = None
    if script is not None or recipe is not None:
        sql = _read(script) if script is not None else _recipe(recipe or "")
        if not words:
            raise UsageTrouble(
                "which recording to ask is not said",
                hint="give a FILE that cdmtrace record has written",
            )
        return words, sql
    if len(words) < 2:
        file = words[0] if words else "FILE"
        raise UsageTrouble(
            "query takes a recording and SQL",
            hint=f'cdmtrace query {file} "SELECT * FROM events", or --list for recipes',
        )
    return words[:-1], words[-1]


def _read(script: Path) -> str:
    try:
        return script.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is no UTF-8"
        raise UnreadableFile(
            f"{script}: cannot be read: {why}", hint="--file names a file of SQL"
        ) from error
