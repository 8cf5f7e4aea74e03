"""How much memory a recorder takes does not depend on how much there is to record."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from recording import require_rings

pytestmark = pytest.mark.bpf

HERE = Path(__file__).parent
EVENTS = 2 << 20
"""256 MiB of them."""
MORE = 24 << 20
"""Bytes by which it may grow on the way: three batches, for they get full only when
there is much in the ring."""


def test_a_flood_without_end(tmp_path: Path) -> None:
    """Of many tasks, with many stacks, and with losses in a thousand places."""
    require_rings()
    root = HERE.parents[1]
    path = os.pathsep.join(map(str, (root, root / "benchmarks")))
    result = subprocess.run(
        [sys.executable, HERE / "flood.py", tmp_path / "flood.arrows", str(EVENTS)],
        text=True,
        capture_output=True,
        check=False,
        env={**os.environ, "PYTHONPATH": path},
    )
    assert result.returncode == 0, result.stderr
    told = [json.loads(line) for line in result.stdout.splitlines()]
    assert len(told) >= 4
    # By then each stack has been written, and each buffer filled once.
    first, *rest = told
    assert len(rest) > 2
    assert rest[-1]["events"] >= EVENTS
    assert max(one["bytes"] for one in rest) - first["bytes"] < MORE, told
