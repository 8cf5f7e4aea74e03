"""System calls, by their functions where the tracepoints miss some."""

from __future__ import annotations

import ctypes

import pytest
from nativemachine import BIND, NUMBERS, PAGE, START, Machine

from cdmtrace.events import EventKind

CDM = NUMBERS["CDM_NODES"]
PLACES = {"di": 14, "si": 13, "dx": 12, "r10": 7, "r8": 9, "r9": 8, "orig_ax": 15}
"""Words of struct pt_regs, arch/x86/include/uapi/asm/ptrace.h."""


def registers(machine: Machine, name: str, *arguments: int) -> int:
    """Return what a task had in its registers when it made a system call."""
    words = [0] * 16
    number = ctypes.c_int.in_dll(machine.native, f"nr_{name}").value
    order = ("di", "si", "dx", "r10", "r8", "r9")
    told = dict(zip(order, arguments, strict=False)) | {"orig_ax": number}
    for register, word in told.items():
        words[PLACES[register]] = word
    return machine.words(*words)


@pytest.mark.parametrize("result", [0, -12])
def test_a_call_is_the_same_by_its_function(machine: Machine, result: int) -> None:
    machine.live_in(machine.mm())
    mask = machine.words(CDM)
    arguments = (START, PAGE, BIND, mask, 64, 3)
    machine.call("mbind", *arguments)
    machine.call_ends(result & (1 << 64) - 1)
    machine.enter("call_entered", registers(machine, "mbind", *arguments))
    machine.leave("call_returned", result & (1 << 64) - 1)
    one, other = machine.rows
    assert one["kind"] == EventKind.CALL
    same = ("addr", "size", "arg", "other", "other_policy", "ret", "mm", "probe")
    assert [one[name] for name in same] == [other[name] for name in same]
    assert (other["addr"], other["arg"], other["other"]) == (START, 3, CDM)
    assert machine.waiting == 0
