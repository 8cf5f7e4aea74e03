"""``compare`` on the command line: exit status, streams, what cannot be compared."""

from __future__ import annotations

import json
import lzma
from pathlib import Path

import pytest
import simstory
from simfile import save
from simkernel import SimKernel

from cdmtrace.cli import main

GOLDEN = Path(__file__).parents[1] / "golden"
NONE, RFC, FOREIGN = (
    str(GOLDEN / f"{name}.arrows")
    for name in ("cdm-6.1-none", "cdm-6.1-rfc", "foreign-6.1-rfc")
)


def test_the_exit_status_says_whether_it_is_as_expected(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["compare", NONE, RFC]) == 1
    assert main(["compare", RFC, NONE]) == 0
    assert main(["compare", RFC, RFC]) == 0
    # What the rfc describes, a kernel with its defects does, and the mended one not.
    assert main(["compare", "--profile", "rfc-v2", RFC, NONE]) == 1
    assert main(["compare", "--rules", "CDM007,CDM018", NONE, RFC]) == 0
    capsys.readouterr()


def test_another_bit_and_other_names_are_no_difference(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["compare", "--format", "json", RFC, FOREIGN]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert {one["status"] for one in shown["findings"]} == {"unchanged"}
    assert shown["unlike"] == []
    assert shown["a"]["trace"]["vm_cdm_mask"] != shown["b"]["trace"]["vm_cdm_mask"]


def test_results_are_on_stdout_and_the_next_command_is_not(
    capsys: pytest.CaptureFixture[str],
) -> None:
    main(["compare", NONE, RFC])
    printed = capsys.readouterr()
    assert printed.out.splitlines()[-1] == "verdict: not as expected: 10 new"
    command = printed.err.rstrip().partition("as an argument: cdmtrace ")[2].split()
    assert main(command) == 0
    assert capsys.readouterr().out.count(command[-1]) == 1
    main(["compare", "--format", "csv", NONE, RFC])
    assert capsys.readouterr().err == ""


def test_the_format_is_a_variable_too(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CDMTRACE_COMPARE_FORMAT", "json")
    monkeypatch.setenv("CDMTRACE_COMPARE_PROFILE", "rfc-v2")
    main(["compare", NONE, RFC])
    shown = json.loads(capsys.readouterr().out)
    assert (shown["schema"], shown["profile"]) == ("cdmtrace.compare/1", "rfc-v2")


def test_services_are_compared_by_what_may_be(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trace = tmp_path / "services.arrows"
    packed = GOLDEN / "rules/services.arrows.xz"
    trace.write_bytes(lzma.decompress(packed.read_bytes()))
    words = ["compare", "--profile", "np", "--format", "json", *[str(trace)] * 2]

    def found(*more: str) -> set[str]:
        assert main([*words, *more]) == 0
        shown = json.loads(capsys.readouterr().out)
        return {one["finding"]["cause"] for one in shown["findings"]}

    assert {"ksm", "migration", "offline"} <= found()
    assert found("--allow", "1:ksm,migration") == found() - {"ksm", "migration"}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([RFC], "takes two recordings, and this is one"),
        ([RFC, RFC, NONE], "takes two recordings, and this is 3"),
        ([RFC, "/nonexistent.arrows"], "/nonexistent.arrows"),
        ([RFC, __file__], "test_compare.py"),
        (["--rules", "CDM999", RFC, NONE], "--rules CDM999: no such rule"),
        (["--allow", "1:ksm", RFC, NONE], "--allow is about services"),
        (["--profile", "np", "--allow", "7:ksm", RFC, NONE], "node 7 is allowed"),
        (["--format", "yaml", RFC, NONE], "yaml"),
        ([], "Missing argument"),
    ],
)
def test_trouble(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["compare", *words]) == 2
    printed = capsys.readouterr()
    assert said in printed.err
    assert printed.out == ""


def test_what_one_says_of_itself_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kernel = SimKernel("rfc")
    simstory.tell(kernel)
    kernel.lose("alloc", 0)
    path = save(kernel.trace(), tmp_path / "cut.arrows", end=False)
    main(["compare", NONE, str(path)])
    out = " ".join(capsys.readouterr().out.split())
    assert "1 lost, Linux 6.1.0-sim" in out
    assert "the recording was cut" in out
    assert out.count("nothing lost, CDM nodes: 1") == 1
