"""Recordings with few privileges, and recordings that end badly: what is left of them.

One boot for all: endings.py makes them in the guest, and ends with it.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from labrun import lab_run
from pointers import found_in

from cdmtrace import analysis
from cdmtrace.events import EventKind, Probe
from cdmtrace.format.reader import TraceInfo, TraceReader
from cdmtrace.format.schema import column_values

HERE = Path(__file__).parent
pytestmark = pytest.mark.timeout(7200)

NOBODY, SOMEBODY = 65534, 54321
PAGES, AFTER = 10007, 101
STOPPED = 5.0
TRAPPED = 7
LEAST = (
    *("CAP_BPF", "CAP_PERFMON", "CAP_DAC_OVERRIDE", "CAP_SYSLOG"),
    "CAP_SYS_PTRACE",
)
KILL, SYS_PTRACE = 1 << 5, 1 << 19
EVERY = (1 << 41) - 1
"""All capabilities of Linux 6.1."""
PAGE = 4096
NAMES = ("least", "theirs", "full", "gone", "crash")


@dataclass(frozen=True)
class Recording:
    """One of the files, and what its recorder said."""

    path: Path
    info: TraceInfo
    columns: dict[str, npt.NDArray[Any]]
    stderr: str

    def pages(self, kind: EventKind = EventKind.MAP) -> list[tuple[int, int]]:
        """Return (time, address) of each event of a page."""
        rows = self.columns["kind"] == kind
        pairs = (self.columns[name][rows].tolist() for name in ("ts", "addr"))
        return list(zip(*pairs, strict=True))


@pytest.fixture(scope="module")
def guest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the directory in which the recordings are."""
    subprocess.run([sys.executable, "-m", "cdmtrace", "lab", "build"], check=True)
    directory = tmp_path_factory.mktemp("endings")
    path = os.pathsep.join([str(HERE.parents[1]), os.environ.get("PYTHONPATH", "")])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", path)
        words = (sys.executable, str(HERE / "endings.py"))
        result = lab_run(directory, "--timeout", "6600", "--", *words)
    assert result.returncode == 134, result.stdout + result.stderr
    assert "sysrq triggered crash" in result.stderr
    return directory / "run"


def load(guest: Path, name: str) -> Recording:
    path = guest / f"{name}.arrows"
    stderr = (guest / f"{name}.stderr").read_text()
    assert path.exists(), stderr
    with TraceReader(path) as trace:
        table = trace.read()
        info = trace.info
    columns = {
        field: column_values(table.column(field).combine_chunks())
        for field in table.schema.names
        if field != "payload"
    }
    return Recording(path, info, columns, stderr)


@pytest.fixture(scope="module")
def recordings(guest: Path) -> dict[str, Recording]:
    return {name: load(guest, name) for name in NAMES}


def status_of(guest: Path, name: str) -> int:
    number: int = json.loads((guest / "statuses.json").read_text())[name]
    return number


def told(path: Path) -> dict[str, str]:
    """Return what a file of /proc says, name -> the rest of the line."""
    lines = (line.partition(":") for line in path.read_text().splitlines())
    return {name: " ".join(text.split()) for name, _, text in lines}


def sets(path: Path) -> tuple[int, ...]:
    """Return inheritable, permitted, effective, bounding and ambient capabilities."""
    text = told(path)
    return tuple(
        int(text[name], 16)
        for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")
    )


# --- privileges ----------------------------------------------------------------------


@pytest.mark.parametrize("name", LEAST)
def test_each_privilege_is_missed_by_its_name(guest: Path, name: str) -> None:
    assert status_of(guest, f"no-{name}") == 125
    said = (guest / f"no-{name}.stderr").read_text()
    assert re.findall(r"CAP_\w+", said) == [name]
    assert re.fullmatch(
        rf"cdmtrace: recording needs {name} \([^)]+\)\n"
        r"  hint: sudo cdmtrace record …\n",
        said,
    )


def test_five_privileges_are_enough(
    guest: Path, recordings: dict[str, Recording]
) -> None:
    """Everything is there: pages, names of stacks, a count of losses, a clean end."""
    least = recordings["least"]
    assert status_of(guest, "least") == 0, least.stderr
    assert least.info.clean_end
    assert least.info.lost == {}
    assert "not known whole" not in least.stderr
    assert len(least.pages()) >= PAGES
    trace = analysis.load(least.path)
    frames = {f for stack in trace.stacks.values() for f in stack.frames}
    assert any(frame.startswith("handle_mm_fault+0x") for frame in frames)
    assert "[unknown]" not in frames


@pytest.mark.parametrize(
    ("name", "uid", "kept", "bounding"),
    [
        # Who is not root may not change the bounding set.
        ("least", SOMEBODY, 0, EVERY),
        ("theirs", NOBODY, KILL | SYS_PTRACE, 0),
        ("gone", 0, 0, 0),
    ],
)
def test_what_a_recorder_keeps(
    guest: Path, name: str, uid: int, kept: int, bounding: int
) -> None:
    """least has no CAP_KILL to keep; theirs has an audit to make; gone no command."""
    path = guest / f"{name}.proc"
    assert sets(path) == (0, kept, kept, bounding, 0)
    status = told(path)
    assert status["Uid"] == status["Gid"] == " ".join([str(uid)] * 4)
    assert status["NoNewPrivs"] == "1"
    assert status["Threads"] == "1"


@pytest.mark.parametrize(("name", "uid"), [("least", SOMEBODY), ("theirs", NOBODY)])
def test_the_file_is_theirs_alone(guest: Path, name: str, uid: int) -> None:
    assert json.loads((guest / f"{name}.owner").read_text()) == [uid, uid, 0o600]


@pytest.mark.parametrize("name", ["least", "theirs", "full"])
def test_a_command_is_like_one_that_nobody_records(guest: Path, name: str) -> None:
    """Ids, capabilities, signals, limits, files, directory and priority."""
    uid = {"least": SOMEBODY, "theirs": NOBODY, "full": 0}[name]
    assert sets(guest / f"{name}.own.status") == (
        *(0, 0 if uid else EVERY, 0 if uid else EVERY),
        *(EVERY, 0),
    )
    status = told(guest / f"{name}.own.status")
    assert status["Uid"] == status["Gid"] == " ".join([str(uid)] * 4)
    assert status["Groups"] in ("", str(uid))
    assert status["NoNewPrivs"] == "0"
    assert int(status["SigBlk"], 16) == int(status["SigIgn"], 16) == 0
    assert (guest / f"{name}.own.umask").read_text() == "0022\n"
    assert (guest / f"{name}.own.cwd").read_text() == f"{guest}\n"
    fds = re.findall(r" (\d+) -> ", (guest / f"{name}.own.fd").read_text())
    # The last one is the directory that is listed.
    assert fds == ["0", "1", "2", "3"]
    assert (guest / f"{name}.own.stat").read_text().split()[18] == "0"


def test_a_command_has_the_limits_of_others(guest: Path) -> None:
    """bcc raises that of locked memory for itself."""
    known = {(guest / f"{name}.own.limits").read_text() for name in ("least", "full")}
    (text,) = known
    assert re.search(r"^Max locked memory +\d+ +\d+ ", text, re.MULTILINE)


def test_a_command_is_told_nothing_of_root_and_the_recorder(guest: Path) -> None:
    def names(name: str) -> dict[str, str]:
        text = (guest / f"{name}.own.env").read_text()
        return dict(one.split("=", 1) for one in text.split("\0") if one)

    theirs = names("theirs")
    assert theirs["USER"] == theirs["LOGNAME"] == "nobody"
    assert theirs["HOME"] == "/nonexistent"
    assert {"PATH", "TERM", "LC_ALL"} <= theirs.keys()
    secret = re.compile("SUDO|CDMTRACE|BCC|LD_|PYTHON|OPENBLAS|JE_")
    assert not [name for name in theirs if secret.match(name)]
    # Without sudo it is the caller's own, and what numpy was told is not in it.
    assert {"CDMTRACE_RUN_DIR", "PYTHONPATH"} <= names("least").keys()
    assert not [name for name in names("least") if name.startswith(("OPENBLAS", "JE_"))]


# --- what is in the files ------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_no_address_of_the_kernel_is_in_a_file(
    recordings: dict[str, Recording], name: str
) -> None:
    assert len(recordings[name].columns["seq"]) > 100
    assert found_in(recordings[name].path) == []


# --- endings -------------------------------------------------------------------------


def test_a_recorder_that_was_stopped_goes_on(
    recordings: dict[str, Recording],
) -> None:
    """What it lost meanwhile is counted and placed; what came later is there."""
    theirs, least = recordings["theirs"], recordings["least"]
    assert theirs.info.clean_end
    assert set(theirs.info.lost["rmap_add"]) == {"ring"}
    gaps = [x for x in theirs.info.losses if x.probe == "rmap_add"]
    # The other recorder has seen all of it; what of that is missing here lies where
    # losses are told.
    there = {addr for _, addr in theirs.pages()}
    seen = [ts for ts, addr in least.pages() if addr not in there]
    assert len(seen) > PAGES
    for ts in seen:
        assert any(gap.since <= ts <= gap.until for gap in gaps)
    # Longer than it ever waits by itself
    assert max(gap.until - gap.since for gap in gaps) > STOPPED * 10**9 * 0.9
    after = [addr for ts, addr in theirs.pages() if ts > max(g.until for g in gaps)]
    assert len(after) == AFTER


def test_two_recorders_leave_each_other_alone(
    guest: Path, recordings: dict[str, Recording]
) -> None:
    """The first one takes its probes away, and not those of the second."""
    pids = set(re.findall(r"_bcc_(\d+) ", (guest / "least.kprobe_events").read_text()))
    assert len(pids) == 1
    assert pids == {told(guest / "theirs.recorder")["Pid"]}
    assert recordings["least"].info.clean_end
    assert recordings["theirs"].info.clean_end


def test_ctrl_c_reaches_the_command_too(
    guest: Path, recordings: dict[str, Recording]
) -> None:
    """What it does then, it does before the recording ends; its status is passed on."""
    theirs = recordings["theirs"]
    assert (guest / "theirs.stdout").read_text().endswith("interrupted\n")
    assert status_of(guest, "theirs") == TRAPPED
    assert theirs.info.end == "stopped by SIGINT"
    (last, _) = theirs.stderr.splitlines()[-2:]
    assert last.startswith("cdmtrace: stopped by SIGINT; ")


@pytest.mark.parametrize("name", ["theirs", "gone"])
def test_nothing_is_left_attached(guest: Path, name: str) -> None:
    """By none of those that are there until then, whatever has ended them."""
    assert (guest / f"{name}.kprobe_events").read_text() == ""


def test_a_disk_that_is_full(guest: Path, recordings: dict[str, Recording]) -> None:
    full = recordings["full"]
    assert status_of(guest, "full") == 125
    assert full.stderr.splitlines()[-2:] == [
        "cdmtrace: small/full.arrows: cannot write it: No space left on device",
        "  hint: make room there, or record to another disk with -o FILE",
    ]
    # Whole batches, and nothing behind them: at least what was looked at before. How
    # much more there is room for depends on how large the batches come out.
    assert full.info.bytes_intact == full.path.stat().st_size
    assert Probe.SNAPSHOT in full.columns["probe"]
    assert not full.info.clean_end
    assert full.info.torn is not None
    assert "without the end" in full.info.torn


def test_a_process_that_is_killed(
    guest: Path, recordings: dict[str, Recording]
) -> None:
    gone = recordings["gone"]
    assert status_of(guest, "gone") == 0
    assert gone.info.end == "the traced process ended"
    assert gone.info.clean_end
    exits = gone.columns["kind"] == EventKind.MM_EXIT
    assert exits.sum() == 1
    acted = (gone.columns["mm"] != 0) & (gone.columns["probe"] != Probe.SNAPSHOT)
    assert len(set(gone.columns["pid"][acted].tolist())) == 1


def test_a_guest_that_crashes(guest: Path, recordings: dict[str, Recording]) -> None:
    """All that had been written by then can be read, page by page."""
    crash = recordings["crash"]
    assert not crash.info.clean_end
    assert crash.info.bytes_intact >= int((guest / "crash.size").read_text())
    addresses = [addr for _, addr in crash.pages()]
    assert len(addresses) > 50
    assert set(np.diff(addresses)) == {PAGE}
