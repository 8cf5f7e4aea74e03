"""A recording that is replayed in shares comes to what the whole of it comes to."""

from __future__ import annotations

import dataclasses
import pickle
from collections import Counter
from pathlib import Path

import large
import pytest
from hypothesis import event, given
from hypothesis import strategies as st
from msgspec.structs import replace
from programs import (
    CHANGES,
    HISTORY,
    LOSS,
    QUIRKS,
    World,
    changed,
    gaps_of,
    interleaved,
    relaxed,
    run,
    world_of,
)
from replays import GOLDEN, PROFILES, as_read, summed, with_losses
from simkernel import CDM, RAM, SimKernel

from cdmtrace.analysis import Trace, aggregate, check, load
from cdmtrace.analysis.book import CHECK
from cdmtrace.analysis.partition import Share, shares
from cdmtrace.analysis.permissions import DEFAULT
from cdmtrace.analysis.profiles import PROFILES as BY_NAME
from cdmtrace.analysis.replay import of_share
from cdmtrace.analysis.rows import Rows
from cdmtrace.analysis.verdicts import result_of
from cdmtrace.events import EventKind, Probe
from cdmtrace.format.writer import TraceWriter


def shared(trace: Trace, most: int) -> list[Share]:
    assert isinstance(trace.events, Rows)
    return shares((columns for columns, _ in trace.events.batches()), most)


def agree(trace: Trace, most: int, *, profile: str = "intended") -> int:
    """Hold what shares come to, put together, against what the whole comes to.

    Return how many shares there were.
    """
    found = shared(trace, most)
    parts = [
        # A process sends another one what it has counted.
        pickle.loads(
            pickle.dumps(
                of_share(
                    trace,
                    pickle.loads(pickle.dumps(share)),
                    profile=profile,
                    rules=None,
                    permissions=DEFAULT,
                    bounds=CHECK,
                )
            )
        )
        for share in found
    ]
    result = result_of(trace, BY_NAME[profile], DEFAULT, parts)
    assert summed(result) == summed(check(trace, profile=profile))
    counts = [aggregate.of_share(trace, share) for share in found]
    assert aggregate.put_together(trace, counts) == aggregate.report(trace)
    return len(found)


@pytest.fixture(scope="module", params=GOLDEN, ids=lambda path: path.stem)
def trace(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Trace:
    """A real recording, three times: in each, all processes are of one family."""
    path = tmp_path_factory.mktemp("real") / "thrice.arrows"
    once = load(request.param).count
    large.make(request.param, path, once * 5 // 2)
    return load(path)


@pytest.mark.parametrize("profile", PROFILES)
def test_of_real_recordings(trace: Trace, profile: str) -> None:
    assert agree(trace, 3, profile=profile) == 3


def test_without_a_tag(trace: Trace) -> None:
    assert agree(replace(trace, terms=replace(trace.terms, tag=0)), 2) == 2


def test_with_losses_in_it(trace: Trace) -> None:
    for losing in with_losses(trace, 509):
        agree(losing, 2)


@relaxed
@given(
    st.lists(HISTORY, min_size=2, max_size=4),
    QUIRKS,
    st.booleans(),
    st.booleans(),
    CHANGES,
    st.lists(st.integers(0, 7), max_size=9),
    st.sampled_from(PROFILES),
    st.integers(1, 5),
)
def test_of_any_programs(
    histories, quirks, everything, looked, changes, turns, profile, most
) -> None:
    """Some at the same time, whose rows may be ascribed to each other's tasks."""
    world = world_of(quirks, everything=everything, looked=looked)
    kernel = world.kernel
    run(world, histories[0])
    for ops in histories[1:]:
        run(World(kernel=kernel), ops)
    rows = changed(kernel.events, changes)
    if turns:
        rows = interleaved(rows, turns)
    event(f"{agree(as_read(kernel.trace(), rows), most, profile=profile)} shares")


@relaxed
@given(
    st.lists(HISTORY, min_size=2, max_size=3),
    QUIRKS,
    st.lists(LOSS, min_size=1, max_size=5),
)
def test_of_any_programs_with_losses(histories, quirks, losses) -> None:
    world = world_of(quirks, everything=False, looked=True)
    run(world, histories[0])
    for ops in histories[1:]:
        run(World(kernel=world.kernel), ops)
    trace = as_read(world.kernel.trace(), world.kernel.events)
    agree(replace(trace, gaps=tuple(gaps_of(trace, losses))), 2)


# --- what goes where ---------------------------------------------------------------


def test_a_fork_stays_with_its_parent() -> None:
    kernel = SimKernel()
    worlds = [World(kernel=kernel) for _ in range(3)]
    for world in worlds:
        task, regions = world.tasks[0]
        task.mbind(regions[0].start, 4)
        task.faults(regions[0])
        task.fork().fork()
    trace = as_read(kernel.trace(), kernel.events)
    copies = [(one.mm, one.other) for one in trace.events if one.kind == EventKind.COPY]
    assert copies
    found = shared(trace, 9)
    assert len(found) == 3
    for child, parent in copies:
        (mine,) = [share for share in found if child in share.mms]
        assert parent in mine.mms


def test_each_address_space_is_in_one_share_and_they_are_about_even() -> None:
    kernel = SimKernel()
    for pages in (7, 5, 4, 3, 3, 2):
        task = kernel.process()
        region = task.mmap(pages)
        task.mbind(region.start, pages)
        task.faults(region)
    trace = as_read(kernel.trace(), kernel.events)
    rows = Counter(one.mm for one in trace.events if one.mm)
    found = shared(trace, 2)
    assert sorted(mm for share in found for mm in share.mms.tolist()) == sorted(rows)
    assert [share.rows for share in found] == [
        sum(rows[mm] for mm in share.mms.tolist()) for share in found
    ]
    assert max(one.rows for one in found) <= sum(rows.values()) * 4 / 3 / 2
    assert [share.first for share in found].count(1) == 1


def test_of_nothing_there_is_one_share() -> None:
    trace = as_read(SimKernel().trace(), [])
    (share,) = shared(trace, 4)
    assert (len(share.mms), share.first, share.rows) == (0, None, 0)
    assert agree(trace, 4) == 1


def test_a_row_is_judged_once_that_begins_a_recording_and_is_about_nobody() -> None:
    kernel = SimKernel()
    first, second = kernel.process(), kernel.process()
    for task in (first, second):
        region = task.mmap(3)
        task.mbind(region.start, 3)
        task.faults(region)
    kernel.events.insert(
        0,
        replace(
            kernel.events[0], kind=EventKind.KSM_PAGE, mm=0, tid=0, probe=Probe.SNAPSHOT
        ),
    )
    assert agree(as_read(kernel.trace(), kernel.events), 2) == 2


@pytest.mark.parametrize("told", [True, False], ids=["told", "lost"])
def test_a_call_about_another_address_space_ends_where_that_one_is(told: bool) -> None:
    """Be it that its return is lost: the caller's next row, about itself, ends it."""
    kernel = SimKernel("rfc")
    kernel.looked()
    task, other = kernel.process(), kernel.process()
    region = task.mmap(8)
    task.mbind(region.start, 8)
    task.faults(region)
    began = len(kernel.events)
    other.migrate_pages(CDM, 1, task.mm)
    (returned,) = (row for row in kernel.events[began:] if row.kind == EventKind.CALL)
    if not told:
        kernel.events.remove(returned)
    other.faults(other.mmap(3))
    task.dontneed(region.start, 8)
    assert agree(as_read(kernel.trace(), kernel.events), 2) == 2


def test_findings_that_one_row_shows_are_in_the_same_order() -> None:
    """A call that has to do with several address spaces settles them all."""
    kernel = SimKernel("rfc")
    kernel.looked()
    tasks = [kernel.process() for _ in range(5)]
    for task in tasks:
        task.faults(task.mmap(4))
    caller = kernel.process()
    began = len(kernel.events)
    for task in reversed(tasks):
        caller.migrate_pages(RAM, CDM, task.mm)
    moved = kernel.events[began:]
    last = moved[-1]
    assert last.kind == EventKind.CALL
    # As if it had been one call.
    kernel.events[began:] = [
        replace(row, call=last.call) for row in moved if row.kind != EventKind.CALL
    ] + [last]
    trace = as_read(kernel.trace(), kernel.events)
    seqs = Counter((one.seq, one.rule.id) for one in check(trace).findings)
    assert max(seqs.values()) == 5
    assert agree(trace, 3) == 3


def test_batches_that_have_nothing_for_a_share(tmp_path: Path) -> None:
    """Of two that ran one after the other, the first has none of the last batches."""
    base = large.Base.read(GOLDEN[0])
    path = tmp_path / "two.arrows"
    with TraceWriter(path, base.header) as writer:
        for rows, payloads in large.batches(base, len(base.rows) * 2):
            for at in range(0, len(rows), 50):
                some = slice(at, at + 50)
                writer.write(rows[some], payloads=payloads[some])
        writer.end("made of another recording")
    trace = load(path)
    assert agree(trace, 2) == 2
    rows = trace.events
    assert isinstance(rows, Rows)
    for share in shared(trace, 2):
        mine = dataclasses.replace(rows, share=share)
        batches = [share.rows_of(columns) for columns, _ in rows.batches()]
        assert [batch.num_rows for batch in batches].count(0) > 1
        for most in 10, 100, 1 << 14:
            pieces = [len(piece) for piece in mine.pieces(most)]
            assert sum(pieces) == sum(batch.num_rows for batch in batches)
            assert 0 < min(pieces) <= max(pieces) <= most


def test_a_recording_that_lacks_rows_is_not_shared() -> None:
    trace = load(GOLDEN[0])
    (share, *_) = shared(trace, 2)
    lacking = replace(trace, breaks=frozenset({5}))
    with pytest.raises(ValueError, match="whole"):
        of_share(
            lacking,
            share,
            profile="intended",
            rules=None,
            permissions=DEFAULT,
            bounds=CHECK,
        )
