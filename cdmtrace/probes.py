"""Logical probes: what each is attached to.

A logical probe is one of ``enum cdm_probe`` in ``bpf/events.h``. It is made of one
or more attachments of handlers in ``bpf/*.bpf.c`` to functions or tracepoints
of the kernel. Names of functions differ between kernels, so each attachment has
candidates, newest name first, and says what arguments its handler reads. Which of them
are taken on one kernel is for cdmtrace.planning to say.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Final

from cdmtrace.events import Probe


class Kind(enum.StrEnum):
    """How a handler is attached."""

    KPROBE = "kprobe"
    KRETPROBE = "kretprobe"
    TRACEPOINT = "tracepoint"
    WATCHPOINT = "watchpoint"


@dataclass(frozen=True, kw_only=True, slots=True)
class Attachment:
    """One handler and the names of what it can be attached to, newest first.

    unless: a function: where the kernel has it, this one misses what happens.
    needs: members of structs, without which the handler cannot do its work. rests:
    probes without which it cannot, by their names.

    reads: the arguments that it reads, by name. Of one that has had several names,
    all, as in ``folio|page``: the handler calls it by the first. One that is handed
    over in a struct is ``unmap->unmap_desc.first``: that member of the struct.
    """

    handler: str
    kind: Kind
    candidates: tuple[str, ...]
    reads: tuple[str, ...] = ()
    unless: str = ""
    needs: tuple[str, ...] = ()
    rests: tuple[str, ...] = ()

    @property
    def macros(self) -> dict[str, tuple[str, ...]]:
        """What the macros end with -> what the argument is called that they tell of."""
        names = (tuple(argument.split("|")) for argument in self.reads)
        return {f"{self.handler}_{one[0]}": one for one in names}


@dataclass(frozen=True, kw_only=True, slots=True)
class LogicalProbe:
    """What one probe of the trace is made of.

    ``older``: attachments that do the same where the kernel has other functions for
    it, most often older ones; those of which the kernel lacks least are taken. Without
    a ``required`` probe nothing can be recorded that is worth checking. Which rules
    need it, each rule says itself (cdmtrace.analysis.rules).
    """

    probe: Probe
    summary: str
    attachments: tuple[Attachment, ...]
    older: tuple[tuple[Attachment, ...], ...] = ()
    required: bool = False

    @property
    def every_attachment(self) -> tuple[Attachment, ...]:
        """Those of all kernels."""
        return tuple(a for one in (self.attachments, *self.older) for a in one)

    @property
    def name(self) -> str:
        """The name in the trace's header and in messages."""
        return self.probe.name.lower()

    @property
    def kinds(self) -> tuple[Kind, ...]:
        """The kinds of its attachments, each once."""
        return tuple(dict.fromkeys(item.kind for item in self.attachments))


def _around(
    handler: str, *candidates: str, reads: tuple[str, ...]
) -> tuple[Attachment, Attachment]:
    """Return the two at entry and return of a function."""
    # The return first: an entry without a return would count as lost.
    return (
        Attachment(
            handler=f"{handler}_return", kind=Kind.KRETPROBE, candidates=candidates
        ),
        Attachment(
            handler=f"{handler}_entry",
            kind=Kind.KPROBE,
            candidates=candidates,
            reads=reads,
        ),
    )


def _both(
    one: tuple[Attachment, Attachment], other: tuple[Attachment, Attachment]
) -> tuple[Attachment, ...]:
    """Return what is around two functions, both returns first."""
    return (one[0], other[0], one[1], other[1])


def _pair(
    probe: Probe,
    summary: str,
    handler: str,
    *candidates: str,
    reads: tuple[str, ...],
    required: bool = False,
) -> LogicalProbe:
    return LogicalProbe(
        probe=probe,
        summary=summary,
        attachments=_around(handler, *candidates, reads=reads),
        required=required,
    )


def _entry(
    handler: str, function: str, reads: str, *, needs: str = "", rests: str = ""
) -> Attachment:
    """Return one to the entry of a function."""
    return Attachment(
        handler=handler,
        kind=Kind.KPROBE,
        candidates=(function,),
        reads=tuple(reads.split()),
        needs=tuple(needs.split()),
        rests=tuple(rests.split()),
    )


def _entries(
    probe: Probe, summary: str, *attachments: Attachment, required: bool = False
) -> LogicalProbe:
    return LogicalProbe(
        probe=probe, summary=summary, attachments=attachments, required=required
    )


def _return(handler: str, function: str) -> Attachment:
    """Return one to the return of a function."""
    return Attachment(handler=handler, kind=Kind.KRETPROBE, candidates=(function,))


def _call(probe: Probe, *calls: str) -> LogicalProbe:
    def ends(
        before: str,
        handlers: tuple[str, str],
        kinds: tuple[Kind, Kind],
        unless: str = "",
    ) -> tuple[Attachment, ...]:
        return tuple(
            Attachment(
                handler=handler,
                kind=kind,
                # A call that the kernel has not got is never made: the first will do.
                candidates=tuple(
                    f"{before.format(end=end)}{name}"
                    for name in dict.fromkeys((call, calls[0]))
                ),
                unless=unless,
            )
            for end, handler, kind in zip(
                ("exit", "enter"), handlers, kinds, strict=True
            )
            for call in calls
        )

    return LogicalProbe(
        probe=probe,
        summary=f"{calls[0]}(2){' and its like' * (len(calls) > 1)}, entry to return",
        attachments=ends(
            "syscalls:sys_{end}_",
            ("call_exit", "call_enter"),
            (Kind.TRACEPOINT, Kind.TRACEPOINT),
            unless=_PREEMPTED,
        ),
        older=(
            ends(
                "__x64_sys_",
                ("call_returned", "call_entered"),
                (Kind.KRETPROBE, Kind.KPROBE),
            ),
        ),
    )


# It runs programs of tracepoints of system calls where they can be preempted (7.2).
_PREEMPTED: Final = "trace_call_bpf_faultable"
_ALLOCATED: Final = ("order", "vma", "addr")
_NEW_ANON: Final = "page|folio vma address"
_WALKED: Final = ("folio|page", "vma", "address")
_WORK: Final = (
    *("unmap_page_range", "__unmap_hugepage_range", "wp_page_copy", "hugetlb_cow"),
    "try_to_merge_one_page",
)
_NUMA_MOVE: Final = _around(
    "numa_move",
    "migrate_misplaced_folio",
    "migrate_misplaced_page",
    reads=("page|folio", "vma", "node"),
)
_MERGED: Final = (
    "mm|vmg->vma_merge_struct.mm",
    "addr|vmg->vma_merge_struct.start",
    "end|vmg->vma_merge_struct.end",
    "vm_flags|vmg->vma_merge_struct.flags|vmg->vma_merge_struct.vm_flags",
)
_UNMAPPED: Final = (
    "vma|unmap->unmap_desc.first start_addr|unmap->unmap_desc.vma_start "
    "end_addr|unmap->unmap_desc.vma_end"
)

PROBES: Final[tuple[LogicalProbe, ...]] = (
    LogicalProbe(
        probe=Probe.ALLOC,
        summary="a page is allocated for a VMA; vm_flags before and after",
        attachments=_both(
            _around("alloc", "vma_alloc_folio_noprof", reads=_ALLOCATED),
            # Since folio_alloc_mpol() (6.7) that is not for shmem. Before it had
            # an order (6.11), shmem's has two functions, and none is attached.
            _around("shmem_alloc", "shmem_alloc_folio", reads=("order",)),
        ),
        older=(
            _around(
                *("alloc", "vma_alloc_folio_noprof", "vma_alloc_folio"),
                "alloc_pages_vma",
                reads=_ALLOCATED,
            ),
        ),
        required=True,
    ),
    LogicalProbe(
        probe=Probe.MBIND_RANGE,
        summary="mbind() changes the policy of one VMA",
        attachments=_around(
            "mbind_range",
            "mbind_range",
            reads=("vma", "prev", "start", "end", "new_pol"),
        ),
        older=(
            (
                _return("range_merged", "vma_merge"),
                _entry("range_last", "up_write", "sem"),
                _entry(
                    "range_next",
                    "vma_merge",
                    "mm prev addr end policy",
                    needs="mm_struct.mmap vm_area_struct.vm_next",
                    rests="sys_mbind",
                ),
                _entry("range_look", "queue_pages_test_walk", "start end walk"),
            ),
        ),
        required=True,
    ),
    LogicalProbe(
        probe=Probe.MPOL_REBIND,
        summary="a cpuset changes the policies of an address space",
        attachments=(
            Attachment(
                handler="rebind_return",
                kind=Kind.KRETPROBE,
                candidates=("mpol_rebind_mm",),
            ),
            # The first is called for every VMA, but may be inlined in the loop; the
            # other, through a pointer, for each policy that a cpuset can change.
            *(
                Attachment(
                    handler="rebind_next",
                    kind=Kind.KPROBE,
                    candidates=candidates,
                    reads=("pol",),
                )
                for candidates in (
                    ("mpol_rebind_policy", "mpol_rebind_nodemask"),
                    ("mpol_rebind_nodemask",),
                )
            ),
            Attachment(
                handler="rebind_entry",
                kind=Kind.KPROBE,
                candidates=("mpol_rebind_mm",),
                reads=("mm",),
            ),
        ),
    ),
    LogicalProbe(
        probe=Probe.SHARED_POLICY,
        summary="a page is allocated by the policy of a shmem file; for which VMA",
        attachments=(
            Attachment(
                handler="shared_policy_return",
                kind=Kind.KRETPROBE,
                candidates=("mpol_shared_policy_lookup",),
            ),
            Attachment(
                handler="shmem_end",
                kind=Kind.KRETPROBE,
                candidates=("shmem_fault",),
            ),
            Attachment(
                handler="shmem_begin",
                kind=Kind.KPROBE,
                candidates=("shmem_fault",),
                reads=("vmf",),
            ),
        ),
    ),
    _pair(
        Probe.MIGRATE_PAGES,
        "the kernel's migrate_pages(), around what it moves",
        "migrate",
        "migrate_pages",
        reads=("reason",),
    ),
    _pair(
        Probe.REMOVE_MIGRATION_PTE,
        "an entry gets its page back after a migration; whence it came; vm_flags",
        "remigrate",
        "remove_migration_pte",
        reads=("folio|page", "vma", "old|arg"),
    ),
    _entries(
        Probe.DRIVER_PAGE,
        "a driver's page is about to be mapped; where",
        _entry("fault_finish", "finish_fault", "vmf"),
        _entry("driver_insert", "vm_insert_page", "vma addr page"),
    ),
    LogicalProbe(
        probe=Probe.RMAP_ADD,
        summary="a page is mapped, by a fault or at the end of a migration",
        attachments=(
            _entry("rmap_add_new_anon", "folio_add_new_anon_rmap", _NEW_ANON),
            _entry(
                "rmap_add_anon_ptes",
                "folio_add_anon_rmap_ptes",
                "page nr_pages vma address",
            ),
            _entry("rmap_add_anon_pmd", "folio_add_anon_rmap_pmd", "page vma address"),
            _entry(
                "rmap_add_file_ptes", "folio_add_file_rmap_ptes", "page nr_pages vma"
            ),
            _entry("rmap_add_file_pmd", "folio_add_file_rmap_pmd", "page vma"),
        ),
        older=(
            (
                _entry("rmap_add_new_anon", "page_add_new_anon_rmap", _NEW_ANON),
                _entry("rmap_add_anon", "page_add_anon_rmap", "page vma address flags"),
                _entry("rmap_add_file", "page_add_file_rmap", "page vma compound"),
            ),
            (
                _return("file_filled", "shmem_mfill_atomic_pte"),
                _entry("rmap_add_new_anon", "page_add_new_anon_rmap", _NEW_ANON),
                # page_add_anon_rmap() calls it.
                _entry(
                    "rmap_add_anon", "do_page_add_anon_rmap", "page vma address flags"
                ),
                _entry("file_fill", "shmem_mfill_atomic_pte", "dst_vma"),
                _entry("file_fault", "alloc_set_pte", "vmf page"),
                _entry("file_insert", "vm_insert_page", "vma page"),
                _entry("file_remigrate", "remove_migration_pte", "page vma"),
                _entry("rmap_add_file_untold", "page_add_file_rmap", "page compound"),
            ),
        ),
        required=True,
    ),
    LogicalProbe(
        probe=Probe.RMAP_WALK,
        summary="reclaim or migration unmaps a page; where",
        attachments=_both(
            _around("walk", "try_to_unmap_one", reads=_WALKED),
            _around("walk", "try_to_migrate_one", reads=_WALKED),
        ),
        # Until 5.13 the first does the other's work.
        older=(_around("walk", "try_to_unmap_one", reads=_WALKED),),
    ),
    _entries(
        Probe.MMU_GATHER,
        "a range is unmapped; where",
        _entry("gather_end", "tlb_finish_mmu", ""),
        _entry("gather_begin", "tlb_gather_mmu", "tlb mm"),
    ),
    LogicalProbe(
        probe=Probe.RMAP_REMOVE,
        summary="a page is mapped no more",
        attachments=(
            _entry("rmap_remove_ptes", "folio_remove_rmap_ptes", "page nr_pages vma"),
            _entry("rmap_remove_pmd", "folio_remove_rmap_pmd", "page vma"),
        ),
        older=(
            (_entry("rmap_remove", "page_remove_rmap", "page vma compound"),),
            (
                *(_return("work_end", function) for function in _WORK),
                _return("collapse_found", "hugepage_vma_revalidate"),
                _entry("collapse_look", "hugepage_vma_revalidate", "vmap"),
                _entry("work_cow", "wp_page_copy", "vmf"),
                _entry("work_cow_huge", "hugetlb_cow", "vma"),
                _entry("work_merge", "try_to_merge_one_page", "vma"),
                _entry("work_zap", "unmap_page_range", "vma"),
                _entry("work_zap", "__unmap_hugepage_range", "vma"),
                _entry("work_over", "collapse_pte_mapped_thp", ""),
                _entry(
                    "rmap_remove_untold",
                    "page_remove_rmap",
                    "page compound",
                    rests="rmap_walk",
                ),
            ),
        ),
        required=True,
    ),
    _pair(
        Probe.COPY_PAGE_RANGE,
        "fork copies the pages of one VMA",
        "copy",
        "copy_page_range",
        reads=("dst_vma", "src_vma"),
    ),
    # A small head that the compiler has parted from the rest is inlined where it is
    # called; the rest is what all callers come to.
    _pair(
        Probe.MOVE_PAGE_TABLES,
        "mremap() moves the pages of a range",
        "move",
        "move_page_tables.part.0",
        "move_page_tables",
        reads=(
            "vma|pmc->pagetable_move_control.old",
            "old_addr|pmc->pagetable_move_control.old_addr",
            "new_vma|pmc->pagetable_move_control.new",
            "new_addr|pmc->pagetable_move_control.new_addr",
            "len|pmc->pagetable_move_control.len_in",
        ),
    ),
    _pair(
        Probe.VMA_SPLIT,
        "a VMA is split",
        "split",
        "__split_vma",
        reads=("vma", "addr"),
    ),
    LogicalProbe(
        probe=Probe.VMA_MERGE,
        summary="VMAs become one; what madvise() asks to be merged",
        attachments=_around("merge", "vma_merge", reads=_MERGED),
        # Since 6.12 one function for what is there already, and one for what is new.
        older=(
            _both(
                _around("merge", "vma_modify", reads=_MERGED),
                _around("merge_new", "vma_merge_new_range", reads=_MERGED),
            ),
        ),
    ),
    LogicalProbe(
        probe=Probe.VMA_NEW,
        summary="a VMA is new, or has grown: mmap, brk, a stack",
        attachments=(_entry("vma_new", "perf_event_mmap", "vma"),),
        older=(
            (
                _return("grow_end", "expand_downwards"),
                _entry("grow_begin", "expand_downwards", "vma"),
                _entry("vma_linked", "vma_link", "vma"),
            ),
        ),
    ),
    _pair(
        Probe.VMA_FREE,
        "a range is unmapped, and its VMAs are gone",
        "unmap",
        "unmap_vmas",
        reads=tuple(_UNMAPPED.split()),
    ),
    _pair(
        Probe.MPROTECT_FIXUP,
        "mprotect() changes the flags of one VMA",
        "mprotect",
        "mprotect_fixup",
        reads=("vma", "pprev", "start", "end"),
    ),
    _pair(
        Probe.MLOCK_FIXUP,
        "mlock() or munlock() changes the flags of one VMA",
        "mlock",
        "mlock_fixup",
        reads=("vma", "prev", "start", "end"),
    ),
    _pair(
        Probe.KSM_MADVISE,
        "madvise() or mbind() turns KSM on or off for a VMA",
        "ksm",
        "ksm_madvise",
        reads=("vma", "start", "end", "advice", "vm_flags"),
    ),
    _entries(
        Probe.NUMA_SCAN,
        "NUMA balancing's scanner comes to a range",
        _entry("numa_scan", "change_prot_numa", "vma addr end"),
    ),
    LogicalProbe(
        probe=Probe.NUMA_MIGRATE,
        summary="NUMA balancing moves a page, or fails to",
        # Until 5.13 huge pages have a function of their own.
        attachments=_both(
            _NUMA_MOVE,
            _around(
                "numa_huge",
                "migrate_misplaced_transhuge_page",
                reads=("vma", "page", "node"),
            ),
        ),
        older=(
            _NUMA_MOVE,
            # In 7.2 the VMA is told only to who looks first whether it may be moved.
            (
                _NUMA_MOVE[0],
                _entry("numa_move_looked", "migrate_misplaced_folio", "folio node"),
                _entry(
                    "numa_move_look", "migrate_misplaced_folio_prepare", "folio vma"
                ),
            ),
        ),
    ),
    _pair(
        Probe.KSM_MERGE,
        "KSM puts another page in the place of one",
        "ksm_merge",
        "try_to_merge_one_page",
        reads=("vma", "page", "kpage"),
    ),
    LogicalProbe(
        probe=Probe.EXIT_MMAP,
        summary="an address space ends",
        attachments=(
            Attachment(
                handler="exit_return",
                kind=Kind.KRETPROBE,
                candidates=("exit_mmap",),
            ),
            Attachment(
                handler="exit_unmapped",
                kind=Kind.KPROBE,
                candidates=("tlb_finish_mmu",),
                reads=("tlb",),
            ),
            Attachment(
                handler="exit_unmaps",
                kind=Kind.KPROBE,
                candidates=("unmap_vmas",),
                reads=("tlb", "vma|unmap->unmap_desc.first"),
            ),
            Attachment(
                handler="exit_entry",
                kind=Kind.KPROBE,
                candidates=("exit_mmap",),
                reads=("mm",),
            ),
        ),
    ),
    LogicalProbe(
        probe=Probe.SNAPSHOT,
        summary="a VMA as it is while the recorder reads numa_maps",
        attachments=(
            Attachment(
                handler="snapshot_return",
                kind=Kind.KRETPROBE,
                candidates=("show_numa_map",),
            ),
            Attachment(
                handler="snapshot_entry",
                kind=Kind.KPROBE,
                candidates=("show_numa_map",),
                reads=("m", "v"),
            ),
            Attachment(
                handler="snapshot_end",
                kind=Kind.KPROBE,
                candidates=("proc_map_release",),
                reads=("file",),
            ),
        ),
    ),
    _call(Probe.SYS_MBIND, "mbind"),
    _call(Probe.SYS_SET_MEMPOLICY, "set_mempolicy"),
    _call(Probe.SYS_SET_HOME_NODE, "set_mempolicy_home_node"),
    _call(Probe.SYS_MIGRATE_PAGES, "migrate_pages"),
    _call(Probe.SYS_MOVE_PAGES, "move_pages"),
    _call(Probe.SYS_MADVISE, "madvise"),
    _call(Probe.SYS_MMAP, "mmap"),
    _call(Probe.SYS_MUNMAP, "munmap"),
    _call(Probe.SYS_MREMAP, "mremap"),
    _call(Probe.SYS_MPROTECT, "mprotect", "pkey_mprotect"),
    _call(
        Probe.SYS_MLOCK,
        *("mlock", "mlock2", "mlockall", "munlock", "munlockall"),
    ),
    _call(Probe.SYS_BRK, "brk"),
)
"""Every probe that ``record`` attaches, in that order."""

WATCHPOINT: Final = _entries(
    Probe.WATCHPOINT,
    "a write to vm_flags of a chosen VMA; what has become of the VMA",
    _entry("watch_free", "vm_area_free", "vma"),
    _entry("watch_unmap", "unmap_vmas", _UNMAPPED),
    _entry("watch_look", "show_numa_map", "m v"),
    required=True,
)
"""What ``watch`` attaches besides."""


def following(*, children: bool) -> LogicalProbe:
    """Return what --pid needs besides: a process ends and, with children, forks."""
    ends = _entry("task_gone", "release_task", "p")
    forks = _entry("task_new", "wake_up_new_task", "p")
    return _entries(
        Probe.FOLLOW,
        "a process that --pid names forks, or ends",
        *((ends, forks) if children else (ends,)),
        required=True,
    )
