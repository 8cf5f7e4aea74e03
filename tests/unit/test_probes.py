"""The table of probes, and what the BPF programs and the rules make of it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from cdmtrace.analysis.rules import RULES, served_by, uncheckable
from cdmtrace.loader import watch
from cdmtrace.probes import PROBES, WATCHPOINT, Kind, LogicalProbe, following

BPF = Path(__file__).resolve().parents[2] / "cdmtrace/bpf"
SOURCE = "".join(path.read_text() for path in sorted(BPF.glob("*.bpf.c")))


def test_rules_that_a_missing_probe_costs() -> None:
    blind = ("CDM003", "CDM004", "CDM010", "CDM013", "CDM015", "CDM017", "CDM018")
    assert uncheckable(["alloc", "sys_mmap"]) == dict.fromkeys(blind, ("alloc",))
    assert uncheckable([]) == {}
    assert "CDM001" in served_by("rmap_remove")
    assert "CDM003" not in served_by("rmap_remove")


def test_rules_need_nothing_that_is_not_recorded() -> None:
    assert {name for rule in RULES for name in rule.probes} <= {
        probe.name for probe in PROBES
    }


@pytest.mark.parametrize("probe", PROBES, ids=lambda probe: probe.name)
def test_every_handler_is_in_the_program(probe: LogicalProbe) -> None:
    for attachment in probe.every_attachment:
        assert re.search(rf"^int {attachment.handler}\(", SOURCE, re.MULTILINE)
        assert attachment.candidates


def test_every_handler_of_the_program_is_attached() -> None:
    handlers = set(re.findall(r"^int (\w+)\(", SOURCE, re.MULTILINE))
    probes = (*PROBES, WATCHPOINT, following(children=True))
    attached = {a.handler for probe in probes for a in probe.every_attachment}
    assert handlers == attached | {watch.HANDLER}


def test_no_probe_is_there_twice() -> None:
    assert len({probe.probe for probe in PROBES}) == len(PROBES)


def test_a_return_is_attached_before_its_entry() -> None:
    """An entry without its return would count as lost."""
    for probe in PROBES:
        for attachments in (probe.attachments, *probe.older):
            kinds = [attachment.kind for attachment in attachments]
            if Kind.KRETPROBE in kinds:
                first = kinds.index(Kind.KPROBE)
                assert Kind.KRETPROBE not in kinds[first:], probe.name
        kinds = [attachment.kind for attachment in probe.attachments]
        if Kind.TRACEPOINT in kinds:
            handlers = [attachment.handler for attachment in probe.attachments]
            calls = len(handlers) // 2
            assert handlers == ["call_exit"] * calls + ["call_enter"] * calls
