"""The document of ``report --html``: the same as other verbs say, and bounded."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import simstory
from simkernel import BIND, CDM, DEFAULT, PREFERRED, SimKernel

from cdmtrace.analysis import activity, aggregate, document, history, page
from cdmtrace.analysis.frames import Trace, load
from cdmtrace.analysis.replay import check
from cdmtrace.analysis.timeline import follow

GOLDEN = Path(__file__).parents[1] / "golden"

Document = page.Document


@pytest.fixture(scope="module")
def trace() -> Trace:
    return load(GOLDEN / "cdm-6.1-rfc.arrows")


@pytest.fixture(scope="module")
def built(trace: Trace) -> Document:
    return page.build(trace, profile="intended")


def test_it_is_json_as_it_is(built: Document) -> None:
    text = json.dumps(built, allow_nan=False)
    assert len(text) < 200_000
    assert json.loads(text)["check"]["verdict"] == "violated"


def test_it_says_what_check_says(trace: Trace, built: Document) -> None:
    said = document.check(check(trace))
    assert {**said, "findings": []} == built["check"]
    ours = ("since", "until", "lane")
    assert said["findings"] == [
        {key: value for key, value in one.items() if key not in ours}
        for one in built["findings"]
    ]


def test_it_counts_what_report_counts(trace: Trace, built: Document) -> None:
    counted = aggregate.report(trace)
    for title, rows in built["tables"].items():
        assert rows == counted[title]
    keys = ("pid", "comm", "cause", "from", "to", "pages")
    assert [{key: row[key] for key in keys} for row in counted["Migrations"]] == built[
        "migrations"
    ]


def test_a_finding_is_in_the_lane_of_its_vma_at_its_time(built: Document) -> None:
    for at, one in enumerate(built["findings"]):
        lane = built["lanes"][one["lane"]]
        assert at in lane["findings"]
        assert lane["pid"] == one["pid"]
        start, end = (int(word, 16) for word in lane["vma"].split("-"))
        assert int(one["vma"]["start"], 16) < end
        assert start < int(one["vma"]["end"], 16)
        assert lane["since"] <= one["until"] <= (lane["until"] or 1e9)
        assert one["since"] <= one["until"]
    assert sum(len(lane["findings"]) for lane in built["lanes"]) == 15


@pytest.mark.parametrize("number", [0, 1, 5, 6, 11])
def test_a_lane_is_what_timeline_tells_of_the_vma(
    number: int, trace: Trace, built: Document
) -> None:
    lane = built["lanes"][number]
    addr = int(lane["vma"].split("-")[0], 16)
    told = history.document(follow(trace, lane["pid"], addr, profile="intended"), addr)
    (life,) = told["generations"]
    rows = [row for row in life["rows"] if row["VMA"]]
    assert lane["since"] == pytest.approx(float(life["since"]), abs=1e-6)
    assert lane["most"] == max(row["node 1"] for row in rows)
    assert lane["until"] == pytest.approx(float(life["until"]), abs=1e-6)

    def last(series: list[Document], time: float) -> Document:
        return [one for one in series if one["since"] <= time + 1e-6][-1]

    for row, after in zip(rows, [*rows[1:], None], strict=True):
        if after and after["time (s)"] == row["time (s)"]:
            continue
        now = float(row["time (s)"])
        assert last(lane["points"], now)["pages"].get(1, 0) == row["node 1"], row
        shown = last(lane["stretches"], now)
        assert shown["vma"] == row["VMA"]
        assert shown["policy"] == row["policy"]
        if row["after"]:
            tagged = row["after"].endswith("cd")
            assert shown["tag"] == ("tagged" if tagged else "untagged"), row
    changes = [row for row in rows if row["before"] != row["after"]]
    marked = [
        (each["lock"], each["flags"], each["row"])
        for mark in lane["marks"]
        if mark["sort"] == "flags"
        for each in mark["rows"]
    ]
    assert marked == [
        (row["lock"], f"{row['before']} -> {row['after']}", row["row"])
        for row in changes
    ]


def test_how_much_happened_when_is_all_that_happened(built: Document) -> None:
    counts = built["activity"]["counts"]
    (node,) = built["tables"]["Nodes"]
    came = sum(counts["came"]) + sum(counts["migrated in"])
    assert (came, sum(counts["left"])) == (node["pages came"], node["pages left"])
    changed = built["tables"]["Changes of vm_flags"]
    assert sum(counts["flags"]) == sum(row["changes"] for row in changed)
    for bins in counts.values():
        assert activity.BINS / 2 < len(bins) <= activity.BINS
    begun = built["activity"]["since"]
    assert 4.7 < begun < min(lane["since"] for lane in built["lanes"]) + 0.1


def test_of_more_than_it_has_it_says_how_much(
    trace: Trace, built: Document, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(page, "LANES", 5)
    monkeypatch.setattr(page, "FINDINGS", 11)
    monkeypatch.setattr(page, "MIGRATIONS", 1)
    monkeypatch.setattr(page, "ROWS", 2)
    less = page.build(trace, profile="intended")
    assert less["left_out"] == {
        "vmas": built["left_out"]["vmas"],
        "lanes": len(built["lanes"]) - 5,
        "findings": 4,
        "processes": len(built["tables"]["Processes"]) - 2,
        "losses": 0,
        **{
            title: max(len(built["tables"][title]) - 2, 0)
            for title in ("Nodes", "Arrivals by cause", "Changes of vm_flags")
        },
    }
    # The worst of those that have the first finding of an id.
    first: dict[str, int] = {}
    for at, one in enumerate(built["findings"]):
        first.setdefault(one["fingerprint"], at)
    told = [
        lane["vma"]
        for lane in built["lanes"]
        if not {*first.values()}.isdisjoint(lane["findings"])
    ]
    assert len(told) > 5
    assert [lane["vma"] for lane in less["lanes"]] == told[:5]
    # Each sort of finding is there, though one has eight.
    ids = {one["fingerprint"] for one in built["findings"]}
    assert {one["fingerprint"] for one in less["findings"]} == ids
    assert {one["lane"] for one in less["findings"]} <= {None, *range(5)}
    assert [row["pid"] for row in less["migrations"]].count("others") == 3
    total = sum(row["pages"] for row in built["migrations"])
    assert sum(row["pages"] for row in less["migrations"]) == total


def test_many_of_one_kind_leave_nothing_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """An error in each of many VMAs, and one warning's VMA: that is drawn, too."""
    kernel = SimKernel("rfc")
    task = kernel.process()
    task.mbind(task.mmap(1).start, 1)
    task.set_mempolicy(PREFERRED, CDM)
    for _ in range(7):
        task.faults(task.mmap(3))
    task.set_mempolicy(DEFAULT)
    stale = task.mmap(5)
    task.mbind(stale.start, 5, BIND, CDM)
    task.faults(stale)
    task.dontneed(stale.start, 5)
    task.mbind(stale.start, 5, DEFAULT)
    whole = page.build(kernel.trace(), profile="intended")
    place = [lane["vma"] for lane in whole["lanes"]].index(
        f"{stale.start:x}-{stale.end:x}"
    )
    assert place >= 7
    monkeypatch.setattr(page, "LANES", 3)
    monkeypatch.setattr(page, "FINDINGS", 6)
    less = page.build(kernel.trace(), profile="intended")
    assert whole["lanes"][place]["vma"] in {lane["vma"] for lane in less["lanes"]}
    ids = {one["fingerprint"]: one["lane"] for one in reversed(less["findings"])}
    assert ids.keys() == {one["fingerprint"] for one in whole["findings"]}
    assert None not in ids.values()


def test_another_profile_has_other_findings(trace: Trace) -> None:
    patches = page.build(trace, profile="rfc-v2")
    assert patches["check"]["profile"] == "rfc-v2"
    assert len(patches["findings"]) != 15


def test_losses_are_told_with_their_time() -> None:
    kernel = SimKernel("rfc")
    simstory.tell(kernel)
    kernel.lose("alloc", 0)
    built = page.build(kernel.trace(), profile="intended")
    (loss,) = built["losses"]
    assert "1 row of alloc" in loss["what"]
    assert 0 <= loss["since"] <= loss["until"] <= built["recording"]["seconds"]


def test_a_kernel_without_a_tag_has_no_tag_in_its_lanes() -> None:
    kernel = SimKernel("stock")
    simstory.tell(kernel)
    built = page.build(kernel.trace(), profile="intended")
    tags = {one["tag"] for lane in built["lanes"] for one in lane["stretches"]}
    assert tags == {"none"}
    assert not built["recording"]["tag"]


def test_a_recording_of_nothing_has_a_page(trace: Trace) -> None:
    empty = Trace(path="empty.arrows", terms=trace.terms, events=[], count=0)
    built = page.build(empty, profile="intended")
    assert (built["lanes"], built["findings"], built["migrations"]) == ([], [], [])
    assert json.dumps(built, allow_nan=False)
