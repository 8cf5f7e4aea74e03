"""The rules, one object each: what is held against a kernel, and why.

A rule looks at one note of the model at a time and says: no business of mine
(None), all is well, violated, or cannot be known. It leans on nothing that only
one kernel has: no symbol of the tagging code, no debug switch.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from typing import Final

from cdmtrace.analysis.rules import (
    balancing,
    ksm,
    locking,
    pages,
    permissions,
    setup,
    tag,
    tagging,
)
from cdmtrace.analysis.rules.rule import Judgement, Rule, Severity, Violation

__all__ = [
    "BY_ID",
    "OWN_ID",
    "PART_OF",
    "RULES",
    "Judgement",
    "Rule",
    "Severity",
    "Violation",
    "find",
    "served_by",
    "uncheckable",
]

PART_OF: Final = {
    "remove_migration_pte": "migrate_pages",
    "move_page_tables": "sys_mremap",
    "vma_policy": "mbind_range",
}
"""Names under which losses may be counted -> the probe that they are part of, or
whose part they share: without either, the same may be wrong."""

RULES: Final[tuple[Rule, ...]] = (
    tag.STALE_TAG,
    tag.MISSING_TAG,
    locking.UNLOCKED_WRITE,
    locking.LOST_UPDATE,
    ksm.KSM_LEFT_ON,
    ksm.KSM_MERGED,
    ksm.MERGEABLE_HONOURED,
    balancing.NUMA_SCANNED,
    balancing.NUMA_MIGRATED,
    tagging.IMPLICIT_TAG,
    tagging.OVER_TAG,
    tagging.TAG_AFTER_FAILURE,
    tagging.TAG_WITHOUT_PAGE,
    pages.IMPLICIT_ALLOCATION,
    tagging.WRONG_VMA,
    tag.BORN_STALE,
    tag.MERGE_BLOCKED,
    locking.RACING_WRITERS,
    balancing.LYING_REASON,
    setup.BIT_TAKEN,
    permissions.SERVICE_NOT_ALLOWED,
)
"""All rules of this version, by number."""

BY_ID: Final[dict[str, Rule]] = {rule.id: rule for rule in RULES}

OWN_ID: Final = re.compile(r"(?!CDM)[A-Z]{2,8}[0-9]{3}")
"""What ids of rules from files of one's own look like."""


def find(name: str, own: Iterable[Rule] = ()) -> Rule | None:
    """Return the rule of this id or name, whatever its case; own: others there are."""
    for rule in (*RULES, *own):
        if name.lower() in (rule.id.lower(), rule.name):
            return rule
    return None


def served_by(probe: str) -> tuple[str, ...]:
    """Return the ids of the rules that look at what a probe records."""
    return tuple(rule.id for rule in RULES if probe in rule.probes)


def uncheckable(missing: Collection[str]) -> dict[str, tuple[str, ...]]:
    """Return rule -> the missing probes without which it cannot be checked."""
    return {
        rule.id: tuple(name for name in missing if name in rule.needs)
        for rule in RULES
        if not rule.needs.isdisjoint(missing)
    }
