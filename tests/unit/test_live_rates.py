"""Rates of events and losses, from batches as a file has them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from cdmtrace.events import EVENT_DTYPE, Probe
from cdmtrace.format.reader import Loss, TraceBatch
from cdmtrace.format.schema import Header, Mark
from cdmtrace.live.rates import HISTORY, SECOND, Rates

START = 1000 * SECOND
HEADER = Header(
    tool="test",
    kernel_release="",
    kernel_build="",
    machine="",
    boot_id="",
    started=START,
    utc_offset=0,
    page_size=4096,
    ring_size=0,
    cdm_nodes=(1,),
    cdm_nodes_from="",
    vm_cdm_mask=1 << 38,
    vm_cdm_mask_from="",
)


def batch(
    second: float, *probes: int, lost: dict[str, int] | None = None
) -> TraceBatch:
    """A batch whose last row is of so many seconds after the start."""
    rows = np.zeros(len(probes), EVENT_DTYPE)
    rows["probe"] = probes
    ts = int(START + second * SECOND) if probes else None
    losses = tuple(
        Loss(probe=name, reason="ring", count=n, since=0, until=0, batch=0)
        for name, n in (lost or {}).items()
    )
    return TraceBatch(
        mark=Mark(batch=0, rows=len(probes), first_ts=ts, last_ts=ts, last_seq=0),
        columns=pa.record_batch({"probe": rows["probe"].copy()}),
        losses=losses,
        offset=0,
    )


@pytest.fixture
def rates() -> Rates:
    return Rates(HEADER, 0)


def test_rows_are_counted_by_probe_and_busiest_first(rates: Rates) -> None:
    rates.add(batch(1.0, *[Probe.ALLOC] * 4, *[Probe.RMAP_ADD] * 7), 0)
    rates.add(batch(1.5, *[Probe.ALLOC] * 6, 0), 0)
    told = rates.rates(rates.now(0))
    assert [(r.probe, r.events, r.per_second, r.lost) for r in told] == [
        ("alloc", 10, 5.0, 0),
        ("rmap_add", 7, 3.5, 0),
        ("recorder", 1, 0.5, 0),
    ]
    assert (rates.events, rates.lost) == (18, 0)


def test_a_rate_is_of_late_and_goes_when_nothing_comes(rates: Rates) -> None:
    rates.add(batch(1.0, *[Probe.ALLOC] * 8), 50 * SECOND)
    now = rates.now(51 * SECOND)
    assert now == START + 2 * SECOND
    assert [r.per_second for r in rates.rates(now)] == [4.0]
    assert [(r.events, r.per_second) for r in rates.rates(now + SECOND)] == [(8, 0.0)]


def test_losses_are_told_of_probes_that_have_told_nothing(rates: Rates) -> None:
    rates.add(batch(1.0, Probe.ALLOC, lost={"zap": 23}), 0)
    rates.add(batch(1.0, lost={"zap": 4, "alloc": 1}), 0)
    assert {r.probe: (r.events, r.lost) for r in rates.rates(rates.now(0))} == {
        "alloc": (1, 1),
        "zap": (0, 27),
    }
    assert rates.lost == 28


def test_the_rows_of_each_whole_second(rates: Rates) -> None:
    for second, rows in ((0.2, 3), (0.9, 4), (2.5, 5), (3.1, 6)):
        rates.add(batch(second, *[Probe.ALLOC] * rows), 0)
    # The one that is not over yet would look like less.
    assert rates.history(rates.now(0)) == [7, 0, 5]


def test_what_is_kept_does_not_grow(rates: Rates) -> None:
    for second in range(1000):
        rates.add(batch(second, Probe.ALLOC), 0)
    assert len(rates.history(rates.now(0))) == HISTORY
    assert len(rates._late) <= 3
    assert len(rates._seconds) <= 2 * HISTORY + 1
    assert rates.events == 1000


def test_a_probe_without_a_name_goes_by_its_number() -> None:
    rates = Rates(replace(HEADER, enums={}), 0)
    rates.add(batch(1.0, 211), 0)
    (one,) = rates.rates(rates.now(0))
    assert one.probe == "211"


def test_a_time_that_jumps_keeps_nothing(rates: Rates) -> None:
    """A file may say so; what came after it is forgotten all the same."""
    rates.add(batch(1e9, Probe.ALLOC), 0)
    for number in range(5000):
        rates.add(batch(number, Probe.ALLOC), 0)
    assert len(rates._late) <= 1024
    rates.add(batch(1e9 + 10, Probe.ALLOC), 0)
    assert len(rates._late) == 1
