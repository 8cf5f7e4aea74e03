"""Which rules each set of quirks must, may and must not violate, as data.

A row is a set of quirks and the scenarios that show what it does. What it does not name
must not be violated. ``may`` is for what depends on who comes first, and for secondary
effects; each has its reason.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from cdmtrace.lab import quirks

RULES: Final = tuple(f"CDM{number:03}" for number in range(1, 21))
"""The rules that the table was written for: those about the tag."""


class Expect(enum.Enum):
    """What is expected of a cell."""

    MUST = "must"
    MAY = "may"
    NOT = "must not"
    VACUOUS = "vacuous"
    UNCHECKED = "unchecked"


Reasons = Mapping[str, str]
"""Rule -> why."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """What must be found under one set of quirks, or on one kernel.

    name: the quirks as they are asked for, joined by ``+``, or what the row is called.
    scenarios: ``NAME`` or ``NAME:STEP,STEP``, run one after the other. vacuous: rules
    that can have no occasion there. unchecked: rules that cannot be judged there.
    judged: rules that must have had an occasion. stock: the kernel has no quirks, and
    no CDM node but the one that it is told.
    """

    name: str
    asked: tuple[str, ...]
    scenarios: tuple[str, ...]
    must: Reasons = field(default_factory=dict)
    may: Reasons = field(default_factory=dict)
    vacuous: Reasons = field(default_factory=dict)
    unchecked: Reasons = field(default_factory=dict)
    judged: frozenset[str] = frozenset()
    remark: str | None = None
    stock: bool = False

    @property
    def quirks(self) -> tuple[str, ...]:
        """All quirks that are on, with those that others need."""
        return quirks.resolve(self.asked)

    @property
    def crashes(self) -> bool:
        """Whether the guest must die of it, and so needs a boot of its own."""
        return any(quirks.BY_NAME[name].crashes for name in self.quirks)

    def expects(self, rule: str) -> Expect:
        """Return what is expected of a rule."""
        if rule in self.must:
            return Expect.MUST
        if rule in self.may:
            return Expect.MAY
        if rule in self.unchecked:
            return Expect.UNCHECKED
        return Expect.VACUOUS if rule in self.vacuous else Expect.NOT

    def because(self, rule: str) -> str | None:
        """Return why it is expected, None for what must not be violated."""
        for reasons in (self.must, self.may, self.vacuous, self.unchecked):
            if rule in reasons:
                return reasons[rule]
        return None


USUAL: Final = ("story", "defects")


def _row(
    asked: str,
    *more: str,
    must: Reasons | None = None,
    may: Reasons | None = None,
    remark: str | None = None,
) -> Row:
    return Row(
        name=asked,
        asked=tuple(asked.split("+")),
        scenarios=(*USUAL, *more),
        must=must or {},
        may=may or {},
        remark=remark,
    )


# --- Reasons that several rows share ----------------------------------------

_UNLOCKED: Final = "a fault writes the tag with the lock held for read"
_NO_PAGE: Final = "UFFDIO_COPY onto a page that is there has its page allocated first"
_TWO_FAULTS: Final = "two faults at a time: whether they overlap is chance"
_OTHER_WRITER: Final = (
    "madvise() is told of too late to be a rival, and another one is chance"
)
_STALE: Final = "mbind() takes the policy away and leaves the tag"
_APART: Final = "a tag that nothing justifies keeps neighbours apart"
_BY_TASK: Final = "pages come by set_mempolicy() to VMAs that have no policy"

_BIND_ONLY: Final = {"CDM002": "PREFERRED and INTERLEAVE are not tagged"}
_FAULT: Final = {"CDM003": _UNLOCKED, "CDM013": _NO_PAGE}
_RACE: Final = {"CDM018": _TWO_FAULTS}
_ONE_WAY: Final = {"CDM001": _STALE, "CDM017": _APART}

_NONE: Final = Row(
    name=quirks.NONE,
    asked=(),
    scenarios=(*USUAL, "gates:swap,collapse", "policies"),
    vacuous={
        "CDM013": "no fault sets a tag in this kernel",
        "CDM015": "no allocation sets a tag in this kernel",
    },
    judged=frozenset(RULES) - {"CDM013", "CDM015"},
)

_RFC: Final = Row(
    name=quirks.RFC,
    asked=(quirks.RFC,),
    scenarios=(*USUAL, "gates:swap,collapse", "policies", "driver"),
    must={
        **_ONE_WAY,
        **_FAULT,
        "CDM002": "interleave, huge pages, move_pages(), migrate_pages(), the driver",
        "CDM005": "a tag on a VMA that is mergeable already",
        "CDM006": "ksmd goes on with such a VMA",
        "CDM009": "what was scanned before the tag came is moved after it",
        "CDM010": "pages that come by the policy of the task bring the tag",
        "CDM011": "mbind() of a part",
        "CDM012": "mbind() that fails when it wants to split",
        "CDM014": _BY_TASK,
        "CDM015": "objects in shared memory, and swap's readahead",
        "CDM016": "the half that a split takes has no CDM page",
        "CDM019": "the driver says NUMA balancing",
    },
    may=_RACE,
)

_DRIVER: Final = Row(
    name="driver",
    asked=(),
    scenarios=("driver",),
    must={"CDM019": "the driver's migration is right, but for what it says it is"},
    judged=frozenset({"CDM001", "CDM002", "CDM014"}),
    remark="no quirk at all, and the driver at work",
)

_SINGLE: Final = (
    _row("bind-only", must=_BIND_ONLY),
    _row("fault-tag", must=_FAULT, may=_RACE),
    _row(
        "interleave-untagged",
        must={**_FAULT, "CDM002": "pages of an interleaved VMA bring no tag"},
        may=_RACE,
    ),
    _row(
        "thp-untagged",
        must={**_FAULT, "CDM002": "a huge page brings no tag"},
        may=_RACE,
    ),
    _row("one-way", must=_ONE_WAY),
    _row(
        "whole-vma",
        must={
            "CDM011": "mbind() of a part",
            "CDM012": "mbind() that fails when it wants to split",
        },
    ),
    _row("migration-ungated", must={"CDM002": "move_pages() and migrate_pages()"}),
    _row("task-policy", must={"CDM014": _BY_TASK}),
    _row(
        "ksm-left-on",
        must={
            "CDM005": "a tag on a VMA that is mergeable already",
            "CDM006": "ksmd goes on with such a VMA",
        },
    ),
    _row(
        "ksm-merge",
        "gates:ksm",
        remark="KSM's pages were allocated for nobody: where they are is no matter of "
        "any rule, as long as the VMA has no policy that names the node",
    ),
    _row(
        "khugepaged",
        "gates:collapse",
        must={"CDM014": "a huge page on the CDM node for a VMA without a policy"},
    ),
    _row(
        "swap-readahead",
        "gates:swap",
        must={"CDM014": "pages of a neighbour in swap come by the faulting VMA's"},
    ),
    _row(
        "shared-policy",
        "policies:memfd",
        must={"CDM002": "the object's pages in mappings that nobody has tagged"},
    ),
    _row(
        "no-rebind",
        "policies",
        must={
            "CDM001": "a cpuset takes the CDM node out of a policy",
            "CDM002": "a cpuset brings it back, and pages come",
        },
    ),
    _row(
        "first-node",
        remark="pages land in RAM that should not: that is no matter of the tag",
    ),
    _row(
        "driver-untagged",
        "driver",
        must={
            "CDM002": "what the driver maps or moves has no tag",
            "CDM019": "the driver says NUMA balancing",
        },
    ),
    _row(
        "numa-residual",
        must={"CDM009": "what was scanned before the tag came is moved after it"},
    ),
    _row("numa-scanned", must={"CDM008": "the scanner goes through tagged VMAs"}),
    _row("mergeable-honoured", must={"CDM007": "MADV_MERGEABLE of a tagged VMA"}),
    _row(
        "unlocked-clear",
        must={**_ONE_WAY, "CDM003": "a migration writes the tag without any lock"},
        may={
            "CDM004": "what the write overwrites is chance",
            "CDM018": _OTHER_WRITER,
        },
    ),
    _row(
        "slow-rmw", remark="without one that writes unlocked there is nothing to slow"
    ),
    _row(
        "workqueue-tag",
        must={"CDM002": "mbind() returns, pages come, and the tag is not there yet"},
        may={
            "CDM003": "the work item's write is seen only if a fault brackets it",
            "CDM010": "the same write, found later, has no writer",
        },
    ),
    _row(
        "mprotect-drop",
        must={
            "CDM002": "the pages are there, the tag is gone",
            "CDM017": "read-only and back: parts that would be one, but for the tag",
        },
    ),
    _row("fork-drop", must={"CDM002": "a copy on write is a page of the child's own"}),
    _row("split-drop", must={"CDM002": "one half has pages and no tag"}),
)

_UNTIL_DEFAULT: Final = (
    *("bind", "bind-back", "preferred", "interleave", "thp", "task-policy"),
    *("move-pages", "migrate-pages", "ksm", "partial"),
)
"""Steps of the story that take no policy away."""

_CRASHES: Final = (
    Row(
        name="default-oops",
        asked=("default-oops",),
        scenarios=(f"story:{','.join(_UNTIL_DEFAULT)}", "crash:default"),
        judged=frozenset({"CDM001", "CDM002", "CDM003", "CDM010", "CDM011", "CDM014"}),
        remark="the guest ends where a policy is taken away; until then all is well",
    ),
    Row(
        name="null-vma",
        asked=("null-vma",),
        scenarios=("story", "defects:refused-copy", "crash:willneed"),
        must=_FAULT,
        judged=frozenset({"CDM001", "CDM002", "CDM003", "CDM010", "CDM011", "CDM014"}),
        remark="fault-tag, until shared memory comes back from swap for no VMA",
    ),
)

_PAIRS: Final = (
    _row(
        "unlocked-clear+slow-rmw",
        must={
            **_ONE_WAY,
            "CDM003": "a migration writes the tag without any lock",
            "CDM004": "madvise()'s flag is overwritten",
        },
        may={"CDM018": _OTHER_WRITER},
    ),
    _row(
        "task-policy+fault-tag+slow-rmw",
        must={
            **_FAULT,
            "CDM010": "pages that come by the policy of the task bring the tag",
            "CDM014": _BY_TASK,
            "CDM015": "an object's page brings it to a VMA on the stack",
            "CDM016": "the half that a split takes has no CDM page",
            "CDM017": _APART,
            "CDM018": "two faults at a time, drawn out",
        },
    ),
    _row(
        "numa-scanned+numa-residual",
        must={
            "CDM008": "the scanner goes through tagged VMAs",
            "CDM009": "what was scanned is moved",
        },
    ),
)

ROWS: Final[tuple[Row, ...]] = (_NONE, _RFC, _DRIVER, *_SINGLE, *_PAIRS, *_CRASHES)

UNSHOWN: Final[Reasons] = {
    "CDM020": "no quirk gives the bit another meaning: its own tests do, and it is "
    "judged and clean in every row",
}
"""Rules that no row must violate, and why."""
