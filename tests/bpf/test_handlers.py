"""What the handlers make of calls, one after the other, and of returns that are missed.

Here the program is compiled for this process (native.c): no kernel runs it, and no
right is needed. A test lays out a kernel's structs in its memory, calls handlers as
probes would, and looks at the rows.
"""

from __future__ import annotations

import ctypes
import functools
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import bpfnumbers
import numpy as np
import pytest
from bpfnumbers import CDM_NODES as CDM
from bpfnumbers import RECORDER

from cdmtrace.events import (
    EVENT_DTYPE,
    POLICY_UNREAD,
    Bit,
    Cause,
    EventKind,
    Lock,
    Lost,
    MpolFlag,
    Probe,
)
from cdmtrace.filters import Filters
from cdmtrace.kernel import layout
from cdmtrace.loader import watch
from cdmtrace.loader.bcc import program_text

NATIVE = Path(__file__).with_name("native.c")
TASK = 71
PAGE, HUGE = 4096, bpfnumbers.NUMBERS["PMD_BYTES"]
TAG = bpfnumbers.NUMBERS["CDM_MASK"]
ENOMEM, EFAULT = 12, 14
DEFAULT, PREFERRED, BIND = 0, 1, 2
START: Final = 0x10000000


def offsets() -> dict[str, int]:
    """Return the offset of every member; mm_mt is the first of its struct."""
    members: dict[str, list[str]] = {"mm_struct": ["mm_mt"]}
    for struct, member in (*layout.MEMBERS, *layout.MAPLE_TREE):
        names = members.setdefault(struct, [])
        if member not in names:
            names.append(member)
    return {
        f"OFF_{struct}_{member}": 8 * place
        for struct, names in members.items()
        for place, member in enumerate(names)
    }


NUMBERS = bpfnumbers.NUMBERS | offsets() | layout.heads(offsets())


class Machine:
    """A kernel's memory, one task, and the program."""

    def __init__(self, library: Path) -> None:
        self._library = ctypes.CDLL(str(library))
        for name in ("id_of", "count_missing"):
            getattr(self._library, name).restype = ctypes.c_uint64
        self._memory = (ctypes.c_uint8 * (1 << 16)).in_dll(self._library, "memory")
        # Nothing is at the first words of it: no pointer is that low.
        self._next = ctypes.addressof(self._memory) + 256
        self.task = self.struct("task_struct")
        self._u64("current_task").value = self.task
        self.be(TASK)
        self.enable(True)

    def _u64(self, name: str) -> ctypes.c_uint64:
        return ctypes.c_uint64.in_dll(self._library, name)

    def be(self, pid: int) -> None:
        """The thread goes on as one of another process: its id was given anew."""
        self._u64("current_pid_tgid").value = pid << 32 | TASK

    def live_in(self, mm: int) -> None:
        """The task has this address space."""
        self.set(self.task, "task_struct", mm=mm)

    def join_cgroup(self, on: bool) -> None:
        """The task is in the cgroup that is followed, or leaves it."""
        ctypes.c_int.in_dll(self._library, "current_in_cgroup").value = on

    def name(self, comm: bytes) -> None:
        """The task is called so now."""
        ctypes.memmove(
            (ctypes.c_char * 16).in_dll(self._library, "current_comm"),
            comm.ljust(16, b"\0"),
            16,
        )

    def follow(self, pid: int) -> None:
        """Let a process be one of those that are named."""
        self._library.set_named(pid)

    @property
    def stacks(self) -> int:
        """How many stacks were taken."""
        return int(self._library.count_stacks())

    def enable(self, on: bool) -> None:
        self._library.set_enabled(on)

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
            self.write(address + NUMBERS[f"OFF_{name}_{member}"], value)

    def vma(self, mm: int, start: int = START, **members: int) -> int:
        members = {"vm_end": start + PAGE, **members}
        return self.struct("vm_area_struct", vm_mm=mm, vm_start=start, **members)

    def mm(self, *, watched: bool = False) -> int:
        address = self.struct("mm_struct")
        if watched:
            self._library.set_watched(ctypes.c_uint64(address))
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
        getattr(self._library, handler)(ctypes.c_void_p(self.words(*words)))

    def leave(self, handler: str, value: int = 0) -> None:
        """A function returns a value."""
        words = (*[0] * 6, value, 0)
        getattr(self._library, handler)(ctypes.c_void_p(self.words(*words)))

    def call(self, name: str, *arguments: int) -> None:
        """A system call begins."""
        number = ctypes.c_int.in_dll(self._library, f"nr_{name}").value
        words = self.words(0, number, *arguments)
        self._library.call_enter(ctypes.c_void_p(words))

    def call_ends(self, result: int) -> None:
        self._library.call_exit(ctypes.c_void_p(self.words(0, 0, result)))

    def id(self, pointer: int) -> int:
        return int(self._library.id_of(ctypes.c_uint64(pointer)))

    def clear_meanwhile(self, address: int) -> None:
        """Another task clears a word while the program takes room in the ring."""
        self._u64("cleared_meanwhile").value = address

    @property
    def waiting(self) -> int:
        """How many entries wait for their return."""
        return int(self._library.count_waiting())

    def unpaired(self, probe: Probe) -> int:
        return int(self._library.count_missing(int(probe), int(Lost.UNPAIRED)))

    def unread(self, probe: Probe) -> int:
        return int(self._library.count_missing(int(probe), int(Lost.READ)))

    def fill(self, used: int) -> None:
        """So many bytes wait in the ring, and nobody takes them out."""
        self._u64("ring_waiting").value = used

    def full(self, probe: Probe) -> int:
        return int(self._library.count_missing(int(probe), int(Lost.RING)))

    @property
    def woken(self) -> list[bool]:
        """Of each record, whether whoever drains the ring was woken for it."""
        used = ctypes.c_uint32.in_dll(self._library, "ring_filled").value
        flags = ctypes.c_uint32 * (used // EVENT_DTYPE.itemsize)
        force = 2
        return [x == force for x in flags.in_dll(self._library, "submitted")]

    @property
    def rows(self) -> list[Any]:
        """What is in the ring, but for names of tasks."""
        used = ctypes.c_uint32.in_dll(self._library, "ring_filled").value
        ring = (ctypes.c_uint8 * used).in_dll(self._library, "ring")
        events = np.frombuffer(bytes(ring), EVENT_DTYPE)
        return [row for row in events if row["kind"] != EventKind.COMM]


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Return what compiles the program, once for each set of numbers."""

    @functools.cache
    def compiled(**numbers: int) -> Path:
        folder = tmp_path_factory.mktemp("native")
        program, library = folder / "program.c", folder / "native.so"
        more = (watch.SOURCE,) if "WATCHES" in numbers else ()
        program.write_text(program_text(NUMBERS | numbers, more))
        compiler = next(filter(None, map(shutil.which, ("cc", "gcc", "clang"))), None)
        assert compiler, "no C compiler: apt-get install gcc"
        flags = ["-O1", "-shared", "-fPIC", f'-DPROGRAM="{program}"']
        subprocess.run([compiler, *flags, "-o", library, NATIVE], check=True)
        return library

    return compiled


@pytest.fixture
def boot(build: Callable[..., Path], tmp_path: Path) -> Callable[..., Machine]:
    """Return what makes a machine, each with variables of its own."""

    def booted(**numbers: int) -> Machine:
        folder = tempfile.mkdtemp(dir=tmp_path)
        return Machine(Path(shutil.copy(build(**numbers), folder)))

    return booted


@pytest.fixture
def machine(boot: Callable[..., Machine]) -> Machine:
    return boot()


# --- returns that are missed ----------------------------------------------------


def called(machine: Machine, mm: int) -> dict[str, tuple[Probe, tuple[int, ...]]]:
    """Return handler -> its probe, and arguments about a VMA of this mm."""
    vma, end = machine.vma(mm), START + PAGE
    kept, flags, seq = machine.words(vma), machine.words(0), machine.words(0)
    page, other = machine.page(0), machine.page(0)
    return {
        "alloc": (Probe.ALLOC, (0, 0, vma, START)),
        "copy": (Probe.COPY_PAGE_RANGE, (vma, vma)),
        "exit": (Probe.EXIT_MMAP, (mm,)),
        "ksm": (Probe.KSM_MADVISE, (vma, START, end, 12, flags)),
        "ksm_merge": (Probe.KSM_MERGE, (vma, page, other)),
        "mbind_range": (Probe.MBIND_RANGE, (0, vma, kept, START, end, 0)),
        "merge": (Probe.VMA_MERGE, (mm, 0, START, end, 0)),
        "migrate": (Probe.MIGRATE_PAGES, (0, 0, 0, 0, 0, 3)),
        "mlock": (Probe.MLOCK_FIXUP, (vma, kept, START, end, 0)),
        "move": (Probe.MOVE_PAGE_TABLES, (vma, START, vma, START, PAGE)),
        "mprotect": (Probe.MPROTECT_FIXUP, (0, vma, kept, START, end, 0)),
        "numa_move": (Probe.NUMA_MIGRATE, (page, vma, 0)),
        "rebind": (Probe.MPOL_REBIND, (mm, 0)),
        "snapshot": (Probe.SNAPSHOT, (seq, vma)),
        "split": (Probe.VMA_SPLIT, (mm, vma, START, 0)),
        "unmap": (Probe.VMA_FREE, (0, 0, vma, START, end)),
    }


HANDLERS = (
    *("alloc", "copy", "exit", "ksm", "ksm_merge", "mbind_range", "merge", "migrate"),
    *("mlock", "move", "mprotect", "numa_move", "rebind", "snapshot", "split"),
    "unmap",
)
OF_WATCHED = (
    *("copy", "ksm_merge", "merge", "mlock", "move", "mprotect", "numa_move"),
    *("split", "unmap"),
)


def begin(machine: Machine, handler: str) -> tuple[Probe, tuple[int, ...]]:
    """A function is called and told of; return its probe and its arguments."""
    machine.be(RECORDER if handler == "snapshot" else TASK)
    probe, arguments = called(machine, machine.mm(watched=True))[handler]
    machine.enter(f"{handler}_entry", *arguments)
    assert machine.waiting == 1
    return probe, arguments


@pytest.mark.parametrize("handler", HANDLERS)
def test_a_return_ends_what_waits_for_it(machine: Machine, handler: str) -> None:
    probe, _ = begin(machine, handler)
    machine.leave(f"{handler}_return")
    assert machine.waiting == 0
    assert machine.unpaired(probe) == 0


@pytest.mark.parametrize("handler", HANDLERS)
def test_the_next_call_takes_the_place_of_one_whose_return_was_missed(
    machine: Machine, handler: str
) -> None:
    probe, arguments = begin(machine, handler)
    machine.enter(f"{handler}_entry", *arguments)
    assert machine.waiting == 1
    assert machine.unpaired(probe) == 1


@pytest.mark.parametrize("handler", HANDLERS)
def test_so_does_one_of_a_task_that_is_not_told_of(
    machine: Machine, handler: str
) -> None:
    probe, arguments = begin(machine, handler)
    if handler == "exit":
        # Of an mm, whoever ends it is told of.
        machine.enable(False)
    if handler == "numa_move":
        # Of the recorder's own memory, nothing is told.
        machine.set(machine.task, "task_struct", mm=machine.vma_mm(arguments[1]))
    machine.be(TASK if handler == "snapshot" else RECORDER)
    machine.enter(f"{handler}_entry", *arguments)
    assert machine.waiting == 0
    assert machine.unpaired(probe) == 1


@pytest.mark.parametrize("handler", OF_WATCHED)
def test_so_does_one_of_an_mm_that_is_not_told_of(
    machine: Machine, handler: str
) -> None:
    probe, _ = begin(machine, handler)
    machine.enter(f"{handler}_entry", *called(machine, machine.mm())[handler][1])
    assert machine.waiting == 0
    assert machine.unpaired(probe) == 1
    machine.leave(f"{handler}_return")
    assert machine.rows == []


def test_so_does_an_allocation_for_no_vma(machine: Machine) -> None:
    begin(machine, "alloc")
    machine.enter("alloc_entry", 0, 0, 0, START)
    assert machine.waiting == 0
    assert machine.unpaired(Probe.ALLOC) == 1
    machine.leave("alloc_return", machine.page(1))
    assert machine.rows == []


@pytest.mark.parametrize("told", [True, False])
def test_a_migration_within_one_ends_before_it(machine: Machine, told: bool) -> None:
    """Also where recording stops meanwhile."""
    machine.enter("migrate_entry", 0, 0, 0, 0, 0, 3, sp=0x2000)
    machine.enable(told)
    machine.enter("migrate_entry", 0, 0, 0, 0, 0, 0, sp=0x1000)
    machine.leave("migrate_return")
    assert machine.waiting == 1
    machine.leave("migrate_return")
    assert machine.waiting == 0
    assert machine.unpaired(Probe.MIGRATE_PAGES) == 0


def test_so_does_the_unmapping_of_an_mm_that_ends(machine: Machine) -> None:
    _, arguments = begin(machine, "unmap")
    machine.enter("exit_entry", machine.vma_mm(arguments[2]))
    machine.enter("unmap_entry", *arguments)
    assert machine.waiting == 1
    assert machine.unpaired(Probe.VMA_FREE) == 1


def test_so_does_a_system_call_that_is_not_told_of(machine: Machine) -> None:
    mm = machine.mm(watched=True)
    machine.set(machine.task, "task_struct", mm=mm)
    machine.call("mmap", 0, PAGE)
    assert machine.waiting == 1
    machine.set(machine.task, "task_struct", mm=machine.mm())
    machine.call("mmap", 0, PAGE)
    assert machine.waiting == 0
    assert machine.unpaired(Probe.SYS_MMAP) == 1


# --- whose page it is -----------------------------------------------------------


def allocate_for_file(machine: Machine) -> Any:
    """A page is allocated for a VMA on the stack; return its row."""
    machine.enter("alloc_entry", 0, 0, machine.vma(0), 0)
    machine.leave("alloc_return", machine.page(1))
    assert machine.rows[-1]["kind"] == EventKind.ALLOC
    return machine.rows[-1]


@pytest.fixture
def faulting(machine: Machine) -> int:
    """Return the VMA in which there is a fault on a shmem file."""
    vma = machine.vma(machine.mm())
    fault = machine.struct("vm_fault", vma=vma, address=START)
    machine.enter("shmem_begin", fault)
    return vma


def test_a_page_of_a_file_is_for_the_fault_that_it_is_allocated_in(
    machine: Machine, faulting: int
) -> None:
    row = allocate_for_file(machine)
    assert (row["mm"], row["addr"]) == (machine.id(machine.vma_mm(faulting)), START)
    machine.leave("shmem_end")
    assert allocate_for_file(machine)["mm"] == 0


@pytest.mark.parametrize("changed", ["mm", "start", "end"])
def test_a_fault_whose_return_was_missed_is_not_that_of_another_vma(
    machine: Machine, faulting: int, changed: str
) -> None:
    other = {
        "mm": {"vm_mm": machine.mm()},
        "start": {"vm_start": START + PAGE, "vm_end": START + 2 * PAGE},
        "end": {"vm_start": START - PAGE, "vm_end": START},
    }
    machine.set(faulting, "vm_area_struct", **other[changed])
    row = allocate_for_file(machine)
    assert (row["mm"], row["addr"]) == (0, 0)


# --- pages that the kernel moves of its own accord -----------------------------


def mapped(machine: Machine, node: int, place: int = 0, **members: int) -> int:
    """Return an anonymous page that is the place-th of its VMA."""
    return machine.page(node, mapping=0x1001, index=place, **members)


def moving(machine: Machine, vma: int, page: int, node: int, ret: int = 1) -> list[Any]:
    """NUMA balancing would move a page; return the rows of that."""
    before = len(machine.rows)
    machine.enter("numa_move_entry", page, vma, node)
    # It may be freed when it has been moved.
    machine.set(page, "page", flags=0, mapping=0, index=99)
    machine.leave("numa_move_return", ret)
    return machine.rows[before:]


def scanned(machine: Machine, vma: int) -> list[Any]:
    before = len(machine.rows)
    machine.enter("numa_scan", vma, START, START + 3 * PAGE)
    return machine.rows[before:]


@pytest.mark.parametrize(
    ("watched", "flags"), [(True, 0), (False, TAG), (False, 0), (True, TAG)]
)
def test_what_has_to_do_with_cdm_is_told_of_numa_balancing(
    machine: Machine, watched: bool, flags: int
) -> None:
    vma = machine.vma(machine.mm(watched=watched), vm_flags=flags)
    told = int(watched or bool(flags))
    assert len(moving(machine, vma, mapped(machine, 0), 0)) == told
    assert len(scanned(machine, vma)) == told


def test_a_range_that_is_scanned(machine: Machine) -> None:
    vma = machine.vma(machine.mm(watched=True))
    (row,) = scanned(machine, vma)
    assert (row["kind"], row["probe"]) == (EventKind.NUMA_SCAN, Probe.NUMA_SCAN)
    assert (row["addr"], row["size"]) == (START, 3 * PAGE)
    assert (row["start"], row["cause"]) == (START, Cause.NUMA_BALANCING)
    machine.be(RECORDER)
    assert scanned(machine, vma) == []


def test_a_lazy_mbind_scans_as_well(machine: Machine) -> None:
    mm = machine.mm(watched=True)
    machine.set(machine.task, "task_struct", mm=mm)
    machine.call("mprotect", START, PAGE)
    (row,) = scanned(machine, machine.vma(mm))
    assert row["cause"] == Cause.CALL


@pytest.mark.parametrize("ret", [0, 1])
def test_a_page_that_is_to_be_moved(machine: Machine, ret: int) -> None:
    vma = machine.vma(machine.mm(), vm_flags=TAG)
    machine.enter("numa_move_entry", mapped(machine, 1, 2), vma, 0)
    machine.set(vma, "vm_area_struct", vm_flags=0)
    machine.leave("numa_move_return", ret)
    (row,) = machine.rows
    assert (row["kind"], row["probe"]) == (EventKind.NUMA_MOVE, Probe.NUMA_MIGRATE)
    assert (row["src_node"], row["node"], row["ret"]) == (1, 0, ret)
    assert (row["addr"], row["size"]) == (START + 2 * PAGE, PAGE)
    assert (row["flags_before"], row["flags_after"]) == (TAG, 0)
    assert row["ts_entry"] < row["ts"]
    assert row["cause"] == Cause.NUMA_BALANCING


def test_a_page_that_is_to_go_to_a_cdm_node_is_told_of_anybody(
    machine: Machine,
) -> None:
    (row,) = moving(machine, machine.vma(machine.mm()), mapped(machine, 0), 1)
    assert (row["src_node"], row["node"]) == (0, 1)


def test_a_huge_page_is_one_move(machine: Machine) -> None:
    vma = machine.vma(machine.mm(watched=True))
    page = mapped(machine, 0, flags=1 << NUMBERS["PG_HEAD"])
    (row,) = moving(machine, vma, page, 1)
    assert (row["addr"], row["size"]) == (START, HUGE)


@pytest.mark.parametrize("mapping", [0, 0x1003])
def test_of_a_page_whose_index_does_not_tell_the_address_is_not_known(
    machine: Machine, mapping: int
) -> None:
    vma = machine.vma(machine.mm(watched=True))
    (row,) = moving(machine, vma, machine.page(0, mapping=mapping, index=2), 1)
    assert row["addr"] == 0


def test_the_recorder_can_have_the_page_of_another_moved(machine: Machine) -> None:
    vma = machine.vma(machine.mm(watched=True))
    machine.be(RECORDER)
    assert len(moving(machine, vma, mapped(machine, 1), 0)) == 1
    machine.set(machine.task, "task_struct", mm=machine.vma_mm(vma))
    assert moving(machine, vma, mapped(machine, 1), 0) == []


def merged(
    machine: Machine, vma: int, page: int, kpage: int, ret: int = 0
) -> list[Any]:
    """KSM tries to put kpage in the place of a page; return the rows of that."""
    before = len(machine.rows)
    machine.enter("ksm_merge_entry", vma, page, kpage)
    machine.set(page, "page", flags=0, mapping=0, index=99)
    machine.leave("ksm_merge_return", ret)
    return machine.rows[before:]


@pytest.mark.parametrize(
    ("watched", "flags", "nodes", "told"),
    [
        (True, 0, (0, 0), True),
        (False, TAG, (0, 0), True),
        (False, 0, (1, 0), True),
        (False, 0, (0, 1), True),
        (False, 0, (0, 0), False),
    ],
)
def test_what_has_to_do_with_cdm_is_told_of_ksm(
    machine: Machine, watched: bool, flags: int, nodes: tuple[int, int], told: bool
) -> None:
    vma = machine.vma(machine.mm(watched=watched), vm_flags=flags)
    old, new = (mapped(machine, node) for node in nodes)
    assert len(merged(machine, vma, old, new)) == told


@pytest.mark.parametrize(("mapping", "bit"), [(0x1003, Bit.KSM), (0, 0)])
def test_a_page_that_ksm_has_replaced(machine: Machine, mapping: int, bit: int) -> None:
    """By another, or by the page of zeros."""
    vma = machine.vma(machine.mm())
    kpage = machine.page(1, mapping=mapping)
    (row,) = merged(machine, vma, mapped(machine, 0, 2), kpage)
    assert (row["kind"], row["probe"]) == (EventKind.KSM_PAGE, Probe.KSM_MERGE)
    assert (row["src_node"], row["node"]) == (0, 1)
    assert (row["addr"], row["size"]) == (START + 2 * PAGE, PAGE)
    assert (row["cause"], row["bits"]) == (Cause.KSM, bit | Bit.FOREIGN)


def test_what_ksm_has_not_replaced_is_not_told(machine: Machine) -> None:
    vma = machine.vma(machine.mm(watched=True))
    page, other = mapped(machine, 1), mapped(machine, 1)
    assert merged(machine, vma, page, 0) == []
    assert merged(machine, vma, page, page) == []
    assert merged(machine, vma, page, other, ret=(1 << 64) - EFAULT) == []
    machine.be(RECORDER)
    assert merged(machine, vma, page, other) == []


# --- what a migration does to flags ---------------------------------------------


def remigrating(machine: Machine, vma: int, old: int, new: int) -> None:
    """An entry gets its page back: it was on node old, and is on node new."""
    pages = machine.page(new), machine.page(old)
    machine.enter("remigrate_entry", pages[0], vma, START, pages[1])


@pytest.mark.parametrize(("old", "new"), [(0, 1), (1, 0), (1, 1)])
def test_flags_that_a_migration_has_changed(
    machine: Machine, old: int, new: int
) -> None:
    vma = machine.vma(machine.mm(), vm_flags=TAG | 3)
    remigrating(machine, vma, old, new)
    machine.set(vma, "vm_area_struct", vm_flags=3)
    machine.leave("remigrate_return")
    (row,) = machine.rows
    assert (row["kind"], row["probe"]) == (EventKind.FLAGS, Probe.REMOVE_MIGRATION_PTE)
    assert (row["flags_before"], row["flags_after"]) == (TAG | 3, 3)
    assert (row["addr"], row["size"]) == (START, PAGE)
    assert (row["start"], row["end"]) == (START, START + PAGE)
    assert row["lock_entry"] == row["lock_exit"] == Lock.NONE
    assert row["ts_entry"] < row["ts"]


@pytest.mark.parametrize("given_back", [False, True])
def test_locks_of_a_migration_are_those_of_its_ends(
    machine: Machine, given_back: bool
) -> None:
    """Who gives his back while room is taken may have changed the flags before."""
    mm = machine.mm()
    vma = machine.vma(mm, vm_flags=TAG)
    sem = NUMBERS["OFF_mm_struct_mmap_lock"]
    count, owner = (NUMBERS[f"OFF_rw_semaphore_{x}"] for x in ("count", "owner"))
    remigrating(machine, vma, 1, 0)
    machine.write(mm + sem + count, 1)
    machine.write(mm + sem + owner, machine.words())
    if given_back:
        machine.clear_meanwhile(mm + sem + count)
    machine.set(vma, "vm_area_struct", vm_flags=0)
    machine.leave("remigrate_return")
    (row,) = machine.rows
    assert (row["lock_entry"], row["lock_exit"]) == (Lock.NONE, Lock.WRITE_OTHER)


def test_of_a_migration_that_changes_no_flags_nothing_is_told(machine: Machine) -> None:
    remigrating(machine, machine.vma(machine.mm(), vm_flags=TAG), 1, 0)
    machine.leave("remigrate_return")
    assert machine.rows == []


def test_pages_that_are_not_followed_tell_of_no_flags(machine: Machine) -> None:
    vma = machine.vma(machine.mm(watched=True), vm_flags=TAG)
    remigrating(machine, vma, 0, 0)
    machine.set(vma, "vm_area_struct", vm_flags=0)
    machine.leave("remigrate_return")
    assert machine.rows == []


@pytest.mark.parametrize("told", [True, False])
def test_a_migration_whose_return_was_missed_is_not_the_next_one(
    machine: Machine, told: bool
) -> None:
    """Its VMA may be gone, and another one where it was."""
    vma = machine.vma(machine.mm(), vm_flags=TAG)
    remigrating(machine, vma, 1, 0)
    machine.set(vma, "vm_area_struct", vm_flags=0)
    remigrating(machine, machine.vma(machine.mm()), int(told), 0)
    machine.leave("remigrate_return")
    assert machine.rows == []


# --- an mbind() that fails ------------------------------------------------------


class Range:
    """One VMA of a range that mbind() is called for, in an address space of its own."""

    def __init__(self, machine: Machine, asked: int = CDM) -> None:
        self.machine = machine
        self.mm = machine.mm()
        self.vma = machine.vma(self.mm)
        machine.set(self.vma, "vm_area_struct", vm_end=START + 3 * PAGE)
        arguments = START + PAGE, START + 2 * PAGE, machine.policy(BIND, asked)
        kept = machine.words()
        machine.enter("mbind_range_entry", 0, self.vma, kept, *arguments)

    def merge(self, found: int, *, seen: bool = True) -> None:
        """It asks for a merge; found: what it has become part of, or 0."""
        ends = START + PAGE, START + 2 * PAGE
        self.machine.enter("merge_entry", self.mm, 0, *ends, 0)
        if seen:
            self.machine.leave("merge_return", found)

    def fail(self) -> Any:
        """It fails when it has split off what lies before; return its row."""
        start = {"vm_start": START + PAGE}
        self.machine.set(self.vma, "vm_area_struct", vm_flags=TAG, **start)
        self.machine.leave("mbind_range_return", (1 << 64) - ENOMEM)
        row = self.machine.rows[-1]
        assert (row["kind"], row["ret"]) == (EventKind.POLICY, -ENOMEM)
        assert (row["addr"], row["size"]) == (START + PAGE, PAGE)
        return row


@pytest.mark.parametrize("asked", [CDM, 1])
def test_what_has_not_merged_is_told_as_a_failure_leaves_it(
    machine: Machine, asked: int
) -> None:
    """Also where nobody knew that the mm is worth watching when it tried to merge."""
    attempt = Range(machine, asked)
    attempt.merge(0)
    row = attempt.fail()
    assert not row["bits"] & Bit.VMA_UNREAD
    assert row["vma"] == machine.id(attempt.vma) >> 32
    assert (row["start"], row["end"]) == (START + PAGE, START + 3 * PAGE)
    assert (row["flags_before"], row["flags_after"]) == (0, TAG)
    assert (row["policy"], row["other_policy"]) == (DEFAULT, DEFAULT)


@pytest.mark.parametrize("seen", [True, False])
def test_what_may_have_merged_is_not_read(machine: Machine, seen: bool) -> None:
    attempt = Range(machine)
    attempt.merge(machine.vma(attempt.mm), seen=seen)
    row = attempt.fail()
    assert row["bits"] & Bit.VMA_UNREAD
    assert row["policy"] == POLICY_UNREAD


def test_a_merge_in_an_mbind_before_is_not_that_of_the_next(machine: Machine) -> None:
    """The return of the one before was missed."""
    Range(machine).merge(0)
    row = Range(machine).fail()
    assert row["bits"] & Bit.VMA_UNREAD


# --- the end of an mm -----------------------------------------------------------


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


@pytest.mark.parametrize("everything", [0, 1])
@pytest.mark.parametrize("only", [0, 1])
def test_the_end_of_what_was_told_of_is_told_whoever_it_is_that_ends_it(
    boot: Callable[..., Machine], everything: int, only: int
) -> None:
    machine = boot(ALL=everything, FOLLOW_CGROUP=only)
    mm, other = machine.mm(), machine.mm()
    machine.live_in(mm)
    machine.join_cgroup(True)
    machine.enter("rmap_add_new_anon", machine.page(1), machine.vma(mm), START)
    machine.be(TASK + 1)
    assert ended(machine, mm) == [machine.id(mm)]
    # Everything, and of everybody.
    assert bool(ended(machine, other)) is bool(everything and not only)


def test_an_mm_without_a_vma_ends_when_the_function_returns(machine: Machine) -> None:
    mm = machine.mm(watched=True)
    machine.enter("exit_entry", mm)
    machine.leave("exit_return")
    assert [row["kind"] for row in machine.rows] == [EventKind.MM_EXIT]


def test_if_that_return_is_missed_no_other_unmapping_ends_it(machine: Machine) -> None:
    machine.enter("exit_entry", machine.mm(watched=True))
    gather = machine.words()
    machine.enter("exit_unmaps", gather, 0, machine.vma(machine.mm(watched=True)))
    machine.enter("exit_unmapped", gather)
    assert machine.waiting == 1
    assert machine.rows == []


def test_an_mm_ends_once(boot: Callable[..., Machine]) -> None:
    machine = boot(ALL=1, FOLLOW_CGROUP=1)
    mm = machine.mm()
    machine.live_in(mm)
    machine.join_cgroup(True)
    machine.enter("rmap_add_new_anon", machine.page(1), machine.vma(mm), START)
    assert ended(machine, mm) == [machine.id(mm)]
    # Another one lies where it lay.
    assert ended(machine, mm) == []


# --- a cpuset's loop over VMAs --------------------------------------------------


def looping(machine: Machine, mm: int, vma: int, *above: int) -> int:
    """Return a stack on which a loop has come to a VMA, behind these words."""
    words = NUMBERS["OFF_maple_range_64_slot"] // 8 + 3
    node = (machine.words(room=512) + 255) & ~255
    machine.write(node + 8 * words, vma)
    state = [0] * 4
    for member, value in (("tree", mm), ("node", node | 0x1E), ("offset", 3)):
        state[NUMBERS[f"OFF_ma_state_{member}"] // 8] = value
    return machine.words(*above, *state)


@pytest.mark.parametrize("above", [(), ("mm",), ("mm", "mm", "stray", "mm")])
def test_the_mm_on_the_stack_is_not_the_loop_s_place(
    machine: Machine, above: tuple[str, ...]
) -> None:
    mm = machine.mm()
    policy = machine.policy(BIND, CDM)
    vma = machine.vma(mm, vm_policy=policy)
    stray = machine.vma(machine.mm(), vm_policy=policy)
    words = {"mm": mm, "stray": stray}
    sp = looping(machine, mm, vma, 23, *(words[name] for name in above), 7)
    machine.enter("rebind_entry", mm, 0)
    machine.enter("rebind_next", policy, 0, sp=sp)
    machine.set(policy, "mempolicy", nodes=1)
    machine.leave("rebind_return")
    assert machine.unread(Probe.MPOL_REBIND) == 0
    (row,) = machine.rows
    assert (row["start"], row["other"], row["nodes"]) == (START, CDM, 1)


def test_a_loop_that_is_not_found_is_told(machine: Machine) -> None:
    mm, policy = machine.mm(), machine.policy(BIND, CDM)
    sp = looping(machine, mm, machine.vma(machine.mm(), vm_policy=policy))
    machine.enter("rebind_entry", mm, 0)
    machine.enter("rebind_next", policy, 0, sp=sp)
    assert machine.unread(Probe.MPOL_REBIND) == 1


# --- whose policy it is ---------------------------------------------------------


@pytest.mark.parametrize("own", [DEFAULT, BIND])
@pytest.mark.parametrize(
    ("file", "told", "of_task"),
    [
        # Without get_policy(), there is nobody to ask.
        (None, None, False),
        ((BIND, 1), (BIND | MpolFlag.SHARED, 1), False),
        ((DEFAULT, 0), None, True),
    ],
)
def test_whose_policy_an_allocation_is_by(
    machine: Machine,
    own: int,
    file: tuple[int, int] | None,
    told: tuple[int, int] | None,
    of_task: bool,
) -> None:
    mode, nodes = own, CDM if own else 0
    task = machine.policy(PREFERRED, 1)
    machine.set(machine.task, "task_struct", mempolicy=task)
    policy = machine.policy(own, nodes) if own else 0
    vma = machine.vma(machine.mm(), vm_policy=policy)
    machine.enter("alloc_entry", 0, 0, vma, START)
    if file:
        shared = machine.policy(*file) if file[0] else 0
        machine.set(shared, "mempolicy", flags=1) if shared else None
        machine.leave("shared_policy_return", shared)
    machine.leave("alloc_return", machine.page(1))
    (row,) = machine.rows
    assert (row["policy"], row["nodes"]) == (told or (mode, nodes))
    by_task = of_task or (own == DEFAULT and not told)
    expected = (PREFERRED, 1) if by_task else (POLICY_UNREAD, 0)
    assert (row["other_policy"], row["other"]) == expected


# --- system calls ---------------------------------------------------------------


@pytest.mark.parametrize("name", ["mprotect", "pkey_mprotect"])
def test_a_protection_s_change_is_told_once(machine: Machine, name: str) -> None:
    """mprotect_fixup() calls perf_event_mmap(): no VMA is new, or has grown."""
    mm = machine.mm(watched=True)
    machine.set(machine.task, "task_struct", mm=mm)
    machine.call(name, START, PAGE, 1, 5)
    machine.enter("vma_new", machine.vma(mm))
    assert machine.rows == []
    machine.call_ends(0)
    (row,) = machine.rows
    assert (row["kind"], row["probe"]) == (EventKind.CALL, Probe.SYS_MPROTECT)
    assert (row["addr"], row["size"], row["arg"]) == (START, PAGE, 1)


# --- room in the ring -------------------------------------------------------------

RING_BYTES = bpfnumbers.NUMBERS["RING_PAGES"] * PAGE


def allocate(machine: Machine, vma: int, flags: int | None = None) -> None:
    """A page of the CDM node is allocated, and vm_flags become others meanwhile."""
    machine.enter("alloc_entry", 0, 0, vma, START)
    if flags is not None:
        machine.set(vma, "vm_area_struct", vm_flags=flags)
    machine.leave("alloc_return", machine.page(1))


@pytest.mark.parametrize(
    ("used", "told"), [(RING_BYTES // 4 * 3 - 1, True), (RING_BYTES // 4 * 3, False)]
)
def test_pages_leave_the_last_quarter_of_the_ring_alone(
    machine: Machine, used: int, told: bool
) -> None:
    vma = machine.vma(machine.mm())
    machine.fill(used)
    allocate(machine, vma)
    machine.enter("rmap_add_new_anon", mapped(machine, 1), vma, START)
    machine.enter("rmap_remove", mapped(machine, 1), vma)
    probes = [Probe.ALLOC, Probe.RMAP_ADD, Probe.RMAP_REMOVE]
    assert [row["probe"] for row in machine.rows] == (probes if told else [])
    assert [machine.full(probe) for probe in probes] == [0 if told else 1] * 3


def test_what_changes_a_vma_finds_room_in_it(machine: Machine) -> None:
    mm = machine.mm(watched=True)
    machine.set(machine.task, "task_struct", mm=mm)
    vma = machine.vma(mm)
    machine.fill(RING_BYTES - PAGE)
    allocate(machine, vma, TAG)
    machine.call("mprotect", START, PAGE, 1)
    machine.enter("mprotect_entry", 0, vma, machine.words(vma), START, START + PAGE)
    machine.set(vma, "vm_area_struct", vm_flags=0)
    machine.leave("mprotect_return")
    machine.call_ends(0)
    kinds = [EventKind.ALLOC, EventKind.FLAGS, EventKind.CALL]
    assert [row["kind"] for row in machine.rows] == kinds
    assert machine.full(Probe.ALLOC) == 0


@pytest.mark.parametrize(
    ("used", "woken"),
    [
        (0, False),
        (RING_BYTES // 4 - 1, False),
        (RING_BYTES // 4, True),
        (RING_BYTES // 4 + 63 * EVENT_DTYPE.itemsize, True),
        (RING_BYTES // 4 + 64 * EVENT_DTYPE.itemsize, False),
    ],
)
def test_whoever_drains_is_woken_at_a_quarter(
    machine: Machine, used: int, woken: bool
) -> None:
    """And not for each event after that: he is awake, or looks again by himself."""
    vma = machine.vma(machine.mm())
    machine.fill(used)
    allocate(machine, vma)
    assert machine.woken[-1] is woken


# --- filters --------------------------------------------------------------------


def faults(machine: Machine, mm: int, **members: int) -> int:
    """Return how many rows a fault on the CDM node leaves, in a VMA of this mm."""
    before = len(machine.rows)
    vma = machine.vma(mm, **members)
    machine.enter("rmap_add_new_anon", machine.page(1), vma, START)
    return len(machine.rows) - before


def acts(machine: Machine, pid: int, mm: int) -> int:
    """Return how many rows a fault of a process in its own mm leaves."""
    machine.be(pid)
    machine.live_in(mm)
    return faults(machine, mm)


def new_task(machine: Machine, parent: int, tgid: int, pid: int = 0) -> None:
    machine.be(parent)
    machine.enter("task_new", machine.struct("task_struct", tgid=tgid, pid=pid or tgid))


def test_a_child_is_followed_and_a_sibling_is_not(boot: Callable[..., Machine]) -> None:
    machine = boot(FOLLOW_PIDS=1)
    machine.follow(TASK)
    machine.enable(False)
    # They are made before recording begins, too.
    new_task(machine, TASK, 72)
    new_task(machine, 72, 73)
    new_task(machine, 80, 81)
    machine.enable(True)
    followed = {pid: acts(machine, pid, machine.mm()) for pid in (TASK, 72, 73, 80, 81)}
    assert followed == {TASK: 1, 72: 1, 73: 1, 80: 0, 81: 0}


def test_a_number_that_is_given_anew_is_another_process(
    boot: Callable[..., Machine],
) -> None:
    """Not when a thread ends, which had a number of its own."""
    machine = boot(FOLLOW_PIDS=1)
    machine.follow(TASK)
    new_task(machine, TASK, 72)
    thread = machine.struct("task_struct", tgid=72, pid=79)
    machine.enter("task_gone", thread)
    assert acts(machine, 72, machine.mm()) == 1
    machine.enter("task_gone", machine.struct("task_struct", tgid=72, pid=72))
    assert acts(machine, 72, machine.mm()) == 0


def test_a_thread_s_number_is_no_process_s(boot: Callable[..., Machine]) -> None:
    machine = boot(FOLLOW_PIDS=1)
    machine.follow(TASK)
    new_task(machine, TASK, TASK, pid=79)
    assert acts(machine, 79, machine.mm()) == 0


def test_whoever_acts_in_a_followed_address_space_is_told(
    boot: Callable[..., Machine],
) -> None:
    machine = boot(FOLLOW_PIDS=1)
    machine.follow(TASK)
    mm, other = machine.mm(), machine.mm()
    machine.be(80)
    machine.live_in(other)
    assert faults(machine, mm) == 0
    assert acts(machine, TASK, mm) == 1
    # What the named one does to others is theirs.
    assert faults(machine, other) == 0
    machine.be(80)
    machine.live_in(other)
    assert (faults(machine, mm), faults(machine, other)) == (1, 0)
    # A kernel thread has none of its own.
    machine.live_in(0)
    assert (faults(machine, mm), faults(machine, other)) == (1, 0)


def test_it_is_followed_to_its_end_and_no_further(boot: Callable[..., Machine]) -> None:
    machine = boot(FOLLOW_PIDS=1)
    machine.follow(TASK)
    mm = machine.mm()
    assert acts(machine, TASK, mm) == 1
    machine.be(80)
    assert ended(machine, mm) == [machine.id(mm)]
    # Another one lies where it lay.
    assert acts(machine, 80, mm) == 0


def test_exec_s_arguments_are_told(boot: Callable[..., Machine]) -> None:
    """They come into an mm that is not the task's yet; a stranger's is not either."""
    machine = boot(FOLLOW_PIDS=1)
    machine.follow(TASK)
    machine.be(TASK)
    machine.live_in(machine.mm())
    new = machine.mm()
    assert faults(machine, new) == 0
    for flags, told in ((0x8000, 0), (0x10000, 0), (0x18000, 1), (0, 1)):
        assert faults(machine, new, vm_flags=flags) == told
    machine.be(80)
    assert faults(machine, machine.mm(), vm_flags=0x18000) == 0


# Each set of numbers is a program to compile: what goes together is in one.
ALONE: Final = {"FOLLOW_PIDS": 1, "FOLLOW_CHILDREN": 0, "STACKS": 0}


@pytest.mark.parametrize("children", [0, 1])
def test_a_fork_with_and_without_children(
    boot: Callable[..., Machine], children: int
) -> None:
    """The child's address space is one from the beginning, before it has acted."""
    machine = boot(FOLLOW_PIDS=1) if children else boot(**ALONE)
    machine.follow(TASK)
    mm, child = machine.mm(), machine.mm()
    assert acts(machine, TASK, mm) == 1
    machine.enter("copy_entry", machine.vma(child), machine.vma(mm))
    machine.leave("copy_return")
    copies = [row for row in machine.rows if row["kind"] == EventKind.COPY]
    assert len(copies) == children
    machine.be(80)
    assert faults(machine, child) == children


def test_a_stranger_s_call_is_told_if_it_moves_what_is_followed(
    boot: Callable[..., Machine],
) -> None:
    machine = boot(FOLLOW_PIDS=1)
    machine.follow(TASK)
    mm, other = machine.mm(), machine.mm(watched=True)
    assert acts(machine, TASK, mm) == 1
    machine.be(80)
    machine.live_in(other)
    for about, told in ((other, 0), (mm, 1)):
        before = len(machine.rows)
        machine.call("move_pages", TASK, 1)
        machine.enter("migrate_entry", 0, 0, 0, 0, 0, 3)
        assert faults(machine, about) == told
        machine.leave("migrate_return")
        machine.call_ends(0)
        rows = machine.rows[before:]
        kinds = [EventKind.MIGRATE, EventKind.CALL] if told else []
        assert [row["kind"] for row in rows] == kinds
        assert {int(row["call"]) for row in rows} <= {int(r["call"]) for r in rows} - {
            0
        }
    # Of what he does to himself nothing is told.
    machine.call("mmap", 0, PAGE)
    machine.call_ends(START)
    assert machine.rows[-1]["probe"] == Probe.SYS_MOVE_PAGES


ALL_KINDS: Final = Filters(
    pids=(72,), cgroup=Path("/x"), comm="fifteen_letters"
).numbers()


@pytest.mark.parametrize(
    ("comm", "told"),
    [
        (b"fifteen_letters", 1),
        (b"fifteen_letter", 0),
        (b"fifteen_letterz", 0),
        (b"", 0),
    ],
)
def test_a_name_is_compared_to_its_end(
    boot: Callable[..., Machine], comm: bytes, told: int
) -> None:
    machine = boot(**ALL_KINDS)
    machine.follow(80)
    machine.join_cgroup(True)
    machine.name(comm)
    assert acts(machine, 80, machine.mm()) == told


def test_filters_of_several_kinds_hold_together(boot: Callable[..., Machine]) -> None:
    machine = boot(**ALL_KINDS)
    machine.follow(72)
    told = set()
    for pid in (72, 80):
        for group in (False, True):
            for comm in (b"fifteen_letters", b"other"):
                machine.join_cgroup(group)
                machine.name(comm)
                if acts(machine, pid, machine.mm()):
                    told.add((pid, group, comm))
    assert told == {(72, True, b"fifteen_letters")}


def test_the_recorder_is_not_followed(boot: Callable[..., Machine]) -> None:
    machine = boot(ALL=1, FOLLOW_CGROUP=1)
    machine.join_cgroup(True)
    assert acts(machine, RECORDER, machine.mm()) == 0


RANGED: Final = {
    "ADDR_START": START + 2 * PAGE,
    "ADDR_END": START + 5 * PAGE,
    "STACKS": 1,
}


@pytest.fixture
def ranged(boot: Callable[..., Machine]) -> Machine:
    return boot(**RANGED)


def test_pages_outside_of_the_range_are_left_out(ranged: Machine) -> None:
    vma = ranged.vma(ranged.mm(), vm_end=START + 9 * PAGE)
    for page in range(9):
        ranged.enter("rmap_add_new_anon", ranged.page(1), vma, START + page * PAGE)
    inside = [START + page * PAGE for page in range(2, 5)]
    assert [row["addr"] for row in ranged.rows] == inside
    for page in range(9):
        there = ranged.page(1, mapping=8 | 1, index=page)
        ranged.enter("rmap_remove", there, vma, 0)
    assert [
        row["addr"] for row in ranged.rows if row["kind"] == EventKind.UNMAP
    ] == inside


def test_a_huge_page_that_reaches_into_the_range_is_told(ranged: Machine) -> None:
    vma = ranged.vma(ranged.mm(), vm_end=START + 9 * HUGE)
    head = 1 << NUMBERS["PG_HEAD"]
    for at in (START, START + HUGE):
        ranged.enter("rmap_add_new_anon", ranged.page(1, flags=head), vma, at)
    assert [(row["addr"], row["size"]) for row in ranged.rows] == [(START, HUGE)]


@pytest.mark.parametrize(
    ("first", "last", "told"), [(0, 2, 0), (0, 3, 1), (4, 9, 1), (5, 9, 0), (0, 9, 1)]
)
def test_vmas_outside_of_the_range_are_left_out(
    ranged: Machine, first: int, last: int, told: int
) -> None:
    mm = ranged.mm(watched=True)
    start, end = START + first * PAGE, START + last * PAGE
    vma = ranged.vma(mm, start, vm_end=end, vm_policy=ranged.policy(BIND, CDM))
    kept = ranged.words(vma)
    ranged.enter("mbind_range_entry", 0, vma, kept, start, end, 0)
    ranged.leave("mbind_range_return")
    ranged.enter("unmap_entry", 0, 0, vma, start, end)
    ranged.leave("unmap_return")
    ranged.enter("split_entry", mm, vma, start + PAGE)
    ranged.leave("split_return")
    ranged.enter("vma_new", vma)
    ranged.enter("numa_scan", vma, start, end)
    ranged.enter("merge_entry", mm, 0, start, end, 0)
    ranged.leave("merge_return", vma)
    kinds = [EventKind(row["kind"]) for row in ranged.rows]
    assert kinds == told * [
        *(EventKind.VMA_SEEN, EventKind.POLICY, EventKind.VMA_FREE),
        *(EventKind.VMA_SPLIT, EventKind.VMA_NEW, EventKind.NUMA_SCAN),
        EventKind.VMA_MERGE,
    ]


@pytest.mark.parametrize(
    ("old", "new", "told"), [(0, 9, 0), (1, 9, 1), (9, 4, 1), (9, 5, 0)]
)
def test_a_move_into_the_range_or_out_of_it_is_told(
    ranged: Machine, old: int, new: int, told: int
) -> None:
    mm = ranged.mm(watched=True)
    vma = ranged.vma(mm, vm_end=START + 20 * PAGE)
    at, to = START + old * PAGE, START + new * PAGE
    ranged.enter("move_entry", vma, at, vma, to, 2 * PAGE)
    ranged.leave("move_return", 2 * PAGE)
    assert len(ranged.rows) == told


@pytest.mark.parametrize("page", [1, 2, 4, 5])
def test_an_allocation_for_a_file_is_where_its_fault_is(
    ranged: Machine, page: int
) -> None:
    """The VMA that it is for stands on the stack, and has no addresses."""
    mm = ranged.mm(watched=True)
    vma = ranged.vma(mm, vm_end=START + 9 * PAGE)
    fault = ranged.struct("vm_fault", vma=vma, address=START + page * PAGE)
    ranged.enter("shmem_begin", fault)
    pseudo = ranged.struct("vm_area_struct")
    ranged.enter("alloc_entry", 0, 0, pseudo, 0)
    ranged.leave("alloc_return", ranged.page(1))
    assert [row["addr"] for row in ranged.rows] == (
        [START + page * PAGE] if 2 <= page < 5 else []
    )


def test_a_fault_outside_of_the_range_that_changes_flags_is_told(
    ranged: Machine,
) -> None:
    mm = ranged.mm(watched=True)
    vma = ranged.vma(mm, vm_end=START + 9 * PAGE)
    for flags in (0, TAG, TAG):
        ranged.enter("alloc_entry", 0, 0, vma, START)
        ranged.set(vma, "vm_area_struct", vm_flags=flags)
        ranged.leave("alloc_return", ranged.page(1))
    (row,) = ranged.rows
    assert (row["flags_before"], row["flags_after"]) == (0, TAG)


@pytest.mark.parametrize(
    ("numbers", "expected"), [({}, 2), (RANGED, 1), (ALONE, 0)], ids=["all", "1", "0"]
)
def test_of_what_stacks_are_taken(
    boot: Callable[..., Machine], numbers: dict[str, int], expected: int
) -> None:
    """An arrival has one, and an allocation that changes flags."""
    machine = boot(**numbers)
    mm, at = machine.mm(), START + 2 * PAGE
    if numbers is ALONE:
        machine.follow(TASK)
    machine.live_in(mm)
    vma = machine.vma(mm, at)
    machine.enter("rmap_add_new_anon", machine.page(1), vma, at)
    machine.enter("alloc_entry", 0, 0, vma, at)
    machine.set(vma, "vm_area_struct", vm_flags=TAG)
    machine.leave("alloc_return", machine.page(1))
    assert len(machine.rows) == 2
    assert machine.stacks == expected


def test_what_was_looked_at_is_followed(boot: Callable[..., Machine]) -> None:
    """Before its own process has done anything."""
    machine = boot(FOLLOW_PIDS=1)
    mm, other = machine.mm(), machine.mm()
    machine.be(RECORDER)
    machine.enter("snapshot_entry", machine.struct("seq_file"), machine.vma(mm))
    machine.leave("snapshot_return")
    machine.be(80)
    assert (faults(machine, mm), faults(machine, other)) == (1, 0)


def test_pages_that_services_move_are_where_they_are(ranged: Machine) -> None:
    """One of which that is not known is told."""
    vma = ranged.vma(ranged.mm(watched=True), vm_end=START + 9 * PAGE)
    for page in range(9):
        there = ranged.page(1, mapping=8 | 1, index=page)
        ranged.enter("numa_move_entry", there, vma, 0)
        ranged.leave("numa_move_return", 1)
        ranged.enter("ksm_merge_entry", vma, there, ranged.page(0))
        ranged.leave("ksm_merge_return")
    told = [START + page * PAGE for page in range(2, 5) for _ in range(2)]
    assert [row["addr"] for row in ranged.rows] == told
    ranged.enter("numa_move_entry", ranged.page(1, mapping=8 | 3), vma, 0)
    ranged.leave("numa_move_return", 1)
    assert ranged.rows[-1]["addr"] == 0


@pytest.mark.parametrize(("first", "last", "told"), [(0, 2, 0), (4, 6, 1), (5, 9, 0)])
def test_a_look_at_what_lies_outside_of_the_range(
    ranged: Machine, first: int, last: int, told: int
) -> None:
    mm = ranged.mm(watched=True)
    vma = ranged.vma(mm, START + first * PAGE, vm_end=START + last * PAGE)
    ranged.be(RECORDER)
    ranged.enter("snapshot_entry", ranged.struct("seq_file"), vma)
    ranged.leave("snapshot_return")
    assert len(ranged.rows) == told


# --- watchpoints ----------------------------------------------------------------

AT = NUMBERS["OFF_vm_area_struct_vm_flags"]
FLAGS = 0x73
PF_KTHREAD = 0x00200000
GENERAL, REGISTERS = 15, 21
"""Words of a struct pt_regs: registers for all purposes, and all."""


class Watching:
    """A machine on which the recorder watches the VMA at START by watchpoint 2."""

    def __init__(self, machine: Machine) -> None:
        self.machine, self.library = machine, machine._library
        self.library.watchpoint_of.restype = ctypes.POINTER(ctypes.c_uint64 * 8)
        self.library.found_vma.restype = ctypes.c_uint64
        self.mm = machine.mm()
        machine.set(machine.task, "task_struct", mm=self.mm)
        self.vma = machine.vma(self.mm, vm_flags=FLAGS)

    def ask(self, vma: int) -> None:
        self.library.set_asked(2, ctypes.c_uint64(START), ctypes.c_uint64(vma))

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
        self.library.watch_hit(ctypes.c_void_p(context))

    def free(self, vma: int = 0) -> None:
        self.machine.enter("watch_free", vma or self.vma)

    @property
    def found(self) -> int:
        return int(self.library.found_vma(2))

    def counter(self, place: int) -> int:
        return int(self.library.watchpoint_of(2).contents[place])

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
    point = ctypes.addressof(watching.library.watchpoint_of(2).contents)
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
def test_a_write_of_the_same_value_comes_from_an_address_near_it(
    watching: Watching, register: int
) -> None:
    watching.arm()
    watching.hit(register=register)
    watching.hit(near=watching.vma + AT + 256, register=register)
    assert watching.writes == [(FLAGS, FLAGS)] * 2
    watching.hit(near=watching.vma + AT + 512, register=register)
    watching.hit(near=watching.vma + AT - 513, register=register)
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
    lost = int(machine._library.count_missing(int(Probe.WATCHPOINT), int(Lost.RING)))
    assert len(told) + lost == watching.hits == 600
    assert lost > 0
