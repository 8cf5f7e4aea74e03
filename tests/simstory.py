"""The laboratory's story (cdmtrace/lab/scenarios/story.c) on the simulated kernel."""

from __future__ import annotations

from simkernel import (
    BIND,
    CDM,
    DEFAULT,
    HUGE,
    INTERLEAVE,
    PAGE,
    PREFERRED,
    RAM,
    SimKernel,
)


def tell(kernel: SimKernel) -> None:
    task = kernel.process()
    vma = task.mmap(23)
    task.mbind(vma.start, 23)
    task.faults(vma)
    task.mbind(vma.start, 23, BIND, RAM, move=True)

    vma = task.mmap(29)
    task.mbind(vma.start, 29, PREFERRED)
    task.faults(vma)

    vma = task.mmap(31)
    task.mbind(vma.start, 31, INTERLEAVE, RAM | CDM)
    task.faults(vma)

    vma = task.mmap(3 * HUGE // PAGE, at=0x200000000000)
    task.mbind(vma.start, vma.pages, PREFERRED)
    for number in range(3):
        task.fault(vma.start + number * HUGE, huge=True)

    vma = task.mmap(37)
    task.set_mempolicy(PREFERRED, CDM)
    task.faults(vma)
    task.set_mempolicy(DEFAULT)

    vma, own = task.mmap(41), task.mmap(7)
    task.faults(vma)
    task.faults(own)
    task.move_pages([vma.page(n) for n in range(41)], 1)
    task.mbind(own.start, 7)
    task.move_pages([own.page(n) for n in range(7)], 1)
    task.move_pages([own.page(n) for n in range(7)], 0)

    child = task.fork()
    vma = child.mmap(43)
    child.faults(vma)
    child.migrate_pages(RAM, CDM)
    child.exit()

    vma, tagged = task.mmap(47), task.mmap(5)
    task.faults(vma)
    task.mergeable(vma)
    task.mbind(vma.start, 47)
    task.mergeable(vma)
    task.mbind(tagged.start, 5)
    task.mergeable(tagged)

    vma = task.mmap(53)
    task.mbind(vma.page(11), 19)
    task.faults(vma)
    task.mbind(vma.start, 11, BIND, RAM)

    vma = task.mmap(59)
    task.mbind(vma.start, 59)
    task.faults(vma)
    task.mbind(vma.start, 59, DEFAULT)

    vma, moved = task.mmap(61), task.mmap(13)
    task.mbind(vma.start, 61)
    task.mbind(moved.start, 13)
    task.faults(vma)
    task.faults(moved)
    child = task.fork()
    child.fault(vma.page(3), cow=True)
    child.exit()
    task.mprotect(vma.page(7), 23, False)
    task.mprotect(vma.page(7), 23, True)
    vma = task.mremap(vma, 67)
    task.faults(vma)
    moved = task.mremap(moved, 13, to=0x300000000000)
