#!/usr/bin/env python3
"""Measure what a live view costs the drain, on this kernel, without a guest.

    sudo benchmarks/live_cost.py [--rounds N] [--seconds S] [--rates LIST]

A BPF program, run by BPF_PROG_TEST_RUN, puts rows into a ring as fast as it is told; a
recorder (the real session, drain and writer) writes them to a file, with a live view
beside it and without, in turns. Prints a table in Markdown (docs/cost.md): of the
rounds the median, for losses the most.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import json
import mmap
import os
import pty
import statistics
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE)]

import ringsource as ring  # noqa: E402

from cdmtrace import looking  # noqa: E402
from cdmtrace.events import EVENT_DTYPE, EventKind, Mpol, Probe  # noqa: E402
from cdmtrace.format.reader import TraceReader  # noqa: E402
from cdmtrace.format.schema import Header, ProbeEntry  # noqa: E402
from cdmtrace.format.writer import TraceWriter  # noqa: E402
from cdmtrace.live import process  # noqa: E402
from cdmtrace.losses import Losses, Missing, Where  # noqa: E402
from cdmtrace.options import Options  # noqa: E402
from cdmtrace.session import Session  # noqa: E402

RING_PAGES = 4096
PAGES = 1 << 12
"""Pages that the rows tell of, one after the other, again and again."""

BASE = 0x100040000000
TAG = 1 << 38


def row() -> Any:
    """Return a row as the model likes to work on: a page of a tagged VMA is mapped."""
    one = np.zeros(1, EVENT_DTYPE)
    one["kind"], one["probe"] = EventKind.MAP, Probe.RMAP_ADD
    one["mm"], one["pid"], one["tid"] = 23, 42, 42
    one["start"], one["end"] = BASE, BASE + PAGES * mmap.PAGESIZE
    one["addr"], one["size"] = BASE, mmap.PAGESIZE
    one["flags_before"] = one["flags_after"] = 0x100073 | TAG
    one["policy"], one["nodes"], one["node"] = Mpol.BIND, 2, 1
    return one


def program(ring_fd: int, counts_fd: int) -> bytes:
    """Return a program that puts one row; its time is now, its page the next one.

    counts: u64 runs so far, u64 lost.
    """
    insn, mov, call = ring.insn, ring.mov, ring.call
    size = EVENT_DTYPE.itemsize
    words = row().view("<u8").tolist()
    fields = EVENT_DTYPE.fields
    assert fields is not None
    body = b"".join(
        insn(0x18, 1, imm=ctypes.c_int32(word & 0xFFFFFFFF).value)
        + insn(0, imm=ctypes.c_int32(word >> 32).value)
        + insn(0x7B, 6, 1, 8 * at)
        for at, word in enumerate(words)
    )
    body += call(5)  # r0 = ktime
    body += insn(0x7B, 6, 0, fields["ts"][1]) + insn(0x7B, 6, 0, fields["ts_entry"][1])
    # addr += (r8 % PAGES) * page
    body += insn(0x57, 8, imm=PAGES - 1) + insn(0x67, 8, imm=12)
    body += insn(0x79, 1, 6, fields["addr"][1]) + insn(0x0F, 1, 8)
    body += insn(0x7B, 6, 1, fields["addr"][1])
    quarter = RING_PAGES * mmap.PAGESIZE // 4
    body += insn(0xBF, 0, 6) + ring._submit(ring_fd, quarter, size)
    body += mov(0, 0) + ring.EXIT
    lost = mov(1, 1) + insn(0xDB, 7, 1, 8, 0) + mov(0, 0) + ring.EXIT
    return b"".join(
        [
            insn(0x62, 10, off=-4, imm=0),
            ring.load_map(1, counts_fd),
            insn(0xBF, 2, 10) + insn(0x07, 2, imm=-4),
            call(1),
            insn(0x55, 0, off=2, imm=0) + mov(0, 0) + ring.EXIT,
            insn(0xBF, 7, 0),
            mov(8, 1) + insn(0xDB, 7, 8, 0, 0x01),
            ring.load_map(1, ring_fd),
            mov(2, size) + mov(3, 0) + call(131),
            insn(0x55, 0, off=len(lost) // 8, imm=0) + lost,
            # r6 = the record
            insn(0xBF, 6, 0),
            body,
        ]
    )


class Source:
    """A ring that a program fills, as the recorder's loader has it."""

    def __init__(self) -> None:
        size = RING_PAGES * mmap.PAGESIZE
        create = ring.MAP_CREATE
        self.ring_fd = ring.bpf(
            create, struct.pack("=5I", ring.MAP_RINGBUF, 0, 0, size, 0)
        )
        self._counts = ring.bpf(create, struct.pack("=5I", ring.MAP_ARRAY, 4, 16, 1, 0))
        code = program(self.ring_fd, self._counts)
        text, gpl = (
            ctypes.create_string_buffer(code),
            ctypes.create_string_buffer(b"GPL"),
        )
        log = ctypes.create_string_buffer(1 << 16)
        attr = struct.pack(
            "=IIQQIIQ",
            *(ring.SOCKET_FILTER, len(code) // 8),
            *(ctypes.addressof(text), ctypes.addressof(gpl)),
            *(1, len(log), ctypes.addressof(log)),
        )
        try:
            self._program = ring.bpf(ring.PROG_LOAD, attr)
        except OSError:
            sys.stderr.write(log.value.decode())
            raise

    def run(self, times: int) -> None:
        """Put so many rows."""
        packet = ctypes.create_string_buffer(64)
        attr = struct.pack(
            *("=IIIIQQII", self._program, 0, 64, 0),
            *(ctypes.addressof(packet), 0, times, 0),
        )
        ring.bpf(ring.PROG_TEST_RUN, attr)

    def counts(self) -> tuple[int, int]:
        """Return how often it ran, and how many rows found no room."""
        key, value = ctypes.c_uint32(0), (ctypes.c_uint64 * 2)()
        where = ctypes.addressof(key), ctypes.addressof(value)
        ring.bpf(ring.MAP_LOOKUP, struct.pack("=IIQQQ", self._counts, 0, *where, 0))
        return int(value[0]), int(value[1])

    # --- what a loader has -------------------------------------------------------

    def enable(self, on: bool) -> None:
        """There is nothing to switch."""

    def lost(self) -> Losses:
        """Return the losses as the probe's."""
        return {Where(Probe.RMAP_ADD, 1): Missing(self.counts()[1])}

    def waiting(self) -> list[Any]:
        """Return nothing: nothing returns."""
        return []


def feed(source: Source, rate: int) -> None:
    """Put rows at a rate (a second) until somebody ends us, 100 times a second."""
    part = rate // 100
    due = time.monotonic()
    while True:
        source.run(part)
        due += 0.01
        time.sleep(max(due - time.monotonic(), 0))


@contextlib.contextmanager
def fed(source: Source, rate: int) -> Iterator[None]:
    """Have a process of its own put rows meanwhile."""
    pid = os.fork()
    if not pid:
        try:
            feed(source, rate)
        finally:
            os._exit(1)
    try:
        yield
    finally:
        os.kill(pid, 9)
        os.waitpid(pid, 0)


def header() -> Header:
    """Return a header that fits the rows."""
    probes = [
        ProbeEntry(id=probe, name=probe.name.lower(), symbol=probe.name, kind="kprobe")
        for probe in Probe
        if probe
    ]
    return Header(
        tool="benchmark",
        kernel_release=os.uname().release,
        kernel_build="",
        machine="",
        boot_id="",
        started=time.monotonic_ns(),
        utc_offset=0,
        page_size=mmap.PAGESIZE,
        ring_size=RING_PAGES * mmap.PAGESIZE,
        cdm_nodes=(1,),
        cdm_nodes_from="benchmark",
        vm_cdm_mask=TAG,
        vm_cdm_mask_from="benchmark",
        probes=tuple(probes),
    )


def record(path: Path, seconds: float, rate: int, *, live: bool) -> None:
    """Record; leave what it cost beside the file."""
    source = Source()
    # Nobody is looked at beforehand: that takes as long as there are processes.
    looking.snapshot.processes = frozenset
    options = Options(output=path, duration=seconds, ring_pages=RING_PAGES)
    said: list[str] = []
    with process.beside(said.append, live=live) as beside:
        if live:
            # Its imports come before the recording, as they do behind the compiler.
            time.sleep(4)
        with TraceWriter(path, header()) as writer:
            beside.show(path, writer.fileno())
            tell = (beside.say, beside.watch, beside.pid)
            session = Session(source, writer, options, *tell)  # type: ignore[arg-type]
            with contextlib.closing(session), fed(source, rate):
                begin, cpu = time.monotonic(), time.process_time()
                outcome = session.run(())
                cpu = time.process_time() - cpu
                took = time.monotonic() - begin
    path.with_suffix(".json").write_text(
        json.dumps(
            {
                "events": outcome.events,
                "lost": outcome.lost,
                "cpu": cpu,
                "seconds": took,
                "said": said,
            }
        )
    )


def once(directory: Path, seconds: float, rate: int, *, live: bool) -> dict[str, Any]:
    """Record in a process of its own, on a terminal; return what it cost."""
    path = directory / "x.arrows"
    path.unlink(missing_ok=True)
    ours, theirs = pty.openpty()
    words = [sys.executable, str(Path(__file__).resolve()), "--record", str(path)]
    words += ["--seconds", str(seconds), "--rates", str(rate)]
    words += ["--live"] if live else []
    drawn = bytearray()

    def look() -> None:
        with contextlib.suppress(OSError):
            while data := os.read(ours, 1 << 16):
                drawn.extend(data)

    looker = threading.Thread(target=look)
    looker.start()
    environment = {**os.environ, "TERM": "xterm-256color"}
    subprocess.run(words, check=True, stderr=theirs, env=environment)
    os.close(theirs)
    looker.join()
    os.close(ours)
    found: dict[str, Any] = json.loads(path.with_suffix(".json").read_text())
    with TraceReader(path) as trace:
        assert trace.info.clean_end
    found["drawn"] = len(drawn)
    assert bool(drawn) is live, bytes(drawn)[-2000:]
    assert not any("has ended" in line for line in found["said"]), found["said"]
    return found


def table(rounds: dict[tuple[int, bool], list[dict[str, Any]]]) -> list[str]:
    """Return what was measured, in Markdown."""
    lines = [
        "| asked for, rows/s | view | written, rows/s | lost | cpu, ns/row |",
        "|---:|---|---:|---:|---:|",
    ]
    for (rate, live), found in rounds.items():
        written = statistics.median(one["events"] / one["seconds"] for one in found)
        cost = statistics.median(one["cpu"] / one["events"] * 1e9 for one in found)
        lost = max(one["lost"] for one in found)
        view = "live" if live else "none"
        lines.append(f"| {rate:,} | {view} | {written:,.0f} | {lost:,} | {cost:,.0f} |")
    return lines


def main() -> None:
    """Do as the module says."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=8)
    parser.add_argument("--rates", default="10000,100000,500000")
    parser.add_argument("--record", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--live", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    rates = [int(rate) for rate in options.rates.split(",")]
    if options.record:
        record(options.record, options.seconds, rates[0], live=options.live)
        return
    rounds: dict[tuple[int, bool], list[dict[str, Any]]] = {
        (rate, live): [] for rate in rates for live in (False, True)
    }
    with tempfile.TemporaryDirectory(prefix="cdmtrace-bench-") as scratch:
        for _ in range(options.rounds):
            for (rate, live), found in rounds.items():
                one = once(Path(scratch), options.seconds, rate, live=live)
                found.append(one)
    print("\n".join(table(rounds)))


if __name__ == "__main__":
    main()
