"""What the tag must mean: two specifications, side by side, and one without it.

``intended`` is what the review asked for and the author agreed to; ``rfc-v2`` is
what the patches of January 2017 say, to the letter. ``np`` asks which services of
the kernel touched the pages of a node (services.py), and nothing of the tag. The model
keeps the facts of a VMA; a profile turns them into a demand. Every clause names its
source.
"""

from __future__ import annotations

from enum import Enum
from typing import Final, Protocol

import msgspec

from cdmtrace.events import Mpol


class Want(Enum):
    """What a profile asks of a settled VMA."""

    MUST = "tagged"
    MUST_NOT = "not tagged"
    MAY = "either"


class Demand(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """What is wanted, by which clause, and that clause in words."""

    want: Want
    clause: str
    why: str


class Facts(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """What is known of a VMA when it has settled.

    tag: it has VM_CDM. policy_names: P, None where its policy is not known. asked:
    G. by_driver: its driver's mmap() tagged it, which is one way to G. held: H. came:
    a page of C that came for this VMA is mapped in it. pages_known: no page of it can
    have been there before the recording. excused: other hands took pages away since
    its last write-locked change. patched: the tag it has if only the code of the
    posted patches ran; None if not known.

    P is about the nodes that the kernel has made of those that were asked for, as it
    allocates by them: what the cpuset left of them, again at each rebinding, by the
    rules of MPOL_F_STATIC_NODES and MPOL_F_RELATIVE_NODES (6.1, mm/mempolicy.c,
    mpol_set_nodemask() and mpol_rebind_nodemask()). The task's policy is not the VMA's
    own, and decides only where that has none (get_vma_policy()). A home node is where
    the search begins, and names nothing: pages stay on the policy's nodes
    (policy_nodemask()).
    """

    tag: bool
    policy_names: bool | None
    asked: bool
    held: bool
    came: bool
    pages_known: bool
    excused: bool
    patched: bool | None
    by_driver: bool = False


class Mode(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A policy that is looked at: mode number, and its nodes as a mask."""

    number: int
    nodes: int


class Clause(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One sentence of a specification and where it comes from."""

    id: str
    text: str
    source: str


class Profile(Protocol):
    """A specification of the tag."""

    @property
    def name(self) -> str:
        """What --profile calls it."""

    @property
    def kin(self) -> frozenset[str]:
        """Profiles whose rules are listed with its own: those about the same matter."""

    @property
    def clauses(self) -> tuple[Clause, ...]:
        """Its sentences, in the order in which they are applied."""

    def demand(self, facts: Facts) -> Demand:
        """Return what it asks of a VMA with these facts."""

    def missing(self, facts: Facts) -> bool:
        """Return whether the lack of the tag is held against the kernel already."""


def _clause(clauses: tuple[Clause, ...], name: str) -> str:
    return next(clause.text for clause in clauses if clause.id == name)


_OF_THE_TAG: Final = frozenset({"intended", "rfc-v2"})

_INTENDED: Final = (
    Clause(
        id="P",
        text="its own policy names a CDM node",
        source='Hansen on 11/12: "explicitly assigned policy that would have cause '
        'the VMA to be split"; agreed to by Khandual in the same mail',
    ),
    Clause(
        id="G",
        text="an explicit request put a page of a CDM node there",
        source='Hansen on 11/12: "Do the NUMA migration APIs use this path?"; '
        "Khandual: will work on the migration API paths next",
    ),
    Clause(
        id="G, driver",
        text="its driver's mmap() tagged it",
        source='Khandual, cover letter: "Should a driver mark a VMA with VM_CDM '
        'explicitly ?"',
    ),
    Clause(
        id="unknown",
        text="not enough of it was seen",
        source="pages or a policy from before the recording",
    ),
    Clause(
        id="H",
        text="pages of a CDM node are left in it",
        source='12/12, "contains coherent device memory": true of leftovers, too',
    ),
    Clause(
        id="excused",
        text="other hands took its pages since it was last changed",
        source="who takes a page away may not hold the lock to clear the tag",
    ),
    Clause(
        id="none",
        text="no policy of its own names a CDM node and no page of one is in it",
        source='Hansen on 11/12: "it\'s never set on VMAs that are \\"normal\\""',
    ),
)


class Intended:
    """What the review asked for: the tag is a function of policy and pages."""

    name = "intended"
    kin = _OF_THE_TAG
    clauses = _INTENDED

    def demand(self, facts: Facts) -> Demand:
        """P or G: must. None of P, G, H: must not. Anything else: may."""
        if facts.policy_names:
            want, clause = Want.MUST, "P"
        elif facts.by_driver:
            want, clause = Want.MUST, "G, driver"
        elif facts.asked:
            want, clause = Want.MUST, "G"
        elif facts.policy_names is None or not facts.pages_known:
            want, clause = Want.MAY, "unknown"
        elif facts.held:
            want, clause = Want.MAY, "H"
        elif facts.excused:
            want, clause = Want.MAY, "excused"
        else:
            want, clause = Want.MUST_NOT, "none"
        return Demand(want=want, clause=clause, why=_clause(self.clauses, clause))

    def missing(self, facts: Facts) -> bool:
        """Only once a page that came for this VMA is mapped (CDM002)."""
        return facts.came


_RFC: Final = (
    Clause(
        id="set",
        text="a fault or mbind(MPOL_BIND) has tagged it, and nothing clears the tag",
        source="11/12, mark_vma_cdm() in alloc_pages_vma(); 12/12, set_vm_cdm() in "
        "mbind_range(); clr_vm_cdm() has no caller",
    ),
    Clause(
        id="unset",
        text="neither a fault nor mbind(MPOL_BIND) has tagged it",
        source="11/12 and 12/12 are the only two that set VM_CDM",
    ),
    Clause(
        id="unknown",
        text="not enough of it was seen",
        source="a VMA from before the recording",
    ),
)


class RfcV2:
    """What RFC V2 does: set by a fault or by mbind(MPOL_BIND), never cleared."""

    name = "rfc-v2"
    kin = _OF_THE_TAG
    clauses = _RFC

    def demand(self, facts: Facts) -> Demand:
        """The tag that the patches' own code would have left."""
        if facts.patched is None:
            want, clause = Want.MAY, "unknown"
        elif facts.patched:
            want, clause = Want.MUST, "set"
        else:
            want, clause = Want.MUST_NOT, "unset"
        return Demand(want=want, clause=clause, why=_clause(self.clauses, clause))

    def missing(self, facts: Facts) -> bool:
        """At once: the patches tag before there is a page."""
        del facts
        return True


_NP: Final = (
    Clause(
        id="nothing",
        text="nothing is asked of the tag",
        source="Gregory Price, Private Memory Nodes, RFC v4, Feb 2026: what may touch "
        "the pages of a node is said of the node, and no VMA is tagged",
    ),
)


class Np:
    """Private memory nodes: not the tag, but the services that may touch a node."""

    name = "np"
    kin = frozenset({"np"})
    clauses = _NP

    def demand(self, facts: Facts) -> Demand:
        """Nothing, whatever the facts."""
        del facts
        return Demand(
            want=Want.MAY, clause="nothing", why=_clause(self.clauses, "nothing")
        )

    def missing(self, facts: Facts) -> bool:
        """Never: the tag is not asked for."""
        del facts
        return False


def fault_tags(deciding: Mode, node: int, cdm: int, *, huge: bool) -> bool:
    """Return whether alloc_pages_vma() tags, in RFC V2.

    11/12 calls mark_vma_cdm() after the common path only: MPOL_INTERLEAVE and huge
    pages leave before (4.10, mm/mempolicy.c, alloc_pages_vma(), ``goto out``).
    """
    if node < 0 or not cdm >> node & 1 or huge:
        return False
    if deciding.number in (Mpol.INTERLEAVE, Mpol.WEIGHTED_INTERLEAVE):
        return False
    # policy_nodemask(): a mask for MPOL_BIND only; NULL means "tag" to 11/12.
    return deciding.number != Mpol.BIND or bool(deciding.nodes & cdm)


def mbind_tags(policy: Mode, cdm: int) -> bool:
    """Return whether mbind_range() tags the VMA, the whole of it, in RFC V2.

    12/12: ``new_pol->mode == MPOL_BIND && nodemask_has_cdm(new_pol->v.nodes)``.
    """
    return policy.number == Mpol.BIND and bool(policy.nodes & cdm)


PROFILES: Final[dict[str, Profile]] = {
    profile.name: profile for profile in (Intended(), RfcV2(), Np())
}
"""By the name that --profile takes."""
