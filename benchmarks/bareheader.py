"""A trace's header that says nothing of any kernel."""

from __future__ import annotations

import mmap

from cdmtrace.format.schema import Header


def bare(ring_pages: int) -> Header:
    """Return it."""
    return Header(
        tool="benchmark",
        kernel_release="",
        kernel_build="",
        machine="",
        boot_id="",
        started=0,
        utc_offset=0,
        page_size=mmap.PAGESIZE,
        ring_size=ring_pages * mmap.PAGESIZE,
        cdm_nodes=(1,),
        cdm_nodes_from="",
        vm_cdm_mask=1 << 38,
        vm_cdm_mask_from="",
    )
