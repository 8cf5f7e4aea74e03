"""The services of the kernel that have to do with pages of a node.

A private node's owner says which services of the core may have a go at its pages: KSM,
khugepaged, NUMA balancing, compaction and so on. Where the posted series has a flag for
a service, it is named here: N_MEMORY_PRIVATE, "Private Memory Nodes w/ Compressed
RAM", Gregory Price, RFC v4, 22 Feb 2026, NP_OPS_MIGRATION and so on. For the others
upstream has none; its author "wasn't quite sure how to classify ksm, khugepaged,
madvise, and mlock".

Who it was that moved, unmapped or brought a page, the functions on the stack say, the
innermost that is one of a service: compaction for a huge page that khugepaged asked
for is compaction. The reason that the kernel gives for a migration can lie (CDM019).
What each did in a recording is in touched.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from cdmtrace.analysis.frames import Terms
from cdmtrace.analysis.stacks import Stack

NOT_ALWAYS: Final = "who moved, took or brought a page was not always seen"
"""Why a service that is not seen to have done anything may have."""

NO_DEPARTURES: Final = "recorded by a cdmtrace that took no stack of what leaves a node"
"""Why reclaim and others are not seen in old recordings."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Service:
    """Something in the kernel that has to do with pages of a node.

    flag: by which N_MEMORY_PRIVATE allows it, None where upstream has none. does: what
    it is, in words. functions: one of which is on the stack when it is at work, as of
    Linux 5.10 to 7.2. probes: without which it is not seen. stacks: nor is it without
    the stacks of what comes; departures: of what goes. never: why nothing of it is
    seen; partly: what of it is not, so that to have seen none says nothing.
    """

    name: str
    does: str
    flag: str | None = None
    functions: frozenset[str] = frozenset()
    probes: frozenset[str] = frozenset()
    stacks: bool = False
    departures: bool = False
    never: str = ""
    partly: str = ""


_MIGRATES: Final = frozenset({"migrate_pages", "remove_migration_pte"})

MEMPOLICY: Final = Service(
    name="mempolicy",
    flag="NP_OPS_MEMPOLICY",
    does="pages by a policy that names the node: mbind(), set_mempolicy()",
    # mm/mempolicy.c
    functions=frozenset({"do_mbind", "kernel_mbind", "__x64_sys_mbind"}),
    probes=frozenset({"rmap_add"}),
)
MIGRATION: Final = Service(
    name="migration",
    flag="NP_OPS_MIGRATION",
    does="pages moved because somebody asked: move_pages(), migrate_pages(), a cpuset",
    # mm/migrate.c, mm/mempolicy.c, kernel/cgroup/cpuset.c
    functions=frozenset(
        {
            *("do_pages_move", "move_pages_and_store_status", "kernel_move_pages"),
            *("__x64_sys_move_pages", "__x64_sys_migrate_pages"),
            *("do_migrate_pages", "kernel_migrate_pages", "cpuset_migrate_mm_workfn"),
        }
    ),
    probes=_MIGRATES,
    stacks=True,
)
NUMA_BALANCING: Final = Service(
    name="numa-balancing",
    flag="NP_OPS_NUMA_BALANCING",
    does="pages scanned for it, and moved to who uses them",
    # mm/migrate.c, mm/memory.c, mm/huge_memory.c
    functions=frozenset(
        {
            *("migrate_misplaced_page", "migrate_misplaced_folio"),
            *("do_numa_page", "do_huge_pmd_numa_page"),
        }
    ),
    probes=_MIGRATES | {"numa_scan"},
    stacks=True,
)
DEMOTION: Final = Service(
    name="demotion",
    flag="NP_OPS_DEMOTION",
    does="pages that reclaim moves to a slower node",
    # mm/vmscan.c; mostly inlined in shrink_folio_list(), which moves for nothing else
    functions=frozenset({"demote_folio_list", "demote_page_list"}),
    probes=_MIGRATES,
    stacks=True,
)
RECLAIM: Final = Service(
    name="reclaim",
    flag="NP_OPS_RECLAIM",
    does="pages unmapped to be swapped out, written back or dropped",
    # mm/vmscan.c: kswapd, direct reclaim, madvise(PAGEOUT), DAMON's
    functions=frozenset(
        {"shrink_folio_list", "shrink_page_list", "shrink_lruvec", "shrink_node"}
    ),
    probes=frozenset({"rmap_remove", "rmap_walk"}),
    departures=True,
)
COMPACTION: Final = Service(
    name="compaction",
    flag="NP_OPS_COMPACTION",
    does="pages moved within the node to make room",
    # mm/compaction.c
    functions=frozenset({"compact_zone"}),
    probes=_MIGRATES,
    stacks=True,
)
LONGTERM_PIN: Final = Service(
    name="longterm-pin",
    flag="NP_OPS_LONGTERM_PIN",
    does="pages moved before they are pinned with FOLL_LONGTERM",
    # mm/gup.c
    functions=frozenset(
        {
            *("__gup_longterm_locked", "memfd_pin_folios"),
            *("check_and_migrate_cma_pages", "check_and_migrate_movable_pages"),
            *("check_and_migrate_movable_folios", "migrate_longterm_unpinnable_pages"),
            "migrate_longterm_unpinnable_folios",
        }
    ),
    probes=_MIGRATES,
    stacks=True,
    partly="a page that may stay where it is when it is pinned leaves no row",
)
KSM: Final = Service(
    name="ksm",
    does="pages merged with equal ones, and made apart again",
    # mm/ksm.c
    functions=frozenset(
        {"ksm_scan_thread", "ksm_do_scan", "break_ksm", "try_to_merge_one_page"}
    ),
    probes=frozenset({"ksm_merge"}),
)
KHUGEPAGED: Final = Service(
    name="khugepaged",
    does="small pages put together as a huge one, madvise(COLLAPSE) too",
    # mm/khugepaged.c
    functions=frozenset(
        {
            *("khugepaged", "madvise_collapse", "collapse_huge_page", "collapse_file"),
            *("khugepaged_scan_pmd", "hpage_collapse_scan_pmd", "collapse_scan_pmd"),
            *("collapse_single_pmd", "mthp_collapse"),
        }
    ),
    probes=frozenset({"rmap_add", "rmap_remove"}),
    stacks=True,
    departures=True,
)
MLOCK: Final = Service(
    name="mlock",
    does="pages kept in memory by mlock()",
    probes=frozenset({"mlock_fixup"}),
)
OFFLINE: Final = Service(
    name="offline",
    does="pages moved because their memory goes offline",
    # mm/memory_hotplug.c
    functions=frozenset({"offline_pages"}),
    probes=_MIGRATES,
    stacks=True,
)
MEMORY_FAILURE: Final = Service(
    name="memory-failure",
    does="pages taken out of use, broken or suspected to be",
    # mm/memory-failure.c
    functions=frozenset(
        {
            *("memory_failure", "hwpoison_user_mappings", "unmap_poisoned_folio"),
            *("soft_offline_page", "__soft_offline_page", "soft_offline_in_use_page"),
        }
    ),
    probes=_MIGRATES | {"rmap_remove", "rmap_walk"},
    stacks=True,
    departures=True,
)
CONTIGUOUS: Final = Service(
    name="contiguous",
    does="pages moved to make a contiguous range: CMA, huge pages of hugetlb",
    # mm/page_alloc.c
    functions=frozenset(
        {
            *("alloc_contig_range", "alloc_contig_range_noprof"),
            *("__alloc_contig_migrate_range", "alloc_contig_frozen_range_noprof"),
        }
    ),
    probes=_MIGRATES,
    stacks=True,
)
DAMON: Final = Service(
    name="damon",
    does="pages that DAMOS moves: migrate_hot, migrate_cold",
    # mm/damon, since 6.11
    functions=frozenset(
        {
            *("damon_pa_migrate", "damon_pa_migrate_pages", "damon_migrate_pages"),
            *("damon_pa_migrate_folio_list", "damon_migrate_folio_list", "kdamond_fn"),
        }
    ),
    probes=_MIGRATES,
    stacks=True,
)
DRIVER: Final = Service(
    name="driver",
    does="pages that a driver maps or moves: the node is its own",
    # mm/migrate_device.c, besides migrate_pages() with nobody of the core above it
    functions=frozenset(
        {
            *("migrate_vma_setup", "migrate_vma_pages", "migrate_vma_finalize"),
            *("migrate_device_pages", "migrate_device_finalize"),
        }
    ),
    probes=_MIGRATES | {"driver_page"},
    stacks=True,
)
PAGE_CACHE: Final = Service(
    name="page-cache",
    does="pages of files that are mapped, and were brought in by somebody else",
    probes=frozenset({"rmap_add", "alloc"}),
    partly="pages of files that nobody maps are not recorded",
)
FALLBACK: Final = Service(
    name="fallback",
    does="pages allocated there for who has no policy that names the node (CDM014)",
    probes=frozenset({"rmap_add", "alloc"}),
)
PROTECT_WRITE: Final = Service(
    name="protect-write",
    flag="NP_OPS_PROTECT_WRITE",
    does="pages mapped read-only, so that the owner sees each write",
    never="no probe tells how a page is mapped",
)
OOM: Final = Service(
    name="oom-eligible",
    flag="NP_OPS_OOM_ELIGIBLE",
    does="pages counted where the OOM killer chooses",
    never="no probe tells what the OOM killer counts",
)

SERVICES: Final = (
    *(MEMPOLICY, MIGRATION, NUMA_BALANCING, DEMOTION, RECLAIM, COMPACTION),
    *(LONGTERM_PIN, PROTECT_WRITE, OOM, KSM, KHUGEPAGED, MLOCK, OFFLINE),
    *(MEMORY_FAILURE, CONTIGUOUS, DAMON, DRIVER, PAGE_CACHE, FALLBACK),
)
"""In the order of the table: those with a flag of N_MEMORY_PRIVATE first."""

BY_NAME: Final[Mapping[str, Service]] = {one.name: one for one in SERVICES}

BY_REASON: Final[Mapping[int, Service]] = {
    0: COMPACTION,
    1: MEMORY_FAILURE,
    2: OFFLINE,
    3: MIGRATION,
    4: MEMPOLICY,
    5: NUMA_BALANCING,
    6: CONTIGUOUS,
    7: LONGTERM_PIN,
    8: DEMOTION,
    9: DAMON,
}
"""enum migrate_reason, include/linux/migrate_mode.h of 6.12; for stacks that are cut.

5.10 ends with 6; none of what it has got has changed.
"""

PROBES: Final = frozenset().union(*(one.probes for one in SERVICES))
"""Probes of which each loss may be a page that a service touched."""

_BY_FUNCTION: Final[Mapping[str, Service]] = {
    name: one for one in SERVICES for name in one.functions
}


def of_stack(stack: Stack | None) -> Service | None:
    """Return whose work a stack shows: the innermost function that is a service's."""
    if stack is None:
        return None
    found = (_BY_FUNCTION.get(name) for name in stack.functions)
    return next((one for one in found if one is not None), None)


def unchecked(service: Service, node: int, terms: Terms) -> str | None:
    """Return why it would not have been seen on a node, None where it would."""
    if service.never:
        return service.never
    if not terms.is_cdm(node):
        return "recorded without this node (--node)"
    absent = sorted(name for name in service.probes if not terms.probes.get(name))
    if absent:
        return f"probe not attached: {', '.join(absent)}"
    if (service.stacks or service.departures) and terms.stacks != "all":
        return f"recorded with --stacks {terms.stacks}"
    if service.departures and not terms.departures:
        return NO_DEPARTURES
    return service.partly or None
