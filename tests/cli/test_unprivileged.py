"""What somebody who may not trace the kernel is told, on this machine as it is."""

from __future__ import annotations

import importlib
import os
import sys
from pathlib import Path

import pytest

from cdmtrace.cli import main

# Who becomes nobody may not be let into the directory where these are.
for module in ("recorder", "watch", "filters", "render.info", "render.writes"):
    importlib.import_module(f"cdmtrace.{module}")
for module in ("cli.record", "cli.watch", "lab.processes", "analysis.names"):
    importlib.import_module(f"cdmtrace.{module}")


@pytest.mark.skipif(os.geteuid() != 0, reason="becoming somebody else needs root")
@pytest.mark.parametrize(
    "words",
    [("record",), ("record", "--dry-run"), ("watch", "--pid", "1", "--addr", "1")],
)
def test_who_has_no_privileges_is_told_which(
    words: tuple[str, ...], tmp_path: Path
) -> None:
    """Not where the kernel would not let them in."""
    said = os.open(tmp_path / "said", os.O_RDWR | os.O_CREAT)
    pid = os.fork()
    if not pid:
        status = 99
        try:
            os.dup2(said, 2)
            sys.stderr = os.fdopen(2, "w")
            os.setgroups([])
            os.setresgid(65534, 65534, 65534)
            os.setresuid(65534, 65534, 65534)
            status = main(list(words))
            sys.stderr.flush()
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 125
    text = os.pread(said, 1 << 16, 0).decode()
    os.close(said)
    assert "recording needs CAP_BPF" in text
    assert "hint: sudo cdmtrace" in text
