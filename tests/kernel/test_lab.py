"""The laboratory itself: real guests, on the kernel that it built."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from labrun import lab_run

from cdmtrace.lab import quirks


@pytest.fixture(scope="session", autouse=True)
def _kernel() -> None:
    """Build the kernel once, outside the time limit of any test."""
    subprocess.run([sys.executable, "-m", "cdmtrace", "lab", "build"], check=True)


pytestmark = pytest.mark.timeout(3600)


def test_nodes_streams_and_status(tmp_path: Path) -> None:
    script = (
        "cat /sys/devices/system/node/has_cpu /sys/devices/system/node/has_memory;"
        "cat /sys/kernel/debug/cdm/quirks; pwd; echo to-stderr >&2;"
        "echo trace > x.arrows; exit 42"
    )
    result = lab_run(tmp_path, "--", "sh", "-c", script)
    assert result.returncode == 42, result.stderr
    cpus, memory, *rest = result.stdout.splitlines()
    assert cpus == "0"
    assert memory == "0-1"
    assert rest[-1] == str(tmp_path / "run")
    names = [line.split()[:2] for line in rest[:-1]]
    assert names == [[quirk.name, "off"] for quirk in quirks.QUIRKS]
    assert "to-stderr" in result.stderr.splitlines()
    assert "x.arrows" in result.stderr
    assert "Linux version" in (tmp_path / "run" / "console.log").read_text()


def test_kernel_and_host_agree_on_what_quirks_need(tmp_path: Path) -> None:
    result = lab_run(
        tmp_path,
        *("--quirks", "thp-untagged,ksm-merge"),
        *("--", "cat", quirks.DEBUGFS_FILE),
    )
    assert result.returncode == 0, result.stderr
    on = [line.split()[0] for line in result.stdout.splitlines() if " on " in line]
    assert tuple(on) == quirks.resolve("thp-untagged,ksm-merge")


def test_a_panic_is_told_from_the_command_s_status(tmp_path: Path) -> None:
    result = lab_run(
        tmp_path, "--", "sh", "-c", "echo c > /proc/sysrq-trigger; sleep 100"
    )
    assert result.returncode == 134
    assert "sysrq triggered crash" in result.stderr


def test_time_out(tmp_path: Path) -> None:
    result = lab_run(tmp_path, "--timeout", "20", "--", "sleep", "1000")
    assert result.returncode == 124


def test_a_command_that_is_not_there(tmp_path: Path) -> None:
    assert lab_run(tmp_path, "--", "/no/such/command").returncode == 127


@pytest.mark.parametrize("names", ["none", "rfc"])
def test_the_story_holds(tmp_path: Path, names: str) -> None:
    result = lab_run(tmp_path, "--quirks", names, "--scenario", "story")
    assert result.returncode == 0, result.stdout + result.stderr
    assert "not ok" not in result.stdout
    assert "\nok " in result.stdout
