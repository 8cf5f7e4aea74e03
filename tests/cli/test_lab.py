from __future__ import annotations

import json

import pytest

from cdmtrace.cli import main
from cdmtrace.lab.specs import KERNELS


def test_list_as_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["lab", "list"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    for word in ("cdm-6.1", "foreign-6.1", "not built", "fault-tag", "story"):
        assert word in out
    for name in ("debian-5.10", "debian-6.1", "debian-6.12", "debian-7"):
        assert f"\n  {name:<11}  not fetched; " in out


def test_list_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["lab", "list", "--format", "json"]) == 0
    listing = json.loads(capsys.readouterr().out)
    assert listing["schema"] == "cdmtrace.lab-list/1"
    assert [kernel["built"] for kernel in listing["kernels"]] == [False] * len(KERNELS)
    needs = {quirk["name"]: quirk["needs"] for quirk in listing["quirks"]}
    assert needs["fault-tag"] == ["bind-only"]
    assert len(needs) == 27
    apart = {quirk["name"] for quirk in listing["quirks"] if not quirk["in_rfc"]}
    crashes = {quirk["name"] for quirk in listing["quirks"] if quirk["crashes"]}
    assert len(apart) == 10
    assert crashes == {"default-oops", "null-vma"} < apart


def test_an_option_may_come_from_the_environment(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CDMTRACE_LAB_LIST_FORMAT", "json")
    assert main(["lab", "list"]) == 0
    assert json.loads(capsys.readouterr().out)


@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        (["lab", "run"], 2, "nothing to run"),
        (["lab", "run", "--kernel", "./none", "--", "true"], 2, "no kernel image"),
        (["lab", "run", "--quirks", "zzz", "--", "true"], 125, "unknown quirk"),
        (["lab", "run", "--scenario", "zzz"], 125, "unknown scenario"),
        (["lab", "build", "--kernel", "zzz"], 125, "unknown kernel"),
        (["lab", "run", "--timeout", "-1", "--", "true"], 2, "--timeout"),
        (["no-such-verb"], 2, "no-such-verb"),
    ],
)
def test_trouble_is_told_on_stderr(
    words: list[str], status: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == status
    out, err = capsys.readouterr()
    assert out == ""
    assert message in err
