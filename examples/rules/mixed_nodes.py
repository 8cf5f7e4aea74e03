"""LAB002: a VMA's policy names CDM nodes and others at once.

    cdmtrace check --rules-from mixed_nodes.py my.arrows

A rule about what the model knows, and not about one row: it looks at VMAs when they
have settled, that is when no system call and no fault is at work on them. What the
model knows it has from rows that came before. So the judgement says since when
(window), and where events were lost meanwhile that the rule leans on, it is not a
finding but inconclusive.
"""

from __future__ import annotations

from typing import Final

from cdmtrace.analysis import names
from cdmtrace.analysis.frames import Terms
from cdmtrace.analysis.notes import Note, Settled
from cdmtrace.analysis.rules import Judgement, Rule, Severity, Violation
from cdmtrace.analysis.rules.common import LIFE, chain


def judge(note: Note, terms: Terms, profile: str) -> Judgement | None:
    """Judge each VMA of which the policy names a CDM node."""
    if not isinstance(note, Settled):
        return None
    policy, set_by = note.area.policy, note.area.policy_by
    if policy is None or set_by is None or not policy.names(terms.cdm):
        return None
    others = policy.nodes & ~terms.cdm
    violation = None
    if others:
        violation = Violation(
            cause="mbind",
            start=note.area.start,
            end=note.area.end,
            expected=f"CDM nodes only: {names.nodes(policy.nodes & terms.cdm)}",
            observed=f"{names.policy(policy.byte, policy.nodes)}: some of its pages "
            "are in RAM, and nobody can tell which",
            witness=chain(set_by),
            # The mode makes it another finding, and the nodes do.
            shape=(names.policy(policy.byte, policy.nodes),),
        )
    return Judgement(window=(set_by.ts, note.event.ts), violation=violation)


MIXED_NODES: Final = Rule(
    id="LAB002",
    name="mixed-nodes",
    severity=Severity.ERROR,
    statement="A VMA's own policy names CDM nodes and other nodes.",
    premise="a VMA that has settled with a policy that names a CDM node",
    source="how memory is used in our laboratory",
    sentence="A buffer of the device is in device memory, or it is not.",
    events=("POLICY", "VMA_SPLIT", "VMA_MERGE", "CALL"),
    needs=frozenset({"mbind_range", "sys_mbind"}),
    leans=LIFE,
    threats=("INTERLEAVE over both may be meant",),
    limits=("policies of tasks are none of VMAs",),
    judge=judge,
    # It asks nothing of the tag: it is judged where the kernel has none, and under
    # each profile that is about policies.
    tagless=True,
    profiles=frozenset({"intended", "rfc-v2"}),
    # One finding for a VMA, however often it settles.
    once=True,
)

RULES: Final = (MIXED_NODES,)
