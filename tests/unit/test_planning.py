"""What is attached on which kernel, and where handlers find their arguments."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

import pytest
from signatures import ARGUMENTS, FakeTypes, types_of

from cdmtrace.errors import UsageTrouble
from cdmtrace.events import Probe
from cdmtrace.planning import Plan, Types, choose, macros, plan
from cdmtrace.probes import PROBES, Attachment, Kind, LogicalProbe

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


NOTHING = FakeTypes()


def planned(
    functions: Iterable[str],
    tracepoints: Iterable[str] = (),
    *probes: LogicalProbe,
    told: Types = NOTHING,
) -> tuple[Plan, ...]:
    return plan(frozenset(functions), frozenset(tracepoints), told, probes)


def symbols(*functions: str) -> tuple[str, ...]:
    return planned(functions, (), PAIR)[0].symbols


def test_the_newest_name_that_the_kernel_has() -> None:
    assert symbols("old", "new", "other") == ("new", "new")
    assert symbols("old", "other") == ("old", "old")


def test_a_handler_is_attached_to_a_function_once() -> None:
    twice = one(kprobe("a", "outer", "inner"), kprobe("a", "inner"), kprobe("b", "old"))
    for functions, names in (
        ({"outer", "inner", "old"}, ("outer", "inner", "old")),
        ({"inner", "old"}, ("inner", "old")),
    ):
        (found,) = planned(functions, (), twice)
        assert found.symbols == names
        handlers = [attachment.handler for attachment in found.probe.attachments]
        assert handlers == ["a"] * (len(names) - 1) + ["b"]


def test_a_policy_is_rebound_once() -> None:
    """mpol_rebind_policy() may be inlined."""
    (probe,) = (one for one in PROBES if one.probe is Probe.MPOL_REBIND)
    names = {n for a in probe.attachments for n in a.candidates}
    (found,) = planned(names - {"mpol_rebind_policy"}, (), probe, told=types_of("6.1"))
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
    (found,) = planned((), names, probe)
    assert set(found.symbols) == names
    without = {name for name in names if "pkey" not in name}
    (found,) = planned((), without, probe)
    assert found.symbols == (
        "syscalls:sys_exit_mprotect",
        "syscalls:sys_enter_mprotect",
    )
    (found,) = planned((), names - without, probe)
    assert found.missing == "syscalls:sys_exit_mprotect"


def test_calls_that_tracepoints_miss_are_seen_by_their_functions() -> None:
    """Where what a tracepoint of a system call runs can be preempted."""
    (probe,) = (one for one in PROBES if one.probe is Probe.SYS_MBIND)
    tracepoints = {n for a in probe.attachments for n in a.candidates}
    functions = {"__x64_sys_mbind"}
    (found,) = planned(functions, tracepoints, probe)
    assert {*found.symbols} == tracepoints
    missing = "trace_call_bpf_faultable"
    (found,) = planned(functions | {missing}, tracepoints, probe)
    assert found.symbols == ("__x64_sys_mbind", "__x64_sys_mbind")
    assert found.probe.kinds == (Kind.KRETPROBE, Kind.KPROBE)
    # No probe can be attached to that one: the kernel has it all the same.
    (found,) = plan(
        frozenset(functions),
        frozenset(tracepoints),
        NOTHING,
        (probe,),
        present=frozenset({missing}),
    )
    assert found.symbols == ("__x64_sys_mbind", "__x64_sys_mbind")
    # Where there is no such function either, that is told.
    (found,) = planned({missing}, tracepoints, probe)
    assert found.why_not


def test_a_handler_that_needs_a_member_is_not_attached_without() -> None:
    """In 6.1.0 the functions are those of 5.10, and VMAs are in a maple tree."""
    (probe,) = (one for one in PROBES if one.probe is Probe.MBIND_RANGE)
    old = types_of("5.10")
    functions = ARGUMENTS["5.10"].keys()
    (found,) = planned(functions, (), probe, told=old)
    assert found.missing is None
    (found,) = planned(functions, (), probe, told=FakeTypes(old.functions))
    assert found.missing is not None


def test_what_a_probe_rests_on_is_attached_with_it() -> None:
    functions = ARGUMENTS["5.10"].keys()
    tracepoints = {n for p in PROBES for a in p.attachments for n in a.candidates}
    plans = planned(functions, tracepoints, *PROBES, told=types_of("5.10"))
    chosen = {one.probe.name for one in choose(plans, ["alloc"]) if not one.unwanted}
    assert {"mbind_range", "sys_mbind", "rmap_remove", "rmap_walk"} < chosen
    with pytest.raises(UsageTrouble, match="mbind_range cannot do without it"):
        choose(plans, (), ["sys_mbind"])
    newer = planned(ARGUMENTS["6.1"].keys(), tracepoints, *PROBES, told=types_of("6.1"))
    chosen = {one.probe.name for one in choose(newer, ["alloc"]) if not one.unwanted}
    assert chosen == {p.name for p in PROBES if p.required}


def test_half_of_a_probe_is_none() -> None:
    half = one(kprobe("a", "here"), kprobe("b", "gone"))
    (found,) = planned({"here"}, (), half)
    assert found.symbols == ()
    assert found.missing == "gone"


def test_functions_and_tracepoints_are_different_things() -> None:
    names = {"new", "syscalls:sys_enter_mbind"}
    (found,) = planned(names, (), MIXED)
    assert found.missing == "syscalls:sys_enter_mbind"
    (found,) = planned((), names, MIXED)
    assert found.missing == "new"
    (found,) = planned({"new"}, {"syscalls:sys_enter_mbind"}, MIXED)
    assert found.missing is None
    assert found.symbols == ("new", "syscalls:sys_enter_mbind")


def test_copies_are_told_and_never_attached_to() -> None:
    (found,) = planned({"new", "new.isra.0", "old.isra.0"}, (), PAIR)
    assert found.symbols == ("new", "new")
    assert found.unseen == ("new.isra.0",)
    (found,) = planned({"new.isra.0"}, (), PAIR)
    assert found.missing == "old"


def reading(handler: str, function: str, *reads: str) -> Attachment:
    return Attachment(
        handler=handler, kind=Kind.KPROBE, candidates=(function,), reads=reads
    )


MOVED = one(
    Attachment(
        handler="a",
        kind=Kind.KPROBE,
        candidates=("new", "old"),
        reads=("folio|page", "vma"),
    )
)


def told(**functions: Iterable[str]) -> FakeTypes:
    return FakeTypes({name: tuple(names) for name, names in functions.items()})


def places(**arguments: int) -> dict[str, int]:
    found = {f"ARG_a_{name}": place for name, place in arguments.items()}
    return found | {f"IN_a_{name}": 0 for name in arguments}


def test_arguments_are_where_the_kernel_has_them() -> None:
    (found,) = planned({"old"}, (), MOVED, told=told(old=("vma", "page")))
    assert found.places == places(folio=2, vma=1)
    assert macros((found,)).items() >= found.places.items()
    (found,) = planned({"new"}, (), MOVED, told=told(new=("x", "folio", "vma")))
    assert found.places == places(folio=2, vma=3)


def test_arguments_on_the_stack_have_places_too() -> None:
    many = told(new=("one", "two", "three", "four", "five", "six", "vma", "folio"))
    (found,) = planned({"new"}, (), MOVED, told=many)
    assert found.places == places(folio=8, vma=7)


def test_what_lies_in_a_part_is_where_the_whole_has_it() -> None:
    part = one(reading("a", "whole.part.0", "vma"))
    (found,) = planned({"whole.part.0"}, (), part, told=told(whole=("x", "vma")))
    assert (found.symbols, found.places) == (("whole.part.0",), places(vma=2))


@pytest.mark.parametrize(
    ("arguments", "missing"),
    [
        (None, "type information of new()"),
        (("folio",), "argument vma of new()"),
        (("vma",), "argument folio or page of new()"),
    ],
)
def test_a_function_without_what_is_read_will_not_do(
    arguments: tuple[str, ...] | None, missing: str
) -> None:
    functions = {} if arguments is None else {"new": arguments}
    (found,) = planned({"new"}, (), MOVED, told=told(**functions))
    assert (found.missing, found.symbols, found.places) == (missing, (), {})
    # One that has it will do, though its name is older.
    functions["old"] = ("page", "vma")
    (found,) = planned({"new", "old"}, (), MOVED, told=told(**functions))
    assert (found.missing, found.symbols) == (None, ("old",))


def test_one_handler_finds_its_arguments_in_one_place() -> None:
    probe = one(reading("a", "one", "vma"), reading("a", "two", "vma"))
    names = {"one", "two"}
    same = told(one=("vma",), two=("vma", "x"))
    assert planned(names, (), probe, told=same)[0].symbols == ("one", "two")
    (found,) = planned(names, (), probe, told=told(one=("vma",), two=("x", "vma")))
    assert found.missing == "two() with the arguments of the others"


def test_an_argument_in_a_struct() -> None:
    probe = one(reading("a", "f", "vma|unmap->desc.first"))
    types = FakeTypes({"f": ("tlb", "unmap")}, {("desc", "first"): 8})
    assert planned({"f"}, (), probe, told=types)[0].places == {
        "ARG_a_vma": 2,
        "IN_a_vma": 9,
    }
    # As it was, and where the struct has no such member.
    (found,) = planned({"f"}, (), probe, told=told(f=("tlb", "vma")))
    assert found.places == places(vma=2)
    (found,) = planned({"f"}, (), probe, told=told(f=("tlb", "unmap")))
    assert found.missing == "argument vma or unmap->desc.first of f()"


FEWER: dict[str, dict[str, str]] = {
    "5.10": {},
    "6.1": {},
    "6.12": {},
    "7.2": {},
}
"""Kernel -> probe that is not to be had there -> what it lacks."""


@pytest.mark.parametrize("kernel", ARGUMENTS)
def test_what_each_kernel_lacks(kernel: str) -> None:
    functions = ARGUMENTS[kernel].keys() | {"perf_event_mmap"}
    tracepoints = {n for p in PROBES for a in p.attachments for n in a.candidates}
    plans = planned(functions, tracepoints, *PROBES, told=types_of(kernel))
    assert {p.probe.name: p.missing for p in plans if p.missing} == FEWER[kernel]


@pytest.mark.parametrize("kernel", ["6.12", "7.2"])
def test_without_shmem_s_function_the_others_are_seen(kernel: str) -> None:
    """It is a part of another one, or the kernel has no shmem."""
    every = frozenset(ARGUMENTS[kernel])
    for functions, shmem in ((every, True), (every - {"shmem_alloc_folio"}, False)):
        (alloc, *_) = plan(functions, frozenset(), types_of(kernel), PROBES)
        assert alloc.why_not is None
        assert ("shmem_alloc_folio" in alloc.symbols) is shmem
        assert "vma_alloc_folio_noprof" in alloc.symbols


def test_every_argument_that_a_handler_names_has_its_macro() -> None:
    named = set(re.findall(r"\bARG\((\w+), (\w+)\)", SOURCE))
    ends = {f"{handler}_{name}" for handler, name in named}
    told = {f"{kind}_{end}" for kind in ("ARG", "IN") for end in ends}
    assert told == macros(()).keys()


def attached(*, only: tuple[str, ...] = (), without: tuple[str, ...] = ()) -> set[str]:
    """Return the probes that remain on a kernel that has all but ksm_madvise."""
    names = {n for p in PROBES for a in p.attachments for n in a.candidates}
    functions = ARGUMENTS["6.1"].keys() - {"ksm_madvise"}
    plans = planned(functions, names, *PROBES, told=types_of("6.1"))
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
    plans = planned({"new"}, (), PAIR, MIXED)
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
