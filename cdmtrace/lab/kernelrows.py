"""Which rules must, may and must not be violated on each kernel, as data.

Those that are built here have two rows of the table of quirks. Debian's have no
VM_CDM: they are recorded in shadow mode, where what is about the tag cannot be judged.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Final

from cdmtrace.errors import UsageTrouble
from cdmtrace.lab import quirks, specs
from cdmtrace.lab.expectations import ROWS, RULES, Reasons, Row

TAGLESS: Final = frozenset({"CDM003", "CDM004", "CDM014", "CDM018", "CDM019"})
"""Rules that ask nothing of the tag."""

ALL: Final = "all"

_NO_TAG: Final = "the kernel has no VM_CDM"
_BY_TASK: Final = "pages come by set_mempolicy() to a VMA that has no policy"


def _stock(
    name: str,
    *more: str,
    must: Reasons | None = None,
    may: Reasons | None = None,
) -> Row:
    return Row(
        name=name,
        asked=(),
        scenarios=("leaks", *more),
        must={"CDM014": _BY_TASK, **(must or {})},
        may=may or {},
        unchecked=dict.fromkeys(sorted({*RULES} - TAGLESS), _NO_TAG),
        judged=TAGLESS - {"CDM019"},
        stock=True,
    )


STOCK: Final[Mapping[str, Row]] = {
    row.name: row
    for row in (
        *(
            _stock(
                name,
                "flag_writer",
                must={
                    "CDM003": "a module writes without the lock, and under it for read",
                    "CDM018": "two of its writes at a time, both under the lock for "
                    "read",
                },
                may={"CDM004": "whether madvise() comes into such a write is chance"},
            )
            for name in ("debian-5.10", "debian-6.1")
        ),
        _stock("debian-6.12"),
        _stock("debian-7"),
    )
}
"""Debian's kernels by name."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Other:
    """How a row differs on a kernel from what it is on 6.1, and why, by rule.

    clear: must not be found. may: need not be found. vacuous: has no occasion.
    unchecked: cannot be judged.
    """

    clear: Reasons = field(default_factory=dict)
    may: Reasons = field(default_factory=dict)
    vacuous: Reasons = field(default_factory=dict)
    unchecked: Reasons = field(default_factory=dict)

    def applied(self, row: Row) -> Row:
        """Return the row as it is there."""
        elsewhere = {*self.clear, *self.may, *self.vacuous, *self.unchecked}
        must, may, vacuous, unchecked = (
            {rule: why for rule, why in reasons.items() if rule not in elsewhere}
            for reasons in (row.must, row.may, row.vacuous, row.unchecked)
        )
        return replace(
            row,
            must=must,
            may={**may, **self.may},
            vacuous={**vacuous, **self.vacuous},
            unchecked={**unchecked, **self.unchecked},
            judged=row.judged - elsewhere,
        )


_NO_VMA: Final = "what is allocated for shared memory or readahead has no VMA to tag"
_STACK_ENDS: Final = "until 5.15 a stack ends where a kretprobe is: at migrate_pages()"

OTHERS: Final[Mapping[tuple[str, str], Other]] = {
    ("cdm-5.10", quirks.RFC): Other(may={"CDM019": _STACK_ENDS}),
    ("cdm-6.12", quirks.RFC): Other(clear={"CDM015": _NO_VMA}),
}
"""(Kernel that is built here, row) -> what is other there."""


def rows(kernel: str) -> tuple[Row, ...]:
    """Return the rows of a kernel of the laboratory, by its name."""
    if kernel in STOCK:
        return (STOCK[kernel],)
    return tuple(
        replace(
            OTHERS.get((kernel, row.name), Other()).applied(row),
            name=f"{kernel}-{row.name}",
        )
        for row in ROWS
        if row.name in (quirks.NONE, quirks.RFC)
    )


def choose(names: str) -> tuple[str, ...]:
    """Return the kernels of a list, separated by commas, in the laboratory's order.

    ``all``: all of them. Raises UsageTrouble for a name that it does not know.
    """
    asked = [name.strip() for name in names.split(",") if name.strip()]
    for name in asked:
        if name != ALL and name not in specs.KERNELS:
            raise UsageTrouble(
                f"--kernels {name}: the laboratory has no such kernel",
                hint=f"{ALL}, or some of " + ", ".join(specs.KERNELS),
            )
    if not asked:
        raise UsageTrouble("--kernels names no kernel", hint=f"--kernels {ALL}")
    return tuple(name for name in specs.KERNELS if ALL in asked or name in asked)
