"""The account of pages: what was there before, what moves, what replaces what."""

from __future__ import annotations

import dataclasses
import struct
from collections.abc import Callable

import pytest
from msgspec.structs import replace
from simkernel import (
    BIND,
    CDM,
    DEFAULT,
    HUGE,
    PAGE,
    PREFERRED,
    RAM,
    Region,
    SimKernel,
    Task,
)

from cdmtrace.analysis import check
from cdmtrace.analysis.state import State
from cdmtrace.events import Bit, Cause, EventKind, Probe

EVERYWHERE = 0, 1 << 64
ELSEWHERE = 0x300000000000


@pytest.fixture
def kernel() -> SimKernel:
    return SimKernel()


@pytest.fixture
def task(kernel: SimKernel) -> Task:
    return kernel.process()


def held(task: Task, pages: int, at: int | None = None) -> Region:
    """Map pages of the CDM node."""
    vma = task.mmap(pages, at)
    task.mbind(vma.start, pages)
    task.faults(vma)
    return vma


def state(kernel: SimKernel, task: Task) -> State:
    lives = check(kernel.trace(), rules=()).lives
    (one,) = (life for life in lives if life.mm.id == task.mm.id)
    return one.state


def account(state: State) -> dict[int, tuple[int, int]]:
    """Return address -> (node, size) as the simulated kernel has it."""
    return {
        page.addr: (page.node, page.size)
        for pages in (state.pages, state.ram)
        for page in pages.within(*EVERYWHERE)
    }


def found(kernel: SimKernel) -> list[str]:
    return [finding.rule.id for finding in check(kernel.trace()).findings]


# --- pages from before ---------------------------------------------------------


@pytest.mark.parametrize("everything", [False, True])
def test_pages_from_before(everything: bool) -> None:
    kernel = SimKernel(everything=everything)
    task = kernel.process()
    vma, other = held(task, 5), task.mmap(3)
    task.faults(other)
    task.dontneed(vma.page(2), 1)
    kernel.look_before(task)
    kernel.looked()
    task.dontneed(vma.page(3), 1)
    task.fault(vma.page(2))
    after = state(kernel, task)
    ways = [page.how for page in after.pages.within(*EVERYWHERE)]
    assert ways == ["before", "before", "fault", "before"]
    assert after.ram.count == (other.pages if everything else 0)
    if everything:
        assert account(after) == task.mm.pages


def test_what_comes_and_goes_while_one_looks(kernel: SimKernel, task: Task) -> None:
    """The rows of both come before those of the pages that were found."""
    vma = held(task, 5)

    def change() -> None:
        task.dontneed(vma.page(1), 1)
        task.dontneed(vma.page(3), 1)
        task.fault(vma.page(3))

    kernel.look_before(task, change)
    kernel.looked()
    after = state(kernel, task)
    assert account(after) == task.mm.pages
    ways = {page.addr: page.how for page in after.pages.within(*EVERYWHERE)}
    assert ways[vma.page(3)] == "fault"
    assert ways[vma.page(4)] == "before"


@pytest.mark.parametrize("node", [0, 1])
def test_what_comes_before_it_is_found_came_for_its_vma(node: int) -> None:
    kernel = SimKernel(everything=True)
    task = kernel.process()
    vma = task.mmap(2)
    task.mbind(vma.start, 2, BIND, 1 << node)
    task.fault(vma.page(1))
    row = kernel.events[-1]
    assert row.kind == EventKind.MAP
    kernel.look_before(task)
    (found,) = (e for e in kernel.events if e.kind == EventKind.SNAP_RANGES)
    kernel.events.insert(kernel.events.index(found), row)
    kernel.looked()
    after = state(kernel, task)
    (page,) = (after.pages if node else after.ram).within(*EVERYWHERE)
    assert page.event is row


@pytest.mark.parametrize("node", [0, 1])
def test_what_comes_is_found_and_goes(node: int) -> None:
    """It is told to be there when it has gone, and nothing is known of its time."""
    kernel = SimKernel(everything=True)
    task = kernel.process()
    vma = task.mmap(2)
    task.mbind(vma.start, 2, BIND, 1 << node)
    task.faults(vma)
    came = kernel.events[-1]
    kernel.look_before(task, lambda: task.dontneed(vma.page(1), 1))
    kernel.events.insert(0, came)
    kernel.looked()
    assert account(state(kernel, task)) == task.mm.pages


def test_of_a_child_that_is_forked_meanwhile_all_is_known(
    kernel: SimKernel, task: Task
) -> None:
    vma = held(task, 3)
    child = task.fork()
    since = kernel.tick()
    child.unmap(vma.page(1))
    kernel.snap(
        EventKind.SNAP_RANGES,
        child,
        child.vma(vma.start),
        ts_entry=since,
        node=1,
        payload=struct.pack("=QQ", vma.start, 3 * PAGE),
    )
    assert account(state(kernel, child)) == child.mm.pages


def test_a_later_look_tells_the_model_nothing(kernel: SimKernel) -> None:
    kernel.looked()
    task = kernel.process()
    held(task, 3)
    before = state(kernel, task)
    kernel.look(task)
    assert state(kernel, task) == before


def test_what_went_before_one_looked_says_nothing_of_a_later_page(
    kernel: SimKernel, task: Task
) -> None:
    """Its row was drained before, and a page that nobody saw is there again."""
    vma = held(task, 2)
    task.dontneed(vma.page(1), 1)
    row = next(e for e in kernel.events if e.kind == EventKind.UNMAP)
    task.fault(vma.page(1))
    kernel.look_before(task)
    kernel.events.insert(0, row)
    kernel.looked()
    assert account(state(kernel, task)) == task.mm.pages


@pytest.mark.parametrize("node", [0, 1])
def test_a_huge_page_from_before_looks_like_small_ones(node: int) -> None:
    """pagemap has entries of the base size only."""
    kernel = SimKernel(everything=True)
    task = kernel.process()
    vma = task.mmap(2 * HUGE // PAGE, at=0x200000000000)
    task.mbind(vma.start, vma.pages, PREFERRED, 1 << node)
    task.fault(vma.start, huge=True)
    task.fault(vma.start + HUGE, huge=True)
    kernel.look_before(task)
    kernel.looked()
    assert len(account(state(kernel, task))) == vma.pages
    task.unmap(vma.start)
    left = account(state(kernel, task))
    assert min(left) == vma.start + HUGE
    assert len(left) == HUGE // PAGE


@pytest.mark.parametrize("all_seen", [False, True])
def test_a_stale_tag_from_before_is_judged_when_all_was_looked_at(
    all_seen: bool,
) -> None:
    kernel = SimKernel("one-way")
    task = kernel.process()
    vma = task.mmap(3)
    task.mbind(vma.start, 3)
    task.mbind(vma.start, 3, DEFAULT)
    kernel.look_before(task)
    assert found(kernel) == []
    if all_seen:
        kernel.looked()
        assert found(kernel) == ["CDM001"]
    task.mbind(vma.start, 3, DEFAULT)
    assert found(kernel) == ["CDM001"] * all_seen


def test_a_tag_from_before_with_pages_is_not_stale() -> None:
    kernel = SimKernel("one-way")
    task = kernel.process()
    vma = held(task, 3)
    task.mbind(vma.start, 3, DEFAULT)
    kernel.look_before(task)
    kernel.looked()
    assert found(kernel) == []
    task.move_pages([vma.page(number) for number in range(3)], 0)
    assert found(kernel) == ["CDM001"]


def missing(kernel: SimKernel, origin: str) -> None:
    """Pages in a VMA whose policy names their node, and that is not tagged."""
    task = kernel.process()
    vma = task.mmap(2)
    if origin == "unknown":
        kernel.looked()
        task.mbind(vma.start, 2, PREFERRED)
        task.vma_row(
            EventKind.MAP,
            task.vma(vma.start),
            probe=Probe.RMAP_ADD,
            addr=vma.start,
            size=PAGE,
            node=1,
            cause=Cause.UNKNOWN,
        )
        return
    task.mbind(vma.start, 2, PREFERRED)
    task.faults(vma)
    if origin == "before":
        kernel.look_before(task)
    kernel.looked()


@pytest.mark.parametrize(
    ("origin", "rules"), [("fault", ["CDM002"]), ("before", []), ("unknown", [])]
)
def test_a_page_of_unknown_origin_calls_for_no_tag(
    origin: str, rules: list[str]
) -> None:
    kernel = SimKernel("bind-only")
    missing(kernel, origin)
    assert found(kernel) == rules


def test_what_moved_while_one_looked_stays_unknown(
    kernel: SimKernel, task: Task
) -> None:
    vma = held(task, 3)
    kernel.look_before(task, lambda: task.mremap(vma, 3, to=ELSEWHERE) and None)
    kernel.looked()
    assert not state(kernel, task).whole


# --- what moves ----------------------------------------------------------------


@pytest.mark.parametrize("everything", [False, True])
def test_a_move_takes_pages_and_areas_along(everything: bool) -> None:
    kernel = SimKernel(everything=everything)
    task = kernel.process()
    vma = held(task, 4)
    task.move_pages([vma.page(2)], 0)
    task.mremap(vma, 4, to=ELSEWHERE)
    after = state(kernel, task)
    assert account(after) == {
        addr: page
        for addr, page in task.mm.pages.items()
        if everything or CDM >> page[0] & 1
    }
    assert after.area(vma.start) is None
    area = after.area(ELSEWHERE)
    assert area
    assert (area.start, area.end) == (ELSEWHERE, ELSEWHERE + 4 * PAGE)
    assert area.tagged(kernel.trace().terms)


def meanwhile(task: Task, change: Callable[[Region], None]) -> Region:
    """Have something happen at the new address before the MOVE is told."""
    events = task.kernel.events
    task.mremap(held(task, 3), 3, to=ELSEWHERE)
    rows = events[-2:]
    assert [row.kind for row in rows] == [EventKind.MOVE, EventKind.CALL]
    del events[-2:]
    change(moved := Region(ELSEWHERE, 3))
    events += rows
    return moved


def test_a_page_that_went_during_a_move_is_not_brought_back(
    kernel: SimKernel, task: Task
) -> None:
    meanwhile(task, lambda moved: task.unmap(moved.page(1)))
    assert account(state(kernel, task)) == task.mm.pages
    assert len(task.mm.pages) == 2


def test_a_page_that_comes_during_a_move_is_newer(
    kernel: SimKernel, task: Task
) -> None:
    def change(moved: Region) -> None:
        task.unmap(moved.page(1))
        task.fault(moved.page(1))

    moved = meanwhile(task, change)
    after = state(kernel, task)
    assert account(after) == task.mm.pages
    page = after.pages.get(moved.page(1))
    assert page
    assert page.event.addr == moved.page(1)


def test_what_went_before_a_move_does_not_keep_a_page_from_coming(
    kernel: SimKernel, task: Task
) -> None:
    """An unknown page went at the new address, long ago."""
    old = task.mmap(3, at=ELSEWHERE)
    task.mbind(old.start, 3)
    task.vma_row(
        EventKind.UNMAP, task.vma(old.start), addr=old.page(1), size=PAGE, src_node=1
    )
    task.munmap(old.start, 3)
    meanwhile(task, lambda moved: None)
    assert account(state(kernel, task)) == task.mm.pages
    assert len(task.mm.pages) == 3


def test_a_page_that_comes_behind_a_move_stays(kernel: SimKernel, task: Task) -> None:
    """MREMAP_DONTUNMAP leaves the old VMA, and another task touches it at once."""
    vma = held(task, 3)
    old = dataclasses.replace(task.vma(vma.start))
    task.mremap(vma, 3, to=ELSEWHERE)
    call = kernel.events.pop()
    assert call.probe == Probe.SYS_MREMAP
    task.mm.vmas.append(old)
    task.tid += 1
    task.fault(vma.page(1))
    kernel.events.append(replace(call, arg=4))
    assert account(state(kernel, task)) == task.mm.pages
    assert len(task.mm.pages) == 4


def forked(task: Task, change: Callable[[Task], None]) -> Task:
    """Fork, and have something happen to the child before its COPY is told."""
    events = task.kernel.events
    child = task.fork()
    copies = [e for e in events if e.kind == EventKind.COPY and e.mm == child.mm.id]
    events[:] = [e for e in events if e not in copies]
    change(child)
    events += copies
    return child


@pytest.mark.parametrize("everything", [False, True])
def test_what_comes_and_goes_during_a_fork_is_newer(everything: bool) -> None:
    kernel = SimKernel(everything=everything)
    task = kernel.process()
    vma = held(task, 4)
    other = task.mmap(2)
    task.faults(other)

    def change(child: Task) -> None:
        for addr in (vma.page(1), vma.page(2), other.page(0)):
            child.unmap(addr)
        child.fault(vma.page(2))

    child = forked(task, change)
    after = state(kernel, child)
    assert account(after) == {
        addr: page
        for addr, page in child.mm.pages.items()
        if everything or CDM >> page[0] & 1
    }
    ways = [page.how for page in after.pages.within(*EVERYWHERE)]
    assert ways == ["fork", "fault", "fork"]


# --- what replaces what --------------------------------------------------------


@pytest.mark.parametrize("old", [RAM, CDM])
@pytest.mark.parametrize("new", [RAM, CDM])
@pytest.mark.parametrize("everything", [False, True])
def test_copy_on_write_from_node_to_node(old: int, new: int, everything: bool) -> None:
    """The new page's row comes first, and both may be of one kind."""
    kernel = SimKernel(everything=everything)
    task = kernel.process()
    vma = task.mmap(3)
    task.mbind(vma.start, 3, BIND, old)
    task.faults(vma)
    task.mbind(vma.start, 3, BIND, new)
    task.fault(vma.page(1), cow=True)
    assert account(state(kernel, task)) == {
        addr: page
        for addr, page in task.mm.pages.items()
        if everything or CDM >> page[0] & 1
    }


@pytest.mark.parametrize("node", [0, 1])
def test_a_page_that_goes_as_soon_as_it_has_come(node: int) -> None:
    """Its task truncates the file, in a call that has no row: nothing was replaced."""
    kernel = SimKernel(everything=True)
    kernel.looked()
    task = kernel.process()
    vma = task.mmap(2)
    task.mbind(vma.start, 2, BIND, 1 << node)
    task.faults(vma)
    task.unmap(vma.page(1))
    assert account(state(kernel, task)) == {vma.page(0): (node, PAGE)}


@pytest.mark.parametrize("node", [0, 1])
def test_a_page_that_was_allocated_and_never_mapped_is_not_there(node: int) -> None:
    """Another task was faster."""
    kernel = SimKernel(everything=True)
    task = kernel.process()
    vma = task.mmap(1)
    task.mbind(vma.start, 1, BIND, 1 << node)
    task.fault(vma.start)
    assert kernel.events.pop().kind == EventKind.MAP
    assert account(state(kernel, task)) == {}


@pytest.mark.parametrize("src_node", [0, 1])
def test_ksm_takes_the_page_where_its_task_has_just_mapped_another(
    src_node: int,
) -> None:
    """The row of a KSM page that is given up has no address."""
    kernel = SimKernel(everything=True)
    task = kernel.process()
    vma = task.mmap(3)
    task.mbind(vma.start, 3, BIND, 1 << src_node)
    task.faults(vma)
    inside = task.vma(vma.start)
    task.vma_row(EventKind.MAP, inside, addr=vma.page(1), size=PAGE, node=1)
    task.vma_row(
        EventKind.UNMAP, inside, bits=Bit.KSM, addr=0, size=PAGE, src_node=src_node
    )
    task.mm.pages[vma.page(1)] = 1, PAGE
    after = state(kernel, task)
    assert account(after) == task.mm.pages
    area = after.area(vma.start)
    assert area
    assert area.pages_known


@pytest.mark.parametrize("between", ["nothing", "other task", "other VMA", "a call"])
def test_a_ksm_page_without_an_address_leaves_its_vma_unknown(
    kernel: SimKernel, task: Task, between: str
) -> None:
    vma, other = held(task, 3), held(task, 2)
    inside = task.vma(vma.start)
    task.dontneed(vma.page(1), 1)
    if between != "nothing":
        task.fault(vma.page(1))
    if between == "other VMA":
        task.dontneed(other.page(1), 1)
        task.fault(other.page(1))
    if between == "a call":
        task.mbind(other.start, 2)
    if between == "other task":
        task.tid += 1
    task.vma_row(EventKind.UNMAP, inside, bits=Bit.KSM, addr=0, size=PAGE, src_node=1)
    area = state(kernel, task).area(vma.start)
    assert area
    assert not area.pages_known


@pytest.mark.parametrize("everything", [False, True])
@pytest.mark.parametrize("unmapped", [False, True])
def test_a_page_that_migrates_to_ram_is_no_cdm_page(
    everything: bool, unmapped: bool
) -> None:
    """Also where a fork that brought it here is told of after its UNMAP."""
    kernel = SimKernel(everything=everything)
    task = kernel.process()
    vma = held(task, 3)
    task.move_pages([vma.page(1)], 0)
    if not unmapped:
        row = next(e for e in kernel.events if e.kind == EventKind.UNMAP)
        kernel.events.remove(row)
    after = state(kernel, task)
    assert [page.addr for page in after.pages.within(*EVERYWHERE)] == [
        vma.page(0),
        vma.page(2),
    ]
    assert [page.addr for page in after.ram.within(*EVERYWHERE)] == (
        [vma.page(1)] if everything else []
    )


@pytest.mark.parametrize("node", [0, 1])
def test_munmap_leaves_nothing_behind(node: int) -> None:
    """Even where the rows of the pages are lost."""
    kernel = SimKernel(everything=True)
    task = kernel.process()
    vma = task.mmap(3)
    task.mbind(vma.start, 3, BIND, 1 << node)
    task.faults(vma)
    task.munmap(vma.start, 3)
    kernel.events[:] = [e for e in kernel.events if e.kind != EventKind.UNMAP]
    assert account(state(kernel, task)) == {}


@pytest.mark.parametrize("node", [0, 1])
def test_a_huge_page_takes_the_place_of_small_ones(node: int) -> None:
    """khugepaged has unmapped those it knows of; a huge page leaves no room."""
    kernel = SimKernel(everything=True)
    task = kernel.process()
    vma = task.mmap(HUGE // PAGE, at=0x200000000000)
    task.mbind(vma.start, vma.pages, PREFERRED, 1 << node)
    task.faults(vma, 0, 5)
    task.vma_row(
        EventKind.MAP,
        task.vma(vma.start),
        addr=vma.start,
        size=HUGE,
        node=node,
        cause=Cause.KHUGEPAGED,
    )
    assert account(state(kernel, task)) == {vma.start: (node, HUGE)}


def test_the_parts_of_a_huge_page_of_ram() -> None:
    kernel = SimKernel(everything=True)
    task = kernel.process()
    vma = task.mmap(HUGE // PAGE, at=0x200000000000)
    task.fault(vma.start, huge=True)
    inside = task.vma(vma.start)
    for number in reversed(range(vma.pages)):
        task.vma_row(EventKind.MAP, inside, addr=vma.page(number), size=PAGE, node=0)
        if number > vma.pages - 3:
            sizes = [size for _, size in account(state(kernel, task)).values()]
            assert sum(sizes) == HUGE
    task.vma_row(EventKind.UNMAP, inside, addr=vma.start, size=HUGE, src_node=0)
    task.vma_row(EventKind.UNMAP, inside, addr=vma.page(7), size=PAGE, src_node=0)
    left = account(state(kernel, task))
    assert len(left) == vma.pages - 1
    assert vma.page(7) not in left


def test_a_part_of_a_huge_page_of_ram_can_leave() -> None:
    kernel = SimKernel(everything=True)
    task = kernel.process()
    vma = task.mmap(HUGE // PAGE, at=0x200000000000)
    task.fault(vma.start, huge=True)
    inside = task.vma(vma.start)
    task.vma_row(EventKind.UNMAP, inside, addr=vma.page(5), size=PAGE, src_node=0)
    left = account(state(kernel, task))
    assert len(left) == vma.pages - 1
    assert vma.page(5) not in left
