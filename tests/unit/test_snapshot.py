"""Where pages are, asked of this machine's kernel about a process of our own."""

from __future__ import annotations

import contextlib
import mmap
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from cdmtrace import snapshot

PAGE = mmap.PAGESIZE
PAGES = 16
TOUCHED = 1, 2, 5, 9, 15
CHILD = f"""
import ctypes, mmap, sys
private = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
area = mmap.mmap(-1, {PAGES * PAGE}, flags=private)
area.madvise(mmap.MADV_NOHUGEPAGE)
for page in {TOUCHED}:
    area[page * {PAGE}] = 1
print(ctypes.addressof(ctypes.c_char.from_buffer(area)), flush=True)
sys.stdin.read()
"""


@pytest.fixture(scope="module")
def child() -> Iterator[tuple[int, int]]:
    """Return pid and address of a process that has touched some of its pages."""
    with subprocess.Popen(
        [sys.executable, "-c", CHILD], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout
        yield process.pid, int(process.stdout.readline())
        process.communicate()


@pytest.fixture
def ended() -> int:
    """Return the pid of a process that was."""
    with subprocess.Popen(["true"]) as process:
        pass
    return process.pid


def at(start: int, *numbers: int) -> list[int]:
    return [start + number * PAGE for number in numbers]


def node_of(pid: int, address: int) -> int:
    (node,) = snapshot._nodes(pid, np.array([address], np.uint64))
    return int(node)


def pages_on(*question: int) -> list[int]:
    """Return the pages of the runs that are found, one by one."""
    return [
        address
        for start, size in snapshot.runs_on(*question).tolist()
        for address in range(start, start + size, PAGE)
    ]


@pytest.mark.parametrize("chunk", [1 << 18, 3])
def test_where_the_pages_of_a_process_are(
    child: tuple[int, int], chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(snapshot, "_CHUNK", chunk)
    pid, start = child
    end = start + PAGES * PAGE
    node = node_of(pid, start + PAGE)
    assert node >= 0
    on_node = snapshot.runs_on(pid, start, end, node, PAGES)
    assert on_node.dtype == np.uint64
    # In pieces or not, a run is one run.
    assert on_node.tolist() == snapshot.runs(np.array(at(start, *TOUCHED))).tolist()
    assert pages_on(pid, start, end, node, PAGES) == at(start, *TOUCHED)
    assert pages_on(pid, start, end, node + 1, PAGES) == []
    inside = pages_on(pid, start + 2 * PAGE, start + 9 * PAGE, node, PAGES)
    assert inside == at(start, 2, 5)


def test_no_more_is_read_than_is_wanted(
    child: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(snapshot, "_CHUNK", 3)
    pid, start = child
    node = node_of(pid, start + PAGE)
    first = pages_on(pid, start, start + PAGES * PAGE, node, 2)
    assert first == at(start, 1, 2)


def test_pages_of_other_nodes_are_not_wanted(
    child: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if every other page were on node 1."""
    pid, start = child
    monkeypatch.setattr(snapshot, "_CHUNK", 3)
    monkeypatch.setattr(
        snapshot, "_nodes", lambda _, found: (found - np.uint64(start)) // PAGE % 2
    )
    found = pages_on(pid, start, start + PAGES * PAGE, 1, 2)
    assert found == at(start, 1, 5)


def test_a_process_that_has_ended_has_no_pages(ended: int) -> None:
    assert pages_on(ended, 0, 1 << 30, 0, 1) == []
    assert snapshot.name(ended) == b""
    snapshot.look(ended)


def test_a_process_that_ends_between_two_questions(
    ended: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its pagemap could be read, and move_pages(2) finds nobody."""
    here = np.array([PAGE], np.uint64)
    monkeypatch.setattr(snapshot, "_mapped", lambda *_: iter([here]))
    with pytest.raises(ProcessLookupError):
        snapshot._nodes(ended, here)
    assert pages_on(ended, 0, PAGES * PAGE, 0, 1) == []


@pytest.mark.parametrize(
    ("numbers", "expected"),
    [
        ((), []),
        ((7,), [(7, 1)]),
        ((1, 2, 3), [(1, 3)]),
        ((1, 2, 5, 7, 8), [(1, 2), (5, 1), (7, 2)]),
    ],
)
def test_runs(numbers: tuple[int, ...], expected: list[tuple[int, int]]) -> None:
    high = 0xFFFF << 48
    found = snapshot.runs(np.array(at(high, *numbers), np.uint64))
    assert (found.dtype, found.shape) == (np.uint64, (len(expected), 2))
    assert found.tolist() == [[high + n * PAGE, m * PAGE] for n, m in expected]


def test_processes_are_those_of_others(child: tuple[int, int]) -> None:
    found = snapshot.processes()
    assert child[0] in found
    assert os.getpid() not in found


def test_the_name_of_a_process(child: tuple[int, int]) -> None:
    assert snapshot.name(child[0]) == Path(sys.executable).name.encode()[:15]


def test_a_look_reads_to_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel counts a VMA when its line is read, and not before."""
    monkeypatch.setattr(snapshot, "PROC", tmp_path)
    (tmp_path / "7").mkdir()
    os.mkfifo(pipe := tmp_path / "7/numa_maps")
    written: list[int] = []

    def write() -> None:
        with contextlib.suppress(BrokenPipeError), pipe.open("wb", 0) as file:
            written.extend(file.write(bytes(1 << 20)) for _ in range(3))

    thread = threading.Thread(target=write)
    thread.start()
    snapshot.look(7)
    thread.join()
    assert written == [1 << 20] * 3


def test_a_look_that_is_refused_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(PermissionError):
        snapshot.look(1)


def test_a_zombie_has_no_pages(child: tuple[int, int]) -> None:
    """It is still there when its pages are asked for; the kernel calls it invalid."""
    pid = os.fork()
    if not pid:
        os._exit(0)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    try:
        with pytest.raises(ProcessLookupError):
            snapshot._nodes(pid, np.array([child[1]], np.uint64))
    finally:
        os.waitpid(pid, 0)
