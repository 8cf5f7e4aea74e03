from __future__ import annotations

import threading
from pathlib import Path

import pytest

from cdmtrace.lab.paths import (
    Layout,
    exclusive,
    new_run_dir,
    user_cache_dir,
    write_atomically,
)


def test_the_cache_follows_the_xdg_variable_if_it_is_absolute(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert user_cache_dir() == tmp_path / "cdmtrace"
    monkeypatch.setenv("HOME", "/home/somebody")
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert user_cache_dir() == Path("/home/somebody/.cache/cdmtrace")


def test_run_directories_are_private_and_never_shared(tmp_path: Path) -> None:
    layout = Layout(root=tmp_path)
    made = [new_run_dir(layout) for _ in range(3)]
    assert len(set(made)) == 3
    assert {path.stat().st_mode & 0o777 for path in made} == {0o700}


def test_one_holder_at_a_time_and_a_word_to_who_waits(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    waits = threading.Event()
    order: list[str] = []

    def second() -> None:
        with exclusive(lock, waits.set):
            order.append("second")

    thread = threading.Thread(target=second)
    with exclusive(lock, lambda: pytest.fail("nobody else has it")):
        thread.start()
        assert waits.wait(10)
        order.append("first")
    thread.join()
    assert order == ["first", "second"]


def test_a_write_that_fails_leaves_the_old_file_alone(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_atomically(path, b"old", mode=0o600)
    with pytest.raises(TypeError):
        write_atomically(path, "no bytes")
    assert path.read_bytes() == b"old"
    assert path.stat().st_mode & 0o777 == 0o600
    assert list(tmp_path.iterdir()) == [path]
