"""``cdmtrace watch``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from cdmtrace.cli.options import (
    address,
    duration_option,
    option,
    recorded_kernel,
    trace_option,
)
from cdmtrace.errors import UsageTrouble
from cdmtrace.units import count, size

if TYPE_CHECKING:
    from cdmtrace.format.schema import Header
    from cdmtrace.watch import Write

REGISTERS = 4
"""As cdmtrace.kernel.watchpoints says; --help imports nothing heavy."""


@click.command(context_settings={"ignore_unknown_options": False})
@click.option(
    "--pid", type=click.IntRange(min=1), required=True, help="The process to watch."
)
@option(
    "--addr",
    "addresses",
    multiple=True,
    required=True,
    metavar="ADDRESS",
    help="An address in the VMA to watch, in hexadecimal. May be given up to four "
    "times.",
)
@trace_option
@click.option(
    "-f",
    "--force",
    is_flag=True,
    help="Replace the trace file; trace a bit that has another meaning (CDM020).",
)
@duration_option
@click.option("--stack", is_flag=True, help="Print the callers, too.")
@recorded_kernel
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
def watch(
    pid: int,
    addresses: tuple[str, ...],
    output: Path,
    force: bool,
    duration: float | None,
    stack: bool,
    cdm_nodes: str | None,
    vm_cdm_mask: str | None,
    kernel_profile: str | None,
    loader: str,
    command: tuple[str, ...],
) -> int:
    """Print every write to vm_flags of a VMA, with the instruction that made it.

    A debug register of each cpu looks at the flags of the VMA that holds ADDRESS, so
    that a write is seen wherever in the kernel it comes from. The trace file is that
    of record --pid with these writes in it. It ends with COMMAND, if there is one, else
    with the process; or with Ctrl-C. A cpu that comes online later does not look.
    """
    where = [address(text) for text in addresses]
    if len(where) > REGISTERS:
        raise UsageTrouble(
            f"{len(where)} addresses, and a processor has {REGISTERS} debug registers",
            hint=f"give {REGISTERS} at most; record --pid has the others' changes",
        )
    from cdmtrace import watch as watching
    from cdmtrace.analysis import frames, names
    from cdmtrace.filters import Filters
    from cdmtrace.lab.processes import signals_as_errors
    from cdmtrace.options import Options
    from cdmtrace.render import writes

    options = Options(
        output=output,
        command=command,
        force=force,
        filters=Filters(pids=(pid,), children=False),
        duration=duration,
        cdm_nodes=cdm_nodes,
        vm_cdm_mask=vm_cdm_mask,
        kernel_profile=kernel_profile,
        loader=loader,
    )
    shown = 0

    def tell(write: Write, header: Header) -> None:
        nonlocal shown
        if not shown:
            click.echo(writes.HEAD)
        shown += 1
        terms = frames.terms_of(header, output)
        before, after = names.changed(write.before, write.after, terms)
        click.echo(
            writes.line(
                number=write.number,
                since=write.since,
                cpu=write.cpu,
                task=f"{write.comm or '?'}/{write.tid}",
                lock=names.lock(write.lock),
                flags=f"{before} -> {after}",
                at=write.at,
                notes=_notes(write),
                stack=stack,
            )
        )
        sys.stdout.flush()

    # While it compiles and attaches; what comes later ends the recording well.
    with signals_as_errors():
        outcome = watching.watch(
            options,
            where,
            tell=tell,
            say=lambda text: click.echo(f"cdmtrace: {text}", err=True),
        )
    click.echo(
        f"cdmtrace: {outcome.reason}; {count(shown, 'write')}, "
        f"{count(outcome.events, 'event')}, {outcome.lost:,} lost, "
        f"{size(outcome.size)} in {output}",
        err=True,
    )
    click.echo(f"cdmtrace: next: cdmtrace check {output}", err=True)
    return outcome.status


def _notes(write: Write) -> tuple[str, ...]:
    return (
        *(("another cpu wrote as well",) if write.overlapped else ()),
        *(("the VMA is torn down",) if write.leaving else ()),
    )
