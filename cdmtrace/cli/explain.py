"""``cdmtrace explain``."""

from __future__ import annotations

from pathlib import Path

import click

from cdmtrace.cli.options import option
from cdmtrace.errors import UsageTrouble


@click.command()
@click.argument("what", required=False, metavar="[RULE | FILE]")
@click.argument("finding", required=False)
@option(
    "--profile",
    type=click.Choice(("intended", "rfc-v2")),
    default="intended",
    show_default=True,
    help="Under which specification FILE is judged.",
)
def explain(what: str | None, finding: str | None, profile: str) -> None:
    """Explain a rule, or one finding of a trace as an argument.

    RULE is an id or a name; without it all rules are listed. FINDING is the id that
    check prints with each divergence, or the beginning of one.
    """
    from cdmtrace.analysis import document, rules
    from cdmtrace.render import divergence

    if what is None:
        listed = [document.rule(rule) for rule in rules.RULES]
        click.echo(divergence.catalogue(listed), nl=False)
        return
    if finding is None:
        rule = rules.find(what)
        if rule is None:
            raise UsageTrouble(
                f"{what}: no such rule", hint="cdmtrace explain lists all rules"
            )
        click.echo(divergence.rule(document.rule(rule)), nl=False)
        return
    from cdmtrace.analysis import frames, replay

    shown = document.check(replay.check(frames.load(Path(what)), profile=profile))
    for one in shown["findings"]:
        if one["fingerprint"].startswith(finding):
            about = document.rule(rules.BY_ID[one["rule"]])
            page = shown["trace"]["page_size"]
            click.echo(divergence.argument(one, about, page), nl=False)
            return
    raise UsageTrouble(
        f"{finding}: no such finding in {what}", hint=f"cdmtrace check {what}"
    )
