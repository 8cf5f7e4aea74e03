"""Real recordings and the text that they must produce, to the letter.

``make golden`` makes them anew.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from cdmtrace.cli import main

GOLDEN = Path(__file__).parent.parent / "golden"
NAMES = sorted(path.stem for path in GOLDEN.glob("*.arrows"))
STATUS = {"cdm-6.1-rfc": 1, "cdm-6.1-none": 0, "foreign-6.1-rfc": 1}


def test_all_are_here() -> None:
    assert sorted(STATUS) == NAMES


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("verb", ["check", "report"])
def test_the_text(
    name: str,
    verb: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    # The texts name the file as somebody at the top of the checkout would.
    monkeypatch.chdir(GOLDEN.parent.parent)
    status = main([verb, f"tests/golden/{name}.arrows"])
    assert status == (STATUS[name] if verb == "check" else 0)
    expected = (GOLDEN / f"{name}.{verb}.txt").read_text()
    assert capsys.readouterr().out == expected


@pytest.mark.parametrize(
    ("name", "status"),
    [("cdm-6.1-rfc", 0), ("foreign-6.1-rfc", 0), ("cdm-6.1-none", 1)],
)
def test_the_patches_do_what_they_say(name: str, status: int) -> None:
    """With their defects a kernel is what they describe, and mended it is not."""
    assert main(["check", "--profile", "rfc-v2", str(GOLDEN / f"{name}.arrows")]) == (
        status
    )
