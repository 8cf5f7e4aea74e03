"""``cdmtrace timeline``."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from cdmtrace.cli import judging
from cdmtrace.cli.options import (
    address,
    files_argument,
    format_option,
    of_no_use,
    option,
    profile_option,
)
from cdmtrace.cli.progress import ticker
from cdmtrace.render.tables import FORMATS

if TYPE_CHECKING:
    from cdmtrace.analysis.asked import Asked
    from cdmtrace.analysis.frames import Trace


@click.command()
@files_argument()
@option(
    "--pid",
    type=click.IntRange(min=0),
    metavar="PID",
    help="The process; 0: those of which the recording does not tell it.",
)
@option(
    "--addr",
    metavar="ADDRESS",
    help="An address in the VMA, in hexadecimal.",
)
@option(
    "--generation",
    type=click.IntRange(min=1),
    metavar="N",
    help="Of several VMAs that held the address one after the other, only this one.",
)
@option(
    "--at",
    "moment",
    type=click.FloatRange(min=0),
    metavar="SECONDS",
    help="The same, by a time at which it was there; since the recording began.",
)
@option(
    "--unfold",
    is_flag=True,
    help="A line for each row, also where the same happens again and again.",
)
@profile_option("Under which specification findings are marked.")
@judging.rules_from_option
@format_option(FORMATS, "How to print; all but table have every row, unfolded.")
def timeline(
    files: tuple[Path, ...],
    pid: int | None,
    addr: str | None,
    generation: int | None,
    moment: float | None,
    unfold: bool,
    profile: str,
    rules_from: tuple[Path, ...],
    form: str,
) -> None:
    """The life of one VMA: policy, tag, pages by node, locks, row by row.

    Without --pid or --addr: which VMAs are worth a look, the worst first, each with the
    command that shows its life.

    The VMA is the one that holds the address, whatever it is split from, merged with
    or moved to. Several files have to be parts of one recording.
    """
    from cdmtrace.analysis import frames

    where = None if addr is None else address(addr)
    if pid is None or where is None:
        for name, chosen in (("generation", "--generation"), ("moment", "--at")):
            about = f"{chosen} is of one address of one process"
            of_no_use(name, about, hint="give --pid and --addr, too")
    by = judging.JudgedBy(profile=profile, rules_from=rules_from)
    asked = by.asked()
    trace = frames.load(*files, ticker=ticker())
    again = by.typed()
    if pid is None or where is None:
        text = _candidates(trace, pid, where, asked, again, form)
    else:
        text = _life(trace, pid, where, generation, moment, unfold, asked, again, form)
    click.echo(text, nl=False)
    if trace.cut:
        click.echo(f"cdmtrace: {trace.path}: cut: {trace.cut}", err=True)


def _candidates(
    trace: Trace,
    pid: int | None,
    addr: int | None,
    asked: Asked,
    again: Sequence[str],
    form: str,
) -> str:
    """Return the list of VMAs. Raises UsageTrouble where there is no such process."""
    from cdmtrace.analysis import candidates, history, nearby
    from cdmtrace.render import tables
    from cdmtrace.render import timeline as text

    found = candidates.collect(trace, profile=asked.profile, own=asked.own)
    if pid is not None and pid not in found.processes:
        threads = history.Comms(trace).pids
        raise nearby.no_process(trace.files, pid, found.processes, threads)
    rows = candidates.rows(found, pid=pid, addr=addr)
    commands = [
        nearby.command(
            trace.files,
            pid=row["pid"],
            addr=int(row["VMA"].split("-")[0], 16),
            at=row.pop("at"),
            judged_by=again,
        )
        for row in rows
    ]
    if form == FORMATS[0]:
        return text.candidates(rows, commands, files=shlex.join(trace.files))
    listed = [
        {**row, "command": line} for row, line in zip(rows, commands, strict=True)
    ]
    return tables.render({"VMAs that are worth a look": listed}, form, None)


def _life(
    trace: Trace,
    pid: int,
    addr: int,
    generation: int | None,
    moment: float | None,
    unfold: bool,
    asked: Asked,
    again: Sequence[str],
    form: str,
) -> str:
    """Return the life of a VMA. Raises UsageTrouble where there is none."""
    from cdmtrace.analysis import candidates, history, nearby
    from cdmtrace.analysis import timeline as lives
    from cdmtrace.render import tables
    from cdmtrace.render import timeline as text

    found = lives.follow(trace, pid, addr, profile=asked.profile, own=asked.own)
    command = nearby.command(trace.files, pid=pid, addr=addr, judged_by=again)
    processes = {mm.pid: mm.comm for mm in found.mms.values()}
    if pid not in processes:
        threads = history.Comms(trace).pids
        raise nearby.no_process(trace.files, pid, processes, threads)
    if not found.lives:
        others = candidates.collect(trace, profile=asked.profile, own=asked.own)
        raise nearby.no_vma(trace.files, pid, addr, others)
    document = history.document(found, addr)
    generations = document["generations"]
    document["generations"] = nearby.choose(generations, generation, moment, command)
    command += f" --generation {generation}" if generation is not None else ""
    command += f" --at {moment}" if moment is not None else ""
    if form == FORMATS[0]:
        return text.timeline(document, unfold=unfold, command=command, judged_by=again)
    return tables.render(history.tables(document), form, None)
