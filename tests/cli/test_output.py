"""What becomes of output that nobody takes: that is no finding."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

GOLDEN = Path(__file__).parents[1] / "golden"
RFC, NONE = (str(GOLDEN / f"cdm-6.1-{name}.arrows") for name in ("rfc", "none"))
VERBS = [
    ["check", NONE],
    ["compare", RFC, NONE],
    ["report", NONE],
    ["explain", "--all"],
    ["export", "csv", NONE],
    ["export", "ndjson", NONE],
    ["query", NONE, "FROM events"],
    ["query", "--format", "ndjson", NONE, "FROM events a, events b"],
]


def started(words: list[str], **where: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "cdmtrace", *words],
        stderr=subprocess.PIPE,
        text=True,
        **where,
    )


@pytest.mark.parametrize("words", VERBS, ids=lambda words: words[0])
def test_a_reader_that_has_gone(words: list[str]) -> None:
    with started(words, stdout=subprocess.PIPE) as process:
        process.stdout.close()
        err = process.stderr.read()
    assert (process.returncode, err) == (141, "")


@pytest.mark.parametrize("words", VERBS, ids=lambda words: words[0])
def test_a_disk_that_is_full(words: list[str]) -> None:
    with Path("/dev/full").open("w") as full, started(words, stdout=full) as process:
        err = process.stderr.read()
    assert process.returncode == 2
    assert err == (
        "cdmtrace: what is printed cannot be written: No space left on device\n"
        "  hint: df says which disk is full\n"
    )
