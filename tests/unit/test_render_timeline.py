"""The life of a VMA as text: runs that are folded, losses, what fits a line."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cdmtrace.render import timeline as render

ROW: dict[str, Any] = {
    "generation": 1,
    "row": 1,
    "time (s)": "1.000000",
    "cpu": 0,
    "task": "story/62",
    "kind": "map",
    "lock": "read",
    "before": "cd",
    "after": "cd",
    "policy": "BIND:1",
    "VMA": "1000-9000",
    "node 1": 1,
    "all known": True,
    "what": "page of node 1 mapped",
    "findings": "",
}
ALLOC = {**ROW, "kind": "alloc", "what": "page allocated on node 1"}
LOSS = {
    **dict.fromkeys(ROW, ""),
    "cpu": None,
    "kind": "loss",
    "time (s)": "1.000000",
    "all known": False,
    "what": "LOST: 3 rows of rmap_add (ring), until 2.000000",
}


def sizes(*rows: dict[str, Any]) -> list[int]:
    return [len(group) for group in render.fold(rows)]


def text(*rows: dict[str, Any], unfold: bool = False, **more: Any) -> str:
    life = {
        "generation": 1,
        "pid": 62,
        "comm": "story",
        "mm": "00ab",
        "VMA": "1000-9000",
        "pages": 8,
        "since": "1.000000",
        "began": "mapped",
        "until": "2.000000",
        "ended": "freed",
        "findings": [],
        "rows": list(rows),
    }
    document = {
        "shown": "t.arrows",
        "profile": "intended",
        "of": 2,
        "generations": [{**life, **more}],
    }
    command = "cdmtrace timeline t.arrows --pid 62 --addr 1000"
    return render.timeline(document, unfold=unfold, command=command)


def test_rows_that_are_alike_are_a_run_from_three_on() -> None:
    assert sizes(ROW, ROW) == [1, 1]
    assert sizes(ROW, ROW, ROW) == [3]
    assert sizes(*[ALLOC, ROW] * 3) == [6]
    assert sizes(*[ALLOC, ROW] * 2) == [1, 1, 1, 1]
    assert sizes(ALLOC, ALLOC, *[ROW, ALLOC] * 3) == [1, 6, 1]
    assert sizes(*[ALLOC, ROW] * 3, ALLOC) == [6, 1]
    four = [ALLOC, ROW, {**ROW, "what": "x"}, {**ROW, "what": "y"}]
    assert sizes(*four * 3) == [12]
    assert sizes(*[*four, {**ROW, "what": "z"}] * 3) == [1] * 15


@pytest.mark.parametrize(
    "change",
    [
        {"task": "story/63"},
        {"lock": "none"},
        {"before": "-", "after": "-"},
        {"before": "-"},
        {"policy": "DEFAULT"},
        {"VMA": "1000-8000"},
        {"all known": False},
        {"what": "page of node 0 mapped"},
        {"findings": "CDM001:ab"},
        {"kind": "policy"},
    ],
)
def test_what_differs_is_not_in_a_run(change: dict[str, Any]) -> None:
    other = {**ROW, **change}
    assert sizes(ROW, ROW, ROW, other, ROW, ROW, ROW) == [3, 1, 3]


@pytest.mark.parametrize("key", ["time (s)", "cpu", "node 1", "row"])
def test_when_where_and_how_many_may_differ(key: str) -> None:
    assert sizes(*({**ROW, key: number} for number in range(5))) == [5]


def test_one_line_tells_of_one_task_and_one_range() -> None:
    for change in ({"task": "x/1"}, {"after": "-", "before": "-"}, {"VMA": "1-2"}):
        assert sizes(*[ROW, {**ALLOC, **change}] * 3) == [1] * 6
    # Of two locks it can.
    rows = [{**ROW, "kind": "unmap", "lock": "none"}, {**ROW, "kind": "migrate"}] * 3
    assert sizes(*rows) == [6]
    assert " none,read " in text(*rows)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.sampled_from([ROW, ALLOC, LOSS, {**ROW, "findings": "CDM001:a"}])))
def test_folding_leaves_no_row_out(rows: list[dict[str, Any]]) -> None:
    groups = list(render.fold(rows))
    assert [row for group in groups for row in group] == rows
    assert all(group for group in groups)


def test_a_run_is_a_line_with_count_span_and_pages_after_it() -> None:
    rows = [
        {**one, "time (s)": f"1.00000{2 * n + k}", "node 1": n + k, "cpu": n}
        for n in range(4)
        for k, one in enumerate((ALLOC, ROW))
    ]
    shown = text(*rows)
    assert "N1=4" in shown
    assert "N1=3" not in shown
    flat = " ".join(shown.split())
    assert (
        "4 times: page allocated on node 1; page of node 1 mapped; until 1.000007"
    ) in flat
    assert "1.000000    *  story/62" in shown
    assert "7 rows folded; each on its own:" in shown
    assert shown.count("story/62") == 1
    whole = text(*rows, unfold=True)
    assert whole.count("story/62") == 8
    assert "folded" not in whole


def test_a_finding_is_marked_below_its_row() -> None:
    lines = text(
        {**ROW, "findings": "CDM001:ab CDM003:cd"},
        findings=[
            {"rule": "CDM001", "name": "stale-tag", "fingerprint": "ab"},
            {"rule": "CDM003", "name": "unlocked-write", "fingerprint": "cd"},
        ],
    ).splitlines()
    at = next(n for n, line in enumerate(lines) if "page of node 1" in line)
    marks = [line.strip() for line in lines if line.strip().startswith("^")]
    assert marks == ["^ CDM001 ab", "^ CDM003 cd"]
    assert lines.index("           ^ CDM001 ab") > at
    assert "  findings   CDM001 stale-tag, ab" in lines
    assert "             CDM003 unlocked-write, cd" in lines
    assert lines[-1] == "  cdmtrace explain t.arrows ab"


def test_without_a_finding_the_next_command_lists_others() -> None:
    assert text(ROW).endswith("\n  cdmtrace timeline t.arrows\n")


def test_a_loss_is_a_line_of_its_own() -> None:
    lines = text(ROW, LOSS, ROW).splitlines()
    assert "1.000000  LOST: 3 rows of rmap_add (ring), until 2.000000" in lines
    assert "?: there" not in text(ROW, LOSS, ROW)


def test_pages_that_are_not_known_are_marked_and_explained() -> None:
    shown = text({**ROW, "all known": False, "node 0": 3})
    assert "N1=1? N0=3?" in shown
    assert "?: there may be pages that the recording does not tell of" in shown


def test_another_range_is_told() -> None:
    shown = text(ROW, {**ROW, "VMA": "1000-5000"}, {**ROW, "VMA": ""})
    assert "           = the VMA is 1000-9000\n" in shown
    assert "           = the VMA is 1000-5000\n" in shown
    assert shown.count("= the VMA") == 2
    assert "= the VMA" not in text(ROW, {**ROW, "VMA": ""})


@pytest.mark.parametrize("task", ["story/62", "a-long-name.here/4194304"])
@pytest.mark.parametrize("what", ["short", "ksm_madvise(UNMERGEABLE)", "word " * 40])
def test_it_fits_eighty_columns(task: str, what: str) -> None:
    row = {**ROW, "task": task, "what": what.strip(), "before": "mr cd"}
    shown = text(row, {**row, "lock": "none+vma:read", "policy": "INTERLEAVE:0-1"})
    assert max(map(len, shown.splitlines())) < 80
    flat = " ".join(shown.split())
    assert flat.count(what.strip()) == 2
    for cell in (task, "none+vma:read", "mr cd -> cd", "INTERLEAVE:0-1", "N1=1"):
        assert cell in flat
    head = next(line for line in shown.splitlines() if "time (s)" in line)
    assert ("pages" in head) is (task == "story/62")


def test_a_line_that_nothing_makes_fit_is_cut() -> None:
    line = next(
        line
        for line in text({**ROW, "lock": "x" * 90, "what": "short"}).splitlines()
        if "xxx" in line
    )
    assert line.endswith("x..")
    assert len(line) == 79


# --- the list ---------------------------------------------------------------------


def test_a_list_has_why_and_command_below_each() -> None:
    rows = [
        {
            "pid": pid,
            "VMA": "1000-9000",
            "since (s)": "1.000000",
            "findings": 2,
            "most on CDM": 7,
            "changes": 1,
            "why": "CDM001 stale-tag, " * 9 + "end",
        }
        for pid in (0, *range(1, 25))
    ]
    commands = [f"cdmtrace timeline t --pid {row['pid']} --addr 1000" for row in rows]
    lines = render.candidates(rows, commands, files="t").splitlines()
    assert lines[0] == "VMAs that are worth a look: 25, the worst first"
    assert lines[3] == "  ?  1000-9000         2            7        1   1.000000"
    assert lines[4].startswith("     CDM001 stale-tag, CDM001")
    assert "     cdmtrace timeline t --pid 19 --addr 1000" in lines
    assert not [line for line in lines if "--pid 20 " in line]
    assert lines[-2:] == ["5 more:", "  cdmtrace timeline t --format csv"]
    assert max(map(len, lines)) < 80


def test_an_empty_list_says_why() -> None:
    shown = render.candidates([], [], files="t")
    assert shown.startswith("No VMA is worth a look: none has a finding, a page of a")
    assert shown.endswith("  cdmtrace report t\n")
