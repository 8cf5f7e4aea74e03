"""The model, event by event, where the order or the lack of rows is the point."""

from __future__ import annotations

import pytest
from msgspec.structs import replace
from simkernel import (
    ANON,
    BIND,
    CDM,
    DEFAULT,
    HUGE,
    PAGE,
    PREFERRED,
    RAM,
    TAG,
    Region,
    SimKernel,
    Task,
    Vma,
)

from cdmtrace.analysis import Event, cdm_pages, check, count_pages
from cdmtrace.analysis.frames import Terms
from cdmtrace.analysis.model import step
from cdmtrace.analysis.notes import Arrived, Left, Note, Serviced
from cdmtrace.analysis.pages import Page, PageMap
from cdmtrace.analysis.profiles import PROFILES, Facts, Mode, Want, fault_tags
from cdmtrace.analysis.result import Life
from cdmtrace.analysis.state import Area, State
from cdmtrace.events import Bit, Cause, EventKind, Lock, Probe

TERMS = Terms(cdm=CDM, tag=TAG)
BASE = 0x100040000000


@pytest.fixture
def kernel() -> SimKernel:
    return SimKernel()


@pytest.fixture
def task(kernel: SimKernel) -> Task:
    return kernel.process()


def life(kernel: SimKernel) -> Life:
    (one,) = check(kernel.trace(), rules=()).lives
    return one


def pages(state: State) -> list[int]:
    return [page.addr for page in state.pages.within(0, 1 << 64)]


def notes(kernel: SimKernel) -> list[Note]:
    seen: list[Note] = []
    check(kernel.trace(), rules=(), observer=lambda mm, event, note: seen.append(note))
    return seen


# --- pages ---------------------------------------------------------------------


def page(addr: int, size: int = PAGE, *, explicit: bool = False) -> Page:
    row = Event(seq=1, ts=1, ts_entry=1, kind=EventKind.MAP)
    return Page(addr=addr, size=size, node=1, how="fault", explicit=explicit, event=row)


def test_a_page_map_is_never_changed_in_place() -> None:
    empty = PageMap()
    one = empty.put(page(BASE))
    two = one.put(page(BASE + PAGE, explicit=True))
    none = two.drop(page(BASE))
    assert (empty.count, one.count, two.count, none.count) == (0, 1, 2, 1)
    assert one.get(BASE + PAGE) is None
    assert two.any_explicit(BASE, BASE + 2 * PAGE)
    assert not two.any_explicit(BASE, BASE + PAGE)
    assert not one.any_explicit(0, 1 << 47)


def test_a_page_map_finds_pages_at_the_edges_of_its_leaves() -> None:
    edge = BASE + HUGE
    held = PageMap().put_all(page(addr) for addr in (BASE, edge - PAGE, edge))
    assert [p.addr for p in held.within(edge - PAGE, edge)] == [edge - PAGE]
    assert held.any(edge, edge + PAGE)
    assert not held.any(edge + PAGE, edge + HUGE)
    assert held.any(BASE - HUGE, BASE + PAGE)


def test_a_page_that_is_put_twice_counts_once() -> None:
    asked = page(BASE, explicit=True)
    held = PageMap().put(page(BASE + PAGE)).put(asked).put(asked)
    assert held.count == 2
    assert not held.drop(asked).any_explicit(0, 1 << 47)


def test_a_huge_page_is_in_each_vma_that_has_a_part_of_it() -> None:
    base = BASE - BASE % HUGE
    huge = PageMap().put(page(base, HUGE, explicit=True)).put(page(base + HUGE))
    first, last = base + 7 * PAGE, base + 10 * PAGE
    assert huge.on_nodes(base, first) == {1: 7 * PAGE}
    assert huge.on_nodes(first, last) == {1: 3 * PAGE}
    assert huge.on_nodes(last, base + 2 * HUGE) == {1: HUGE - 9 * PAGE}
    for start, end in ((base, first), (first, last), (last, base + HUGE)):
        assert huge.any(start, end)
        assert huge.any_came(start, end)
        assert huge.any_explicit(start, end)
    assert not huge.any_explicit(base + HUGE, base + 2 * HUGE)
    assert not huge.any(base - PAGE, base)


def test_a_huge_page_falls_into_its_parts() -> None:
    huge = PageMap().put(page(BASE, HUGE))
    parts = huge.fragment(page(BASE, HUGE), PAGE)
    assert huge.covering(BASE + 5 * PAGE) == page(BASE, HUGE)
    assert parts.count == HUGE // PAGE
    assert parts.covering(BASE + 5 * PAGE) == page(BASE + 5 * PAGE)


# --- rows in an order of their own ---------------------------------------------


def test_copy_on_write_maps_the_new_page_before_the_old_one_leaves(
    kernel: SimKernel, task: Task
) -> None:
    vma = task.mmap(3)
    task.mbind(vma.start, 3)
    task.faults(vma)
    child = task.fork()
    child.fault(vma.page(1), cow=True)
    kinds = [e.kind for e in kernel.events[-3:]]
    assert kinds == [EventKind.ALLOC, EventKind.MAP, EventKind.UNMAP]
    for one in check(kernel.trace(), rules=()).lives:
        assert pages(one.state) == [vma.page(n) for n in range(3)]


def test_copy_on_write_to_ram_takes_the_page_away(
    kernel: SimKernel, task: Task
) -> None:
    vma = task.mmap(2)
    task.mbind(vma.start, 2)
    task.faults(vma)
    task.mbind(vma.start, 2, BIND, RAM)
    task.fault(vma.page(0), cow=True)
    assert pages(life(kernel).state) == [vma.page(1)]


def test_a_migration_that_failed_puts_the_page_back_as_it_was(
    kernel: SimKernel, task: Task
) -> None:
    vma = task.mmap(1)
    task.mbind(vma.start, 1)
    task.faults(vma)
    task.move_pages([vma.start], 0)
    del kernel.events[-2:]
    row = kernel.events[-1]
    assert row.kind == EventKind.UNMAP
    task.mm.pages[vma.start] = 1, PAGE
    task.call = row.call
    task.vma_row(
        EventKind.MIGRATE,
        task.vma(vma.start),
        probe=Probe.REMOVE_MIGRATION_PTE,
        addr=vma.start,
        size=PAGE,
        node=1,
    )
    task.end(Probe.SYS_MOVE_PAGES, row.ts, always=True)
    (held,) = life(kernel).state.pages.within(0, 1 << 64)
    assert (held.how, held.explicit) == ("fault", False)
    assert sum(isinstance(note, Arrived) for note in notes(kernel)) == 1


def test_pages_that_are_compacted_stay_what_they_were(
    kernel: SimKernel, task: Task
) -> None:
    """However many: each time, some are unmapped and then put back."""
    kernel.quirks.add("migration-ungated")
    vma = task.mmap(1511)
    task.faults(vma)
    everything = [vma.page(number) for number in range(vma.pages)]
    task.move_pages(everything, 1)
    for first in range(0, vma.pages, 31):
        batch = everything[first : first + 31]
        for addr in batch:
            task.unmap(addr)
        for addr in batch:
            task.mm.pages[addr] = 1, PAGE
            task.vma_row(
                EventKind.MIGRATE,
                task.vma(addr),
                probe=Probe.REMOVE_MIGRATION_PTE,
                addr=addr,
                size=PAGE,
                node=1,
                src_node=1,
                cause=Cause.COMPACTION,
            )
    held = list(life(kernel).state.pages.within(0, 1 << 64))
    assert {(one.how, one.explicit) for one in held} == {("move_pages", True)}
    assert len(held) == 1511


def test_the_parts_of_a_split_huge_page_did_not_come_anew(
    kernel: SimKernel, task: Task
) -> None:
    vma = task.mmap(HUGE // PAGE, at=0x200000000000)
    task.mbind(vma.start, vma.pages, PREFERRED)
    task.fault(vma.start, huge=True)
    inside = task.vma(vma.start)
    for number in range(vma.pages):
        task.vma_row(EventKind.MAP, inside, addr=vma.page(number), size=PAGE, node=1)
    task.vma_row(EventKind.UNMAP, inside, addr=vma.start, size=HUGE, src_node=1)
    assert life(kernel).state.pages.count == vma.pages
    assert sum(isinstance(note, Arrived) for note in notes(kernel)) == 1
    assert not any(isinstance(note, Left) for note in notes(kernel))


def test_copy_on_write_out_of_a_huge_page(kernel: SimKernel, task: Task) -> None:
    """The kernel splits the entry first, and tells nothing of that."""
    vma = task.mmap(HUGE // PAGE, at=0x200000000000)
    task.mbind(vma.start, vma.pages, PREFERRED)
    task.fault(vma.start, huge=True)
    child = task.fork()
    written = vma.page(5), vma.page(0), vma.page(7)
    for addr in written:
        columns = {"addr": addr, "size": PAGE, "node": 1}
        inside = child.vma(addr)
        child.vma_row(EventKind.ALLOC, inside, probe=Probe.ALLOC, **columns)
        child.vma_row(EventKind.MAP, inside, cause=Cause.COW, **columns)
        child.vma_row(EventKind.UNMAP, inside, addr=addr, size=PAGE, src_node=1)
    (_, copied) = (one.state for one in check(kernel.trace(), rules=()).lives)
    assert count_pages(copied, TERMS, vma.start, vma.end) == {1: vma.pages}
    came = {held.addr: held.how for held in copied.pages.within(0, 1 << 64)}
    assert {addr for addr, how in came.items() if how == "cow"} == {*written}
    arrived = [n.page.how for n in notes(kernel) if isinstance(n, Arrived)]
    assert arrived == ["thp", "cow", "cow", "cow"]


def test_a_part_of_a_huge_page_can_leave(kernel: SimKernel, task: Task) -> None:
    vma = task.mmap(HUGE // PAGE, at=0x200000000000)
    task.mbind(vma.start, vma.pages, PREFERRED)
    task.fault(vma.start, huge=True)
    inside = task.vma(vma.start)
    task.vma_row(EventKind.UNMAP, inside, addr=vma.page(5), size=PAGE, src_node=1)
    state = life(kernel).state
    assert state.pages.count == vma.pages - 1
    assert count_pages(state, TERMS, vma.start, vma.end) == {1: vma.pages - 1}


def a_huge_page(task: Task) -> Region:
    vma = task.mmap(HUGE // PAGE, at=0x200000000000)
    task.mbind(vma.start, vma.pages, PREFERRED)
    task.fault(vma.start, huge=True)
    return vma


def test_a_huge_page_that_moves_to_where_it_cannot_be_one(
    kernel: SimKernel, task: Task
) -> None:
    moved = task.mremap(a_huge_page(task), HUGE // PAGE, to=0x300000007000)
    state = life(kernel).state
    assert pages(state) == [moved.page(n) for n in range(moved.pages)]
    # Each half of it is in the 2 MiB that it lies in.
    assert state.pages.covering(moved.page(500)) is not None


def test_a_huge_page_that_moves_to_where_it_can(kernel: SimKernel, task: Task) -> None:
    moved = task.mremap(a_huge_page(task), HUGE // PAGE, to=0x300000000000)
    assert pages(life(kernel).state) == [moved.start]


def test_a_part_of_a_huge_page_moves(kernel: SimKernel, task: Task) -> None:
    """mremap() moves the pages before it splits the VMA that they were in."""
    vma = a_huge_page(task)
    moved = task.mremap(Region(vma.page(5), 7), 7, to=0x300000000000)
    splits = [e for e in kernel.events if e.kind == EventKind.VMA_SPLIT]
    assert splits
    for split in splits:
        kernel.events.remove(split)
    state = life(kernel).state
    for start, end, held in (
        (vma.start, vma.end, vma.pages - 7),
        (moved.start, moved.end, 7),
    ):
        assert count_pages(state, TERMS, start, end) == {1: held}


def test_a_child_has_what_fork_copies_of_a_huge_page(
    kernel: SimKernel, task: Task
) -> None:
    """The VMA is split, and one of the three is not for children."""
    vma = a_huge_page(task)
    task.mprotect(vma.page(5), 7, writable=False)
    task.mm.pages = {vma.page(n): (1, PAGE) for n in range(vma.pages)}
    child = task.fork()
    copies = [e for e in kernel.events if e.kind == EventKind.COPY]
    kernel.events.remove(copies[0])
    (state,) = (
        one.state
        for one in check(kernel.trace(), rules=()).lives
        if one.mm.id == child.mm.id
    )
    assert count_pages(state, TERMS, 0, 1 << 64) == {1: vma.pages - 5}


def test_what_is_mapped_in_a_call_that_unmaps_what_was_there_stays(
    kernel: SimKernel, task: Task
) -> None:
    """mmap(MAP_FIXED|MAP_POPULATE): its row comes after the pages it mapped."""
    vma = task.mmap(4)
    task.mbind(vma.start, 4)
    task.faults(vma)
    since = task.begin()
    task.mm.pages.clear()
    task.mm.vmas = [Vma(vma.start, vma.end, ANON | TAG, (BIND, CDM))]
    task.fault(vma.page(2))
    task.end(Probe.SYS_MMAP, since, addr=vma.start, size=4 * PAGE, other=vma.start)
    assert pages(life(kernel).state) == [vma.page(2)]


# --- rows that are not there ---------------------------------------------------


def test_a_call_whose_row_was_lost_is_over_when_its_task_goes_on(
    kernel: SimKernel, task: Task
) -> None:
    vma = task.mmap(2)
    task.mbind(vma.start, 2)
    kernel.events = [e for e in kernel.events if e.kind != EventKind.CALL]
    assert life(kernel).state.dirty
    task.faults(vma)
    assert not life(kernel).state.dirty


def test_an_unmap_of_a_page_that_nobody_saw_come_leaves_the_vma_unknown(
    kernel: SimKernel, task: Task
) -> None:
    vma = task.mmap(2)
    task.mbind(vma.start, 2)
    task.vma_row(
        EventKind.UNMAP, task.vma(vma.start), addr=vma.start, size=PAGE, src_node=1
    )
    area = life(kernel).state.area(vma.start)
    assert area
    assert not area.pages_known


def test_a_policy_that_could_not_be_read_is_unknown(
    kernel: SimKernel, task: Task
) -> None:
    vma = task.mmap(2)
    task.mbind(vma.start, 2)
    task.begin()
    task.vma_row(
        EventKind.POLICY,
        task.vma(vma.start),
        addr=vma.start,
        size=2 * PAGE,
        bits=Bit.VMA_UNREAD,
        policy=15,
        ret=-12,
    )
    area = life(kernel).state.area(vma.start)
    assert area
    assert (area.flags, area.policy) == (None, None)


@pytest.mark.parametrize(
    "kind", [EventKind.NUMA_SCAN, EventKind.NUMA_MOVE, EventKind.KSM_PAGE]
)
@pytest.mark.parametrize("call", [0, 7])
def test_rows_that_the_model_has_no_use_for_change_nothing(
    kernel: SimKernel, task: Task, kind: EventKind, call: int
) -> None:
    """Not even of a page that KSM has just mapped, and is going to unmap."""
    vma = task.mmap(2)
    task.mbind(vma.start, 2)
    task.faults(vma)
    before = life(kernel).state
    last = kernel.events[-1]
    row = replace(
        last,
        seq=last.seq + 1,
        ts=last.ts + 1,
        ts_entry=last.ts,
        kind=kind,
        call=call,
        node=0,
        src_node=1,
        flags_before=0,
        flags_after=0,
    )
    state, told = step(before, row, TERMS, PROFILES["intended"])
    assert state == replace(before, near=state.near)
    assert told == (Serviced(event=row, near=True),)


def test_what_was_found_out_of_areas_is_of_no_others(
    kernel: SimKernel, task: Task
) -> None:
    """Whether one is tagged, asked again before and after it is bound back."""
    vma = task.mmap(3)
    near: tuple[tuple[Area, ...], bool] = ((), False)
    for mode in (PREFERRED, DEFAULT, BIND):
        task.mbind(vma.start, 3, mode)
        state = replace(life(kernel).state, near=near)
        row = replace(kernel.events[-1], kind=EventKind.NUMA_SCAN)
        for _ in range(2):
            state, told = step(state, row, TERMS, PROFILES["intended"])
            assert told == (Serviced(event=row, near=mode != DEFAULT),)
        near = state.near


# --- whose it is ---------------------------------------------------------------


def test_an_id_that_comes_again_is_another_mm(kernel: SimKernel, task: Task) -> None:
    vma = task.mmap(2)
    task.mbind(vma.start, 2)
    task.faults(vma)
    task.exit()
    other = kernel.process("next")
    other.mm.id = task.mm.id
    vma = other.mmap(3)
    other.mbind(vma.start, 3)
    other.faults(vma)
    counts = {
        (mm.generation, mm.pid, mm.comm): sum(map(sum, map(dict.values, r.values())))
        for mm, r in cdm_pages(kernel.trace()).items()
    }
    assert counts == {(0, task.pid, "story"): 2, (1, other.pid, "next"): 3}


def test_a_call_on_the_mm_of_another_process_settles_there(kernel: SimKernel) -> None:
    kernel.quirks.add("migration-ungated")
    victim, mover = kernel.process("victim"), kernel.process("mover")
    vma = victim.mmap(3)
    victim.faults(vma)
    mover.migrate_pages(RAM, CDM, victim.mm)
    (finding,) = check(kernel.trace()).findings
    assert (finding.rule.id, finding.cause) == ("CDM002", "migrate_pages")
    assert finding.mm.id == victim.mm.id


def test_pages_at_an_event_and_just_before_the_exit(
    kernel: SimKernel, task: Task
) -> None:
    vma = task.mmap(3)
    task.mbind(vma.start, 3)
    task.fault(vma.page(0))
    half = kernel.events[-1].seq
    task.faults(vma)
    task.exit()
    where = (vma.start, vma.end)
    assert list(cdm_pages(kernel.trace(), until=half).values()) == [{where: {1: 1}}]
    assert list(cdm_pages(kernel.trace()).values()) == [{where: {1: 3}}]


def test_step_changes_nothing_in_place(kernel: SimKernel, task: Task) -> None:
    vma = task.mmap(3)
    task.mbind(vma.start, 3)
    task.faults(vma)
    state, before = State(), []
    for event in kernel.events:
        if event.kind == EventKind.COMM:
            continue
        before.append((state, repr(state)))
        state, _ = step(state, event, TERMS, PROFILES["intended"])
    assert all(repr(old) == text for old, text in before)


# --- locks ---------------------------------------------------------------------


def tag_under(kernel: SimKernel, lock: int, **columns: object) -> list[str]:
    task = kernel.process()
    vma = task.mmap(2)
    task.mbind(vma.start, 2, PREFERRED)
    task.lock = Lock.READ
    inside = task.vma(vma.start)
    task.vma_row(
        EventKind.ALLOC,
        inside,
        **{
            "addr": vma.start,
            "size": PAGE,
            "node": 1,
            "probe": Probe.ALLOC,
            "flags_before": inside.flags & ~0x8000000,
            "flags_after": inside.flags | 0x8000000,
            "lock_entry": lock,
            "lock_exit": lock,
            **columns,
        },
    )
    return [f.rule.id for f in check(kernel.trace()).findings]


@pytest.mark.parametrize(
    ("lock", "found"),
    [
        (Lock.NONE, ["CDM003"]),
        (Lock.READ, ["CDM003"]),
        (Lock.WRITE_SELF, []),
        (Lock.WRITE_OTHER, []),
        (Lock.UNKNOWN, []),
        (Lock.WRITE_SELF | 3 << 4, []),
        (Lock.WRITE_SELF | 1 << 4, ["CDM003"]),
    ],
)
def test_who_may_write_vm_flags(kernel: SimKernel, lock: int, found: list[str]) -> None:
    assert tag_under(kernel, lock) == found


def test_a_vma_that_is_not_attached_may_be_written(kernel: SimKernel) -> None:
    assert tag_under(kernel, Lock.NONE, bits=Bit.UNLINKED) == []


def test_two_rows_that_overlap_show_one_write(kernel: SimKernel) -> None:
    kernel.quirks |= {"fault-tag", "bind-only"}
    task = kernel.process()
    vma = task.mmap(2)
    task.mbind(vma.start, 2, PREFERRED)
    task.fault(vma.page(0))
    first = next(e for e in kernel.events if e.kind == EventKind.ALLOC)
    kernel.emit(
        EventKind.ALLOC,
        **{
            name: getattr(first, name)
            for name in Event.__struct_fields__
            if name not in ("seq", "ts", "kind", "tid", "addr", "payload")
        },
        tid=task.tid + 1,
        addr=vma.page(1),
    )
    # One write without the lock; but whose it was is not known, for they race.
    found = [f.rule.id for f in check(kernel.trace()).findings]
    assert found == ["CDM003", "CDM018"]


# --- profiles ------------------------------------------------------------------

NONE = Facts(
    tag=False,
    policy_names=False,
    asked=False,
    held=False,
    came=False,
    pages_known=True,
    excused=False,
    patched=False,
)


@pytest.mark.parametrize(
    ("change", "want"),
    [
        ({}, Want.MUST_NOT),
        ({"policy_names": True}, Want.MUST),
        ({"asked": True, "held": True}, Want.MUST),
        ({"held": True}, Want.MAY),
        ({"policy_names": None}, Want.MAY),
        ({"pages_known": False}, Want.MAY),
        ({"excused": True}, Want.MAY),
        ({"excused": True, "policy_names": True}, Want.MUST),
        ({"patched": True}, Want.MUST_NOT),
    ],
)
def test_the_intended_profile(change: dict[str, bool | None], want: Want) -> None:
    facts = replace(NONE, **change)
    assert PROFILES["intended"].demand(facts).want is want


def test_the_intended_profile_tells_a_driver_s_tag_from_a_page() -> None:
    by_page = PROFILES["intended"].demand(replace(NONE, asked=True))
    by_driver = PROFILES["intended"].demand(replace(NONE, asked=True, by_driver=True))
    assert (by_page.want, by_page.clause) == (Want.MUST, "G")
    assert (by_driver.want, by_driver.clause) == (Want.MUST, "G, driver")


@pytest.mark.parametrize(
    ("patched", "want"),
    [(True, Want.MUST), (False, Want.MUST_NOT), (None, Want.MAY)],
)
def test_the_profile_of_the_patches(patched: bool | None, want: Want) -> None:
    facts = replace(NONE, policy_names=True, patched=patched)
    assert PROFILES["rfc-v2"].demand(facts).want is want


@pytest.mark.parametrize(
    ("mode", "nodes", "node", "huge", "tags"),
    [
        (BIND, CDM, 1, False, True),
        (PREFERRED, CDM, 1, False, True),
        (3, RAM | CDM, 1, False, False),
        (PREFERRED, CDM, 1, True, False),
        (PREFERRED, CDM, 0, False, False),
        (0, 0, 1, False, True),
    ],
)
def test_what_the_fault_path_of_the_patches_tags(mode, nodes, node, huge, tags) -> None:
    assert fault_tags(Mode(number=mode, nodes=nodes), node, CDM, huge=huge) is tags


def test_every_clause_names_its_source() -> None:
    for profile in PROFILES.values():
        assert all(clause.text and clause.source for clause in profile.clauses)


def test_a_cause_that_the_recorder_told_is_taken(kernel: SimKernel, task: Task) -> None:
    vma = task.mmap(1)
    task.mbind(vma.start, 1)
    task.vma_row(
        EventKind.MAP,
        task.vma(vma.start),
        addr=vma.start,
        size=PAGE,
        node=1,
        cause=Cause.SWAP_IN,
    )
    (held,) = life(kernel).state.pages.within(0, 1 << 64)
    assert held.how == "swap-in"


def test_whose_request_a_page_is(kernel: SimKernel, task: Task) -> None:
    vma = task.mmap(3)
    task.faults(vma)
    task.mbind(vma.start, 2, BIND, CDM, move=True)
    task.mbind(vma.page(2), 1)
    task.move_pages([vma.page(2)], 1)
    task.fork()
    parent, child = sorted(
        check(kernel.trace(), rules=()).lives, key=lambda one: one.mm.id
    )
    ways = [(p.how, p.explicit) for p in parent.state.pages.within(0, 1 << 64)]
    assert ways == [("mbind", False), ("mbind", False), ("move_pages", True)]
    ways = [(p.how, p.explicit) for p in child.state.pages.within(0, 1 << 64)]
    assert ways == [("fork", False)] * 3


# --- drivers -------------------------------------------------------------------


def arrivals(kernel: SimKernel) -> list[tuple[str, bool, bool | None]]:
    return [
        (note.page.how, note.page.explicit, note.asked)
        for note in notes(kernel)
        if isinstance(note, Arrived)
    ]


def device_area(kernel: SimKernel, addr: int) -> Area:
    area = life(kernel).state.area(addr)
    assert area is not None
    return area


def test_what_a_driver_maps_was_asked_for(kernel: SimKernel, task: Task) -> None:
    task.faults(task.mmap(2, device=True))
    assert arrivals(kernel) == [("driver", True, True)] * 2


@pytest.mark.parametrize("in_call", [True, False])
def test_what_a_driver_moves_was_asked_for_whatever_the_reason(
    in_call: bool, kernel: SimKernel, task: Task
) -> None:
    """An ioctl has no row of its own; a fault may be in a call that has one."""
    kernel.quirks.add("driver-untagged")
    vma = task.mmap(3)
    task.faults(vma)
    since = task.begin(Lock.READ) if in_call else 0
    task.drive([vma.page(n) for n in range(3)], 1)
    if in_call:
        task.end(Probe.SYS_MADVISE, since)
    rows = [event for event in kernel.events if event.kind == EventKind.MIGRATE]
    assert [(bool(row.call), row.arg) for row in rows] == [(in_call, 5)] * 3
    assert arrivals(kernel) == [("driver", True, True)] * 3


def test_what_a_driver_brings_back_has_come_anew(kernel: SimKernel, task: Task) -> None:
    vma = task.mmap(2)
    task.mbind(vma.start, 2)
    task.faults(vma)
    for node in (0, 1):
        task.drive([vma.page(0), vma.page(1)], node)
    assert (
        arrivals(kernel) == [("fault", False, False)] * 2 + [("driver", True, True)] * 2
    )


def test_a_driver_s_tag_is_one_from_the_mmap(kernel: SimKernel, task: Task) -> None:
    vma = task.mmap(9, device=True)
    task.mbind(vma.page(3), 3, BIND, RAM)
    task.mbind(vma.page(3), 3, BIND, CDM)
    for number in (0, 4, 8):
        assert device_area(kernel, vma.page(number)).by_driver
    moved = task.mremap(Region(vma.page(6), 3), 3, to=0x300000000000)
    assert device_area(kernel, moved.start).by_driver
    child = task.fork()
    task.exit()
    lives = check(kernel.trace(), rules=()).lives
    (forked,) = (one for one in lives if one.mm.id == child.mm.id)
    assert all(area.by_driver for area in forked.state.areas)
    assert len(forked.state.areas) == 3


def test_a_fork_may_be_the_first_to_show_a_driver_s_tag(
    kernel: SimKernel, task: Task
) -> None:
    vma = task.mmap(3, device=True)
    task.mbind(task.mmap(1).start, 1)
    child = task.fork()
    lives = check(kernel.trace(), rules=()).lives
    parent, forked = sorted(lives, key=lambda one: one.mm.id)
    assert parent.state.area(vma.start) is None
    area = forked.state.area(vma.start)
    assert forked.mm.id == child.mm.id
    assert area is not None
    assert area.by_driver


@pytest.mark.parametrize(
    ("first", "columns"),
    [
        (Vma(BASE, BASE + PAGE, ANON | TAG), {}),
        (Vma(BASE, BASE + PAGE, ANON | TAG, (BIND, CDM), device=True), {}),
        (Vma(BASE, BASE + PAGE, ANON, device=True), {}),
        (Vma(BASE, BASE + PAGE, ANON | TAG, device=True), {"flags_before": ANON}),
        (Vma(BASE, BASE + PAGE, ANON | TAG, device=True), {"policy": 15}),
    ],
)
def test_a_tag_that_is_no_driver_s(
    first: Vma, columns: dict[str, int], kernel: SimKernel, task: Task
) -> None:
    task.vma_row(EventKind.ALLOC, first, addr=BASE, size=PAGE, node=1, **columns)
    assert not device_area(kernel, BASE).by_driver


def test_a_tag_that_came_later_is_no_driver_s(kernel: SimKernel, task: Task) -> None:
    kernel.quirks.add("driver-untagged")
    vma = task.mmap(2, device=True)
    task.faults(vma)
    task.mbind(vma.start, 2)
    area = device_area(kernel, vma.start)
    assert area.tagged(TERMS)
    assert not area.by_driver
