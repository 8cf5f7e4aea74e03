"""The recipe of docs/ci.md: its offline half on real recordings, and how it boots."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import junitparser
import pytest
from simfile import save
from simkernel import SimKernel

from cdmtrace.cli import main

ROOT = Path(__file__).parents[2]
GATE, BOOT = (ROOT / "examples/ci" / name for name in ("gate.sh", "boot.sh"))
GOLDEN = ROOT / "tests/golden"
NONE, RFC = (GOLDEN / f"cdm-6.1-{name}.arrows" for name in ("none", "rfc"))

MISSING = GOLDEN / "missing.arrows"


def run(
    script: Path, *words: str | Path, path: Path | None = None, **variables: str
) -> subprocess.CompletedProcess[str]:
    """Run a script; path: where cdmtrace is, if it is not that of these tests."""
    tools = path or Path(sys.executable).parent
    kept = {name: v for name, v in os.environ.items() if name != "GITHUB_ACTIONS"}
    return subprocess.run(
        [str(script), *map(str, words)],
        env={**kept, "PATH": f"{tools}:{os.environ['PATH']}", **variables},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture
def lossy(tmp_path: Path) -> Path:
    kernel = SimKernel()
    kernel.process()
    kernel.lose("vma_split", 0)
    return save(kernel.trace(), tmp_path / "lossy.arrows")


@pytest.mark.parametrize(
    ("base", "patch", "status"),
    [
        (NONE, NONE, 0),
        (NONE, MISSING, 2),
        (MISSING, NONE, 2),
        (NONE, None, 3),
    ],
)
def test_the_gate(
    base: Path, patch: Path | None, status: int, tmp_path: Path, lossy: Path
) -> None:
    done = run(GATE, base, patch or lossy, tmp_path / "out")
    assert done.returncode == status, done.stderr


def test_what_the_gate_leaves(tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = run(GATE, NONE, RFC, out)
    assert done.returncode == 1
    assert done.stdout.endswith("verdict: violated, 15 findings\n")
    report = junitparser.JUnitXml.fromfile(str(out / "check.junit.xml"))
    assert report.failures > 0
    (told,) = json.loads((out / "check.sarif").read_text())["runs"]
    assert len(told["results"]) == 15
    assert (out / "compare.md").read_text().startswith("## New in B: 10\n")
    assert {path.name for path in out.iterdir()} == {
        "check.junit.xml",
        "check.sarif",
        "compare.md",
    }


def test_the_gate_lets_pass_what_is_known(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    known = tmp_path / "known.toml"
    main(["check", "--write-baseline", str(known), "--reason", "known", str(RFC)])
    capsys.readouterr()
    variables = {"CDMTRACE_CHECK_BASELINE": str(known)}
    done = run(GATE, RFC, RFC, tmp_path / "a", **variables)
    assert (done.returncode, done.stderr) == (0, "")
    # What is gone is told once, and passes.
    done = run(GATE, RFC, NONE, tmp_path / "b", **variables)
    assert done.returncode == 0
    assert done.stderr.count("stale") == known.read_text().count("reason = ") == 10
    # It is new, though it is known.
    assert run(GATE, NONE, RFC, tmp_path / "c", **variables).returncode == 1


def test_the_gate_annotates_on_github(tmp_path: Path) -> None:
    """Nothing is new, but nobody has said that it is known."""
    done = run(GATE, RFC, RFC, tmp_path / "out", GITHUB_ACTIONS="true")
    assert done.returncode == 1
    assert {line[:2] for line in done.stdout.splitlines()} == {"::"}


def test_a_report_that_cannot_be_written_is_trouble(tmp_path: Path) -> None:
    (tmp_path / "check.sarif").symlink_to("/dev/full")
    done = run(GATE, NONE, NONE, tmp_path)
    assert done.returncode == 2
    assert f"{tmp_path}/check.sarif could not be written\n" in done.stderr


@pytest.mark.parametrize("script", [GATE, BOOT], ids=lambda path: path.name)
def test_wrong_usage_is_no_finding(script: Path) -> None:
    done = run(script, "x")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"usage: {script.name} ")


STAND_IN = """\
#!/bin/sh
printf '%s\\n' "$@" >words
exit $ENDS
"""
"""It plays the laboratory, which host tests cannot boot: says how it was called."""


@pytest.mark.parametrize(
    ("ends", "status"), [(0, 0), (1, 0), (124, 124), (125, 125), (134, 134)]
)
def test_how_it_boots(ends: int, status: int, tmp_path: Path) -> None:
    (tmp_path / "cdmtrace").write_text(STAND_IN)
    (tmp_path / "cdmtrace").chmod(0o755)
    done = subprocess.run(
        [str(BOOT), "./bzImage", "out dir", "--vm-cdm-mask", "bit:38"],
        env={"PATH": f"{tmp_path}:{os.environ['PATH']}", "ENDS": str(ends)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == status
    assert ("out dir/console.log" in done.stderr) == (status > 0)
    assert (tmp_path / "words").read_text().splitlines() == [
        *("lab", "run", "--kernel", "./bzImage", "--scenario", "story"),
        *("--run-dir", "out dir", "--", "cdmtrace", "record", "-o", "story.arrows"),
        *("--vm-cdm-mask", "bit:38", "--"),
    ]
