"""Damaged and made-up files: an error for a person or a result, and nothing else.

``make fuzz`` reads a million of them. Here are some of each kind, and what is too slow
or too odd to be drawn by lot.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import types
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mutations import (
    GOLDEN,
    MADE_UP,
    RAW,
    bases,
    damaged,
    message,
    messages,
    recorded,
    wild_events,
    write,
)

from cdmtrace.analysis import frames, sanity
from cdmtrace.cli import main
from cdmtrace.errors import CdmtraceError, TraceFileError
from cdmtrace.events import EventKind
from cdmtrace.format import reader as reading
from cdmtrace.format.reader import TraceReader
from cdmtrace.format.schema import SCHEMA, Mark, decode, encode, shown

ROOT = Path(__file__).parent.parent.parent
sys.path.append(str(ROOT / "scripts"))

import fuzz  # noqa: E402


@pytest.mark.parametrize("way", [*RAW, *MADE_UP], ids=lambda way: way.__name__)
def test_some_of_each_kind(way: object, tmp_path: Path) -> None:
    rng = random.Random(23)
    path = tmp_path / "x.arrows"
    outcomes = set()
    for _ in range(12):
        path.write_bytes(way(rng, rng.choice(bases())))
        outcomes.add(fuzz.read(path))
    assert outcomes


@pytest.mark.parametrize("name", ["cdm-6.1-rfc", "foreign-6.1-rfc"])
def test_real_recordings_are_cut_and_flipped(name: str, tmp_path: Path) -> None:
    """Whatever is read of one is what was written."""
    data = (GOLDEN / f"{name}.arrows").read_bytes()
    with TraceReader(GOLDEN / f"{name}.arrows") as reader:
        real = reader.read()
    path, rng = tmp_path / "x.arrows", random.Random(name)
    for number in range(60):
        at = rng.randrange(len(data))
        bad = data[:at]
        if number % 2:
            bad += bytes([data[at] ^ 1 << rng.randrange(8)]) + data[at + 1 :]
        path.write_bytes(bad)
        try:
            with TraceReader(path) as reader:
                table = reader.read()
                torn = reader.info.torn
        except CdmtraceError:
            # The header is some six per cent of it.
            assert at < len(data) / 10
            continue
        assert table.equals(real.slice(0, table.num_rows))
        assert torn or table.num_rows == real.num_rows


def test_what_ends_the_process_is_caught_and_kept(tmp_path: Path) -> None:
    """The long run can fail: of a hang, a crash, an exception, and too much memory."""
    code = f"""
        import os, sys, time
        sys.path[:0] = [{str(ROOT)!r} + end for end in ("", "/tests", "/scripts")]
        import fuzz
        from pathlib import Path
        fuzz.SECONDS = 4
        count = 0
        def read(path, *, judged):
            global count
            count += 1
            if os.environ["BAD"] == str(count):
                {{"hang": lambda: time.sleep(99), "crash": os.abort,
                 "raise": lambda: 1 / 0, "eat": lambda: bytearray(4 << 30),
                 "grow": lambda: b"x" * (300 << 20)}}[os.environ["HOW"]]()
            return "whole"
        fuzz.read = read
        keep = Path({str(tmp_path)!r}, os.environ["HOW"])
        keep.mkdir()
        progress = keep / ".progress"
        progress.write_bytes(bytes(4))
        fuzz.work(1, 0, 4, keep, progress)
    """
    lines = "\n".join(line[8:] for line in code.splitlines())
    for how in ("hang", "crash", "raise", "eat", "grow"):
        done = subprocess.run(
            [sys.executable, "-c", lines],
            env={**os.environ, "BAD": "3", "HOW": how},
            check=False,
            capture_output=True,
        )
        told = (tmp_path / how / ".progress").read_bytes()
        outcomes = [
            fuzz.OUTCOMES[(code - 1) % len(fuzz.OUTCOMES)] for code in told if code
        ]
        if how in ("hang", "crash"):
            assert done.returncode < 0
            assert outcomes == ["whole", "whole", "ended"]
        else:
            assert done.returncode == 0, done.stderr
            assert outcomes == ["whole", "whole", "raised", "whole"]
            assert (tmp_path / how / "2.arrows").read_bytes() == damaged(1, 2)[1]


# --- what is no file, and files that change -------------------------------------


@pytest.mark.parametrize("verb", ["check", "info", "report"])
@pytest.mark.parametrize(
    "path", ["/dev/zero", "/dev/null", "/", "/proc/self/mem", "/proc/kcore"]
)
def test_what_is_no_file(
    verb: str, path: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([verb, path]) == 2
    assert "Traceback" not in capsys.readouterr().err


def test_a_pipe_and_a_link_that_lead_nowhere(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "link").symlink_to(GOLDEN / "cdm-6.1-none.arrows")
    for name, status in (("pipe", 2), ("loop", 2), ("link", 0)):
        assert main(["info", str(tmp_path / name)]) == status
    assert "Traceback" not in capsys.readouterr().err


def test_a_file_that_is_cut_while_it_is_read(tmp_path: Path) -> None:
    """If it were mapped, this would be the end of the process."""
    path = tmp_path / "x.arrows"
    path.write_bytes((GOLDEN / "cdm-6.1-rfc.arrows").read_bytes())
    with TraceReader(path) as reader:
        batches = iter(reader)
        next(batches)
        os.truncate(path, 30_000)
        list(batches)
        assert "the file is shorter than it was" in str(reader.info.torn)


def test_a_file_that_changes_while_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the time when a message is measured and that when it is read."""
    path = tmp_path / "x.arrows"
    path.write_bytes(bases()[0])
    one = messages(bases()[0])[1]
    real = reading.frame_at

    def measure(read: object, size: int, start: int) -> object:
        frame = real(read, size, start)
        if start == one.start:
            with path.open("r+b") as file:
                file.seek(one.start + 4)
                file.write(b"\x08\0\0\0")
        return frame

    monkeypatch.setattr(reading, "frame_at", measure)
    with TraceReader(path) as reader:
        assert list(reader) == []
        assert "batch 0" in str(reader.info.torn)


def test_a_disk_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.arrows"
    path.write_bytes(bases()[0])
    with TraceReader(path) as reader:

        def fail(*_: object) -> int:
            raise OSError(5, "Input/output error")

        monkeypatch.setattr(os, "preadv", fail)
        assert list(reader) == []
        assert "it cannot be read: Input/output error" in str(reader.info.torn)


def test_a_file_with_a_hole_of_any_size(tmp_path: Path) -> None:
    """What a length claims is in the file, and yet nobody has written it."""
    path = tmp_path / "x.arrows"
    data = bytearray(bases()[0])
    one = messages(bytes(data))[1]
    length = (one.end - one.body).to_bytes(8, "little")
    at = data.index(length, one.start, one.body)
    data[at : at + 8] = (1 << 40).to_bytes(8, "little")
    path.write_bytes(data)
    os.truncate(path, 1 << 41)
    with TraceReader(path) as reader:
        assert list(reader) == []
        assert "a body of 1099511627776 bytes is damage" in str(reader.info.torn)


# --- JSON -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        b'{"a":' * 100_000,
        b"[" * 100_000,
        b'{"n":' + b"9" * 5000 + b"}",
        "{}".encode("utf-16"),
        b"\xff",
        b"[]",
    ],
)
def test_json_that_cannot_be_ours(text: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011
        decode(text)


def test_what_is_no_text_is_shown_as_a_question_mark() -> None:
    """A command's words can be any bytes, and are written as Python has them."""
    words = {"command": ["sh", os.fsdecode(b"a\xff"), "\U0001f600"]}
    assert decode(encode(words)) == {"command": ["sh", "a?", "\U0001f600"]}
    assert shown("a\x1b[2Jb\n" + "c" * 300) == "a?[2Jb?" + "c" * 193 + " …"


def with_header(change: dict[str, object]) -> bytes:
    """Return a file whose header says something else, with a right checksum."""
    header = {**recorded()[0].to_json(), **change}
    text = encode(header)
    metadata = {
        reading.HEADER_KEY: text,
        reading.CRC_KEY: b"%08x" % reading.zlib.crc32(text),
    }
    return SCHEMA.with_metadata(metadata).serialize().to_pybytes()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"page_size": 0}, "page_size is 0"),
        ({"page_size": 4097}, "page_size is 4097, no power of two"),
        ({"page_size": 1 << 40}, "page_size is"),
        ({"page_size": 10**100}, "page_size is a number of more than 64 bits"),
        ({"cdm_nodes": {"nodes": [-1], "from": ""}}, "no list of nodes"),
        ({"cdm_nodes": {"nodes": [1, 1], "from": ""}}, "no list of nodes"),
        ({"cdm_nodes": {"nodes": [10**9], "from": ""}}, "no list of nodes"),
        ({"vm_cdm": {"mask": f"{1 << 64:x}", "from": ""}}, "vm_cdm's mask is '1000"),
        ({"vm_cdm": {"mask": "f" * 99, "from": ""}}, "vm_cdm's mask is"),
        ({"vm_cdm": {"mask": "-1", "from": ""}}, "vm_cdm's mask is '-1'"),
        ({"vm_cdm_taken_by": []}, "vm_cdm_taken_by is a list"),
        ({"vm_flags": []}, "vm_flags is a list"),
        ({"vm_flags": {"from": ""}}, "bits is missing"),
        ({"vm_flags": {"bits": {}}}, "from is missing"),
        ({"vm_flags": {"bits": {"64": "x"}, "from": ""}}, "what is no bit of it"),
        ({"vm_flags": {"bits": {"01": "x"}, "from": ""}}, "what is no bit of it"),
        ({"vm_flags": {"bits": {"x" * 999: "x"}, "from": ""}}, "no bit of it"),
        ({"vm_flags": {"bits": {"1": 1}, "from": ""}}, "1 in a list of str"),
        ({"part": {}}, "recording is missing"),
        ({"part": []}, "part is a list"),
        ({"probes": [[]]}, "a list in a list of dict"),
        ({"tool": "x" * 10**6, "ring_size": "y" * 10**6}, "ring_size is"),
    ],
)
def test_absurd_headers(change: dict[str, object], says: str, tmp_path: Path) -> None:
    path = tmp_path / "x.arrows"
    path.write_bytes(with_header(change))
    with pytest.raises(CdmtraceError) as caught:
        TraceReader(path)
    assert says in caught.value.message
    assert len(caught.value.message) < 600


def test_absurd_marks(tmp_path: Path) -> None:
    """A count with more digits than Python prints must not come as far as that."""
    path = tmp_path / "x.arrows"
    data = bases()[0]
    one = messages(data)[1]
    empty = pa.record_batch([pa.nulls(0, f.type) for f in SCHEMA], schema=SCHEMA)
    mark = Mark(batch=0, rows=0, first_ts=None, last_ts=None, last_seq=0).to_json()
    mark["window"] = [1, 2]
    for count in (-1, 1 << 63, 10**4000):
        text = json.dumps({**mark, "lost": {"alloc": {"ring": count}}}).encode()
        path.write_bytes(data[: one.start] + message(empty, text))
        with TraceReader(path) as reader:
            assert list(reader) == []
            assert "ring is" in str(reader.info.torn)


def test_rows_that_are_not_numbered_one_by_one(tmp_path: Path) -> None:
    """The first and the last one alone would do."""
    path = tmp_path / "x.arrows"
    data = bases()[0]
    one = messages(data)[1]
    stream = SCHEMA.serialize().to_pybytes() + data[one.start : one.end]
    batch, metadata = pa.ipc.open_stream(stream).read_next_batch_with_custom_metadata()
    seq = batch.column("seq").to_pylist()
    seq[1] = seq[2]
    columns = [*batch.columns[:-1], pa.array(seq, pa.uint64())]
    batch = pa.record_batch(columns, schema=SCHEMA)
    path.write_bytes(data[: one.start] + message(batch, metadata[reading.HEADER_KEY]))
    with TraceReader(path) as reader:
        assert list(reader) == []
        assert "its rows do not follow" in str(reader.info.torn)


# --- rows -----------------------------------------------------------------------


def judged(tmp_path: Path, **columns: object) -> CdmtraceError | None:
    """Check a file of one row of a page; return the error, if any."""
    events, _ = wild_events(random.Random(1), 1)
    events["start"], events["end"] = 0x1000, 0x100000
    events["addr"], events["size"], events["other"] = 0x2000, 0x1000, 0
    payload = columns.pop("payload", None)
    for name, value in columns.items():
        events[name] = value
    path = tmp_path / "x.arrows"
    path.write_bytes(write(recorded()[0], [(events, [payload])]))
    try:
        frames.load(path)
    except CdmtraceError as error:
        return error
    return None


@pytest.mark.parametrize(
    ("addr", "size"),
    [
        (0x2000, 0),
        (0x2000, 0x800),
        (0x2100, 0x1000),
        (0x2000, 1 << 22),
        (0x2000, 1 << 21),
        (1 << 63, 1 << 63),
        ((1 << 64) - 0x1000, 0x2000),
    ],
)
@pytest.mark.parametrize("kind", [EventKind.MAP, EventKind.MIGRATE, EventKind.UNMAP])
def test_no_page_is_like_that(
    kind: EventKind, addr: int, size: int, tmp_path: Path
) -> None:
    error = judged(tmp_path, kind=kind, addr=addr, size=size)
    assert error is not None
    assert "row 1 is about a page of" in error.message


@pytest.mark.parametrize(
    ("addr", "size"), [(0x2000, 0x1000), (1 << 21, 1 << 21), (0x4000, 0x4000)]
)
def test_pages_are_like_that(addr: int, size: int, tmp_path: Path) -> None:
    assert judged(tmp_path, kind=EventKind.MAP, addr=addr, size=size) is None


@pytest.mark.parametrize(
    ("pairs", "says"),
    [
        ([0x2000, 0x1000], ""),
        ([0x2000], "half a range"),
        ([0x2001, 0x1000], "outside of their VMA"),
        ([0x2000, 0x1001], "outside of their VMA"),
        ([0x0, 0x1000], "outside of their VMA"),
        ([0xFF000, 0x2000], "outside of their VMA"),
        ([0x2000, (1 << 64) - 0x1000], "outside of their VMA"),
    ],
)
def test_pages_from_before(pairs: list[int], says: str, tmp_path: Path) -> None:
    payload = np.array(pairs, np.uint64).tobytes()
    error = judged(tmp_path, kind=EventKind.SNAP_RANGES, payload=payload)
    assert says in error.message if error else not says


def test_more_pages_than_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A row of 200 bytes may say that a terabyte was there."""
    payload = np.array([0, 1 << 40], np.uint64).tobytes()
    row = {"kind": EventKind.SNAP_RANGES, "start": 0, "end": 1 << 47}
    monkeypatch.setattr(sanity, "_available", lambda: 1 << 30)
    error = judged(tmp_path, payload=payload, **row)
    assert error is not None
    assert "268,435,456 pages were there when it began" in error.message
    monkeypatch.undo()
    assert sanity.too_many(1000) == ""


def test_more_pages_in_a_row_than_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A row may tell of all pages of a table but one."""
    row = {"kind": EventKind.MAP, "addr": 1 << 21, "size": (1 << 21) - 0x1000}
    assert judged(tmp_path, **row) is None
    monkeypatch.setattr(sanity, "_available", lambda: 511 * 450 - 1)
    error = judged(tmp_path, **row)
    assert error is not None
    assert "511 pages were there when it began or came in batches" in error.message


@pytest.mark.parametrize("kind", sanity.MAPPED)
@pytest.mark.parametrize(
    ("addr", "size", "pages"),
    [
        (0x2000, 0x1000, [0x2000]),
        (0x4000, 0x3000, [0x4000, 0x5000, 0x6000]),
        (1 << 21, 1 << 21, [1 << 21]),
        # Nobody knows where it was.
        (0, 0x3000, [0]),
    ],
)
def test_a_row_about_several_pages_is_an_event_for_each(
    kind: EventKind, addr: int, size: int, pages: list[int], tmp_path: Path
) -> None:
    assert judged(tmp_path, kind=kind, addr=addr, size=size) is None
    events = frames.load(tmp_path / "x.arrows").events
    assert [event.addr for event in events] == pages
    assert sum(event.size for event in events) == size
    assert {event.seq for event in events} == {1}


def test_half_a_page_is_moved(tmp_path: Path) -> None:
    error = judged(tmp_path, kind=EventKind.MOVE, other=0x2001)
    assert error is not None
    assert "row 1 moves a part of a page" in error.message


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(seed=st.integers(0, 1 << 40), count=st.integers(1, 60))
def test_rows_that_no_kernel_has_made(
    seed: int, count: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("wild") / "x.arrows"
    rng = random.Random(seed)
    path.write_bytes(write(recorded()[0], [wild_events(rng, count)]))
    assert fuzz.read(path) in ("whole", "refused")


def test_nothing_moves_the_cursor(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A task calls itself what it likes, and root looks at it."""
    header, real, payloads = recorded()
    # click leaves out what it knows, where nobody looks.
    bad = b"\x1b]0;x\r"
    names = [
        bad if kind == EventKind.COMM else text
        for kind, text in zip(real["kind"].tolist(), payloads, strict=True)
    ]
    header = replace(header, kernel_release=bad.decode(), command=("sh", bad.decode()))
    path = tmp_path / "x.arrows"
    path.write_bytes(write(header, [(real, names)]))
    assert main(["check", str(path)]) == 1
    assert main(["info", str(path)]) == main(["report", str(path)]) == 0
    out, err = capsys.readouterr()
    assert "?]0;x?" in out
    assert not {"\x1b", "\r"} & {*out, *err}


def test_memory_runs_out(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def none(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(reading, "column_values", none)
    assert main(["info", str(GOLDEN / "cdm-6.1-none.arrows")]) == 2
    assert "not enough memory" in capsys.readouterr().err


@pytest.mark.parametrize(
    "filters",
    [
        *({"node": [1, 1]}, {"node": [64]}, {"node": [-1]}, {"node": 1}, {"node": "x"}),
        *({"node": [1 << 62]}, {"node": [None]}, {"addr": "ff-0"}, {"addr": "1"}),
        *({"addr": 7}, {"addr": "-1-2"}, {"addr": "0-" + "f" * 17}),
    ],
)
def test_filters_that_no_recorder_writes(filters: dict[str, Any]) -> None:
    header = types.SimpleNamespace(filters=filters)
    with pytest.raises(TraceFileError, match="filters that cdmtrace does not write"):
        frames._filtered(header, "x.arrows")
