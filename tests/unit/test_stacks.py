"""What a stack says of why a page came; and that it gets where it is needed."""

from __future__ import annotations

import pytest
import simstory
from msgspec.structs import replace
from simfile import save
from simkernel import SimKernel

from cdmtrace.analysis import check, document, load
from cdmtrace.analysis.stacks import Stack
from cdmtrace.events import Cause, EventKind

FAULT = ("handle_mm_fault+0x9f", "do_user_addr_fault+0x1c8", "exc_page_fault+0x70")


@pytest.mark.parametrize(
    ("frames", "cause"),
    [
        (("vma_alloc_folio+0x0", "do_anonymous_page+0x83", *FAULT), Cause.FAULT),
        (("page_add_anon_rmap+0x0", "do_swap_page+0x5f3", *FAULT), Cause.SWAP_IN),
        (
            ("page_add_new_anon_rmap+0x0", "wp_page_copy+0x1", "do_swap_page+0x2"),
            Cause.SWAP_IN,
        ),
        (("page_add_new_anon_rmap+0x0", "wp_page_copy.isra.0+0x1", *FAULT), Cause.COW),
        (
            ("page_add_anon_rmap+0x0", "migrate_misplaced_page+0x5"),
            Cause.NUMA_BALANCING,
        ),
        (
            (
                *("page_add_anon_rmap+0x0", "migrate_pages+0x1", "compact_zone+0x2"),
                *("alloc_pages_direct_compact+0x3", "do_huge_pmd_anonymous_page+0x4"),
                *FAULT,
            ),
            Cause.COMPACTION,
        ),
        (
            ("page_add_anon_rmap+0x0", "migrate_pages+0x1", "vendor_ioctl+0x2"),
            Cause.DRIVER,
        ),
        (
            ("page_add_anon_rmap+0x0", "migrate_pages+0x1", "vendor_fault+0x2", *FAULT),
            Cause.DRIVER,
        ),
        (
            (
                *("page_add_anon_rmap+0x0", "migrate_pages+0x1", "compact_zone+0x2"),
                *("migrate_pages+0x3", "vendor_ioctl+0x4"),
            ),
            Cause.COMPACTION,
        ),
        (
            (
                *("page_add_anon_rmap+0x0", "migrate_pages+0x1"),
                *("do_migrate_pages+0x2", "cpuset_migrate_mm_workfn+0x3"),
            ),
            Cause.CPUSET,
        ),
        (
            (
                *("page_add_new_anon_rmap+0x0", "mfill_atomic_install_pte+0x1"),
                *("mcopy_atomic+0x2", "userfaultfd_ioctl+0x3"),
            ),
            Cause.USERFAULTFD,
        ),
        # What it copies from is faulted in like anything else.
        (
            (
                *("page_add_new_anon_rmap+0x0", "do_anonymous_page+0x1", *FAULT),
                *("mcopy_atomic+0x2", "userfaultfd_ioctl+0x3"),
            ),
            Cause.FAULT,
        ),
        (("page_add_anon_rmap+0x0", "try_to_merge_one_page+0x1"), None),
        (("page_add_anon_rmap+0x0", "ksm_scan_thread+0x1"), Cause.KSM),
        (("do_page_add+0x0", "__x64_sys_move_pages+0x1"), None),
        (("",), None),
    ],
)
def test_the_cause(frames: tuple[str, ...], cause: Cause | None) -> None:
    stack = Stack.parse("\n".join(frames).encode())
    assert stack.frames == frames
    assert stack.cause is cause


@pytest.mark.parametrize(
    ("caller", "cause"),
    [
        ("do_mbind", None),
        ("__x64_sys_mbind", None),
        ("do_migrate_pages", None),
        ("__x64_sys_migrate_pages", None),
        ("move_pages_and_store_status.isra.0", None),
        ("__x64_sys_move_pages", None),
        ("__gup_longterm_locked", None),
        ("soft_offline_page", None),
        ("alloc_contig_range", None),
        ("compact_zone", Cause.COMPACTION),
        ("shrink_folio_list", Cause.RECLAIM),
        ("migrate_misplaced_page", Cause.NUMA_BALANCING),
        ("offline_pages", Cause.HOTPLUG),
    ],
)
def test_the_core_s_own_callers_of_migrate_pages_are_no_drivers(
    caller: str, cause: Cause | None
) -> None:
    stack = Stack(("page_add_anon_rmap+0x0", "migrate_pages+0x1", f"{caller}+0x2"))
    assert stack.cause is cause


def test_a_page_fault_in_a_call_that_could_migrate_is_a_fault() -> None:
    stack = Stack(("do_anonymous_page+0x1", *FAULT, "__x64_sys_mbind+0x2"))
    assert stack.cause is Cause.FAULT


def test_what_the_compiler_adds_to_a_name() -> None:
    stack = Stack(("do_swap_page.constprop.0+0x1", "a.part.2.isra.0+0x2", "b.cold+0x3"))
    assert stack.functions == ("do_swap_page", "a", "b")


def test_no_stack() -> None:
    assert Stack.parse(None).functions == ("",)
    assert Stack.parse(b"\xff\xfe+0x1").cause is None


def recorded(tmp_path, kind: EventKind, frames: tuple[str, ...]):
    """The story as a file in which all rows of a kind name one stack."""
    kernel = SimKernel("rfc")
    simstory.tell(kernel)
    stack = {"stack": 23, "payload": "\n".join(frames).encode(), "other_policy": 0}
    kernel.emit(EventKind.STACK, **stack)
    kernel.events[:] = [
        replace(event, stack=23) if event.kind == kind else event
        for event in [kernel.events[-1], *kernel.events[:-1]]
    ]
    return load(save(kernel.trace(), tmp_path / "x.arrows"))


def test_a_stack_refines_the_cause_of_the_rows_that_name_it(tmp_path) -> None:
    swapped = ("page_add_anon_rmap+0x0", "do_swap_page+0x5", *FAULT)
    trace = recorded(tmp_path, EventKind.MAP, swapped)
    assert set(trace.stacks) == {23}
    causes = {event.cause for event in trace.events if event.kind == EventKind.MAP}
    assert causes == {Cause.SWAP_IN}
    result = check(trace)
    how = {f.cause for f in result.findings if f.rule.id == "CDM014"}
    assert how == {"swap-in"}


def test_no_stack_overrides_that_a_driver_gave_out_the_page(tmp_path) -> None:
    kernel = SimKernel()
    task = kernel.process()
    task.faults(task.mmap(2, device=True))
    frames = ("page_add_file_rmap+0x0", "finish_fault+0x5", *FAULT)
    kernel.emit(
        EventKind.STACK, stack=1, payload="\n".join(frames).encode(), other_policy=0
    )
    kernel.events[:] = [
        replace(event, stack=1) if event.kind == EventKind.MAP else event
        for event in kernel.events
    ]
    trace = load(save(kernel.trace(), tmp_path / "x.arrows"))
    maps = [event for event in trace.events if event.kind == EventKind.MAP]
    assert [(event.cause, event.stack) for event in maps] == [(Cause.DRIVER, 1)] * 2


@pytest.mark.parametrize(
    ("told", "innermost", "cause"),
    [
        (Cause.FILE, "do_set_pte", Cause.FILE),
        (Cause.FILE, "mfill_atomic_install_pte", Cause.USERFAULTFD),
        (Cause.CPUSET, "vma_rebind", Cause.CPUSET),
        (Cause.CALL, "do_set_pte", Cause.FAULT),
    ],
)
def test_a_fault_says_no_more_than_that_the_page_is_a_file_s(
    tmp_path, told: Cause, innermost: str, cause: Cause
) -> None:
    kernel = SimKernel()
    task = kernel.process()
    stack = "\n".join((f"{innermost}+0x5", *FAULT)).encode()
    kernel.emit(EventKind.STACK, stack=1, payload=stack, other_policy=0)
    task.row(EventKind.MAP, cause=told, stack=1, addr=0x1000, size=0x1000, node=1)
    trace = load(save(kernel.trace(), tmp_path / "x.arrows"))
    assert [e.cause for e in trace.events if e.kind == EventKind.MAP] == [cause]


def test_a_witness_shows_the_stack(tmp_path, capsys) -> None:
    from cdmtrace.cli import main

    frames = ("vma_alloc_folio+0x1", "do_anonymous_page+0x2", *FAULT)
    trace = recorded(tmp_path, EventKind.ALLOC, frames)
    found = document.check(check(trace))["findings"]
    one = next(f for f in found if f["rule"] == "CDM003")
    assert one["witness"][0]["stack"][:2] == ["vma_alloc_folio", "do_anonymous_page"]
    assert main(["explain", str(tmp_path / "x.arrows"), one["fingerprint"]]) == 0
    out = capsys.readouterr().out
    assert "vma_alloc_folio < do_anonymous_page < handle_mm_fault <" in out


def test_stacks_are_no_events_of_an_address_space(tmp_path) -> None:
    kernel = SimKernel()
    kernel.emit(EventKind.STACK, stack=1, payload=b"a+0x0", mm=0, other_policy=0)
    result = check(load(save(kernel.trace(), tmp_path / "x.arrows")))
    assert result.lives == ()
    assert {rule.rule.id for rule in result.rules if rule.checked} == {"CDM020"}
