from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pytest
from signatures import types_of

from cdmtrace.cli import main
from cdmtrace.kernel import symbols, tracefs
from cdmtrace.kernel.btf import Btf

FUNCTIONS = frozenset(
    (
        *("vma_alloc_folio", "mbind_range", "mbind_range.isra.0", "migrate_pages"),
        *("page_add_new_anon_rmap", "page_add_anon_rmap", "page_add_file_rmap"),
        *("copy_page_range", "__split_vma", "exit_mmap"),
    )
)
TRACEPOINTS = frozenset({"syscalls:sys_enter_mbind", "syscalls:sys_exit_mbind"})


@pytest.fixture(autouse=True)
def _kernel(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A kernel without ksm_madvise and page_remove_rmap, with a copy."""
    monkeypatch.setattr("os.geteuid", lambda: 0)
    monkeypatch.setattr(tracefs, "mounted", lambda: tmp_path)
    monkeypatch.setattr(tracefs, "tracepoints", lambda root: TRACEPOINTS)
    monkeypatch.setattr(symbols, "functions", lambda: FUNCTIONS)
    monkeypatch.setattr(Btf, "load", lambda: types_of("6.1"))


def run(capsys: pytest.CaptureFixture[str], form: str) -> str:
    assert main(["probes", "--format", form]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    return out


def test_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    found = json.loads(run(capsys, "json"))
    rows = {row["probe"]: row for row in found["probes"]}
    assert rows["alloc"]["state"] == "attach"
    assert rows["alloc"]["attachments"] == [
        {"handler": "alloc_return", "kind": "kretprobe", "symbol": "vma_alloc_folio"},
        {"handler": "alloc_entry", "kind": "kprobe", "symbol": "vma_alloc_folio"},
    ]
    assert rows["mbind_range"]["state"] == "partial"
    assert rows["mbind_range"]["unseen"] == ["mbind_range.isra.0"]
    assert rows["rmap_remove"]["state"] == "missing"
    assert rows["rmap_remove"]["missing"] == "page_remove_rmap"
    assert rows["rmap_remove"]["required"] is True
    assert rows["rmap_remove"]["attachments"] == []
    assert rows["sys_mbind"]["state"] == "attach"
    costs = {row["rule"]: row["missing"] for row in found["uncheckable rules"]}
    assert costs == {
        "CDM001": ["rmap_remove"],
        "CDM006": ["ksm_merge"],
        "CDM007": ["ksm_madvise"],
        "CDM008": ["numa_scan"],
        "CDM009": ["numa_migrate"],
        "CDM016": ["rmap_remove"],
        "CDM021": ["rmap_remove"],
    }


@pytest.mark.parametrize("form", ["table", "markdown"])
def test_for_people(form: str, capsys: pytest.CaptureFixture[str]) -> None:
    out = run(capsys, form)
    text = [" ".join(line.replace("|", " ").split()) for line in out.splitlines()]
    for line in (
        (
            "alloc vma_alloc_folio kretprobe, kprobe would attach "
            "CDM001 CDM002 CDM003 CDM004 CDM005 CDM010 CDM013 CDM014 CDM015 CDM016 "
            "CDM017 CDM018 CDM021"
        ),
        "ksm_madvise - kretprobe, kprobe missing: ksm_madvise CDM007",
        "CDM001 rmap_remove",
    ):
        assert line in text, out
    assert "copies not seen: mbind_range.isra.0" in out
    assert "missing: page_remove_rmap (required)" in out


def test_for_programs(capsys: pytest.CaptureFixture[str]) -> None:
    lines = [json.loads(line) for line in run(capsys, "ndjson").splitlines()]
    assert {line["table"] for line in lines} == {"probes", "uncheckable rules"}
    rows = list(csv.reader(io.StringIO(run(capsys, "csv"))))
    assert ["uncheckable rules", "CDM001", "rmap_remove"] in rows


def test_not_root(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    assert main(["probes"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert "by root alone" in err
    assert "hint: sudo cdmtrace probes" in err
