"""What a filter is written like, and what the program and the header are told of it."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cdmtrace.caller import user
from cdmtrace.errors import RecordError, UsageTrouble
from cdmtrace.filters import Filters, Range, parse_range
from cdmtrace.kernel import tasks
from cdmtrace.losses import Losses, Waiting
from cdmtrace.planning import Plan
from cdmtrace.ready import ready, require_absent
from cdmtrace.render.filters import words


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1000-2000", (0x1000, 0x2000)),
        ("0x1000-0X2000", (0x1000, 0x2000)),
        (" 7f0000000000-7f0000200000 ", (0x7F0000000000, 0x7F0000200000)),
        ("1000+16", (0x1000, 0x1010)),
        ("1000+0x10", (0x1000, 0x1010)),
        ("0+4k", (0, 4096)),
        ("ff000+2M", (0xFF000, 0x2FF000)),
        ("0+1G", (0, 1 << 30)),
    ],
)
def test_ranges(text: str, expected: tuple[int, int]) -> None:
    assert parse_range(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        *("", "-", "1000", "1000-", "-1000", "1000+", "1000+2X", "1000+-1", "x-y"),
        *("2000-1000", "1000-1000", "1000+0", "0-10000000000000000", "0+ff"),
        "ffffffffffffffff+1",
    ],
)
def test_what_is_no_range(text: str) -> None:
    with pytest.raises(UsageTrouble) as caught:
        parse_range(text)
    assert caught.value.message.startswith("--addr ")
    assert caught.value.hint


@given(st.integers(0, (1 << 64) - 2), st.data())
def test_a_range_is_written_as_it_is_read(start: int, data: st.DataObject) -> None:
    end = data.draw(st.integers(start + 1, (1 << 64) - 1))
    assert parse_range(str(Range(start, end))) == (start, end)


def test_what_nobody_asked_for_is_in_no_header() -> None:
    assert Filters().header((1,)) == {}
    assert not Filters().of_processes
    assert words({}) == ""


def test_what_the_header_says() -> None:
    filters = Filters(
        pids=(7, 9),
        children=False,
        cgroup=Path("/sys/fs/cgroup/x"),
        comm="story",
        nodes="1",
        addr=Range(0x1000, 0x2000),
        stacks="none",
    )
    header = filters.header((1, 3))
    assert header == {
        "pid": [7, 9],
        "children": False,
        "cgroup": "/sys/fs/cgroup/x",
        "comm": "story",
        "node": [1],
        "addr": "1000-2000",
        "stacks": "none",
    }
    assert words(header) == (
        "pid 7 9, cgroup /sys/fs/cgroup/x, comm story, node 1, addr 1000-2000, "
        "stacks none, without children"
    )
    assert words({"pid": 23}) == "pid 23"


def test_a_name_as_the_kernel_keeps_it() -> None:
    numbers = Filters(comm="fifteen_letters").numbers()
    name = b"".join(numbers[n].to_bytes(8, "little") for n in ("COMM0", "COMM1"))
    assert name == b"fifteen_letters\0"
    with pytest.raises(UsageTrouble, match="keeps 15 bytes") as caught:
        Filters(comm="sixteen__letters").require()
    assert caught.value.hint == "--comm 'sixteen__letter'"
    with pytest.raises(UsageTrouble, match="not empty"):
        Filters(comm="").require()


def test_nodes_have_to_be_cdm_nodes() -> None:
    assert Filters().told_nodes((1, 3)) == (1, 3)
    assert Filters(nodes="3").told_nodes((1, 3)) == (3,)
    with pytest.raises(UsageTrouble, match="node 2 is no CDM node") as caught:
        Filters(nodes="1-2").told_nodes((1, 3))
    assert caught.value.hint == "these are: 1, 3 (--cdm-nodes)"
    with pytest.raises(UsageTrouble) as caught:
        Filters(nodes="x").told_nodes((1,))
    assert "--node 1" in (caught.value.hint or "")
    with pytest.raises(UsageTrouble, match="no node"):
        Filters(nodes="").told_nodes((1,))


def test_a_cgroup_has_to_be_one(tmp_path: Path) -> None:
    with pytest.raises(UsageTrouble, match="no cgroup v2"):
        Filters(cgroup=tmp_path).require()
    (tmp_path / "cgroup.controllers").touch()
    Filters(cgroup=tmp_path).require()


# --- processes ------------------------------------------------------------------

SCRIPT = """
import os, sys, time
if not os.fork():
    if not os.fork():
        print("ready", flush=True)
    sys.stdin.read()
    os._exit(0)
sys.stdin.read()
"""


@pytest.fixture
def family() -> Iterator[int]:
    """A process with a child and a grandchild."""
    with subprocess.Popen(
        [sys.executable, "-c", SCRIPT], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout
        assert process.stdout.readline() == b"ready\n"
        yield process.pid


def test_all_that_comes_from_a_process(family: int) -> None:
    found = tasks.with_descendants([family])
    assert len(found) == 3
    assert family in found
    assert os.getpid() not in found
    assert Filters(pids=(family,)).processes() == found
    assert Filters(pids=(family,), children=False).processes() == {family}


def test_a_name_with_a_parenthesis(tmp_path: Path) -> None:
    for pid, parent in ((5, 1), (6, 5), (7, 1)):
        (tmp_path / str(pid)).mkdir()
        fields = " ".join(["0"] * 17)
        (tmp_path / f"{pid}/stat").write_text(
            f"{pid} (a) S 9 (b) S {parent} {fields} 8 0"
        )
    birth = tasks.born(6, proc=tmp_path)
    assert birth is not None
    assert birth.parent == 5
    assert birth.ticks == 8
    assert tasks.with_descendants([5], proc=tmp_path) == {5, 6}
    assert tasks.born(9, proc=tmp_path) is None


def test_a_task_s_name_is_enough() -> None:
    """Of any of a process's threads."""
    stop = threading.Event()

    def work() -> None:
        Path("/proc/thread-self/comm").write_text("of_a_thread")
        named.set()
        stop.wait()

    named = threading.Event()
    thread = threading.Thread(target=work)
    thread.start()
    try:
        named.wait()
        assert b"of_a_thread" in tasks.comms(os.getpid())
        # But nobody looks at himself.
        assert Filters(comm="of_a_thread").processes() == frozenset()
    finally:
        stop.set()
        thread.join()


def test_processes_below_a_cgroup(tmp_path: Path) -> None:
    (tmp_path / "a/b").mkdir(parents=True)
    (tmp_path / "cgroup.procs").write_text("1\n0\n")
    (tmp_path / "a/b/cgroup.procs").write_text("5\n6\n")
    assert tasks.in_cgroup(tmp_path) == {1, 5, 6}
    assert tasks.in_cgroup(tmp_path / "a") == {5, 6}


class Armed:
    """A program that is attached: what it was told."""

    ring_fd = -1

    def __init__(self) -> None:
        self.named: set[int] = set()
        self.cgroup: Path | None = None

    def follow(self, pid: int, on: bool) -> None:
        (self.named.add if on else self.named.discard)(pid)

    def follow_cgroup(self, group: Path) -> None:
        if not group.is_dir():
            raise FileNotFoundError(2, "No such file or directory")
        self.cgroup = group

    def attach(self, plans: tuple[Plan, ...]) -> None:
        raise AssertionError(plans)

    def enable(self, on: bool) -> None:
        raise AssertionError(on)

    def lost(self) -> Losses:
        raise AssertionError

    def stack(self, number: int) -> tuple[str, ...]:
        raise AssertionError(number)

    def waiting(self) -> list[Waiting]:
        raise AssertionError

    def close(self) -> None:
        raise AssertionError


def test_the_program_is_told_of_who_is_there(family: int, tmp_path: Path) -> None:
    armed = Armed()
    Filters(pids=(family,), cgroup=tmp_path).arm(armed)
    assert armed.named == tasks.with_descendants([family])
    assert armed.cgroup == tmp_path
    alone = Armed()
    Filters(pids=(family,), children=False).arm(alone)
    assert alone.named == {family}
    with pytest.raises(RecordError, match="cannot be followed"):
        Filters(cgroup=tmp_path / "none").arm(armed)


def test_who_ends_meanwhile_is_not_followed(
    family: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel has told of its end already: nobody would take it out again."""
    armed = Armed()
    real = tasks.born
    births = iter([real(family), None])
    monkeypatch.setattr(tasks, "born", lambda pid: next(births))
    Filters(pids=(family,), children=False).arm(armed)
    assert armed.named == set()


# --- the ready file -------------------------------------------------------------


def test_the_file_is_there_inside_the_block(tmp_path: Path) -> None:
    path, who = tmp_path / "ready", None
    require_absent(path)
    if os.geteuid() == 0:
        who = user(65534, 65534)
        with (
            pytest.raises(RecordError, match="cannot be made: Permission"),
            ready(path, who),
        ):
            raise AssertionError("that is root's directory")
        os.chown(tmp_path, 65534, 65534)
    with ready(path, who):
        assert path.read_bytes() == b""
        if os.geteuid() == 0:
            assert (path.stat().st_uid, path.stat().st_gid) == (65534, 65534)
    assert not path.exists()
    with pytest.raises(ZeroDivisionError), ready(path, None):
        raise ZeroDivisionError
    assert not path.exists()


@pytest.mark.parametrize("there", ["file", "link", "dangling"])
def test_what_is_there_already_is_not_touched(tmp_path: Path, there: str) -> None:
    path, target = tmp_path / "ready", tmp_path / "target"
    if there == "file":
        path.write_text("precious")
    else:
        path.symlink_to(target)
    if there == "link":
        target.write_text("precious")
    with pytest.raises(RecordError, match="exists already"):
        require_absent(path)
    with pytest.raises(RecordError, match="cannot be made"), ready(path, None):
        pytest.fail("recording would begin")
    assert os.path.lexists(path)
    assert target.exists() is (there == "link")
    assert there == "dangling" or path.read_text() == "precious"


def test_another_s_file_is_not_removed(tmp_path: Path) -> None:
    path = tmp_path / "ready"
    with ready(path, None):
        path.unlink()
        path.write_text("another's")
    assert path.read_text() == "another's"
    path.unlink()
    with ready(path, None):
        path.unlink()


def test_a_directory_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match="is no directory"):
        require_absent(tmp_path / "none/ready")
