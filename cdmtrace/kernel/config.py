"""The configuration that the running kernel was built with."""

from __future__ import annotations

import gzip
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from cdmtrace.errors import RecordError

NEEDED: Final = {
    "CONFIG_BPF_SYSCALL": "no BPF program can be loaded",
    "CONFIG_KPROBES": "no probe can be put into its functions",
    "CONFIG_KPROBE_EVENTS": "no probe can be attached to its functions",
    "CONFIG_BPF_EVENTS": "no BPF program can be run by a probe",
}
"""Option -> what will not work in a kernel without it. Recording needs all."""


class ConfigMissing(RecordError):
    """No configuration of the running kernel was found (exit status 125)."""


def parse(text: str) -> dict[str, str]:
    """Return option -> value (quotes taken off) of the options that are set."""
    options = {}
    for line in text.splitlines():
        if line.startswith("CONFIG_") and "=" in line:
            name, _, value = line.partition("=")
            options[name] = value.strip('"')
    return options


def lacking(options: Mapping[str, str]) -> tuple[str, ...]:
    """Return a sentence for each option that recording needs and that is not set."""
    return tuple(
        f"{name} is not set in this kernel: {why}"
        for name, why in NEEDED.items()
        if options.get(name) != "y"
    )


def tags(options: Mapping[str, str]) -> bool:
    """Return whether the kernel was built to tag: then it has a VM_CDM."""
    return options.get("CONFIG_COHERENT_DEVICE") == "y"


def load(release: str | None = None) -> Mapping[str, str]:
    """Return the running kernel's configuration.

    Looked for in the kernel itself, in /boot, and beside its headers. Raises
    ConfigMissing.
    """
    release = release or os.uname().release
    inside = Path("/proc/config.gz")
    if inside.exists():
        return parse(gzip.decompress(inside.read_bytes()).decode())
    places = (
        Path(f"/boot/config-{release}"),
        Path(f"/lib/modules/{release}/config"),
        Path(f"/lib/modules/{release}/build/.config"),
    )
    for path in places:
        if path.exists():
            return parse(path.read_text())
    raise ConfigMissing(
        f"the configuration of kernel {release} was not found in /proc/config.gz, "
        + ", ".join(str(path) for path in places),
        hint="install the kernel's own package, or boot a kernel with "
        "CONFIG_IKCONFIG_PROC=y",
    )
