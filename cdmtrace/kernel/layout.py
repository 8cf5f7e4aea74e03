"""What the BPF program has to know of this kernel: offsets, bit numbers, sizes."""

from __future__ import annotations

import contextlib
import mmap
from collections.abc import Mapping
from typing import Final

from cdmtrace.errors import RecordError
from cdmtrace.kernel.btf import Btf, TypeMissing

MEMBERS: Final[tuple[tuple[str, str], ...]] = (
    ("vm_area_struct", "vm_start"),
    ("vm_area_struct", "vm_end"),
    ("vm_area_struct", "vm_flags"),
    ("vm_area_struct", "vm_mm"),
    ("vm_area_struct", "vm_pgoff"),
    ("vm_area_struct", "vm_file"),
    ("vm_area_struct", "vm_policy"),
    ("vm_area_struct", "anon_vma"),
    ("mm_struct", "mmap_lock"),
    ("rw_semaphore", "count"),
    ("rw_semaphore", "owner"),
    ("mempolicy", "mode"),
    ("mempolicy", "flags"),
    ("page", "flags"),
    ("page", "compound_head"),
    ("page", "mapping"),
    ("page", "index"),
    ("task_struct", "mm"),
    ("task_struct", "mempolicy"),
    ("task_struct", "flags"),
    ("task_struct", "tgid"),
    ("task_struct", "pid"),
    ("vm_fault", "vma"),
    ("vm_fault", "address"),
    ("vm_fault", "page"),
    ("mmu_gather", "end"),
    ("file", "private_data"),
    ("seq_file", "private"),
    ("proc_maps_private", "task"),
    ("proc_maps_private", "mm"),
    ("numa_maps_private", "md"),
    ("numa_maps", "node"),
)
"""Every member that the program reads, as OFF_<struct>_<member>."""

MAPLE_TREE: Final[tuple[tuple[str, str], ...]] = (
    ("mm_struct", "mm_mt"),
    ("ma_state", "tree"),
    ("ma_state", "node"),
    ("ma_state", "offset"),
    ("maple_range_64", "slot"),
)
"""The same of kernels that keep VMAs in a maple tree, 6.1 and later."""


OPTIONAL: Final[tuple[tuple[str, str], ...]] = (
    ("mempolicy", "nodes"),  # since 5.14
    ("mempolicy", "v"),  # before
    ("mm_struct", "mmap"),  # until 6.0
    ("vm_area_struct", "vm_next"),  # until 6.0
    ("mm_walk", "vma"),
    ("rmap_walk_arg", "folio"),
    ("folio", "_nr_pages"),
    ("folio", "_entire_mapcount"),
    ("vm_area_struct", "vm_lock"),  # 6.4 to 6.14
    ("vm_area_struct", "vm_refcnt"),  # since 6.15
    ("vm_area_struct", "vm_lock_seq"),
    ("mm_struct", "mm_lock_seq"),
    ("vma_lock", "lock"),
)
"""What not every kernel has, one by one."""

OTHER_NAMES: Final[Mapping[tuple[str, str], str]] = {
    ("page", "compound_head"): "compound_info",  # 7.2
    ("page", "index"): "__folio_index",  # 7.2
    ("proc_maps_private", "mm"): "lock_ctx.mm",  # 7.2
    ("folio", "_nr_pages"): "_folio_nr_pages",  # until 6.12
}
"""What members are called on some kernels."""


NOWHERE: Final = (1 << 64) - 1
"""The offset of what a kernel has not got: HAS() in bpf/compat.h."""

_NUMBERS: Final = (
    *("NODES_PGSHIFT", "NODES_MASK", "NODEMASK_MASK", "PG_HEAD", "PG_RESERVED"),
    *("SIZEOF_page", "PMD_BYTES", "HEAD_MASKS", "VMA_HEAD", "SEM_HEAD"),
    "MOVED_IS_ZERO",
)
NAMES: Final = (
    *_NUMBERS,
    *(f"OFF_{one}_{member}" for one, member in (*MEMBERS, *MAPLE_TREE, *OPTIONAL)),
)
"""All that defines() knows, but how many words it takes to have two members."""


_PREPARES: Final = "migrate_misplaced_folio_prepare"
"""Where it is (6.11), migrate_misplaced_folio() returns 0 for a page that was moved and
-EAGAIN for another; before, how many were moved (mm/migrate.c)."""


class LayoutUnknown(RecordError):
    """This kernel is laid out in a way that is not known here (exit status 125)."""


def node_bits(config: Mapping[str, str]) -> tuple[int, int]:
    """Return (shift, bits): where the node is in page->flags.

    The node is below the section, at the top of the word
    (include/linux/page-flags-layout.h), and there is no section with
    SPARSEMEM_VMEMMAP or without SPARSEMEM. Raises LayoutUnknown.
    """
    bits = int(config.get("CONFIG_NODES_SHIFT", "0"))
    if "CONFIG_SPARSEMEM" in config and "CONFIG_SPARSEMEM_VMEMMAP" not in config:
        raise LayoutUnknown(
            "this kernel keeps section numbers in page->flags "
            "(SPARSEMEM without SPARSEMEM_VMEMMAP): nodes of pages cannot be told",
            hint="boot a kernel with CONFIG_SPARSEMEM_VMEMMAP=y",
        )
    return 64 - bits, bits


def heads(numbers: Mapping[str, int]) -> dict[str, int]:
    """Return <STRUCT>_HEAD and <STRUCT>_HEAD_WORDS for what is read at once.

    That is where the first of some members is, and how many words of 8 bytes it takes
    to have them all. numbers: the offsets.
    """
    found = {}
    for name, struct, members in (
        ("VMA", "vm_area_struct", ("vm_start", "vm_end", "vm_mm", "vm_flags")),
        ("SEM", "rw_semaphore", ("count", "owner")),
    ):
        places = [numbers[f"OFF_{struct}_{member}"] for member in members]
        found[f"{name}_HEAD"] = min(places)
        found[f"{name}_HEAD_WORDS"] = (max(places) - min(places)) // 8 + 1
    return found


def defines(btf: Btf, config: Mapping[str, str]) -> dict[str, int]:
    """Return macro -> number for the BPF program.

    Raises TypeMissing where the kernel has no such member, LayoutUnknown.
    """
    shift, bits = node_bits(config)
    nodes = 1 << bits
    # page->flags >> 64 is undefined in C: one node needs no bit, and no shift.
    numbers = {
        "NODES_PGSHIFT": shift if bits else 0,
        "NODES_MASK": nodes - 1,
        "NODEMASK_MASK": (1 << min(nodes, 64)) - 1,
        "PG_HEAD": btf.enumerator("pageflags", "PG_head"),
        "PG_RESERVED": btf.enumerator("pageflags", "PG_reserved"),
        "SIZEOF_page": btf.sizeof("page"),
        "PMD_BYTES": mmap.PAGESIZE * (mmap.PAGESIZE // 8),
        "MOVED_IS_ZERO": int(btf.arguments(_PREPARES) is not None),
    }
    for struct, member in MEMBERS:
        numbers[f"OFF_{struct}_{member}"] = _offset(btf, struct, member)
    numbers["HEAD_MASKS"] = _head_masks(btf, config)
    numbers |= heads(numbers)
    for struct, member in (*MAPLE_TREE, *OPTIONAL):
        numbers[f"OFF_{struct}_{member}"] = NOWHERE
    with contextlib.suppress(TypeMissing):
        numbers |= {
            f"OFF_{struct}_{member}": btf.offset(struct, member)
            for struct, member in MAPLE_TREE
        }
    for struct, member in OPTIONAL:
        with contextlib.suppress(TypeMissing):
            numbers[f"OFF_{struct}_{member}"] = _offset(btf, struct, member)
    return numbers


def _offset(btf: Btf, struct: str, member: str) -> int:
    """Return where a member is, whatever it is called. Raises TypeMissing."""
    if other := OTHER_NAMES.get((struct, member)):
        with contextlib.suppress(TypeMissing):
            return btf.offset(struct, other)
    return btf.offset(struct, member)


def _head_masks(btf: Btf, config: Mapping[str, str]) -> int:
    """Return 1 if a tail page has a mask that leads to its head, 0 for a pointer.

    compound_info_has_mask() in include/linux/page-flags.h (7.2).
    """
    try:
        btf.offset("page", "compound_info")
    except TypeMissing:
        return 0
    hidden = "CONFIG_HUGETLB_PAGE_OPTIMIZE_VMEMMAP" in config
    return int(hidden and btf.sizeof("page").bit_count() == 1)
