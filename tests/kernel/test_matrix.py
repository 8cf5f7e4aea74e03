"""The matrix from end to end, in one guest: no quirk, the RFC's, and a race.

``cdmtrace lab matrix`` with no more words is all of it, and takes half an hour in an
emulated guest.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from cdmtrace.lab.expectations import RULES

pytestmark = pytest.mark.timeout(3600)

ROWS = ("none", "rfc", "unlocked-clear+slow-rmw")


def matrix(*words: str) -> tuple[int, dict[str, Any], str]:
    """Return the exit status, the document, and what was said."""
    command = [sys.executable, "-m", "cdmtrace", "lab", "matrix", "--format", "json"]
    command += ["--quirks", ",".join(ROWS), *words]
    result = subprocess.run(command, text=True, capture_output=True, check=False)
    return result.returncode, json.loads(result.stdout), result.stderr


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory with the recordings of one run, which was as expected."""
    directory = tmp_path_factory.mktemp("matrix") / "kept"
    status, document, said = matrix("--keep", str(directory))
    assert status == 0, json.dumps(document, indent=2) + said
    return directory


def test_what_is_found_is_what_must_be(recorded: Path) -> None:
    status, document, _ = matrix("--from", str(recorded))
    assert status == 0
    assert [row["row"] for row in document["rows"]] == list(ROWS)
    for row in document["rows"]:
        assert row["problem"] is None
        assert [cell["rule"] for cell in row["cells"]] == list(RULES)
    none, rfc, _ = document["rows"]
    assert {cell["findings"] for cell in none["cells"]} == {0}
    assert sum(cell["findings"] > 0 for cell in rfc["cells"]) > 12


def test_each_recording_says_which_quirks_were_on_by_what_it_holds(
    recorded: Path,
) -> None:
    """Under another row's name a recording is not as expected."""
    (recorded / "rfc.arrows").rename(recorded / "kept.arrows")
    (recorded / "none.arrows").rename(recorded / "rfc.arrows")
    (recorded / "kept.arrows").rename(recorded / "none.arrows")
    status, document, _ = matrix("--from", str(recorded))
    assert status == 1
    assert [row["as_expected"] for row in document["rows"]] == [False, False, True]
