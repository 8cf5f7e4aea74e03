"""A view of a file that the model would not survive."""

from __future__ import annotations

import os
import time
from pathlib import Path

import numpy as np
from mutations import recorded

from cdmtrace.events import EVENT_DTYPE, EventKind
from cdmtrace.format.schema import Shortfall
from cdmtrace.format.writer import TraceWriter
from cdmtrace.live.view import View


def test_rows_that_no_kernel_can_have_told(tmp_path: Path) -> None:
    """check takes no such file; its rows are counted all the same, and it ends."""
    header, events, payloads = recorded()
    events = events.copy()
    (first, *_) = (events["kind"] == EventKind.MAP).nonzero()[0].tolist()
    events["size"][first] = 1 << 60
    path = tmp_path / "x.arrows"
    with TraceWriter(path, header) as writer:
        writer.write(events, payloads=payloads)
        writer.end("test")
    fd = os.open(path, os.O_RDONLY)
    try:
        view = View(fd, str(path))
        view.count(time.monotonic() + 60)
        assert view.judge(time.monotonic() + 60)
        assert view.over
        frame = view.frame()
    finally:
        os.close(fd)
    assert frame.events == len(events)
    assert frame.damage is not None
    assert f"is about a page of {1 << 60} bytes" in frame.damage


def test_losses_without_rows_do_not_keep_it_from_the_clock(tmp_path: Path) -> None:
    """A recorder that is flooded writes such batches; so may whoever means harm."""
    header, _, _ = recorded()
    path = tmp_path / "x.arrows"
    one = Shortfall(probe="alloc", reason="ring", count=7)
    now = header.started + 1
    with TraceWriter(path, header) as writer:
        for step in range(300):
            window = (now + step, now + step)
            writer.write(np.zeros(0, EVENT_DTYPE), lost=[one], window=window)
        writer.end("test")
    fd = os.open(path, os.O_RDONLY)
    try:
        view = View(fd, str(path))
        # Time is up after the first rows that it gets, or what stands for them.
        assert not view.judge(time.monotonic() + 0.001)
        assert view.judge(time.monotonic() + 60)
    finally:
        os.close(fd)
