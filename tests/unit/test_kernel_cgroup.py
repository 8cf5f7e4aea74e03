"""Freezing a cgroup, with a directory that stands in for one."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cdmtrace.errors import RecordError, UsageTrouble
from cdmtrace.kernel import cgroup


@pytest.fixture
def group(tmp_path: Path) -> Path:
    (tmp_path / "cgroup.freeze").write_text("0")
    (tmp_path / "cgroup.events").write_text("populated 1\nfrozen 0\n")
    (tmp_path / "below").mkdir()
    for directory in (tmp_path, tmp_path / "below"):
        (directory / "cgroup.procs").write_text(f"{os.getpid()}1\n1{os.getpid()}\n")
    return tmp_path


def idle() -> None:
    """Do nothing while waiting."""


def switch(group: Path) -> str:
    return (group / "cgroup.freeze").read_text()


def test_a_cgroup_that_may_be_frozen(group: Path) -> None:
    cgroup.require(group)


def test_no_cgroup(group: Path) -> None:
    (group / "cgroup.freeze").unlink()
    with pytest.raises(UsageTrouble, match="no cgroup v2") as caught:
        cgroup.require(group)
    assert "/sys/fs/cgroup/" in str(caught.value.hint)


@pytest.mark.parametrize("where", [".", "below"])
def test_the_recorder_does_not_freeze_itself(group: Path, where: str) -> None:
    with (group / where / "cgroup.procs").open("a") as file:
        file.write(f"{os.getpid()}\n")
    with pytest.raises(UsageTrouble, match="would freeze itself"):
        cgroup.require(group)


def test_the_block_begins_when_all_stand_still(group: Path) -> None:
    """The kernel says so some time after it was asked."""
    asked: list[str] = []

    def stand_still() -> None:
        asked.append(switch(group))
        if len(asked) == 2:
            (group / "cgroup.events").write_text("populated 1\nfrozen 1\n")

    with cgroup.frozen(group, stand_still):
        assert asked == ["1", "1"]
        assert switch(group) == "1"
    assert switch(group) == "0"


def test_tasks_that_do_not_stand_still_go_on(
    group: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cgroup, "SECONDS", 0.05)
    with (
        pytest.raises(RecordError, match="does not freeze"),
        cgroup.frozen(group, idle),
    ):
        pytest.fail("nothing stands still")
    assert switch(group) == "0"


def test_an_error_in_the_block_thaws(group: Path) -> None:
    (group / "cgroup.events").write_text("populated 1\nfrozen 1\n")
    with pytest.raises(ZeroDivisionError), cgroup.frozen(group, idle):
        raise ZeroDivisionError
    assert switch(group) == "0"


def test_a_cgroup_that_is_gone(group: Path) -> None:
    (group / "cgroup.events").unlink()
    with (
        pytest.raises(RecordError, match="cannot be frozen"),
        cgroup.frozen(group, idle),
    ):
        pytest.fail("nothing stands still")


def test_an_error_while_waiting_is_not_the_cgroup_s(group: Path) -> None:
    def full() -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"), cgroup.frozen(group, full):
        pytest.fail("nothing stands still")
    assert switch(group) == "0"
