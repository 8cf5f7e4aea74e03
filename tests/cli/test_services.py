"""check --profile np: what is allowed is said on the command line, or in a file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from rulecases import run
from simfile import save
from simkernel import PAGE, Task

from cdmtrace.cli import main
from cdmtrace.events import Cause, EventKind, Probe


def merge(task: Task) -> None:
    """ksmd puts one page of node 1 for another."""
    region = task.mmap(3)
    task.mbind(region.start, 3)
    task.faults(region)
    task.vma_row(
        EventKind.KSM_PAGE,
        task.vma(region.start),
        probe=Probe.KSM_MERGE,
        addr=region.start,
        size=PAGE,
        src_node=1,
        node=1,
        cause=Cause.KSM,
    )


@pytest.fixture
def merged(tmp_path: Path) -> str:
    """A recording in which KSM merges pages of node 1, which mbind() has brought."""
    return str(save(run(merge).trace(), tmp_path / "merged.arrows"))


def services(out: str) -> dict[str, dict[str, object]]:
    cells = json.loads(out)["services"]["cells"]
    return {cell["service"]: cell for cell in cells}


def test_what_is_not_allowed_is_found(
    merged: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["check", "--profile", "np", "--rules", "CDM021", merged]) == 1
    out = capsys.readouterr().out
    assert "CDM021 service-not-allowed: warning, cause: ksm" in out
    assert "Services that touched pages of CDM nodes" in out


@pytest.mark.parametrize("way", ["typed", "file", "environment"])
def test_what_is_allowed_is_not(
    way: str,
    merged: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = ["check", "--profile", "np", "--format", "json", "--allow-inconclusive"]
    if way == "typed":
        words += ["--allow", "1:ksm"]
    elif way == "file":
        file = tmp_path / "np.toml"
        file.write_text('[node.1]\nallow = ["mempolicy", "ksm"]\n')
        words += ["--permissions", str(file)]
    else:
        monkeypatch.setenv("CDMTRACE_CHECK_ALLOW", "1:ksm")
    assert main([*words, merged]) == 0
    found = services(capsys.readouterr().out)
    assert found["ksm"]["allowed"]
    assert found["ksm"]["observed"]
    assert found["mempolicy"]["allowed"]
    assert not found["compaction"]["allowed"]


@pytest.mark.parametrize(
    "options", [[], ["--allow", "1:compaction"], ["--allow", "all:mlock,offline"]]
)
def test_it_can_be_explained(
    options: list[str], merged: str, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["check", "--profile", "np", *options, merged])
    told = capsys.readouterr().err.partition("as an argument: cdmtrace ")[2]
    assert main(told.split()) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "The argument:" in out
    allowed = {
        "mempolicy",
        *(n for o in options[1:] for n in o[o.index(":") + 1 :].split(",")),
    }
    assert "allowed there: " + ", ".join(sorted(allowed)) in out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ["--allow", "1:ksm"],
            "--allow is about services, of which --profile intended",
        ),
        (["--permissions", "x"], "--permissions is about services"),
        (["--profile", "np", "--allow", "2:ksm"], "no CDM node of what is checked"),
        (["--profile", "np", "--allow", "1:kms"], "did you mean ksm?"),
    ],
)
def test_trouble(
    words: list[str], said: str, merged: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["check", *words, merged]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert said in err


def test_by_default_the_rule_is_not_asked_for(
    merged: str, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["check", merged])
    out = capsys.readouterr().out
    assert "CDM021" not in out
    assert "Services" not in out
    assert main(["check", "--rules", "CDM021", merged]) == 3
    assert "intended promises nothing like it" in capsys.readouterr().out
