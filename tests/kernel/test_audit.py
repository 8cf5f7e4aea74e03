"""The audit's own command, for a minute: the model equals the kernel's count.

scripts/audit.py judges itself: it ends with 0 only if nothing differs, if an arrival
that is forgotten on purpose is found, and if every finding is one that a quirk
explains. `make audit` runs it for ten minutes at a time.
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


@pytest.mark.parametrize(
    "words", [("--all",), ("--quirks", "rfc")], ids=["every-node", "rfc"]
)
def test_the_model_equals_numa_maps(words: tuple[str, ...]) -> None:
    command = [sys.executable, "scripts/audit.py", "--seconds", "40", "--every", "10"]
    result = subprocess.run(
        [*command, *words], cwd=ROOT, text=True, capture_output=True, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr
    told = TOLD.search(result.stdout)
    assert told, result.stdout
    vmas, pages = (int(number.replace(",", "")) for number in told.groups())
    assert vmas >= 100
    assert pages >= 100
    assert ": found" in result.stdout
