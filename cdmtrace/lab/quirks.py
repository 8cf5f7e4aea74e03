"""The quirks of the laboratory kernel: most are defects of the posted patches.

The lab kernel carries the tagging of RFC V2 done right; a quirk switches one defect
of the original (or the absence of a fix) on at run time, or a fix of it that is
wrong.  The kernel reads the names
from ``/sys/kernel/debug/cdm/quirks`` and enables what a quirk needs by itself; the
same table is kept here so that a list can be checked, expanded and explained before
a guest is booted.
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cdmtrace.errors import LabError
from cdmtrace.lab.specs import BUILT, PACKAGED

if TYPE_CHECKING:
    from collections.abc import Iterable

DEBUGFS_FILE = "/sys/kernel/debug/cdm/quirks"
"""Where a guest's kernel takes the list: names replace the set, ``none`` clears it."""

NONE = "none"
RFC = "rfc"


@dataclass(frozen=True, kw_only=True, slots=True)
class Quirk:
    """One defect: its name, what it does, where the series has it, what it needs.

    in_rfc: the posted patches do it, and live; ``rfc`` has it.  crashes: to do what
    shows it ends the guest.  absent: kernels of the laboratory that cannot do it.
    """

    name: str
    summary: str
    source: str
    needs: tuple[str, ...] = ()
    in_rfc: bool = True
    crashes: bool = False
    absent: tuple[str, ...] = ()


QUIRKS: tuple[Quirk, ...] = (
    Quirk(
        name="bind-only",
        summary="mbind() tags a VMA for MPOL_BIND alone; a preferred or interleaved "
        "CDM node leaves it untagged",
        source="RFC V2 12/12",
    ),
    Quirk(
        name="fault-tag",
        summary="the page-fault allocation sets the tag, with mmap_lock held for "
        "read only",
        source="RFC V2 11/12",
        needs=("bind-only",),
    ),
    Quirk(
        name="interleave-untagged",
        summary="an interleaved allocation returns before the place in the fault "
        "path that tags",
        source="RFC V2 11/12 (D3)",
        needs=("fault-tag",),
    ),
    Quirk(
        name="thp-untagged",
        summary="a huge-page allocation returns before the place in the fault path "
        "that tags",
        source="RFC V2 11/12 (D3)",
        needs=("fault-tag",),
    ),
    Quirk(
        name="one-way",
        summary="nothing ever clears the tag, whatever becomes of policy and pages",
        source="RFC V2 11/12 and 12/12",
    ),
    Quirk(
        name="whole-vma",
        summary="mbind() of a part tags the whole VMA, before it is split and before "
        "the new policy is in place",
        source="RFC V2 12/12 (D4, D5)",
    ),
    Quirk(
        name="migration-ungated",
        summary="move_pages(), migrate_pages() and MPOL_MF_MOVE bring CDM pages into "
        "any VMA, and tag none",
        source="RFC V2 cover letter and review of 11/12",
    ),
    Quirk(
        name="task-policy",
        summary="set_mempolicy() may name a CDM node, and its pages land in ordinary "
        "VMAs",
        source="RFC V2 03/12 with 11/12",
    ),
    Quirk(
        name="ksm-left-on",
        summary="setting the tag leaves the VMA mergeable and its merged pages alone",
        source="RFC V2 10/12 with 12/12",
    ),
    Quirk(
        name="ksm-merge",
        summary="KSM takes CDM pages of untagged VMAs, and may keep its shared copy "
        "on the CDM node",
        source="RFC V2 10/12 (D17)",
    ),
    Quirk(
        name="khugepaged",
        summary="khugepaged collapses pages into or out of CDM without a look at the "
        "policy",
        source="absent from RFC V2 (D18)",
    ),
    Quirk(
        name="swap-readahead",
        summary="swap readahead allocates the neighbours' pages by the faulting "
        "VMA's policy, so another VMA's page may come back on CDM",
        source="RFC V2 11/12 (D9)",
    ),
    Quirk(
        name="shared-policy",
        summary="mbind() of shared memory may name CDM nodes, though the allocation "
        "never sees the VMAs that map it",
        source="RFC V2 11/12 (D7)",
    ),
    Quirk(
        name="no-rebind",
        summary="a policy that a cpuset change rebinds keeps the tag of the old nodes",
        source="absent from RFC V2",
    ),
    Quirk(
        name="first-node",
        summary="only the first node of a BIND mask is looked at when the zonelist "
        "is chosen",
        source="RFC V2 04/12",
    ),
    Quirk(
        name="driver-untagged",
        summary="a driver maps CDM pages and moves ranges to CDM without a tag, and "
        "asks no VMA",
        source="RFC V2 DEBUG 19 and 20",
    ),
    Quirk(
        name="numa-residual",
        summary="a NUMA hinting fault still moves the page of a VMA that was scanned "
        "before it was tagged",
        source="RFC V2 09/12 (D10)",
    ),
    Quirk(
        name="numa-scanned",
        summary="the NUMA balancing scanner works on tagged VMAs",
        source="RFC V2 without 09/12",
        in_rfc=False,
    ),
    Quirk(
        name="mergeable-honoured",
        summary="MADV_MERGEABLE takes effect on a tagged VMA",
        source="RFC V2 without 10/12",
        in_rfc=False,
    ),
    Quirk(
        name="default-oops",
        summary="mbind(MPOL_DEFAULT) dereferences the NULL policy; the guest crashes",
        source="RFC V2 12/12 (D1)",
        in_rfc=False,
        crashes=True,
    ),
    Quirk(
        name="null-vma",
        summary="the page-fault allocation tags without a test for a NULL VMA, so "
        "that MADV_WILLNEED on swapped shared memory crashes the guest",
        source="RFC V2 11/12 (D2)",
        needs=("fault-tag", "bind-only"),
        in_rfc=False,
        crashes=True,
        # Since 6.7 what is allocated for no VMA is given a policy, and no VMA.
        absent=("cdm-6.12",),
    ),
    Quirk(
        name="unlocked-clear",
        summary="not mbind() clears the tag, but the migration of a page from a CDM "
        "node to RAM, with no lock of the VMA held",
        source="wrong fix of one-way",
        needs=("one-way",),
        in_rfc=False,
    ),
    Quirk(
        name="slow-rmw",
        summary="whoever writes the tag without the lock (fault-tag, unlocked-clear) "
        "takes some milliseconds between load and store",
        source="RFC V2 11/12 and wrong fix, drawn out",
        in_rfc=False,
    ),
    Quirk(
        name="workqueue-tag",
        summary="not mbind() sets the tag, but a work item a moment later, with "
        "mmap_lock held for read only",
        source="wrong fix of fault-tag",
        in_rfc=False,
    ),
    Quirk(
        name="mprotect-drop",
        summary="mprotect() drops the tag of the range it changes",
        source="wrong fix, in mprotect()",
        in_rfc=False,
    ),
    Quirk(
        name="fork-drop",
        summary="a child's VMAs lose the tag at fork",
        source="wrong fix, in fork",
        in_rfc=False,
    ),
    Quirk(
        name="split-drop",
        summary="when a VMA is split, the half that is new loses the tag",
        source="wrong fix, in the split of VMAs",
        in_rfc=False,
    ),
)

BY_NAME: dict[str, Quirk] = {quirk.name: quirk for quirk in QUIRKS}


def resolve(names: str | Iterable[str]) -> tuple[str, ...]:
    """Return the quirks that ``names`` switches on, in the order of the table.

    ``names`` is a list, or a string separated by commas or blanks.  ``rfc`` stands
    for what the posted patches do, short of crashing, ``none`` and the empty string
    for no quirk; what a quirk needs is added.  Raises :class:`LabError` for an unknown
    name (and suggests close ones), and for ``none`` beside other names.
    """
    if isinstance(names, str):
        names = [name for name in re.split(r"[,\s]+", names) if name]
    asked = list(names)
    if NONE in asked:
        if len(asked) > 1:
            raise LabError(
                f"quirk list {','.join(asked)!r}: 'none' cannot stand beside others"
            )
        return ()
    chosen: set[str] = set()
    waiting = list(asked)
    while waiting:
        name = waiting.pop()
        if name in chosen:
            continue
        if name == RFC:
            waiting.extend(quirk.name for quirk in QUIRKS if quirk.in_rfc)
            continue
        quirk = BY_NAME.get(name)
        if quirk is None:
            raise _unknown(name)
        chosen.add(name)
        waiting.extend(quirk.needs)
    return tuple(quirk.name for quirk in QUIRKS if quirk.name in chosen)


def missing(names: Iterable[str], kernel: str) -> list[str]:
    """Return those of resolved ``names`` that a kernel of the laboratory lacks."""
    return [name for name in names if kernel in BY_NAME[name].absent]


def require(names: Iterable[str], kernel: str) -> None:
    """Raise :class:`LabError` if a kernel of the laboratory lacks one of the quirks.

    names: resolved. A kernel that is no name of the laboratory's is not asked.
    """
    names = tuple(names)
    if names and kernel in PACKAGED:
        raise LabError(
            f"{kernel} has no quirks: Debian's kernels have no VM_CDM",
            hint="--kernel " + " or ".join(BUILT),
        )
    if lacks := missing(names, kernel):
        others = [one for one in BUILT if one not in BY_NAME[lacks[0]].absent]
        raise LabError(
            f"{kernel} has no quirk {' or '.join(lacks)}",
            hint="--kernel " + " or ".join(others),
        )


def as_argument(names: tuple[str, ...]) -> str:
    """Return resolved ``names`` as one word for the kernel or a scenario."""
    return ",".join(names) or NONE


def _unknown(name: str) -> LabError:
    close = difflib.get_close_matches(name, [*BY_NAME, RFC, NONE], n=3, cutoff=0.5)
    message = f"unknown quirk {name!r}"
    if close:
        message += "; did you mean " + " or ".join(close) + "?"
    return LabError(message, hint="cdmtrace lab list")
