"""The audit's own command, for half a minute: the model equals the kernel's count.

scripts/audit.py ends with 0 only if nothing differs, if an arrival that is forgotten on
purpose is found, and if every finding is one that a quirk explains. Here it is one run,
with all defects on and all nodes told; which causes a random load makes, and that it
makes none without defects, `make audit` tells.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TOLD = re.compile(r"([\d,]+) VMAs and ([\d,]+) pages compared")

pytestmark = pytest.mark.timeout(3600)


def test_the_model_equals_numa_maps() -> None:
    command = [sys.executable, "scripts/audit.py", "--seconds", "30", "--every", "8"]
    command += ["--loader", "libbpf", "--quirks", "rfc", "--all"]
    result = subprocess.run(
        command, cwd=ROOT, text=True, capture_output=True, check=False
    )
    assert result.returncode in {0, 3}, result.stdout + result.stderr
    told = TOLD.search(result.stdout)
    assert told, result.stdout
    vmas, pages = (int(number.replace(",", "")) for number in told.groups())
    assert vmas >= 100
    assert pages >= 100
    assert "; 0 differences\n" in result.stdout
    assert " forgotten: found\n" in result.stdout
