"""Who makes the program: what is tried, and what is said of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from cdmtrace.errors import RecordError
from cdmtrace.loader import build, choice
from cdmtrace.loader.bcc import BccMissing
from cdmtrace.loader.program import ProgramRejected


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is made, in order; both can, and the program is compiled."""
    log: list[str] = []

    def bcc(numbers: Any, *, more: tuple[str, ...]) -> str:
        log.append(f"bcc {' '.join((*numbers, *more))}")
        return "by bcc"

    def libbpf(numbers: Any) -> str:
        log.append(f"libbpf {' '.join(numbers)}")
        return "by libbpf"

    monkeypatch.setattr(choice, "BccProgram", bcc)
    monkeypatch.setattr(choice, "LibbpfProgram", libbpf)
    monkeypatch.setattr(build, "is_there", lambda: True)
    return log


def fail(monkeypatch: pytest.MonkeyPatch, error: RecordError) -> None:
    def bcc(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(choice, "BccProgram", bcc)


def make(how: str, said: Callable[[str], None] = lambda _: None, **more: Any) -> Any:
    return choice.make_program(how, {"ALL": 1}, said, **more)


@pytest.mark.parametrize(
    ("how", "program", "log"),
    [
        ("auto", "by bcc", ["bcc ALL"]),
        ("bcc", "by bcc", ["bcc ALL"]),
        ("libbpf", "by libbpf", ["libbpf ALL"]),
    ],
)
def test_where_both_can(
    made: list[str], how: str, program: str, log: list[str]
) -> None:
    assert make(how) == program
    assert made == log


def test_watch_has_more_to_compile(made: list[str]) -> None:
    make("bcc", watch=True)
    make("libbpf", watch=True)
    assert made == ["bcc ALL WATCHES watch.bpf.c", "libbpf ALL"]


ERRORS = [BccMissing("bcc is missing"), ProgramRejected("LLVM is too old")]


@pytest.mark.parametrize("error", ERRORS, ids=str)
def test_where_bcc_cannot(
    made: list[str], monkeypatch: pytest.MonkeyPatch, error: RecordError
) -> None:
    fail(monkeypatch, error)
    said: list[str] = []
    assert make("auto", said.append) == "by libbpf"
    assert said == [
        "compiling the probes",
        f"{error}: libbpf loads what was compiled before",
    ]
    with pytest.raises(type(error)) as caught:
        make("bcc")
    assert caught.value is error


@pytest.mark.parametrize("error", ERRORS, ids=str)
def test_where_neither_can_it_is_bcc_s_trouble_that_is_told(
    made: list[str], monkeypatch: pytest.MonkeyPatch, error: RecordError
) -> None:
    fail(monkeypatch, error)
    monkeypatch.setattr(build, "is_there", lambda: False)
    with pytest.raises(type(error)):
        make("auto")
    assert made == []


def test_without_headers_bcc_is_not_tried(made: list[str]) -> None:
    said: list[str] = []
    assert make("auto", said.append, with_headers=False) == "by libbpf"
    assert made == ["libbpf ALL"]
    assert said[0].startswith("this kernel's headers are not here: ")


def test_the_loader_of_a_watch_knows_where_the_flags_are(made: list[str]) -> None:
    loader = choice.watch_loader("libbpf", {"OFF_vm_area_struct_vm_flags": 32})
    assert loader.program == "by libbpf"
    assert loader._offset == 32
