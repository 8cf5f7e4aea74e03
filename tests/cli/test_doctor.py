from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from cdmtrace import doctor
from cdmtrace.checks import Check, State
from cdmtrace.cli import main

OK = Check(name="python", state=State.OK, text="Python 3")
WARN = Check(name="VM_CDM", state=State.WARN, text="unknown", remedy="--vm-cdm-mask")
FAIL = Check(name="bcc", state=State.FAIL, text="missing", remedy="apt-get install")


def found(monkeypatch: pytest.MonkeyPatch, *checks: Check) -> None:
    def examine(**options: str | None) -> Iterator[Check]:
        assert options == {
            "cdm_nodes": "1",
            "vm_cdm_mask": "bit:38",
            "kernel_profile": "openeuler",
        }
        yield from checks

    monkeypatch.setattr(doctor, "examine", examine)
    monkeypatch.setenv("CDMTRACE_DOCTOR_CDM_NODES", "1")
    monkeypatch.setenv("CDMTRACE_DOCTOR_VM_CDM_MASK", "bit:38")
    monkeypatch.setenv("CDMTRACE_DOCTOR_KERNEL_PROFILE", "openeuler")


def test_a_machine_that_can_record(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found(monkeypatch, OK, WARN)
    assert main(["doctor"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert out.splitlines() == [
        "ok    python       Python 3",
        "warn  VM_CDM       unknown",
        "                   -> --vm-cdm-mask",
        "This machine can record: sudo cdmtrace record -- COMMAND",
    ]


def test_a_machine_that_cannot(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found(monkeypatch, OK, FAIL)
    assert main(["doctor"]) == 1
    assert capsys.readouterr().out.endswith("This machine cannot record yet: bcc\n")


def test_as_json(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found(monkeypatch, WARN, FAIL)
    assert main(["doctor", "--format", "json"]) == 1
    document = json.loads(capsys.readouterr().out)
    assert document["schema"] == "cdmtrace.doctor/1"
    assert document["can_record"] is False
    assert document["checks"][1] == {
        "name": "bcc",
        "state": "fail",
        "text": "missing",
        "remedy": "apt-get install",
    }


@pytest.mark.parametrize(
    ("option", "message"),
    [("--cdm-nodes=x", "not a node list"), ("--vm-cdm-mask=3", "not a mask")],
)
def test_arguments_that_make_no_sense(
    option: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["doctor", option]) == 2
    assert message in capsys.readouterr().err
