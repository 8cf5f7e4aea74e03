"""Verbs that a signal ends while they write: half a file is left nowhere."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import large
import pytest

from cdmtrace import output
from cdmtrace.errors import UsageTrouble
from cdmtrace.output import created
from cdmtrace.signals import Ended

GOLDEN = Path(__file__).parents[1] / "golden"
RFC = GOLDEN / "cdm-6.1-rfc.arrows"
TOLD = {
    signal.SIGINT: (130, "cdmtrace: interrupted"),
    signal.SIGTERM: (143, "cdmtrace: ended by SIGTERM"),
    signal.SIGHUP: (129, "cdmtrace: ended by SIGHUP"),
}
HALF = """
import signal, sys
from pathlib import Path
from cdmtrace.output import created
with created(Path(sys.argv[1]), force=len(sys.argv) > 2) as file:
    file.write(b"half")
    file.flush()
    print("half", flush=True)
    signal.pause()
"""


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("large") / "large.arrows"
    large.make(RFC, path, 20_000)
    return path


def ended(words: list[str], number: int, place: Path, have: set[Path]) -> tuple:
    """Send a signal to a command once something new is in a directory."""
    environment = {**os.environ, "TMPDIR": str(place)}
    with subprocess.Popen(
        [sys.executable, "-m", "cdmtrace", *words],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    ) as process:
        try:
            while {*place.iterdir()} == have:
                assert process.poll() is None
                time.sleep(0.01)
            process.send_signal(number)
            _, err = process.communicate(timeout=60)
        finally:
            process.kill()
    return process.returncode, err.strip()


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (signal.SIGTERM, ["export", "parquet", "-o"]),
        (signal.SIGINT, ["export", "csv", "-o"]),
        (signal.SIGHUP, ["export", "ndjson", "-o"]),
        (signal.SIGTERM, ["export", "perfetto", "-o"]),
        (signal.SIGTERM, ["report", "--html"]),
    ],
    ids=lambda one: "-".join(one[:2]) if isinstance(one, list) else None,
)
@pytest.mark.parametrize("force", [[], ["--force"]], ids=["new", "forced"])
def test_what_a_signal_ends_leaves_what_there_was(
    number: int, words: list[str], force: list[str], file: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    if force:
        out.write_text("mine")
    have = {*tmp_path.iterdir()}
    end = ended([*words, str(out), *force, str(file)], number, tmp_path, have)
    assert end == TOLD[signal.Signals(number)]
    assert {*tmp_path.iterdir()} == have
    if force:
        assert out.read_text() == "mine"


@pytest.mark.parametrize("number", [*TOLD], ids=lambda one: one.name)
def test_a_query_that_a_signal_ends_leaves_no_directory(
    number: int, file: Path, tmp_path: Path
) -> None:
    sql = "SELECT count(*) FROM events a, events b WHERE hash(a.seq + b.seq) = 0"
    end = ended(["query", str(file), sql], number, tmp_path, set())
    assert end == TOLD[signal.Signals(number)]
    assert [*tmp_path.iterdir()] == []


@pytest.mark.parametrize("force", [[], ["--force"]], ids=["new", "forced"])
@pytest.mark.parametrize("number", [*TOLD, signal.SIGKILL], ids=lambda one: one.name)
def test_the_name_is_given_to_what_is_whole(
    number: signal.Signals, force: list[str], tmp_path: Path
) -> None:
    """As for every verb that writes a file, check --write-baseline among them."""
    out = tmp_path / "out"
    if force:
        out.write_text("mine")
    with subprocess.Popen(
        [sys.executable, "-c", HALF, str(out), *force],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "half\n"
        process.send_signal(number)
        process.wait(60)
    left = {path.name: path.read_text() for path in tmp_path.iterdir()}
    if force:
        assert left.pop("out") == "mine"
    # Who is killed cleans up nothing, but has given no name either.
    assert [*left.values()] == (["half"] if number == signal.SIGKILL else [])
    assert "out" not in left


def test_what_another_made_meanwhile_is_not_replaced(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with (
        pytest.raises(UsageTrouble, match="is there already"),
        created(out, force=False) as file,
    ):
        file.write(b"ours")
        out.write_text("theirs")
    assert [path.read_text() for path in tmp_path.iterdir()] == ["theirs"]


def test_where_there_are_no_hard_links(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on FAT."""

    def none(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(output.Path, "hardlink_to", none)
    out = tmp_path / "out"
    with created(out, force=False) as file:
        file.write(b"ours")
    assert [(path, path.read_text()) for path in tmp_path.iterdir()] == [(out, "ours")]
    out.unlink()
    test_what_another_made_meanwhile_is_not_replaced(tmp_path)


def test_signals_are_what_they_were_afterwards(tmp_path: Path) -> None:
    before = [signal.getsignal(number) for number in TOLD]
    with created(tmp_path / "out", force=False) as file:
        file.write(b"x")
        assert [signal.getsignal(number) for number in TOLD] != before
    assert [signal.getsignal(number) for number in TOLD] == before


@pytest.mark.parametrize(
    ("number", "raised"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, Ended)]
)
def test_a_signal_that_somebody_drops_is_not_lost(
    number: signal.Signals, raised: type[BaseException], tmp_path: Path
) -> None:
    """As numpy may, when it compares an array with a member of an enum."""
    with (
        pytest.raises(raised),
        created(tmp_path / "out", force=False) as file,
    ):
        with contextlib.suppress(BaseException):
            os.kill(os.getpid(), number)
        file.write(b"whole")
    assert [*tmp_path.iterdir()] == []


def test_who_ignores_a_signal_goes_on(tmp_path: Path) -> None:
    """As nohup has it."""
    out = tmp_path / "out"
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with created(out, force=False) as file:
            os.kill(os.getpid(), signal.SIGHUP)
            file.write(b"whole")
    finally:
        signal.signal(signal.SIGHUP, before)
    assert out.read_bytes() == b"whole"
