from __future__ import annotations

import os
from pathlib import Path

import pytest

from cdmtrace.kernel import tracefs


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name in ("sys_enter_mbind", "sys_exit_mbind"):
        (tmp_path / "events/syscalls" / name).mkdir(parents=True)
    (tmp_path / "events/syscalls/filter").write_text("none\n")
    return tmp_path


def test_tracepoints(root: Path) -> None:
    assert tracefs.tracepoints(root) == {
        "syscalls:sys_enter_mbind",
        "syscalls:sys_exit_mbind",
    }
    assert tracefs.tracepoints(root, "sched") == frozenset()


def test_where_it_is_mounted(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracefs, "TRACEFS", (tmp_path / "none", root))
    assert tracefs.find() == tracefs.mounted() == root
    monkeypatch.setattr(tracefs, "TRACEFS", (tmp_path / "none",))
    assert tracefs.find() is None


def test_what_dead_recorders_left_is_removed_and_nothing_else(root: Path) -> None:
    alive = os.getpid()
    dead = 4194305  # more than any pid
    text = (
        f"r1024:kprobes/r_exit_mmap_bcc_{dead} exit_mmap\n"
        f"r1024:kprobes/r_exit_mmap_bcc_{alive} exit_mmap\n"
        f"p:kprobes/p_mbind_range_bcc_{dead} mbind_range\n"
        f"r1024:kprobes/mine_{dead} exit_mmap\n"
        f"p:other/p_mbind_range_bcc_{dead} mbind_range\n"
    )
    path = root / "kprobe_events"
    path.write_text(text)
    names = (f"kprobes/r_exit_mmap_bcc_{dead}", f"kprobes/p_mbind_range_bcc_{dead}")
    assert tracefs.sweep(root) == names
    # What was there is there still: tracefs would have removed all at a truncation.
    assert path.read_text() == text + "".join(f"-:{name}\n" for name in names)


def test_a_kernel_without_probes_has_nothing_to_sweep(root: Path) -> None:
    assert tracefs.sweep(root) == ()


def test_returns_are_removed_by_who_may_not_open_the_file_again(
    tmp_path: Path,
) -> None:
    path = tmp_path / "kprobe_events"
    path.write_text("p:kprobes/of_others f\n")
    returns = tracefs.Returns(tmp_path)
    name = returns.define("vma_merge.constprop.0", 23)
    assert name == f"r_vma_merge_constprop_0_bcc_{os.getpid()}"
    returns.define("exit_mmap", 23)
    assert returns.define("vma_merge.constprop.0", 23) == name
    other = f"r_exit_mmap_bcc_{os.getpid()}"
    path.rename(tmp_path / "moved")
    returns.close()
    assert (tmp_path / "moved").read_text().splitlines() == [
        "p:kprobes/of_others f",
        f"r23:kprobes/{name} vma_merge.constprop.0",
        f"r23:kprobes/{other} exit_mmap",
        f"-:kprobes/{other}",
        f"-:kprobes/{name}",
    ]


def test_what_a_return_is_called_is_what_is_swept_away(tmp_path: Path) -> None:
    """Of a process that has ended, as far as can be told."""
    path = tmp_path / "kprobe_events"
    path.touch()
    returns = tracefs.Returns(tmp_path)
    name = returns.define("exit_mmap", 23)
    text = path.read_text()
    assert tracefs.sweep(tmp_path) == ()
    path.write_text(text.replace(f"bcc_{os.getpid()} ", "bcc_4194305 "))
    gone = name.replace(f"bcc_{os.getpid()}", "bcc_4194305")
    assert tracefs.sweep(tmp_path) == (f"kprobes/{gone}",)


def test_what_the_kernel_lets_nobody_trace_cannot_be_probed(tmp_path: Path) -> None:
    known = frozenset({"vma_merge", "perf_event_mmap", "move_page_tables.part.0"})
    assert tracefs.traceable(tmp_path, known) == known
    listed = tmp_path / "available_filter_functions"
    listed.write_text("")
    assert tracefs.traceable(tmp_path, known) == known
    listed.write_text("vma_merge\nmove_page_tables.part.0\nvma_link [some_module]\n")
    assert tracefs.traceable(tmp_path, known) == known - {"perf_event_mmap"}
    assert tracefs.traceable(tmp_path, frozenset({"vma_link"})) == {"vma_link"}
