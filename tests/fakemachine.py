"""A machine that can record, as far as ``record`` can tell before it compiles."""

from __future__ import annotations

from pathlib import Path

import pytest
from signatures import ARGUMENTS, types_of

from cdmtrace import privileges, target
from cdmtrace.kernel import config, headers, nodes, symbols, tracefs
from cdmtrace.probes import PROBES, Kind

KERNEL = "6.1"
NAMES = {
    "functions": frozenset(ARGUMENTS[KERNEL]),
    "tracepoints": frozenset(
        attachment.candidates[0]
        for probe in PROBES
        for attachment in probe.attachments
        if attachment.kind is Kind.TRACEPOINT
    ),
}
MM_H = "#define VM_CDM BIT(38)\n#define VM_MERGEABLE 0x80000000\n"
OPTIONS = {**dict.fromkeys(config.NEEDED, "y"), "CONFIG_NODES_SHIFT": "6"}


def pretend(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put headers and nodes below root, an empty directory, and go there.

    Node 1 is the CDM node, bit 38 is VM_CDM, and every probe can be attached.
    """
    (root / "include/linux").mkdir(parents=True)
    (root / "include/linux/mm.h").write_text(MM_H)
    sysfs = root / "node"
    sysfs.mkdir()
    (sysfs / "online").write_text("0-1\n")
    (sysfs / "is_coherent_device").write_text("1\n")
    discover, has_cdm = nodes.discover, nodes.has_cdm

    monkeypatch.chdir(root)
    # The privileges are the tests' own too, and they need them still.
    monkeypatch.setattr(privileges, "missing", dict)
    monkeypatch.setattr(privileges, "nothing_to_inherit", lambda: None)
    monkeypatch.setattr(privileges, "drop", lambda keep, who: [])
    for name in ("SUDO_UID", "SUDO_GID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(headers.SOURCE_VARIABLE, str(root))
    monkeypatch.setattr(config, "load", lambda: OPTIONS)
    monkeypatch.setattr(tracefs, "mounted", lambda: root)
    monkeypatch.setattr(tracefs, "tracepoints", lambda root: NAMES["tracepoints"])
    monkeypatch.setattr(symbols, "functions", lambda: NAMES["functions"])
    monkeypatch.setattr(target.layout, "defines", lambda types, config: {})
    monkeypatch.setattr(target.Btf, "load", lambda: types_of(KERNEL))
    monkeypatch.setattr(
        nodes,
        "discover",
        lambda given: discover(given, root=sysfs, cmdline=sysfs / "online"),
    )
    monkeypatch.setattr(nodes, "has_cdm", lambda: has_cdm(sysfs))
