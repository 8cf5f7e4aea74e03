"""What is written is what is read: whole files, and files refused or cut short."""

from __future__ import annotations

import errno
import json
import os
import stat
import subprocess
import sys
import tempfile
import textwrap
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cdmtrace.caller import user
from cdmtrace.errors import TraceWriteError
from cdmtrace.events import COMM_LEN, EVENT_DTYPE, EventKind
from cdmtrace.format.reader import Loss, TraceReader
from cdmtrace.format.schema import (
    SCHEMA,
    Header,
    Mark,
    ProbeEntry,
    Shortfall,
    batch_crc,
    column_values,
)
from cdmtrace.format.writer import TraceWriter

ROOT = Path(__file__).resolve().parents[2]

HEADER = Header(
    tool="0.1.0",
    kernel_release="6.1.0-cdm",
    kernel_build="#1 SMP",
    machine="x86_64",
    boot_id="00000000-0000-0000-0000-000000000000",
    started=1000,
    utc_offset=1_700_000_000_000_000_000,
    page_size=4096,
    ring_size=1 << 20,
    cdm_nodes=(1,),
    cdm_nodes_from="--cdm-nodes",
    vm_cdm_mask=1 << 63,
    vm_cdm_mask_from="headers",
    probes=(
        ProbeEntry(id=1, name="alloc", symbol="vma_alloc_folio", kind="kprobe"),
        ProbeEntry(id=3, name="vma_policy", symbol=None, kind="kprobe"),
        ProbeEntry(id=8, name="exit_mmap", symbol=None, kind="kprobe", why_not="why"),
    ),
    command=("story", "--pages", "23"),
    filters={"pid": 23},
)


def some_events(count: int, *, seed: int = 23) -> np.ndarray:
    """Return count rows of arbitrary bits, none of them a COMM row."""
    bits = np.random.default_rng(seed).bytes(count * EVENT_DTYPE.itemsize)
    events = np.frombuffer(bits, EVENT_DTYPE).copy()
    events["kind"] = EventKind.ALLOC
    return events


def test_round_trip_in_general(tmp_path: Path) -> None:
    """Every column, every bit, across batches of any size."""
    number = iter(range(10**9))

    batch = st.tuples(
        st.binary(max_size=7 * EVENT_DTYPE.itemsize),
        st.lists(st.none() | st.binary(max_size=9), min_size=7, max_size=7),
        st.booleans(),
    )

    @settings(max_examples=60, deadline=None)
    @given(st.lists(batch, max_size=5))
    def check(batches: list[tuple[bytes, list[bytes | None], bool]]) -> None:
        path = tmp_path / f"{next(number)}.arrows"
        wrote, payloads = [], []
        with TraceWriter(path, HEADER) as writer:
            for bits, seven, with_binary in batches:
                whole = len(bits) // EVENT_DTYPE.itemsize
                rows = np.frombuffer(bits, EVENT_DTYPE, whole).copy()
                rows["kind"][rows["kind"] == EventKind.COMM] = EventKind.MAP
                binary = seven[:whole]
                writer.write(rows, payloads=binary if with_binary else None)
                wrote.append(rows)
                payloads += binary if with_binary else [None] * whole
            writer.end("done")
        with TraceReader(path) as reader:
            table, info = reader.read(), reader.info
        assert (info.torn, info.clean_end, info.end) == (None, True, "done")
        assert info.batches == len(batches) + 1
        assert info.bytes_intact == info.bytes_total == path.stat().st_size
        every = np.concatenate([np.empty(0, EVENT_DTYPE), *wrote])
        assert info.events == len(every) == table.num_rows
        for name in EVENT_DTYPE.names or ():
            assert table[name].to_numpy().tolist() == every[name].tolist()
        assert table["payload"].to_pylist() == payloads
        assert table["seq"].to_pylist() == list(range(1, len(every) + 1))
        if len(every):
            assert (info.first_ts, info.last_ts) == (
                every["ts"].min(),
                every["ts"].max(),
            )
        path.unlink()

    check()


def test_opens_without_cdmtrace(tmp_path: Path) -> None:
    """The contract's one line, in a process that has nothing of ours."""
    path = tmp_path / "t.arrows"
    events = some_events(23)
    with TraceWriter(path, HEADER) as writer:
        writer.write(events)
        writer.end("done")
    code = f"""
        import sys
        import pyarrow
        with open({str(path)!r}, "rb") as f:
            frame = pyarrow.ipc.open_stream(f).read_pandas()
        assert "cdmtrace" not in sys.modules
        assert list(frame.columns) == {SCHEMA.names!r}
        assert frame["start"].tolist() == {events["start"].tolist()!r}
        assert str(frame["start"].dtype) == "uint64"
    """
    subprocess.run(
        [sys.executable, "-I", "-c", textwrap.dedent(code)], check=True, cwd=tmp_path
    )


def test_does_without_pandas(tmp_path: Path) -> None:
    """pyarrow imports it, if it is there, in places where one does not expect it."""
    code = f"""
        import sys
        import numpy as np
        from cdmtrace import ring
        from cdmtrace.events import EVENT_DTYPE
        from cdmtrace.format.reader import TraceReader
        from cdmtrace.format.schema import Header
        from cdmtrace.format.writer import TraceWriter
        header = Header.from_json({HEADER.to_json()!r})
        with TraceWriter({str(tmp_path / "t")!r}, header) as writer:
            writer.write(np.zeros(23, EVENT_DTYPE))
            writer.write(np.zeros(2, EVENT_DTYPE), payloads=[b"x", None])
            writer.end("done")
        with TraceReader({str(tmp_path / "t")!r}) as reader:
            assert reader.read().num_rows == 25
            assert reader.info.clean_end
        found = {{"pandas", "click", "bcc", "pyarrow.compute"}} & set(sys.modules)
        assert not found, found
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=True, cwd=ROOT)


def test_header_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "t.arrows"
    TraceWriter(path, HEADER).end("done")
    with TraceReader(path) as reader:
        assert reader.header == HEADER


def test_header_keeps_what_it_does_not_know() -> None:
    data = {**HEADER.to_json(), "moon": {"phase": 23}}
    header = Header.from_json(data)
    assert header.extra == {"moon": {"phase": 23}}
    assert header.to_json() == data


def test_header_names_the_bits_of_vm_flags() -> None:
    names = {0: "VM_READ", 63: "VM_CDM"}
    header = replace(HEADER, vm_flags=names, vm_flags_from="headers")
    data = json.loads(json.dumps(header.to_json()))
    bits = {"0": "VM_READ", "63": "VM_CDM"}
    assert data["vm_flags"] == {"bits": bits, "from": "headers"}
    assert Header.from_json(data) == header
    assert header.extra == {}
    # A recording of an older tool has none.
    assert "vm_flags" not in HEADER.to_json()
    assert Header.from_json(HEADER.to_json()).vm_flags == {}


def test_header_is_json_that_any_language_reads() -> None:
    """A mask beyond 2**53 would lose bits as a number."""
    text = json.dumps(HEADER.to_json())
    assert json.loads(text, parse_int=float)["vm_cdm"]["mask"] == "0x8000000000000000"
    assert json.loads(text)["enums"]["lock"]["write_self"] == 3


@pytest.mark.parametrize("key", sorted(HEADER.to_json()))
def test_header_misses_a_key(key: str) -> None:
    data = HEADER.to_json()
    del data[key]
    with pytest.raises(ValueError, match=f"^{key} is missing$"):
        Header.from_json(data)


@pytest.mark.parametrize("key", sorted(HEADER.to_json()))
def test_header_has_a_wrong_type(key: str) -> None:
    with pytest.raises(ValueError, match=f"^{key} is True$"):
        Header.from_json({**HEADER.to_json(), key: True})


def test_mark_round_trip() -> None:
    mark = Mark(
        batch=7,
        rows=0,
        first_ts=None,
        last_ts=None,
        last_seq=23,
        window=(5, 6),
        lost=(
            Shortfall(
                probe="alloc", reason="ring", count=437, mm=7, start=4096, end=1 << 63
            ),
            missing("alloc", "ring", 15000),
        ),
        end="done",
        totals={"alloc": {"ring": 15439}},
    )
    assert Mark.from_json(mark.to_json()) == mark


def missing(probe: str, reason: str, count: int) -> Shortfall:
    return Shortfall(probe=probe, reason=reason, count=count)


def test_losses_are_placed_in_time(tmp_path: Path) -> None:
    """Also where nothing else got through: a batch without rows."""
    path = tmp_path / "t.arrows"
    none = some_events(0)
    with TraceWriter(path, HEADER) as writer:
        writer.write(some_events(3), window=(2000, 2001))
        writer.write(none, lost=[missing("alloc", "ring", 5)], window=(3000, 3001))
        writer.write(none, lost=[missing("alloc", "ring", 7)], window=(4000, 4001))
        writer.write(some_events(2))
        writer.end(
            "done", lost=[missing("sys_mbind", "unpaired", 2)], window=(5000, 5001)
        )
    with TraceReader(path) as reader:
        info = reader.info
    assert info.losses == (
        Loss(probe="alloc", reason="ring", count=5, since=2000, until=3001, batch=1),
        Loss(probe="alloc", reason="ring", count=7, since=3000, until=4001, batch=2),
        # Noticed late: it may have been lost at any time before.
        Loss(
            probe="sys_mbind",
            reason="unpaired",
            count=2,
            since=HEADER.started,
            until=5001,
            batch=4,
        ),
    )
    assert info.lost == {"alloc": {"ring": 12}, "sys_mbind": {"unpaired": 2}}


def test_totals_are_on_the_last_batch(tmp_path: Path) -> None:
    path = tmp_path / "t.arrows"
    with TraceWriter(path, HEADER) as writer:
        writer.write(some_events(3), lost=[missing("alloc", "ring", 5)], window=(1, 2))
        writer.end(
            "Ctrl-C",
            lost=[missing("alloc", "ring", 2), missing("alloc", "map", 1)],
            window=(3, 4),
        )
    stream = pa.ipc.open_stream(path.read_bytes())
    marks = [json.loads(x.custom_metadata[b"cdmtrace"]) for x in batches_of(stream)]
    assert "end" not in marks[0]
    assert marks[-1]["end"] == "Ctrl-C"
    assert marks[-1]["totals"] == {
        "events": 3,
        "batches": 2,
        "lost": {"alloc": {"ring": 7, "map": 1}},
    }


def batches_of(stream: pa.RecordBatchStreamReader) -> list[pa.RecordBatchWithMetadata]:
    found = []
    while True:
        try:
            found.append(stream.read_next_batch_with_custom_metadata())
        except StopIteration:
            return found


def test_a_loss_is_placed_in_an_address_space(tmp_path: Path) -> None:
    path = tmp_path / "t.arrows"
    here = Shortfall(
        probe="alloc", reason="ring", count=5, mm=(1 << 64) - 1, start=4096, end=8192
    )
    with TraceWriter(path, HEADER) as writer:
        writer.write(
            some_events(3), lost=[here, missing("alloc", "ring", 2)], window=(1, 2)
        )
        writer.end("done")
    with TraceReader(path) as reader:
        found, rest = reader.info.losses
    assert (found.mm, found.start, found.end, found.count) == (here.mm, 4096, 8192, 5)
    assert (rest.mm, rest.start, rest.end, rest.count) == (0, 0, 1 << 64, 2)
    stream = pa.ipc.open_stream(path.read_bytes())
    mark = json.loads(batches_of(stream)[0].custom_metadata[b"cdmtrace"])
    assert mark["lost"] == {"alloc": {"ring": 7}}


@pytest.mark.parametrize(
    "places",
    [
        {},
        [[]],
        [["alloc", "ring", 8, 1, 0, 1]],
        [["alloc", "ring", 5, 1, 0, 1], ["alloc", "ring", 3, 2, 0, 1]],
        [["alloc", "map", 1, 1, 0, 1]],
        [["zap", "ring", 1, 1, 0, 1]],
        [["alloc", "ring", 0, 1, 0, 1]],
        [["alloc", "ring", -1, 1, 0, 1]],
        [["alloc", "ring", 1, "1", 0, 1]],
        [[5, "ring", 1, 1, 0, 1]],
    ],
)
def test_places_of_more_than_was_lost(places: object) -> None:
    data = Mark(batch=0, rows=0, first_ts=None, last_ts=None, last_seq=0).to_json()
    data |= {"lost": {"alloc": {"ring": 7}}, "lost_in": places}
    with pytest.raises(ValueError, match=r"lost_in|list of (int|str)"):
        Mark.from_json(data)


def test_names_of_tasks_go_to_the_payload(tmp_path: Path) -> None:
    path = tmp_path / "t.arrows"
    events = some_events(3)
    events["kind"][1] = EventKind.COMM
    comm = np.frombuffer(b"story".ljust(COMM_LEN, b"\0"), "=u8")
    events["nodes"][1], events["other"][1] = comm
    before = events.copy()
    with TraceWriter(path, HEADER) as writer:
        writer.write(events)
        writer.end("done")
    assert events.tobytes() == before.tobytes(), "the caller's rows were changed"
    with TraceReader(path) as reader:
        table = reader.read()
    assert table["payload"].to_pylist() == [None, b"story", None]
    assert table["nodes"].to_pylist() == [events["nodes"][0], 0, events["nodes"][2]]
    assert table["other"].to_pylist() == [events["other"][0], 0, events["other"][2]]


def test_a_payload_that_is_given_stays(tmp_path: Path) -> None:
    path = tmp_path / "t.arrows"
    events = some_events(1)
    events["kind"] = EventKind.COMM
    with TraceWriter(path, HEADER) as writer:
        writer.write(events, payloads=[b"from /proc"])
        writer.end("done")
    with TraceReader(path) as reader:
        assert reader.read()["payload"].to_pylist() == [b"from /proc"]


def test_times_that_are_out_of_order(tmp_path: Path) -> None:
    """Two CPUs may take their times and their places in the ring crosswise."""
    path = tmp_path / "t.arrows"
    events = some_events(4)
    events["ts"] = [7, 5, 9, 8]
    with TraceWriter(path, HEADER) as writer:
        writer.write(events)
        writer.end("done")
    with TraceReader(path) as reader:
        mark = next(iter(reader)).mark
        assert (mark.first_ts, mark.last_ts) == (5, 9)
        assert reader.read()["ts"].to_pylist() == [7, 5, 9, 8]


def batch_of(payloads: list[bytes | None], seq: list[int]) -> pa.RecordBatch:
    """A batch of zeros but for these two columns."""
    zeros = [
        pa.array(np.zeros(len(seq), EVENT_DTYPE[name]))
        for name in EVENT_DTYPE.names or ()
    ]
    columns = [*zeros, pa.array(payloads, pa.binary()), pa.array(seq, pa.uint64())]
    return pa.record_batch(columns, schema=SCHEMA)


@pytest.mark.parametrize(
    ("text", "payloads", "seq"),
    [
        (b"other", [b"ab", b"c", None], [1, 2, 3]),
        (b"text", [b"ab", b"d", None], [1, 2, 3]),
        (b"text", [b"a", b"bc", None], [1, 2, 3]),
        (b"text", [b"ab", b"c", b""], [1, 2, 3]),
        (b"text", [b"ab", b"c", None], [1, 2, 4]),
        (b"text", [b"ab", b"c"], [1, 2]),
    ],
    ids=["text", "bytes", "lengths", "nulls", "values", "rows"],
)
def test_checksum_covers(
    text: bytes, payloads: list[bytes | None], seq: list[int]
) -> None:
    whole = batch_crc(b"text", batch_of([b"ab", b"c", None], [1, 2, 3]))
    assert batch_crc(text, batch_of(payloads, seq)) != whole


def test_checksum_is_the_same_for_a_part_of_a_batch() -> None:
    """Where the values lie in memory, and after what, must not matter."""
    part = batch_of([b"xyz", None, b"ab", b"c", None], [8, 9, 1, 2, 3]).slice(2)
    alone = batch_of([b"ab", b"c", None], [1, 2, 3])
    assert batch_crc(b"text", part) == batch_crc(b"text", alone)


def test_nulls_where_none_may_be() -> None:
    with pytest.raises(ValueError, match="1 nulls in a column that has none"):
        column_values(pa.array([1, None], pa.uint64()))


def test_losses_need_a_window(tmp_path: Path) -> None:
    with (
        TraceWriter(tmp_path / "t", HEADER) as writer,
        pytest.raises(ValueError, match="losses need the window"),
    ):
        writer.write(some_events(0), lost=[missing("alloc", "ring", 1)])


def test_payloads_of_another_length(tmp_path: Path) -> None:
    with (
        TraceWriter(tmp_path / "t", HEADER) as writer,
        pytest.raises(ValueError, match="2 payloads for 3 rows"),
    ):
        writer.write(some_events(3), payloads=[None, None])


def test_write_after_the_end(tmp_path: Path) -> None:
    writer = TraceWriter(tmp_path / "t", HEADER)
    writer.end("done")
    with pytest.raises(ValueError, match="the trace file is closed"):
        writer.write(some_events(1))


def test_one_write_for_each_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kill between two writes must not cut a batch."""
    calls: list[int] = []
    write = os.write

    def counted(fd: int, data: memoryview) -> int:
        calls.append(len(data))
        return write(fd, data)

    monkeypatch.setattr(os, "write", counted)
    with TraceWriter(tmp_path / "t", HEADER) as writer:
        writer.write(some_events(10007))
        writer.write(some_events(23), payloads=[b"x"] * 23)
        writer.end("done")
    assert len(calls) == 4
    assert sum(calls) == (tmp_path / "t").stat().st_size


def test_mode_is_private(tmp_path: Path) -> None:
    old = os.umask(0)
    try:
        TraceWriter(tmp_path / "t", HEADER).close()
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / "t").stat().st_mode) == 0o600


@pytest.mark.parametrize("force", [False, True])
def test_owner(force: bool) -> None:
    uid, gid = (65534, 65534) if os.getuid() == 0 else (os.getuid(), os.getgid())
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "t"
        os.chown(name, uid, gid)
        for _ in range(1 + force):
            TraceWriter(path, HEADER, force=force, owner=user(uid, gid)).close()
        status = path.stat()
        assert (status.st_uid, status.st_gid) == (uid, gid)
        assert [one.name for one in path.parent.iterdir()] == ["t"]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root is somebody else than it is")
@pytest.mark.parametrize("force", [False, True])
def test_an_owner_gets_no_file_where_only_root_may_write(
    tmp_path: Path, force: bool
) -> None:
    """Not even by a symbolic link on the way there, which root would follow."""
    tmp_path.chmod(0o755)
    with tempfile.TemporaryDirectory() as name:
        os.chown(name, 65534, 65534)
        link = Path(name) / "link"
        link.symlink_to(tmp_path)
        (tmp_path / "there").write_text("precious")
        for path in (tmp_path / "new", link / "new", *[link / "there"] * force):
            with pytest.raises(TraceWriteError, match="Permission denied"):
                TraceWriter(path, HEADER, force=force, owner=user(65534, 65534))
    assert [one.name for one in tmp_path.iterdir()] == ["there"]
    assert (tmp_path / "there").read_text() == "precious"
    assert os.geteuid() == 0


def refused(path: Path, message: str, hint: str, *, force: bool = False) -> None:
    """Refuse path with that message and hint, and leave the directory as it was."""
    before = sorted(path.parent.iterdir()) if path.parent.is_dir() else None
    with pytest.raises(TraceWriteError) as caught:
        TraceWriter(path, HEADER, force=force)
    assert caught.value.message == f"{path}: {message}"
    assert caught.value.hint is not None
    assert hint in caught.value.hint
    if before is not None:
        assert sorted(path.parent.iterdir()) == before


def test_refuses_a_file_that_exists(tmp_path: Path) -> None:
    path = tmp_path / "t"
    path.write_bytes(b"precious")
    refused(path, "exists already", "-f")
    assert path.read_bytes() == b"precious"


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize("dangling", [False, True])
def test_refuses_a_symlink(tmp_path: Path, force: bool, dangling: bool) -> None:
    path, target = tmp_path / "t", tmp_path / "target"
    if not dangling:
        target.write_bytes(b"precious")
    path.symlink_to(target)
    done = "replaced" if force else "followed"
    refused(path, f"is a symbolic link and will not be {done}", "-o FILE", force=force)
    assert target.exists() is not dangling
    assert dangling or target.read_bytes() == b"precious"


def test_force_refuses_a_directory(tmp_path: Path) -> None:
    path = tmp_path / "t"
    path.mkdir()
    refused(path, "is no regular file and will not be replaced", "-o", force=True)


def test_force_refuses_a_pipe(tmp_path: Path) -> None:
    """As it must /dev/null, which no test as root should put at risk."""
    path = tmp_path / "t"
    os.mkfifo(path)
    refused(path, "is no regular file and will not be replaced", "-o", force=True)
    assert path.is_fifo()


def test_directory_is_missing(tmp_path: Path) -> None:
    path = tmp_path / "no" / "t"
    refused(
        path, "cannot create it: No such file or directory", "make the directory first"
    )


def test_force_replaces_and_does_not_overwrite(tmp_path: Path) -> None:
    path, other = tmp_path / "t", tmp_path / "other"
    path.write_bytes(b"precious")
    other.hardlink_to(path)
    TraceWriter(path, HEADER, force=True).end("done")
    assert other.read_bytes() == b"precious"
    with TraceReader(path) as reader:
        assert reader.info.clean_end
    assert sorted(x.name for x in tmp_path.iterdir()) == ["other", "t"]


def test_force_where_nothing_is(tmp_path: Path) -> None:
    TraceWriter(tmp_path / "t", HEADER, force=True).end("done")
    assert [x.name for x in tmp_path.iterdir()] == ["t"]


def test_force_keeps_the_old_file_if_the_header_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "t"
    path.write_bytes(b"precious")

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "write", full)
    refused(path, "cannot write it: No space left on device", "make room", force=True)
    assert path.read_bytes() == b"precious"


def full_disk_program(path: Path, limit: int) -> str:
    """Write batches of 100 rows until it fails, twice; print what was seen."""
    return f"""
        import resource, sys
        sys.path.insert(0, {str(Path(__file__).parent)!r})
        from test_format_write import HEADER, some_events
        from cdmtrace.errors import TraceWriteError
        from cdmtrace.format.writer import TraceWriter
        writer = TraceWriter({str(path)!r}, HEADER)
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        if {limit}:
            resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, hard))
        batches = 0
        try:
            while True:
                writer.write(some_events(100, seed=batches))
                batches += 1
        except TraceWriteError as error:
            print(batches, writer.size, error.message, error.hint, sep="|")
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        if {limit}:
            writer.write(some_events(100, seed=batches))
            writer.end("later")
    """


def run_full(path: Path, limit: int) -> list[str]:
    code = textwrap.dedent(full_disk_program(path, limit))
    done = subprocess.run(
        [sys.executable, "-c", code],
        check=True,
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    return done.stdout.strip().split("|")


def test_file_size_limit(tmp_path: Path) -> None:
    """The batch that did not fit leaves no trace, and may be tried again."""
    path = tmp_path / "t.arrows"
    batches, size, message, hint = run_full(path, 100_003)
    assert message == f"{path}: cannot write it: File too large"
    assert "ulimit -f" in hint
    assert 0 < int(size) < 100_003
    with TraceReader(path) as reader:
        info, table = reader.info, reader.read()
    assert info.events == 100 * (int(batches) + 1)
    assert (info.torn, info.end) == (None, "later")
    want = [some_events(100, seed=n)["addr"] for n in range(int(batches) + 1)]
    assert table["addr"].to_numpy().tolist() == np.concatenate(want).tolist()


def test_disk_is_full(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("a small file system to fill needs root to mount it")
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=128k", "cdmtrace-test", disk]
    if subprocess.run(mount, check=False, capture_output=True).returncode != 0:
        pytest.skip("mounting a tmpfs is not permitted here")
    try:
        path = disk / "t.arrows"
        batches, size, message, hint = run_full(path, 0)
        assert message == f"{path}: cannot write it: No space left on device"
        assert "make room there" in hint
        assert path.stat().st_size == int(size)
        with TraceReader(path) as reader:
            info = reader.info
        assert info.events == 100 * int(batches) > 0
        assert info.bytes_intact == info.bytes_total
        assert info.torn is not None
    finally:
        subprocess.run(["umount", disk], check=True)


def test_killed_while_writing(tmp_path: Path) -> None:
    """kill -9 at any moment leaves whole batches, and the reader says so."""
    path = tmp_path / "t.arrows"
    code = f"""
        import sys
        sys.path.insert(0, {str(Path(__file__).parent)!r})
        from test_format_write import HEADER, some_events
        from cdmtrace.format.writer import TraceWriter
        writer = TraceWriter({str(path)!r}, HEADER)
        events = some_events(1009)
        print("ready", flush=True)
        while True:
            writer.write(events)
    """
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)], stdout=subprocess.PIPE, cwd=ROOT
    ) as child:
        assert child.stdout is not None
        child.stdout.readline()
        while path.stat().st_size < 1 << 20:
            assert child.poll() is None
        child.kill()
    with TraceReader(path) as reader:
        info = reader.info
    assert info.events == 1009 * info.batches > 0
    assert not info.clean_end
    assert info.torn is not None
