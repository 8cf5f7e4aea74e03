"""Which accelerator QEMU gets: KVM once it has booted something, else emulation.

That ``/dev/kvm`` exists proves nothing: in nested virtualisation QEMU may abort on
it, or hang in the guest's first instruction.  So a kernel is booted with it, once per
boot of the host, without a root file system: when it gets as far as to panic about
that, KVM works.
"""

from __future__ import annotations

import enum
import json
import os
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING

from cdmtrace.lab.paths import exclusive, write_atomically
from cdmtrace.lab.processes import Session

if TYPE_CHECKING:
    from cdmtrace.lab.paths import Layout

KVM_DEVICE = Path("/dev/kvm")
PROBE_TIMEOUT_SECONDS = 20.0

# Any of these comes after all of the kernel's own initialisation.
_REACHED_USERSPACE = (
    b"VFS: Unable to mount root fs",
    b"No working init found",
    b"Requested init",
    b"Run /init as init process",
)


class Accelerator(enum.StrEnum):
    """What executes the guest's instructions."""

    KVM = "kvm"
    TCG = "tcg"


def choose(
    kernel: Path, layout: Layout, *, qemu: str = "qemu-system-x86_64"
) -> tuple[Accelerator, str]:
    """Return the accelerator to use on this host, and why, in a phrase.

    The verdict is kept until the host is booted again.
    """
    if not KVM_DEVICE.exists():
        return Accelerator.TCG, f"there is no {KVM_DEVICE}"
    if not os.access(KVM_DEVICE, os.R_OK | os.W_OK):
        return Accelerator.TCG, f"no access to {KVM_DEVICE} (group kvm)"
    boot = _boot_id()
    with exclusive(layout.root / "kvm.lock"):
        verdict = _remembered(layout.kvm_verdict, boot)
        if verdict is None:
            verdict = probe_kvm(kernel, qemu=qemu)
            works, why = verdict
            record = {"boot_id": boot, "works": works, "why": why}
            write_atomically(layout.kvm_verdict, json.dumps(record).encode() + b"\n")
    works, why = verdict
    return (Accelerator.KVM if works else Accelerator.TCG), why


def probe_kvm(
    kernel: Path,
    *,
    qemu: str = "qemu-system-x86_64",
    timeout: float = PROBE_TIMEOUT_SECONDS,
) -> tuple[bool, str]:
    """Boot ``kernel`` under KVM and return whether it came through, and why.

    ``timeout`` is in seconds; a host where KVM works needs one or two.
    """
    arguments = [
        qemu,
        *("-nodefaults", "-no-user-config", "-no-reboot", "-display", "none"),
        *("-machine", "q35", "-accel", "kvm", "-cpu", "host", "-m", "1G"),
        *("-serial", "stdio", "-kernel", str(kernel)),
        *("-append", "console=ttyS0 earlyprintk=serial,ttyS0 panic=-1"),
    ]
    try:
        session = Session(
            arguments,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            cwd=Path("/"),
            env=os.environ,
        )
    except OSError as error:
        return False, f"cannot start {qemu}: {error}"
    console = bytearray()
    deadline = time.monotonic() + timeout
    with session:
        assert session.process.stdout is not None
        descriptor = session.process.stdout.fileno()
        os.set_blocking(descriptor, False)
        while time.monotonic() < deadline:
            try:
                chunk = os.read(descriptor, 65536)
            except BlockingIOError:
                time.sleep(0.02)
                continue
            if not chunk:
                break
            console += chunk
            if any(mark in console for mark in _REACHED_USERSPACE):
                return True, "a kernel booted with it"
        else:
            return False, f"KVM did not boot a kernel within {timeout:g} s"
    # Such as an assertion about an MSR; what it says is too long for one line.
    return False, "QEMU ended early under KVM"


def _boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def _remembered(path: Path, boot: str) -> tuple[bool, str] | None:
    try:
        record = json.loads(path.read_bytes())
        if record["boot_id"] == boot:
            return bool(record["works"]), str(record["why"])
    except (OSError, ValueError, KeyError, TypeError):
        pass
    return None
