"""Tracks of simulated recordings, and their way into packets."""

from __future__ import annotations

import io
import itertools
from collections import defaultdict
from collections.abc import Iterable, Iterator

import pytest
import simstory
from lives import FAR, forked_locked, freed, watched
from msgspec.structs import replace
from perfetto.protos.perfetto.trace import perfetto_trace_pb2 as pb
from simkernel import BIND, PAGE, PREFERRED, RAM, Region, SimKernel
from traceprocessor import TraceProcessor, reading

from cdmtrace.analysis import check
from cdmtrace.analysis.frames import Event, Gap, Trace
from cdmtrace.analysis.tracks import Tracks
from cdmtrace.events import EventKind, Probe
from cdmtrace.render import perfetto
from cdmtrace.tracks import Clock, Count, Edge, Item, Key, Mark, Track


def items(trace: Trace, profile: str = "intended") -> list[Item]:
    return list(Tracks(trace, profile=profile).items())


def marks(told: Iterable[Item]) -> dict[str, list[Mark]]:
    """Return name of a track -> its marks."""
    names: dict[Key, str] = {}
    found: dict[str, list[Mark]] = defaultdict(list)
    for item in told:
        if isinstance(item, Track):
            names[item.key] = item.name
        elif isinstance(item, Mark):
            found[names[item.track]].append(item)
    return found


def slices(told: list[Mark]) -> list[tuple[str, int, int]]:
    """Return name, begin and end of each slice, by its begin; all have both."""
    found, ahead = [], []
    for mark in told:
        if mark.edge is Edge.BEGIN:
            ahead.append(mark)
        elif mark.edge is Edge.END:
            begun = ahead.pop()
            found.append((begun.name, begun.ts, mark.ts))
    assert ahead == []
    return sorted(found, key=lambda one: (one[1], -one[2]))


def span(start: int, pages: int) -> str:
    size = f"{pages} page" if pages == 1 else f"{pages} pages"
    return f"{start:x}-{start + pages * PAGE:x} ({size})"


def test_what_is_on_a_track_comes_after_it_and_in_order() -> None:
    for quirks in ((), ("rfc",), ("stock",)):
        kernel = SimKernel(*quirks)
        simstory.tell(kernel)
        last: dict[Key, int] = {}
        parents: dict[Key, Key | None] = {}
        for item in items(kernel.trace()):
            if isinstance(item, Track):
                assert item.parent is None or item.parent in parents
                assert item.key not in parents
                parents[item.key] = item.parent
                continue
            assert item.track in parents
            assert item.ts >= last.get(item.track, 0)
            last[item.track] = item.ts
        by_name = marks(items(kernel.trace()))
        assert all(slices(one) for name, one in by_name.items() if "page" in name)


def test_a_vma_that_follows_another_at_its_address_has_a_track_of_its_own() -> None:
    kernel, task = watched()
    first = task.mmap(5, at=FAR)
    task.mbind(first.start, 5)
    task.faults(first)
    task.munmap(first.start, 5)
    kernel.events.append(freed(kernel, task, first.start, 5))
    second = task.mmap(5, at=FAR)
    task.mbind(second.start, 5)
    told = items(kernel.trace())
    names = [one.name for one in told if isinstance(one, Track)]
    mine = [name for name in names if name.startswith(span(FAR, 5))]
    assert len(mine) == len(set(mine)) == 2
    assert all(" from 0." in name for name in mine)
    by_name = marks(told)
    one, other = (slices(by_name[name]) for name in mine)
    assert one[-1][2] <= other[0][1]
    assert [name for name, *_ in one] == ["VMA", "tagged, BIND:1"]


def test_all_pages_are_on_one_track_when_vmas_are_split_and_merged() -> None:
    kernel, task = watched()
    vma = task.mmap(20)
    task.mbind(vma.start, 20)
    task.faults(vma)
    task.mbind(vma.page(5), 5, BIND, RAM)
    task.mbind(vma.page(5), 5)
    moved = task.mremap(vma, 30)
    task.faults(moved)
    task.munmap(moved.start, 8)
    counts = [one for one in items(kernel.trace()) if isinstance(one, Count)]
    counts.sort(key=lambda one: one.ts)
    firsts = {one.track: one.value for one in reversed(counts)}
    # What was split off has pages from the first.
    assert [firsts[key] for key in firsts if "vma" not in key] == [0, 0]
    value: dict[Key, int] = defaultdict(int)
    seen = set()
    for _, row in itertools.groupby(counts, key=lambda one: one.ts):
        for one in row:
            value[one.track] = one.value
        vmas = sum(n for key, n in value.items() if "vma" in key)
        assert vmas == value["pages", "process", task.pid, 1] == value["pages", 1]
        seen.add(vmas)
    assert {0, 10, 20, 30, 22} <= seen


def test_losses_are_slices_that_lie_beside_each_other() -> None:
    kernel = SimKernel("rfc")
    simstory.tell(kernel)
    trace = kernel.trace()
    gaps = tuple(
        Gap(probe=probe, reason="ring", count=count, since=since, until=until)
        for probe, count, since, until in (
            ("rmap_add", 3, 100, 300),
            ("alloc", 1, 200, 400),
            ("fault", 2, 300, 1 << 64),
        )
    )
    told = items(replace(trace, gaps=gaps, cut="the file ends"))
    tracks = [one for one in told if isinstance(one, Track) and one.key[0] == "lost"]
    assert [one.parent for one in tracks] == [None, ("lost",), ("lost",)]
    by_key = defaultdict(list)
    for one in told:
        if isinstance(one, Mark) and one.track[0] == "lost":
            by_key[one.track].append(one)
    last = max(event.ts for event in trace.events)
    assert slices(by_key["lost", 0]) == [
        ("LOST: 3 rows of rmap_add (ring)", 100, 300),
        ("LOST: 2 rows of fault (ring)", 300, last),
    ]
    assert slices(by_key["lost", 1]) == [("LOST: 1 row of alloc (ring)", 200, 400)]
    (cut,) = by_key["lost",]
    assert (cut.ts, cut.args["why"]) == (last, "the file ends")
    assert marks(items(trace)).keys().isdisjoint({"lost", "rows"})


def test_where_rows_are_missing_nothing_goes_on() -> None:
    kernel, task = watched()
    vma = task.mmap(5)
    task.mbind(vma.start, 5)
    task.faults(vma)
    trace = kernel.trace()
    task.mbind(vma.start, 5)
    later = kernel.trace()
    gone = len(list(trace.events))
    first = list(later.events)[gone]
    told = items(replace(later, breaks=frozenset({first.seq})))
    mine = [one for one in told if isinstance(one, Track) and "vma" in one.key]
    assert [one.name.startswith(span(vma.start, 5)) for one in mine].count(True) == 2
    before = max(event.ts for event in trace.events)
    for track in mine[:2]:
        ends = [one for one in told if isinstance(one, Mark) and one.track == track.key]
        assert ends[-1].ts <= before
    counts = [
        one for one in told if isinstance(one, Count) and one.track == ("pages", 1)
    ]
    assert (counts[-1].ts, counts[-1].value) == (before, 0)


def test_clocks_of_cpus_that_differ_turn_no_slice_over() -> None:
    kernel, task = watched("rfc")
    vma = task.mmap(5)
    for number in range(6):
        task.mbind(vma.start, 5, BIND, number % 2 + 1)
    trace = kernel.trace()
    behind = [
        replace(event, ts=event.ts - 15_000, ts_entry=event.ts_entry - 15_000)
        if event.seq % 2
        else event
        for event in trace.events
    ]
    assert [e.ts for e in behind] != sorted(e.ts for e in behind)
    told = items(replace(trace, events=behind))
    with written(told, trace) as reader:
        broken = "select name, value from stats where value > 0 and severity != 'info'"
        assert reader.query(broken) == []
        shown = reader.query(
            "select name, ts, dur from slice where name glob 'tagged*'"
        )
    # As they were begun and ended, one after the other.
    expected = [one for each in marks(told).values() for one in slices(each)]
    assert sorted((one["name"], one["ts"], one["dur"]) for one in shown) == sorted(
        (name, begin, end - begin)
        for name, begin, end in expected
        if name.startswith("tagged")
    )
    assert all(end >= begin for _, begin, end in expected)


class written:  # noqa: N801
    """Have trace_processor read items."""

    def __init__(self, told: Iterable[Item], trace: Trace) -> None:
        file = io.BytesIO()
        clock = Clock(started=trace.terms.started, utc_offset=trace.terms.utc_offset)
        perfetto.write(told, clock, file)
        self._reading = reading(file.getvalue())

    def __enter__(self) -> TraceProcessor:
        return self._reading.__enter__()

    def __exit__(self, *what: object) -> None:
        self._reading.__exit__(None, None, None)


HOSTILE = b"\xff\xfe<b>'\"\x1b[2J"
"""Sixteen bytes at most, of which none but the last is a NUL."""


def test_names_and_numbers_that_no_kernel_has_do_no_harm() -> None:
    kernel = SimKernel("rfc")
    simstory.tell(kernel)
    trace = kernel.trace()

    def hostile(event: Event) -> Event:
        pid = {1: 1 << 31, 2: (1 << 32) - 1}.get(event.pid % 3, event.pid)
        payload = HOSTILE if event.kind == EventKind.COMM else event.payload
        return replace(event, payload=payload, pid=pid, tid=(1 << 32) - event.tid)

    for change in (hostile, lambda event: replace(event, pid=0)):
        told = items(replace(trace, events=[change(event) for event in trace.events]))
        with written(told, trace) as reader:
            broken = "select name from stats where value > 0 and severity != 'info'"
            assert reader.query(broken) == []
            names = {one["name"] for one in reader.query("select name from track")}
            assert any("page" in name for name in names if name)
            found = reader.query("select name from slice where name glob 'CDM0*'")
            assert len(found) == len(check(trace).findings)
    assert "process not known" in names


def test_half_a_character_is_written_as_another_one() -> None:
    track = Track(key=("x",), name="a\udcffb")
    mark = Mark(
        track=("x",), ts=1, edge=Edge.INSTANT, name="\ud800", args={"k": "\udfff"}
    )
    file = io.BytesIO()
    assert perfetto.write([track, mark], Clock(started=0, utc_offset=0), file) == 3
    _, one, event = pb.Trace.FromString(file.getvalue()).packet
    assert one.track_descriptor.name == "a?b"
    assert event.interned_data.event_names[0].name == "?"


def test_texts_are_numbered_as_long_as_there_is_room(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(perfetto, "_INTERNED", 3)
    long = "a sentence that comes again"
    told: list[Item] = [Track(key=("x",), name="x")]
    told += [
        Mark(
            track=("x",),
            ts=ts,
            edge=Edge.INSTANT,
            name=f"name {ts % 5}",
            args={"long": f"{long} {ts % 4}", "short": "x", "big": 1 << 63, "k": -1},
        )
        for ts in range(20)
    ]
    clock = Clock(started=0, utc_offset=0)
    file = io.BytesIO()
    perfetto.write(told, clock, file)
    packets = pb.Trace.FromString(file.getvalue()).packet
    assert sum(len(one.interned_data.event_names) for one in packets) == 3
    with reading(file.getvalue()) as reader:
        names = [one["name"] for one in reader.query("select name from slice")]
        assert names == [f"name {ts % 5}" for ts in range(20)]
        args = reader.query(
            "select key, display_value as v from args join slice using (arg_set_id) "
            "where ts = 8"
        )
        told_args = {one["key"]: one["v"] for one in args}
        assert told_args["debug.long"] == f"{long} 0"
        assert told_args["debug.big"] in (str(1 << 63), str(-(1 << 63)))


def test_what_comes_is_written_before_more_is_asked_for() -> None:
    file = io.BytesIO()
    sizes = []

    def told() -> Iterator[Item]:
        yield Track(key=("x",), name="x")
        for ts in range(50):
            sizes.append(len(file.getvalue()))
            yield Count(track=("x",), ts=ts, value=ts)

    assert perfetto.write(told(), Clock(started=0, utc_offset=0), file) == 52
    assert all(one < other for one, other in itertools.pairwise(sizes))
    kernel = SimKernel("rfc")
    simstory.tell(kernel)
    trace = kernel.trace()
    taken = []

    class Events(list[Event]):
        def __iter__(self) -> Iterator[Event]:
            for event in list.__iter__(self):
                taken.append(event.seq)
                yield event

    tracks = Tracks(replace(trace, events=Events(trace.events)), profile="intended")
    taken.clear()
    next(tracks.items())
    assert len(taken) < 5


def test_a_call_that_has_not_returned_ends_with_the_recording() -> None:
    kernel, task = watched()
    task.mbind(task.mmap(3).start, 3)
    trace = kernel.trace()
    events = list(trace.events)
    *_, call = (event for event in events if event.kind == EventKind.CALL)
    events[events.index(call)] = replace(call, kind=EventKind.CALL_OPEN)
    told = marks(items(replace(trace, events=events)))["story"]
    begun = [one for one in told if one.edge is Edge.BEGIN]
    assert (begun[-1].args["result"], begun[-1].ts) == ("open", call.ts_entry)
    assert slices(told)[-1] == ("mbind", call.ts_entry, call.ts)


def test_a_finding_of_no_vma_has_a_track_of_its_own() -> None:
    kernel = SimKernel("rfc")
    simstory.tell(kernel)
    trace = kernel.trace()
    taken = replace(trace, terms=replace(trace.terms, taken_by="VM_SYNC"))
    told = marks(items(taken))["findings"]
    assert [one.name for one in told] == ["CDM020 bit-taken"]
    assert Probe[str(told[0].args.get("probe", "NONE")).upper()] is Probe.NONE


def test_vmas_of_one_name_are_tracks_apart_and_lanes_are_one() -> None:
    told = [
        Track(key=("process", 1, "vma", 7), name="1000-2000 (1 page)"),
        Track(key=("lost", 0), name="rows"),
    ]
    file = io.BytesIO()
    perfetto.write(told, Clock(started=0, utc_offset=0), file)
    _, vma, lane = pb.Trace.FromString(file.getvalue()).packet
    apart = pb.TrackDescriptor.SIBLING_MERGE_BEHAVIOR_NONE
    assert vma.track_descriptor.sibling_merge_behavior == apart
    assert lane.track_descriptor.sibling_merge_behavior != apart


def test_what_a_fork_does_not_hand_on_is_no_change() -> None:
    kernel, child, start = forked_locked()
    child.mbind(start, 5)
    child.faults(Region(start, 5))
    told = marks(items(kernel.trace()))[span(start, 5)]
    assert [one.name for one in told if "fork" in one.name] == ["fork copies 5 pages"]


def test_a_flag_that_changes_is_an_instant_though_nothing_is_wrong() -> None:
    kernel, task = watched("bind-only", "fault-tag")
    vma = task.mmap(3)
    task.mbind(vma.start, 3, PREFERRED)
    task.faults(vma)
    trace = kernel.trace()
    assert check(trace, profile="rfc-v2").findings == ()
    told = marks(items(trace, profile="rfc-v2"))[span(vma.start, 3)]
    (one,) = (one for one in told if "page allocated" in one.name)
    assert one.name == "- -> cd, page allocated on node 1"
    assert (one.args["before"], one.args["after"], one.args["lock"]) == (
        *("-", "cd"),
        "read",
    )
