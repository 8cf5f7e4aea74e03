"""No address of the kernel is in a recording; and if one were, it would be found."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from pointers import found_in

from cdmtrace.events import EVENT_DTYPE, EventKind
from cdmtrace.format.schema import Header
from cdmtrace.format.writer import TraceWriter

GOLDEN = sorted((Path(__file__).parents[1] / "golden").rglob("*.arrows"))
HEADER = Header(
    tool="",
    kernel_release="",
    kernel_build="",
    machine="",
    boot_id="00000000-0000-0000-0000-000000000000",
    started=1,
    utc_offset=1_700_000_000_000_000_000,
    page_size=4096,
    ring_size=4096,
    cdm_nodes=(1,),
    cdm_nodes_from="",
    vm_cdm_mask=1 << 38,
    vm_cdm_mask_from="",
    probes=(),
    command=(),
    filters={},
)
POINTER = 0xFFFF_8880_0123_4640


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
def test_there_is_none_in_a_recording(path: Path) -> None:
    assert found_in(path) == []


def written(path: Path, **columns: int) -> Path:
    """Write rows of two address spaces, and these values into one of the rows."""
    events = np.zeros(9, EVENT_DTYPE)
    events["kind"] = EventKind.STACK
    events["mm"] = np.arange(9)
    for name, value in columns.items():
        events[name][4] = value
    text = b"xyz" + (POINTER.to_bytes(8, "little") if not columns else b"abcdefgh")
    with TraceWriter(path, HEADER) as writer:
        writer.write(events, payloads=[None] * 8 + [text])
        writer.end("")
    return path


@pytest.mark.parametrize("name", ["start", "addr", "other", "nodes", "ts_entry"])
def test_one_in_a_column_is_found(name: str, tmp_path: Path) -> None:
    path = written(tmp_path / "t", **{name: POINTER})
    assert found_in(path) == [f"{name}: {POINTER:#x}"]


def test_one_at_an_odd_place_of_a_payload_is_found(tmp_path: Path) -> None:
    assert found_in(written(tmp_path / "t")) == [f"payload: {POINTER:#x}"]


def test_pointers_for_ids_are_found(tmp_path: Path) -> None:
    events = np.zeros(3, EVENT_DTYPE)
    events["mm"] = np.uint64(POINTER) + np.arange(3, dtype=np.uint64) * np.uint64(64)
    with TraceWriter(tmp_path / "t", HEADER) as writer:
        writer.write(events)
    assert len(found_in(tmp_path / "t")) == 3


@pytest.mark.parametrize("text", [f"{POINTER:#x}", f"{POINTER:x}", str(POINTER)])
def test_one_in_the_head_is_found(text: str, tmp_path: Path) -> None:
    head = replace(HEADER, command=("story", text))
    TraceWriter(tmp_path / "t", head).close()
    assert found_in(tmp_path / "t") == [f"head: {text}"]
