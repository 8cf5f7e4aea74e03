"""Migrations: their causes, where from and where to, and pages that come back."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
from simfile import save
from simkernel import HUGE, PAGE, Region, SimKernel, Task

from cdmtrace.analysis import aggregate, load
from cdmtrace.events import Cause, EventKind, Probe

SYSCALL = 3
"""MR_SYSCALL, the kernel's reason for what is not of its own accord."""
MATRIX, TO_AND_FRO = "Migrations", "Pages that move to and fro"


@pytest.fixture
def kernel() -> SimKernel:
    return SimKernel()


@pytest.fixture
def task(kernel: SimKernel) -> Task:
    return kernel.process()


def moved(
    task: Task, vma: Region, number: int, source: int, node: int, **columns: object
) -> None:
    """Page number of the VMA has come from one node to another."""
    place = {"size": PAGE, "start": vma.start, "end": vma.end}
    columns = {**place, "arg": SYSCALL, **columns}
    task.row(
        EventKind.MIGRATE,
        addr=vma.page(number),
        src_node=source,
        node=node,
        **columns,
    )


def tour(task: Task, vma: Region, number: int, *nodes: int, **columns: object) -> None:
    """Page number of the VMA is moved from each of the nodes to the next one."""
    for source, node in pairwise(nodes):
        moved(task, vma, number, source, node, **columns)


def rows(kernel: SimKernel, table: str) -> list[dict[str, object]]:
    return aggregate.report(kernel.trace())[table]


def causes(kernel: SimKernel) -> list[str]:
    return [str(row["cause"]) for row in rows(kernel, MATRIX)]


# --- the matrix -----------------------------------------------------------------


def test_the_matrix_has_cause_and_both_nodes_by_process(
    kernel: SimKernel, task: Task
) -> None:
    vma, other = task.mmap(23), kernel.process("other")
    since = task.begin()
    for number in range(23):
        moved(task, vma, number, 0, 1)
    task.end(Probe.SYS_MOVE_PAGES, since, always=True)
    since = other.begin()
    for number in range(7):
        moved(task, vma, number, 1, 0)
        moved(other, vma, number, 0, 2)
    other.end(Probe.SYS_MBIND, since, always=True)
    for number in range(3):
        moved(task, vma, number, 1, 0, cause=Cause.COMPACTION)
    everything = rows(kernel, MATRIX)
    assert everything[0] == {
        "pid": task.pid,
        "comm": "story",
        "cause": "move_pages",
        "from": 0,
        "to": 1,
        "pages": 23,
        "bytes": 23 * PAGE,
    }
    assert [tuple(row.values())[:-1] for row in everything[1:]] == [
        (task.pid, "story", "migration", 1, 0, 7),
        (other.pid, "other", "mbind", 0, 2, 7),
        (task.pid, "story", "compaction", 1, 0, 3),
    ]


def test_a_call_is_known_by_task_and_number(kernel: SimKernel, task: Task) -> None:
    """Two tasks may be in calls of the same number."""
    vma, other = task.mmap(1), kernel.process()
    for who, probe in ((task, Probe.SYS_MBIND), (other, Probe.SYS_MIGRATE_PAGES)):
        who.call = 5
        moved(who, vma, 0, 0, 1)
        who.end(probe, 0, always=True)
    assert causes(kernel) == ["mbind", "migrate_pages"]


def test_a_call_that_has_not_returned_is_named_too(
    kernel: SimKernel, task: Task
) -> None:
    vma = task.mmap(1)
    task.begin()
    moved(task, vma, 0, 0, 1)
    task.row(EventKind.CALL_OPEN, probe=Probe.SYS_MIGRATE_PAGES)
    assert causes(kernel) == ["migrate_pages"]


@pytest.mark.parametrize(
    ("cause", "told"),
    [
        (Cause.COMPACTION, "compaction"),
        (Cause.HOTPLUG, "hotplug"),
        (Cause.NUMA_BALANCING, "numa-balancing"),
        (Cause.RECLAIM, "demotion"),
        (Cause.KHUGEPAGED, "khugepaged"),
        (Cause.KSM, "ksm"),
        (Cause.DRIVER, "driver"),
    ],
)
def test_without_a_call_the_stack_tells(
    kernel: SimKernel, task: Task, cause: Cause, told: str
) -> None:
    moved(task, task.mmap(1), 0, 1, 0, cause=cause, arg=5)
    assert causes(kernel) == [told]


def test_a_call_that_asks_for_no_page_is_no_cause(
    kernel: SimKernel, task: Task
) -> None:
    vma = task.mmap(1)
    since = task.begin()
    moved(task, vma, 0, 1, 0, cause=Cause.COMPACTION)
    task.end(Probe.SYS_MADVISE, since, always=True)
    assert causes(kernel) == ["compaction"]


@pytest.mark.parametrize(
    ("reason", "told"),
    [
        (0, "compaction (reason)"),
        (2, "hotplug (reason)"),
        (5, "numa-balancing (reason)"),
        (8, "demotion (reason)"),
        (3, "migration"),
        (99, "migration"),
    ],
)
def test_the_kernels_own_reason_is_marked(
    kernel: SimKernel, task: Task, reason: int, told: str
) -> None:
    moved(task, task.mmap(1), 0, 1, 0, arg=reason)
    assert causes(kernel) == [told]


def test_a_node_that_is_not_known_is_none(kernel: SimKernel, task: Task) -> None:
    moved(task, task.mmap(1), 0, -1, 1)
    assert [(row["from"], row["to"]) for row in rows(kernel, MATRIX)] == [(None, 1)]


def test_a_huge_page_counts_all_its_pages(kernel: SimKernel, task: Task) -> None:
    vma = task.mmap(HUGE // PAGE, at=0x200000000000)
    tour(task, vma, 0, 0, 1, 0, size=HUGE)
    assert [row["pages"] for row in rows(kernel, MATRIX)] == [512, 512]
    (row,) = rows(kernel, TO_AND_FRO)
    assert (row["pages"], row["moves"], row["most"]) == (512, 1024, 2)


def test_a_row_of_a_kernel_thread_goes_to_the_process_whose_page_it_is(
    kernel: SimKernel, task: Task
) -> None:
    vma, daemon = task.mmap(1), kernel.process("kcompactd0")
    columns = {"start": vma.start, "end": vma.end, "cause": Cause.COMPACTION}
    daemon.row(EventKind.MIGRATE, task.mm, addr=vma.start, size=PAGE, node=0, **columns)
    moved(task, vma, 0, 0, 1)
    assert {row["pid"] for row in rows(kernel, MATRIX)} == {task.pid}


# --- to and fro -------------------------------------------------------------------


def test_pages_that_come_back_are_counted_by_vma(kernel: SimKernel, task: Task) -> None:
    once, vma, third = task.mmap(5), task.mmap(11), task.mmap(3)
    for number in range(5):
        tour(task, once, number, 0, 1)
    tour(task, third, 0, 2, 1, 0, 2)
    for number in range(7):
        tour(task, vma, number, 0, 1, 0)
    tour(task, vma, 9, 1, 0, 1, 0)
    assert rows(kernel, TO_AND_FRO) == [
        {
            "pid": task.pid,
            "VMA": f"{vma.start:x}-{vma.end:x}",
            "pages": 8,
            "moves": 17,
            "most": 3,
            "route": "1 > 0 > 1 > 0",
        },
        {
            "pid": task.pid,
            "VMA": f"{third.start:x}-{third.end:x}",
            "pages": 1,
            "moves": 3,
            "most": 3,
            "route": "2 > 1 > 0 > 2",
        },
    ]


def test_a_long_route_is_told_by_its_beginning(kernel: SimKernel, task: Task) -> None:
    vma = task.mmap(2)
    tour(task, vma, 0, *[0, 1] * 23)
    (row,) = rows(kernel, TO_AND_FRO)
    assert (row["most"], row["route"]) == (45, "0 > 1 > 0 > 1 > 0 > ...")


def test_the_vma_is_the_one_of_the_last_move(kernel: SimKernel, task: Task) -> None:
    vma = task.mmap(4)
    tour(task, vma, 0, 0, 1)
    tour(task, vma, 0, 1, 0, end=vma.page(2))
    (row,) = rows(kernel, TO_AND_FRO)
    assert row["VMA"] == f"{vma.start:x}-{vma.page(2):x}"


def test_what_stays_on_its_node_does_not_move_to_and_fro(
    kernel: SimKernel, task: Task
) -> None:
    vma = task.mmap(1)
    tour(task, vma, 0, 0, 1, 1, 1)
    assert rows(kernel, TO_AND_FRO) == []
    tour(task, vma, 0, 1, 0)
    (row,) = rows(kernel, TO_AND_FRO)
    assert row["route"] == "0 > 1 > 0"


def test_a_page_that_is_mapped_anew_is_another_one(
    kernel: SimKernel, task: Task
) -> None:
    vma = task.mmap(1)
    tour(task, vma, 0, 0, 1)
    task.row(EventKind.MAP, addr=vma.start, size=PAGE, node=1)
    tour(task, vma, 0, 1, 0)
    assert rows(kernel, TO_AND_FRO) == []


def test_a_page_that_comes_from_elsewhere_is_another_one(
    kernel: SimKernel, task: Task
) -> None:
    """Where the new one was mapped was not recorded: it was a RAM node."""
    vma = task.mmap(1)
    tour(task, vma, 0, 0, 1)
    tour(task, vma, 0, 0, 1)
    assert rows(kernel, TO_AND_FRO) == []


def test_a_row_without_its_first_node_goes_on_from_the_last_move(
    kernel: SimKernel, task: Task
) -> None:
    vma = task.mmap(2)
    for node in (1, 1, 0):
        moved(task, vma, 0, -1, node)
    (row,) = rows(kernel, TO_AND_FRO)
    assert row["route"] == "? > 1 > 0"


def test_the_same_address_elsewhere_is_another_page(
    kernel: SimKernel, task: Task
) -> None:
    """In another process, and in one that has the mm's id after its end."""
    vma, other = task.mmap(1), kernel.process()
    tour(task, vma, 0, 0, 1)
    tour(other, vma, 0, 1, 0)
    task.row(EventKind.MM_EXIT)
    tour(task, vma, 0, 1, 0)
    assert rows(kernel, TO_AND_FRO) == []


def test_a_row_about_several_pages_ends_the_way_of_each(
    kernel: SimKernel, task: Task, tmp_path: Path
) -> None:
    """A folio is mapped where one of its pages was, which is another page then."""
    vma = task.mmap(4)
    moved(task, vma, 1, 0, 1)
    place = {"start": vma.start, "end": vma.end}
    task.row(EventKind.MAP, addr=vma.start, size=4 * PAGE, node=1, **place)
    moved(task, vma, 1, 1, 0)
    trace = load(save(kernel.trace(), tmp_path / "it.arrows"))
    assert aggregate.report(trace)[TO_AND_FRO] == []
