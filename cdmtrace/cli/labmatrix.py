"""``cdmtrace lab matrix``."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from cdmtrace.cli.guests import (
    accelerator_for,
    image_and_modules,
    prepared,
    say,
)
from cdmtrace.cli.options import format_option, option
from cdmtrace.errors import (
    CdmtraceError,
    Interrupted,
    Terminated,
    UnreadableFile,
    UsageTrouble,
)
from cdmtrace.lab import (
    kernelrows,
    matrix,
    matrixrun,
    modules,
    quirks,
    scenarios,
    specs,
)
from cdmtrace.lab.guest import GuestRun, host_cpus, run_guest
from cdmtrace.lab.machine import Machine, find_tools
from cdmtrace.lab.paths import Layout
from cdmtrace.lab.watchdog import Limits
from cdmtrace.render import matrix as matrix_text
from cdmtrace.render.tables import FORMATS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cdmtrace.lab.expectations import Row


@click.command("matrix")
@option(
    "--quirks",
    "names",
    metavar="LIST",
    help="These rows only, separated by commas [default: all].",
)
@option(
    "--kernels",
    "kernel_names",
    metavar="LIST",
    help="Rows for these kernels instead, separated by commas, or all: those that are "
    "built here without defects and with the RFC's, Debian's in shadow mode.",
)
@option(
    "--scenarios",
    "programs",
    metavar="LIST",
    help="Record these scenarios and not a row's own, as in story,gates:swap/collapse.",
)
@option(
    "--from",
    "source",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    help="Judge the recordings that are there, and boot nothing.",
)
@option(
    "--keep",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    help="Where the recordings go [default: a new directory in the cache].",
)
@option(
    "--kernel",
    metavar="NAME|PATH",
    help=f"As for lab run. [default: {specs.DEFAULT_KERNEL}]",
)
@option(
    "--timeout",
    type=click.FloatRange(min=0, min_open=True),
    metavar="SECONDS",
    help="End a guest after that long [default: by the number of rows].",
)
@format_option(FORMATS)
def matrix_command(
    names: str | None,
    kernel_names: str | None,
    programs: str | None,
    source: Path | None,
    keep: Path | None,
    kernel: str | None,
    timeout: float | None,
    form: str,
) -> int:
    """Prove the checker: record each set of quirks, and compare what is found.

    A row for each quirk, for none, for all of the RFC and for some pairs; a column for
    each rule. What a quirk does must be found, and nothing else may be. With --kernels
    a row for each kernel, or two.

    Exit status: 0 if all is as expected, 1 if not, 2 for trouble.
    """
    if kernel_names is not None:
        if names is not None or programs is not None or kernel is not None:
            raise UsageTrouble(
                "--kernels has rows, scenarios and kernels of its own",
                hint="leave --quirks, --scenarios and --kernel out",
            )
        chosen = kernelrows.choose(kernel_names)
        return _kernel_matrix(chosen, source, keep, timeout, form)
    rows = matrix.choose(names)
    if names is None and kernel is not None:
        # Who asks for no row in particular asks for those that there are.
        rows = tuple(row for row in rows if not quirks.missing(row.quirks, kernel))
    if source is not None:
        for given, option_name in ((keep, "--keep"), (programs, "--scenarios")):
            if given is not None:
                raise UsageTrouble(
                    f"--from boots no guest, so {option_name} has no meaning with it"
                )
        directory = source
    else:
        if programs is not None:
            rows = tuple(
                dataclasses.replace(
                    row, scenarios=matrixrun.with_scenarios(row, programs)
                )
                for row in rows
            )
        directory = prepared(keep, Layout.default())
        try:
            _record_rows(rows, directory, kernel or specs.DEFAULT_KERNEL, timeout)
        except (Interrupted, Terminated):
            raise
        except CdmtraceError as error:
            # What has been recorded by then is judged all the same.
            say(str(error))
        say(f"recordings kept in {directory}")
    result = matrix.compare(rows, *_judged(rows, directory))
    click.echo(matrix_text.render(result, form), nl=False)
    return result.status


def _kernel_matrix(
    names: Sequence[str],
    source: Path | None,
    keep: Path | None,
    timeout: float | None,
    form: str,
) -> int:
    """Print a row, or two, for each kernel; each has a directory of its own."""
    if source is not None and keep is not None:
        raise UsageTrouble("--from boots no guest, so --keep has no meaning with it")
    directory = source or prepared(keep, Layout.default())
    rows: list[Row] = []
    recordings: dict[str, matrix.Recording] = {}
    found: dict[str, dict[str, matrix.Found]] = {}
    for name in names:
        ours, own = kernelrows.rows(name), directory / name
        rows += ours
        if source is None:
            own.mkdir(mode=0o700)
            try:
                _record_rows(ours, own, name, timeout)
            except (Interrupted, Terminated):
                raise
            except CdmtraceError as error:
                say(str(error))
        if own.is_dir():
            there, said = _judged(ours, own)
            recordings |= there
            found |= said
    if source is None:
        say(f"recordings kept in {directory}")
    result = matrix.compare(rows, recordings, found)
    click.echo(matrix_text.render(result, form), nl=False)
    return result.status


def _judged(
    rows: Sequence[Row], directory: Path
) -> tuple[dict[str, matrix.Recording], dict[str, dict[str, matrix.Found]]]:
    """Return the recordings that there are of rows, and what check says of them."""
    recordings = matrixrun.find(rows, directory)
    found: dict[str, dict[str, matrix.Found]] = {}
    for row in rows:
        one = recordings.get(row.name)
        if one is None:
            continue
        try:
            found[row.name] = matrix.judge(one.trace)
        except UnreadableFile as error:
            say(str(error))
            del recordings[row.name]
    return recordings, found


def _record_rows(
    rows: Sequence[Row], directory: Path, kernel: str, timeout: float | None
) -> None:
    for row in rows:
        quirks.require(row.quirks, kernel)
    layout, tools = Layout.default(), find_tools()
    image, loaded = _image_for(kernel, rows)
    accelerator = accelerator_for("auto", image, layout)

    def boot(run_dir: Path, command: tuple[str, ...], seconds: float) -> int:
        run = GuestRun(
            kernel=image,
            command=command,
            run_dir=run_dir,
            accelerator=accelerator,
            limits=Limits(total=seconds),
            machine=Machine(cpus=host_cpus(2)),
            modules=loaded,
            # What an oops leaves behind may go on, or hang: nothing to wait for.
            append=("oops=panic",),
        )
        # stdout is for the matrix.
        streams = sys.stderr.buffer
        return run_guest(run, stdout=streams, stderr=streams, tools=tools, note=say)

    matrixrun.record(
        rows,
        directory,
        boot=boot,
        compiled=lambda name: scenarios.compile_scenario(
            scenarios.find_scenario(name), layout
        ),
        timeout=timeout,
        say=say,
    )


def _image_for(kernel: str, rows: Sequence[Row]) -> tuple[Path, tuple[Path, ...]]:
    """Return a kernel's image, and the modules that the rows' scenarios need."""
    names = {matrixrun.split(one)[0] for row in rows for one in row.scenarios}
    needing = [
        one
        for one in map(scenarios.find_scenario, sorted(names))
        if modules.needed_by(one)
    ]
    image, loaded = image_and_modules(kernel, needing[0] if needing else None)
    for one in needing[1:]:
        loaded += image_and_modules(kernel, one)[1]
    return image, loaded
