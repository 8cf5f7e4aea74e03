"""What tagging has to keep to, one sentence each, and who watches over it.

The rules are made for findings; these are made for reading a kernel. One rule may
cover many of them, and some are no rule's business. For each it is said here which
rule looks at it, what else does, and what nobody sees and why. ``cdmtrace explain
--all`` prints them, and tests hold them against the rules that there are.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, kw_only=True, slots=True)
class Invariant:
    """One sentence about tagging, and who watches over it.

    rules: ids of the rules that look at it. seen_by: what else shows whether it holds.
    not_yet: what of it nothing shows, though it could be done. why_not: what of it
    nothing can show on this kernel, or needs to. At least one of them says something.
    """

    id: str
    name: str
    statement: str
    rules: tuple[str, ...] = ()
    seen_by: str = ""
    not_yet: str = ""
    why_not: str = ""


_CRASH: Final = "`lab run`, which ends with 134 where the guest has died"


INVARIANTS: Final[tuple[Invariant, ...]] = (
    # --- the tag and the pages ------------------------------------------------
    Invariant(
        id="I01",
        name="stale tag",
        statement="A VMA whose policy names no CDM node and that has no page of one "
        "loses the tag.",
        rules=("CDM001",),
    ),
    Invariant(
        id="I02",
        name="tag without a page",
        statement="A fault does not tag for a page that is then never mapped.",
        rules=("CDM013",),
    ),
    Invariant(
        id="I03",
        name="tag after a fault",
        statement="Once a fault has mapped a CDM page that the VMA's policy asked for, "
        "the VMA is tagged.",
        rules=("CDM002",),
    ),
    Invariant(
        id="I04",
        name="tag after a migration",
        statement="Pages that a migration puts on a CDM node leave every VMA that maps "
        "them tagged.",
        rules=("CDM002", "CDM014"),
    ),
    Invariant(
        id="I05",
        name="half a migration",
        statement="A migration that fails for some pages has still to tag for those "
        "that it moved.",
        rules=("CDM002",),
    ),
    Invariant(
        id="I06",
        name="a driver's fault",
        statement="A VMA into which a driver maps CDM pages is tagged, by whoever.",
        rules=("CDM002",),
    ),
    Invariant(
        id="I07",
        name="interleaving",
        statement="An interleaved page on a CDM node asks for the tag like any other.",
        rules=("CDM002",),
    ),
    Invariant(
        id="I08",
        name="huge pages",
        statement="A huge page on a CDM node asks for the tag like small ones.",
        rules=("CDM002",),
    ),
    Invariant(
        id="I09",
        name="khugepaged",
        statement="Collapsing pages neither brings CDM memory to a VMA that did not "
        "ask for it nor leaves a tag behind that has lost its reason.",
        rules=("CDM001", "CDM002", "CDM014"),
    ),
    Invariant(
        id="I10",
        name="hugetlb",
        statement="The pools of hugetlb take no page from a CDM node.",
        seen_by="the laboratory's scenario `gates`, step `hugetlb`",
        not_yet="recordings leave pages of hugetlb out",
    ),
    Invariant(
        id="I11",
        name="kernel memory",
        statement="Nothing that cannot be moved is allocated on a CDM node: no slab, "
        "no page table.",
        not_yet="a page is recorded when a VMA gets it, and the kernel's own "
        "never get to one",
    ),
    Invariant(
        id="I12",
        name="implicit allocation",
        statement="What no policy and no request sends to a CDM node does not get "
        "there.",
        rules=("CDM014",),
    ),
    Invariant(
        id="I13",
        name="page cache",
        statement="A page of a file is on a CDM node only if the policy of a VMA that "
        "maps it sends it there.",
        rules=("CDM014",),
        not_yet="pages of the cache that no VMA maps are not recorded",
    ),
    Invariant(
        id="I14",
        name="the account",
        statement="The pages that the model counts for a VMA are those that the kernel "
        "counts.",
        seen_by="`record --audit` and `make audit`",
    ),
    # --- the tag and the policy -----------------------------------------------
    Invariant(
        id="I15",
        name="explicit only",
        statement="Only a VMA for which somebody named a CDM node is ever tagged.",
        rules=("CDM010",),
    ),
    Invariant(
        id="I16",
        name="bound elsewhere",
        statement="mbind() to other nodes clears the tag, unless CDM pages stay.",
        rules=("CDM001",),
    ),
    Invariant(
        id="I17",
        name="bound to nothing",
        statement="mbind(MPOL_DEFAULT) clears the tag, unless CDM pages stay, and does "
        "not crash.",
        rules=("CDM001",),
        seen_by=_CRASH,
    ),
    Invariant(
        id="I18",
        name="in the range",
        statement="mbind() tags nothing outside the range that it was given.",
        rules=("CDM011",),
    ),
    Invariant(
        id="I19",
        name="failed calls",
        statement="A system call that fails leaves the tag as it was, where it leaves "
        "the policy as it was.",
        rules=("CDM012",),
    ),
    Invariant(
        id="I20",
        name="the same policy again",
        statement="mbind() with the policy that is there already writes no flag.",
        not_yet="flags are compared at entry and return, and a write of the "
        "same value does not show",
    ),
    Invariant(
        id="I21",
        name="mixed nodes",
        statement="A policy of CDM nodes and RAM together is a reason for the tag, "
        "wherever its pages are.",
        rules=("CDM001", "CDM002"),
    ),
    Invariant(
        id="I22",
        name="preferred nodes",
        statement="MPOL_PREFERRED or PREFERRED_MANY with a CDM node is a reason for "
        "the tag, by whatever way the VMA is tagged.",
        rules=("CDM001", "CDM002"),
    ),
    Invariant(
        id="I23",
        name="relative nodes",
        statement="What counts is the nodes that a policy has come to mean, not those "
        "that were typed.",
        rules=("CDM001", "CDM002"),
        not_yet="nobody is told that a CDM node was reached without being named",
    ),
    Invariant(
        id="I24",
        name="rebound by a cpuset",
        statement="When a cpuset gives a policy other nodes, the tag follows.",
        rules=("CDM001", "CDM002"),
    ),
    Invariant(
        id="I25",
        name="cut by a cpuset",
        statement="A CDM node that a cpuset takes out of an mbind() is no reason for "
        "the tag; an mbind() of which nothing is left fails and tags nothing.",
        rules=("CDM010", "CDM012"),
    ),
    Invariant(
        id="I26",
        name="shared policies",
        statement="The policy of a shmem file binds every VMA that gets pages by it.",
        rules=("CDM002",),
        not_yet="a VMA is known to be under such a policy once a fault allocated by it",
    ),
    Invariant(
        id="I27",
        name="task policies",
        statement="A policy of the task tags no stack, heap or text, and brings them "
        "no CDM page.",
        rules=("CDM010", "CDM014"),
    ),
    Invariant(
        id="I28",
        name="the other nodes of a mask",
        statement="A bind to RAM and a CDM node uses both; a bind to a CDM node that "
        "is full does not fall back to RAM.",
        seen_by="the laboratory's scenario `gates`, steps `spill` and `exhaust`",
        not_yet="a recording has where pages came from, and not where there was room",
    ),
    # --- locks and atomicity --------------------------------------------------
    Invariant(
        id="I29",
        name="the write lock",
        statement="vm_flags of an attached VMA change only while the task that writes "
        "them holds the mmap lock for write.",
        rules=("CDM003",),
        not_yet="userfaultfd, soft-dirty bits and madvise() write in no function that "
        "is bracketed",
    ),
    Invariant(
        id="I30",
        name="the VMA's own lock",
        statement="Where VMAs have a lock of their own, the writer holds that as well.",
        rules=("CDM003",),
        why_not="Linux 6.1 has no such lock (it came with 6.4), so here the rule "
        "looks at the mmap lock alone",
    ),
    Invariant(
        id="I31",
        name="no lost update",
        statement="A flag that one task has set does not go because another writes "
        "back an older value.",
        rules=("CDM004",),
    ),
    Invariant(
        id="I32",
        name="no racing writers",
        statement="Two tasks are never between load and store of the same vm_flags at "
        "once.",
        rules=("CDM018",),
    ),
    Invariant(
        id="I33",
        name="copied undisturbed",
        statement="Nobody writes vm_flags while the VMA is being copied for a split or "
        "a fork.",
        not_yet="vm_area_dup() is not bracketed; a write under the read lock "
        "is CDM003, whatever else goes on",
    ),
    Invariant(
        id="I34",
        name="a lock to allocate",
        statement="Who allocates a page for a VMA holds a lock that keeps that VMA.",
        not_yet="each ALLOC row has the lock's state, and no rule looks at it "
        "unless flags changed",
    ),
    Invariant(
        id="I35",
        name="no VMA at all",
        statement="An allocation without a VMA tags nothing and does not crash.",
        seen_by=_CRASH,
    ),
    Invariant(
        id="I36",
        name="downgraded locks",
        statement="After its write lock was downgraded a task writes no flags.",
        rules=("CDM003",),
    ),
    # --- KSM ------------------------------------------------------------------
    Invariant(
        id="I37",
        name="KSM off with the tag",
        statement="Where the tag is set, VM_MERGEABLE goes, and merged pages are "
        "taken apart.",
        rules=("CDM005", "CDM006"),
    ),
    Invariant(
        id="I38",
        name="no advice to merge",
        statement="MADV_MERGEABLE leaves a tagged VMA as it is.",
        rules=("CDM007",),
    ),
    Invariant(
        id="I39",
        name="nothing merged",
        statement="KSM replaces no page of a tagged VMA.",
        rules=("CDM006",),
    ),
    Invariant(
        id="I40",
        name="where the merged page is",
        statement="A page that KSM shares is on no CDM node if an untagged VMA maps "
        "it, and takes no VMA's CDM page away.",
        rules=("CDM002", "CDM006"),
        why_not="in a VMA that never asked for CDM memory such a page counts as a "
        "leftover, which may be there",
    ),
    Invariant(
        id="I41",
        name="other ways to KSM",
        statement="A process that asks KSM for all of its memory does not get its "
        "tagged VMAs merged.",
        rules=("CDM006",),
        why_not="Linux 6.1 has no such request (PR_SET_MEMORY_MERGE came with 6.4); "
        "what it would lead to, a merged page, is judged",
    ),
    Invariant(
        id="I42",
        name="silent refusal",
        statement="Who is refused KSM for a tagged VMA is told so.",
        why_not="no defect to find: the patches mean to return 0; the recording has "
        "the call and its return value",
    ),
    # --- NUMA balancing and migration -----------------------------------------
    Invariant(
        id="I43",
        name="not scanned",
        statement="NUMA balancing does not scan a tagged VMA.",
        rules=("CDM008",),
    ),
    Invariant(
        id="I44",
        name="nothing left of a scan",
        statement="Entries that were made inaccessible before the tag came do not "
        "move pages after it.",
        rules=("CDM009",),
    ),
    Invariant(
        id="I45",
        name="nothing balanced into CDM",
        statement="Neither NUMA balancing nor demotion takes pages to a CDM node.",
        rules=("CDM014",),
        seen_by="arrivals by cause in `report`",
        not_yet="demotion has not been tried: the laboratory has no lower tier",
    ),
    Invariant(
        id="I46",
        name="a true reason",
        statement="The reason that a migration gives is that of its caller.",
        rules=("CDM019",),
    ),
    Invariant(
        id="I47",
        name="skipped anyway",
        statement="A VMA bound by its own policy is not scanned, tag or no tag; so the "
        "tag adds nothing there.",
        why_not="a remark on the design, and no defect of a run",
    ),
    Invariant(
        id="I48",
        name="unplugged memory",
        statement="When the memory of a CDM node goes, tags without a reason go, too.",
        rules=("CDM001",),
        why_not="not before the VMA is next changed: other hands took the pages",
    ),
    Invariant(
        id="I49",
        name="not migratable",
        statement="Under the first version of the series no tagged VMA is migrated.",
        why_not="RFC V2 dropped that: neither profile asks for it",
    ),
    # --- the life of a VMA ----------------------------------------------------
    Invariant(
        id="I50",
        name="split",
        statement="After a split each part keeps the tag if it has a reason of its "
        "own.",
        rules=("CDM002", "CDM016"),
    ),
    Invariant(
        id="I51",
        name="merge",
        statement="A tagged VMA and an untagged one do not become one.",
        rules=("CDM002", "CDM010"),
    ),
    Invariant(
        id="I52",
        name="merges that the tag prevents",
        statement="Neighbours that differ in the tag alone are as few as can be.",
        rules=("CDM017",),
    ),
    Invariant(
        id="I53",
        name="fork",
        statement="A child's VMA has the parent's tag, if it has a reason for it.",
        rules=("CDM002", "CDM016"),
        not_yet="a copy under MADV_WIPEONFORK is known from its first page on",
    ),
    Invariant(
        id="I54",
        name="copies on write",
        statement="A child whose copies are all in RAM, by a policy that names no CDM "
        "node, does not keep the tag.",
        rules=("CDM001",),
        why_not="not before the VMA is next changed: a fault may not clear the tag",
    ),
    Invariant(
        id="I55",
        name="mremap",
        statement="Pages that move take the tag along; what stays behind is looked at "
        "anew.",
        rules=("CDM002", "CDM016"),
    ),
    Invariant(
        id="I56",
        name="the last page goes",
        statement="A VMA whose last CDM page is unmapped, freed or swapped out, and "
        "whose policy does not ask for more, loses the tag.",
        rules=("CDM001",),
        why_not="not before the VMA is next changed, if other hands took the page",
    ),
    Invariant(
        id="I57",
        name="used again",
        statement="A vm_area_struct that is used again begins a life of its own.",
        seen_by="`tests/kernel/test_vmas.py`, step `reuse`",
    ),
    Invariant(
        id="I58",
        name="read ahead",
        statement="Swap readahead does not tag the faulting VMA for its neighbours' "
        "pages.",
        rules=("CDM015",),
    ),
    Invariant(
        id="I59",
        name="exec and exit",
        statement="An address space that is ending, or is not in use yet, gives no "
        "findings.",
        seen_by="`tests/kernel/test_vmas.py`, step `exec`, and the last rows of every "
        "process in each recording without quirks",
    ),
    # --- nodes and the tool itself --------------------------------------------
    Invariant(
        id="I60",
        name="which nodes",
        statement="The kernel, sysfs and the model mean the same CDM nodes; all their "
        "memory can be moved.",
        seen_by="`cdmtrace doctor`, which says what nodes it found and where",
        not_yet="nothing looks at the zones of a node",
    ),
    Invariant(
        id="I61",
        name="which bit",
        statement="The bit that counts as VM_CDM means nothing else on this kernel.",
        rules=("CDM020",),
        seen_by="`cdmtrace doctor`, and `record`, which refuses",
    ),
    Invariant(
        id="I62",
        name="what a node allows",
        statement="Where a node says itself which services may touch its pages, no "
        "other service does.",
        rules=("CDM021",),
        not_yet="no kernel has such flags yet: what is allowed, `check --allow` says",
    ),
    Invariant(
        id="I63",
        name="pinned pages",
        statement="No CDM page is pinned for long.",
        rules=("CDM021",),
        not_yet="what leaves for a pin is seen, and a pin of a page that stays is not",
    ),
    Invariant(
        id="I64",
        name="events lost",
        statement="What a lost event may have changed is not called clean or violated.",
        seen_by="`check`, whose verdict is inconclusive then; `record` and `info`, "
        "which count the losses of each probe",
    ),
)
"""All of them, by number."""
