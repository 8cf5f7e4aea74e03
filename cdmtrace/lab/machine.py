"""The guest's machine, and virtme-ng's command line for it."""

from __future__ import annotations

import os
import re
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cdmtrace.errors import LabError, apt_hint
from cdmtrace.lab.accel import Accelerator

CDM_NODE = 1
"""The guest's node without CPUs: the second one that QEMU gets."""

_SIZE = re.compile(r"(\d+)([MG])")
# virtme-ng passes it through a shell, QEMU's option parser and the kernel's command
# line, each with its own special characters.
_DEVICE = re.compile(r"[A-Za-z0-9_.,=-]+")
_PLAIN_PATH = re.compile(r"[A-Za-z0-9_./+@-]+")


@dataclass(frozen=True, kw_only=True, slots=True)
class Machine:
    """The guest's size: RAM of node 0, memory of the CDM node (MiB), CPUs.

    ``devices`` are those that QEMU emulates besides, as its -device has them.
    """

    ram_mib: int = 3072
    cdm_mib: int = 1024
    cpus: int = 2
    devices: tuple[str, ...] = ()


def parse_mib(text: str) -> int:
    """Return the MiB that ``text`` (like 3G or 512M) stands for."""
    match = _SIZE.fullmatch(text.strip().upper())
    if match is None or int(match[1]) == 0:
        raise LabError(f"{text!r} is no memory size; write it like 3G or 512M")
    return int(match[1]) * (1024 if match[2] == "G" else 1)


def check_device(text: str) -> str:
    """Return ``text``, or raise :class:`LabError` if QEMU cannot be handed it."""
    if not _DEVICE.fullmatch(text):
        raise LabError(f"{text!r} is no device of QEMU's; write it like edu")
    return text


@dataclass(frozen=True, kw_only=True, slots=True)
class Tools:
    """Where virtme-ng is, and the PATH on which it finds its other half."""

    vng: Path
    path: str


def find_tools() -> Tools:
    """Return virtme-ng as installed beside this Python, or on PATH.

    Raises :class:`LabError` if it or QEMU is missing.
    """
    # sudo takes the virtual environment's directory off PATH.
    beside = str(Path(sys.executable).parent)
    path = os.pathsep.join([beside, os.environ.get("PATH", os.defpath)])
    vng = shutil.which("vng", path=path)
    if vng is None or shutil.which("virtme-run", path=path) is None:
        raise LabError(
            "virtme-ng is not installed: guests cannot be booted",
            hint=f"{sys.executable} -m pip install 'virtme-ng>=1.42'",
        )
    if shutil.which("qemu-system-x86_64", path=path) is None:
        raise LabError(
            "qemu-system-x86_64 is not installed: guests cannot be booted",
            hint=apt_hint("qemu-system-x86"),
        )
    return Tools(vng=Path(vng), path=path)


def check_plain(path: Path) -> None:
    """Raise :class:`LabError` if ``path`` cannot be handed to a guest."""
    if not path.is_absolute() or not _PLAIN_PATH.fullmatch(str(path)):
        raise LabError(
            f"a guest cannot be given the path {str(path)!r}: only letters, digits "
            "and _ . / + @ - get through",
            hint="XDG_CACHE_HOME=/some/plain/path cdmtrace lab …",
        )


ROOT_FLAGS: Final = "version=9p2000.L,trans=virtio,access=any,msize=512000,cache=loose"
"""How the guest mounts the host's root: as virtme-ng has it, with the most at a time
that virtio takes, and with a cache."""


def vng_arguments(
    vng: Path,
    *,
    kernel: Path,
    machine: Machine,
    accelerator: Accelerator,
    run_dir: Path,
    script: Path,
    append: tuple[str, ...] = (),
) -> list[str]:
    """Return the command that boots ``kernel`` and runs ``script`` in the guest.

    ``run_dir`` is the only directory of the host that the guest can write to.
    """
    for path in (kernel, run_dir, script):
        check_plain(path)
    arguments = [str(vng), "--verbose", "--run", str(kernel)]
    emulated: tuple[str, ...] = ()
    if accelerator is Accelerator.TCG:
        arguments.append("--disable-kvm")
        # There is no speculation in what is emulated, and what a stock kernel does
        # against it takes a fifth of its time.
        emulated = ("--append=mitigations=off",)
    arguments += [
        "--disable-microvm",
        # Debian 12's virtiofsd does not take the arguments that virtme-ng passes.
        "--force-9p",
        *("--memory", f"{machine.ram_mib + machine.cdm_mib}M"),
        *("--cpus", str(machine.cpus)),
        *("--numa", f"{machine.ram_mib}M,cpus=0-{machine.cpus - 1}"),
        *("--numa", f"{machine.cdm_mib}M"),
        *(f"--qemu-opts=-device {device}" for device in machine.devices),
        *("--user", "root"),
        f"--rwdir={run_dir}",
        f"--append=cdm-nodes={1 << CDM_NODE:#x}",
        # Nobody changes programs and libraries while a guest runs, so that it may keep
        # what it has read of them. Most of Python's start is reading libraries.
        f"--append=rootflags={ROOT_FLAGS}",
        # A random place for the kernel's image may be on the CDM node: then the
        # vdso, which is part of it, is a CDM page in every process.
        "--append=nokaslr",
        # Whether the timer ticks is looked for during a few of its ticks, and a busy
        # host has an emulated machine stand still for longer: then it panics.
        "--append=no_timer_check",
        # To attach and to detach a probe waits for every cpu to have passed through
        # the scheduler; a hundred of them take seconds, unless the cpus are told.
        "--append=rcupdate.rcu_expedited=1",
        *emulated,
        *(f"--append={words}" for words in append),
        "--",
        f"sh {script}",
    ]
    return arguments
