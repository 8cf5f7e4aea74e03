"""``check`` and ``report`` of many recordings, by workers that are processes."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dask
import pytest
from distributed import Client, Future, LocalCluster
from fleets import FOREIGN, NONE, RFC, place, validator
from parting import split
from serving import serving
from simfile import save
from simkernel import SimKernel

from cdmtrace.cli import main
from cdmtrace.fleet import crew, places, work

ROOT = Path(__file__).resolve().parents[2]
Captured = pytest.CaptureFixture[str]

FOREIGN_TAG = 1 << 45
SLEEPY = f"""
import os, signal, time
from pathlib import Path
from cdmtrace.analysis.notes import MbindEnded
from cdmtrace.analysis.rules import Judgement, Rule, Severity

HERE = Path(__file__).parent

def judge(note, terms, profile):
    if not isinstance(note, MbindEnded):
        return None
    if terms.tag == {FOREIGN_TAG}:
        # Who reads this recording dies of it.
        os.kill(os.getpid(), signal.SIGKILL)
    if not (HERE / "awake").exists():
        (HERE / f"{{os.getpid()}}.asleep").touch()
        time.sleep(120)
    return Judgement()

RULES = (
    Rule(
        id="LAB009", name="sleepy", severity=Severity.INFO, statement="It sleeps.",
        premise="an mbind()", source="a test", sentence="Wake up.", events=("CALL",),
        needs=frozenset(), leans=frozenset(), threats=("none",), limits=("none",),
        judge=judge,
    ),
)
"""
"""A rule that kills, or waits until somebody else does."""


@contextlib.contextmanager
def cluster(workers: int) -> Iterator[str]:
    """Have a cluster, and the address of its scheduler."""
    with LocalCluster(
        n_workers=workers,
        threads_per_worker=1,
        processes=True,
        host="127.0.0.1",
        dashboard_address=None,
        scheduler_kwargs={"dashboard": False, "dashboard_address": "127.0.0.1:0"},
        silence_logs=logging.CRITICAL,
    ) as found:
        yield found.scheduler_address


@pytest.fixture(scope="module")
def scheduler() -> Iterator[str]:
    with cluster(2) as address:
        yield address


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Whole recordings, one in parts, one that is cut, and some that are none."""
    folder = tmp_path_factory.mktemp("fleet")
    for path in (RFC, FOREIGN):
        (folder / path.stem).mkdir()
        shutil.copy(path, folder / path.stem / "my.arrows")
    (folder / "cut.arrows").write_bytes(NONE.read_bytes()[:90_000])
    (folder / "bad.arrows").write_bytes(b"no trace" * 9)
    parts = folder / "parts"
    parts.mkdir()
    split("cdm-6.1-none", parts, 80 << 10)
    twice = folder / "twice"
    twice.mkdir()
    for number, path in enumerate(split("cdm-6.1-none", twice, 100 << 10)):
        shutil.copy(path, twice / f"copy{number}.arrows")
    return folder


def told(capsys: Captured, *words: str, status: int) -> Any:
    """Return the document that a call prints."""
    assert main([*words, "--format", "json"]) == status
    return json.loads(capsys.readouterr().out)


def files_of(one: Any) -> list[str]:
    files: list[str] = one["trace"]["files"]
    return files


# --- the same as locally --------------------------------------------------------


def test_each_recording_is_judged_as_check_does(
    scheduler: str, fleet: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    # So few that one has to end for the next to begin.
    monkeypatch.setattr(crew, "AHEAD", 2)
    shown = told(capsys, "check", str(fleet), "--scheduler", scheduler, status=2)
    validator("fleet-check-1.json").validate(shown)
    names = [one["name"].removeprefix(f"{fleet}/") for one in shown["recordings"]]
    assert names == [
        "cdm-6.1-rfc/my.arrows",
        "cut.arrows",
        "foreign-6.1-rfc/my.arrows",
        "parts/x.0000.arrows",
    ]
    for one in shown["recordings"]:
        here = told(capsys, "check", *files_of(one), status=one["status"])
        assert one["check"] == here
    assert len(files_of(shown["recordings"][-1])) > 1
    failed = {one["name"]: one["message"] for one in shown["failed"]}
    assert failed.keys() == {f"{fleet}/bad.arrows", f"{fleet}/twice/copy0.arrows"}
    assert failed[f"{fleet}/bad.arrows"].endswith("is not a trace file")
    assert "are both part 0 of one" in failed[f"{fleet}/twice/copy0.arrows"]
    assert shown["verdict"] == "violated"


def test_each_recording_is_counted_as_report_does(
    scheduler: str, fleet: Path, capsys: Captured
) -> None:
    shown = told(capsys, "report", str(fleet), "--scheduler", scheduler, status=2)
    validator("fleet-report-1.json").validate(shown)
    for one in shown["recordings"]:
        assert one["tables"] == told(capsys, "report", *files_of(one), status=0)
    assert len(shown["recordings"]) == 4
    (node,) = shown["tables"]["Nodes"]
    alone = [one["tables"]["Nodes"][0] for one in shown["recordings"]]
    assert node["pages came"] == sum(one["pages came"] for one in alone)


def test_options_come_to_workers(
    scheduler: str, tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which need not have the files that these name: in the directory that these
    workers are in there are none.
    """
    monkeypatch.chdir(tmp_path)
    shutil.copy(ROOT / "examples/rules/slow_mbind.py", "mine.py")
    Path("known.toml").write_text(
        '[findings.1b7f4b7b2d775104]\nreason = "so"\n'
        '[findings.0123456789abcdef]\nreason = "old"\n'
    )
    fast = ["--rules", "CDM001,LAB001", "--rules-from", "mine.py"]
    for words in (
        [*fast, "--baseline", "known.toml"],
        ["--profile", "np", "--allow", "1:migration"],
        ["--profile", "rfc-v2", "--rules", "CDM001"],
    ):
        status = main(["check", *words, "--format", "json", str(RFC)])
        here = json.loads(capsys.readouterr().out)
        remote = ["check", *words, "--scheduler", scheduler, "--format", "json"]
        assert main([*remote, str(RFC)]) == status
        printed = capsys.readouterr()
        assert json.loads(printed.out)["recordings"][0]["check"] == here
        # Below a baseline nothing else is said.
        stale = "0123456789abcdef" if "--baseline" in words else ""
        assert stale in printed.err
        assert bool(stale) == ("stale" in printed.err)


def test_the_status_is_that_of_check(
    scheduler: str, tmp_path: Path, capsys: Captured
) -> None:
    kernel = SimKernel()
    kernel.process()
    kernel.lose("vma_split", 0)
    lossy = str(save(kernel.trace(), tmp_path / "lossy.arrows"))
    for status, words in (
        (0, ["--rules", "CDM001", str(NONE)]),
        (1, ["--rules", "CDM001", str(NONE), str(RFC)]),
        (3, ["--rules", "CDM011", lossy]),
        (0, ["--rules", "CDM011", "--allow-inconclusive", lossy]),
        (2, ["--rules", "CDM001", str(RFC), "/nonexistent.arrows"]),
        (2, ["--profile", "np", "--allow", "7:ksm", str(RFC)]),
    ):
        assert main(["check", "--scheduler", scheduler, *words]) == status, words
    printed = capsys.readouterr()
    assert "node 7 is allowed something" in printed.err
    assert "/nonexistent.arrows: cannot be read: No such file" in printed.out


def test_what_is_next_is_for_people(
    scheduler: str, fleet: Path, capsys: Captured
) -> None:
    words = ["check", "--scheduler", scheduler, "--rules", "CDM001", str(fleet)]
    main(words)
    printed = capsys.readouterr()
    assert printed.out.endswith(
        "6 recordings, profile intended\n"
        "verdict: violated: 2 violated, 2 clean, 2 not read\n"
    )
    assert "cdmtrace: 2 recordings could not be read" in printed.err
    command = printed.err.rstrip().partition("as an argument: cdmtrace ")[2].split()
    assert main(command) == 0


# --- what goes wrong ------------------------------------------------------------


def test_workers_that_die(tmp_path: Path, capsys: Captured) -> None:
    """One is killed in the middle of a recording, which another one reads then; and
    one recording kills whoever reads it, and is the only one that is not judged.
    """
    folder, rule = tmp_path / "traces", tmp_path / "rule.py"
    folder.mkdir()
    rule.write_text(SLEEPY)
    for path in (FOREIGN, NONE, RFC):
        shutil.copy(path, folder)
    killed = []

    def kill() -> None:
        while not (found := list(tmp_path.glob("*.asleep"))):
            time.sleep(0.05)
        (tmp_path / "awake").touch()
        for one in found:
            killed.append(int(one.stem))
            os.kill(int(one.stem), signal.SIGKILL)

    killer = threading.Thread(target=kill, daemon=True)
    killer.start()
    words = ["check", "--rules", "CDM001,LAB009", "--rules-from", str(rule)]
    shown = told(capsys, *words, str(folder), "--workers", "2", status=2)
    killer.join()
    assert killed
    names = [Path(one["name"]).name for one in shown["recordings"]]
    assert names == [NONE.name, RFC.name]
    for one in shown["recordings"]:
        assert one["check"] == told(capsys, *words, one["name"], status=one["status"])
    (failed,) = shown["failed"]
    assert failed["name"] == str(folder / FOREIGN.name)
    assert failed["message"].endswith("each worker that was given it has died")


def test_rules_may_come_by_a_pipe(scheduler: str, capsys: Captured) -> None:
    """Which gives them once."""
    reading, writing = os.pipe()
    os.write(writing, (ROOT / "examples/rules/slow_mbind.py").read_bytes())
    os.close(writing)
    words = ["--rules", "LAB001", "--rules-from", f"/dev/fd/{reading}", str(RFC)]
    shown = told(capsys, "check", *words, "--scheduler", scheduler, status=1)
    os.close(reading)
    (rule,) = shown["rules"]
    assert rule["rule"] == "LAB001"


def test_what_is_of_no_use_does_nothing(
    scheduler: str, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CDMTRACE_CHECK_WORKERS", "2")
    words = ["check", "--scheduler", scheduler, "--rules", "CDM001", str(NONE)]
    assert main(words) == 0
    capsys.readouterr()
    assert main([*words, "--format", "sarif"]) == 2
    assert capsys.readouterr().err.endswith("or markdown, or without --scheduler\n")


def test_a_limit_may_be_nothing(
    scheduler: str, tmp_path: Path, capsys: Captured
) -> None:
    shutil.copy(NONE, tmp_path / "x.arrows")
    with serving(tmp_path) as host:
        words = [f"http://{host}/x.arrows", "--scheduler", scheduler]
        shown = told(capsys, "check", *words, "--copy-limit", "0", status=2)
    assert "has more than 0 B, and is not copied" in shown["failed"][0]["message"]


def test_it_ends_and_leaves_nothing(tmp_path: Path) -> None:
    """By Ctrl-C, which all processes of a terminal get, by SIGTERM, and by SIGHUP."""
    calls = {}
    for kind in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        place = tmp_path / kind.name
        (place / "tmp").mkdir(parents=True)
        (place / "rule.py").write_text(SLEEPY)
        words = ["check", str(RFC), str(NONE), "file://" + str(RFC), "--workers", "1"]
        calls[kind] = subprocess.Popen(
            [sys.executable, "-m", "cdmtrace", *words, "--rules", "LAB009"],
            env={
                **os.environ,
                "CDMTRACE_CHECK_RULES_FROM": str(place / "rule.py"),
                "TMPDIR": str(place / "tmp"),
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
    workers = {}
    for kind, call in calls.items():
        while not (asleep := list((tmp_path / kind.name).glob("*.asleep"))):
            assert call.poll() is None, call.communicate()
            time.sleep(0.05)
        workers[kind] = [int(one.stem) for one in asleep]
        # Ctrl-C must not have them die of it, and tell so, before we end them.
        told = Path(f"/proc/{workers[kind][0]}/status").read_text()
        blocked = int(told.partition("SigBlk:\t")[2].split()[0], 16)
        assert blocked >> signal.SIGINT - 1 & 1
        assert list((tmp_path / kind.name / "tmp").glob("cdmtrace-fleet-*"))
        if kind == signal.SIGINT:
            os.killpg(call.pid, kind)
        else:
            call.send_signal(kind)
    for kind, status, said in (
        (signal.SIGINT, 130, "interrupted"),
        (signal.SIGTERM, 143, "ended by SIGTERM"),
        (signal.SIGHUP, 129, "ended by SIGHUP"),
    ):
        out, err = calls[kind].communicate(timeout=60)
        assert (out, err.strip()) == ("", f"cdmtrace: {said}")
        assert calls[kind].returncode == status
        for worker in workers[kind]:
            with pytest.raises(ProcessLookupError):
                os.kill(worker, 0)
        assert list((tmp_path / kind.name / "tmp").glob("cdmtrace-fleet-*")) == []


def test_a_signal_is_no_reply(
    scheduler: str, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wherever it arrives: also where any error means that a result is lost."""
    result = Future.result

    def ended(future: Future, timeout: float | None = None) -> Any:
        signal.raise_signal(signal.SIGHUP)
        return result(future, timeout)

    monkeypatch.setattr(Future, "result", ended)
    assert main(["check", "--scheduler", scheduler, str(NONE)]) == 129
    assert capsys.readouterr() == ("", "cdmtrace: ended by SIGHUP\n")


def test_nobody_is_there(capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crew, "_ANSWER", 0.5)
    words = ["check", str(NONE), "--scheduler"]
    for address in ("tcp://127.0.0.1:1", "nothing of the kind"):
        assert main([*words, address]) == 2
        assert "nobody answers there" in capsys.readouterr().err
    with cluster(0) as address, Client(address, set_as_default=False) as client:
        assert main([*words, address]) == 2
        assert "it has no workers" in capsys.readouterr().err
        # Those that there were have gone.
        monkeypatch.setattr(crew, "PATIENCE", 0.0)
        monkeypatch.setattr(crew, "_LOOK", 0.1)
        monkeypatch.setattr(crew, "AHEAD", 1)
        with client.as_current():
            jobs = [[place(NONE, "a")], [place(RFC, "b")]]
            replies = dict(crew.Crew(client).each(work.head, jobs))
    assert [replies[n]["error"]["message"] for n in (0, 1)] == [
        f"{name}: there is no worker any more to read it" for name in "ab"
    ]


@pytest.mark.parametrize("who", ["scheduler", "client"])
def test_a_scheduler_that_is_lost(who: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What has been judged by then is told. A client closes once it has tried long
    enough to come back.
    """
    monkeypatch.setattr(crew, "AHEAD", 1)
    monkeypatch.setattr(crew, "_LOOK", 0.1)
    with (
        dask.config.set({"distributed.comm.timeouts.connect": 1}),
        contextlib.ExitStack() as lost,
    ):
        address = lost.enter_context(cluster(1))
        with (
            Client(address, timeout=1, set_as_default=False) as client,
            client.as_current(),
        ):
            jobs = [[place(NONE, name)] for name in "abc"]
            replies = crew.Crew(client).each(work.head, jobs)
            assert "done" in next(replies)[1]
            monkeypatch.setattr(crew, "PATIENCE", 0.0)
            (client if who == "client" else lost).close()
            rest = [reply["error"]["message"] for _, reply in replies]
    assert [one[:2] for one in rest] == ["b:", "c:"]
    if who == "client":
        assert {one[3:] for one in rest} == {"the scheduler does not answer any more"}


def test_a_reply_shows_that_somebody_is_there(scheduler: str) -> None:
    """Or else, after a minute of work, nobody would wait for a worker's restart."""
    with Client(scheduler, set_as_default=False) as client, client.as_current():
        hands = crew.Crew(client)
        hands._seen -= 2 * crew.PATIENCE
        long_ago = hands._seen
        ((_, reply),) = hands.each(work.head, [[place(NONE)]])
    assert "done" in reply
    assert hands._seen > long_ago + crew.PATIENCE


def test_who_says_no_version_is_not_believed(scheduler: str) -> None:
    with Client(scheduler, set_as_default=False) as client, client.as_current():
        jobs = [[place(NONE, "a")]]
        ((_, reply),) = crew.Crew(client).each(dict.fromkeys, jobs)
    assert reply["error"]["message"].startswith("a: was read by cdmtrace None, and ")


def test_another_version_is_not_believed(
    scheduler: str, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(crew, "__version__", "9.9")
    words = ["check", str(NONE), "--scheduler", scheduler]
    shown = told(capsys, *words, status=2)
    assert (
        "was read by cdmtrace 0.1.0, and this is 9.9" in shown["failed"][0]["message"]
    )


def test_without_the_packages(
    capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "distributed", None)
    assert main(["check", str(NONE.parent)]) == 2
    printed = capsys.readouterr()
    assert "needs the package distributed, which is not installed" in printed.err
    assert f"{sys.executable} -m pip install 'cryptography>=" in printed.err
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extra = project["optional-dependencies"]["fleet"]
    assert extra == list(crew.REQUIREMENTS)
    # What was there before needs none of it.
    assert main(["check", "--rules", "CDM001", str(NONE)]) == 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["report", "--workers", "2", "--html", "x", str(NONE)], "is about tables"),
        (["report", "--copy-limit", "1G", str(NONE)], "--copy-limit is about a"),
        (["check", "--workers", "2", "--scheduler", "x", str(NONE)], "leave one of"),
        (["check", "--workers", "0", str(NONE.parent)], "range"),
        (["check", "--copy-limit", "much", str(NONE.parent)], "is no size"),
        (["check", "--format", "sarif", str(NONE.parent)], "named one by one"),
        (["check", "--write-baseline", "x", str(NONE.parent)], "named one by one"),
        (["report", "--html", "x", "s3://b/p"], "--html is about one recording"),
    ],
)
def test_wrong_usage(words: list[str], said: str, capsys: Captured) -> None:
    assert main(words) == 2
    printed = capsys.readouterr()
    assert said in printed.err
    assert printed.out == ""


def test_who_may_not_talk_to_a_worker() -> None:
    """A local cluster is the caller's, on a machine that others may use, too."""
    with crew.crew(None, 1) as hands:
        address = hands._client.scheduler.address
        assert re.fullmatch(r"tls://127\.0\.0\.1:\d+", address)
        with (
            dask.config.set({"distributed.comm.timeouts.connect": 1}),
            pytest.raises((OSError, TypeError, RuntimeError)),
        ):
            Client(address.replace("tls", "tcp"), timeout=1, set_as_default=False)


@pytest.mark.parametrize("verb", ["check", "report"])
def test_a_name_that_is_too_long_is_no_fault(verb: str, capsys: Captured) -> None:
    """Nor is a directory that may not be searched; root may search any."""
    assert main([verb, "x" * 300]) == 2
    assert capsys.readouterr().err.startswith(f"cdmtrace: {'x' * 300}: cannot be ")
    (one,) = places.find([Path("x" * 300)])
    assert one.name == "x" * 300
