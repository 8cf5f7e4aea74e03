"""The recipes of ``query``, each held against numbers that come another way."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import simstory
from asking import NONE, RFC, Asking, tuples, unpacked
from msgspec.structs import replace
from simfile import save
from simkernel import SimKernel

from cdmtrace.analysis import dataframe, load
from cdmtrace.analysis.aggregate import report
from cdmtrace.analysis.frames import Event, Gap, Trace
from cdmtrace.analysis.recipes import recipes
from cdmtrace.analysis.replay import check
from cdmtrace.analysis.stacks import Stack
from cdmtrace.events import EventKind, Probe

PAGE = 4096
CDM = 1
TAG = 1 << 38


@pytest.fixture
def ask(capsys: pytest.CaptureFixture[str]) -> Asking:
    return Asking(capsys)


@pytest.fixture(scope="module")
def raw() -> pd.DataFrame:
    """Return the golden rows as they are in the file: numbers."""
    return dataframe(RFC).reset_index()


def kinds(frame: pd.DataFrame, *wanted: EventKind) -> pd.DataFrame:
    return frame[frame["kind"].isin([int(kind) for kind in wanted])]


def started(path: Path) -> int:
    return load(path).terms.started


# --- the files ------------------------------------------------------------------


def test_each_says_in_a_line_what_for() -> None:
    assert len(recipes()) >= 12
    for name, one in recipes().items():
        first = one.sql.splitlines()[0]
        assert first == f"-- {one.about}"
        assert 10 < len(one.about) < 60, name
        assert name == name.lower()


def test_each_fits_a_terminal_and_is_printed_whole(ask: Asking) -> None:
    assert max(map(len, ask("--list").splitlines())) < 80
    listed = ask.rows("--list")["Recipes"]
    assert [row["recipe"] for row in listed] == [*recipes()]
    for name, one in recipes().items():
        assert ask("--list", "--recipe", name) == one.sql
        assert max(map(len, one.sql.splitlines())) < 80


@pytest.mark.parametrize("name", recipes())
def test_each_can_be_asked_of_what_holds_nothing(
    name: str, ask: Asking, tmp_path: Path
) -> None:
    path = save(SimKernel().trace(), tmp_path / "x.arrows")
    assert ask.rows("--recipe", name, path) == []


# --- pages ----------------------------------------------------------------------


@pytest.fixture(scope="module", params=["story", "rfc", "services"])
def several(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, list[dict[str, Any]]]]:
    """Return recordings and what report says of them; in one, pages moved within
    their node.
    """
    name: str = request.param
    path = RFC
    if name != "story":
        path = unpacked(name, tmp_path_factory.mktemp("recordings"))
    return path, report(load(path))


BY_FAULT = ("fault", "thp", "interleave")
"""What a fault has brought, as the model tells it apart by policy and size."""


def test_arrivals(several, ask: Asking) -> None:
    path, reported = several
    told: dict[str, int] = {}
    for row in reported["Arrivals by cause"]:
        way = "fault" if row["cause"] in BY_FAULT else row["cause"]
        told[way] = told.get(way, 0) + row["pages"]
    rows = ask.rows("--recipe", "arrivals", path)
    assert {row["way"]: row["pages"] for row in rows} == told
    assert {row["node"] for row in rows} == {CDM}
    assert len(told) > 3


def test_migrations(several, ask: Asking) -> None:
    path, reported = several
    told: Counter[tuple[Any, ...]] = Counter()
    for row in reported["Migrations"]:
        if row["from"] != row["to"]:
            told[row["from"], row["to"], row["cause"]] += row["pages"]
    rows = ask.rows("--recipe", "migrations", path)
    mine = {(row["from"], row["to"], row["way"]): row["pages"] for row in rows}
    assert mine == told
    assert len(mine) > 2


def test_ping_pong(several, ask: Asking) -> None:
    path, reported = several
    rows = ask.rows("--recipe", "ping-pong", path)
    tables = reported["Pages that move to and fro"]
    assert tables
    for told in tables:
        low, high = (int(end, 16) for end in told["VMA"].split("-"))
        mine = [row for row in rows if low <= int(row["addr"], 16) < high]
        assert len(mine) == told["pages"]
        assert sum(row["moves"] for row in mine) == told["moves"]
        assert {row["route"] for row in mine} == {told["route"]}
        assert {row["pid"] for row in mine} == {told["pid"]}
    assert len(rows) == sum(told["pages"] for told in tables)


def test_a_page_that_is_mapped_anew_is_another_one(ask: Asking, tmp_path: Path) -> None:
    def path(*steps: tuple[EventKind, int, int]) -> Path:
        events = [
            Event(seq=n, ts=n, ts_entry=n, kind=kind, mm=7, pid=3, tid=3, addr=PAGE)
            for n, (kind, _, _) in enumerate(steps, 1)
        ]
        events = [
            replace(event, src_node=source, node=node, size=PAGE)
            for event, (_, source, node) in zip(events, steps, strict=True)
        ]
        trace = SimKernel().trace()
        made = replace(trace, events=events, count=len(events))
        return save(made, tmp_path / f"{len(steps)}.arrows")

    there, back = (EventKind.MIGRATE, 0, 1), (EventKind.MIGRATE, 1, 0)
    (row,) = ask.rows("--recipe", "ping-pong", path(there, back))
    assert (row["moves"], row["route"], row["addr"]) == (2, "0 > 1 > 0", hex(PAGE))
    anew = (EventKind.MAP, -1, 0)
    assert ask.rows("--recipe", "ping-pong", path(there, anew, there)) == []


def test_faults_per_second(ask: Asking, raw: pd.DataFrame) -> None:
    maps = kinds(raw, EventKind.MAP)
    maps = maps[maps["node"] == CDM]
    second = (maps["ts"].astype("int64") - started(RFC)) // 10**9
    told = maps.groupby(second).agg(
        faults=("seq", "size"), size=("size", "sum"), processes=("mm", "nunique")
    )
    rows = ask.rows("--recipe", "faults-per-second", RFC)
    assert tuples(rows, "second", "faults", "pages", "processes") == [
        (second, row["faults"], row["size"] // PAGE, row["processes"])
        for second, row in told.iterrows()
    ]
    assert sum(row["faults"] for row in rows) == 266


def test_the_stacks_of_allocations(ask: Asking, raw: pd.DataFrame) -> None:
    stacks = load(RFC).stacks
    allocs = kinds(raw, EventKind.ALLOC)
    allocs = allocs[allocs["node"] == CDM]
    told: Counter[str] = Counter()
    for _, row in allocs.iterrows():
        told[stacks[row["stack"]].functions[0]] += row["size"] // PAGE
    rows = ask.rows("--recipe", "alloc-stacks", RFC)
    mine = {row["stack"].split(" < ")[0].split("+")[0]: row["pages"] for row in rows}
    assert mine == told
    assert sum(row["allocations"] for row in rows) == len(allocs) == 266
    assert [row["pages"] for row in rows] == sorted(mine.values(), reverse=True)


def test_tagged_without_pages(ask: Asking) -> None:
    told = []
    for life in check(load(RFC), rules=()).lives:
        for area in life.state.areas:
            held = life.state.pages.within(area.start, area.end)
            if (area.flags or 0) & TAG and not [*held]:
                told.append((life.mm.pid, hex(area.start), hex(area.end)))
    rows = ask.rows("--recipe", "tagged-without-pages", RFC)
    assert tuples(rows, "pid", "start", "end") == sorted(told)
    assert len(rows) == 14
    assert ask.rows("--recipe", "tagged-without-pages", NONE)


def test_from_policy_to_page(ask: Asking, raw: pd.DataFrame) -> None:
    policies = kinds(raw, EventKind.POLICY)
    arrivals = kinds(raw, EventKind.MAP, EventKind.MIGRATE, EventKind.COLLAPSE)
    told = []
    for _, set_ in policies.iterrows():
        if set_["ret"] or set_["policy"] & 15 in (0, 4):
            continue
        later = policies[
            (policies["seq"] > set_["seq"])
            & (policies["mm"] == set_["mm"])
            & (policies["start"] == set_["start"])
        ]["seq"].min()
        pages = arrivals[
            (arrivals["mm"] == set_["mm"])
            & (arrivals["node"] == CDM)
            & (arrivals["seq"] > set_["seq"])
            & ~(arrivals["seq"] >= later)
            & (arrivals["addr"] >= set_["start"])
            & (arrivals["addr"] < set_["end"])
        ]
        waited = None
        if len(pages):
            waited = round((int(pages["ts"].min()) - int(set_["ts"])) / 1e3, 3)
        told.append((hex(set_["start"]), waited))
    rows = ask.rows("--recipe", "policy-to-page", RFC)
    assert tuples(rows, "start", "microseconds") == told
    assert len(told) == 13
    assert [waited for _, waited in told].count(None) == 4


# --- flags, calls, findings, losses ---------------------------------------------


def test_flag_writers(ask: Asking, raw: pd.DataFrame) -> None:
    changed = raw[raw["flags_before"] != raw["flags_after"]]
    told = Counter(
        (Probe(row["probe"]).name.lower(), row["lock_entry"])
        for _, row in changed.iterrows()
    )
    locks = {"read": 2, "write": 3}
    mine: Counter[tuple[str, int]] = Counter()
    for row in ask.rows("--recipe", "flag-writers", RFC):
        mine[row["probe"], locks[row["lock before"]]] += row["rows"]
        assert row["before"] != row["after"]
    assert mine == told
    assert mine["alloc", 2] == 2


def test_tag_changes(ask: Asking, raw: pd.DataFrame) -> None:
    before, after = (
        raw[name].to_numpy() & TAG != 0 for name in ("flags_before", "flags_after")
    )
    changed = raw[before != after]
    rows = ask.rows("--recipe", "tag-changes", RFC)
    assert tuples(rows, "start", "end") == [
        (hex(row["start"]), hex(row["end"])) for _, row in changed.iterrows()
    ]
    assert [row["lock"] for row in rows].count("read") == 2
    assert {row["tag"] for row in rows} == {"came"}
    mended = ask.rows("--recipe", "tag-changes", NONE)
    assert {row["tag"] for row in mended} == {"came", "went"}


def test_longest_mbind(ask: Asking, raw: pd.DataFrame) -> None:
    calls = kinds(raw, EventKind.CALL)
    calls = calls[calls["probe"] == int(Probe.SYS_MBIND)]
    took = (calls["ts"] - calls["ts_entry"]).sort_values(ascending=False).head(20)
    rows = ask.rows("--recipe", "longest-mbind", RFC)
    told = [ns / 1e3 for ns in took]
    assert [row["microseconds"] for row in rows] == pytest.approx(told, abs=0.001)
    assert rows[0]["policy"] == "BIND:0"


def test_failed_calls(ask: Asking, tmp_path: Path) -> None:
    assert ask.rows("--recipe", "failed-calls", RFC) == []
    path = unpacked("mergeable-honoured", tmp_path)
    told = Counter(
        (Probe(event.probe).name.lower(), -event.ret)
        for event in load(path).events
        if event.kind == EventKind.CALL and event.ret < 0
    )
    rows = ask.rows("--recipe", "failed-calls", path)
    assert {(row["probe"], row["errno"]): row["calls"] for row in rows} == told
    assert told["sys_mbind", 95] == 1


def test_findings(ask: Asking) -> None:
    found = check(load(RFC)).findings
    told = Counter((one.rule.id, one.cause, one.mm.comm) for one in found)
    rows = ask.rows("--recipe", "findings", RFC)
    assert {
        (row["rule"], row["cause"], row["comm"]): row["findings"] for row in rows
    } == told
    assert sum(row["times"] for row in rows) == sum(one.count for one in found)
    assert ask.rows("--recipe", "findings", NONE) == []


def test_the_stacks_of_witnesses(ask: Asking) -> None:
    steps = [step for one in check(load(RFC)).findings for step in one.witness]
    rows = ask.rows("--recipe", "witness-stacks", RFC)
    assert [row["what"] for row in rows] == [step.what for step in steps]
    for row, step in zip(rows, steps, strict=True):
        lines = (row["stack"] or "").replace(" < ", "\n").encode()
        assert (Stack.parse(lines).functions if lines else ()) == step.stack
        assert row["seconds"] == pytest.approx(step.since_start / 1e9, abs=1e-6)
    assert len(rows) > 30


def test_lost(ask: Asking, tmp_path: Path) -> None:
    assert ask.rows("--recipe", "lost", RFC) == []
    trace = lossy()
    path = save(trace, tmp_path / "x.arrows")
    told: Counter[tuple[str, str]] = Counter()
    for gap in trace.gaps:
        told[gap.probe, gap.reason] += gap.count
    rows = ask.rows("--recipe", "lost", path)
    assert {(row["probe"], row["reason"]): row["lost"] for row in rows} == told
    assert [row["lost"] for row in rows] == [23, 9, 2]
    spaces = {row["probe"]: row["address spaces"] for row in rows}
    assert spaces == {"alloc": 2, "rmap_add": 0, "watch": 1}
    ends = {row["probe"]: row["until"] for row in rows}
    # What is not followed is so for ever.
    assert ends["watch"] is None
    assert ends["alloc"] is not None


def lossy() -> Trace:
    """Return a recording of which something is missing."""
    kernel = SimKernel()
    simstory.tell(kernel)
    trace = kernel.trace()
    gaps = [
        Gap(probe="alloc", reason="ring", count=19, since=0, until=0, mm=7),
        Gap(probe="alloc", reason="ring", count=4, since=0, until=0, mm=8),
        Gap(probe="rmap_add", reason="unpaired", count=9, since=0, until=0),
        Gap(probe="watch", reason="map", count=2, since=0, until=0, mm=7),
    ]
    return Trace(
        path="x",
        terms=trace.terms,
        events=trace.events,
        count=trace.count,
        gaps=tuple(gaps),
    )


def test_what_they_name_by_hand_is_in_events_h() -> None:
    known = {one.name.lower() for one in (*EventKind, *Probe)}
    # Locks, and words of their own.
    known |= {"read", "write", "came", "went"}
    for name, one in recipes().items():
        words = {word for word in one.sql.split("'")[1::2] if word.isidentifier()}
        words = {word for word in words if word.islower() and word != "sys_"}
        assert words <= known, name
