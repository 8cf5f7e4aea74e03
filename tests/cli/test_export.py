"""``export``, read back by others: pandas, csv and json, and the recording by Arrow."""

from __future__ import annotations

import csv
import errno
import io
import itertools
import json
import random
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import simstory
from msgspec.structs import replace
from mutations import NUMBERS
from simfile import save
from simkernel import SimKernel

from cdmtrace.analysis import load
from cdmtrace.analysis.export import Exporter, schema
from cdmtrace.analysis.frames import Event, Terms, Trace
from cdmtrace.cli import main
from cdmtrace.events import EventKind, Probe
from cdmtrace.format.schema import SCHEMA
from cdmtrace.render import events

GOLDEN = Path(__file__).parents[1] / "golden"
RFC = GOLDEN / "cdm-6.1-rfc.arrows"
FORMATS = ("parquet", "csv", "ndjson")
HEX = ("start", "end", "addr", "flags_before", "flags_after", "other")
SAME = (
    *("seq", "ts", "ts_entry", "cpu", "pid", "tid", "size", "ret", "arg"),
    *HEX,
)


def recorded() -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Return rows and header of the golden recording, by nothing but Arrow."""
    with RFC.open("rb") as file:
        stream = pa.ipc.open_stream(file)
        header = json.loads(stream.schema.metadata[b"cdmtrace"])
        return stream.read_all().to_pylist(), header


ROWS, HEADER = recorded()


def read(form: str, path: Path) -> list[dict[str, Any]]:
    """Return the rows of an export, None where there is no value."""
    if form == "parquet":
        frame = pd.read_parquet(path, dtype_backend="pyarrow")
        rows: list[dict[str, Any]] = frame.astype(object).to_dict("records")
        return [
            {key: None if value is pd.NA else value for key, value in row.items()}
            for row in rows
        ]
    if form == "ndjson":
        return [json.loads(line) for line in path.read_text().splitlines()]
    return [
        {key: value or None for key, value in row.items()}
        for row in csv.DictReader(io.StringIO(path.read_text()))
    ]


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Any]]:
    folder = tmp_path_factory.mktemp("exported")
    found = {}
    for form in FORMATS:
        assert main(["export", form, str(RFC), "-o", str(folder / form)]) == 0
        found[form] = read(form, folder / form)
    return found


# --- what the recording says is what comes out ---------------------------------


def test_every_row_comes_out_and_numbers_are_what_they_were(exported) -> None:
    rows = exported["parquet"]
    assert len(rows) == len(ROWS) == 904
    for name in SAME:
        assert [row[name] for row in rows] == [row[name] for row in ROWS], name
    for name in ("vma", "call"):
        assert [row[name] or 0 for row in rows] == [row[name] for row in ROWS]
    for name in ("node", "src_node"):
        told = [-1 if row[name] is None else row[name] for row in rows]
        assert told == [row[name] for row in ROWS]
        assert None in {row[name] for row in rows}
        assert -1 not in {row[name] for row in rows}
    assert [int(row["mm"] or "0", 16) for row in rows] == [row["mm"] for row in ROWS]
    since = [(row["ts"] - HEADER["clock"]["started"]) / 1e9 for row in ROWS]
    assert [row["since_start"] for row in rows] == pytest.approx(since, abs=1e-9)


@pytest.mark.parametrize("name", ["kind", "probe"])
def test_names_are_those_of_the_header(exported, name: str) -> None:
    known = {number: text for text, number in HEADER["enums"][name].items()}
    told = [row[name] for row in exported["parquet"]]
    assert told == [known[row[name]].lower() for row in ROWS]
    assert len(set(told)) > 5


def test_the_cause_is_the_one_that_every_verb_goes_by(exported) -> None:
    causes = [event.cause for event in load(RFC).events]
    assert len(causes) == len(ROWS)
    known = {number: text.lower() for text, number in HEADER["enums"]["cause"].items()}
    told = [row["cause"] for row in exported["parquet"]]
    assert told == [known[cause] for cause in causes]
    # A stack knew better than the probe.
    assert causes != [row["cause"] for row in ROWS]


def test_each_row_has_its_task_and_its_stack(exported) -> None:
    comms: dict[int, str] = {}
    stacks: dict[int, str] = {}
    seen = set()
    for row, told in zip(ROWS, exported["parquet"], strict=True):
        payload = row["payload"] or b""
        if row["kind"] == EventKind.COMM:
            comms[row["tid"]] = payload.rstrip(b"\0").decode()
        if row["kind"] == EventKind.STACK:
            stacks[row["stack"]] = payload.decode().replace("\n", ";")
        assert told["comm"] == comms.get(row["tid"])
        assert told["stack"] == stacks.get(row["stack"])
        seen |= {told["comm"], told["stack"]}
    assert "story" in seen
    assert any("do_mbind" in text for text in seen if text)


LOCKS = {0: None, 1: "none", 2: "read", 3: "write", 4: "other's"}
MODES = ("DEFAULT", "PREFERRED", "BIND", "INTERLEAVE", "LOCAL")
FLAGS = {
    0: None,
    0x100073: "rd wr mr mw me ac",
    0x4000100073: "rd wr mr mw me ac cd",
}


def test_locks_policies_and_flags_have_words(exported) -> None:
    seen = set()
    for row, told in zip(ROWS, exported["parquet"], strict=True):
        for name in ("lock_entry", "lock_exit"):
            assert told[name] == LOCKS[row[name]]
        for name in ("flags_before", "flags_after"):
            if row[name] in FLAGS:
                assert told[f"{name}_names"] == FLAGS[row[name]]
                seen.add(row[name])
        if told["policy"] and ":" in told["policy"]:
            mode, _, nodes = told["policy"].partition(":")
            assert MODES.index(mode) == row["policy"]
            assert told["nodes"] == nodes
            assert (
                sum(1 << int(n) for n in nodes.replace("-", ",").split(","))
                == (row["nodes"])
            )
            seen.add(mode)
    assert seen >= {*FLAGS, "BIND", "PREFERRED", "INTERLEAVE"}


def test_the_other_policy_is_told_where_there_is_one(exported) -> None:
    told = {(row["kind"], row["other_policy"]) for row in exported["parquet"]}
    assert ("alloc", "PREFERRED:1") in told
    assert ("call", "BIND:1") in told
    assert {kind for kind, other in told if other} <= {"alloc", "policy", "call"}
    assert {kind for kind, other in told if other is None} >= {"map", "unmap"}


def test_a_row_that_is_about_no_vma_has_no_policy_of_one(exported) -> None:
    has: dict[str, set[bool]] = {}
    for row in exported["parquet"]:
        has.setdefault(row["kind"], set()).add(row["policy"] is not None)
    without = {kind for kind, told in has.items() if told == {False}}
    assert without >= {"call", "comm", "stack", "mm_exit"}
    assert {kind for kind, told in has.items() if told == {True}} == {*has} - without
    assert {"alloc", "map", "migrate", "policy"} <= {*has} - without


def test_the_three_say_the_same(exported) -> None:
    for name in schema(text=False).names:
        column = [row[name] for row in exported["parquet"]]
        if name in HEX:
            column = [hex(value) for value in column]
        assert [row[name] for row in exported["ndjson"]] == column, name
        cells = [row[name] for row in exported["csv"]]
        if name == "since_start":
            assert [float(cell) for cell in cells] == column
        else:
            texts = [None if value is None else str(value) for value in column]
            assert cells == texts, name


def test_types_of_parquet(tmp_path: Path) -> None:
    main(["export", "parquet", str(RFC), "-o", str(tmp_path / "x")])
    types = {field.name: str(field.type) for field in pq.read_schema(tmp_path / "x")}
    assert types["addr"] == types["flags_after"] == types["ts"] == "uint64"
    assert types["kind"] == types["comm"] == types["stack"] == "string"
    assert (types["since_start"], types["node"]) == ("double", "int16")
    assert [*types] == schema(text=True).names


@pytest.mark.parametrize("form", ["csv", "ndjson"])
def test_to_stdout_it_is_the_same(
    form: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["export", form, str(RFC), "-o", str(tmp_path / "x")])
    assert capsys.readouterr().out == ""
    assert main(["export", form, str(RFC)]) == 0
    printed = capsys.readouterr()
    assert printed.out == (tmp_path / "x").read_text()
    assert printed.err == ""


# --- rows that have more than columns ------------------------------------------


def with_rows(*more: Event) -> Trace:
    kernel = SimKernel()
    simstory.tell(kernel)
    trace = kernel.trace()
    last = [*trace.events][-1]
    added = [
        replace(one, seq=last.seq + n, ts=last.ts + n, ts_entry=last.ts)
        for n, one in enumerate(more, 1)
    ]
    return replace(
        trace, events=[*trace.events, *added], count=trace.count + len(added)
    )


def row(kind: EventKind, payload: bytes | None = None, **columns: Any) -> Event:
    return Event(seq=0, ts=0, ts_entry=0, kind=kind, payload=payload, **columns)


def test_what_has_a_column_of_its_own_and_what_has_none(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trace = with_rows(
        row(EventKind.WRITE, b"set_vm_cdm+0xb", probe=Probe.WATCHPOINT),
        row(EventKind.SNAP_RANGES, bytes(16), probe=Probe.SNAPSHOT),
        row(EventKind.COMM, b"\x1b[2J", tid=9),
        row(EventKind.MAP, tid=9, vma=0, call=0, bits=1 | 128),
        row(EventKind.COMM, b"later", tid=9),
        row(EventKind.MAP, tid=9, lock_entry=2, lock_exit=1 | 2 << 4),
    )
    path = save(trace, tmp_path / "x.arrows")
    assert main(["export", "ndjson", str(path)]) == 0
    printed = capsys.readouterr()
    write, ranges, *_, before, _, after = map(json.loads, printed.out.splitlines()[-6:])
    assert (write["kind"], write["instruction"]) == ("write", "set_vm_cdm+0xb")
    assert (ranges["kind"], ranges["instruction"]) == ("snap_ranges", None)
    # A name is the one of that time, and moves no cursor.
    assert (before["comm"], after["comm"]) == ("?[2J", "later")
    assert (after["lock_entry"], after["lock_exit"]) == ("read", "none+vma:read")
    assert (before["bits"], before["vma"], before["call"]) == (
        "foreign ksm",
        None,
        None,
    )
    assert "which pages they list is left out of 1 row of kind snap_ranges" in (
        printed.err
    )


def test_a_number_without_a_name_is_a_number() -> None:
    columns = {name: [0] for name in SCHEMA.names} | {"payload": [None], "seq": [1]}
    columns |= {"kind": [200], "probe": [127], "cause": [99], "policy": [7]}
    columns |= {"lock_entry": [9], "flags_after": [1 << 62]}
    batch = pa.record_batch([columns[name] for name in SCHEMA.names], schema=SCHEMA)
    (told,) = exporter().take(batch).to_pylist()
    assert (told["kind"], told["probe"], told["cause"]) == ("200", "127", "99")
    assert (told["policy"], told["lock_entry"]) == ("mode7:none", "?")
    assert told["flags_after"] == 1 << 62
    assert told["flags_after_names"]


def exporter(*, text: bool = False) -> Exporter:
    return Exporter(Terms(cdm=2, tag=1 << 38), text=text)


@pytest.mark.parametrize("seed", range(5))
def test_rows_that_no_kernel_has_told_have_columns_too(seed: int) -> None:
    chance = random.Random(seed)
    columns = []
    for field in SCHEMA:
        if field.name == "payload":
            values: list[Any] = [chance.choice((None, b"\xff\0x\n", b""))] * 99
        else:
            low, high = bounds(field.type)
            values = [
                min(max(chance.choice((*NUMBERS, *EventKind)), low), high)
                for _ in range(99)
            ]
        columns.append(pa.array(values, field.type))
    batch = pa.record_batch(columns, schema=SCHEMA)
    for text in (False, True):
        made = exporter(text=text).take(batch)
        made.validate(full=True)
        assert made.num_rows == 99
        assert made.schema == schema(text=text)


def bounds(type_: pa.DataType) -> tuple[int, int]:
    info = np.iinfo(type_.to_pandas_dtype())
    return int(info.min), int(info.max)


# --- in bounded memory ---------------------------------------------------------


@pytest.mark.parametrize("form", FORMATS)
def test_what_is_read_is_written_before_more_is_read(
    form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events, "GROUP", 100)
    (batch,) = pa.Table.from_pylist(ROWS, SCHEMA).combine_chunks().to_batches()
    made = exporter(text=form != "parquet")
    file = io.BytesIO()
    written: list[int] = []

    def batches() -> Iterator[pa.RecordBatch]:
        for first in range(0, batch.num_rows, 30):
            written.append(file.tell())
            yield made.take(batch.slice(first, 30))

    events.write(batches(), schema(text=form != "parquet"), form, file)
    steps = [after > before for before, after in itertools.pairwise(written)]
    # Of Parquet a group of rows is written at once, of others each batch.
    assert steps.count(True) >= (7 if form == "parquet" else len(written) - 1)
    if form == "parquet":
        about = pq.ParquetFile(io.BytesIO(file.getvalue())).metadata
        sizes = [about.row_group(n).num_rows for n in range(about.num_row_groups)]
        assert sizes == [120] * 7 + [64]


@pytest.mark.parametrize("form", FORMATS)
def test_an_empty_recording_has_columns_and_no_rows(form: str, tmp_path: Path) -> None:
    kernel = SimKernel()
    path = save(kernel.trace(), tmp_path / "x.arrows")
    out = tmp_path / "out"
    assert main(["export", form, str(path), "-o", str(out)]) == 0
    assert read(form, out) == []
    if form == "csv":
        assert out.read_text().startswith('"seq","ts"')


# --- files ---------------------------------------------------------------------


def test_nothing_is_overwritten_unasked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    out.write_text("mine")
    words = ["export", "csv", str(RFC), "-o", str(out)]
    assert main(words) == 2
    err = capsys.readouterr().err
    assert "is there already" in err
    assert "--force replaces it" in err
    assert out.read_text() == "mine"
    assert main([*words, "--force"]) == 0
    assert len(read("csv", out)) == len(ROWS)
    assert stat.S_IMODE(out.stat().st_mode) == 0o600
    assert [*tmp_path.iterdir()] == [out]


@pytest.mark.parametrize("force", [[], ["--force"]])
def test_a_link_and_a_directory_are_left_alone(
    force: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mine, link = tmp_path / "mine", tmp_path / "link"
    mine.write_text("mine")
    link.symlink_to(mine)
    for out in (link, tmp_path):
        assert main(["export", "csv", str(RFC), "-o", str(out), *force]) == 2
        assert str(out) in capsys.readouterr().err
    assert mine.read_text() == "mine"
    assert {*tmp_path.iterdir()} == {mine, link}


@pytest.mark.parametrize("force", [[], ["--force"]])
def test_what_cannot_be_written_whole_is_not_there(
    force: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def full(batches: object, schema: object, how: str, file: io.BytesIO) -> None:
        file.write(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(events, "write", full)
    out = tmp_path / "out"
    if force:
        out.write_text("mine")
    assert main(["export", "csv", str(RFC), "-o", str(out), *force]) == 2
    assert "out: cannot be written: No space left" in capsys.readouterr().err
    assert [path.read_text() for path in tmp_path.iterdir()] == ["mine"] * len(force)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["parquet", str(RFC)], "parquet is not for a terminal"),
        (["csv", str(RFC), "--force"], "--force without -o"),
        (["xlsx", str(RFC)], "xlsx"),
        (["csv"], "Missing argument"),
        (["csv", __file__], "is not a trace file"),
        (["csv", str(RFC), str(GOLDEN / "cdm-6.1-none.arrows")], "not parts of one"),
        (["csv", str(RFC), "-o", "/nonexistent/x"], "/nonexistent/x: cannot be made"),
    ],
)
def test_trouble(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", *words]) == 2
    printed = capsys.readouterr()
    assert said in printed.err
    assert printed.out == ""


def test_what_is_missing_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kernel = SimKernel("rfc")
    simstory.tell(kernel)
    kernel.lose("alloc", 0)
    path = save(kernel.trace(), tmp_path / "lossy.arrows", end=False)
    assert main(["export", "csv", str(path), "-o", str(tmp_path / "x")]) == 0
    err = capsys.readouterr().err
    assert "cut: the file ends at byte" in err
    assert "1 event was lost, and has no row" in err
    last = err.splitlines()[-1]
    assert last == (
        f"cdmtrace: {len(kernel.events):,} rows: pandas.read_csv('{tmp_path / 'x'}')"
    )


@pytest.mark.parametrize("form", FORMATS)
def test_the_command_that_it_names_reads_it(
    form: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "it's.out"
    assert main(["export", form, str(RFC), "-o", str(out)]) == 0
    command = capsys.readouterr().err.rstrip().partition("904 rows: ")[2]
    assert len(eval(command, {"pandas": pd})) == 904
