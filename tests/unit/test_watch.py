"""The trace file of a watch, which tells of what is written into it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cdmtrace.events import EVENT_DTYPE, EventKind, Events
from cdmtrace.format.reader import TraceReader
from cdmtrace.format.schema import Header
from cdmtrace.watch import Telling

HEADER = Header(
    tool="test",
    kernel_release="",
    kernel_build="",
    machine="x86_64",
    boot_id="",
    started=1000,
    utc_offset=0,
    page_size=4096,
    ring_size=0,
    cdm_nodes=(1,),
    cdm_nodes_from="test",
    vm_cdm_mask=1 << 38,
    vm_cdm_mask_from="test",
)
STACK = b"set_vm_cdm+0xb\ncdm_tag_now+0x8c"


class File:
    """The file, and what it has told."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.told: list[tuple[int, tuple[str, ...], str]] = []
        self.writer = Telling(path, HEADER)
        self.writer.hear = self.hear

    def hear(self, row: Any, stack: tuple[str, ...], comm: str) -> None:
        self.told.append((int(row["kind"]), stack, comm))

    def kinds(self) -> list[tuple[int, bytes | None]]:
        """Return kind and payload of each row."""
        self.writer.end("it is over")
        with TraceReader(self.path) as reader:
            table = reader.read()
        return list(
            zip(
                table.column("kind").to_pylist(),
                table.column("payload").to_pylist(),
                strict=True,
            )
        )


@pytest.fixture
def file(tmp_path: Path) -> Iterator[File]:
    made = File(tmp_path / "watch.arrows")
    yield made
    made.writer.close()


def rows(*kinds: EventKind, **columns: int) -> Events:
    made: Events = np.zeros(len(kinds), EVENT_DTYPE)
    made["kind"] = kinds
    made["tid"] = 7
    for name, value in columns.items():
        made[name] = value
    return made


def test_a_write_has_its_instruction_and_its_task(file: File) -> None:
    named = rows(EventKind.COMM)
    named["nodes"] = int.from_bytes(b"kworker", "little")
    file.writer.write(named)
    file.writer.write(rows(EventKind.STACK, stack=3), payloads=[STACK])
    file.writer.write(rows(EventKind.FLAGS, EventKind.WRITE, EventKind.CALL, stack=3))
    stack = ("set_vm_cdm+0xb", "cdm_tag_now+0x8c")
    assert file.told == [(EventKind.WRITE, stack, "kworker")]
    assert file.kinds() == [
        (EventKind.COMM, b"kworker"),
        (EventKind.STACK, STACK),
        (EventKind.FLAGS, None),
        (EventKind.WRITE, b"set_vm_cdm+0xb"),
        (EventKind.CALL, None),
    ]


def test_a_name_that_the_recorder_has_looked_up_is_one(file: File) -> None:
    file.writer.write(rows(EventKind.COMM), payloads=[b"bash"])
    file.writer.write(rows(EventKind.WRITE))
    assert file.told == [(EventKind.WRITE, (), "bash")]


def test_without_a_stack_it_has_none(file: File) -> None:
    file.writer.write(rows(EventKind.WRITE))
    assert file.told == [(EventKind.WRITE, (), "")]
    assert file.kinds() == [(EventKind.WRITE, None)]


def test_what_moves_a_vma_is_told(file: File) -> None:
    kinds = (EventKind.WATCH, EventKind.VMA_SPLIT, EventKind.VMA_MERGE)
    file.writer.write(rows(*kinds, EventKind.VMA_FREE))
    assert [kind for kind, _, _ in file.told] == [*kinds]


def test_a_look_for_a_vma_is_no_audit(file: File) -> None:
    """What was there before is told once."""
    counts = (EventKind.SNAP_VMA, EventKind.SNAP_PAGES, EventKind.SNAP_MM)
    file.writer.write(rows(*counts))
    file.writer.looked = True
    file.writer.write(rows(*counts))
    file.writer.write(
        rows(EventKind.SNAP_VMA, EventKind.STACK, EventKind.SNAP_MM, stack=3),
        payloads=[None, STACK, None],
    )
    assert file.kinds() == [
        *((kind, None) for kind in counts),
        (EventKind.STACK, STACK),
    ]
