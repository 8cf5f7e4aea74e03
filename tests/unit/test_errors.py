from __future__ import annotations

import pytest

from cdmtrace import errors
from cdmtrace.cli import main as cli_main
from cdmtrace.cli.main import cli


@pytest.mark.parametrize(
    ("kind", "status"),
    [
        (errors.CdmtraceError, 2),
        (errors.UsageTrouble, 2),
        (errors.UnreadableFile, 2),
        (errors.TimedOut, 124),
        (errors.RecordError, 125),
        (errors.LabError, 125),
        (errors.CommandNotExecutable, 126),
        (errors.CommandNotFound, 127),
        (errors.GuestDied, 134),
        (errors.Interrupted, 130),
        (errors.Terminated, 143),
    ],
)
def test_class_decides_the_exit_status(
    kind: type[errors.CdmtraceError],
    status: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(**_: object) -> None:
        raise kind("it broke", hint="mend it", details="one\ntwo\n")

    monkeypatch.setattr(cli, "main", fail)
    assert cli_main([]) == status
    out, err = capsys.readouterr()
    assert out == ""
    assert err == "cdmtrace: it broke\n  one\n  two\n  hint: mend it\n"


def test_a_message_alone_is_one_line() -> None:
    assert str(errors.LabError("it broke")) == "it broke"
    assert errors.apt_hint("flex", "bc") == "sudo apt-get install -y flex bc"
