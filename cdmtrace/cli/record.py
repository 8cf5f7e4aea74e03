"""``cdmtrace record``."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import click

from cdmtrace.cli.options import (
    duration_option,
    of_no_use,
    option,
    recorded_kernel,
    trace_option,
)
from cdmtrace.cli.options import size as parse_size
from cdmtrace.errors import UsageTrouble
from cdmtrace.units import count, size

_LEAST_PART = 1 << 20


@click.command(context_settings={"ignore_unknown_options": False})
@trace_option
@click.option(
    "-f",
    "--force",
    is_flag=True,
    help="Replace the trace file, or all files that --rotate has made of it; trace a "
    "bit that has another meaning (CDM020).",
)
@option(
    "--pid",
    "pids",
    type=click.IntRange(min=1),
    multiple=True,
    metavar="PID",
    help="Only this process, and what it forks. May be repeated. Ends when all have.",
)
@option(
    "--no-children",
    is_flag=True,
    help="Without what those of --pid have forked, or will.",
)
@option(
    "--cgroup",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="PATH",
    help="Only processes in this cgroup (v2), or below it.",
)
@option(
    "--comm",
    metavar="NAME",
    help="Only processes that have a task of this name, 15 bytes at most.",
)
@option(
    "--node",
    "nodes",
    metavar="LIST",
    help="Only pages and policies of these CDM nodes.",
)
@option(
    "--addr",
    metavar="RANGE",
    help="Only pages and VMAs of these addresses, such as 7f0000000000-7f0000200000 "
    "or 7f0000000000+2M.",
)
@option(
    "--stacks",
    type=click.Choice(("all", "changes", "none")),
    default="all",
    show_default=True,
    help="Of what the kernel's stack is taken: of changes of vm_flags, of arrivals, "
    "and of what leaves when no range is unmapped; of such changes only; of nothing.",
)
@duration_option
@recorded_kernel
@click.option(
    "--ring-pages",
    type=click.IntRange(min=1, max=1 << 18),
    default=4096,
    show_default=True,
    help="Size of the ring buffer, in pages; a power of two.",
)
@click.option(
    "--map-size",
    type=click.IntRange(min=1, max=1 << 22),
    default=16384,
    show_default=True,
    help="How many calls may be under way at a time, and how many address spaces "
    "with CDM pages or policies are followed.",
)
@click.option(
    "--all",
    "everything",
    is_flag=True,
    help="Every node and every process, not only what is about CDM.",
)
@click.option(
    "--audit",
    type=click.FloatRange(min=0, min_open=True),
    metavar="SECONDS",
    help="Have the kernel count all pages so often, for check to hold its own account "
    "against them.",
)
@click.option(
    "--freeze",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="CGROUP",
    help="Let this cgroup (v2) stand still while they are counted.",
)
@option(
    "--max-events",
    type=click.IntRange(min=1),
    metavar="N",
    help="Stop after so many events: names of tasks and what was there before do not "
    "count.",
)
@option(
    "--delay",
    type=click.FloatRange(min=0),
    default=0.0,
    metavar="SECONDS",
    help="Attach, start COMMAND, and begin to record so much later.",
)
@option(
    "--ready-file",
    type=click.Path(path_type=Path),
    metavar="PATH",
    help="Make this file when recording has begun, and remove it at the end.",
)
@option(
    "--missing-probes",
    type=click.Choice(("error", "warn", "ignore")),
    default="warn",
    show_default=True,
    help="What to do where this kernel has not got what a probe is attached to.",
)
@option(
    "--dry-run",
    is_flag=True,
    help="Say what would be recorded, and attach nothing.",
)
@option(
    "--probe",
    "probes",
    multiple=True,
    metavar="NAME",
    help="Attach this probe, and no others but those that are required. May be "
    "repeated; cdmtrace probes lists them.",
)
@option(
    "--no-probe",
    "without",
    multiple=True,
    metavar="NAME",
    help="Leave this probe out. May be repeated.",
)
@option(
    "--rotate",
    type=parse_size,
    metavar="SIZE",
    help="Begin a new file when one has SIZE bytes, such as 64M or 1G (powers of "
    "1024): x.0000.arrows, x.0001.arrows, … for -o x.arrows.",
)
@option(
    "--rotate-keep",
    type=click.IntRange(min=1),
    metavar="N",
    help="Keep the last N of these files, and remove older ones.",
)
@option(
    "--live",
    is_flag=True,
    help="Show rates, losses, tagged VMAs and findings in this terminal meanwhile. "
    "What COMMAND prints to it is drawn over.",
)
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
def record(
    output: Path,
    force: bool,
    pids: tuple[int, ...],
    no_children: bool,
    cgroup: Path | None,
    comm: str | None,
    nodes: str | None,
    addr: str | None,
    stacks: str,
    max_events: int | None,
    delay: float,
    ready_file: Path | None,
    missing_probes: str,
    dry_run: bool,
    duration: float | None,
    cdm_nodes: str | None,
    vm_cdm_mask: str | None,
    kernel_profile: str | None,
    ring_pages: int,
    map_size: int,
    everything: bool,
    audit: float | None,
    freeze: Path | None,
    probes: tuple[str, ...],
    without: tuple[str, ...],
    rotate: int | None,
    rotate_keep: int | None,
    live: bool,
    loader: str,
    command: tuple[str, ...],
) -> int:
    """Trace the kernel into a file, until COMMAND ends, or Ctrl-C.

    All processes are traced, not only COMMAND, unless --pid, --cgroup or --comm say
    otherwise. COMMAND starts when every probe is attached, and runs as who called
    sudo. The exit status is its own; 125 if nothing could be recorded.
    """
    from cdmtrace import privileges
    from cdmtrace.lab.processes import signals_as_errors

    with privileges.single_threaded():
        from cdmtrace import recorder
    from cdmtrace.filters import Filters, parse_range
    from cdmtrace.options import Options

    if pids and command:
        raise UsageTrouble(
            "--pid and a command exclude each other", hint="give one of them"
        )
    if ring_pages & (ring_pages - 1):
        raise UsageTrouble(
            f"--ring-pages {ring_pages} is no power of two",
            hint=f"--ring-pages {1 << ring_pages.bit_length()}",
        )
    if freeze and audit is None:
        why = "--freeze is for the audit, and there is none"
        of_no_use("freeze", why, hint="--audit SECONDS")
        freeze = None
    if everything and nodes is not None:
        raise UsageTrouble(
            "--all is about every node, and --node leaves some out",
            hint="give one of them",
        )
    if no_children and not pids:
        why = "--no-children is for --pid, and there is none"
        of_no_use("no_children", why, hint="--pid PID")
        no_children = False
    filters = Filters(
        pids=tuple(dict.fromkeys(pids)),
        children=not no_children,
        cgroup=cgroup,
        comm=comm,
        nodes=nodes,
        addr=None if addr is None else parse_range(addr),
        stacks=stacks,
    )
    if audit is not None and (
        filters.of_processes or filters.nodes or filters.addr is not None
    ):
        raise UsageTrouble(
            "--audit needs what every process does, and a filter leaves some of it out",
            hint="leave --pid, --cgroup, --comm, --node and --addr out",
        )
    if rotate is not None and rotate < _LEAST_PART:
        raise UsageTrouble(
            f"--rotate {rotate} is less than a part may have", hint="--rotate 1M"
        )
    if rotate_keep is not None and rotate is None:
        why = "--rotate-keep is about several files, and there is one"
        of_no_use("rotate_keep", why, hint=f"--rotate 64M --rotate-keep {rotate_keep}")
        rotate_keep = None
    if live and rotate is not None:
        raise UsageTrouble(
            "--live shows one file, and --rotate makes several",
            hint="leave one of them out",
        )
    # What rich takes for a terminal on which nothing can be drawn anew.
    dumb = os.environ.get("TERM", "").lower() in ("dumb", "unknown")
    if live and (dumb or not sys.stderr.isatty()):
        raise UsageTrouble(
            "--live draws on a terminal, and stderr is none that can be drawn on",
            hint=f"leave it out, and in a terminal: cdmtrace live {output}",
        )
    options = Options(
        output=output,
        command=command,
        force=force,
        filters=filters,
        duration=duration,
        cdm_nodes=cdm_nodes,
        vm_cdm_mask=vm_cdm_mask,
        kernel_profile=kernel_profile,
        ring_pages=ring_pages,
        map_size=map_size,
        all=everything,
        audit=audit,
        freeze=freeze,
        probes=probes,
        without=without,
        missing_probes=missing_probes,
        max_events=max_events,
        delay=delay,
        ready_file=ready_file,
        rotate=rotate,
        rotate_keep=rotate_keep,
        live=live,
        loader=loader,
    )
    if dry_run:
        from cdmtrace.render.info import rehearsal

        # Not to stdout, which is the command's.
        click.echo(rehearsal(recorder.rehearse(options), output), err=True)
        return 0
    # While it compiles and attaches; what comes later ends the recording well.
    with signals_as_errors():
        outcome = recorder.record(
            options,
            say=lambda text: click.echo(f"cdmtrace: {text}", err=True),
            drop=privileges.drop,
        )
    for item in outcome.missing if missing_probes == "warn" else ():
        click.echo(
            f"cdmtrace: no {item.missing} on this kernel: {item.probe.name} was not "
            "recorded (cdmtrace probes: which rules that costs)",
            err=True,
        )
    files = outcome.files or (output,)
    where = str(files[0])
    if len(files) > 1:
        where = f"{len(files)} files, {where} to {files[-1].name}"
    click.echo(
        f"cdmtrace: {outcome.reason}; {count(outcome.events, 'event')}, "
        f"{outcome.lost:,} lost, {size(outcome.size)} in {where}",
        err=True,
    )
    named = (
        files[0]
        if len(files) == 1
        else output.with_name(f"{output.stem}.*{output.suffix}")
    )
    click.echo(f"cdmtrace: next: cdmtrace check {named}", err=True)
    return outcome.status
