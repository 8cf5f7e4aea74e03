"""One recording gone through by several processes."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from multiprocessing import spawn
from multiprocessing.process import BaseProcess
from pathlib import Path

import large
import pytest
import working
from msgspec.structs import replace
from replays import as_read
from simkernel import SimKernel

from cdmtrace import parallel
from cdmtrace.analysis import Trace, load
from cdmtrace.analysis.asked import Asked
from cdmtrace.analysis.permissions import DEFAULT
from cdmtrace.analysis.stacks import Stack
from cdmtrace.cli import main
from cdmtrace.errors import CdmtraceError, ExitStatus, TraceFileError

ROOT = Path(__file__).resolve().parents[2]
RFC = ROOT / "tests/golden/cdm-6.1-rfc.arrows"


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("large") / "large.arrows"
    large.make(RFC, path, 5_000)
    return path


@pytest.fixture(scope="module")
def trace(path: Path) -> Trace:
    return load(path)


@pytest.mark.parametrize(
    "words",
    [
        ("check",),
        ("check", "--format", "json", "--profile", "rfc-v2"),
        ("check", "--format", "json", "--profile", "np", "--allow", "1:ksm"),
        ("check", "--format", "json", "--rules", "CDM003,CDM012"),
        ("report", "--format", "json"),
    ],
    ids=" ".join,
)
def test_what_is_told_is_the_same(
    words: tuple[str, ...], path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told = []
    for workers in "1", "3":
        status = main([*words, "--workers", workers, str(path)])
        told.append((status, capsys.readouterr()))
    assert told[0] == told[1]
    assert told[0][1].out


def test_each_address_space_is_gone_through_once(trace: Trace) -> None:
    found = parallel.parted(trace, 3)
    assert len(found) == 3
    seen = [
        mm
        for some in parallel.each(trace, found, working.address_spaces)
        for mm in some
    ]
    assert sorted(seen) == sorted({event.mm for event in trace.events} - {0})


def test_how_far_it_is_is_told_until_all_is_done(tmp_path: Path) -> None:
    """Be it that some rows are gathered beforehand, as an audit's are."""
    kernel = SimKernel()
    kernel.looked()
    for _ in range(4):
        task = kernel.process()
        region = task.mmap(60)
        task.mbind(region.start, 60)
        task.faults(region)
        kernel.look(task)
    trace = as_read(kernel.trace(), kernel.events)
    told: list[tuple[int, int]] = []

    shared: list[tuple[int, int]] = []

    def tick(what: str, done: int, total: int) -> None:
        if what == f"sharing {trace.count:,} events":
            shared.append((done, total))
        else:
            assert what == f"going through {trace.count:,} events"
            told.append((done, total))

    assert dataclasses.is_dataclass(trace.events)
    shown = replace(trace, events=dataclasses.replace(trace.events, ticker=tick))
    found = parallel.parted(shown, 2)
    assert shared == sorted(shared)
    assert shared[-1] == (trace.count, trace.count)
    asked = Asked(rules=None, profile="intended", permissions=DEFAULT)
    result = asked.result(trace, parallel.each(shown, found, asked.of_share))
    assert result.audit == asked.judge(trace).audit
    assert result.audit
    total = sum(share.rows for share in found)
    assert [of for _, of in told] == [total] * len(told)
    assert [done for done, _ in told] == sorted(done for done, _ in told)
    # When the last rows are read, and for each that says what it has found.
    assert [done for done, _ in told].count(total) <= 1 + len(found)


# --- when one is as good -----------------------------------------------------------


def test_a_small_recording_is_gone_through_by_one(
    trace: Trace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})
    assert parallel.parted(trace, None) == []
    assert len(parallel.parted(trace, 2)) == 2
    monkeypatch.setattr(parallel, "WORTH", trace.count)
    assert len(parallel.parted(trace, None)) == 2
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {1})
    assert parallel.parted(trace, None) == []


@pytest.mark.parametrize("verb", ["check", "report"])
def test_the_help_says_from_where_on(
    verb: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([verb, "--help"]) == ExitStatus.OK
    assert f"less than {parallel.WORTH:,} events" in " ".join(
        capsys.readouterr().out.split()
    )


def test_so_is_one_that_lacks_rows(trace: Trace) -> None:
    assert parallel.parted(replace(trace, breaks=frozenset({9})), 2) == []


@pytest.mark.parametrize(("pages", "shares"), [(60, 0), (1, 2)])
def test_so_is_one_of_which_nearly_all_is_of_one_process(
    pages: int, shares: int
) -> None:
    kernel = SimKernel()
    for many in (pages, 1):
        task = kernel.process()
        region = task.mmap(many)
        task.mbind(region.start, many)
        task.faults(region)
    found = parallel.parted(as_read(kernel.trace(), kernel.events), 2)
    assert len(found) == shares


def test_so_is_one_that_only_this_process_can_open(path: Path) -> None:
    with path.open("rb") as file:
        assert parallel.parted(load(f"/dev/fd/{file.fileno()}"), 2) == []


def test_rules_of_ones_own_are_for_one(
    path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(parallel, "WORTH", 0)
    monkeypatch.setattr(parallel, "each", lambda *_: pytest.fail("shared"))
    (rules, *_) = sorted((ROOT / "examples/rules").glob("*.py"))
    words = ["check", "--rules-from", str(rules), str(path)]
    assert main(words) == ExitStatus.FINDINGS
    assert main([*words, "--workers", "2"]) == ExitStatus.TROUBLE
    assert "leave --workers or --rules-from out" in capsys.readouterr().err


# --- when it goes wrong ------------------------------------------------------------


@contextlib.contextmanager
def nobody_left() -> Iterator[None]:
    """No child is left that was not there."""
    before = children()
    yield
    assert children() <= before


def children(of: int | None = None) -> set[int]:
    """Return the children of a process, but for multiprocessing's tracker."""
    me, found = of or os.getpid(), set()
    for task in Path(f"/proc/{me}/task").iterdir():
        for pid in (task / "children").read_text().split():
            with contextlib.suppress(OSError):
                if b"resource_tracker" not in Path(f"/proc/{pid}/cmdline").read_bytes():
                    found.add(int(pid))
    return found


def test_a_process_that_dies_is_told(trace: Trace) -> None:
    with nobody_left(), pytest.raises(CdmtraceError, match="died: SIGKILL") as told:
        parallel.each(trace, parallel.parted(trace, 2), working.killed)
    assert "--workers 1" in str(told.value.hint)


def test_so_is_one_that_dies_before_it_is_told_anything(
    trace: Trace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With so much to be told that no pipe takes it."""
    stacks = {number: Stack((f"{number}" * 1000,)) for number in range(1000)}
    monkeypatch.setattr(spawn, "_python_exe", b"/bin/false")
    with (
        nobody_left(),
        pytest.raises(CdmtraceError, match="died: it has exited with 1"),
    ):
        parallel.each(
            replace(trace, stacks=stacks),
            parallel.parted(trace, 2),
            working.address_spaces,
        )


def test_so_is_one_that_dies_in_the_middle_of_a_word(trace: Trace) -> None:
    with nobody_left(), pytest.raises(CdmtraceError, match="died: SIGKILL"):
        parallel.each(trace, parallel.parted(trace, 2), working.interrupted)


def test_a_signal_while_they_are_ended_leaves_none(
    trace: Trace, monkeypatch: pytest.MonkeyPatch
) -> None:
    kill = BaseProcess.kill

    def interrupted(process: BaseProcess) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        kill(process)

    monkeypatch.setattr(BaseProcess, "kill", interrupted)
    with nobody_left(), pytest.raises(KeyboardInterrupt):
        parallel.each(trace, parallel.parted(trace, 2), working.refused)


def test_what_is_wrong_with_a_file_is_told_as_by_one(trace: Trace) -> None:
    with nobody_left(), pytest.raises(TraceFileError, match="odd") as told:
        parallel.each(trace, parallel.parted(trace, 2), working.refused)
    assert (told.value.hint, told.value.details) == ("look", "at it")


def test_want_of_memory_is_told_as_by_one(trace: Trace) -> None:
    with nobody_left(), pytest.raises(MemoryError):
        parallel.each(trace, parallel.parted(trace, 2), working.too_large)


def test_a_fault_is_told_with_where_it_is(trace: Trace) -> None:
    with nobody_left(), pytest.raises(CdmtraceError, match="fault of cdmtrace") as told:
        parallel.each(trace, parallel.parted(trace, 2), working.faulty)
    assert "working.py" in str(told.value.details)
    assert "ZeroDivisionError: odd" in str(told.value.details)


def test_a_file_that_changes_meanwhile_is_told(path: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy.arrows"
    copy.write_bytes(path.read_bytes())
    trace = load(copy)
    found = parallel.parted(trace, 2)
    copy.write_bytes(RFC.read_bytes())
    with nobody_left(), pytest.raises(TraceFileError, match="it has changed"):
        parallel.each(trace, found, working.address_spaces)


@pytest.mark.parametrize("fleet", [False, True], ids=["one", "fleet"])
def test_none_runs_what_is_in_the_directory_that_one_is_in(
    fleet: bool, path: Path, tmp_path: Path
) -> None:
    """As the console script does not: a recording may have come with something else."""
    script, place = tmp_path / "bin/cdmtrace", tmp_path / "place"
    script.parent.mkdir()
    place.mkdir()
    main_of = "import sys; from cdmtrace.cli import main; sys.exit(main())"
    script.write_text(f'if __name__ == "__main__":\n    {main_of}\n')
    for name in ("signal", "struct", "socket", "pickle", "msgspec"):
        text = "import pathlib; pathlib.Path(__file__).with_suffix('.ran').touch()"
        (place / f"{name}.py").write_text(text)
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONSAFEPATH"}
    done = subprocess.run(
        [
            *(sys.executable, str(script), "report", "--workers", "2"),
            str(path.parent if fleet else path),
        ],
        cwd=place,
        env={**environment, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert [*place.glob("*.ran")] == []


PROGRAM = """
import sys
import working
from cdmtrace import parallel
from cdmtrace.analysis import load
from cdmtrace.cli import main
if __name__ == "__main__":
    trace = load(sys.argv[1])
    found = parallel.parted(trace, 2)
    parallel.each(trace, found, working.endless)
"""


@pytest.mark.parametrize(
    "number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGKILL]
)
@pytest.mark.parametrize("group", [False, True], ids=["one", "group"])
def test_none_is_left_when_a_signal_ends_it(
    number: signal.Signals, group: bool, path: Path
) -> None:
    """Ctrl-C is sent to all of a terminal's processes."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(path)],
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        start_new_session=True,
    ) as process:
        try:
            deadline = time.monotonic() + 60
            while len(theirs := children(process.pid)) < 2:
                assert process.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.01)
            (os.killpg if group else os.kill)(process.pid, number)
            _, err = process.communicate(timeout=60)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode != 0
    assert err.count("Traceback") <= 1
    deadline = time.monotonic() + 60
    while any(Path(f"/proc/{pid}").exists() for pid in theirs):
        assert time.monotonic() < deadline
        time.sleep(0.01)
