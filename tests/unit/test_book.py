"""Findings that a later loss may take back, and gaps that are one."""

from __future__ import annotations

import pytest
import simstory
from msgspec.structs import replace
from simkernel import SimKernel

from cdmtrace.analysis import Finding, Gap, check
from cdmtrace.analysis.book import CHECK, LIVE, Book, Bounds, Gaps, Ground
from cdmtrace.analysis.frames import ROWS


@pytest.fixture(scope="module")
def finding() -> Finding:
    kernel = SimKernel("one-way")
    simstory.tell(kernel)
    return check(kernel.trace()).findings[0]


def ground(**change: object) -> Ground:
    return Ground(
        **{
            "first": 100,
            "last": 200,
            "start": 4096,
            "end": 8192,
            "kin": frozenset({1, 2}),
            "moved": False,
            **change,
        }
    )


def gap(since: int, until: int, **more: int) -> Gap:
    return Gap(probe="alloc", reason="ring", count=1, since=since, until=until, **more)


@pytest.mark.parametrize(
    ("loss", "touched"),
    [
        (gap(0, 99), False),
        (gap(0, 100), True),
        (gap(200, 300), True),
        (gap(201, 300), False),
        (gap(150, 150, mm=1), True),
        (gap(150, 150, mm=3), False),
        (gap(150, 150, mm=2, start=8191, end=9000), True),
        (gap(150, 150, mm=2, start=8192, end=9000), False),
        (gap(150, 150, mm=2, start=0, end=4096), False),
    ],
)
def test_what_is_touched(loss: Gap, touched: bool) -> None:
    assert ground().touched(loss) is touched


def test_rows_at_hand_say_it_all_unless_rows_of_every_kind_are_missing() -> None:
    missing = Gap(probe=ROWS, reason="before part 2", count=1, since=150, until=160)
    assert not ground(rows=True).touched(gap(150, 160))
    assert ground(rows=True).touched(missing)
    assert ground().touched(missing)


def test_pages_that_have_moved_may_be_anywhere() -> None:
    far = gap(150, 150, mm=1, start=1 << 40, end=1 << 41)
    assert not ground().touched(far)
    assert ground(moved=True).touched(far)


def test_a_loss_takes_back_what_it_touches(finding: Finding) -> None:
    book = Book(once=False, bounds=LIVE)
    book.add(finding, ground())
    book.add(finding, ground(first=300, last=400))
    book.add(finding, None)
    assert book.count == 3
    book.lose(gap(150, 160))
    assert (book.count, book.withheld) == (2, 1)
    book.lose(gap(0, 1000))
    assert (book.count, book.withheld) == (1, 2)


def test_what_is_no_more_pending_stays(finding: Finding) -> None:
    book = Book(once=False, bounds=Bounds(pending=2, findings=3))
    for _ in range(7):
        book.add(finding, ground())
    book.lose(gap(0, 1000))
    assert (book.count, len(book.findings), book.withheld) == (5, 3, 2)


def test_what_is_taken_back_parts_what_it_had_joined(finding: Finding) -> None:
    """[0, 2) and [4, 6) are one finding only by [1, 5), which does not stand."""

    book = Book(once=True, bounds=LIVE)
    for start, end, first in ((0, 2, 100), (1, 5, 300), (4, 6, 500)):
        one = replace(finding, start=start, end=end)
        book.add(one, ground(first=first, last=first))
    assert [(f.start, f.end, f.count) for f in book.findings] == [(0, 6, 3)]
    book.lose(gap(300, 300))
    assert [(f.start, f.end) for f in book.findings] == [(0, 2), (4, 6)]


def test_check_settles_at_once(finding: Finding) -> None:
    book = Book(once=True, bounds=CHECK)
    for _ in range(3):
        book.add(finding, ground())
    (one,) = book.findings
    assert one.count == 3


def test_losses_without_end_are_one_gap() -> None:
    gaps = Gaps()
    for at in range(1000):
        gaps.add(gap(10 * at, 10 * at + 12))
    assert gaps.all == [
        Gap(probe="alloc", reason="ring", count=1000, since=0, until=10002)
    ]
    gaps.add(gap(20000, 20001))
    gaps.add(gap(20001, 20002, mm=1))
    assert len(gaps.all) == 3
