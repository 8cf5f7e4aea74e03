"""Kernel stacks, and what they say of why a page came.

A tracepoint's reason is what the caller of migrate_pages() wrote there; a driver may
write what it likes (the series' own patches call a driver's migration a system
call's). The functions on the stack cannot lie.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from cdmtrace.events import Cause
from cdmtrace.format.schema import printable

_COPY: Final = re.compile(r"\.(isra|constprop|part|cold)(\.\d+)*")
"""What the compiler adds to the name of a copy that it made of a function."""

_CAUSES: Final[tuple[tuple[Cause, frozenset[str]], ...]] = (
    # mm/ksm.c
    (Cause.KSM, frozenset({"ksm_scan_thread", "break_ksm"})),
    # mm/khugepaged.c; madvise_collapse() is the same on a caller's behalf
    (
        Cause.KHUGEPAGED,
        frozenset({"khugepaged", "madvise_collapse", "hpage_collapse_scan_pmd"}),
    ),
    # mm/memory.c, mm/huge_memory.c, mm/migrate.c
    (
        Cause.NUMA_BALANCING,
        frozenset(
            {
                *("do_huge_pmd_numa_page", "migrate_misplaced_page"),
                "migrate_misplaced_folio",
            }
        ),
    ),
    # mm/compaction.c: kcompactd, direct compaction, /proc/sys/vm/compact_memory
    (Cause.COMPACTION, frozenset({"compact_zone"})),
    # mm/vmscan.c: demotion
    (Cause.RECLAIM, frozenset({"shrink_lruvec", "shrink_folio_list", "shrink_node"})),
    # kernel/cgroup/cpuset.c: the pages follow their policies
    (Cause.CPUSET, frozenset({"cpuset_migrate_mm_workfn"})),
    # mm/memory_hotplug.c
    (Cause.HOTPLUG, frozenset({"offline_pages"})),
    # mm/migrate.c, called by nobody above and none of _CALLERS
    (Cause.DRIVER, frozenset({"migrate_pages"})),
    (Cause.EXIT, frozenset({"exit_mmap"})),
    # mm/userfaultfd.c. What its caller copies from may be faulted in, too, outside.
    (
        Cause.USERFAULTFD,
        frozenset({"mfill_atomic_install_pte", "mcopy_atomic_pte", "mfill_zeropage"}),
    ),
    # mm/swap_state.c: neighbours in swap are read in by the policy of the fault's VMA
    (Cause.READAHEAD, frozenset({"__read_swap_cache_async"})),
    # mm/memory.c. Reading a page in may copy it at once: it came by swap-in.
    (
        Cause.SWAP_IN,
        frozenset({"do_swap_page", "swapin_readahead", "__x64_sys_swapoff"}),
    ),
    (
        Cause.COW,
        frozenset(
            {"do_wp_page", "wp_page_copy", "do_huge_pmd_wp_page", "do_cow_fault"}
        ),
    ),
    (
        Cause.FAULT,
        frozenset({"handle_mm_fault", "__handle_mm_fault", "exc_page_fault"}),
    ),
)
"""Cause -> functions of which one must be on the stack; the first cause that fits.

Looked up in the source of Linux 6.1: each function is the way into what it stands
for, and is on the stack by this or by its caller's name where it was inlined.
"""

_CALLERS: Final[frozenset[str]] = frozenset(
    {
        # mm/mempolicy.c and mm/migrate.c: system calls, and what a cpuset asks for
        *("do_mbind", "kernel_mbind", "__x64_sys_mbind", "__ia32_sys_mbind"),
        *("do_migrate_pages", "kernel_migrate_pages"),
        *("__x64_sys_migrate_pages", "__ia32_sys_migrate_pages"),
        *("move_pages_and_store_status", "do_pages_move", "kernel_move_pages"),
        *("__x64_sys_move_pages", "__ia32_sys_move_pages"),
        # mm/gup.c: a page that is pinned for long leaves ZONE_MOVABLE first
        *("check_and_migrate_movable_pages", "__gup_longterm_locked"),
        *("check_and_migrate_movable_folios", "migrate_longterm_unpinnable_folios"),
        # mm/memory-failure.c
        *("soft_offline_in_use_page", "__soft_offline_page", "soft_offline_page"),
        # mm/page_alloc.c
        *("__alloc_contig_migrate_range", "alloc_contig_range"),
        "alloc_contig_range_noprof",
        # mm/damon, since 6.11
        *("damon_pa_migrate", "damon_migrate_pages", "kdamond_fn"),
    }
)
"""Who calls migrate_pages() in Linux 6.1 to 7.2, and is no cause in the table.

With one of them on the stack, the stack does not tell on whose behalf: a system call
has a row that does. With none, it was not the core of the kernel that called.
"""


def function(frame: str) -> str:
    """Return the function's name alone, without what the compiler adds."""
    return _COPY.sub("", frame.split("+", maxsplit=1)[0])


@dataclass(frozen=True, slots=True)
class Stack:
    """Functions of the kernel, innermost first, as name+0xoffset."""

    frames: tuple[str, ...]

    @classmethod
    def parse(cls, payload: bytes | None) -> Stack:
        """Return the stack in a STACK row."""
        text = (payload or b"").decode(errors="replace")
        return cls(tuple(map(printable, text.split("\n"))))

    @property
    def functions(self) -> tuple[str, ...]:
        """The names alone, without what the compiler adds."""
        return tuple(map(function, self.frames))

    @property
    def cut(self) -> bool:
        """Whether it ends at a function whose return is probed.

        5.10 cannot go on from there; 6.1 can (unwind_recover_ret_addr() in
        arch/x86/include/asm/unwind.h).
        """
        return self.functions[-1:] == ("kretprobe_trampoline",)

    @property
    def cause(self) -> Cause | None:
        """Why what happened did, None where the stack does not tell.

        A system call is none of these: an event says which one it was in.
        """
        return cause_of(self.functions)


def cause_of(functions: Iterable[str]) -> Cause | None:
    """Return the first cause of the table that has a function among these."""
    present = set(functions)
    if not _CALLERS.isdisjoint(present):
        present.discard("migrate_pages")
    return next((cause for cause, names in _CAUSES if names & present), None)
