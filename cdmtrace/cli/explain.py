"""``cdmtrace explain``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from cdmtrace.cli import judging
from cdmtrace.cli.options import format_option, of_no_use, option
from cdmtrace.errors import UsageTrouble
from cdmtrace.render.tables import FORMATS

if TYPE_CHECKING:
    from cdmtrace.analysis.rules import Rule


@click.command()
@click.argument("words", nargs=-1, metavar="[RULE | FILE... FINDING]")
@judging.judged_by
@option(
    "--all",
    "everything",
    is_flag=True,
    help="All rules in full, and what they and others cover.",
)
@format_option(FORMATS, "How rules are printed; an argument is text.")
def explain(
    words: tuple[str, ...],
    by: judging.JudgedBy,
    everything: bool,
    form: str,
) -> None:
    """Explain a rule, or one finding of a trace as an argument.

    RULE is an id or a name; without it all rules are listed. FINDING is the id that
    check prints with each divergence, or the beginning of one. Several files have to be
    parts of one recording. They are judged as check does it by the same options.
    """
    from cdmtrace.analysis import ownrules

    what = words[0] if words else None
    if everything and what is not None:
        of_no_use(
            "everything",
            f"--all and {what} exclude each other",
            hint=f"cdmtrace explain {what}",
        )
        everything = False
    if len(words) < 2:
        own = ownrules.read(by.rules_from)
        click.echo(_rules(what, everything, form, own), nl=False)
        return
    if form != FORMATS[0]:
        of_no_use(
            "form",
            f"--format {form}: an argument is text",
            hint=f"cdmtrace check --format json {' '.join(words[:-1])}",
        )
    click.echo(_argument(words[:-1], words[-1], by), nl=False)


def _rules(what: str | None, everything: bool, form: str, own: Sequence[Rule]) -> str:
    """Return one rule, all in full, or the list of them; own: from files."""
    from cdmtrace.analysis import document, invariants, rules
    from cdmtrace.render import divergence, rulebook

    listed = [document.rule(rule) for rule in (*rules.RULES, *own)]
    if everything:
        table = [document.invariant(one) for one in invariants.INVARIANTS]
        return rulebook.render(listed, table, form)
    if what is None:
        if form == FORMATS[0]:
            return divergence.catalogue(listed)
        keys = ("rule", "name", "severity")
        short = [{key: rule[key] for key in keys} for rule in listed]
        return rulebook.rows({rulebook.RULES: short}, form)
    rule = rules.find(what, own)
    if rule is None and Path(what).is_file():
        raise UsageTrouble(
            f"{what}: is a file, and which of its findings is not said",
            hint=f"cdmtrace check {what} prints their ids",
        )
    if rule is None:
        raise UsageTrouble(
            f"{what}: neither a rule nor a file",
            hint="cdmtrace explain lists all rules",
        )
    one = document.rule(rule)
    if form == FORMATS[0]:
        return divergence.rule(one)
    if form == "markdown":
        return rulebook.markdown(one)
    return rulebook.rows({rulebook.RULES: [one]}, form)


def _argument(files: Sequence[str], finding: str, by: judging.JudgedBy) -> str:
    """Return the findings of a recording that have this id, as arguments."""
    from cdmtrace.analysis import document
    from cdmtrace.render import divergence

    (result,) = judging.results([[Path(file) for file in files]], by.asked())
    shown = document.check(result)
    found = [one for one in shown["findings"] if one["fingerprint"].startswith(finding)]
    ids = sorted({one["fingerprint"] for one in found})
    if len(ids) > 1:
        raise UsageTrouble(
            f"{finding}: {len(ids)} ids begin so: {', '.join(ids)}",
            hint="give more of the one that is meant",
        )
    if not found:
        what = " ".join(files)
        raise UsageTrouble(
            f"{finding}: no finding of {what} has this id",
            hint=f"cdmtrace check {' '.join([*by.typed(), what])} prints their ids",
        )
    page = shown["trace"]["page_size"]
    by_id = {one.rule.id: one.rule for one in result.rules}
    return "\n".join(
        divergence.argument(one, document.rule(by_id[one["rule"]]), page)
        for one in found
    )
