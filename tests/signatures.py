"""What BTF tells of the functions that are probed, kernel by kernel.

Taken from Debian's builds 5.10.0-46-amd64, 6.12.118+deb13-amd64 and 7.2.13+deb14-amd64,
and from the laboratory's 6.1, which has what Debian's has.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from cdmtrace.kernel.btf import TypeMissing

ARGUMENTS: dict[str, dict[str, str]] = {
    "5.10": {
        "__split_vma": "mm, vma, addr, new_below",
        "alloc_pages_vma": "gfp, order, vma, addr, node, hugepage",
        "change_prot_numa": "vma, addr, end",
        "copy_page_range": "dst_vma, src_vma",
        "exit_mmap": "mm",
        "finish_fault": "vmf",
        "ksm_madvise": "vma, start, end, advice, vm_flags",
        "migrate_misplaced_page": "page, vma, node",
        "migrate_pages": "from, get_new_page, put_new_page, private, mode, reason",
        "mlock_fixup": "vma, prev, start, end, newflags",
        "move_page_tables": "vma, old_addr, new_vma, new_addr, len, need_rmap_locks",
        "mpol_rebind_mm": "mm, new",
        "mpol_rebind_nodemask": "pol, nodes",
        "mpol_rebind_policy": "pol, newmask",
        "mpol_shared_policy_lookup": "sp, idx",
        "mprotect_fixup": "vma, pprev, start, end, newflags",
        "page_add_anon_rmap": "page, vma, address, compound",
        "page_add_file_rmap": "page, compound",
        "page_add_new_anon_rmap": "page, vma, address, compound",
        "page_remove_rmap": "page, compound",
        "proc_map_release": "inode, file",
        "release_task": "p",
        "remove_migration_pte": "page, vma, addr, old",
        "shmem_fault": "vmf",
        "show_numa_map": "m, v",
        "tlb_finish_mmu": "tlb, start, end",
        "tlb_gather_mmu": "tlb, mm, start, end",
        "try_to_merge_one_page": "vma, page, kpage",
        "try_to_unmap_one": "page, vma, address, arg",
        "unmap_vmas": "tlb, vma, start_addr, end_addr",
        "vm_area_free": "vma",
        "vm_insert_page": "vma, addr, page",
        "vma_merge": (
            "mm, prev, addr, end, vm_flags, anon_vma, file, pgoff, "
            "policy, vm_userfaultfd_ctx"
        ),
        "wake_up_new_task": "p",
        "__unmap_hugepage_range": "tlb, vma, start, end, ref_page",
        "alloc_set_pte": "vmf, page",
        "do_page_add_anon_rmap": "page, vma, address, flags",
        "expand_downwards": "vma, address",
        "hugepage_vma_revalidate": "mm, address, vmap",
        "hugetlb_cow": "mm, vma, address, ptep, pagecache_page, ptl",
        "migrate_misplaced_transhuge_page": "mm, vma, pmd, entry, address, page, node",
        "queue_pages_test_walk": "start, end, walk",
        "shmem_mfill_atomic_pte": (
            "dst_mm, dst_pmd, dst_vma, dst_addr, src_addr, zeropage, pagep"
        ),
        "unmap_page_range": "tlb, vma, addr, end, details",
        "up_write": "sem",
        "vma_link": "mm, vma, prev, rb_link, rb_parent",
        "wp_page_copy": "vmf",
        "collapse_pte_mapped_thp": "mm, addr",
    },
    "6.1": {
        "__split_vma": "mm, vma, addr, new_below",
        "change_prot_numa": "vma, addr, end",
        "copy_page_range": "dst_vma, src_vma",
        "exit_mmap": "mm",
        "finish_fault": "vmf",
        "ksm_madvise": "vma, start, end, advice, vm_flags",
        "mbind_range": "vmi, vma, prev, start, end, new_pol",
        "migrate_misplaced_page": "page, vma, node",
        "migrate_pages": (
            "from, get_new_page, put_new_page, private, mode, reason, ret_succeeded"
        ),
        "mlock_fixup": "vma, prev, start, end, newflags",
        "move_page_tables": "vma, old_addr, new_vma, new_addr, len, need_rmap_locks",
        "mpol_rebind_mm": "mm, new",
        "mpol_rebind_nodemask": "pol, nodes",
        "mpol_rebind_policy": "pol, newmask",
        "mpol_shared_policy_lookup": "sp, idx",
        "mprotect_fixup": "tlb, vma, pprev, start, end, newflags",
        "page_add_anon_rmap": "page, vma, address, flags",
        "page_add_file_rmap": "page, vma, compound",
        "page_add_new_anon_rmap": "page, vma, address",
        "page_remove_rmap": "page, vma, compound",
        "perf_event_mmap": "vma",
        "proc_map_release": "inode, file",
        "release_task": "p",
        "remove_migration_pte": "folio, vma, addr, old",
        "shmem_alloc_folio": "gfp, info, index",
        "shmem_fault": "vmf",
        "show_numa_map": "m, v",
        "tlb_finish_mmu": "tlb",
        "tlb_gather_mmu": "tlb, mm",
        "try_to_merge_one_page": "vma, page, kpage",
        "try_to_migrate_one": "folio, vma, address, arg",
        "try_to_unmap_one": "folio, vma, address, arg",
        "unmap_vmas": "tlb, mt, vma, start_addr, end_addr",
        "vm_area_free": "vma",
        "vm_insert_page": "vma, addr, page",
        "vma_alloc_folio": "gfp, order, vma, addr, hugepage",
        "vma_merge": (
            "mm, prev, addr, end, vm_flags, anon_vma, file, pgoff, "
            "policy, vm_userfaultfd_ctx, anon_name"
        ),
        "wake_up_new_task": "p",
    },
    "6.12": {
        "__split_vma": "vmi, vma, addr, new_below",
        "change_prot_numa": "vma, addr, end",
        "copy_page_range": "dst_vma, src_vma",
        "exit_mmap": "mm",
        "finish_fault": "vmf",
        "folio_add_anon_rmap_pmd": "folio, page, vma, address, flags",
        "folio_add_anon_rmap_ptes": "folio, page, nr_pages, vma, address, flags",
        "folio_add_file_rmap_pmd": "folio, page, vma",
        "folio_add_file_rmap_ptes": "folio, page, nr_pages, vma",
        "folio_add_new_anon_rmap": "folio, vma, address, flags",
        "folio_remove_rmap_pmd": "folio, page, vma",
        "folio_remove_rmap_ptes": "folio, page, nr_pages, vma",
        "ksm_madvise": "vma, start, end, advice, vm_flags",
        "mbind_range": "vmi, vma, prev, start, end, new_pol",
        "migrate_misplaced_folio": "folio, vma, node",
        "migrate_pages": (
            "from, get_new_folio, put_new_folio, private, mode, reason, ret_succeeded"
        ),
        "mlock_fixup": "vmi, vma, prev, start, end, newflags",
        "move_page_tables": (
            "vma, old_addr, new_vma, new_addr, len, need_rmap_locks, for_stack"
        ),
        "mpol_rebind_mm": "mm, new",
        "mpol_rebind_nodemask": "pol, nodes",
        "mpol_rebind_policy": "pol, newmask",
        "mpol_shared_policy_lookup": "sp, idx",
        "mprotect_fixup": "vmi, tlb, vma, pprev, start, end, newflags",
        "perf_event_mmap": "vma",
        "proc_map_release": "inode, file",
        "release_task": "p",
        "remove_migration_pte": "folio, vma, addr, arg",
        "shmem_alloc_folio": "gfp, order, info, index",
        "shmem_fault": "vmf",
        "show_numa_map": "m, v",
        "tlb_finish_mmu": "tlb",
        "tlb_gather_mmu": "tlb, mm",
        "try_to_merge_one_page": "vma, page, kpage",
        "try_to_migrate_one": "folio, vma, address, arg",
        "try_to_unmap_one": "folio, vma, address, arg",
        "unmap_vmas": "tlb, mas, vma, start_addr, end_addr, tree_end, mm_wr_locked",
        "vm_area_free": "vma",
        "vm_insert_page": "vma, addr, page",
        "vma_alloc_folio_noprof": "gfp, order, vma, addr, hugepage",
        "vma_merge_new_range": "vmg",
        "vma_modify": "vmg",
        "wake_up_new_task": "p",
    },
    "7.2": {
        "__split_vma": "vmi, vma, addr, new_below",
        "change_prot_numa": "vma, addr, end",
        "copy_page_range": "dst_vma, src_vma",
        "exit_mmap": "mm",
        "finish_fault": "vmf",
        "folio_add_anon_rmap_pmd": "folio, page, vma, address, flags",
        "folio_add_anon_rmap_ptes": "folio, page, nr_pages, vma, address, flags",
        "folio_add_file_rmap_pmd": "folio, page, vma",
        "folio_add_file_rmap_ptes": "folio, page, nr_pages, vma",
        "folio_add_new_anon_rmap": "folio, vma, address, flags",
        "folio_remove_rmap_pmd": "folio, page, vma",
        "folio_remove_rmap_ptes": "folio, page, nr_pages, vma",
        "ksm_madvise": "vma, start, end, advice, vm_flags",
        "mbind_range": "vmi, vma, prev, start, end, new_pol",
        "migrate_misplaced_folio": "folio, node",
        "migrate_misplaced_folio_prepare": "folio, vma, node",
        "migrate_pages": (
            "from, get_new_folio, put_new_folio, private, mode, reason, ret_succeeded"
        ),
        "mlock_fixup": "vmi, vma, prev, start, end, newflags",
        "move_page_tables": "pmc",
        "mpol_rebind_mm": "mm, new",
        "mpol_rebind_nodemask": "pol, nodes",
        "mpol_rebind_policy": "pol, newmask",
        "mpol_shared_policy_lookup": "sp, idx",
        "mprotect_fixup": "vmi, tlb, vma, pprev, start, end, newflags",
        "perf_event_mmap": "vma",
        "proc_map_release": "inode, file",
        "release_task": "p",
        "remove_migration_pte": "folio, vma, addr, arg",
        "shmem_alloc_folio": "gfp, order, info, index",
        "shmem_fault": "vmf",
        "show_numa_map": "m, v",
        "tlb_finish_mmu": "tlb",
        "tlb_gather_mmu": "tlb, mm",
        "try_to_merge_one_page": "vma, page, kpage",
        "try_to_migrate_one": "folio, vma, address, arg",
        "try_to_unmap_one": "folio, vma, address, arg",
        "unmap_vmas": "tlb, unmap",
        "vm_area_free": "vma",
        "vma_merge_new_range": "vmg",
        "vma_modify": "vmg",
        "vm_insert_page": "vma, addr, page",
        "vma_alloc_folio_noprof": "gfp, order, vma, addr",
        "wake_up_new_task": "p",
    },
}
"""Kernel -> function -> its arguments, with a comma between them."""

OFFSETS: dict[str, dict[tuple[str, str], int]] = {
    "5.10": {("mm_struct", "mmap"): 0, ("vm_area_struct", "vm_next"): 16},
    "6.12": {
        ("vma_merge_struct", "mm"): 0,
        ("vma_merge_struct", "start"): 48,
        ("vma_merge_struct", "end"): 56,
        ("vma_merge_struct", "flags"): 64,
    },
    "7.2": {
        ("vma_merge_struct", "mm"): 0,
        ("vma_merge_struct", "start"): 48,
        ("vma_merge_struct", "end"): 56,
        ("vma_merge_struct", "vm_flags"): 72,
        ("unmap_desc", "first"): 8,
        ("unmap_desc", "vma_start"): 32,
        ("unmap_desc", "vma_end"): 40,
        ("pagetable_move_control", "old"): 0,
        ("pagetable_move_control", "new"): 8,
        ("pagetable_move_control", "old_addr"): 16,
        ("pagetable_move_control", "new_addr"): 32,
        ("pagetable_move_control", "len_in"): 40,
    },
}
"""Kernel -> member of a struct that arguments are handed over in -> where it is."""


@dataclass(frozen=True, slots=True)
class FakeTypes:
    """Tells of functions and structs what it was told."""

    functions: Mapping[str, Sequence[str]] = field(default_factory=dict)
    offsets: Mapping[tuple[str, str], int] = field(default_factory=dict)
    enums: Sequence[Mapping[str, int]] = ()

    def arguments(self, function: str) -> Sequence[str] | None:
        """As Btf.arguments()."""
        return self.functions.get(function)

    def constants(self, name: str) -> Mapping[str, int]:
        """As Btf.constants()."""
        return next((enum for enum in self.enums if name in enum), {})

    def offset(self, struct: str, member: str) -> int:
        """As Btf.offset()."""
        try:
            return self.offsets[struct, member]
        except KeyError:
            raise TypeMissing(f"struct {struct} has no {member}") from None


def types_of(kernel: str) -> FakeTypes:
    """Return what that kernel tells."""
    functions = {name: text.split(", ") for name, text in ARGUMENTS[kernel].items()}
    return FakeTypes(functions, OFFSETS.get(kernel, {}))
