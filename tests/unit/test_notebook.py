"""Recordings as DataFrames, and the notebook that shows them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import simstory
from asking import NONE, RFC
from msgspec.structs import replace
from simfile import save
from simkernel import SimKernel

from cdmtrace.analysis import DataFrames, check, dataframe, export, load, relations
from cdmtrace.analysis.frames import Gap
from cdmtrace.analysis.ownrules import read
from cdmtrace.errors import TraceFileError
from cdmtrace.events import EventKind

ROOT = Path(__file__).parents[2]
TABLES = ("losses", "rules", "findings", "witnesses", "vmas")


@pytest.fixture(scope="module")
def frames() -> DataFrames:
    return load(RFC).dataframes()


def test_events_are_the_rows_of_the_file(frames: DataFrames) -> None:
    raw, mine = dataframe(RFC), frames.events
    assert [*mine.index] == [*raw.index]
    assert [*mine.columns] == [*export.schema(text=False).names[1:], "utc"]
    for name in ("addr", "start", "end", "size", "flags_after", "tid", "ret"):
        assert (mine[name] == raw[name]).all(), name
        assert mine[name].dtype == raw[name].dtype, name
    assert (mine["node"].fillna(-1) == raw["node"]).all()
    assert (mine["vma"].fillna(0) == raw["vma"]).all()
    kinds = [EventKind(kind).name.lower() for kind in raw["kind"]]
    assert [*mine["kind"]] == kinds
    assert mine["kind"].cat.categories.size == len({*kinds})


def test_times_can_be_reckoned_with(frames: DataFrames) -> None:
    mine, raw, terms = frames.events, dataframe(RFC), frames.trace.terms
    assert [one.value for one in mine["ts"]] == [*raw["ts"]]
    assert [one.value for one in mine["since_start"]] == [
        ts - terms.started for ts in raw["ts"].tolist()
    ]
    assert [one.value for one in mine["utc"]] == [
        ts + terms.utc_offset for ts in raw["ts"].tolist()
    ]
    assert str(mine["utc"].iloc[0])[:10] == "2026-11-28"
    # An earlier time less a later one is no number of centuries.
    backwards = mine["ts"].iloc[0] - mine["ts"].iloc[-1]
    assert pd.Timedelta("-2s") < backwards < pd.Timedelta(0)
    per_second = mine.set_index("since_start").resample("1s")["kind"].count()
    assert per_second.sum() == 904


DTYPES = {
    "events": {
        **dict.fromkeys(("ts", "ts_entry", "since_start"), "timedelta64[ns]"),
        **dict.fromkeys(("kind", "probe", "comm", "mm", "policy"), "category"),
        **dict.fromkeys(("stack", "lock_entry", "instruction"), "category"),
        **dict.fromkeys(("addr", "size", "flags_before", "other"), "uint64"),
        **dict.fromkeys(("vma", "call"), "UInt32"),
        **dict.fromkeys(("node", "src_node"), "Int16"),
        "utc": "datetime64[ns, UTC]",
        "ret": "int32",
    },
    "losses": {
        **dict.fromkeys(("since", "until"), "timedelta64[ns]"),
        **dict.fromkeys(("start", "end"), "UInt64"),
        **dict.fromkeys(("probe", "reason", "mm"), "category"),
        "count": "uint64",
    },
    "rules": {"verdict": "category", "checked": "uint64"},
    "findings": {
        **dict.fromkeys(("rule", "severity", "cause", "comm"), "category"),
        **dict.fromkeys(("start", "end"), "UInt64"),
        "pid": "UInt32",
        "seq": "uint64",
    },
    "witnesses": {"step": "uint32", "seq": "uint64"},
    "vmas": {
        **dict.fromkeys(("start", "end", "pages"), "uint64"),
        **dict.fromkeys(("comm", "flags", "policy"), "category"),
        "pid": "UInt32",
        "tagged": "boolean",
        "ended": "bool",
    },
}


def test_types_do_not_depend_on_what_is_there(
    frames: DataFrames, tmp_path: Path
) -> None:
    empty = load(save(SimKernel().trace(), tmp_path / "x.arrows")).dataframes()
    clean = load(NONE).dataframes()
    for name, expected in DTYPES.items():
        for one in (frames, empty, clean):
            frame = getattr(one, name)
            told = {column: str(frame[column].dtype) for column in expected}
            assert told == expected, name
    assert len(empty.events) == len(empty.vmas) == len(clean.findings) == 0


def test_tables_are_those_of_sql(frames: DataFrames) -> None:
    for name in TABLES:
        frame = getattr(frames, name).reset_index()
        assert {*relations.SCHEMAS[name].names} == {*frame.columns} - {"index"}
    assert len(frames.findings) == 15
    assert frames.rules.loc["CDM002", "findings"] == 8
    assert frames.rules.loc["CDM006", "verdict"] == "vacuous"


def test_a_witness_is_a_join(frames: DataFrames) -> None:
    told = frames.witnesses.join(frames.events, on="seq")
    assert len(told) == len(frames.witnesses)
    found = check(load(RFC)).findings
    for number, finding in enumerate(found, 1):
        steps = told.loc[[number]]
        assert [*steps["what"]] == [step.what for step in finding.witness]
        assert [one.value for one in steps["since_start"]] == [
            step.since_start for step in finding.witness
        ]


def test_masks_of_flags_work(frames: DataFrames) -> None:
    tag = frames.trace.terms.tag
    tagged = (frames.events["flags_after"] & tag) != 0
    named = frames.events["flags_after_names"].str.contains("cd", na=False)
    assert (tagged == named).all()
    assert tagged.sum() > 500


def test_they_are_judged_as_check_does_it() -> None:
    trace = load(RFC)
    some = trace.dataframes(rules={"CDM001", "CDM003"})
    assert [*some.rules.index] == ["CDM001", "CDM003"]
    assert len(some.findings) == 3
    own = read([ROOT / "examples/rules/slow_mbind.py"])
    mine = trace.dataframes(rules={"LAB001"}, own=own)
    assert [*mine.findings["cause"]] == ["mbind"] * 3
    assert [*trace.dataframes(profile="np").rules.index] == [
        one.rule.id for one in check(trace, profile="np").rules
    ]
    with pytest.raises(KeyError):
        assert trace.dataframes(profile="x").rules is None


def test_each_is_made_once_and_judged_when_it_is_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls = []

    def counted(*words: object, **more: object) -> object:
        calls.append(more)
        return check(*words, **more)

    monkeypatch.setattr("cdmtrace.analysis.notebook.check", counted)
    frames = load(RFC).dataframes()
    assert len(frames.events) == 904
    assert calls == []
    assert frames.findings is frames.findings
    assert len(frames.vmas) == 61
    assert len(calls) == 1


def test_losses_have_no_bound_where_there_is_none() -> None:
    kernel = SimKernel()
    simstory.tell(kernel)
    gaps = (
        Gap(probe="alloc", reason="ring", count=4, since=7, until=9, mm=1, start=4096),
        Gap(probe="watch", reason="map", count=2, since=8, until=1 << 64),
    )
    trace = replace(kernel.trace(), gaps=gaps)
    losses = trace.dataframes().losses
    assert [*losses["count"]] == [4, 2]
    assert losses["until"].iloc[0] == pd.Timedelta(9, "ns")
    assert losses["until"].isna().tolist() == [False, True]
    assert losses["mm"].isna().tolist() == [False, True]
    assert losses["start"].fillna(0).tolist() == [4096, 0]
    assert losses["end"].isna().all()
    with pytest.raises(TraceFileError, match="come from no file"):
        assert trace.dataframes().events is None


def test_pandas_comes_when_it_is_asked_for() -> None:
    code = (
        "import sys, cdmtrace.analysis as cdm\n"
        f"frames = cdm.load({str(RFC)!r}).dataframes()\n"
        "assert 'pandas' not in sys.modules\n"
        "frames.rules\n"
        "assert 'pandas' in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
