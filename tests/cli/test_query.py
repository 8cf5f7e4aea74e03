"""``query`` on the command line: tables, formats, what SQL may not, what is said."""

from __future__ import annotations

import csv
import io
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterator
from pathlib import Path

import duckdb
import pandas as pd
import pyarrow as pa
import pytest
import simstory
from asking import GOLDEN, NONE, RFC, Asking
from simfile import save
from simkernel import SimKernel

from cdmtrace.analysis import query, relations
from cdmtrace.cli import main
from cdmtrace.errors import CdmtraceError
from cdmtrace.render import query as render

ROOT = Path(__file__).parents[2]


@pytest.fixture
def ask(capsys: pytest.CaptureFixture[str]) -> Asking:
    return Asking(capsys)


# --- the tables -----------------------------------------------------------------


def test_events_are_what_export_has(ask: Asking, tmp_path: Path) -> None:
    assert main(["export", "csv", str(RFC), "-o", str(tmp_path / "x")]) == 0
    ask.capsys.readouterr()
    exported = pd.read_csv(tmp_path / "x", dtype=str, keep_default_na=False)
    asked = ask("--format", "csv", RFC, "FROM events")
    mine = pd.read_csv(io.StringIO(asked), dtype=str, keep_default_na=False)
    for frame in (exported, mine):
        frame["since_start"] = frame["since_start"].astype(float)
    pd.testing.assert_frame_equal(mine, exported)
    assert len(mine) == 904


def test_a_table_can_be_named_twice(ask: Asking) -> None:
    sql = "SELECT count(*) FROM events a JOIN events b ON a.seq = b.seq + 1"
    assert ask.column(RFC, sql) == [903]


def test_findings_rules_and_witnesses_are_those_of_check(ask: Asking) -> None:
    main(["check", "--format", "json", str(RFC)])
    told = json.loads(ask.capsys.readouterr().out)
    found = ask.rows(RFC, "FROM findings ORDER BY finding")
    assert len(found) == 15
    for mine, theirs in zip(found, told["findings"], strict=True):
        same = mine.keys() & theirs.keys()
        assert len(same) == 12
        assert {key: mine[key] for key in same} == {key: theirs[key] for key in same}
        assert (mine["start"], mine["end"]) == (
            theirs["vma"]["start"],
            theirs["vma"]["end"],
        )
    rules = ask.rows(RFC, "SELECT * EXCLUDE (severity) FROM rules")
    assert rules == [
        {key: value for key, value in one.items() if key != "suppressed"}
        for one in told["rules"]
    ]
    steps = ask.rows(RFC, "FROM witnesses ORDER BY finding, step")
    assert [(one["finding"], one["seq"], one["what"]) for one in steps] == [
        (number, step["seq"], step["what"])
        for number, one in enumerate(told["findings"], 1)
        for step in one["witness"]
    ]


@pytest.mark.parametrize(
    "options",
    [["--rules", "CDM001,missing-tag"], ["--profile", "np"], ["--profile", "rfc-v2"]],
)
def test_they_are_judged_by_the_options_of_check(
    options: list[str], ask: Asking
) -> None:
    main(["check", "--format", "json", *options, str(RFC)])
    told = json.loads(ask.capsys.readouterr().out)
    mine = ask.column(*options, RFC, "SELECT fingerprint FROM findings")
    assert mine == [one["fingerprint"] for one in told["findings"]]
    rules = ask.column(*options, RFC, "SELECT rule FROM rules")
    assert rules == [one["rule"] for one in told["rules"]]


def test_what_a_recording_says_of_itself(ask: Asking) -> None:
    (row,) = ask.rows(RFC, "FROM recording")
    assert (row["path"], row["kernel"], row["page_size"]) == (
        str(RFC),
        "6.1.192",
        4096,
    )
    assert (row["cdm_nodes"], row["vm_cdm_mask"]) == ([1], hex(1 << 38))
    sql = "SELECT (ts - started) / 1e9 = since_start FROM events, recording"
    assert set(ask.column(RFC, sql)) == {True}


def test_the_vmas_at_the_end(ask: Asking) -> None:
    main(["report", "--format", "json", str(RFC)])
    told = json.loads(ask.capsys.readouterr().out)
    sql = (
        "SELECT mm, count(*) FILTER (tagged) AS tagged, sum(pages) AS pages "
        "FROM vmas GROUP BY mm"
    )
    mine = {row["mm"]: (row["tagged"], row["pages"]) for row in ask.rows(RFC, sql)}
    assert mine == {
        row["mm"]: (row["VMAs tagged"], row["pages now"]) for row in told["Processes"]
    }
    assert len(mine) == 3


def test_every_table_has_its_columns_whatever_is_in_it(
    ask: Asking, tmp_path: Path
) -> None:
    empty = save(SimKernel().trace(), tmp_path / "empty.arrows")
    for name in query.TABLES[1:]:
        schema = relations.SCHEMAS[name]
        assert ask.column(RFC, f"SELECT column_name FROM (DESCRIBE {name})") == (
            schema.names
        )
        if name not in ("recording", "rules"):
            assert ask.rows(empty, f"FROM {name}") == []
    assert ask.rows(empty, "FROM events") == []


def test_what_is_not_named_is_not_made(
    ask: Asking, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A judgement holds all rows in memory; counting them does not need one."""
    monkeypatch.setattr(
        "cdmtrace.analysis.frames.load", lambda *_: pytest.fail("was loaded")
    )
    sql = "SELECT count(*) FROM Events /* vmas */, losses -- not findings"
    assert ask.column(RFC, sql) == [0]
    assert ask.column(RFC, "SELECT count(*) FROM events, recording") == [904]


def test_of_what_is_named_as_text_or_in_quotes_it_is(ask: Asking) -> None:
    assert ask.column(RFC, "SELECT count(*) FROM query_table('findings')") == [15]
    assert ask.column(RFC, 'SELECT count(*) FROM "Findings"') == [15]
    assert ask.column(RFC, "SELECT 'é' AS x FROM rules LIMIT 1") == ["é"]


def test_parts_are_one_recording_and_others_are_not(ask: Asking) -> None:
    ask(RFC, NONE, "FROM events", status=2)
    assert "not parts of one recording" in ask.err


def test_what_is_missing_is_told(ask: Asking, tmp_path: Path) -> None:
    cut = tmp_path / "cut.arrows"
    cut.write_bytes(RFC.read_bytes()[:-4000])
    assert 0 < ask.column(cut, "SELECT count(*) FROM events")[0] < 904
    assert "cut.arrows: cut: " in ask.err
    ask(RFC, "SELECT 1")
    assert ask.err == ""


# --- what SQL may not -----------------------------------------------------------


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT * FROM read_text('{secret}')",
        "SELECT * FROM '{secret}'",
        "SELECT * FROM glob('{directory}/*')",
        "COPY events TO '{directory}/out.csv'",
        "COPY (SELECT * FROM events) TO '{directory}/out.parquet'",
        "EXPORT DATABASE '{directory}/out'",
        "ATTACH '{directory}/out.db'",
        "INSTALL httpfs",
        "LOAD '{secret}'",
        "SET enable_external_access = true; SELECT * FROM read_text('{secret}')",
        "RESET lock_configuration; FROM events",
        "SET memory_limit = '1TB'",
        "INSERT INTO events SELECT * FROM events",
        "DELETE FROM events",
        "CREATE TABLE mine AS FROM events",
        "DROP TABLE events",
        "FROM a_frame",
    ],
)
def test_it_reads_writes_and_changes_nothing(
    sql: str, ask: Asking, tmp_path: Path
) -> None:
    a_frame = pd.DataFrame({"x": [1]})
    secret = tmp_path / "secret.csv"
    secret.write_text("key,value\nmy,secret\n")
    told = ask(RFC, sql.format(secret=secret, directory=tmp_path), status=2)
    assert told == ""
    assert ask.err.startswith("cdmtrace: the SQL cannot be run\n")
    assert "my,secret" not in ask.err
    assert [*tmp_path.iterdir()] == [secret]
    assert len(a_frame) == 1


def test_what_it_makes_for_itself_it_may(ask: Asking) -> None:
    sql = "CREATE TEMP TABLE mine AS FROM events WHERE pid = 62; SELECT 1; FROM mine"
    rows = ask.rows(RFC, sql)
    assert len(rows) > 500
    assert {row["pid"] for row in rows} == {62}


def test_nothing_is_left_behind(
    ask: Asking, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    ask(RFC, "SELECT count(*) FROM events")
    ask(RFC, "SELECT nonsense FROM events", status=2)
    assert [*tmp_path.iterdir()] == []
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "none"))
    ask(RFC, "SELECT 1", status=2)
    assert "there is no place for what a query needs" in ask.err


LARGE = (
    "SELECT place, left(text, 1) AS first FROM ("
    "SELECT repeat(md5(concat(a.seq, '/', b.seq)), 8) AS text, "
    "row_number() OVER (ORDER BY text) AS place "
    "FROM events a, events b WHERE b.seq <= 500) "
    "WHERE place IN (1, 452000) ORDER BY place"
)
"""Sorts 116 MB."""


def test_what_memory_does_not_hold_goes_to_disk(ask: Asking) -> None:
    assert ask.rows("--memory", "100M", RFC, LARGE) == [
        {"place": 1, "first": "0"},
        {"place": 452_000, "first": "f"},
    ]


def test_memory_that_does_not_suffice(ask: Asking) -> None:
    sql = "SELECT string_agg(repeat('x', 1000)) FROM events a, events b"
    ask("--memory", "60M", RFC, sql, status=2)
    assert "needs more memory or disk than it may have" in ask.err
    assert "--memory 4G" in ask.err
    assert "SET " not in ask.err
    ask("--memory", "many", RFC, sql, status=2)
    assert "no size" in ask.err


@pytest.mark.parametrize("wait", [0, 0.01, 1])
def test_it_can_be_interrupted(wait: float, tmp_path: Path) -> None:
    """While the rows are copied, and while they are asked."""
    sql = (
        "SELECT count(*) FROM events a, events b, events c, events d "
        "WHERE hash(a.seq + b.seq * c.seq * d.seq) = 0"
    )
    words = [sys.executable, "-m", "cdmtrace", "query", str(RFC), sql]
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    with subprocess.Popen(
        words, stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        while not [*tmp_path.glob("*/query.duckdb")]:
            assert process.poll() is None
            time.sleep(0.05)
        time.sleep(wait)
        process.send_signal(signal.SIGINT)
        try:
            _, err = process.communicate(timeout=60)
        finally:
            process.kill()
    assert (process.returncode, err.strip()) == (130, "cdmtrace: interrupted")
    assert [*tmp_path.iterdir()] == []


# --- trouble --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([RFC, "SELEC 1"], 'syntax error at or near "SELEC"'),
        ([RFC, "SELECT nonsense FROM events"], '"nonsense" not found'),
        ([RFC, "FROM event"], "hint: tables: events, recording, losses"),
        ([RFC, "SELECT ?"], "the SQL cannot be run"),
        ([RFC, " -- nothing"], "there is no SQL in it"),
        ([RFC, "SELECT 1/0; SELECT CAST('x' AS INT)"], "Could not convert"),
        ([RFC], f"query {RFC} "),
        ([], "query takes a recording and SQL"),
        (["--recipe", "arrivals"], "which recording to ask is not said"),
        (["--recipe", "arivals", RFC], "hint: --recipe arrivals"),
        (["--recipe", "xyz", RFC], "query --list has them"),
        (["--list", "--recipe", "xyz"], "--recipe xyz: there is none"),
        (["--file", "/nonexistent", RFC], "/nonexistent: cannot be read: No such"),
        (["--file", RFC, RFC], "cannot be read: it is no UTF-8"),
        (["--file", RFC, "--recipe", "arrivals", RFC], "exclude each other"),
        ([__file__, "FROM events"], "is not a trace file"),
        (["--rules", "CDM999", RFC, "FROM rules"], "CDM999: no such rule"),
    ],
)
def test_trouble(words: list[str | Path], said: str, ask: Asking) -> None:
    assert ask(*words, status=2) == ""
    assert said in ask.err


def test_bad_sql_is_told_before_anything_is_read(
    ask: Asking, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(query, "_fill", lambda *_: pytest.fail("was read"))
    ask(RFC, "SELECT count(* FROM events", status=2)
    assert "syntax error" in ask.err


def test_without_duckdb_it_says_what_installs_it(
    ask: Asking, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "duckdb", None)
    ask(RFC, "SELECT 1", status=2)
    wanted = query.REQUIREMENT
    assert ask.err == (
        "cdmtrace: query needs DuckDB, and it is not installed\n"
        f"  hint: {sys.executable} -m pip install '{wanted}'\n"
    )
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["optional-dependencies"]["query"] == [wanted]
    assert ask("--list").startswith("Recipes\n")


# --- how it is printed ----------------------------------------------------------


@pytest.mark.parametrize("recipe", ["longest-mbind", "flag-writers", "policy-to-page"])
def test_the_table_is_the_golden_one(recipe: str, ask: Asking) -> None:
    golden = GOLDEN / f"cdm-6.1-rfc.{recipe}.txt"
    assert ask("--recipe", recipe, RFC) == golden.read_text()


def test_every_format_says_the_same(ask: Asking) -> None:
    sql = (
        "SELECT seq, kind, addr, since_start, node FROM events "
        "WHERE kind IN ('map', 'call') ORDER BY seq"
    )
    rows = ask.rows(RFC, sql)
    assert len(rows) == 342
    lines = ask("--format", "ndjson", RFC, sql).splitlines()
    assert [json.loads(line) for line in lines] == rows
    told = csv.DictReader(io.StringIO(ask("--format", "csv", RFC, sql)))
    as_text = [
        {key: "" if value is None else str(value) for key, value in row.items()}
        for row in rows
    ]
    assert [*told] == as_text
    cells = [
        [cell.strip() for cell in line.strip("|\n").split("|")]
        for line in ask("--format", "markdown", RFC, sql).splitlines()
    ]
    assert cells[:2] == [[*rows[0]], ["---:", "---", "---:", "---:", "---:"]]
    assert cells[2:] == [[*row.values()] for row in as_text]
    table = ask(RFC, sql).splitlines()
    assert [line.split() for line in table[2:]] == [
        [cell for cell in row.values() if cell] for row in as_text
    ]


def test_values_that_json_has_not(ask: Asking) -> None:
    sql = (
        "SELECT 'nan'::DOUBLE AS nan, 1e999::DOUBLE AS inf, 1.50::DECIMAL(4, 2) AS d, "
        "3::DECIMAL(4, 2) AS whole, 1::HUGEINT << 70 AS huge, 'x'::BLOB AS blob, "
        "DATE '2017-01-31' AS day, TIME '05:06:07' AS clock, "
        "INTERVAL 90 SECOND AS span, [1, NULL] AS list, {'a': 1.25::DECIMAL(4, 2)} AS "
        "struct, true AS yes, NULL AS nothing, "
        "'00000000-0000-0000-0000-000000000001'::UUID AS id, 18446744073709551615 "
        "AS addr, -1 AS start"
    )
    (told,) = ask.rows(RFC, sql)
    assert told == {
        "nan": None,
        "inf": None,
        "d": 1.5,
        "whole": 3,
        "huge": 1 << 70,
        "blob": "78",
        "day": "2017-01-31",
        "clock": "05:06:07",
        "span": 90.0,
        "list": [1, None],
        "struct": {"a": 1.25},
        "yes": True,
        "nothing": None,
        "id": "00000000-0000-0000-0000-000000000001",
        "addr": "0xffffffffffffffff",
        "start": -1,
    }
    (row,) = csv.DictReader(io.StringIO(ask("--format", "csv", RFC, sql)))
    assert (row["list"], row["yes"], row["nothing"]) == ("[1, null]", "true", "")


@pytest.mark.parametrize(
    ("form", "told"),
    [
        ("table", "a  b\n-  -\n"),
        ("json", "[]\n"),
        ("ndjson", ""),
        ("csv", "a,b\n"),
        ("markdown", "| a | b |\n| --- | --- |\n"),
    ],
)
def test_no_rows_are_an_answer(form: str, told: str, ask: Asking) -> None:
    assert ask("--format", form, RFC, "SELECT 1 AS a, 2 AS b WHERE false") == told


def test_two_columns_of_a_name_are_two(ask: Asking) -> None:
    sql = "SELECT 1 AS x, 2 AS x, 3 AS x_1, 4 AS x"
    assert ask.rows(RFC, sql) == [{"x": 1, "x_1": 2, "x_1_1": 3, "x_2": 4}]


@pytest.mark.parametrize("form", ["table", "markdown"])
def test_people_are_shown_the_first_thousand(
    form: str, ask: Asking, monkeypatch: pytest.MonkeyPatch
) -> None:
    sql = "SELECT seq FROM events ORDER BY seq"
    assert "more, in" not in ask("--format", form, RFC, sql)
    monkeypatch.setattr(render, "MOST", 100)
    monkeypatch.setattr(query, "_ROWS", 30)
    told = ask("--format", form, RFC, sql)
    assert len(told.splitlines()) == 104
    assert told.endswith("100\n\n804 more, in --format csv\n") or form == "markdown"
    monkeypatch.setattr(render, "MOST", 10)
    assert len(ask.rows(RFC, sql)) == 904


def test_names_of_tasks_are_data_in_every_format(ask: Asking, tmp_path: Path) -> None:
    kernel = SimKernel()
    simstory.tell(kernel)
    path = save(kernel.trace(), tmp_path / "x.arrows")
    sql = "SELECT '\x1b[2J|<b>[x](y)' AS \"a\x1b|\", '1' || chr(10) || '| x' AS y"
    table = ask(path, sql).splitlines()
    assert table == [
        "a?|             y",
        "--------------  ---",
        "?[2J|<b>[x](y)  1",
        "                | x",
    ]
    lines = ask("--format", "markdown", path, sql).splitlines()
    assert lines[0] == "| a?\\| | y |"
    assert lines[2:] == ["| ?\\[2J\\|&lt;b>\\[x\\](y) | 1<br>\\| x |"]
    assert ask.rows(path, sql) == [{"a\x1b|": "\x1b[2J|<b>[x](y)", "y": "1\n| x"}]


def test_a_script_is_a_recipe_of_ones_own(ask: Asking, tmp_path: Path) -> None:
    script = tmp_path / "mine.sql"
    script.write_text("-- Mine\nSELECT count(*) AS n FROM events;\n")
    assert ask.rows("--file", script, RFC) == [{"n": 904}]


def test_it_has_its_variables(ask: Asking, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CDMTRACE_QUERY_RECIPE", "findings")
    monkeypatch.setenv("CDMTRACE_QUERY_FORMAT", "csv")
    assert ask(RFC).startswith("rule,name,severity")


def test_some_batches_are_in_memory_and_not_all() -> None:
    before = pa.total_allocated_bytes()
    held = []

    def batches() -> Iterator[pa.RecordBatch]:
        for number in range(100):
            held.append(pa.total_allocated_bytes() - before)
            yield pa.record_batch([pa.array([number] * 50_000)], ["x"])

    with duckdb.connect() as database:
        query._make(database, "mine", pa.schema([("x", pa.int64())]), batches())
        found = database.execute("SELECT count(*), sum(x) FROM mine").fetchall()
    assert found == [(5_000_000, 247_500_000)]
    # Of 40 MB.
    assert max(held) < 4_000_000


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (CdmtraceError("a row that cannot be"), 2, "cdmtrace: a row that cannot be"),
        (KeyboardInterrupt(), 130, "cdmtrace: interrupted"),
    ],
)
def test_what_fails_on_the_way_is_what_is_told(
    error: BaseException,
    status: int,
    said: str,
    ask: Asking,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def take(self: object, batch: pa.RecordBatch) -> pa.RecordBatch:
        raise error

    monkeypatch.setattr("cdmtrace.analysis.export.Exporter.take", take)
    ask(RFC, "FROM events", status=status)
    assert ask.err.strip() == said
