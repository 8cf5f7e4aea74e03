"""A kernel of our own in Python that writes traces: the DSL of the model's tests.

It does what the laboratory's kernel does, with the same quirks, and emits the
rows that the probes emit, in their order. A test says what a program does:

    kernel = SimKernel("whole-vma")
    task = kernel.process()
    vma = task.mmap(53)
    task.mbind(vma.page(11), 19, BIND, CDM)
    trace = kernel.trace()

It knows nothing of the model that judges the trace.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from cdmtrace.analysis.frames import Event, Gap, Terms, Trace
from cdmtrace.events import Bit, Cause, EventKind, Lock, Mpol, Probe

PAGE = 4096
HUGE = 2 << 20
RAM, CDM = 1, 2
TAG = 1 << 38
MERGEABLE = 0x80000000
ANON = 0x100073
READ_ONLY = 0x100071
DEFAULT, PREFERRED, BIND, INTERLEAVE = 0, 1, 2, 3
EPERM, EACCES, EINVAL = 1, 13, 22
MR_MEMPOLICY_MBIND = 4
RECORDER = 100

RFC = frozenset(
    {
        "bind-only",
        "fault-tag",
        "interleave-untagged",
        "thp-untagged",
        "one-way",
        "whole-vma",
        "migration-ungated",
        "task-policy",
        "ksm-left-on",
        "driver-untagged",
    }
)
NEEDS = {
    "fault-tag": {"bind-only"},
    "interleave-untagged": {"fault-tag", "bind-only"},
    "thp-untagged": {"fault-tag", "bind-only"},
    "stock": {"migration-ungated", "task-policy", "driver-untagged"},
}
"""stock: a kernel without VM_CDM, whose recordings are in shadow mode."""
LOCKED = 0x2000
"""VM_LOCKED (include/linux/mm.h), which a fork does not hand on."""
PROBES = {
    name: name
    for name in [
        "alloc",
        "mbind_range",
        "mpol_rebind",
        "shared_policy",
        "migrate_pages",
        "remove_migration_pte",
        "rmap_add",
        "rmap_remove",
        "rmap_walk",
        "driver_page",
        "copy_page_range",
        "move_page_tables",
        "vma_free",
        "vma_merge",
        "vma_new",
        "vma_split",
        "mlock_fixup",
        "mprotect_fixup",
        "ksm_madvise",
        "ksm_merge",
        "numa_migrate",
        "numa_scan",
        "exit_mmap",
        "sys_mbind",
        "sys_set_mempolicy",
        "sys_set_home_node",
        "sys_migrate_pages",
        "sys_move_pages",
        "sys_madvise",
        "sys_mmap",
        "sys_munmap",
        "sys_mremap",
        "sys_mprotect",
        "sys_brk",
    ]
}


@dataclass
class Vma:
    start: int
    end: int
    flags: int = ANON
    policy: tuple[int, int] = (DEFAULT, 0)
    device: bool = False

    @property
    def tag(self) -> bool:
        return bool(self.flags & TAG)


@dataclass(frozen=True)
class Region:
    start: int
    pages: int

    def page(self, number: int) -> int:
        return self.start + number * PAGE

    @property
    def end(self) -> int:
        return self.start + self.pages * PAGE


@dataclass
class Mm:
    id: int
    vmas: list[Vma] = field(default_factory=list)
    pages: dict[int, tuple[int, int]] = field(default_factory=dict)
    watched: bool = False


def names_cdm(policy: tuple[int, int]) -> bool:
    return policy[0] not in (DEFAULT, Mpol.LOCAL) and bool(policy[1] & CDM)


class SimKernel:
    def __init__(
        self, *quirks: str, events: list[Event] | None = None, everything: bool = False
    ) -> None:
        self.quirks = set(RFC) if "rfc" in quirks else set(quirks)
        for quirk in list(self.quirks):
            self.quirks |= NEEDS.get(quirk, set())
        self.events: list[Event] = [] if events is None else events
        self.gaps: list[Gap] = []
        self.wrongs: list[str] = []
        self.all = everything
        self.probes = dict(PROBES)
        self.now = 1_000_000
        self.ids = 0
        self.next_tid = 200
        self.next_addr = 0x100040000000

    def quirk(self, name: str) -> bool:
        return name in self.quirks

    def process(self, comm: str = "story") -> Task:
        self.next_tid += 14
        self.ids += 1
        task = Task(self, self.next_tid, Mm(self.ids, watched=self.all), comm)
        task.name()
        return task

    def follows(self, node: int) -> bool:
        """Whether pages of a node are told of."""
        return self.all or bool(CDM >> node & 1)

    def tick(self) -> int:
        self.now += 1000
        return self.now

    def emit(self, kind: EventKind, **columns: object) -> Event:
        now = self.tick()
        columns.setdefault("ts_entry", now)
        event = Event(
            seq=len(self.events) + 1,
            ts=now,
            kind=kind,
            **columns,
        )
        self.events.append(event)
        return event

    def lose(
        self, probe: str, since: int, until: int | None = None, **place: int
    ) -> None:
        """Events of a probe were lost between two times; place: mm, start, end."""
        self.gaps.append(
            Gap(
                probe=probe,
                reason="ring",
                count=1,
                since=since,
                until=self.now if until is None else until,
                **place,
            )
        )

    # --- the recorder

    def look(self, task: Task, meanwhile: Callable[[Vma], None] | None = None) -> None:
        """Count the pages of a process; meanwhile: what happens in each count."""
        mm = task.mm
        for vma in list(mm.vmas):
            since = self.tick()
            count: dict[int, int] = {}
            for addr in mm.pages:
                node, size = mm.pages[addr]
                if vma.start <= addr < vma.end and self.follows(node):
                    count[node] = count.get(node, 0) + size
            if meanwhile:
                meanwhile(vma)
            if not (mm.watched or count):
                continue
            mm.watched = True
            self.snap(EventKind.SNAP_VMA, task, vma, ts_entry=since)
            for node, size in sorted(count.items()):
                self.snap(
                    EventKind.SNAP_PAGES,
                    task,
                    vma,
                    ts_entry=since,
                    node=node,
                    size=size,
                )
        if mm.watched:
            self.snap(EventKind.SNAP_MM, task)

    def look_before(
        self, task: Task, meanwhile: Callable[[], None] = lambda: None
    ) -> None:
        """Begin the recording here, with what a process holds already.

        meanwhile: what happens after its pages were found and before they are told.
        """
        self.events.clear()
        since = self.tick()
        self.look(task)
        found = [
            (vma, node, addr, size)
            for vma in task.mm.vmas
            for addr, (node, size) in task.mm.pages.items()
            if vma.start <= addr < vma.end and self.follows(node)
        ]
        meanwhile()
        for vma, node, addr, size in found:
            self.snap(
                EventKind.SNAP_RANGES,
                task,
                vma,
                ts_entry=since,
                node=node,
                payload=struct.pack("=QQ", addr, size),
            )

    def looked(self) -> None:
        """Every process has been looked at."""
        self.emit(EventKind.SNAP_MM, probe=Probe.SNAPSHOT)

    def snap(
        self, kind: EventKind, task: Task, vma: Vma | None = None, **columns: object
    ) -> None:
        if vma:
            columns |= {"start": vma.start, "end": vma.end}
            columns |= {"flags_before": vma.flags, "flags_after": vma.flags}
            columns |= {"policy": vma.policy[0], "nodes": vma.policy[1]}
        self.emit(
            kind,
            probe=Probe.SNAPSHOT,
            mm=task.mm.id,
            pid=task.pid,
            tid=RECORDER,
            bits=Bit.FOREIGN,
            **columns,
        )

    def trace(self) -> Trace:
        return Trace(
            path="story.arrows",
            terms=Terms(
                cdm=CDM,
                tag=0 if self.quirk("stock") else TAG,
                page=PAGE,
                kernel="6.1.0-sim",
                probes=self.probes,
                all=self.all,
            ),
            events=tuple(self.events),
            count=len(self.events),
            gaps=tuple(self.gaps),
            until=max((event.ts for event in self.events), default=0),
        )


class Task:
    def __init__(self, kernel: SimKernel, tid: int, mm: Mm, comm: str) -> None:
        self.kernel, self.tid, self.mm, self.comm = kernel, tid, mm, comm
        self.pid = tid
        self.policy = (DEFAULT, 0)
        self.call = 0
        self.lock = Lock.NONE
        self.next_interleave = 0
        self.justified: set[int] = set()

    # --- rows

    def name(self) -> None:
        self.kernel.emit(
            EventKind.COMM,
            probe=Probe.TASK,
            pid=self.pid,
            tid=self.tid,
            payload=self.comm.encode(),
        )

    def row(self, kind: EventKind, mm: Mm | None = None, **columns: object) -> Event:
        mm = mm or self.mm
        columns.setdefault("cause", Cause.CALL if self.call else Cause.FAULT)
        bits = int(columns.pop("bits", 0))
        if mm is not self.mm:
            bits |= Bit.FOREIGN
        # Of what is told of once, the rest is told as well: the end of the call, too.
        mm.watched = True
        return self.kernel.emit(
            kind,
            mm=mm.id,
            pid=self.pid,
            tid=self.tid,
            call=self.call,
            bits=bits,
            **columns,
        )

    def vma_row(
        self, kind: EventKind, vma: Vma, mm: Mm | None = None, **columns: object
    ) -> Event:
        base: dict[str, object] = {
            "start": vma.start,
            "end": vma.end,
            "flags_before": vma.flags,
            "flags_after": vma.flags,
            "policy": vma.policy[0],
            "nodes": vma.policy[1],
            "lock_entry": self.lock,
            "lock_exit": self.lock,
            "bits": Bit.FILE if vma.device else 0,
        }
        return self.row(kind, mm, **{**base, **columns})

    def begin(self, lock: Lock = Lock.WRITE_SELF) -> int:
        self.kernel.ids += 1
        self.call = self.kernel.ids << 8
        self.lock = lock
        return self.kernel.tick()

    def end(self, probe: Probe, since: int, always: bool = False, **columns: object):
        if always or self.mm.watched:
            columns.setdefault("other_policy", 0)
            self.row(EventKind.CALL, probe=probe, ts_entry=since, **columns)
        self.call, self.lock = 0, Lock.NONE

    # --- VMAs

    def vma(self, addr: int) -> Vma:
        return next(v for v in self.mm.vmas if v.start <= addr < v.end)

    def overlapping(self, start: int, end: int) -> list[Vma]:
        return [v for v in self.mm.vmas if v.start < end and start < v.end]

    def split(self, vma: Vma, addr: int) -> Vma:
        upper = replace(vma, start=addr)
        whole = vma.start, vma.end
        vma.end = addr
        self.mm.vmas.insert(self.mm.vmas.index(vma) + 1, upper)
        if self.mm.watched:
            self.vma_row(
                EventKind.VMA_SPLIT,
                vma,
                probe=Probe.VMA_SPLIT,
                start=whole[0],
                end=whole[1],
                addr=addr,
            )
        return upper

    def isolate(self, start: int, end: int) -> list[Vma]:
        for vma in list(self.overlapping(start, end)):
            inner = self.split(vma, start) if vma.start < start else vma
            if inner.end > end:
                self.split(inner, end)
        return self.overlapping(start, end)

    def merge(self) -> None:
        merged: list[Vma] = []
        for vma in self.mm.vmas:
            last = merged[-1] if merged else None
            if (
                last
                and last.end == vma.start
                and (last.flags, last.policy, last.device)
                == (vma.flags, vma.policy, vma.device)
            ):
                last.end = vma.end
            else:
                merged.append(vma)
        self.mm.vmas = merged

    # --- system calls

    def mmap(
        self, pages: int, at: int | None = None, *, device: bool = False
    ) -> Region:
        """device: of the driver's, which tags it."""
        since = self.begin()
        start = at
        if start is None:
            start = self.kernel.next_addr
            self.kernel.next_addr += 1 << 30
        self.cut(start, start + pages * PAGE)
        vma = Vma(start, start + pages * PAGE, device=device)
        if device and not self.kernel.quirk("driver-untagged"):
            vma.flags |= TAG
        self.mm.vmas.append(vma)
        self.mm.vmas.sort(key=lambda v: v.start)
        self.merge()
        self.end(Probe.SYS_MMAP, since, size=pages * PAGE, addr=at or 0, other=start)
        return Region(start, pages)

    def cut(self, start: int, end: int) -> None:
        for vma in self.isolate(start, end):
            for addr in sorted(a for a in self.mm.pages if vma.start <= a < vma.end):
                self.unmap(addr)
            self.mm.vmas.remove(vma)

    def munmap(self, start: int, pages: int) -> None:
        since = self.begin()
        end = start + pages * PAGE
        self.cut(start, end)
        self.end(
            Probe.SYS_MUNMAP, since, addr=start, size=end - start, start=start, end=end
        )

    def tags(self, policy: tuple[int, int]) -> bool:
        return names_cdm(policy) and (
            policy[0] == BIND or not self.kernel.quirk("bind-only")
        )

    def cdm_flags(self, flags: int, policy: tuple[int, int]) -> int:
        if self.kernel.quirk("stock"):
            return flags
        if self.tags(policy) or self.kernel.quirk("any-mbind-tags"):
            flags |= TAG
            if not self.kernel.quirk("ksm-left-on"):
                flags &= ~MERGEABLE
        elif not self.kernel.quirk("one-way"):
            flags &= ~TAG
        return flags

    def mbind(
        self,
        start: int,
        pages: int,
        mode: int = BIND,
        nodes: int = CDM,
        *,
        move: bool = False,
    ) -> None:
        since = self.begin(
            Lock.READ if self.kernel.quirk("read-lock") else Lock.WRITE_SELF
        )
        end = start + pages * PAGE
        policy = (mode, nodes if mode != DEFAULT else 0)
        for old in list(self.overlapping(start, end)):
            self.mbind_range(old, start, end, policy)
        self.merge()
        if move:
            for addr in sorted(a for a in self.mm.pages if start <= a < end):
                if not nodes >> self.mm.pages[addr][0] & 1:
                    self.migrate(addr, 0 if nodes & RAM else 1, arg=MR_MEMPOLICY_MBIND)
        if not names_cdm(policy):
            for vma in self.overlapping(start, end):
                left = any(
                    vma.start <= a < vma.end and CDM >> n & 1
                    for a, (n, _) in self.mm.pages.items()
                )
                if vma.tag and not left and id(vma) in self.justified:
                    self.kernel.wrongs.append("CDM001")
        self.justified = set()
        self.end(
            Probe.SYS_MBIND,
            since,
            always=True,
            addr=start,
            size=end - start,
            start=start,
            end=end,
            other_policy=mode,
            other=nodes,
            arg=2 if move else 0,
        )

    def mbind_range(
        self, old: Vma, start: int, end: int, policy: tuple[int, int]
    ) -> None:
        kernel, mm = self.kernel, self.mm
        if names_cdm(policy) or names_cdm(old.policy) or old.tag:
            mm.watched = True
        low, high = max(start, old.start), min(end, old.end)
        before, had = old.flags, old.policy
        entry = kernel.tick()
        if mm.watched:
            self.vma_row(
                EventKind.VMA_SEEN,
                old,
                probe=Probe.MBIND_RANGE,
                addr=low,
                size=high - low,
            )
        was_tagged = old.tag
        whole = (old.start, old.end) != (low, high)
        if kernel.quirk("whole-vma") and self.tags(policy):
            if whole and not was_tagged and not names_cdm(old.policy):
                kernel.wrongs.append("CDM011")
            old.flags |= TAG
        vma = old
        if had != policy:
            (vma,) = self.isolate(low, high)
            vma.policy = policy
            if not vma.device or self.kernel.quirk("driver-untagged"):
                vma.flags = self.cdm_flags(vma.flags, policy)
            if vma.tag and not was_tagged:
                if vma.flags & MERGEABLE:
                    kernel.wrongs.append("CDM005")
                # The probes leave an mm alone that never named a CDM node.
                if not names_cdm(policy) and mm.watched:
                    kernel.wrongs.append("CDM010")
            if kernel.quirk("read-lock") and vma.tag != was_tagged and mm.watched:
                kernel.wrongs.append("CDM003")
            self.merge()
            vma = self.vma(low)
            if names_cdm(had) and was_tagged:
                self.justified.add(id(vma))
        if mm.watched:
            self.vma_row(
                EventKind.POLICY,
                vma,
                probe=Probe.MBIND_RANGE,
                ts_entry=entry,
                addr=low,
                size=high - low,
                flags_before=before,
                other_policy=had[0],
                other=had[1],
            )

    def set_mempolicy(self, mode: int, nodes: int = 0) -> None:
        since = self.begin(Lock.NONE)
        refused = names_cdm((mode, nodes)) and not self.kernel.quirk("task-policy")
        if not refused:
            self.policy = (mode, nodes)
        self.end(
            Probe.SYS_SET_MEMPOLICY,
            since,
            always=True,
            other_policy=mode,
            other=nodes,
            ret=-EPERM if refused else 0,
        )

    def move_pages(self, addrs: list[int], node: int) -> None:
        since = self.begin(Lock.NONE)
        for addr in addrs:
            vma = self.vma(addr)
            allowed = not CDM >> node & 1 or (
                names_cdm(vma.policy) and bool(vma.policy[1] >> node & 1)
            )
            if addr in self.mm.pages and (
                allowed or self.kernel.quirk("migration-ungated")
            ):
                if CDM >> node & 1 and not vma.tag:
                    self.kernel.wrongs.append("CDM002")
                self.migrate(addr, node)
        self.end(Probe.SYS_MOVE_PAGES, since, always=True)

    def migrate_pages(self, old: int, new: int, mm: Mm | None = None) -> None:
        since = self.begin(Lock.NONE)
        ret = 0
        target = mm or self.mm
        if new & CDM and not self.kernel.quirk("migration-ungated"):
            ret = -EPERM
        else:
            for addr in sorted(target.pages):
                if old >> target.pages[addr][0] & 1:
                    vma = next(v for v in target.vmas if v.start <= addr < v.end)
                    if new == CDM and not vma.tag:
                        self.kernel.wrongs.append("CDM002")
                    self.migrate(addr, 0 if new & RAM else 1, target)
        self.end(
            Probe.SYS_MIGRATE_PAGES, since, always=True, nodes=old, other=new, ret=ret
        )

    def drive(self, addrs: list[int], node: int) -> None:
        """The driver's ioctl, which has no row: it moves pages, and lies why."""
        for addr in addrs:
            vma = self.vma(addr)
            allowed = not CDM >> node & 1 or names_cdm(vma.policy)
            if allowed or self.kernel.quirk("driver-untagged"):
                if CDM >> node & 1 and not vma.tag:
                    self.kernel.wrongs.append("CDM002")
                self.migrate(addr, node, cause=Cause.DRIVER, arg=5)

    def mergeable(self, region: Region) -> None:
        since = self.begin()
        for vma in self.overlapping(region.start, region.end):
            before = vma.flags
            if vma.tag and self.kernel.quirk("mergeable-honoured"):
                if self.mm.watched and not vma.flags & MERGEABLE:
                    self.kernel.wrongs.append("CDM007")
                vma.flags |= MERGEABLE
            if not vma.tag:
                vma.flags |= MERGEABLE
            if before != vma.flags or before & TAG:
                self.vma_row(
                    EventKind.KSM_ADVICE,
                    vma,
                    probe=Probe.KSM_MADVISE,
                    addr=vma.start,
                    size=vma.end - vma.start,
                    arg=12,
                    flags_before=before,
                )
        self.end(
            Probe.SYS_MADVISE,
            since,
            addr=region.start,
            size=region.pages * PAGE,
            start=region.start,
            end=region.end,
            arg=12,
        )

    def dontneed(self, start: int, pages: int) -> None:
        since = self.begin(Lock.READ)
        end = start + pages * PAGE
        for addr in sorted(a for a in self.mm.pages if start <= a < end):
            self.unmap(addr)
        self.end(
            Probe.SYS_MADVISE,
            since,
            addr=start,
            size=end - start,
            start=start,
            end=end,
            arg=4,
        )

    def mprotect(self, start: int, pages: int, writable: bool) -> None:
        since = self.begin()
        end = start + pages * PAGE
        for vma in self.isolate(start, end):
            vma.flags = vma.flags | 2 if writable else vma.flags & ~2
        self.merge()
        self.end(
            Probe.SYS_MPROTECT,
            since,
            addr=start,
            size=end - start,
            start=start,
            end=end,
            arg=3 if writable else 1,
        )

    def mremap(self, region: Region, pages: int, to: int | None = None) -> Region:
        since = self.begin()
        start = region.start if to is None else to
        if to is None:
            self.vma(region.start).end = region.start + pages * PAGE
        else:
            shift = to - region.start
            entry = self.kernel.tick()
            (vma,) = self.isolate(region.start, region.end)
            vma.start, vma.end = to, to + pages * PAGE
            self.mm.vmas.sort(key=lambda v: v.start)
            self.mm.pages = {
                (a + shift if region.start <= a < region.end else a): page
                for a, page in self.mm.pages.items()
            }
            if self.mm.watched:
                self.vma_row(
                    EventKind.MOVE,
                    vma,
                    probe=Probe.MOVE_PAGE_TABLES,
                    ts_entry=entry,
                    addr=region.start,
                    size=min(region.pages, pages) * PAGE,
                    other=to,
                )
        self.end(
            Probe.SYS_MREMAP,
            since,
            addr=region.start,
            size=region.pages * PAGE,
            nodes=pages * PAGE,
            other=start,
        )
        return Region(start, pages)

    def fork(self) -> Task:
        kernel = self.kernel
        kernel.next_tid += 1
        kernel.ids += 1
        child = Task(kernel, kernel.next_tid, Mm(kernel.ids), self.comm)
        child.policy = self.policy
        child.mm.watched = self.mm.watched
        child.mm.vmas = [
            replace(vma, flags=vma.flags & ~LOCKED) for vma in self.mm.vmas
        ]
        child.mm.pages = dict(self.mm.pages)
        if self.mm.watched:
            self.lock = Lock.WRITE_SELF
            for vma, parent in zip(child.mm.vmas, self.mm.vmas, strict=True):
                has_pages = any(vma.start <= a < vma.end for a in self.mm.pages)
                self.vma_row(
                    EventKind.COPY,
                    vma,
                    child.mm,
                    probe=Probe.COPY_PAGE_RANGE,
                    ts_entry=kernel.tick(),
                    flags_before=parent.flags,
                    addr=vma.start,
                    size=vma.end - vma.start if has_pages else 0,
                    other=self.mm.id,
                )
            self.lock = Lock.NONE
        child.name()
        return child

    def exit(self) -> None:
        if self.mm.watched:
            self.row(EventKind.MM_EXIT, probe=Probe.EXIT_MMAP)
        self.mm.watched = False

    # --- pages

    def unmap(self, addr: int, mm: Mm | None = None) -> None:
        mm = mm or self.mm
        node, size = mm.pages.pop(addr)
        if self.kernel.follows(node):
            vma = next(v for v in mm.vmas if v.start <= addr < v.end)
            self.vma_row(
                EventKind.UNMAP,
                vma,
                mm,
                probe=Probe.RMAP_REMOVE,
                addr=addr,
                size=size,
                src_node=node,
            )

    def migrate(
        self, addr: int, node: int, mm: Mm | None = None, **columns: object
    ) -> None:
        mm = mm or self.mm
        src_node, size = mm.pages[addr]
        self.unmap(addr, mm)
        mm.pages[addr] = node, size
        if self.kernel.follows(node) or CDM >> src_node & 1:
            mm.watched = True
            vma = next(v for v in mm.vmas if v.start <= addr < v.end)
            self.vma_row(
                EventKind.MIGRATE,
                vma,
                mm,
                probe=Probe.REMOVE_MIGRATION_PTE,
                addr=addr,
                size=size,
                node=node,
                src_node=src_node,
                **{"arg": 3, **columns},
            )

    def device_fault(self, addr: int) -> None:
        """The driver's fault handler gives out a page of the CDM node."""
        vma = self.vma(addr)
        self.mm.watched = True
        self.mm.pages[addr] = 1, PAGE
        if not vma.tag:
            self.kernel.wrongs.append("CDM002")
        self.lock = Lock.READ
        self.vma_row(
            EventKind.MAP,
            vma,
            probe=Probe.RMAP_ADD,
            addr=addr,
            size=PAGE,
            node=1,
            cause=Cause.DRIVER,
        )
        self.lock = Lock.NONE

    def fault(self, addr: int, *, huge: bool = False, cow: bool = False) -> None:
        """A first write to a page, or (cow) one that copies it."""
        kernel, mm = self.kernel, self.mm
        if addr in mm.pages and not cow:
            return
        vma = self.vma(addr)
        if vma.device:
            self.device_fault(addr)
            return
        own = vma.policy[0] != DEFAULT
        mode, nodes = vma.policy if own else self.policy
        if names_cdm((mode, nodes)) and not own and not kernel.quirk("task-policy"):
            mode, nodes = DEFAULT, 0
        node = 0
        if mode == INTERLEAVE:
            choices = [n for n in range(2) if nodes >> n & 1]
            node = choices[self.next_interleave % len(choices)]
            self.next_interleave += 1
        elif nodes and mode != DEFAULT:
            node = 1 if nodes == CDM else 0
        self.lock = Lock.READ
        entry, before = kernel.tick(), vma.flags
        tags = kernel.quirk("fault-tag") and CDM >> node & 1
        if (mode == INTERLEAVE and kernel.quirk("interleave-untagged")) or (
            huge and kernel.quirk("thp-untagged")
        ):
            tags = False
        if tags:
            vma.flags |= TAG
        if CDM >> node & 1:
            if not names_cdm(vma.policy):
                kernel.wrongs.append("CDM014")
            elif not vma.tag:
                kernel.wrongs.append("CDM002")
            if tags and not before & TAG:
                kernel.wrongs.append("CDM003")
                if not names_cdm(vma.policy):
                    kernel.wrongs.append("CDM010")
        size = HUGE if huge else PAGE
        task: dict[str, object] = {}
        if not own:
            task = {"other_policy": self.policy[0], "other": self.policy[1]}
        if kernel.follows(node) or before != vma.flags:
            mm.watched = True
            self.vma_row(
                EventKind.ALLOC,
                vma,
                probe=Probe.ALLOC,
                ts_entry=entry,
                addr=addr,
                size=size,
                node=node,
                flags_before=before,
                **task,
            )
        old = mm.pages.get(addr)
        mm.pages[addr] = node, size
        if kernel.follows(node):
            self.vma_row(
                EventKind.MAP,
                vma,
                probe=Probe.RMAP_ADD,
                addr=addr,
                size=size,
                node=node,
                **task,
            )
        if old and kernel.follows(old[0]):
            self.vma_row(
                EventKind.UNMAP,
                vma,
                probe=Probe.RMAP_REMOVE,
                addr=addr,
                size=old[1],
                src_node=old[0],
            )
        self.lock = Lock.NONE

    def faults(self, region: Region, first: int = 0, pages: int | None = None) -> None:
        count = region.pages - first if pages is None else pages
        for number in range(first, first + count):
            self.fault(region.page(number))
