"""``cdmtrace probes``."""

from __future__ import annotations

import os

import click

from cdmtrace.cli.options import format_option
from cdmtrace.errors import CdmtraceError
from cdmtrace.render.tables import FORMATS, render


@click.command()
@format_option(FORMATS)
def probes(form: str) -> int:
    """List what would be attached on this kernel, and to which symbol.

    Below, the rules that cannot be checked on this kernel because a probe is
    missing.
    """
    from cdmtrace.analysis.rules import served_by, uncheckable
    from cdmtrace.kernel import symbols, tracefs
    from cdmtrace.kernel.btf import Btf
    from cdmtrace.planning import plan
    from cdmtrace.render.probes import flat_tables, nested_tables

    if os.geteuid() != 0:
        raise CdmtraceError(
            "the tracepoints of this kernel can be listed by root alone",
            hint="sudo cdmtrace probes",
        )
    root = tracefs.mounted()
    present = symbols.functions()
    functions = tracefs.traceable(root, present)
    known = functions, tracefs.tracepoints(root), Btf.load()
    plans = plan(*known, present=present)
    tables = nested_tables if form in ("json", "ndjson") else flat_tables
    lost = uncheckable([item.probe.name for item in plans if item.missing])
    click.echo(render(tables(plans, served_by, lost), form), nl=False)
    return 0
