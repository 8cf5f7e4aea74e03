"""``cdmtrace check``, also known as ``diff``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Final

import click

from cdmtrace.cli.options import option
from cdmtrace.errors import UsageTrouble

PROFILES: Final = ("intended", "rfc-v2", "np")
"""What --profile takes; the first one counts where nobody says."""


def rule_ids(text: str) -> frozenset[str]:
    """Return the ids of rules given by id or name, separated by commas.

    Raises UsageTrouble for one that does not exist.
    """
    from cdmtrace.analysis.rules import RULES, find

    ids = set()
    for name in filter(None, (part.strip() for part in text.split(","))):
        rule = find(name)
        if rule is None:
            known = ", ".join(one.id for one in RULES)
            raise UsageTrouble(
                f"--rules {name}: no such rule", hint=f"one of {known}, or its name"
            )
        ids.add(rule.id)
    if not ids:
        raise UsageTrouble("--rules names no rule", hint="such as --rules CDM001")
    return frozenset(ids)


@click.command()
@click.argument(
    "files",
    nargs=-1,
    required=True,
    metavar="FILE...",
    type=click.Path(path_type=Path),
)
@option(
    "--rules",
    metavar="LIST",
    help="Check these only, by id or name, separated by commas.",
)
@option(
    "--profile",
    type=click.Choice(PROFILES),
    default=PROFILES[0],
    show_default=True,
    help="What the tag must mean: as the review wants it, or as the patches have it. "
    "np: not the tag, but which services of the kernel touched pages of CDM nodes.",
)
@option(
    "--allow",
    multiple=True,
    metavar="NODE:SERVICE[,SERVICE...]",
    help="Under --profile np: these services may touch pages of this node, beside what "
    "--permissions allows, or mempolicy. NODE or SERVICE may be all. May be repeated.",
)
@option(
    "--permissions",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="The same from a file of TOML, instead of mempolicy: [node.1] and "
    'allow = ["ksm"].',
)
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
    from cdmtrace.analysis import document, frames, parts, replay, services, status
    from cdmtrace.analysis.permissions import read, require_nodes
    from cdmtrace.render import divergence

    chosen = None if rules is None else rule_ids(rules)
    if (allow or permissions) and profile != "np":
        given = "--allow" if allow else "--permissions"
        raise UsageTrouble(
            f"{given} is about services, of which --profile {profile} says nothing",
            hint=f"cdmtrace check --profile np {given} ...",
        )
    flags = {one.name: one.flag for one in services.SERVICES}
    allowed = read(allow, permissions, flags)
    traces = [frames.load(*recording) for recording in parts.recordings(files)]
    require_nodes(allowed, {node for trace in traces for node in trace.terms.nodes})
    results = [
        replay.check(trace, profile=profile, rules=chosen, permissions=allowed)
        for trace in traces
    ]
    documents = [document.check(result) for result in results]
    one = len(documents) == 1
    if form == "json":
        click.echo(json.dumps(documents[0] if one else documents, indent=2))
    else:
        click.echo("\n".join(map(divergence.check, documents)), nl=False)
        shown = documents[0]["findings"]
        if one and shown:
            click.echo(
                "cdmtrace: the first one as an argument: cdmtrace explain "
                f"{' '.join(map(str, files))} {shown[0]['fingerprint']}",
                err=True,
            )
    return status.exit_status(
        results, named=chosen is not None, allow_inconclusive=allow_inconclusive
    )
