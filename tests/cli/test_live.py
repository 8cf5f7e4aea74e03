"""``cdmtrace live`` on a terminal, and where there is none."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import simstory
from simfile import save
from simkernel import SimKernel
from terminal import ALTERNATE, MAIN, Terminal

from cdmtrace.cli import main


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    kernel = SimKernel("rfc")
    simstory.tell(kernel)
    path = save(kernel.trace(), tmp_path_factory.mktemp("whole") / "x.arrows")
    return path.read_bytes()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "x.arrows"


@pytest.fixture
def terminal() -> Iterator[Terminal]:
    with Terminal() as one:
        yield one


def live(
    terminal: Terminal, path: Path, *words: str, **more: str
) -> subprocess.Popen[bytes]:
    return terminal.run("-m", "cdmtrace", "live", *words, str(path), environment=more)


def test_a_file_that_grows_is_followed_to_its_end(
    whole: bytes, path: Path, terminal: Terminal
) -> None:
    # The second batch is torn, in the middle.
    path.write_bytes(whole[: len(whole) * 3 // 4])
    process = live(terminal, path)
    terminal.shows("recording")
    terminal.shows("CDM010 implicit-tag")
    assert process.poll() is None
    with path.open("ab") as file:
        file.write(whole[len(whole) * 3 // 4 :])
    assert terminal.finish(process) == 0
    # It was drawn on a screen of its own; the last picture is on the usual one.
    assert terminal.in_order
    after = terminal.text[terminal.text.rindex("ended: test") :]
    assert terminal.raw.count(ALTERNATE) == terminal.raw.count(MAIN) == 1
    last = terminal.raw.split(MAIN)[-1].decode()
    assert "ended: test" in last
    assert "Findings so far" in last
    assert "CDM014 implicit-allocation" in last
    assert f"cdmtrace: next: cdmtrace check {path}" in after
    assert len(last.splitlines()) <= 24


@pytest.mark.parametrize(
    ("number", "status"),
    [(signal.SIGINT, 0), (signal.SIGTERM, 143), (signal.SIGQUIT, 131)],
)
def test_a_signal_ends_it_well(
    number: int, status: int, whole: bytes, path: Path, terminal: Terminal
) -> None:
    path.write_bytes(whole[:-1000])
    process = live(terminal, path)
    terminal.shows("up to date")
    process.send_signal(number)
    assert terminal.finish(process) == status
    assert terminal.in_order
    assert "Traceback" not in terminal.text


def test_the_terminal_is_given_back_while_it_is_stopped(
    whole: bytes, path: Path, terminal: Terminal
) -> None:
    path.write_bytes(whole[:-1000])
    process = live(terminal, path)
    terminal.shows("up to date")
    process.send_signal(signal.SIGTSTP)
    terminal.until(lambda: terminal.in_order, "the usual screen")
    process.send_signal(signal.SIGCONT)
    terminal.until(lambda: terminal.raw.count(ALTERNATE) == 2, "the picture")
    process.send_signal(signal.SIGINT)
    assert terminal.finish(process) == 0
    assert terminal.in_order


def test_a_file_is_no_terminal_whatever_the_environment_says(
    whole: bytes, path: Path, terminal: Terminal
) -> None:
    path.write_bytes(whole)
    with (path.parent / "out").open("wb") as out:
        words = ("-m", "cdmtrace", "live", str(path))
        environment = {"FORCE_COLOR": "1"}
        process = terminal.run(*words, environment=environment, stdout=out.fileno())
        assert terminal.finish(process) == 2
    assert (path.parent / "out").read_bytes() == b""


def test_the_terminal_goes_away(whole: bytes, path: Path, terminal: Terminal) -> None:
    path.write_bytes(whole[:-1000])
    process = live(terminal, path)
    terminal.shows("up to date")
    terminal.hang_up()
    assert process.wait(60) != 0


def test_by_the_patches_own_words_nothing_is_wrong(
    whole: bytes, path: Path, terminal: Terminal
) -> None:
    path.write_bytes(whole)
    assert terminal.finish(live(terminal, path, "--profile", "rfc-v2")) == 0
    last = terminal.raw.split(MAIN)[-1].decode()
    assert "Findings so far" in last
    assert "CDM014" not in last


def test_no_color(whole: bytes, path: Path, terminal: Terminal) -> None:
    path.write_bytes(whole)
    assert terminal.finish(live(terminal, path, NO_COLOR="1")) == 0
    assert b"\x1b[31m" not in terminal.raw
    assert b";31m" not in terminal.raw


def test_with_color(whole: bytes, path: Path, terminal: Terminal) -> None:
    path.write_bytes(whole)
    assert terminal.finish(live(terminal, path)) == 0
    assert b"\x1b[31m" in terminal.raw


def test_damage_is_told(whole: bytes, path: Path, terminal: Terminal) -> None:
    data = bytearray(whole)
    data[len(data) // 4] ^= 0xFF
    path.write_bytes(data)
    assert terminal.finish(live(terminal, path)) == 0
    assert "damaged: batch at byte" in terminal.text


def test_a_terminal_that_cannot_be_drawn_on(
    whole: bytes, path: Path, terminal: Terminal
) -> None:
    path.write_bytes(whole)
    assert terminal.finish(live(terminal, path, TERM="dumb")) == 2
    assert "live draws on a terminal" in terminal.text


def test_without_a_terminal(
    whole: bytes, path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path.write_bytes(whole)
    assert main(["live", str(path)]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert "live draws on a terminal, and stdout is none" in err
    assert f"hint: cdmtrace check {path}" in err


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda path: None, "No such file or directory"),
        (lambda path: path.touch(), "is empty"),
        (lambda path: path.write_text("x" * 100), "is not a trace file"),
        (lambda path: path.mkdir(), "is no regular file"),
        (os.mkfifo, "is no regular file"),
    ],
)
def test_what_is_no_trace(make, words: str, path: Path, terminal: Terminal) -> None:
    make(path)
    assert terminal.finish(live(terminal, path)) == 2
    assert words.lower() in terminal.text.lower()
    assert ALTERNATE not in terminal.raw
