"""``cdmtrace lab``: build kernels, run guests, list what there is."""

from __future__ import annotations

import dataclasses
import json
import shutil
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from cdmtrace.cli.options import option
from cdmtrace.errors import (
    CdmtraceError,
    Interrupted,
    LabError,
    Terminated,
    UnreadableFile,
    UsageTrouble,
)
from cdmtrace.lab import (
    accel,
    kernels,
    matrix,
    matrixrun,
    modules,
    quirks,
    scenarios,
    specs,
)
from cdmtrace.lab.guest import GuestRun, host_cpus, resolve_command, run_guest
from cdmtrace.lab.kernel import Kernel
from cdmtrace.lab.machine import Machine, check_device, find_tools, parse_mib
from cdmtrace.lab.paths import Layout, new_run_dir
from cdmtrace.lab.watchdog import Limits
from cdmtrace.render import matrix as matrix_text
from cdmtrace.render.listing import lab_listing
from cdmtrace.render.tables import FORMATS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cdmtrace.lab.expectations import Row

_DEFAULT_TIMEOUT_SECONDS = 900.0


def _say(message: str) -> None:
    click.echo(f"cdmtrace: {message}", err=True)


class TerminalProgress:
    """Stage lines on stderr; on a terminal a moving count below them."""

    def __init__(self) -> None:
        self._moving = sys.stderr.isatty()
        self._shown = False
        self._next = 0.0

    def stage(self, what: str) -> None:
        """Begin a new stage."""
        self.close()
        _say(what)

    def step(self, done: int, expected: int) -> None:
        """Show about how far a stage is, five times a second at most."""
        now = time.monotonic()
        if not self._moving or now < self._next:
            return
        self._next = now + 0.2
        percent = min(99, 100 * done // expected)
        click.echo(f"\r  about {percent} % ({done} steps)\x1b[K", err=True, nl=False)
        self._shown = True

    def close(self) -> None:
        """Remove the moving line."""
        if self._shown:
            click.echo("\r\x1b[K", err=True, nl=False)
            self._shown = False


@click.group()
def lab() -> None:
    """The QEMU laboratory: kernels, quirks, scenarios."""


def _build(name: str, *, jobs: int | None = None, update: bool = False) -> Kernel:
    progress = TerminalProgress()
    try:
        return kernels.provide(
            specs.find_spec(name),
            Layout.default(),
            jobs=jobs,
            update=update,
            progress=progress,
        )
    finally:
        progress.close()


@lab.command("build")
@option(
    "--kernel", "name", default=specs.DEFAULT_KERNEL, show_default=True, metavar="NAME"
)
@option(
    "-j", "--jobs", type=click.IntRange(min=1), help="make's -j [default: all CPUs]"
)
@option("--update", is_flag=True, help="Take the newest package there is now.")
def build_command(name: str, jobs: int | None, update: bool) -> None:
    """Fetch, patch, configure and build a kernel, unless that was done before.

    One that Debian has built is fetched only.

    Prints the path of the kernel image.
    """
    click.echo(_build(name, jobs=jobs, update=update).image)


def _kernel_image(kernel: str) -> Path:
    """Return the image for a kernel's name, or for a path to one."""
    if "/" in kernel:
        path = Path(kernel).resolve()
        if not path.is_file():
            raise UsageTrouble(f"no kernel image {kernel}")
        return path
    return _build(kernel).image


def _image_and_modules(
    kernel: str, scenario: scenarios.Scenario | None
) -> tuple[Path, tuple[Path, ...]]:
    """Return the kernel's image, and the modules for it that a scenario needs."""
    module = modules.needed_by(scenario) if scenario is not None else None
    if scenario is None or module is None:
        return _kernel_image(kernel), ()
    if kernel in specs.BUILT:
        # Not after minutes of building it.
        raise LabError(
            f"the scenario {scenario.name} needs a module, and {kernel} takes none",
            hint=modules.HINT,
        )
    image = _kernel_image(kernel)
    built = modules.build(
        module, scenario, Kernel(directory=image.parent), Layout.default()
    )
    return image, (built,)


@lab.command("run")
@option(
    "--kernel",
    default=specs.DEFAULT_KERNEL,
    show_default=True,
    metavar="NAME|PATH",
    help="A kernel of the lab, built or fetched if need be, or a path (with a /) to a "
    "bzImage.",
)
@option(
    "--quirks",
    "quirk_list",
    default=quirks.NONE,
    show_default=True,
    metavar="LIST",
    help="Defects to switch on, separated by commas; rfc is those of the RFC.",
)
@option("--scenario", metavar="NAME", help="Run this scenario program.")
@option(
    "--timeout",
    type=click.FloatRange(min=0, min_open=True),
    default=_DEFAULT_TIMEOUT_SECONDS,
    show_default=True,
    metavar="SECONDS",
    help="End the guest after that long, counted from its launch.",
)
@option("--memory", default="3G", show_default=True, help="RAM of the guest (node 0).")
@option(
    "--cdm-memory",
    default="1G",
    show_default=True,
    help="Memory of the guest's CDM node (node 1, without CPUs).",
)
@option("--cpus", type=click.IntRange(min=1), default=2, show_default=True)
@option(
    "--device",
    "devices",
    multiple=True,
    metavar="NAME",
    help="A device for QEMU to emulate, as its -device; may be given again.",
)
@option(
    "--accel",
    "accelerator",
    type=click.Choice(["auto", "kvm", "tcg"]),
    default="auto",
    show_default=True,
    help="auto is KVM if it has proved to work on this host, else emulation.",
)
@option(
    "--append",
    multiple=True,
    metavar="WORDS",
    help="More for the kernel's command line; may be given again.",
)
@option(
    "--run-dir",
    type=click.Path(path_type=Path, file_okay=False),
    help="Where console, output and traces go [default: a new one in the cache].",
)
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
def run_command(
    kernel: str,
    quirk_list: str,
    scenario: str | None,
    timeout: float,
    memory: str,
    cdm_memory: str,
    cpus: int,
    devices: tuple[str, ...],
    accelerator: str,
    append: tuple[str, ...],
    run_dir: Path | None,
    command: tuple[str, ...],
) -> int:
    """Boot a guest and run COMMAND or a scenario in it, as root.

    The guest sees this machine's root file system, read-only, and COMMAND runs in
    the run directory, the one place that it can write to.  With both a scenario and
    a COMMAND, the scenario's command line is appended to COMMAND, as in
    `lab run --scenario story -- cdmtrace record --`.

    Exit status: COMMAND's own; 124 after a time-out, 125 if the lab could not start,
    134 if the guest died.
    """
    layout = Layout.default()
    chosen = quirks.resolve(quirk_list)
    machine = Machine(
        ram_mib=parse_mib(memory),
        cdm_mib=parse_mib(cdm_memory),
        cpus=host_cpus(cpus),
        devices=tuple(map(check_device, devices)),
    )
    words = resolve_command(command) if command else ()
    found = scenarios.find_scenario(scenario) if scenario is not None else None
    if found is not None:
        program = scenarios.compile_scenario(found, layout)
        words = (*words, str(program), "--quirks", quirks.as_argument(chosen))
    if not words:
        raise UsageTrouble(
            "nothing to run in the guest",
            hint="cdmtrace lab run --scenario NAME, or cdmtrace lab run -- COMMAND",
        )
    tools = find_tools()
    image, loaded = _image_and_modules(kernel, found)
    run = GuestRun(
        kernel=image,
        command=words,
        run_dir=_prepare(run_dir, layout),
        accelerator=_accelerator(accelerator, image, layout),
        limits=Limits(total=timeout),
        quirks=chosen,
        machine=machine,
        append=append,
        modules=loaded,
    )
    try:
        return run_guest(
            run,
            stdout=sys.stdout.buffer,
            stderr=sys.stderr.buffer,
            tools=tools,
            note=_say,
        )
    finally:
        _say_where(run.run_dir)


def _prepare(run_dir: Path | None, layout: Layout) -> Path:
    if run_dir is None:
        return new_run_dir(layout)
    run_dir = run_dir.resolve()
    run_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    if any(run_dir.iterdir()):
        raise UsageTrouble(f"the run directory {run_dir} is not empty")
    return run_dir


def _accelerator(asked: str, image: Path, layout: Layout) -> accel.Accelerator:
    if asked != "auto":
        return accel.Accelerator(asked)
    chosen, why = accel.choose(image, layout)
    if chosen is accel.Accelerator.TCG:
        _say(f"emulating the guest, 10 to 20 times slower than KVM: {why}")
    return chosen


def _say_where(run_dir: Path) -> None:
    traces = sorted(path.name for path in run_dir.glob("*.arrows"))
    _say(
        f"kept in {run_dir}: "
        + ", ".join([*traces, "console.log", "run.json", "stdout", "stderr"])
    )


def _how_far(name: str, *, built: bool) -> str:
    done = "built" if name in specs.BUILT else "fetched"
    return done if built else f"not {done}"


def _kernel_rows(layout: Layout) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = []
    for spec in specs.KERNELS.values():
        try:
            built = kernels.find(spec, layout)
        except CdmtraceError:
            built = None
        rows.append(
            {
                "name": spec.name,
                "default": spec.name == specs.DEFAULT_KERNEL,
                "built": built is not None,
                "image": str(built.image) if built else None,
                "summary": spec.summary,
            }
        )
    return rows


@lab.command("list")
@option(
    "--format",
    "form",
    type=click.Choice(["table", "json"]),
    default="table",
    show_default=True,
)
def list_command(form: str) -> None:
    """List kernels, quirks and scenarios."""
    rows = _kernel_rows(Layout.default())
    programs = list(scenarios.scenarios().values())
    if form == "json":
        listing = {
            "schema": "cdmtrace.lab-list/1",
            "kernels": rows,
            "quirks": [
                {
                    "name": quirk.name,
                    "needs": list(quirk.needs),
                    "in_rfc": quirk.in_rfc,
                    "crashes": quirk.crashes,
                    "source": quirk.source,
                    "summary": quirk.summary,
                }
                for quirk in quirks.QUIRKS
            ],
            "scenarios": [
                {"name": one.name, "summary": one.summary} for one in programs
            ],
        }
        click.echo(json.dumps(listing, indent=2))
        return
    width = shutil.get_terminal_size().columns
    click.echo(
        lab_listing(
            kernels=[
                (
                    str(row["name"]),
                    _how_far(str(row["name"]), built=bool(row["built"])),
                    str(row["summary"]),
                )
                for row in rows
            ],
            quirks=quirks.QUIRKS,
            scenarios=programs,
            width=width,
        )
    )


@lab.command("matrix")
@option(
    "--quirks",
    "names",
    metavar="LIST",
    help="These rows only, separated by commas [default: all].",
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
    default=specs.DEFAULT_KERNEL,
    show_default=True,
    metavar="NAME|PATH",
    help="As for lab run.",
)
@option(
    "--timeout",
    type=click.FloatRange(min=0, min_open=True),
    metavar="SECONDS",
    help="End a guest after that long [default: by the number of rows].",
)
@option(
    "--format",
    "form",
    type=click.Choice(FORMATS),
    default=FORMATS[0],
    show_default=True,
)
def matrix_command(
    names: str | None,
    programs: str | None,
    source: Path | None,
    keep: Path | None,
    kernel: str,
    timeout: float | None,
    form: str,
) -> int:
    """Prove the checker: record each set of quirks, and compare what is found.

    A row for each quirk, for none, for all of the RFC and for some pairs; a column for
    each rule. What a quirk does must be found, and nothing else may be.

    Exit status: 0 if all is as expected, 1 if not, 2 for trouble.
    """
    rows = matrix.choose(names)
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
        directory = _prepare(keep, Layout.default())
        try:
            _record_rows(rows, directory, kernel, timeout)
        except (Interrupted, Terminated):
            raise
        except CdmtraceError as error:
            # What has been recorded by then is judged all the same.
            _say(str(error))
        _say(f"recordings kept in {directory}")
    recordings, found = matrixrun.find(rows, directory), {}
    for name, one in list(recordings.items()):
        try:
            found[name] = matrix.judge(one.trace)
        except UnreadableFile as error:
            _say(str(error))
            del recordings[name]
    result = matrix.compare(rows, recordings, found)
    click.echo(matrix_text.render(result, form), nl=False)
    return result.status


def _record_rows(
    rows: Sequence[Row], directory: Path, kernel: str, timeout: float | None
) -> None:
    layout, tools = Layout.default(), find_tools()
    image = _kernel_image(kernel)
    accelerator = _accelerator("auto", image, layout)

    def boot(run_dir: Path, command: tuple[str, ...], seconds: float) -> int:
        run = GuestRun(
            kernel=image,
            command=command,
            run_dir=run_dir,
            accelerator=accelerator,
            limits=Limits(total=seconds),
            machine=Machine(cpus=host_cpus(2)),
            # What an oops leaves behind may go on, or hang: nothing to wait for.
            append=("oops=panic",),
        )
        # stdout is for the matrix.
        streams = sys.stderr.buffer
        return run_guest(run, stdout=streams, stderr=streams, tools=tools, note=_say)

    matrixrun.record(
        rows,
        directory,
        boot=boot,
        compiled=lambda name: scenarios.compile_scenario(
            scenarios.find_scenario(name), layout
        ),
        timeout=timeout,
        say=_say,
    )
