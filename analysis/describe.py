"""One event in words: what a witness says."""

from __future__ import annotations

from typing import Final

from cdmtrace.analysis import names
from cdmtrace.analysis.frames import Event, Terms
from cdmtrace.events import Bit, Cause, EventKind, Mpol, Probe

_MOVE: Final = 2 | 4
"""MPOL_MF_MOVE | MPOL_MF_MOVE_ALL (include/uapi/linux/mempolicy.h)."""


_UNCHANGED: Final = frozenset(
    {
        EventKind.CALL,
        EventKind.CALL_OPEN,
        EventKind.MM_EXIT,
        EventKind.VMA_FREE,
        EventKind.SNAP_RANGES,
        EventKind.COPY,
    }
)
"""Rows whose flags are not those of one VMA before and after: they have none, or, of a
fork, the parent's and the child's, which does not inherit VM_LOCKED and others."""


def what(event: Event, terms: Terms) -> str:
    """Return what happened, short: fit for one line of a witness."""
    match event.kind:
        case EventKind.CALL | EventKind.CALL_OPEN:
            return _call(event, terms)
        case EventKind.POLICY if event.ret:
            return f"the policy could not be set: {names.errno(event.ret)}"
        case EventKind.POLICY:
            before = names.policy(event.other_policy, event.other)
            after = names.policy(event.policy, event.nodes)
            who = " by a cpuset" if event.cause == Cause.CPUSET else ""
            return f"policy {before} -> {after}{who}"
        case EventKind.VMA_SEEN:
            return "VMA before the change"
        case EventKind.VMA_SPLIT:
            return f"split after {names.size(event.addr - event.start, terms.page)}"
        case EventKind.VMA_MERGE:
            return f"one VMA now: {names.size(event.end - event.start, terms.page)}"
        case EventKind.VMA_NEW:
            size = names.size(event.end - event.start, terms.page)
            return f"VMA new or grown: {size}"
        case EventKind.VMA_FREE:
            return f"{names.size(event.size, terms.page)} unmapped"
        case EventKind.ALLOC:
            text = f"page allocated on node {event.node}"
            by = event.other_policy & 15
            if by not in (Mpol.UNREAD, Mpol.DEFAULT):
                task = names.policy(event.other_policy, event.other)
                text = f"node {event.node} by task's {task}"
            return text
        case EventKind.MAP | EventKind.COLLAPSE:
            huge = "huge page" if event.size > terms.page else "page"
            return f"{huge} of node {event.node} mapped"
        case EventKind.MIGRATE:
            if event.src_node < 0:
                return f"page migrated to node {event.node}"
            return f"page migrated, node {event.src_node} -> {event.node}"
        case EventKind.UNMAP | EventKind.ZAP:
            return f"page of node {event.src_node} leaves"
        case EventKind.NUMA_SCAN:
            size = names.size(event.size, terms.page)
            return f"NUMA balancing scans {size}"
        case EventKind.NUMA_MOVE:
            way = f"node {event.src_node} -> {event.node}"
            if event.ret:
                return f"page moved by NUMA balancing, {way}"
            return f"page not moved by NUMA balancing, {way}"
        case EventKind.KSM_PAGE:
            what = "KSM page" if event.bits & Bit.KSM else "page of zeros"
            return f"{what} of node {event.node} for one of node {event.src_node}"
        case EventKind.COPY:
            return f"fork copies {names.size(event.end - event.start, terms.page)}"
        case EventKind.MOVE:
            return f"{names.size(event.size, terms.page)} moved to {event.other:x}"
        case EventKind.SNAP_VMA:
            return "VMA as it was when recording began"
        case EventKind.SNAP_RANGES:
            return f"pages of node {event.node} as they were then"
        case EventKind.KSM_ADVICE:
            return f"ksm_madvise({names.advice(event.arg)})"
        case EventKind.FLAGS if event.bits & Bit.VMA_UNREAD:
            return "vm_flags are going to be written"
        case EventKind.WRITE:
            at = names.instruction(event.payload)
            return f"written by {at}" if at else "vm_flags written"
        case EventKind.FLAGS:
            return "vm_flags written"
        case EventKind.MM_EXIT:
            return "the mm ends"
    return names.kind(event.kind)


def _call(event: Event, terms: Terms) -> str:
    probe = names.probe(event.probe).removeprefix("sys_")
    asked = ""
    if event.probe in (Probe.SYS_MBIND, Probe.SYS_SET_MEMPOLICY):
        asked = names.policy(event.other_policy, event.other)
        if event.probe == Probe.SYS_MBIND:
            asked += ", MOVE" if event.arg & _MOVE else ""
            asked += f", {names.size(event.end - event.start, terms.page)}"
    elif event.probe == Probe.SYS_MIGRATE_PAGES:
        asked = f"{names.nodes(event.nodes)} -> {names.nodes(event.other)}"
    elif event.probe == Probe.SYS_MADVISE:
        asked = names.advice(event.arg)
    return f"{probe}({asked}) = {result(event)}"


def result(event: Event) -> str:
    """Return what a system call has returned, "open" if it has not."""
    return "open" if event.kind == EventKind.CALL_OPEN else names.errno(event.ret)


def flags(event: Event, terms: Terms) -> tuple[str, str]:
    """Return vm_flags before and after, by name; empty where a row has none."""
    if event.kind in (EventKind.CALL, EventKind.CALL_OPEN, EventKind.MM_EXIT):
        return "", ""
    return names.changed(event.flags_before, event.flags_after, terms)


def flags_changed(event: Event) -> bool:
    """Return whether a row shows flags of a VMA to have changed."""
    return event.flags_before != event.flags_after and event.kind not in _UNCHANGED


def lock(event: Event) -> str:
    """Return how the mmap lock of the VMA's mm was held; empty for a call."""
    if event.kind in (EventKind.CALL, EventKind.CALL_OPEN, EventKind.MM_EXIT):
        return ""
    return names.locks(event.lock_entry, event.lock_exit)
