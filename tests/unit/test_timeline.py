"""The life of a VMA: which rows it has, and what it was after each."""

from __future__ import annotations

import pytest
from lives import FAR, at, ends, told, watched
from msgspec.structs import replace
from simkernel import BIND, CDM, DEFAULT, PAGE, RAM, Mm, SimKernel

from cdmtrace.analysis.frames import Event
from cdmtrace.analysis.history import document
from cdmtrace.analysis.nearby import choose
from cdmtrace.analysis.timeline import spans
from cdmtrace.errors import UsageTrouble
from cdmtrace.events import Bit, EventKind, Probe


def test_its_rows_and_what_it_was_after_each() -> None:
    kernel, task = watched()
    vma = task.mmap(5)
    task.mbind(vma.start, 5)
    task.faults(vma, pages=3)
    task.mbind(vma.start, 5, BIND, RAM, move=True)
    task.faults(task.mmap(7))
    found = at(kernel, task, vma.page(2))
    (life,) = found.lives
    assert told(found)[:5] == ["SYS_MMAP", "VMA_SEEN", "POLICY", "SYS_MBIND", "ALLOC"]
    assert told(found)[-3:] == ["UNMAP", "MIGRATE", "SYS_MBIND"]
    pages = [moment.pages[1] for moment in life.moments]
    assert [n for i, n in enumerate(pages) if i == 0 or n != pages[i - 1]] == [
        *(0, 1, 2, 3),
        *(2, 1, 0),
    ]
    policies = [m.area.policy for m in life.moments if m.area and m.area.policy]
    assert list(dict.fromkeys((one.byte, one.nodes) for one in policies)) == [
        (DEFAULT, 0),
        (BIND, CDM),
        (BIND, RAM),
    ]
    assert all(moment.known for moment in life.moments)


def test_a_part_that_was_split_off_has_the_rows_of_the_whole() -> None:
    kernel, task = watched()
    vma = task.mmap(10)
    task.faults(vma)
    task.mbind(vma.page(4), 6)
    task.faults(vma)
    task.dontneed(vma.start, 2)
    task.dontneed(vma.page(9), 1)
    low, high = (at(kernel, task, vma.page(n)) for n in (0, 9))
    assert "VMA_SPLIT" in told(low)
    assert low.lives[0].moments[0].event is high.lives[0].moments[0].event
    now = [one.lives[0].moments[-1].area for one in (low, high)]
    assert [(a.start, a.end) for a in now if a] == [
        (vma.start, vma.page(4)),
        (vma.page(4), vma.end),
    ]
    # Of what happened after the split, each has its own only.
    seqs = [
        {moment.event.seq for moment in one.lives[0].moments} for one in (low, high)
    ]
    for event in kernel.events:
        if event.kind == EventKind.UNMAP:
            assert (event.seq in seqs[0]) is (event.addr < vma.page(4))
            assert (event.seq in seqs[1]) is (event.addr >= vma.page(4))


def test_it_goes_where_mremap_takes_it() -> None:
    kernel, task = watched()
    vma = task.mmap(5)
    task.mbind(vma.start, 5)
    task.faults(vma)
    task.mremap(vma, 5, to=FAR)
    task.dontneed(FAR, 1)
    again = task.mmap(3, at=vma.start)
    task.munmap(again.start, 3)
    old, new = at(kernel, task, vma.page(1)), at(kernel, task, FAR + PAGE)
    assert ends(old) == [
        ("mapped", "is there when the recording ends"),
        ("mapped", "freed"),
    ]
    assert ends(new) == ends(old)[:1]
    assert [m.event for m in new.lives[0].moments] == [
        m.event for m in old.lives[0].moments
    ]
    assert told(new)[-4:] == ["MOVE", "SYS_MREMAP", "UNMAP", "SYS_MADVISE"]
    assert [m.pages[1] for m in new.lives[0].moments[-4:]] == [5, 5, 4, 4]
    assert new.lives[0].places == {vma.page(1), FAR + PAGE}
    # Not what came to the old address later, nor what is only near the new one.
    assert at(kernel, task, FAR + 6 * PAGE).lives == ()


def test_where_no_probe_saw_the_pages_move_the_call_says_so() -> None:
    kernel, task = watched()
    vma = task.mmap(5)
    task.mbind(vma.start, 5)
    task.faults(vma)
    task.mremap(vma, 5, to=FAR)
    kernel.probes["move_page_tables"] = None
    kernel.events = [e for e in kernel.events if e.kind != EventKind.MOVE]
    for addr in (vma.page(1), FAR + PAGE):
        found = at(kernel, task, addr)
        assert ends(found) == [("mapped", "is there when the recording ends")]
        assert told(found)[-1] == "SYS_MREMAP"
        last = found.lives[0].moments[-1]
        assert last.area
        assert (last.area.start, last.pages) == (FAR, {1: 5})


def test_what_is_made_in_order_to_be_moved_into_is_no_other() -> None:
    kernel, task = watched()
    vma = task.mmap(5)
    task.mbind(vma.start, 5)
    task.mremap(vma, 5, to=FAR)
    where = next(n for n, e in enumerate(kernel.events) if e.kind == EventKind.MOVE)
    move = kernel.events[where]
    made = replace(move, kind=EventKind.VMA_MERGE, addr=FAR, other=0)
    kernel.events.insert(where, made)
    kernel.events = [replace(e, seq=n) for n, e in enumerate(kernel.events, 1)]
    found = at(kernel, task, FAR)
    assert len(found.lives) == 1
    assert told(found)[-3:] == ["VMA_MERGE", "MOVE", "SYS_MREMAP"]


def test_which_addresses_a_row_is_about() -> None:
    row = Event(seq=1, ts=1, ts_entry=1, kind=EventKind.MAP, start=8, end=99)
    assert spans(row) == [(8, 99)]
    assert spans(replace(row, addr=16, size=4)) == [(16, 20)]
    flags = replace(row, kind=EventKind.FLAGS, addr=16, size=4)
    assert spans(flags) == [(8, 99), (16, 20)]
    for bit in (Bit.UNLINKED, Bit.VMA_UNREAD):
        assert spans(replace(flags, bits=bit)) == [(16, 20)]
    call = replace(flags, kind=EventKind.CALL, probe=Probe.SYS_MBIND)
    assert spans(call) == [(8, 99)]
    assert spans(replace(call, probe=Probe.SYS_MOVE_PAGES)) == []
    mmap = replace(call, probe=Probe.SYS_MMAP, other=200)
    assert spans(mmap) == [(200, 204)]
    assert spans(replace(mmap, ret=-12)) == []


def test_a_call_for_another_address_space_is_not_about_it() -> None:
    kernel, task = watched()
    vma = task.mmap(5)
    task.mbind(vma.start, 5)
    (life,) = at(kernel, task, vma.start).lives
    areas = [moment.area for moment in life.moments if moment.area]
    call = replace(kernel.events[-1], call=999)
    assert call.kind == EventKind.CALL
    assert life.concerns(call, areas, whole=False)
    assert not life.concerns(replace(call, mm=call.mm + 1), areas, whole=False)


def test_what_mremap_leaves_behind_is_another() -> None:
    kernel, task = watched()
    vma = task.mmap(5)
    task.mbind(vma.start, 5)
    task.mremap(vma, 5, to=FAR)
    kernel.events[-1] = replace(kernel.events[-1], arg=4)
    found = at(kernel, task, vma.start)
    assert ends(found)[1:] == [
        ("left behind by mremap", "is there when the recording ends")
    ]


def test_an_address_that_is_used_again_has_generations() -> None:
    kernel, task = watched()
    vma = task.mmap(5)
    task.mbind(vma.start, 5)
    task.faults(vma)
    task.munmap(vma.start, 5)
    task.mmap(3, at=vma.start)
    task.mmap(5, at=vma.start)
    task.exit()
    found = at(kernel, task, vma.page(1))
    assert ends(found) == [
        ("mapped", "freed"),
        ("mapped", "mapped over"),
        ("mapped", "its address space has ended"),
    ]
    assert [life.moments[-1].area for life in found.lives] == [None, None, None]
    # The fourth page was not in the second of them.
    assert len(at(kernel, task, vma.page(4)).lives) == 2


def test_one_generation_is_chosen_by_number_or_time() -> None:
    kernel, task = watched()
    vma = task.mmap(5)
    task.mbind(vma.start, 5)
    task.munmap(vma.start, 5)
    task.faults(task.mmap(9))
    task.mmap(5, at=vma.start)
    shown = document(at(kernel, task, vma.start), vma.start)["generations"]

    def numbers(number: int | None, moment: float | None) -> list[int]:
        chosen = choose(shown, number, moment, "x")
        return [one["generation"] for one in chosen]

    first, second = shown
    assert numbers(None, None) == [1, 2]
    assert numbers(2, None) == [2]
    assert numbers(None, float(first["since"])) == [1]
    assert numbers(None, float(first["until"])) == [1]
    # The second one is there still, whatever comes.
    assert numbers(None, float(second["until"]) + 100) == [2]
    between = (float(first["until"]) + float(second["since"])) / 2
    assert float(first["until"]) < between < float(second["since"])
    for number, moment in ((3, None), (None, between), (2, float(first["since"]))):
        with pytest.raises(UsageTrouble):
            choose(shown, number, moment, "x")


def test_a_process_that_executes_another_program_has_another_mm() -> None:
    kernel, task = watched()
    vma = task.mmap(5)
    task.mbind(vma.start, 5)
    task.exit()
    task.mm = Mm(kernel.ids + 1000)
    task.mbind(task.mmap(5, at=vma.start).start, 5)
    found = at(kernel, task, vma.start)
    assert [life.ended for life in found.lives] == [
        "its address space has ended",
        "is there when the recording ends",
    ]
    assert len({life.space[0] for life in found.lives}) == 2


def test_an_id_that_another_process_has_later_is_not_its_own() -> None:
    kernel, task = watched()
    vma = task.mmap(5)
    task.mbind(vma.start, 5)
    task.exit()
    other = kernel.process()
    other.mm.id = task.mm.id
    other.mbind(other.mmap(5, at=vma.start).start, 5)
    assert [life.space[1] for life in at(kernel, task, vma.start).lives] == [0]
    assert [life.space[1] for life in at(kernel, other, vma.start).lives] == [1]


def test_a_part_that_is_freed_ends_and_the_rest_goes_on() -> None:
    kernel, task = watched()
    vma = task.mmap(5)
    task.mbind(vma.start, 5)
    task.faults(vma)
    task.munmap(vma.page(3), 2)
    assert ends(at(kernel, task, vma.page(3))) == [("mapped", "freed")]
    rest = at(kernel, task, vma.start)
    assert ends(rest) == [("mapped", "is there when the recording ends")]
    assert told(rest)[-1] == "SYS_MUNMAP"
    last = rest.lives[0].moments[-1].area
    assert last
    assert last.end == vma.page(3)


def test_a_child_has_a_life_of_its_own() -> None:
    kernel, task = watched()
    vma = task.mmap(5)
    task.mbind(vma.start, 5)
    task.faults(vma)
    child = task.fork()
    child.fault(vma.page(3), cow=True)
    child.exit()
    (mine,) = at(kernel, task, vma.start).lives
    assert not {"COPY", "MM_EXIT"} & set(told(at(kernel, task, vma.start)))
    (theirs,) = at(kernel, child, vma.start).lives
    assert (theirs.began, theirs.ended) == (
        "copied by fork",
        "its address space has ended",
    )
    assert mine.space != theirs.space
    assert theirs.kin == {*mine.kin, theirs.space[0]}


def test_what_was_there_before_is_marked_as_such() -> None:
    kernel, task = watched()
    vma = task.mmap(5)
    task.mbind(vma.start, 5)
    task.faults(vma, pages=2)
    kernel.look_before(task)
    kernel.looked()
    task.faults(vma)
    found = at(kernel, task, vma.start)
    (life,) = found.lives
    assert life.began == "was there when recording began"
    assert told(found)[:3] == ["SNAP_VMA", "SNAP_RANGES", "ALLOC"]
    assert [moment.pages[1] for moment in life.moments][-1] == 5


def test_a_later_look_adds_nothing() -> None:
    kernel, task = watched()
    vma = task.mmap(5)
    task.mbind(vma.start, 5)
    kernel.look_before(task)
    kernel.looked()
    task.faults(vma)
    before = told(at(kernel, task, vma.start))
    kernel.look(task)
    assert kernel.events[-1].kind == EventKind.SNAP_MM
    assert told(at(kernel, task, vma.start)) == before


def test_what_it_was_at_a_row() -> None:
    kernel, task = watched()
    vma = task.mmap(5)
    task.mbind(vma.start, 2)
    task.exit()
    (life,) = at(kernel, task, vma.start).lives
    first, last = life.moments[0].event.seq, life.moments[-1].event.seq
    areas = [life.as_of(seq) for seq in (first - 1, first, last - 1, last, last + 1)]
    whole, part = (vma.start, vma.end), (vma.start, vma.page(2))
    assert [area and (area.start, area.end) for area in areas] == [
        *(None, whole),
        *(part, part),
        None,
    ]


def test_pages_that_nobody_told_of_are_not_known() -> None:
    kernel, task = watched()
    vma = task.mmap(5)
    task.mbind(vma.start, 5)
    task.faults(vma)
    kernel.events.clear()
    task.dontneed(vma.start, 1)
    (life,) = at(kernel, task, vma.start).lives
    assert life.began == "seen first: it may have been there before"
    assert not life.moments[0].known


def test_pages_of_other_nodes_are_told_where_the_recording_has_them() -> None:
    kernel = SimKernel(everything=True)
    task = kernel.process()
    vma = task.mmap(5)
    task.mbind(vma.start, 5)
    task.faults(vma, pages=2)
    task.mbind(vma.start, 5, BIND, RAM)
    task.faults(vma)
    (life,) = at(kernel, task, vma.start).lives
    assert dict(life.moments[-1].pages) == {0: 3, 1: 2}
