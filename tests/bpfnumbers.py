"""What the BPF program is told in tests."""

from __future__ import annotations

from signatures import ARGUMENTS, types_of

from cdmtrace.kernel import layout
from cdmtrace.planning import macros, plan
from cdmtrace.probes import PROBES, WATCHPOINT, following

KERNEL = "6.1"
"""Whose functions the programs are called for."""
RECORDER, VIEWER, CDM_NODES = 1, 3, 1 << 1


def arguments_of(kernel: str) -> dict[str, int]:
    """Return the macros that tell where arguments are on that kernel."""
    functions = frozenset(ARGUMENTS[kernel])
    probes = (*PROBES, WATCHPOINT, following(children=True))
    return macros(plan(functions, frozenset(), types_of(kernel), probes))


NUMBERS = {
    **arguments_of(KERNEL),
    **{f"OFF_{struct}_{name}": layout.NOWHERE for struct, name in layout.OPTIONAL},
    "NODES_PGSHIFT": 58,
    "NODES_MASK": 63,
    "NODEMASK_MASK": (1 << 64) - 1,
    "PG_HEAD": 16,
    "HEAD_MASKS": 0,
    "PG_RESERVED": 12,
    "SIZEOF_page": 64,
    "PMD_BYTES": 2 << 20,
    "MOVED_IS_ZERO": 0,
    "CDM_NODES": CDM_NODES,
    "CDM_MASK": 1 << 38,
    "KEY0": (1 << 64) - 59,
    "KEY1": 1 << 63,
    "ALL": 0,
    "FOLLOW_PIDS": 0,
    "FOLLOW_CHILDREN": 1,
    "FOLLOW_CGROUP": 0,
    "FOLLOW_COMM": 0,
    "COMM0": 0,
    "COMM1": 0,
    "ADDR_START": 0,
    "ADDR_END": 0,
    "STACKS": 2,
    "RECORDER": RECORDER,
    "VIEWER": VIEWER,
    "MEMORY_NODES": 3,
    "RING_PAGES": 64,
    "MAP_SIZE": 64,
    "LOST_PLACES": 64,
}
"""All but the offsets of members that every kernel has."""

PRESENT = (*layout.MEMBERS, *layout.MAPLE_TREE, ("mempolicy", "nodes"))
"""Members that this kernel has."""
OFFSETS = {f"OFF_{struct}_{name}": 8 for struct, name in PRESENT}
WHOLE = NUMBERS | OFFSETS | layout.heads(OFFSETS)
"""Enough to compile it, and to have the verifier look at it."""
NEWEST = {
    **arguments_of("7.2"),
    **{f"OFF_{struct}_{name}": 8 for struct, name in layout.OPTIONAL},
    "HEAD_MASKS": 1,
}
OLDEST_HAS = (
    *(("mempolicy", "v"), ("mm_struct", "mmap"), ("vm_area_struct", "vm_next")),
    ("mm_walk", "vma"),
)
NEWER_HAS = (
    *(("vm_area_struct", "vm_lock"), ("vm_area_struct", "vm_lock_seq")),
    *(("mm_struct", "mm_lock_seq"), ("vma_lock", "lock")),
)
"""Members that 6.12 has, and 6.1 has not."""
NEWEST_HAS = (("vm_area_struct", "vm_refcnt"), *NEWER_HAS[1:3])
"""And what 7.2 has, of the same."""
LACKING = {
    f"OFF_{struct}_{name}": layout.NOWHERE
    for struct, name in (*layout.MAPLE_TREE, ("mempolicy", "nodes"))
}
OLDEST = {
    **arguments_of("5.10"),
    **LACKING,
    **{f"OFF_{struct}_{name}": 8 for struct, name in OLDEST_HAS},
}
FILTERED = {
    "FOLLOW_PIDS": 1,
    "FOLLOW_CGROUP": 1,
    "FOLLOW_COMM": 1,
    "COMM0": 0x746C7561666570,
    "ADDR_START": 0x7F0000000000,
    "ADDR_END": 0x7F0000200000,
}
"""All at once: each of them is code that the others have not got."""
CHOICES = [
    {"ALL": 0},
    {"ALL": 1},
    FILTERED | {"ALL": 1},
    {"FOLLOW_PIDS": 1, "FOLLOW_CHILDREN": 0, "STACKS": 1},
    {"FOLLOW_CGROUP": 1, "STACKS": 0},
    {"FOLLOW_COMM": 1},
    {"ADDR_END": 4096},
]
"""What makes programs differ."""
