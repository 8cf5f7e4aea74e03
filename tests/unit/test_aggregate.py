"""The tables of ``report`` that the model's notes make."""

from __future__ import annotations

import simstory
from simkernel import BIND, CDM, INTERLEAVE, PAGE, RAM, SimKernel

from cdmtrace.analysis import aggregate


def report(kernel: SimKernel) -> dict[str, list[dict[str, object]]]:
    return aggregate.report(kernel.trace())


def span(vma) -> str:
    return f"{vma.start:x}-{vma.end:x}"


def test_processes_come_by_what_they_hold_and_held() -> None:
    kernel = SimKernel()
    tasks = {}
    for pages, kept in ((3, 3), (5, 0), (9, 0), (7, 7)):
        task = kernel.process()
        vma = task.mmap(pages)
        task.mbind(vma.start, pages)
        task.faults(vma)
        task.dontneed(vma.start, pages - kept)
        tasks[pages] = task.pid
    shown = [row["pid"] for row in report(kernel)["Processes"]]
    assert shown == [tasks[pages] for pages in (7, 3, 9, 5)]


def test_vmas_come_by_their_pages_on_cdm_nodes() -> None:
    kernel = SimKernel()
    task = kernel.process()
    few, none, many = task.mmap(9), task.mmap(40), task.mmap(30)
    for vma in (few, none, many):
        task.mbind(vma.start, vma.pages)
    task.faults(few, pages=2)
    task.faults(many, pages=23)
    assert report(kernel)["VMAs"] == [
        {
            "pid": task.pid,
            "VMA": span(vma),
            "pages": vma.pages,
            "on CDM": pages,
            "tag": "cd",
            "set by": "mbind",
            "policy": "BIND:1",
        }
        for vma, pages in ((many, 23), (few, 2), (none, 0))
    ]


def test_what_is_in_a_vma_is_told_by_cause() -> None:
    kernel = SimKernel("migration-ungated")
    task = kernel.process()
    vma = task.mmap(10)
    task.faults(vma, pages=3)
    task.move_pages([vma.page(n) for n in range(3)], 1)
    task.mbind(vma.page(3), 7, INTERLEAVE, RAM | CDM)
    task.faults(vma)
    task.fork()  # no row is the child's own, so nothing tells its pid
    shown = report(kernel)["VMAs by cause"]
    assert [tuple(row.values()) for row in shown] == [
        (None, f"{vma.start:x}-{vma.page(3):x}", 1, "fork", 3, 0),
        (None, f"{vma.page(3):x}-{vma.end:x}", 1, "fork", 3, 0),
        (task.pid, f"{vma.start:x}-{vma.page(3):x}", 1, "move_pages", 3, 3),
        (task.pid, f"{vma.page(3):x}-{vma.end:x}", 1, "interleave", 3, 0),
    ]


def test_arrivals_have_cause_and_size() -> None:
    kernel = SimKernel("rfc")
    simstory.tell(kernel)
    first, *_ = shown = report(kernel)["Arrivals by cause"]
    assert first == {
        "cause": "thp",
        "node": 1,
        "pages": 1536,
        "bytes": 1536 * PAGE,
        "processes": 1,
    }
    pages = [row["pages"] for row in shown]
    assert pages == sorted(pages, reverse=True)


def test_a_process_that_takes_another_name_is_still_one() -> None:
    kernel = SimKernel()
    task = kernel.process("bash")
    vma = task.mmap(5)
    task.mbind(vma.start, 5)
    task.faults(vma, pages=2)
    task.comm = "worker"
    task.name()
    task.faults(vma)
    task.mbind(vma.start, 5, BIND, RAM, move=True)
    (row,) = report(kernel)["Processes"]
    assert row["comm"] == "worker"
    assert (row["tags set"], row["pages came"], row["pages left"]) == (1, 5, 5)


def test_changes_of_the_flags_have_function_lock_and_bits() -> None:
    kernel = SimKernel("rfc")
    kernel.probes["alloc"] = "vma_alloc_folio"
    kernel.probes["mbind_range"] = None
    simstory.tell(kernel)
    shown = report(kernel)["Changes of vm_flags"]
    assert {
        "function": "vma_alloc_folio",
        "mmap lock": "read",
        "before": "-",
        "after": "cd",
        "changes": 2,
    } in shown
    # A probe that has no function to its name still has its own.
    by_mbind = [row for row in shown if row["function"] == "mbind_range"]
    assert {row["mmap lock"] for row in by_mbind} == {"write"}
    assert ("mg", "mg cd") in {(row["before"], row["after"]) for row in by_mbind}


def test_nodes_count_what_living_processes_map() -> None:
    kernel = SimKernel()
    task = kernel.process()
    vma = task.mmap(7)
    task.mbind(vma.start, 7)
    task.faults(vma)
    task.fork().exit()
    task.dontneed(vma.start, 3)
    assert report(kernel)["Nodes"] == [
        {"node": 1, "pages came": 7, "pages left": 3, "mapped now": 4}
    ]
