"""Programs for what the story does not show: failures, races, KSM and NUMA balancing.

Each does something that is right on a right kernel, and wrong under the quirk that its
comment names. What the probes would tell is written out here, row by row, as far as
SimKernel has no call for it.
"""

from __future__ import annotations

from simkernel import (
    BIND,
    CDM,
    DEFAULT,
    LOCKED,
    MERGEABLE,
    PAGE,
    PREFERRED,
    RAM,
    TAG,
    Region,
    Task,
    Vma,
)

from cdmtrace.events import Bit, Cause, EventKind, Lock, Probe

DONTCOPY = 0x20000
VM_IO = 0x4000
ENOMEM = 12


def bound(task: Task, pages: int) -> tuple[Region, Vma]:
    """A region that is bound to the CDM node, and the one VMA that it is."""
    region = task.mmap(pages)
    task.mbind(region.start, pages)
    return region, task.vma(region.start)


def thread(task: Task) -> Task:
    """Another thread of the same process."""
    task.kernel.next_tid += 1
    other = Task(task.kernel, task.kernel.next_tid, task.mm, task.comm)
    other.pid = task.pid
    return other


def set_flags(
    task: Task, vma: Vma, probe: Probe, flags: int, since: int, lock: Lock
) -> None:
    """Somebody writes the whole word, and his function returns."""
    before, vma.flags = vma.flags, flags
    if before == flags or not task.mm.watched:
        return
    task.lock = lock
    task.vma_row(
        EventKind.FLAGS,
        vma,
        probe=probe,
        ts_entry=since,
        addr=vma.start,
        size=vma.end - vma.start,
        flags_before=before,
    )
    task.lock = Lock.NONE


def mlock(task: Task, vma: Vma) -> None:
    since = task.begin()
    set_flags(
        task,
        vma,
        Probe.MLOCK_FIXUP,
        vma.flags | LOCKED,
        task.kernel.tick(),
        Lock.WRITE_SELF,
    )
    task.end(Probe.SYS_MLOCK, since, addr=vma.start, size=vma.end - vma.start)


def migrate_while_locking(task: Task) -> None:
    """unlocked-clear: a migration clears the tag while another thread mlock()s."""
    region, vma = bound(task, 31)
    task.faults(region, 0, 1)
    mover = thread(task)
    task.mbind(region.start, 31, DEFAULT)
    before, since = vma.flags, task.kernel.tick()
    mlock(task, vma)
    if task.kernel.quirk("unlocked-clear"):
        clear_late(mover, vma, before, since)


def migrate_while_advising(task: Task) -> None:
    """unlocked-clear: madvise(MADV_DONTFORK) of another thread gets lost.

    What it gives is told before, and known to be given when its call has returned.
    """
    region, vma = bound(task, 31)
    task.faults(region, 0, 1)
    mover = thread(task)
    entry = task.kernel.tick()
    since, told = task.begin(), task.kernel.tick()
    before, vma.flags = vma.flags, vma.flags | DONTCOPY
    task.vma_row(
        EventKind.FLAGS,
        vma,
        probe=Probe.VMA_MERGE,
        ts_entry=told,
        addr=vma.start,
        size=vma.end - vma.start,
        flags_before=vma.flags,
        bits=Bit.VMA_UNREAD,
    )
    task.end(Probe.SYS_MADVISE, since, addr=vma.start, size=vma.end - vma.start, arg=10)
    if task.kernel.quirk("unlocked-clear"):
        clear_late(mover, vma, before, entry)


def see_a_change(task: Task, vma: Vma, before: int, after: int, since: int) -> None:
    """A migration that holds no lock sees what another one writes."""
    task.vma_row(
        EventKind.FLAGS,
        vma,
        probe=Probe.REMOVE_MIGRATION_PTE,
        ts_entry=since,
        addr=vma.start,
        size=vma.end - vma.start,
        flags_before=before,
        flags_after=after,
        lock_entry=Lock.NONE,
        lock_exit=Lock.NONE,
    )


def migrate_while_mlock_walks(task: Task) -> None:
    """mlock() sets VM_IO while it walks (mm/mlock.c), and a migration sees it."""
    _, vma = bound(task, 31)
    mover, before = thread(task), vma.flags
    since = task.begin()
    entry, other = task.kernel.tick(), task.kernel.tick()
    see_a_change(mover, vma, before, before | LOCKED | VM_IO, other)
    set_flags(task, vma, Probe.MLOCK_FIXUP, before | LOCKED, entry, Lock.WRITE_SELF)
    task.end(Probe.SYS_MLOCK, since, addr=vma.start, size=vma.end - vma.start)


def advise_and_take_it_back(task: Task) -> None:
    """A madvise() that returns late, when others have undone it under the lock."""
    _, vma = bound(task, 31)
    late, before = thread(task), vma.flags
    asked, told = late.begin(), task.kernel.tick()
    late.vma_row(
        EventKind.FLAGS,
        vma,
        probe=Probe.VMA_MERGE,
        ts_entry=told,
        addr=vma.start,
        size=vma.end - vma.start,
        flags_before=before | DONTCOPY,
        flags_after=before | DONTCOPY,
        bits=Bit.VMA_UNREAD,
    )
    since = task.begin()
    entry = task.kernel.tick()
    late.end(Probe.SYS_MADVISE, asked, addr=vma.start, size=31 * PAGE, arg=10)
    set_flags(task, vma, Probe.MPROTECT_FIXUP, before & ~2, entry, Lock.WRITE_SELF)
    task.end(Probe.SYS_MPROTECT, since, addr=vma.start, size=31 * PAGE, arg=1)


def rebind_and_protect(task: Task) -> None:
    """The last VMA that a cpuset has rebound is told when the lock is given back."""
    _, vma = bound(task, 31)
    cpuset, before = thread(task), vma.flags
    rebound, entry = task.kernel.tick(), task.kernel.tick()
    vma.flags, vma.policy = before & ~TAG, (BIND, RAM)
    cpuset.vma_row(
        EventKind.POLICY,
        vma,
        probe=Probe.MPOL_REBIND,
        ts_entry=rebound,
        addr=vma.start,
        size=vma.end - vma.start,
        flags_before=before,
        other_policy=BIND,
        other=CDM,
        cause=Cause.CPUSET,
        lock_entry=Lock.WRITE_SELF,
        lock_exit=Lock.UNKNOWN,
    )
    since = task.begin()
    set_flags(task, vma, Probe.MPROTECT_FIXUP, vma.flags & ~2, entry, Lock.WRITE_SELF)
    task.end(Probe.SYS_MPROTECT, since, addr=vma.start, size=31 * PAGE, arg=1)


def tag_at_the_end_of_a_call(task: Task) -> None:
    """A kernel that tags under the lock, where no probe is, and a migration."""
    region, vma = bound(task, 31)
    mover, before = thread(task), vma.flags
    task.begin()
    task.fault(region.page(3))
    see_a_change(mover, vma, before & ~TAG, before, task.kernel.tick())


def clear_late(mover: Task, vma: Vma, before: int, since: int) -> None:
    """Clear the tag by a word that was read at its entry, since when others wrote."""
    vma.flags = before & ~TAG
    mover.vma_row(
        EventKind.FLAGS,
        vma,
        probe=Probe.REMOVE_MIGRATION_PTE,
        ts_entry=since,
        addr=vma.start,
        size=vma.end - vma.start,
        flags_before=before,
        lock_entry=Lock.NONE,
        lock_exit=Lock.NONE,
    )


def fault_together(task: Task) -> None:
    """fault-tag: two threads fault in one VMA at the same time."""
    region = task.mmap(29)
    task.mbind(region.start, 29, PREFERRED)
    vma, other = task.vma(region.start), thread(task)
    before, since = vma.flags, task.kernel.tick()
    other.fault(region.page(3))
    if task.kernel.quirk("fault-tag"):
        task.lock = Lock.READ
        task.vma_row(
            EventKind.ALLOC,
            vma,
            probe=Probe.ALLOC,
            ts_entry=since,
            addr=region.page(7),
            size=PAGE,
            node=1,
            flags_before=before,
        )
        task.lock = Lock.NONE


def ksm_runs(task: Task, vma: Vma) -> None:
    """ksmd comes by, and finds a page that has its like elsewhere."""
    if vma.flags & MERGEABLE and (task.mm.watched or vma.tag):
        if vma.tag:
            task.kernel.wrongs.append("CDM006")
        ksm_replaces(task, vma)


def ksm_replaces(task: Task, vma: Vma) -> None:
    task.vma_row(
        EventKind.KSM_PAGE,
        vma,
        probe=Probe.KSM_MERGE,
        addr=vma.start,
        size=PAGE,
        src_node=0,
        node=0,
        cause=Cause.KSM,
        bits=Bit.KSM | Bit.KTHREAD,
    )


def merge_pages(task: Task) -> None:
    """ksm-left-on: KSM goes on where the tag was set."""
    plain = task.mmap(7)
    task.faults(plain)
    region = task.mmap(13)
    task.mergeable(region)
    task.mbind(region.start, 13)
    ksm_replaces(task, task.vma(plain.start))
    if task.vma(region.start).flags & MERGEABLE:
        ksm_replaces(task, task.vma(region.start))


def merge_after_tag(task: Task) -> None:
    """mergeable-honoured: MADV_MERGEABLE on a tagged VMA."""
    region, vma = bound(task, 11)
    task.mergeable(region)
    assert bool(vma.flags & MERGEABLE) is task.kernel.quirk("mergeable-honoured")


def scan(task: Task) -> None:
    """numa-scanned: the scanner comes to a tagged VMA as to any other."""
    _, vma = bound(task, 17)
    plain = task.mmap(19)
    for one in (task.vma(plain.start), vma):
        scan_vma(task, one)


def scan_vma(task: Task, vma: Vma) -> None:
    """NUMA balancing's scanner comes to a VMA."""
    if not (task.mm.watched or vma.tag):
        return
    if vma.tag:
        if not task.kernel.quirk("numa-scanned"):
            return
        task.kernel.wrongs.append("CDM008")
    task.vma_row(
        EventKind.NUMA_SCAN,
        vma,
        probe=Probe.NUMA_SCAN,
        addr=vma.start,
        size=vma.end - vma.start,
    )


def balance(task: Task) -> None:
    """numa-residual: an entry that was scanned before its VMA was tagged."""
    _, vma = bound(task, 17)
    plain = task.mmap(19)
    for one in (task.vma(plain.start), vma):
        balance_vma(task, one)


def balance_vma(task: Task, vma: Vma) -> None:
    """A page of a VMA is used that the scanner has marked."""
    if not (task.mm.watched or vma.tag):
        return
    moved = not vma.tag or task.kernel.quirk("numa-residual")
    if moved and vma.tag:
        task.kernel.wrongs.append("CDM009")
    task.vma_row(
        EventKind.NUMA_MOVE,
        vma,
        probe=Probe.NUMA_MIGRATE,
        addr=vma.start,
        size=PAGE,
        src_node=0,
        node=0,
        ret=int(moved),
    )


def bind_in_vain(task: Task) -> None:
    """whole-vma: an mbind() of the middle that fails, for there can be no more VMAs."""
    task.mbind(task.mmap(1).start, 1)
    region = task.mmap(37)
    vma = task.vma(region.start)
    since = task.begin()
    low, size = region.page(5), 7 * PAGE
    before, entry = vma.flags, task.kernel.tick()
    task.vma_row(EventKind.VMA_SEEN, vma, probe=Probe.MBIND_RANGE, addr=low, size=size)
    if task.kernel.quirk("whole-vma"):
        vma.flags |= TAG
    task.vma_row(
        EventKind.POLICY,
        vma,
        probe=Probe.MBIND_RANGE,
        ts_entry=entry,
        addr=low,
        size=size,
        flags_before=before,
        other_policy=vma.policy[0],
        other=vma.policy[1],
        ret=-ENOMEM,
    )
    task.end(
        Probe.SYS_MBIND,
        since,
        always=True,
        addr=low,
        size=size,
        start=low,
        end=low + size,
        other_policy=BIND,
        other=CDM,
        ret=-ENOMEM,
    )


def allocate(task: Task, vma: Vma, addr: int, cause: Cause = Cause.FAULT) -> None:
    """A page of the CDM node is allocated, and nothing is mapped yet."""
    before, since = vma.flags, task.kernel.tick()
    if task.kernel.quirk("fault-tag"):
        vma.flags |= TAG
    task.lock = Lock.READ
    task.vma_row(
        EventKind.ALLOC,
        vma,
        probe=Probe.ALLOC,
        ts_entry=since,
        addr=addr,
        size=PAGE,
        node=1,
        flags_before=before,
        cause=cause,
    )
    task.lock = Lock.NONE


def fault_in_vain(task: Task) -> None:
    """fault-tag: the page is there already when it is to be mapped."""
    region = task.mmap(41)
    task.fault(region.page(2))
    task.mbind(region.start, 41, PREFERRED)
    allocate(task, task.vma(region.start), region.page(2))
    task.mbind(task.mmap(1).start, 1)


def read_ahead(task: Task) -> None:
    """fault-tag: swap's readahead takes pages for others by this VMA's policy."""
    region = task.mmap(43)
    task.mbind(region.start, 43, PREFERRED)
    vma = task.vma(region.start)
    for _ in range(3):
        allocate(task, vma, region.page(2), Cause.READAHEAD)
    task.mbind(task.mmap(1).start, 1)


def read_ahead_and_map(task: Task) -> None:
    """fault-tag: of three pages that are read in, this VMA gets its own."""
    region = task.mmap(43)
    task.mbind(region.start, 43, PREFERRED)
    vma = task.vma(region.start)
    for _ in range(3):
        allocate(task, vma, region.page(2), Cause.READAHEAD)
    task.mm.pages[region.page(2)] = 1, PAGE
    task.vma_row(
        EventKind.MAP,
        vma,
        probe=Probe.RMAP_ADD,
        addr=region.page(2),
        size=PAGE,
        node=1,
        cause=Cause.SWAP_IN,
    )


def fault_by_a_pseudo_vma(task: Task) -> None:
    """fault-tag: shmem allocates by a VMA that stands on the stack."""
    region, _ = bound(task, 7)
    for number in range(3):
        task.row(
            EventKind.ALLOC,
            probe=Probe.ALLOC,
            addr=region.page(number),
            size=PAGE,
            node=1,
            flags_after=TAG,
            lock_entry=Lock.READ,
            lock_exit=Lock.READ,
            bits=Bit.UNLINKED | Bit.FILE,
        )


def fault_and_map(task: Task) -> None:
    """fault-tag, rightly: the page is mapped in the VMA that was tagged for it."""
    region = task.mmap(5)
    task.mbind(region.start, 5, PREFERRED)
    task.faults(region)


def cut_a_tagged(task: Task) -> None:
    """one-way: three pages are left when the policy goes, and all in one half."""
    region, _ = bound(task, 20)
    task.faults(region, 0, 3)
    task.mbind(region.start, 20, DEFAULT)
    task.mprotect(region.page(10), 10, False)


def cut_a_bound(task: Task) -> None:
    region, _ = bound(task, 20)
    task.faults(region)
    task.mprotect(region.page(10), 10, False)


def neighbours(task: Task) -> None:
    """one-way: what was bound once stays apart from what never was."""
    region = task.mmap(24)
    task.mbind(region.start, 12)
    task.faults(region, 0, 3)
    task.mbind(region.start, 12, DEFAULT)


def like_neighbours(task: Task) -> None:
    """Two that differ in more than the tag, under one policy."""
    region, _ = bound(task, 24)
    task.mprotect(region.page(12), 12, False)


def move_within_policy(task: Task) -> None:
    """The driver says NUMA balancing; mbind() says that it is mbind()."""
    region = task.mmap(9)
    task.faults(region)
    task.mbind(region.start, 9, BIND, CDM, move=True)


def drive_and_lie(task: Task) -> None:
    region = task.mmap(13)
    task.faults(region)
    task.mbind(region.start, 13)
    task.drive([region.page(n) for n in range(13)], 1)
