from __future__ import annotations

import re
from pathlib import Path

import pytest

from cdmtrace.analysis.rules import RULES, served_by, uncheckable
from cdmtrace.errors import UsageTrouble
from cdmtrace.events import Probe
from cdmtrace.loader import watch
from cdmtrace.probes import (
    PROBES,
    WATCHPOINT,
    Attachment,
    Kind,
    LogicalProbe,
    choose,
    following,
    plan,
)

BPF = Path(__file__).resolve().parents[2] / "cdmtrace/bpf"
SOURCE = "".join(path.read_text() for path in sorted(BPF.glob("*.bpf.c")))


def one(*attachments: Attachment, required: bool = False) -> LogicalProbe:
    return LogicalProbe(
        probe=Probe.ALLOC,
        summary="",
        attachments=attachments,
        required=required,
    )


def kprobe(handler: str, *candidates: str) -> Attachment:
    return Attachment(handler=handler, kind=Kind.KPROBE, candidates=candidates)


PAIR = one(kprobe("a", "new", "old"), kprobe("b", "new", "old"))
MIXED = one(
    kprobe("a", "new"),
    Attachment(
        handler="t", kind=Kind.TRACEPOINT, candidates=("syscalls:sys_enter_mbind",)
    ),
)


def symbols(*functions: str) -> tuple[str, ...]:
    return plan(frozenset(functions), frozenset(), (PAIR,))[0].symbols


def test_the_newest_name_that_the_kernel_has() -> None:
    assert symbols("old", "new", "other") == ("new", "new")
    assert symbols("old", "other") == ("old", "old")


def test_a_handler_is_attached_to_a_function_once() -> None:
    twice = one(kprobe("a", "outer", "inner"), kprobe("a", "inner"), kprobe("b", "old"))
    for functions, names in (
        ({"outer", "inner", "old"}, ("outer", "inner", "old")),
        ({"inner", "old"}, ("inner", "old")),
    ):
        (found,) = plan(frozenset(functions), frozenset(), (twice,))
        assert found.symbols == names
        handlers = [attachment.handler for attachment in found.probe.attachments]
        assert handlers == ["a"] * (len(names) - 1) + ["b"]


def test_a_policy_is_rebound_once() -> None:
    """mpol_rebind_policy() may be inlined."""
    (probe,) = (one for one in PROBES if one.probe is Probe.MPOL_REBIND)
    names = {n for a in probe.attachments for n in a.candidates}
    (found,) = plan(frozenset(names - {"mpol_rebind_policy"}), frozenset(), (probe,))
    handlers = [attachment.handler for attachment in found.probe.attachments]
    assert list(zip(handlers, found.symbols, strict=True)) == [
        ("rebind_return", "mpol_rebind_mm"),
        ("rebind_next", "mpol_rebind_nodemask"),
        ("rebind_entry", "mpol_rebind_mm"),
    ]


def test_a_call_s_like_may_be_missing() -> None:
    """Without protection keys there is no pkey_mprotect()."""
    (probe,) = (one for one in PROBES if one.probe is Probe.SYS_MPROTECT)
    names = {n for a in probe.attachments for n in a.candidates}
    assert len(names) == 4
    (found,) = plan(frozenset(), frozenset(names), (probe,))
    assert set(found.symbols) == names
    without = {name for name in names if "pkey" not in name}
    (found,) = plan(frozenset(), frozenset(without), (probe,))
    assert found.symbols == (
        "syscalls:sys_exit_mprotect",
        "syscalls:sys_enter_mprotect",
    )
    (found,) = plan(frozenset(), frozenset(names - without), (probe,))
    assert found.missing == "syscalls:sys_exit_mprotect"


def test_half_of_a_probe_is_none() -> None:
    half = one(kprobe("a", "here"), kprobe("b", "gone"))
    (found,) = plan(frozenset({"here"}), frozenset(), (half,))
    assert found.symbols == ()
    assert found.missing == "gone"


def test_functions_and_tracepoints_are_different_things() -> None:
    names = frozenset({"new", "syscalls:sys_enter_mbind"})
    (found,) = plan(names, frozenset(), (MIXED,))
    assert found.missing == "syscalls:sys_enter_mbind"
    (found,) = plan(frozenset(), names, (MIXED,))
    assert found.missing == "new"
    (found,) = plan(
        frozenset({"new"}), frozenset({"syscalls:sys_enter_mbind"}), (MIXED,)
    )
    assert found.missing is None
    assert found.symbols == ("new", "syscalls:sys_enter_mbind")


def test_copies_are_told_and_never_attached_to() -> None:
    (found,) = plan(
        frozenset({"new", "new.isra.0", "old.isra.0"}), frozenset(), (PAIR,)
    )
    assert found.symbols == ("new", "new")
    assert found.unseen == ("new.isra.0",)
    (found,) = plan(frozenset({"new.isra.0"}), frozenset(), (PAIR,))
    assert found.missing == "old"


def attached(*, only: tuple[str, ...] = (), without: tuple[str, ...] = ()) -> set[str]:
    """Return the probes that remain on a kernel that has all but ksm_madvise."""
    names = {n for p in PROBES for a in p.attachments for n in a.candidates}
    plans = plan(frozenset(names) - {"ksm_madvise"}, frozenset(names))
    chosen = choose(plans, only, without)
    assert [item.probe for item in chosen] == [item.probe for item in plans]
    for item in chosen:
        assert bool(item.symbols) is (item.why_not is None)
    return {item.probe.name for item in chosen if item.symbols}


def test_probes_that_are_asked_for() -> None:
    everything = {probe.name for probe in PROBES} - {"ksm_madvise"}
    required = {probe.name for probe in PROBES if probe.required}
    assert attached() == everything
    assert attached(without=("rmap_walk", "sys_brk")) == everything - {
        *("rmap_walk", "sys_brk"),
    }
    assert attached(only=("sys_brk", "exit_mmap")) == required | {
        *("sys_brk", "exit_mmap"),
    }
    # What is required comes with every choice.
    assert attached(only=("alloc",)) == required
    assert attached(only=("sys_brk", "exit_mmap"), without=("sys_brk",)) == required | {
        "exit_mmap"
    }
    # What was never there is not what was asked for.
    assert attached(only=("ksm_madvise",)) == required


def test_why_a_probe_is_not_attached() -> None:
    plans = plan(frozenset({"new"}), frozenset(), (PAIR, MIXED))
    assert [item.why_not for item in plans] == [
        None,
        "no syscalls:sys_enter_mbind on this kernel",
    ]


@pytest.mark.parametrize("option", ["only", "without"])
def test_a_name_that_no_probe_has(option: str) -> None:
    with pytest.raises(
        UsageTrouble, match=r"rmap_wal: there .* mean rmap_walk"
    ) as found:
        attached(**{option: ("rmap_wal",)})
    assert found.value.hint == "cdmtrace probes"


def test_a_probe_that_cannot_be_left_out() -> None:
    with pytest.raises(UsageTrouble, match="rmap_add: without it"):
        attached(without=("rmap_add",))


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
    for attachment in probe.attachments:
        assert re.search(rf"^int {attachment.handler}\(", SOURCE, re.MULTILINE)
        assert attachment.candidates


def test_every_handler_of_the_program_is_attached() -> None:
    handlers = set(re.findall(r"^int (\w+)\(", SOURCE, re.MULTILINE))
    probes = (*PROBES, WATCHPOINT, following(children=True))
    attached = {a.handler for probe in probes for a in probe.attachments}
    assert handlers == attached | {watch.HANDLER}


def test_no_probe_is_there_twice() -> None:
    assert len({probe.probe for probe in PROBES}) == len(PROBES)


def test_a_return_is_attached_before_its_entry() -> None:
    """An entry without its return would count as lost."""
    for probe in PROBES:
        kinds = [attachment.kind for attachment in probe.attachments]
        if Kind.KRETPROBE in kinds:
            first = kinds.index(Kind.KPROBE)
            assert Kind.KRETPROBE not in kinds[first:], probe.name
        if Kind.TRACEPOINT in kinds:
            handlers = [attachment.handler for attachment in probe.attachments]
            calls = len(handlers) // 2
            assert handlers == ["call_exit"] * calls + ["call_enter"] * calls
