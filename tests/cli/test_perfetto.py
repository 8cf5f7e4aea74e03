"""``export perfetto``, read by Perfetto's trace_processor and held against others.

What a recording says is taken from its rows by nothing but Arrow, and from what other
verbs print as JSON.
"""

from __future__ import annotations

import bisect
import io
import json
import lzma
import shlex
import sys
from collections import defaultdict
from collections.abc import Iterator
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import simstory
from perfetto.protos.perfetto.trace import perfetto_trace_pb2 as pb
from simfile import save
from simkernel import SimKernel
from traceprocessor import Row, TraceProcessor, reading

from cdmtrace.analysis import cdm_pages, check, load
from cdmtrace.cli import main
from cdmtrace.events import EventKind, Probe

GOLDEN = Path(__file__).parents[1] / "golden"
RFC = GOLDEN / "cdm-6.1-rfc.arrows"

Capture = pytest.CaptureFixture[str]


def said(*words: str) -> Any:
    """Return what a verb prints as JSON."""
    out = io.StringIO()
    with redirect_stdout(out):
        assert main([*words, "--format", "json"]) in (0, 1)
    return json.loads(out.getvalue())


with pa.ipc.open_stream(RFC.open("rb")) as stream:
    HEADER = json.loads(stream.schema.metadata[b"cdmtrace"])
    ROWS: dict[int, Row] = {row["seq"]: row for row in stream.read_all().to_pylist()}
STARTED = HEADER["clock"]["started"]


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    out = tmp_path_factory.mktemp("perfetto") / "rfc.pftrace"
    assert main(["export", "perfetto", str(RFC), "-o", str(out)]) == 0
    return out.read_bytes()


@pytest.fixture(scope="module")
def reader(exported: bytes) -> Iterator[TraceProcessor]:
    with reading(exported) as one:
        yield one


@pytest.fixture(scope="module")
def listed() -> list[Row]:
    (rows,) = said("timeline", str(RFC)).values()
    return list(rows)


MARKS = """
    select slice.id, slice.ts, dur, slice.name, depth, track_id, arg_set_id,
        track.name as track
    from slice join track on track.id = track_id
"""


def with_args(reader: TraceProcessor, where: str) -> list[Row]:
    """Return slices and instants, each with its arguments."""
    marks = reader.query(f"{MARKS} where {where} order by slice.ts, slice.id")
    args: dict[int, Row] = defaultdict(dict)
    for one in reader.query("select arg_set_id, key, display_value from args"):
        name = one["key"].removeprefix("debug.")
        args[one["arg_set_id"]][name] = one["display_value"]
    return [{**mark, "args": args[mark["arg_set_id"]]} for mark in marks]


# --- as Perfetto sees it --------------------------------------------------------


def test_perfetto_has_nothing_to_complain_of(reader: TraceProcessor) -> None:
    assert troubles(reader) == []
    assert reader.query("select count(*) as n from slice")[0]["n"] > 300
    assert reader.query("select name from slice where dur < 0") == []


def troubles(reader: TraceProcessor) -> list[Row]:
    """Return what it counts as wrong: a slice that ends and has not begun, say."""
    return reader.query(
        "select name, value from stats where value > 0 and severity != 'info'"
    )


def test_times_are_those_of_the_recording_and_can_be_told_as_utc(
    reader: TraceProcessor,
) -> None:
    clocks = reader.query("select clock_name, ts, clock_value from clock_snapshot")
    utc = STARTED + HEADER["clock"]["utc_offset"]
    assert [(one["clock_name"], one["clock_value"]) for one in clocks] == [
        ("MONOTONIC", STARTED),
        ("REALTIME", utc),
    ]
    assert {one["ts"] for one in clocks} == {STARTED}
    named = "select int_value from metadata where name = 'trace_time_clock_id'"
    assert reader.query(named) == [{"int_value": 3}]


def test_it_lines_up_with_a_trace_that_has_another_clock(exported: bytes) -> None:
    """Such as one of Linux, which counts from boot and not without sleep."""
    clock = pb.ClockSnapshot.Clock
    other = pb.Trace()
    snapshot = other.packet.add(trusted_packet_sequence_id=7).clock_snapshot
    slept, call = 10**12, next(row for row in ROWS.values() if row["kind"] == 40)
    for which, ts in ((clock.BOOTTIME, STARTED + slept), (clock.MONOTONIC, STARTED)):
        snapshot.clocks.add(clock_id=which, timestamp=ts)
    packet = other.packet.add(trusted_packet_sequence_id=7)
    packet.timestamp = call["ts_entry"] + slept
    packet.track_event.type = pb.TrackEvent.TYPE_INSTANT
    packet.track_event.track_uuid, packet.track_event.name = 7, "theirs"
    with reading(other.SerializeToString() + exported) as both:
        theirs = both.query("select ts from slice where name = 'theirs'")
        ours = both.query(
            "select slice.ts from slice join thread_track on track_id = thread_track.id"
        )
        assert theirs == [min(ours, key=lambda one: one["ts"])]
        assert theirs == [{"ts": call["ts_entry"] + slept}]
        assert troubles(both) == []


def test_the_same_recording_gives_the_same_trace(
    exported: bytes, tmp_path: Path
) -> None:
    again = tmp_path / "again"
    assert main(["export", "perfetto", str(RFC), "-o", str(again)]) == 0
    assert again.read_bytes() == exported
    other = tmp_path / "other"
    words = ["export", "perfetto", str(GOLDEN / "cdm-6.1-none.arrows")]
    assert main([*words, "-o", str(other)]) == 0

    def uuids(trace: bytes) -> set[int]:
        packets = pb.Trace.FromString(trace).packet
        return {one.track_descriptor.uuid for one in packets} - {0}

    assert uuids(exported).isdisjoint(uuids(other.read_bytes()))


# --- processes, threads and system calls ----------------------------------------


def test_processes_and_threads_have_their_names(reader: TraceProcessor) -> None:
    processes = reader.query("select pid, name from process where pid > 0")
    named = {one["pid"]: one["name"] for one in processes}
    assert named == {62: "story", 63: "story", 64: "story"}
    calls = [row for row in ROWS.values() if row["kind"] == EventKind.CALL]
    threads = reader.query(
        "select tid, pid from thread join process using (upid) where tid > 0"
    )
    assert {(row["tid"], row["pid"]) for row in calls} == {
        (one["tid"], one["pid"]) for one in threads
    }


def test_each_system_call_is_a_slice_of_its_thread(reader: TraceProcessor) -> None:
    slices = reader.query(
        "select tid, slice.ts, dur, slice.name from slice "
        "join thread_track on track_id = thread_track.id join thread using (utid)"
    )
    expected = [
        (
            *(row["tid"], row["ts_entry"], row["ts"] - row["ts_entry"]),
            Probe(row["probe"]).name.lower().removeprefix("sys_"),
        )
        for row in ROWS.values()
        if row["kind"] == EventKind.CALL
    ]
    assert len(expected) > 70
    assert sorted(tuple(one.values()) for one in slices) == sorted(expected)


def test_a_call_says_what_it_was_asked_for(reader: TraceProcessor) -> None:
    calls = with_args(reader, "slice.name = 'mbind'")
    told = {one["args"]["what"]: one["args"]["result"] for one in calls}
    assert told["mbind(BIND:0, MOVE, 23 pages) = 0"] == "0"
    assert {int(one["args"]["row"]) for one in calls} <= ROWS.keys()


# --- VMAs -----------------------------------------------------------------------

VMAS = """
    select track.id, track.name, pid from process_track as track
    join process using (upid) where track.name glob '*-* (* page*'
"""


SPLIT = "10028000b000-10028001e000"
"""What was cut out of another VMA: its track begins then, its timeline before."""

MERGED = "100300000000-100300043000"
"""The track is that of the greatest part, the timeline that of the first one."""

TRACKS = "select id, parent_id, type from track"
"""Views of it have no parents."""


def tracks_of(reader: TraceProcessor) -> dict[tuple[int, str, str], int]:
    """Return pid, range and the rest of the name of a VMA's track -> its id."""
    found = {}
    for one in reader.query(VMAS):
        span, _, rest = one["name"].partition(" ")
        found[one["pid"], span, rest.partition("from ")[2]] = one["id"]
    return found


def track_of(tracks: dict[tuple[int, str, str], int], row: Row) -> int:
    """Return the id of the track of a VMA that timeline lists."""
    since = f"{row['since (s)']} s"
    mine = [
        id_
        for (pid, span, when), id_ in tracks.items()
        if (pid, span) == (row["pid"], row["VMA"]) and when in ("", since)
    ]
    assert len(mine) == 1, row
    return mine[0]


def test_each_vma_that_is_worth_a_look_has_a_track_and_no_other(
    reader: TraceProcessor, listed: list[Row]
) -> None:
    tracks = tracks_of(reader)
    assert len(listed) > 30
    theirs = [track_of(tracks, row) for row in listed]
    assert len(set(theirs)) == len(theirs)
    # Of what was merged into another, timeline lists what it has become.
    merged = [key for key, track in tracks.items() if track not in theirs]
    assert [(pid, span) for pid, span, _ in merged] == [
        (62, "100300000000-100300007000"),
        (62, "100300007000-10030001e000"),
    ]
    assert "100300000000-100300043000" in {row["VMA"] for row in listed}


def counts_of(reader: TraceProcessor, where: str) -> dict[int, list[tuple[int, int]]]:
    """Return the track that pages are counted for, or whose count it is -> counts.

    Each is a time and so many pages.
    """
    parents = {one["id"]: one["parent_id"] for one in reader.query(TRACKS)}
    found: dict[int, list[tuple[int, int]]] = defaultdict(list)
    for one in reader.query(
        "select track_id, ts, value, unit from counter "
        f"join counter_track on counter_track.id = track_id where {where} "
        "order by ts, counter.id"
    ):
        assert one["unit"] == "pages"
        track = one["track_id"]
        key = track if parents[track] is None else parents[track]
        found[key].append((one["ts"], one["value"]))
    return found


def at(counts: list[tuple[int, int]], ts: int) -> int:
    """Return what is counted at a time, after all that came then."""
    last = bisect.bisect_right(counts, ts, key=lambda one: one[0])
    return int(counts[last - 1][1]) if last else 0


def test_the_pages_of_a_vma_are_those_of_its_timeline_row_by_row(
    reader: TraceProcessor, listed: list[Row]
) -> None:
    tracks = tracks_of(reader)
    counts = counts_of(reader, "name = 'CDM pages, node 1'")
    compared = 0
    # The worst, and those that are not what they were.
    chosen = [row for row in listed if row["VMA"] in (SPLIT, MERGED)]
    assert len(chosen) == 3
    for row in [*listed[:7], *chosen]:
        track = track_of(tracks, row)
        (began, *_) = with_args(reader, f"track_id = {track}")
        life = said(*shlex.split(row["command"])[1:])["Timeline"]
        pages = {ROWS[one["row"]]["ts"]: one["node 1"] for one in life}
        vmas = {ROWS[one["row"]]["ts"]: one["VMA"] for one in life}
        for ts, expected in pages.items():
            if ts < began["ts"]:
                assert row["VMA"] in (SPLIT, MERGED)
                continue
            if row["VMA"] == MERGED and vmas[ts] != MERGED:
                continue
            assert at(counts[track], ts) == expected, (row["VMA"], ts)
            compared += 1
    assert compared > 300


def test_the_pages_of_processes_and_of_all_are_those_of_the_model(
    reader: TraceProcessor,
) -> None:
    top = {one["id"] for one in reader.query(TRACKS) if one["parent_id"] is None}
    pids = {
        one["id"]: one["pid"]
        for one in reader.query(
            "select track.id, pid from process_counter_track as track "
            "join process using (upid)"
        )
        if one["id"] in top
    }
    assert sorted(pids.values()) == [62, 63, 64]
    counted = counts_of(reader, "true")
    (machine,) = (
        counted[one["id"]]
        for one in reader.query(TRACKS)
        if one["type"] == "global_counter_track_event"
    )
    by_ts = {row["ts"]: seq for seq, row in ROWS.items() if row["mm"]}
    trace = load(RFC)
    # At a fork, nobody has said yet whose the child's address space is.
    owners = {life.mm.id: life.mm.pid for life in check(trace).lives}
    seen = set()
    for ts in sorted(by_ts)[::29]:
        if ROWS[by_ts[ts]]["kind"] == EventKind.MM_EXIT:
            continue
        held: dict[int, int] = defaultdict(int)
        ended = {
            row["mm"]
            for row in ROWS.values()
            if row["kind"] == EventKind.MM_EXIT and row["ts"] <= ts
        }
        for mm, ranges in cdm_pages(trace, until=by_ts[ts]).items():
            if mm.id not in ended:
                held[owners[mm.id]] += sum(sum(one.values()) for one in ranges.values())
        for track, pid in pids.items():
            assert at(counted[track], ts) == held[pid]
        assert at(machine, ts) == sum(held.values())
        seen.add(sum(held.values()))
    assert len(seen) > 15


def test_a_tag_is_a_slice_with_its_policy(
    reader: TraceProcessor, listed: list[Row]
) -> None:
    track = reader.query(f"{VMAS} and track.name glob '100040000000-*'")[0]["id"]
    slices = with_args(reader, f"track_id = {track} and dur > 0")
    # As README's timeline has it.
    assert [
        (one["name"], round((one["ts"] - STARTED) / 1e9, 6), one["depth"])
        for one in slices
    ] == [
        ("VMA", 4.723492, 0),
        ("tagged, BIND:1", 4.724411, 1),
        ("tagged, BIND:0", 4.782945, 1),
    ]
    ends = [round((one["ts"] + one["dur"] - STARTED) / 1e9, 6) for one in slices]
    assert ends == [5.511196, 4.782945, 5.511196]


def test_changes_of_flags_and_migrations_are_instants(
    reader: TraceProcessor, listed: list[Row]
) -> None:
    mms = {row["mm"] for row in ROWS.values() if row["pid"] in (62, 63, 64)}
    instants = with_args(reader, "dur = 0 and track.name glob '*-* (* page*'")
    by_row = defaultdict(list)
    for one in instants:
        if "row" in one["args"]:
            by_row[int(one["args"]["row"])].append(one)
    shown = 0
    tag = 1 << 38
    for seq, row in ROWS.items():
        moved = row["kind"] == EventKind.MIGRATE and row["mm"] in mms
        changed = (row["flags_before"] ^ row["flags_after"]) & tag
        calls = (EventKind.CALL, EventKind.VMA_FREE, EventKind.MM_EXIT)
        if row["kind"] in calls or not (moved or changed):
            continue
        told = by_row[seq]
        assert told, row
        shown += 1
        for one in told:
            assert one["ts"] == row["ts"]
            if moved:
                way = f"node {row['src_node']} -> {row['node']}"
                assert way in one["name"]
            if changed:
                before = "cd" in one["args"]["before"].split()
                assert before == bool(row["flags_before"] & tag)
                assert one["args"]["lock"] in ("read", "write")
    assert shown > 130


# --- findings -------------------------------------------------------------------


def test_each_finding_is_on_the_track_of_its_vma(
    reader: TraceProcessor, listed: list[Row]
) -> None:
    found = said("check", str(RFC))["findings"]
    instants = with_args(reader, "slice.name glob 'CDM0*'")
    assert len(instants) == len(found) == 15
    told = defaultdict(list)
    for one in instants:
        told[one["args"]["fingerprint"], one["args"]["VMA"]].append(one)
    for finding in found:
        vma = f"{finding['vma']['start']}-{finding['vma']['end']}".replace("0x", "")
        (one,) = told[finding["fingerprint"], vma]
        assert one["name"] == f"{finding['rule']} {finding['name']}"
        for key in ("rule", "severity", "cause", "expected", "observed"):
            assert one["args"][key] == finding[key]
        seqs = [step["seq"] for step in finding["witness"]]
        assert one["args"]["witness"] == " ".join(map(str, seqs))
        assert one["ts"] in {ROWS[seq]["ts"] for seq in ROWS}
        assert one["ts"] >= max(ROWS[seq]["ts"] for seq in seqs)
        low, high = (int(end, 16) for end in one["track"].split(" ")[0].split("-"))
        assert low < int(vma.split("-")[1], 16)
        assert int(vma.split("-")[0], 16) < high


def test_arrows_lead_from_the_witness_to_the_finding(reader: TraceProcessor) -> None:
    steps = {one["id"]: one for one in with_args(reader, "true")}
    into = defaultdict(set)
    for flow in reader.query("select slice_out, slice_in from flow"):
        into[flow["slice_in"]].add(flow["slice_out"])
    found = [one for one in steps.values() if one["name"].startswith("CDM0")]
    for finding in found:
        witness = {int(seq) for seq in finding["args"]["witness"].split()}
        led, ahead = set(), {finding["id"]}
        while ahead:
            ahead = {before for step in ahead for before in into[step]} - led
            led |= ahead
        rows = {int(steps[step]["args"]["row"]) for step in led}
        assert rows >= witness, finding["name"]


# --- what asks for too much -----------------------------------------------------


@pytest.mark.parametrize(
    ("words", "message", "hint"),
    [
        (["perfetto", str(RFC)], "perfetto is not for a terminal", "-o my.pftrace"),
        (
            ["csv", str(RFC), "--profile", "np"],
            "--profile is about findings, which csv does not have",
            "export perfetto --profile np",
        ),
        (["perfetto", __file__, "-o", "/nonexistent/x"], "is not a trace file", ""),
        (["perfetto", str(RFC), "-o", "/nonexistent/x"], "cannot be made", ""),
    ],
)
def test_trouble(words: list[str], message: str, hint: str, capsys: Capture) -> None:
    assert main(["export", *words]) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert message in told.err
    assert hint in told.err


def test_without_the_library_it_says_how_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    # As Python has it for a package that is not there.
    monkeypatch.setitem(sys.modules, "perfetto.trace_builder.proto_builder", None)
    out = tmp_path / "x"
    assert main(["export", "perfetto", str(RFC), "-o", str(out)]) == 2
    err = capsys.readouterr().err
    assert "the Python package perfetto cannot be loaded" in err
    assert f"{sys.executable} -m pip install 'perfetto>=0.59.1'" in err
    assert not out.exists()


def test_it_says_what_was_written_and_what_reads_it(
    tmp_path: Path, capsys: Capture
) -> None:
    assert main(["export", "perfetto", str(RFC), "-o", str(tmp_path / "x")]) == 0
    told = capsys.readouterr()
    assert told.out == ""
    packets = len(pb.Trace.FromString((tmp_path / "x").read_bytes()).packet)
    assert told.err == (
        f"cdmtrace: 35 VMAs, 15 findings, {packets:,} packets: open it in "
        "ui.perfetto.dev\n"
    )


def test_what_is_missing_is_told(tmp_path: Path, capsys: Capture) -> None:
    kernel = SimKernel("rfc")
    simstory.tell(kernel)
    kernel.lose("alloc", 0)
    path = save(kernel.trace(), tmp_path / "lossy.arrows", end=False)
    out = tmp_path / "x"
    assert main(["export", "perfetto", str(path), "-o", str(out)]) == 0
    cut, lost, last = capsys.readouterr().err.splitlines()
    assert f"{path}: cut: the file ends at byte" in cut
    assert lost == 'cdmtrace: 1 event lost: the track "lost" has when'
    assert "open it in ui.perfetto.dev" in last
    with reading(out.read_bytes()) as one:
        told = one.query(f"{MARKS} where track_id in ({LOST})")
        names = [mark["name"] for mark in told]
        assert names == ["LOST: 1 row of alloc (ring)", "cut"]
        assert troubles(one) == []


LOST = """
    select id from track where name = 'lost'
        or parent_id in (select id from track where name = 'lost')
"""


def test_findings_are_those_of_the_profile(tmp_path: Path) -> None:
    path = tmp_path / "services.arrows"
    packed = (GOLDEN / "rules/services.arrows.xz").read_bytes()
    path.write_bytes(lzma.decompress(packed))
    out = tmp_path / "x"
    words = ["export", "perfetto", str(path), "-o", str(out), "--profile", "np"]
    assert main(words) == 0
    found = said("check", "--profile", "np", str(path))["findings"]
    with reading(out.read_bytes()) as one:
        instants = with_args(one, "slice.name glob 'CDM0*'")
        assert sorted(mark["args"]["fingerprint"] for mark in instants) == sorted(
            finding["fingerprint"] for finding in found
        )
        assert troubles(one) == []
    assert {finding["rule"] for finding in found} >= {"CDM021"}
