"""The maps of pages and of areas against plain ones, page by page."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from cdmtrace.analysis.frames import Event
from cdmtrace.analysis.pages import LEAF_SHIFT, Census, Page, PageMap
from cdmtrace.analysis.state import Area, State, put
from cdmtrace.events import EventKind

PAGE, BIG = 4096, 4 * 4096
LEAF = 1 << LEAF_SHIFT
BASE = 0x100040000000
ROW = Event(seq=1, ts=1, ts_entry=1, kind=EventKind.MAP)

# Both sides of the ends of three leaves, and some inside.
PLACES = [
    BASE + leaf * LEAF + at * PAGE for leaf in range(3) for at in (*range(8), 510, 511)
]
PLACE = st.sampled_from(PLACES)
EDGE = st.sampled_from([*PLACES, BASE - LEAF, BASE + 3 * LEAF, BASE + 4 * LEAF])
RANGE = st.lists(EDGE, min_size=2, max_size=2, unique=True).map(sorted)
relaxed = settings(max_examples=80, deadline=None)


def page(addr: int, size: int, node: int, explicit: bool, how: str) -> Page:
    return Page(addr=addr, size=size, node=node, how=how, explicit=explicit, event=ROW)


SMALL = st.builds(
    page,
    PLACE,
    st.just(PAGE),
    st.integers(0, 2),
    st.booleans(),
    st.sampled_from(["fault", "fork", "before", "unknown"]),
)
BIGS = st.builds(
    page,
    st.sampled_from([addr for addr in PLACES if addr % BIG == 0]),
    st.just(BIG),
    st.integers(0, 2),
    st.booleans(),
    st.sampled_from(["thp", "fork"]),
)
OP = st.one_of(
    st.tuples(st.just("map"), st.one_of(SMALL, BIGS)),
    st.tuples(st.just("unmap"), PLACE),
    st.tuples(st.just("drop_within"), RANGE),
    st.tuples(st.just("cut"), EDGE),
    st.tuples(st.just("put_all"), st.lists(SMALL, max_size=5)),
)


class Plain:
    """A map of pages that is a dict."""

    def __init__(self) -> None:
        self.pages: dict[int, Page] = {}

    def covering(self, addr: int) -> Page | None:
        for one in self.pages.values():
            if one.addr <= addr < one.addr + one.size:
                return one
        return None

    def split(self, one: Page, part: bool = False) -> None:
        del self.pages[one.addr]
        for addr in range(one.addr, one.addr + one.size, PAGE):
            small = page(addr, PAGE, one.node, one.explicit, one.how)
            self.pages[addr] = small

    def inside(self, start: int, end: int) -> list[Page]:
        return [
            one
            for addr, one in sorted(self.pages.items())
            if addr < end and start < addr + one.size
        ]


def both(ops: list) -> tuple[PageMap, Plain]:
    """Do the same to either."""
    held, plain = PageMap(), Plain()
    for name, what in ops:
        before, was = held, list(held.within(0, 1 << 64))
        if name == "map":
            for addr in range(what.addr, what.addr + what.size, PAGE):
                there = plain.covering(addr)
                if there and there.size > what.size:
                    held = held.fragment(there, PAGE)
                    plain.split(there)
            held = held.drop_within(what.addr, what.addr + what.size).put(what)
            for addr in range(what.addr, what.addr + what.size, PAGE):
                plain.pages.pop(addr, None)
            plain.pages[what.addr] = what
        elif name == "unmap":
            if there := plain.covering(what):
                held = held.drop(there)
                del plain.pages[there.addr]
        elif name == "drop_within":
            held = held.drop_within(*what)
            plain.pages = {
                addr: one
                for addr, one in plain.pages.items()
                if not what[0] <= addr < what[1]
            }
        elif name == "cut":
            held = held.cut(what, PAGE)
            there = plain.covering(what)
            if there and there.addr < what:
                plain.split(there)
        else:
            new = [one for one in what if not _in_big(plain, one)]
            held = held.put_all(new)
            plain.pages |= {one.addr: one for one in new}
        # What was is as it was.
        assert list(before.within(0, 1 << 64)) == was
    return held, plain


def _in_big(plain: Plain, one: Page) -> bool:
    there = plain.covering(one.addr)
    return there is not None and there.size > PAGE


@relaxed
@given(st.lists(OP, max_size=20), st.lists(SMALL, max_size=12), st.data())
def test_many_at_once_are_as_one_by_one(ops, new, data) -> None:
    held, _ = both(ops)
    there = list(held.all())
    gone = data.draw(st.lists(st.sampled_from(there), unique=True)) if there else []
    for one in gone:
        held = held.drop(one)
    assert both(ops)[0].drop_all(gone) == held
    new = [one for one in new if (held.get(one.addr) or one).size == PAGE]
    one_by_one = held
    for one in new:
        one_by_one = one_by_one.put(one)
    assert held.put_each(new) == one_by_one


@relaxed
@given(
    st.lists(OP, max_size=20),
    st.lists(st.integers(1, 3), min_size=1),
    RANGE,
    st.booleans(),
)
def test_the_newest_page_is_the_first_of_the_last_row(ops, seqs, place, came) -> None:
    pages = [
        replace(one, event=replace(ROW, seq=seqs[number % len(seqs)]))
        for number, one in enumerate(both(ops)[0].all())
    ]
    held = PageMap().put_all(pages)
    counted = [
        one
        for one in pages
        if place[0] <= one.addr < place[1] and (one.came if came else one.explicit)
    ]
    last = max(counted, key=lambda one: (one.event.seq, -one.addr), default=None)
    assert held.newest(*place, came=came) == last


@relaxed
@given(st.lists(OP, max_size=20), st.sets(PLACE, min_size=1, max_size=6))
def test_what_is_at_several_places(ops, places) -> None:
    held, plain = both(ops)
    assert held.free(places, PAGE) == (not any(map(plain.covering, places)))
    there = {
        addr: one
        for addr in places
        if (one := plain.pages.get(addr)) and one.size == PAGE
    }
    assert held.small(places, PAGE) == (there if there.keys() == places else None)


@relaxed
@given(st.lists(OP, max_size=20))
def test_a_map_holds_what_was_put_into_it(ops) -> None:
    held, plain = both(ops)
    assert held.count == len(plain.pages)
    everything = [one for _, one in sorted(plain.pages.items())]
    assert list(held.within(0, 1 << 64)) == list(held.all()) == everything
    for addr in PLACES:
        assert held.get(addr) == plain.pages.get(addr)
        for inside in (addr, addr + 1, addr + PAGE - 1):
            assert held.covering(inside) == plain.covering(inside)


@relaxed
@given(st.lists(OP, max_size=20), st.lists(RANGE, min_size=1, max_size=8))
def test_a_map_answers_for_a_range(ops, ranges) -> None:
    held, plain = both(ops)
    for start, end in [*ranges, (0, 1 << 64), (BASE, BASE + LEAF), (0, BASE)]:
        inside = plain.inside(start, end)
        begins = [one for one in inside if one.addr >= start]
        assert list(held.within(start, end)) == begins
        assert held.any(start, end) is bool(inside)
        asked = any(one.explicit for one in inside)
        assert held.any_explicit(start, end) is asked
        came = any(one.how in ("fault", "thp") for one in inside)
        assert held.any_came(start, end) is came
        on_nodes: dict[int, int] = {}
        for one in inside:
            size = min(end, one.addr + one.size) - max(start, one.addr)
            on_nodes[one.node] = on_nodes.get(one.node, 0) + size
        assert held.on_nodes(start, end) == on_nodes


@pytest.mark.parametrize("came", [True, False])
@pytest.mark.parametrize("explicit", [True, False])
def test_a_leaf_counts_what_is_in_it(came: bool, explicit: bool) -> None:
    """Where a range has all of it, nobody looks at its pages."""
    one = page(BASE, PAGE, 1, explicit, "fault" if came else "fork")
    rest = page(BASE + PAGE, PAGE, 1, False, "fork")
    leaf = BASE - BASE % LEAF, BASE - BASE % LEAF + LEAF
    held = PageMap().put(rest).put(one)
    assert (held.any_came(*leaf), held.any_explicit(*leaf)) == (came, explicit)
    # As often as it is put; and another one in its place, or none.
    for less in (held.put(one).drop(one), held.put(replace(rest, addr=BASE))):
        assert (less.any_came(*leaf), less.any_explicit(*leaf)) == (False, False)


def test_parts_leave_alone_what_is_there_and_say_that_they_are_parts() -> None:
    """A row of a part has come before the row of the whole."""
    big, small = page(BASE, BIG, 1, True, "thp"), page(BASE + PAGE, PAGE, 0, False, "x")
    held = PageMap().put(big).put(small).fragment(big, PAGE, part=True)
    assert [one.part for one in held.within(0, 1 << 64)] == [True, False, True, True]
    assert held.get(small.addr) == small
    assert held.count == 4


# --- areas ----------------------------------------------------------------------


def area(first: int, last: int, flags: int) -> Area:
    return Area(
        start=BASE + first * PAGE,
        end=BASE + last * PAGE,
        flags=flags,
        policy=None,
        seen=None,
        seen_ts=0,
        since=0,
    )


SPAN = st.tuples(st.integers(0, 12), st.integers(0, 12)).map(sorted)


@relaxed
@given(st.lists(st.tuples(SPAN, st.booleans()), max_size=12))
def test_areas_are_what_was_put_last(spans) -> None:
    areas: tuple[Area, ...] = ()
    plain: dict[int, int] = {}
    for flags, ((first, last), there) in enumerate(spans):
        new = [area(first, last, flags)] if there and first < last else []
        areas = put(areas, BASE + first * PAGE, BASE + last * PAGE, new)
        for number in range(first, last):
            plain.pop(number, None)
            if there:
                plain[number] = flags
    state = State(areas=areas)
    assert list(areas) == sorted(areas, key=lambda one: one.start)
    assert all(one.start < one.end for one in areas)
    for number in range(-1, 14):
        for addr in (BASE + number * PAGE, BASE + (number + 1) * PAGE - 1):
            found = state.area(addr)
            assert (found.flags if found else None) == plain.get(number)
    for first in range(14):
        for last in range(14):
            found = state.overlapping(BASE + first * PAGE, BASE + last * PAGE)
            expected = {plain[n] for n in range(first, last) if n in plain}
            assert {one.flags for one in found} == expected
            assert all(
                one.start < BASE + last * PAGE and BASE + first * PAGE < one.end
                for one in found
            )


@pytest.mark.parametrize("empty", [(3, 3), (5, 3)])
def test_nothing_is_put_into_nothing(empty: tuple[int, int]) -> None:
    areas = (area(0, 8, 1),)
    start, end = BASE + empty[0] * PAGE, BASE + empty[1] * PAGE
    assert put(areas, start, end, [area(3, 4, 2)]) == areas
    assert State(areas=areas).overlapping(start, end) == ()


@relaxed
@given(st.lists(st.tuples(st.one_of(SMALL, BIGS), RANGE), min_size=1, max_size=30))
def test_counting_what_has_changed_counts_all(steps) -> None:
    census, pages = Census(), PageMap()
    for one, (start, end) in steps:
        there = pages.get(one.addr)
        if there:
            pages = pages.drop(there)
        elif not pages.covering(one.addr):
            pages = pages.drop_within(one.addr, one.addr + one.size).put(one)
        for span in ((start, end), (BASE, BASE + 2 * LEAF)):
            assert census.on_nodes(pages, *span) == pages.on_nodes(*span)
