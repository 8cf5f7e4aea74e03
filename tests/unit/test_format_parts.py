"""A recording in several files: each is whole, and together they are the recording."""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import random
import subprocess
from pathlib import Path

import numpy as np
import pytest
from msgspec import structs
from mutations import GOLDEN, recorded
from parting import SIZE, split

from cdmtrace.analysis import check, frames
from cdmtrace.analysis.live import Live
from cdmtrace.analysis.parts import recordings
from cdmtrace.analysis.result import Result, Verdict
from cdmtrace.cli import main
from cdmtrace.errors import TraceWriteError, UsageTrouble
from cdmtrace.events import EVENT_DTYPE, EventKind, Events
from cdmtrace.format import parts
from cdmtrace.format.follow import Follower
from cdmtrace.format.parts import PartsWriter, found_parts, part_path
from cdmtrace.format.reader import TraceReader
from cdmtrace.format.schema import Shortfall

HEADER = dataclasses.replace(recorded()[0], started=1000, enums={}, probes=())
SEVEN = Shortfall(probe="alloc", reason="ring", count=7)
NOBODY = 1 << 23
"""No task has such a number: it is beyond the kernel's own limit."""


def some_events(count: int, first_ts: int) -> Events:
    events: Events = np.zeros(count, EVENT_DTYPE)
    events["ts"] = np.arange(first_ts, first_ts + count)
    events["mm"], events["kind"] = 1, EventKind.VMA_SEEN
    return events


@pytest.fixture(scope="module")
def rfc(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return split("cdm-6.1-rfc", tmp_path_factory.mktemp("rfc"))


@pytest.fixture(scope="module")
def whole() -> Result:
    return check(frames.load(GOLDEN / "cdm-6.1-rfc.arrows"))


def found(result: Result) -> list[tuple[object, ...]]:
    return [
        (
            f.fingerprint,
            f.rule.id,
            f.mm.id,
            f.mm.pid,
            f.mm.comm,
            f.start,
            f.end,
            f.count,
        )
        for f in result.findings
    ]


def told(result: Result) -> list[tuple[object, ...]]:
    return [(r.rule.id, r.verdict, r.checked, r.findings, r.why) for r in result.rules]


# --- what is written --------------------------------------------------------------


def test_parts_are_one_side_of_a_comparison(
    rfc: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    none, *parts = str(GOLDEN / "cdm-6.1-none.arrows"), *map(str, reversed(rfc))
    for files, words in (
        ([*parts, none], "as expected: 10 gone"),
        ([none, *parts], "not as expected: 10 new"),
        # Who stands between the parts is the other one all the same.
        ([parts[0], none, *parts[1:]], "as expected: 10 gone"),
    ):
        main(["compare", *files])
        assert capsys.readouterr().out.endswith(f"\nverdict: {words}\n")
    assert main(["compare", *parts]) == 2
    assert "and this is one" in capsys.readouterr().err


def test_parts_are_exported_as_one(
    rfc: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    def exported(*files: Path) -> list[dict[str, object]]:
        assert main(["export", "ndjson", *map(str, files)]) == 0
        rows = map(json.loads, capsys.readouterr().out.splitlines())
        # Each part has the names and stacks that it leans on once more.
        return [
            {key: value for key, value in row.items() if key != "seq"}
            for row in rows
            if row["kind"] not in ("comm", "stack")
        ]

    whole = exported(GOLDEN / "cdm-6.1-rfc.arrows")
    assert exported(*reversed(rfc)) == whole
    assert exported(rfc[-1]) == whole[-len(exported(rfc[-1])) :]
    main(["export", "csv", str(rfc[0]), str(rfc[2])])
    assert "rows are missing before part 2" in capsys.readouterr().err


def test_names_of_the_files(rfc: list[Path]) -> None:
    assert len(rfc) > 5
    numbers = range(len(rfc))
    assert [path.name for path in rfc] == [f"x.{n:04}.arrows" for n in numbers]
    assert found_parts(rfc[0].with_name("x.arrows")) == rfc


def test_no_part_is_larger_than_was_asked_for(rfc: list[Path]) -> None:
    sizes = [path.stat().st_size for path in rfc]
    assert max(sizes) <= SIZE
    # All but the last one are full but for what the next batch would have taken.
    assert min(sizes[:-1]) > SIZE / 3


def test_a_batch_that_is_larger_than_a_part_has_one_of_its_own(tmp_path: Path) -> None:
    with PartsWriter(tmp_path / "x", HEADER, size=SIZE) as writer:
        for ts in (2000, 3000, 4000):
            writer.write(some_events(1009, ts))
        writer.end("done")
    assert [path.name for path in writer.files] == ["x.0000", "x.0001", "x.0002"]
    assert frames.load(*writer.files).count == writer.events == 3 * 1009


def test_each_part_says_which_it_is(rfc: list[Path]) -> None:
    ids, before = set(), 0
    for number, path in enumerate(rfc):
        with TraceReader(path) as reader:
            info, part = reader.info, reader.header.part
            assert part is not None
            seqs = reader.read()["seq"].to_pylist()
        ids.add(part.recording)
        assert (part.number, part.seq) == (number, before)
        assert seqs == list(range(before + 1, before + info.events + 1))
        before += info.events
        assert info.torn is None
        assert info.clean_end
        assert info.more == (path != rfc[-1])
        if info.more:
            assert info.end == f"it goes on in {rfc[number + 1].name}"
    assert len(ids) == 1


def test_what_a_row_leans_on_comes_before_it_in_its_part(rfc: list[Path]) -> None:
    again = 0
    for path in rfc:
        here: set[int] = {0}
        with TraceReader(path) as reader:
            rows = reader.read().to_pylist()
        for row in rows:
            if row["kind"] == EventKind.STACK:
                again += row["stack"] in here
                here.add(row["stack"])
                assert row["payload"]
            assert row["stack"] in here
    assert not again


def test_names_of_tasks_that_are_there_are_told_again(tmp_path: Path) -> None:
    """And of those that have rows still to come, but of no others."""
    here = os.getpid()
    with PartsWriter(tmp_path / "x", HEADER, size=SIZE) as writer:
        names = some_events(4, 2000)
        names["kind"] = EventKind.COMM
        names["pid"] = NOBODY, NOBODY, here, NOBODY + 9
        names["tid"] = NOBODY, NOBODY + 1, here, NOBODY + 9
        writer.write(names, payloads=[b"one", b"two", b"three", b"four"])
        late = some_events(400, 3000)
        late["tid"] = NOBODY + 1
        writer.write(late[:200])
        writer.write(late[200:])
        writer.end("done")
    with TraceReader(writer.files[1]) as reader:
        rows = reader.read().to_pylist()
    assert [row["kind"] for row in rows[:3]] == [
        *(EventKind.COMM, EventKind.COMM),
        EventKind.VMA_SEEN,
    ]
    assert [(row["pid"], row["tid"], row["payload"]) for row in rows[:2]] == [
        (NOBODY, NOBODY + 1, b"two"),
        (here, here, b"three"),
    ]


def test_old_parts_are_removed(tmp_path: Path) -> None:
    with PartsWriter(tmp_path / "x", HEADER, size=SIZE, keep=3) as writer:
        for number in range(8):
            writer.write(some_events(200, 2000 + number))
            assert len(found_parts(tmp_path / "x")) == min(number + 1, 3)
        writer.end("done")
    assert [path.name for path in writer.files] == ["x.0005", "x.0006", "x.0007"]
    assert list(writer.files) == sorted(tmp_path.iterdir())
    assert writer.size == sum(path.stat().st_size for path in writer.files)


def test_one_part_is_kept(tmp_path: Path) -> None:
    with PartsWriter(tmp_path / "x", HEADER, size=SIZE, keep=1) as writer:
        for number in range(3):
            writer.write(some_events(200, 2000 + number))
        writer.end("done")
    assert [path.name for path in tmp_path.iterdir()] == ["x.0002"]


def test_only_what_this_recording_made_is_removed(tmp_path: Path) -> None:
    """Somebody has taken a part away, and put something else there."""
    others = [tmp_path / name for name in ("x.00", "x.0001.old", "y.0000", "x")]
    for path in others:
        path.write_text("mine")
    with PartsWriter(tmp_path / "x", HEADER, size=SIZE, keep=2) as writer:
        writer.write(some_events(200, 2000))
        taken = writer.files[0].rename(tmp_path / "taken")
        part_path(tmp_path / "x", 0).write_text("mine")
        for number in range(4):
            writer.write(some_events(200, 3000 + number))
            if number == 0:
                # The other way round: it has gone by itself.
                part_path(tmp_path / "x", 1).unlink()
        writer.end("done")
    assert part_path(tmp_path / "x", 0).read_text() == "mine"
    assert frames.load(taken).count == 200
    assert all(path.read_text() == "mine" for path in others)


def test_an_earlier_recording_is_not_mixed_with(tmp_path: Path) -> None:
    old = split("cdm-6.1-none", tmp_path)
    with pytest.raises(TraceWriteError, match=r"x\.0000\.arrows: exists already"):
        PartsWriter(tmp_path / "x.arrows", HEADER, size=SIZE)
    assert all(path.exists() for path in old)
    with PartsWriter(tmp_path / "x.arrows", HEADER, size=SIZE, force=True) as writer:
        writer.end("done")
    assert found_parts(tmp_path / "x.arrows") == [tmp_path / "x.0000.arrows"]


def test_nothing_but_files_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "x.0000").write_text("old")
    (tmp_path / "x.0007").symlink_to("/etc/passwd")
    with pytest.raises(TraceWriteError, match=r"x\.0007: is no regular file"):
        PartsWriter(tmp_path / "x", HEADER, size=SIZE, force=True)
    assert (tmp_path / "x.0000").read_text() == "old"


def test_the_next_part_cannot_be_made(tmp_path: Path) -> None:
    """Nothing that was written is lost, and nothing of others is overwritten."""
    writer = PartsWriter(tmp_path / "x", HEADER, size=SIZE)
    writer.write(some_events(200, 2000))
    part_path(tmp_path / "x", 1).write_text("mine")
    with pytest.raises(TraceWriteError, match=r"x\.0001: exists already"):
        writer.write(some_events(200, 3000))
    writer.close()
    assert part_path(tmp_path / "x", 1).read_text() == "mine"
    trace = frames.load(*writer.files)
    assert trace.count == 200
    assert "without the end of the recording" in str(trace.cut)


def test_the_disk_is_full_when_a_part_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = PartsWriter(tmp_path / "x", HEADER, size=SIZE)
    writer.write(some_events(200, 2000))
    real = os.write

    def full(fd: int, data: bytes) -> int:
        if Path(f"/proc/self/fd/{fd}").readlink().name == "x.0000":
            raise OSError(28, "No space left on device")
        return real(fd, data)

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(TraceWriteError, match=r"x\.0000: cannot write it: No space"):
        writer.write(some_events(200, 3000))
    writer.close()
    assert [path.name for path in tmp_path.iterdir()] == ["x.0000"]
    assert frames.load(*writer.files).count == 200


def test_an_old_part_cannot_be_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path) -> None:
        raise PermissionError(1, "Operation not permitted")

    writer = PartsWriter(tmp_path / "x", HEADER, size=SIZE, keep=1)
    writer.write(some_events(200, 2000))
    monkeypatch.setattr(Path, "unlink", refuse)
    with pytest.raises(TraceWriteError, match=r"x\.0000: cannot remove this old part"):
        writer.write(some_events(200, 3000))


def test_memory_is_bounded(tmp_path: Path) -> None:
    """Of tasks that have ended no name is kept, however many there were."""
    with PartsWriter(tmp_path / "x", HEADER, size=1 << 20) as writer:
        for number in range(20):
            names = some_events(2000, 2000)
            names["kind"] = EventKind.COMM
            names["tid"] = np.arange(2000) + NOBODY + 2000 * number
            writer.write(names)
            assert len(writer._names) <= 8000
        writer.end("done")


# --- what is read -----------------------------------------------------------------


@pytest.mark.parametrize("name", ["cdm-6.1-rfc", "cdm-6.1-none", "foreign-6.1-rfc"])
def test_all_parts_are_the_recording(name: str, tmp_path: Path) -> None:
    alone = check(frames.load(GOLDEN / f"{name}.arrows"))
    files = split(name, tmp_path)
    random.Random(23).shuffle(files)
    trace = frames.load(*files)
    assert (trace.clean_end, trace.cut, trace.gaps) == (True, None, alone.trace.gaps)
    assert trace.files == tuple(map(str, sorted(files)))
    together = check(trace)
    assert found(together) == found(alone)
    assert told(together) == told(alone)


def test_losses_are_where_they_were(tmp_path: Path) -> None:
    with PartsWriter(tmp_path / "x", HEADER, size=SIZE) as writer:
        for ts in range(2000, 8000, 1000):
            writer.write(some_events(200, ts), lost=[SEVEN], window=(ts, ts + 500))
        writer.end("done")
    assert len(writer.files) == 6
    gaps = frames.load(*writer.files).gaps
    assert [(gap.since, gap.until) for gap in gaps] == [
        (1000 if ts == 2000 else ts - 1000, ts + 500) for ts in range(2000, 8000, 1000)
    ]
    # A part alone knows as much of its losses.
    (alone,) = frames.load(writer.files[3]).gaps
    assert alone == gaps[3]


def test_a_part_is_missing(rfc: list[Path], whole: Result) -> None:
    trace = frames.load(*rfc[:3], *rfc[4:])
    with TraceReader(rfc[3]) as reader:
        rows = reader.info.events
    (gap,) = (gap for gap in trace.gaps if gap.probe == frames.ROWS)
    assert (gap.count, gap.reason) == (rows, "before part 4")
    assert trace.lost == whole.trace.lost + rows
    result = check(trace)
    for one in result.rules:
        if one.verdict not in (Verdict.VIOLATED, Verdict.UNCHECKED) and one.rule.probes:
            assert one.verdict is Verdict.INCONCLUSIVE
            assert f"rows missing: {rows:,} before part 4" in str(one.why)


def test_a_part_is_cut(rfc: list[Path], tmp_path: Path) -> None:
    torn = tmp_path / rfc[3].name
    torn.write_bytes(rfc[3].read_bytes()[:-5000])
    trace = frames.load(*rfc[:3], torn, *rfc[4:])
    (gap,) = (gap for gap in trace.gaps if gap.probe == frames.ROWS)
    assert gap.reason == "before part 4"
    assert gap.count > 0
    assert str(trace.cut).startswith(f"{torn}: batch ")
    assert trace.clean_end


def test_a_part_lacks_nothing_but_its_end(rfc: list[Path], tmp_path: Path) -> None:
    """There may have been losses in what is cut: no rows are missing, and yet."""
    with TraceReader(rfc[3]) as reader:
        last = [batch.offset for batch in reader][-1]
    torn = tmp_path / rfc[3].name
    torn.write_bytes(rfc[3].read_bytes()[:last])
    (gap,) = frames.load(*rfc[:3], torn, *rfc[4:]).gaps
    assert (gap.probe, gap.count) == (frames.ROWS, 0)


def test_the_last_part_is_missing(rfc: list[Path]) -> None:
    trace = frames.load(*rfc[:4])
    assert not trace.clean_end
    assert trace.cut == "it goes on in part 4, which is not here"
    assert trace.before is None
    assert not trace.gaps


def test_the_first_parts_are_missing(
    rfc: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    trace = frames.load(*rfc[3:])
    assert trace.before is not None
    with TraceReader(rfc[3]) as reader:
        part = reader.header.part
    assert part is not None
    assert (trace.before.count, trace.before.until) == (part.seq, part.began)
    assert not trace.gaps
    main(["check", *map(str, rfc[3:])])
    out = " ".join(capsys.readouterr().out.split())
    assert f"{part.seq:,} rows of this recording came before" in out
    assert f"and {len(rfc[4:])} more parts: " in out


def followed(path: Path) -> Result:
    """Return what a live view says of it in the end."""
    fd = os.open(path, os.O_RDONLY)
    try:
        follower = Follower(fd, path)
        live = Live(follower.header, str(path))
        for batch in follower.new():
            for _ in live.feed(batch):
                pass
    finally:
        os.close(fd)
    assert live.events == follower.events
    return live.result()


def test_a_part_alone_is_followed_as_it_is_checked(rfc: list[Path]) -> None:
    """What came before is missing, for the one as for the other."""
    withheld = 0
    for path in (GOLDEN / "cdm-6.1-rfc.arrows", *rfc):
        live, whole = followed(path), check(frames.load(path))
        for one, other in zip(live.rules, whole.rules, strict=True):
            assert (one.verdict, one.why) == (other.verdict, other.why)
            withheld += "came before" in (one.why or "")
        assert [(f.seq, f.start, f.end, f.count) for f in live.findings] == [
            (f.seq, f.start, f.end, f.count) for f in whole.findings
        ]
    assert withheld


def same(one: Result, other: Result) -> bool:
    """Whether each finding of one is a finding of the other."""
    return all(
        any(
            (f.rule.id, f.mm.id) == (g.rule.id, g.mm.id)
            and f.start < max(g.end, 1)
            and g.start < max(f.end, 1)
            for g in other.findings
        )
        for f in one.findings
    )


@pytest.mark.parametrize("name", ["cdm-6.1-rfc", "cdm-6.1-none", "foreign-6.1-rfc"])
def test_no_choice_of_parts_has_a_finding_that_all_have_not(
    name: str, tmp_path: Path
) -> None:
    alone = check(frames.load(GOLDEN / f"{name}.arrows"))
    files = split(name, tmp_path, 20 << 10)
    some = 0
    choices = [files[a:b] for a, b in itertools.combinations(range(len(files) + 1), 2)]
    choices += [[*files[:n], *files[n + 1 :]] for n in range(1, len(files) - 1)]
    choices += [files[::2], files[1::2]]
    random.Random(23).shuffle(choices)
    for choice in choices[:20]:
        result = check(frames.load(*choice))
        assert same(result, alone), [path.name for path in choice]
        some += len(result.findings)
    assert bool(some) == (name != "cdm-6.1-none")


def test_other_recordings_are_judged_apart(
    rfc: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = split("cdm-6.1-none", tmp_path)
    single = GOLDEN / "cdm-6.1-none.arrows"
    given = [other[1], single, *rfc[::-1], other[0], single]
    assert recordings(given) == [other[:2], [single], rfc, [single]]
    assert main(["check", *map(str, (*rfc, single))]) == 1
    out = capsys.readouterr().out
    assert f"{rfc[0]} and {len(rfc) - 1} more parts: " in " ".join(out.split())
    for verb in ("report", "explain"):
        words = [verb, str(rfc[0]), str(other[0])]
        assert main([*words, *(["0"] if verb == "explain" else [])]) == 2
        assert "are not parts of one recording" in capsys.readouterr().err


def test_a_part_is_there_twice(rfc: list[Path], tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    copy.write_bytes(rfc[2].read_bytes())
    with pytest.raises(UsageTrouble, match="are both part 2 of one recording"):
        frames.load(*rfc, copy)


def test_a_finding_of_parts_is_explained(
    rfc: list[Path], whole: Result, capsys: pytest.CaptureFixture[str]
) -> None:
    names = [str(path) for path in rfc]
    id_ = whole.findings[0].fingerprint
    assert main(["explain", *names, id_]) == 0
    assert "The argument:" in capsys.readouterr().out
    assert main(["report", *names]) == 0
    assert main(["info", names[1]]) == 0
    assert "1 of recording " in capsys.readouterr().out


def test_an_empty_part_of_a_recording_that_was_cut(tmp_path: Path) -> None:
    """The disk was full when the part was begun: there is its header alone."""
    writer = PartsWriter(tmp_path / "x", HEADER, size=SIZE)
    writer.write(some_events(200, 2000))
    writer._next(np.empty(0, EVENT_DTYPE))
    writer.close()
    trace = frames.load(*writer.files)
    assert (len(trace.files), trace.count, trace.gaps) == (2, 200, ())
    assert "x.0001: the file ends at byte" in str(trace.cut)


@pytest.mark.parametrize("reason", [frames.BEFORE, "before part 4"])
def test_what_reaches_into_missing_rows_is_kept_back(
    reason: str, whole: Result
) -> None:
    """The more, the longer they are missing; at last, all of it."""
    trace = whole.trace
    started = trace.terms.started
    last = max(event.ts for event in trace.events)
    middle = whole.findings[len(whole.findings) // 2].witness[0].ts
    held = []
    for until in (started, middle, last):
        gap = frames.Gap(
            probe=frames.ROWS, reason=reason, count=1234, since=started, until=until
        )
        there = {"before": gap} if reason == frames.BEFORE else {"gaps": (gap,)}
        result = check(structs.replace(trace, **there))
        held.append(len(whole.findings) - len(result.findings))
        for one, before in zip(result.rules, whole.rules, strict=True):
            why, named = str(one.why), bool(one.rule.probes)
            touched = "withheld" in why or reason != frames.BEFORE
            assert ("1,234" in why) == (named and touched)
            if "withheld" in why and not one.findings:
                assert one.verdict is Verdict.INCONCLUSIVE
            elif reason == frames.BEFORE:
                assert one.verdict is before.verdict
        assert same(result, whole)
    # Of a VMA that nobody has seen to be mapped, all that was before counts.
    assert held[0] < held[1] < held[2] == len(whole.findings)


def test_tasks_that_are_there_and_others() -> None:
    """Also where nothing of /proc may be seen but one's own."""
    assert parts._is_there(os.getpid())
    with subprocess.Popen(["true"]) as process:
        process.wait()
    assert not parts._is_there(process.pid)
    pid = os.fork()
    if not pid:
        status = 99
        try:
            if os.geteuid() == 0:
                os.setresuid(65534, 65534, 65534)
            status = int(not parts._is_there(1))
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
