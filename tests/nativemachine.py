"""A kernel's memory in this process, and the BPF program's handlers that work on it.

The program is compiled for this process (bpf/native.c): no kernel runs it, and no right
is needed. A test lays out a kernel's structs, calls handlers as probes would, and looks
at the rows.
"""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any, Final

import bpfnumbers
import numpy as np

from cdmtrace.events import (
    EVENT_DTYPE,
    EventKind,
    Lost,
    Probe,
)
from cdmtrace.kernel import layout

NATIVE = Path(__file__).with_name("bpf") / "native.c"
TASK = 71
PAGE, HUGE = 4096, bpfnumbers.NUMBERS["PMD_BYTES"]
TAG = bpfnumbers.NUMBERS["CDM_MASK"]
ENOMEM, EFAULT = 12, 14
DEFAULT, PREFERRED, BIND = 0, 1, 2
START: Final = 0x10000000


def offsets() -> dict[str, int]:
    """Return the offset of every member; mm_mt is the first of its struct."""
    members: dict[str, list[str]] = {"mm_struct": ["mm_mt"]}
    every = (
        *(*bpfnumbers.PRESENT, *bpfnumbers.OLDEST_HAS, *bpfnumbers.NEWER_HAS),
        *bpfnumbers.NEWEST_HAS,
    )
    for struct, member in every:
        names = members.setdefault(struct, [])
        if member not in names:
            names.append(member)
    return {
        f"OFF_{struct}_{member}": 8 * place
        for struct, names in members.items()
        for place, member in enumerate(names)
    }


PLACES = offsets() | layout.heads(offsets())
"""Where members are, those too that this kernel has not got."""
NUMBERS = (
    PLACES
    | bpfnumbers.NUMBERS
    | {
        f"OFF_{one}_{name}": PLACES[f"OFF_{one}_{name}"]
        for one, name in bpfnumbers.PRESENT
    }
)
OLDEST = {
    **bpfnumbers.arguments_of("5.10"),
    **bpfnumbers.LACKING,
    **{
        f"OFF_{one}_{name}": PLACES[f"OFF_{one}_{name}"]
        for one, name in bpfnumbers.OLDEST_HAS
    },
}
"""What differs in 5.10."""
NEWER = {
    **bpfnumbers.arguments_of("6.12"),
    **{
        f"OFF_{one}_{name}": PLACES[f"OFF_{one}_{name}"]
        for one, name in bpfnumbers.NEWER_HAS
    },
    "MOVED_IS_ZERO": 1,
}
"""And in 6.12."""
NEWEST = {
    **bpfnumbers.arguments_of("7.2"),
    **{
        f"OFF_{one}_{name}": PLACES[f"OFF_{one}_{name}"]
        for one, name in bpfnumbers.NEWEST_HAS
    },
    "MOVED_IS_ZERO": 1,
}
"""And in 7.2."""


class Machine:
    """A kernel's memory, one task, and the program."""

    def __init__(self, library: Path) -> None:
        self.native = ctypes.CDLL(str(library))
        for name in ("id_of", "count_missing"):
            getattr(self.native, name).restype = ctypes.c_uint64
        self._memory = (ctypes.c_uint8 * (1 << 16)).in_dll(self.native, "memory")
        # Nothing is at the first words of it: no pointer is that low.
        self._next = ctypes.addressof(self._memory) + 256
        self.task = self.struct("task_struct")
        self._u64("current_task").value = self.task
        self.be(TASK)
        self.enable(True)

    def _u64(self, name: str) -> ctypes.c_uint64:
        return ctypes.c_uint64.in_dll(self.native, name)

    def be(self, pid: int) -> None:
        """The thread goes on as one of another process: its id was given anew."""
        self._u64("current_pid_tgid").value = pid << 32 | TASK

    def live_in(self, mm: int) -> None:
        """The task has this address space."""
        self.set(self.task, "task_struct", mm=mm)

    def join_cgroup(self, on: bool) -> None:
        """The task is in the cgroup that is followed, or leaves it."""
        ctypes.c_int.in_dll(self.native, "current_in_cgroup").value = on

    def name(self, comm: bytes) -> None:
        """The task is called so now."""
        ctypes.memmove(
            (ctypes.c_char * 16).in_dll(self.native, "current_comm"),
            comm.ljust(16, b"\0"),
            16,
        )

    def follow(self, pid: int) -> None:
        """Let a process be one of those that are named."""
        self.native.set_named(pid)

    @property
    def stacks(self) -> int:
        """How many stacks were taken."""
        return int(self.native.count_stacks())

    def enable(self, on: bool) -> None:
        self.native.set_enabled(on)

    def words(self, *words: int, room: int = 256) -> int:
        """Return the address of these words, followed by zeros."""
        address, self._next = self._next, self._next + room
        self.write(address, *words)
        return address

    def write(self, address: int, *words: int) -> None:
        data = b"".join(word.to_bytes(8, "little") for word in words)
        ctypes.memmove(address, data, len(data))

    def struct(self, name: str, /, **members: int) -> int:
        """Return the address of a struct with these members; the rest is 0."""
        address = self.words()
        self.set(address, name, **members)
        return address

    def set(self, address: int, name: str, /, **members: int) -> None:
        for member, value in members.items():
            self.write(address + PLACES[f"OFF_{name}_{member}"], value)

    def vma(self, mm: int, start: int = START, **members: int) -> int:
        members = {"vm_end": start + PAGE, **members}
        return self.struct("vm_area_struct", vm_mm=mm, vm_start=start, **members)

    def mm(self, *, watched: bool = False) -> int:
        address = self.struct("mm_struct")
        if watched:
            self.native.set_watched(ctypes.c_uint64(address))
        return address

    def vma_mm(self, vma: int) -> int:
        return ctypes.c_uint64.from_address(
            vma + NUMBERS["OFF_vm_area_struct_vm_mm"]
        ).value

    def policy(self, mode: int, nodes: int) -> int:
        return self.struct("mempolicy", mode=mode, nodes=nodes)

    def page(self, node: int, *, flags: int = 0, **members: int) -> int:
        flags |= node << NUMBERS["NODES_PGSHIFT"]
        return self.struct("page", flags=flags, **members)

    def enter(self, handler: str, *arguments: int, sp: int = 0) -> None:
        """A function is called."""
        words = (*arguments, *[0] * (7 - len(arguments)), sp)
        getattr(self.native, handler)(ctypes.c_void_p(self.words(*words)))

    def leave(self, handler: str, value: int = 0) -> None:
        """A function returns a value."""
        words = (*[0] * 6, value, 0)
        getattr(self.native, handler)(ctypes.c_void_p(self.words(*words)))

    def call(self, name: str, *arguments: int) -> None:
        """A system call begins."""
        number = ctypes.c_int.in_dll(self.native, f"nr_{name}").value
        words = self.words(0, number, *arguments)
        self.native.call_enter(ctypes.c_void_p(words))

    def call_ends(self, result: int) -> None:
        self.native.call_exit(ctypes.c_void_p(self.words(0, 0, result)))

    def id(self, pointer: int) -> int:
        return int(self.native.id_of(ctypes.c_uint64(pointer)))

    def clear_meanwhile(self, address: int) -> None:
        """Another task clears a word while the program takes room in the ring."""
        self._u64("cleared_meanwhile").value = address

    @property
    def waiting(self) -> int:
        """How many entries wait for their return."""
        return int(self.native.count_waiting())

    def unpaired(self, probe: Probe) -> int:
        return int(self.native.count_missing(int(probe), int(Lost.UNPAIRED)))

    def unread(self, probe: Probe) -> int:
        return int(self.native.count_missing(int(probe), int(Lost.READ)))

    def fill(self, used: int) -> None:
        """So many bytes wait in the ring, and nobody takes them out."""
        self._u64("ring_waiting").value = used

    def full(self, probe: Probe) -> int:
        return int(self.native.count_missing(int(probe), int(Lost.RING)))

    @property
    def woken(self) -> list[bool]:
        """Of each record, whether whoever drains the ring was woken for it."""
        used = ctypes.c_uint32.in_dll(self.native, "ring_filled").value
        flags = ctypes.c_uint32 * (used // EVENT_DTYPE.itemsize)
        force = 2
        return [x == force for x in flags.in_dll(self.native, "submitted")]

    @property
    def rows(self) -> list[Any]:
        """What is in the ring, but for names of tasks."""
        used = ctypes.c_uint32.in_dll(self.native, "ring_filled").value
        ring = (ctypes.c_uint8 * used).in_dll(self.native, "ring")
        events = np.frombuffer(bytes(ring), EVENT_DTYPE)
        return [row for row in events if row["kind"] != EventKind.COMM]


def ended(machine: Machine, mm: int) -> list[int]:
    """The mm ends; return the mm of each row that says so."""
    before = len(machine.rows)
    gather, other = machine.words(), machine.words()
    machine.enter("exit_entry", mm)
    machine.enter("exit_unmapped", other)
    machine.enter("exit_unmaps", gather, 0, machine.vma(mm))
    machine.enter("exit_unmapped", other)
    assert machine.waiting == 1
    machine.enter("exit_unmapped", gather)
    assert machine.waiting == 0
    machine.leave("exit_return")
    return [
        int(row["mm"])
        for row in machine.rows[before:]
        if row["kind"] == EventKind.MM_EXIT
    ]
