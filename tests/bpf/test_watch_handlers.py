"""What the handlers of `watch` make of hits of a debug register."""

from __future__ import annotations

import ctypes
from collections.abc import Callable

import pytest
from bpfnumbers import RECORDER
from nativemachine import (
    NUMBERS,
    PAGE,
    START,
    TAG,
    TASK,
    Machine,
)

from cdmtrace.events import (
    Bit,
    EventKind,
    Lost,
    Probe,
)

AT = NUMBERS["OFF_vm_area_struct_vm_flags"]
FLAGS = 0x73
PF_KTHREAD = 0x00200000
GENERAL, REGISTERS = 15, 21
"""Words of a struct pt_regs: registers for all purposes, and all."""


class Watching:
    """A machine on which the recorder watches the VMA at START by watchpoint 2."""

    def __init__(self, machine: Machine) -> None:
        self.machine, self.native = machine, machine.native
        self.native.watchpoint_of.restype = ctypes.POINTER(ctypes.c_uint64 * 8)
        self.native.found_vma.restype = ctypes.c_uint64
        self.mm = machine.mm()
        machine.set(machine.task, "task_struct", mm=self.mm)
        self.vma = machine.vma(self.mm, vm_flags=FLAGS)

    def ask(self, vma: int) -> None:
        self.native.set_asked(2, ctypes.c_uint64(START), ctypes.c_uint64(vma))

    def look(self, *, pid: int = TASK, by: int = RECORDER, vma: int = 0) -> None:
        """A line of /proc/PID/numa_maps is read."""
        task = self.machine.struct("task_struct", tgid=pid)
        private = self.machine.struct("proc_maps_private", task=task)
        seq = self.machine.struct("seq_file", private=private)
        self.machine.be(by)
        self.machine.enter("watch_look", seq, vma or self.vma)
        self.machine.be(TASK)

    def arm(self) -> None:
        self.ask(self.vma)
        self.look()

    def write(self, flags: int) -> None:
        self.machine.set(self.vma, "vm_area_struct", vm_flags=flags)

    def hit(self, *, near: int = 0, register: int = 5) -> None:
        """A debug register traps; a register holds what is near the VMA."""
        words = [0] * REGISTERS
        words[register] = near or self.vma
        context = self.machine.words(*words, 1, self.vma + AT)
        self.native.watch_hit(ctypes.c_void_p(context))

    def free(self, vma: int = 0) -> None:
        self.machine.enter("watch_free", vma or self.vma)

    @property
    def found(self) -> int:
        return int(self.native.found_vma(2))

    def counter(self, place: int) -> int:
        return int(self.native.watchpoint_of(2).contents[place])

    @property
    def hits(self) -> int:
        return self.counter(3)

    @property
    def strange(self) -> int:
        return self.counter(4)

    @property
    def writes(self) -> list[tuple[int, int]]:
        return [
            (int(row["flags_before"]), int(row["flags_after"]))
            for row in self.machine.rows
            if row["kind"] == EventKind.WRITE
        ]

    @property
    def ends(self) -> list[int]:
        return [r["ret"] for r in self.machine.rows if r["kind"] == EventKind.WATCH]


@pytest.fixture
def watching(boot: Callable[..., Machine]) -> Watching:
    return Watching(boot(WATCHES=4, WATCHED_TGID=TASK))


def test_what_is_looked_for_is_found(watching: Watching) -> None:
    other = watching.machine.vma(watching.mm, START + PAGE)
    watching.ask(0)
    for told in ({"by": TASK}, {"pid": TASK + 1}, {"vma": other}):
        watching.look(**told)
        assert watching.found == 0
    watching.look()
    assert watching.found == watching.vma
    assert watching.machine.rows == []


def test_it_is_armed_where_the_debug_register_looks(watching: Watching) -> None:
    watching.ask(watching.vma + 256)
    watching.look()
    assert watching.machine.rows == []
    watching.arm()
    watching.look()
    (row,) = watching.machine.rows
    assert (row["kind"], row["arg"], row["ret"]) == (EventKind.WATCH, 2, 0)
    assert (row["addr"], row["start"], row["end"]) == (START, START, START + PAGE)
    assert row["flags_after"] == FLAGS


def test_it_is_not_armed_before_anything_is_recorded(watching: Watching) -> None:
    watching.machine.enable(False)
    watching.arm()
    assert watching.found == watching.vma
    watching.machine.enable(True)
    watching.hit()
    assert watching.machine.rows == []
    assert watching.hits == 1


def test_each_write_has_what_was_there_before(watching: Watching) -> None:
    watching.arm()
    for flags in (FLAGS | TAG, FLAGS, FLAGS):
        watching.write(flags)
        watching.hit()
    assert watching.writes == [
        (FLAGS, FLAGS | TAG),
        (FLAGS | TAG, FLAGS),
        (FLAGS, FLAGS),
    ]
    row = watching.machine.rows[-1]
    assert (row["arg"], row["addr"], row["ret"]) == (2, START, 0)
    assert row["mm"] == watching.machine.id(watching.mm)
    assert not row["bits"] & (Bit.KTHREAD | Bit.FOREIGN | Bit.UNLINKED)
    assert row["ts"] == row["ts_entry"]


def test_that_a_kernel_thread_writes_is_told(watching: Watching) -> None:
    machine = watching.machine
    watching.arm()
    machine.set(machine.task, "task_struct", mm=0, flags=PF_KTHREAD)
    watching.write(FLAGS | TAG)
    watching.hit()
    assert machine.rows[-1]["bits"] & (Bit.KTHREAD | Bit.FOREIGN) == 3


@pytest.mark.parametrize("place", [5, 6])
def test_that_another_cpu_writes_meanwhile_is_told(
    watching: Watching, place: int
) -> None:
    """It changes how many have begun; or one that had begun has not ended."""
    watching.arm()
    watching.write(FLAGS | TAG)
    watching.hit()
    point = ctypes.addressof(watching.native.watchpoint_of(2).contents)
    watching.machine.clear_meanwhile(point + 8 * place)
    watching.hit()
    assert [
        row["ret"] for row in watching.machine.rows if row["kind"] == EventKind.WRITE
    ] == [0, 1]


def test_nothing_is_told_when_it_is_over(watching: Watching) -> None:
    watching.arm()
    watching.machine.enable(False)
    watching.write(FLAGS | TAG)
    watching.hit()
    watching.free()
    assert watching.writes == []
    assert watching.hits == 1


def test_nothing_is_told_of_what_was_freed(watching: Watching) -> None:
    watching.arm()
    watching.free(watching.machine.vma(watching.mm, START + PAGE))
    assert watching.ends == [0]
    watching.free()
    assert watching.ends == [0, 1]
    watching.write(0)
    watching.hit()
    watching.free()
    assert watching.writes == []
    assert watching.ends == [0, 1]
    assert watching.hits == 1


def test_what_is_given_out_again_can_be_watched_again(watching: Watching) -> None:
    watching.arm()
    watching.free()
    watching.look()
    watching.write(FLAGS | TAG)
    watching.hit()
    assert watching.ends == [0, 1, 0]
    assert watching.writes == [(FLAGS, FLAGS | TAG)]


def test_nothing_is_told_of_what_is_in_another_mm(watching: Watching) -> None:
    watching.arm()
    mm = watching.machine.mm()
    watching.machine.set(watching.vma, "vm_area_struct", vm_mm=mm, vm_flags=0)
    watching.hit()
    watching.machine.set(watching.vma, "vm_area_struct", vm_mm=watching.mm)
    watching.hit()
    assert watching.writes == []
    assert watching.hits == 2


@pytest.mark.parametrize(
    ("first", "last", "leaves"), [(0, 1, True), (-9, 9, True), (1, 9, False)]
)
def test_what_nobody_finds_any_more_may_be_written(
    watching: Watching, first: int, last: int, leaves: bool
) -> None:
    watching.arm()
    arguments = (watching.vma, START + first * PAGE, START + last * PAGE)
    watching.machine.enter("watch_unmap", 0, 0, *arguments)
    watching.write(FLAGS | TAG)
    watching.hit()
    (row,) = (r for r in watching.machine.rows if r["kind"] == EventKind.WRITE)
    assert bool(row["bits"] & Bit.UNLINKED) is leaves


@pytest.mark.parametrize("register", range(GENERAL))
def test_a_write_of_the_same_value_comes_from_an_address_of_the_vma(
    watching: Watching, register: int
) -> None:
    watching.arm()
    watching.hit(register=register)
    watching.hit(near=watching.vma + AT + 64, register=register)
    assert watching.writes == [(FLAGS, FLAGS)] * 2
    # What is beside it, before and behind, was written by somebody else.
    watching.hit(near=watching.vma - 1, register=register)
    watching.hit(near=watching.vma + AT + 65, register=register)
    assert len(watching.writes) == 2
    assert (watching.hits, watching.strange) == (4, 2)


def test_what_is_on_the_stack_is_in_no_register(watching: Watching) -> None:
    watching.arm()
    watching.hit(register=GENERAL)
    assert watching.writes == []


def test_a_write_of_another_value_may_come_from_anywhere(watching: Watching) -> None:
    watching.arm()
    watching.write(FLAGS | TAG)
    watching.hit(near=1)
    assert watching.writes == [(FLAGS, FLAGS | TAG)]


def test_a_write_without_room_in_the_ring_is_lost(watching: Watching) -> None:
    machine = watching.machine
    watching.arm()
    words = machine._next
    for n in range(600):
        machine._next = words
        watching.write(FLAGS | (n & 1) << 38)
        watching.hit()
    told = watching.writes
    lost = int(machine.native.count_missing(int(Probe.WATCHPOINT), int(Lost.RING)))
    assert len(told) + lost == watching.hits == 600
    assert lost > 0
