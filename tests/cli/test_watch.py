"""What ``watch`` refuses, before it compiles anything, and what it prints."""

from __future__ import annotations

import ctypes
import mmap
import os
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import pytest
from fakemachine import NAMES, pretend

from cdmtrace import watch
from cdmtrace.cli import main
from cdmtrace.format.schema import Header
from cdmtrace.kernel import symbols, watchpoints
from cdmtrace.options import Outcome
from cdmtrace.probes import WATCHPOINT
from cdmtrace.render import writes

PID = str(os.getpid())
FUNCTIONS = frozenset(a.candidates[0] for a in WATCHPOINT.attachments)


class Reached(BaseException):
    """Everything was found to be in order, and compiling would begin."""


@pytest.fixture(autouse=True)
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def reached(how: str, numbers: object, *_: object, **more: object) -> NoReturn:
        raise Reached(numbers)

    pretend(tmp_path, monkeypatch)
    known = NAMES["functions"] | FUNCTIONS
    monkeypatch.setattr(symbols, "functions", lambda: known)
    monkeypatch.setattr(watchpoints, "check_free", lambda number: None)
    monkeypatch.setattr(watch, "watch_loader", reached)


@pytest.fixture
def region() -> mmap.mmap:
    return mmap.mmap(-1, 8 * mmap.PAGESIZE, flags=mmap.MAP_PRIVATE)


def at(region: mmap.mmap, page: int = 0) -> int:
    start = ctypes.addressof(ctypes.c_char.from_buffer(region))
    return start + page * mmap.PAGESIZE


def refused(
    capsys: pytest.CaptureFixture[str], status: int, *parts: str, words: list[str]
) -> None:
    before = sorted(Path.cwd().iterdir())
    assert main(["watch", *words]) == status
    out, err = capsys.readouterr()
    assert out == ""
    for part in parts:
        assert part in err, err
    assert sorted(Path.cwd().iterdir()) == before


@pytest.mark.parametrize("form", ["{:x}", "0x{:x}"])
def test_an_address_of_the_process(region: mmap.mmap, form: str) -> None:
    with pytest.raises(Reached) as caught:
        main(["watch", "--pid", PID, "--addr", form.format(at(region, 3) + 5)])
    (numbers,) = caught.value.args
    assert numbers["WATCHED_TGID"] == os.getpid()


def test_a_kernel_of_another_kind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, region: mmap.mmap
) -> None:
    (tmp_path / "include/linux/mm.h").write_text("#define VM_READ 1\n")
    words = ["watch", "--pid", PID, "--addr", f"{at(region):x}"]
    assert main(words) == 125
    with pytest.raises(Reached) as caught:
        main([*words, "--kernel-profile", "openeuler"])
    assert caught.value.args[0]["CDM_MASK"] == 1 << 32


def test_flags_have_the_names_of_their_kernel(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    header = Header(
        tool="",
        kernel_release="6.12.1",
        kernel_build="",
        machine="x86_64",
        boot_id="",
        started=0,
        utc_offset=0,
        page_size=4096,
        ring_size=4096,
        cdm_nodes=(1,),
        cdm_nodes_from="",
        vm_cdm_mask=1 << 45,
        vm_cdm_mask_from="",
    )
    write = watch.Write(
        number=1,
        since=0,
        cpu=0,
        tid=1,
        comm="x",
        lock=0,
        before=1 << 40,
        after=1 << 45,
        start=0x1000,
        end=0x2000,
        at=("f+0x1",),
        overlapped=False,
        leaving=False,
    )

    def watched(*_: object, tell: Callable[..., None], **__: object) -> Outcome:
        tell(write, header)
        return Outcome(
            events=1, lost=0, size=1, reason="it ended", status=0, missing=()
        )

    monkeypatch.setattr(watch, "watch", watched)
    assert main(["watch", "--pid", PID, "--addr", "1000"]) == 0
    assert "dp -> cd" in capsys.readouterr().out


def test_more_addresses_than_debug_registers(
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = [word for n in range(1, 6) for word in ("--addr", f"{n}000")]
    refused(
        *(capsys, 2, "5 addresses, and a processor has 4 debug registers"),
        words=["--pid", PID, *words],
    )


@pytest.mark.parametrize("text", ["x", "-1", "0", "1" + 16 * "0", ""])
def test_what_is_no_address(capsys: pytest.CaptureFixture[str], text: str) -> None:
    refused(
        *(capsys, 2, "not an address", "/proc/PID/maps"),
        words=["--pid", PID, "--addr", text],
    )


def test_an_address_that_no_vma_holds(capsys: pytest.CaptureFixture[str]) -> None:
    refused(
        *(capsys, 2, f"no VMA of process {PID} holds it", f"cat /proc/{PID}/maps"),
        words=["--pid", PID, "--addr", "1000"],
    )


def test_two_addresses_of_one_vma(
    capsys: pytest.CaptureFixture[str], region: mmap.mmap
) -> None:
    first, second = at(region), at(region, 5)
    refused(
        *(capsys, 2, f"{second:x}: is in the VMA of {first:x}", "give one of them"),
        words=["--pid", PID, "--addr", f"{first:x}", "--addr", f"{second:x}"],
    )


@pytest.mark.parametrize("name", sorted(FUNCTIONS))
def test_a_kernel_on_which_a_vma_cannot_be_followed(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    region: mmap.mmap,
    name: str,
) -> None:
    known = (NAMES["functions"] | FUNCTIONS) - {name}
    monkeypatch.setattr(symbols, "functions", lambda: known)
    refused(
        *(capsys, 125, f"no {name}", "watchpoint"),
        words=["--pid", PID, "--addr", f"{at(region):x}"],
    )


def test_debug_registers_that_others_have(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    region: mmap.mmap,
) -> None:
    def taken(number: int) -> NoReturn:
        raise watchpoints.NoWatchpoint(f"{number} are not left")

    monkeypatch.setattr(watchpoints, "check_free", taken)
    refused(
        *(capsys, 125, "1 are not left"),
        words=["--pid", PID, "--addr", f"{at(region):x}"],
    )


def test_no_process_and_no_address(capsys: pytest.CaptureFixture[str]) -> None:
    refused(capsys, 2, "--pid", words=["--addr", "1000"])
    refused(capsys, 2, "--addr", words=["--pid", PID])


WRITE = {"number": 2, "since": 9_598_382_000, "cpu": 1, "task": "kworker/u4:1/26"}


def test_a_write_is_a_line() -> None:
    text = writes.line(
        **WRITE,
        lock="read",
        flags="- -> cd",
        at=["set_vm_cdm+0xb", "cdm_tag_now+0x8c"],
    )
    assert f"{writes.HEAD}\n{text}" == (
        "      time (s)  cpu    task                lock     flags         "
        "next instruction\n"
        "#2    9.598382  cpu1   kworker/u4:1/26     read     - -> cd       "
        "set_vm_cdm+0xb"
    )


def test_its_callers_and_what_else_is_known_stand_below() -> None:
    text = writes.line(
        **WRITE,
        lock="none",
        flags="cd -> -",
        at=["set_vm_cdm+0xb", "cdm_tag_now+0x8c"],
        notes=["another cpu wrote as well"],
        stack=True,
    )
    _, note, caller = text.splitlines()
    assert note.strip() == "(another cpu wrote as well)"
    assert caller.strip() == "cdm_tag_now+0x8c"


def test_without_a_stack_it_is_not_known_where() -> None:
    text = writes.line(**WRITE, lock="none", flags="cd -> -", at=[])
    assert text.endswith(" ?")
