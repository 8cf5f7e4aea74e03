"""``cdmtrace doctor``."""

from __future__ import annotations

import click

from cdmtrace.cli.options import format_option, kernel_profile, option
from cdmtrace.errors import ExitStatus


@click.command()
@option("--cdm-nodes", metavar="LIST", help="As for record.")
@option("--vm-cdm-mask", metavar="MASK", help="As for record.")
@kernel_profile
@format_option(("table", "json"))
def doctor(
    cdm_nodes: str | None,
    vm_cdm_mask: str | None,
    kernel_profile: str | None,
    form: str,
) -> int:
    """Check whether this machine can record.

    One line for each prerequisite, cheapest first, and below it the command that
    mends what is wrong. A warning is no obstacle to recording.

    Exit status: 0 can record, 1 cannot.
    """
    from cdmtrace.doctor import can_record, examine
    from cdmtrace.render.checks import check_lines, checks_json, verdict_line

    checks = []
    for check in examine(
        cdm_nodes=cdm_nodes, vm_cdm_mask=vm_cdm_mask, kernel_profile=kernel_profile
    ):
        checks.append(check)
        if form == "table":
            click.echo(check_lines(check))
    able = can_record(checks)
    if form == "json":
        click.echo(checks_json(checks, able=able))
    else:
        click.echo(verdict_line(checks, able=able))
    return ExitStatus.OK if able else ExitStatus.FINDINGS
