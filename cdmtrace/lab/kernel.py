"""Build the laboratory's kernels, each once per content."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from cdmtrace.errors import LabError
from cdmtrace.lab import debian, kconfig, source, toolchain, tree
from cdmtrace.lab.paths import exclusive
from cdmtrace.lab.processes import Session, signals_as_errors, tail
from cdmtrace.lab.specs import directory_name

if TYPE_CHECKING:
    from cdmtrace.lab.paths import Layout
    from cdmtrace.lab.specs import KernelSpec

# What make prints for each object of a full build, about; only the progress
# estimate of a first build leans on it.
_EXPECTED_STEPS = 1850
_LOG_TAIL_LINES = 30

_STEP = re.compile(rb"^  (?:CC|AS|AR|LD|HOSTCC|GEN|UPD|BTF|CHK|OBJCOPY) ")
IMAGE = "bzImage"
"""What the image is called in a kernel's directory."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Kernel:
    """A finished kernel in the cache."""

    directory: Path

    @property
    def image(self) -> Path:
        """The bootable image."""
        return self.directory / IMAGE

    @property
    def config(self) -> Path:
        """The final configuration."""
        return self.directory / "config"

    @property
    def headers(self) -> Path | None:
        """What modules are built with; None for a kernel that came without."""
        if not (self.directory / "kernel.json").is_file():
            return None
        return next(self.directory.glob("lib/modules/*/build"), None)


class Progress(Protocol):
    """Where a build says how far it is."""

    def stage(self, what: str) -> None:
        """Begin a new stage, named by a phrase."""

    def step(self, done: int, expected: int) -> None:
        """Report ``done`` of about ``expected`` objects of the present stage."""


class Quiet:
    """A :class:`Progress` that says nothing."""

    def stage(self, what: str) -> None:
        """Ignore the stage."""

    def step(self, done: int, expected: int) -> None:
        """Ignore the step."""


def find_built(spec: KernelSpec, layout: Layout) -> Kernel | None:
    """Return the finished kernel for ``spec`` as it is now, or None.

    Asks neither apt nor the network.  Without a compiler on this machine one that
    any compiler built will do.
    """
    version = source.pinned_version(layout, spec.package)
    if version is None:
        return None
    compiler = toolchain.compiler_version()
    name = directory_name(spec, version, compiler or "")
    if compiler is not None:
        found = [layout.kernels / name]
    else:
        found = sorted(layout.kernels.glob(name.rpartition("-")[0] + "-*"))
    for directory in found:
        if (directory / IMAGE).is_file():
            return Kernel(directory=directory)
    return None


def build(
    spec: KernelSpec,
    layout: Layout,
    *,
    jobs: int | None = None,
    update: bool = False,
    progress: Progress | None = None,
) -> Kernel:
    """Return the finished kernel for ``spec``, building it if need be.

    ``jobs`` is make's -j (default: the CPUs that this process may use).  With
    ``update`` the package lists are refreshed and the newest source is taken.
    Raises :class:`LabError`, with the log's last lines where make failed.
    """
    progress = progress or Quiet()
    if not update and (kernel := find_built(spec, layout)):
        return kernel
    with (
        signals_as_errors(),
        exclusive(
            layout.work / "lock",
            lambda: progress.stage("waiting for another build to end"),
        ),
    ):
        if not update and (kernel := find_built(spec, layout)):
            return kernel
        toolchain.require_tools()
        version = _version(spec, layout, progress, update=update)
        if kernel := find_built(spec, layout):
            return kernel
        return _build_locked(
            spec, layout, version, jobs or len(os.sched_getaffinity(0)), progress
        )


def _version(
    spec: KernelSpec, layout: Layout, progress: Progress, *, update: bool
) -> str:
    pinned = source.pinned_version(layout, spec.package)
    # Archives drop old versions: one that is not unpacked here may be gone.
    if (
        pinned is not None
        and not update
        and source.source_dir(layout, spec.package, pinned).is_dir()
    ):
        return pinned
    archive = debian.Archive.of(spec.suites, layout)
    version = archive.choose_version(spec.package, progress.stage, fresh=update)
    source.fetch(spec, layout, version, progress.stage)
    # Pinned only now, so that a failed download leaves the old one in use.
    source.pin_version(layout, spec.package, version)
    return version


def _build_locked(
    spec: KernelSpec, layout: Layout, version: str, jobs: int, progress: Progress
) -> Kernel:
    compiler = toolchain.compiler_version() or ""
    name = directory_name(spec, version, compiler)
    pristine = source.fetch(spec, layout, version, progress.stage)
    workspace = layout.work / f"{spec.package}_{version}"
    sources = workspace / f"tree-{spec.patches.name}"
    # Kernels of one tree that differ in options share what those do not touch.
    objects = workspace / f"obj-{spec.patches.name}"
    log = workspace / f"{spec.name}.log"
    objects.mkdir(parents=True, exist_ok=True)
    progress.stage(f"patching {spec.package} {version}")
    tree.update_tree(pristine, sources, spec.patch_files())
    make = Make(sources=sources, objects=objects, log=log)
    log.write_bytes(b"")
    progress.stage(f"configuring {spec.name}")
    _configure(spec, make)
    progress.stage(f"building {spec.name} with {jobs} jobs, log in {log}")
    make.run([IMAGE], jobs=jobs, progress=progress)
    if directory_name(spec, version, compiler) != name:
        raise LabError(
            f"the patches or fragments of {spec.name} changed while it was built",
            hint="cdmtrace lab build, again",
        )
    record: dict[str, object] = {
        "name": spec.name,
        "source": [spec.package, version],
        "patches": [path.name for path in spec.patch_files()],
        "compiler": compiler.splitlines(),
        "release": _release(objects),
    }
    return _publish(layout, name, objects, log, record)


@dataclass(frozen=True, kw_only=True, slots=True)
class Make:
    """Runs make for one source tree and one object tree, logging to a file."""

    sources: Path
    objects: Path
    log: Path

    def run(
        self, targets: list[str], *, jobs: int = 1, progress: Progress | None = None
    ) -> None:
        """Make ``targets``; raise :class:`LabError` with the end of the log."""
        arguments = ["make", f"O={self.objects}", f"-j{jobs}", *targets]
        done = 0
        expected = self._expected()
        with (
            self.log.open("ab", buffering=0) as log,
            Session(
                arguments,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                cwd=self.sources,
                env=self._environment(),
            ) as session,
        ):
            log.write(f"$ {' '.join(arguments)}\n".encode())
            assert session.process.stdout is not None
            for line in session.process.stdout:
                log.write(line)
                if progress is not None and _STEP.match(line):
                    done += 1
                    progress.step(done, expected)
            status = session.wait()
        if status != 0:
            text = self.log.read_text(errors="replace")
            raise LabError(
                f"make {' '.join(targets)} failed ({status}); the whole log is "
                f"{self.log}",
                details=tail(text, _LOG_TAIL_LINES),
            )

    def _expected(self) -> int:
        # After a first build make touches only what changed; how much that is,
        # nobody knows before, so the estimate is only good for a first build.
        return _EXPECTED_STEPS

    @staticmethod
    def _environment() -> dict[str, str]:
        environment = {
            name: value
            for name, value in os.environ.items()
            # make's own variables, if we run under one, and whatever would change
            # what is built, are none of this build's business.
            if name not in {"MAKEFLAGS", "MFLAGS", "MAKELEVEL", "MAKEOVERRIDES"}
            and not name.startswith(("KBUILD_", "KCONFIG_"))
            and name not in {"ARCH", "CROSS_COMPILE", "CC", "LLVM", "KCFLAGS", "O"}
        }
        # Fixed, so that nothing is rebuilt, or differs, for the time of day.
        environment |= {
            "LC_ALL": "C",
            "KBUILD_BUILD_USER": "cdmtrace",
            "KBUILD_BUILD_HOST": "lab",
            "KBUILD_BUILD_VERSION": "1",
            "KBUILD_BUILD_TIMESTAMP": "Thu Jan  1 00:00:00 UTC 1970",
        }
        return environment


def _configure(spec: KernelSpec, make: Make) -> None:
    try:
        wanted = kconfig.merge(spec.fragment_texts())
    except ValueError as error:
        raise LabError(f"configuration of {spec.name}: {error}") from error
    make.run(["tinyconfig"])
    final = make.objects / ".config"
    # kconfig takes the last line about an option.
    with final.open("a") as file:
        file.write(kconfig.render(wanted))
    make.run(["olddefconfig"])
    wrong = kconfig.unhonoured(wanted, kconfig.parse(final.read_text()))
    if wrong:
        raise LabError(
            f"the configuration of {spec.name} does not hold: the kernel dropped "
            "or changed options that the fragment asks for",
            details="\n".join(map(str, wrong)),
            hint="look up their dependencies in the source's Kconfig files",
        )


def _release(objects: Path) -> str:
    return (objects / "include" / "config" / "kernel.release").read_text().strip()


def _publish(
    layout: Layout, name: str, objects: Path, log: Path, record: dict[str, object]
) -> Kernel:
    """Move the finished kernel to its name, all at once."""
    layout.kernels.mkdir(parents=True, exist_ok=True)
    for stale in layout.kernels.glob(".new-*"):
        shutil.rmtree(stale, ignore_errors=True)
    staging = layout.kernels / f".new-{name}"
    staging.mkdir()
    shutil.copy(objects / "arch" / "x86" / "boot" / IMAGE, staging / IMAGE)
    shutil.copy(objects / "System.map", staging / "System.map")
    shutil.copy(objects / ".config", staging / "config")
    shutil.copy(log, staging / "build.log")
    (staging / "kernel.json").write_text(json.dumps(record, indent=2) + "\n")
    target = layout.kernels / name
    if target.exists():
        # Only a damaged one can be here: a whole one would have been found.
        shutil.rmtree(target)
    staging.rename(target)
    return Kernel(directory=target)
