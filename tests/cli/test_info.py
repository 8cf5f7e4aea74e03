from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from cdmtrace.cli import main
from cdmtrace.events import EVENT_DTYPE, EventKind
from cdmtrace.format.reader import TraceReader
from cdmtrace.format.schema import Header, ProbeEntry, Shortfall
from cdmtrace.format.writer import TraceWriter

STARTED = 10**12


def header() -> Header:
    return Header(
        tool="cdmtrace 0.1.0",
        kernel_release="6.1.0-x",
        kernel_build="#1 SMP",
        machine="x86_64",
        boot_id="00000000-0000-0000-0000-000000000000",
        started=STARTED,
        utc_offset=1_600_000_000 * 10**9 - STARTED,
        page_size=4096,
        ring_size=1 << 24,
        cdm_nodes=(1, 3),
        cdm_nodes_from="--cdm-nodes",
        vm_cdm_mask=1 << 38,
        vm_cdm_mask_from="--vm-cdm-mask",
        vm_flags={0: "VM_READ", 31: "VM_MERGEABLE"},
        vm_flags_from="cdmtrace's table, Linux 6.1",
        probes=(
            ProbeEntry(id=1, name="alloc", symbol="vma_alloc_folio", kind="kprobe"),
            ProbeEntry(id=6, name="ksm_madvise", symbol=None, kind="kprobe"),
            ProbeEntry(
                id=27, name="rmap_walk", symbol=None, kind="kprobe", why_not="not asked"
            ),
        ),
        command=("sh", "-c", "echo two words\n" + "x" * 500),
        filters={"pid": 23},
    )


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    """23 events in two batches, 7 events lost before the second."""
    events = np.zeros(23, EVENT_DTYPE)
    events["kind"] = EventKind.MAP
    events["kind"][:5] = EventKind.ALLOC
    events["ts"] = STARTED + 10**9 + np.arange(23) * 10**6
    path = tmp_path / "x y.arrows"
    with TraceWriter(path, header()) as writer:
        writer.write(events[:11])
        lost = [
            Shortfall(probe="alloc", reason="ring", count=4, mm=7, end=4096),
            Shortfall(probe="rmap_add", reason="ring", count=3),
        ]
        window = (STARTED + 2 * 10**9, STARTED + 2 * 10**9 + 50)
        writer.write(events[11:], lost=lost, window=window)
        writer.end("the command ended")
    return path


def lines(capsys: pytest.CaptureFixture[str], *words: str) -> list[str]:
    assert main(["info", *words]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    return [" ".join(line.split()) for line in out.splitlines()]


def test_a_file_in_shadow_mode(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    none = "none: shadow mode; cdmtrace's table, Linux 6.1 does not define it"
    path = tmp_path / "x.arrows"
    head = dataclasses.replace(header(), vm_cdm_mask=0, vm_cdm_mask_from=none)
    with TraceWriter(path, head) as writer:
        writer.end("test")
    found = lines(capsys, str(path))
    at = found.index(f"VM_CDM {none}")
    assert found[at + 1] == (
        "told is what would have to be tagged; rules about the tag are not checked"
    )
    assert main(["info", "--format", "json", str(path)]) == 0
    told = json.loads(capsys.readouterr().out)["header"]["vm_cdm"]
    assert told == {"mask": "0x0", "from": none}


def test_what_is_in_a_file(trace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = lines(capsys, str(trace))
    for line in (
        "kernel 6.1.0-x x86_64 (#1 SMP)",
        "started 2020-09-13 12:26:40 UTC",
        "CDM nodes 1, 3 (from --cdm-nodes)",
        "VM_CDM 0x4000000000, bit 38 (from --vm-cdm-mask)",
        "vm_flags 2 bits named (from cdmtrace's table, Linux 6.1)",
        "filters pid 23",
        "probes 1 attached; missing: ksm_madvise, rmap_walk (not asked)",
        "ring 16.0 MiB",
        "events 23 in 3 batches",
        "time span 0.022000 s, from 1.000000 s after the start",
        "lost 7 events",
        "end clean: the command ended",
        "alloc 5",
        "map 18",
        "lost by because events since (s) until (s)",
        "alloc ring 4 0.000000 2.000000",
        "rmap_add ring 3 0.000000 2.000000",
        f"next: cdmtrace check '{trace}'",
    ):
        assert line in found, line
    assert max(map(len, found)) < 200
    assert not any(line.startswith("cut") for line in found)


def test_as_json(trace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", "--format", "json", str(trace)]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["schema"] == "cdmtrace.info/1"
    assert found["events"] == 23
    assert found["kinds"] == {"alloc": 5, "map": 18}
    assert found["lost"] == {"alloc": {"ring": 4}, "rmap_add": {"ring": 3}}
    assert [loss["batch"] for loss in found["losses"]] == [1, 1]
    assert found["header"]["command"][0] == "sh"
    assert found["header"]["vm_flags"] == {
        "bits": {"0": "VM_READ", "31": "VM_MERGEABLE"},
        "from": "cdmtrace's table, Linux 6.1",
    }
    assert found["clean_end"] is True
    assert found["torn"] is None
    assert found["last_ts"] - found["first_ts"] == 22 * 10**6
    assert found["bytes"]["total"] == found["bytes"]["intact"] == trace.stat().st_size


def test_a_file_that_was_cut(trace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with TraceReader(trace) as whole:
        second = [batch.offset for batch in whole][1]
    trace.write_bytes(trace.read_bytes()[: second + 100])
    found = lines(capsys, str(trace))
    assert "events 11 in 1 batch" in found
    assert "lost nothing" in found
    assert "end none: it was cut" in found
    assert any(line.startswith("cut batch 1 at byte ") for line in found)
    assert main(["info", "--format", "json", str(trace)]) == 0
    cut = json.loads(capsys.readouterr().out)
    assert cut["clean_end"] is False
    assert "the file ends" in cut["torn"]
    assert cut["bytes"]["intact"] < cut["bytes"]["total"] == second + 100


def test_a_bit_that_was_taken(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "taken.arrows"
    taken = dataclasses.replace(header(), extra={"vm_cdm_taken_by": "VM_MERGEABLE"})
    with TraceWriter(path, taken) as writer:
        writer.end("time was up")
    found = lines(capsys, str(path))
    assert "CDM020: this kernel uses the bit as VM_MERGEABLE" in found
    assert "events 0 in 1 batch" in found


def test_a_kind_of_a_later_version_is_called_by_its_number(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    events = np.zeros(2, EVENT_DTYPE)
    events["kind"] = 200
    path = tmp_path / "x.arrows"
    with TraceWriter(path, header()) as writer:
        writer.write(events)
        writer.end("time was up")
    assert "200 2" in lines(capsys, str(path))


@pytest.mark.parametrize(
    ("data", "message"),
    [(None, "cannot be read"), (b"", "is empty"), (b"text", "is not a trace file")],
)
def test_what_is_no_trace(
    tmp_path: Path,
    data: bytes | None,
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = tmp_path / "x.arrows"
    if data is not None:
        path.write_bytes(data)
    assert main(["info", str(path)]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert message in err
    assert "hint: " in err
