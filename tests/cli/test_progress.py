"""The bar on a terminal, for what takes longer than two seconds."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import large
import pytest
from terminal import Terminal

from cdmtrace.cli import progress
from cdmtrace.cli.progress import Bar

GOLDEN = Path(__file__).parent.parent / "golden"


IMPATIENT = """
import sys
from cdmtrace.cli import main, progress
progress.PATIENCE = 0
sys.exit(main(sys.argv[1:]))
"""


class Clock:
    """Stands still until it is told to go on."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    return clock


def test_nothing_is_shown_of_what_is_done_in_time(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    bar = Bar()
    for done in range(1, 11):
        clock.now += 0.19
        bar.tick("reading", done, 10)
    bar.close()
    assert capsys.readouterr() == ("", "")


def test_patience_begins_anew_with_each_thing(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    bar = Bar()
    for what in ("reading", "judging", "reading"):
        for done in (0, 3):
            bar.tick(what, done, 10)
            clock.now += 1.5
    bar.close()
    assert capsys.readouterr().err == ""


def test_it_is_shown_after_two_seconds_and_gone_when_it_is_done(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    bar = Bar()
    bar.tick("reading [bold]x", 1, 10)
    clock.now += 2.0
    bar.tick("reading [bold]x", 5, 10)
    bar.tick("reading [bold]x", 10, 10)
    out, err = capsys.readouterr()
    assert out == ""
    assert "cdmtrace: reading [bold]x" in err
    assert "50%" in err
    bar.close()
    assert capsys.readouterr().err == ""


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("large") / "large.arrows"
    large.make(GOLDEN / "cdm-6.1-none.arrows", path, 20_000)
    return path


@pytest.mark.parametrize(
    ("words", "during", "end"),
    [
        (["check", "FILE"], b"going through 20", b"verdict: clean"),
        (
            ["query", "FILE", "SELECT min(seq) AS lowest FROM events"],
            b"reading large.arrows",
            b"lowest",
        ),
    ],
)
def test_on_a_terminal_what_takes_long_has_one(
    words: list[str], during: bytes, end: bytes, file: Path
) -> None:
    words = [str(file) if word == "FILE" else word for word in words]
    with Terminal() as terminal:
        child = terminal.run("-c", IMPATIENT, *words)
        terminal.until(lambda: during in terminal.raw, seconds=120)
        assert terminal.finish(child, 240) == 0
    assert end in terminal.raw


def test_elsewhere_nothing_of_it_is_printed(file: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "cdmtrace", "check", str(file)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
