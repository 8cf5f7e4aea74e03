"""``cdmtrace lab``: build kernels, run guests, list what there is."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import click

from cdmtrace.cli.guests import (
    accelerator_for,
    built,
    image_and_modules,
    prepared,
    say,
)
from cdmtrace.cli.labmatrix import matrix_command
from cdmtrace.cli.options import format_option, option
from cdmtrace.errors import (
    CdmtraceError,
    UsageTrouble,
)
from cdmtrace.lab import (
    kernels,
    quirks,
    scenarios,
    specs,
)
from cdmtrace.lab.guest import GuestRun, host_cpus, resolve_command, run_guest
from cdmtrace.lab.machine import Machine, check_device, find_tools, parse_mib
from cdmtrace.lab.paths import Layout
from cdmtrace.lab.watchdog import Limits
from cdmtrace.render.listing import lab_listing

_DEFAULT_TIMEOUT_SECONDS = 900.0


@click.group()
def lab() -> None:
    """The QEMU laboratory: kernels, quirks, scenarios."""


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
    click.echo(built(name, jobs=jobs, update=update).image)


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
    quirks.require(chosen, kernel)
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
    image, loaded = image_and_modules(kernel, found)
    run = GuestRun(
        kernel=image,
        command=words,
        run_dir=prepared(run_dir, layout),
        accelerator=accelerator_for(accelerator, image, layout),
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
            note=say,
        )
    finally:
        _say_where(run.run_dir)


def _say_where(run_dir: Path) -> None:
    traces = sorted(path.name for path in run_dir.glob("*.arrows"))
    say(
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
@format_option(("table", "json"))
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
                    "absent": list(quirk.absent),
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


lab.add_command(matrix_command)
