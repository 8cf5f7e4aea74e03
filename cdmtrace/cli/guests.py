"""What the verbs of the laboratory have in common: a kernel, a place, a guest."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import click

from cdmtrace.errors import LabError, UsageTrouble
from cdmtrace.lab import accel, kernels, modules, scenarios, specs
from cdmtrace.lab.kernel import Kernel
from cdmtrace.lab.paths import Layout, new_run_dir


def say(message: str) -> None:
    """Write a line to stderr: stdout is for results."""
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
        say(what)

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


def built(name: str, *, jobs: int | None = None, update: bool = False) -> Kernel:
    """Return a kernel of the laboratory, built or fetched if need be."""
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


def kernel_image(kernel: str) -> Path:
    """Return the image for a kernel's name, or for a path to one."""
    if "/" in kernel:
        path = Path(kernel).resolve()
        if not path.is_file():
            raise UsageTrouble(f"no kernel image {kernel}")
        return path
    return built(kernel).image


def image_and_modules(
    kernel: str, scenario: scenarios.Scenario | None
) -> tuple[Path, tuple[Path, ...]]:
    """Return the kernel's image, and the modules for it that a scenario needs."""
    module = modules.needed_by(scenario) if scenario is not None else None
    if scenario is None or module is None:
        return kernel_image(kernel), ()
    if kernel in specs.BUILT:
        # Not after minutes of building it.
        raise LabError(
            f"the scenario {scenario.name} needs a module, and {kernel} takes none",
            hint=modules.HINT,
        )
    image = kernel_image(kernel)
    loaded = modules.build(
        module, scenario, Kernel(directory=image.parent), Layout.default()
    )
    return image, (loaded,)


def prepared(run_dir: Path | None, layout: Layout) -> Path:
    """Return the run directory that was named, empty, or a new one in the cache."""
    if run_dir is None:
        return new_run_dir(layout)
    run_dir = run_dir.resolve()
    run_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    if any(run_dir.iterdir()):
        raise UsageTrouble(f"the run directory {run_dir} is not empty")
    return run_dir


def accelerator_for(asked: str, image: Path, layout: Layout) -> accel.Accelerator:
    """Return the accelerator that was asked for; of ``auto`` the one that works."""
    if asked != "auto":
        return accel.Accelerator(asked)
    chosen, why = accel.choose(image, layout)
    if chosen is accel.Accelerator.TCG:
        say(f"emulating the guest, 10 to 20 times slower than KVM: {why}")
    return chosen
