"""The laboratory itself: real guests, on the kernel that it built."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from labrun import lab_run

from cdmtrace.lab import quirks


@pytest.fixture(scope="session", autouse=True)
def _kernel() -> None:
    """Build the kernel once, outside the time limit of any test."""
    subprocess.run([sys.executable, "-m", "cdmtrace", "lab", "build"], check=True)


pytestmark = pytest.mark.timeout(3600)


ASKED = "thp-untagged,ksm-merge"
SCRIPT = f"""\
cat /sys/devices/system/node/has_cpu /sys/devices/system/node/has_memory
pwd
echo to-stderr >&2
cat {quirks.DEBUGFS_FILE} >asked
echo trace >x.arrows
story=$1
try() {{
	echo $1 >{quirks.DEBUGFS_FILE}
	cat {quirks.DEBUGFS_FILE} >$1.quirks
	"$story" --quirks $2 >$1.tap
	echo $? >$1.status
}}
try none none
try rfc {quirks.as_argument(quirks.resolve(quirks.RFC))}
exit 42
"""


def states(text: str) -> list[tuple[str, bool]]:
    """Return (quirk, on) as the kernel lists them."""
    lines = [line.split() for line in text.splitlines()]
    return [(words[0], {"on": True, "off": False}[words[1]]) for words in lines]


@dataclass(frozen=True)
class Guest:
    """A guest that has run a command: what came of it, and what it left."""

    result: subprocess.CompletedProcess[str]
    run: Path


@pytest.fixture(scope="module")
def guest(tmp_path_factory: pytest.TempPathFactory) -> Guest:
    """Run all that needs no guest of its own."""
    directory = tmp_path_factory.mktemp("lab")
    words = ("--quirks", ASKED, "--scenario", "story", "--", "sh", "-c", SCRIPT, "sh")
    return Guest(lab_run(directory, *words), directory / "run")


def test_nodes_streams_and_status(guest: Guest) -> None:
    result = guest.result
    assert result.returncode == 42, result.stderr
    assert result.stdout.splitlines() == ["0", "0-1", str(guest.run)]
    assert "to-stderr" in result.stderr.splitlines()
    assert "x.arrows" in result.stderr
    assert "Linux version" in (guest.run / "console.log").read_text()


def test_kernel_and_host_agree_on_what_quirks_need(guest: Guest) -> None:
    listed = states((guest.run / "asked").read_text())
    assert tuple(name for name, on in listed if on) == quirks.resolve(ASKED)


@pytest.mark.parametrize("names", ["none", "rfc"])
def test_kernel_and_host_know_the_same_quirks(guest: Guest, names: str) -> None:
    on = quirks.resolve(names)
    expected = [(quirk.name, quirk.name in on) for quirk in quirks.QUIRKS]
    assert states((guest.run / f"{names}.quirks").read_text()) == expected


@pytest.mark.parametrize("names", ["none", "rfc"])
def test_the_story_holds(guest: Guest, names: str) -> None:
    tap = (guest.run / f"{names}.tap").read_text()
    assert (guest.run / f"{names}.status").read_text() == "0\n", tap
    assert "not ok" not in tap
    assert "\nok " in tap


def test_a_panic_is_told_from_the_command_s_status(tmp_path: Path) -> None:
    script = f"cat {quirks.DEBUGFS_FILE}; echo c > /proc/sysrq-trigger; sleep 100"
    result = lab_run(tmp_path, "--", "sh", "-c", script)
    assert result.returncode == 134
    assert "sysrq triggered crash" in result.stderr
    # What was said before is passed on; nobody has asked for quirks.
    assert states(result.stdout) == [(quirk.name, False) for quirk in quirks.QUIRKS]


DEFAULT = """\
import ctypes, mmap
libc = ctypes.CDLL(None, use_errno=True)
memory = mmap.mmap(-1, mmap.PAGESIZE)
start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
mbind = libc.syscall(237, ctypes.c_ulong(start), mmap.PAGESIZE, 0, None, 0, 0)
print("mbind", mbind, flush=True)
"""
WILLNEED = """\
import mmap
memory = mmap.mmap(-1, 64 * mmap.PAGESIZE)
memory.write(b"x" * len(memory))
memory.madvise(21)  # MADV_PAGEOUT
memory.madvise(mmap.MADV_WILLNEED)
print("willneed", memory[0], flush=True)
"""
SWAP = """\
echo 64M >/sys/block/zram0/disksize && mkswap /dev/zram0 >/dev/null &&
swapon /dev/zram0 || exit 1
"""


@pytest.mark.parametrize(
    ("name", "options", "before", "program", "said"),
    [
        # One of them lives on after its oops, and says nothing more for two minutes.
        ("default-oops", (), "", DEFAULT, "mbind 0"),
        ("null-vma", ("--append", "oops=panic"), SWAP, WILLNEED, "willneed 120"),
    ],
)
def test_a_quirk_that_crashes_does_and_without_it_nothing_does(
    name: str,
    options: tuple[str, ...],
    before: str,
    program: str,
    said: str,
    tmp_path: Path,
) -> None:
    (tmp_path / "program.py").write_text(program)
    # First with all that it needs, and not with itself
    beside = ",".join(quirks.BY_NAME[name].needs) or quirks.NONE
    script = f"""\
{before}
try() {{
	echo $1 >{quirks.DEBUGFS_FILE}
	{sys.executable} {tmp_path}/program.py
}}
try {beside} || exit 1
try {name}
"""
    result = lab_run(tmp_path, *options, "--", "sh", "-c", script)
    assert result.returncode == 134, result.stderr
    assert result.stdout == f"{said}\n"
    assert "NULL pointer dereference" in (tmp_path / "run" / "console.log").read_text()


def test_time_out(tmp_path: Path) -> None:
    result = lab_run(tmp_path, "--timeout", "20", "--", "sleep", "1000")
    assert result.returncode == 124


def test_a_command_that_is_not_there(tmp_path: Path) -> None:
    assert lab_run(tmp_path, "--", "/no/such/command").returncode == 127
