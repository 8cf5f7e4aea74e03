"""Runs in the guest: what probes cost where nothing has to do with CDM.

Leaves cost.json in the working directory:

- ``programs``: of each BPF program, and of two empty ones, (runs, ns) by the
  kernel's own statistics, for each round in which a worker does a bit of everything
  on plain RAM.
- ``loop``: seconds of a loop that does nothing but fault, for each round: untraced,
  with an empty kprobe and kretprobe on the function of every fault, and recorded.

The worker waits whenever probes are attached or detached.

Usage: probe_cost_guest.py ROUNDS
"""

from __future__ import annotations

import ctypes
import json
import mmap
import os
import re
import signal
import sys
import time
from pathlib import Path
from typing import Any
from unittest import mock

from cdmtrace import recorder, snapshot
from cdmtrace.events import EVENT_DTYPE
from cdmtrace.kernel import symbols, tracefs
from cdmtrace.loader import bcc
from cdmtrace.options import Options
from cdmtrace.probes import Kind, Plan, plan
from cdmtrace.ring import Ring

LIBC = ctypes.CDLL(None, use_errno=True)
LIBC.mremap.restype = ctypes.c_void_p
PAGE = mmap.PAGESIZE
PRIVATE = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
MBIND, BIND, RAM_MASK = 237, 2, 1
MADV_UNMERGEABLE = 13
FAULTED = "handle_mm_fault"
"""Called once for each fault, and not probed by cdmtrace."""
EMPTY = """
int empty_entry(void *ctx) { return 0; }
int empty_return(void *ctx) { return 0; }
"""
LOOP_PAGES, PAGES, TIMES = 20_000, 256, 10
RING_PAGES = 4096


# --- the worker -----------------------------------------------------------------


def region(pages: int) -> tuple[mmap.mmap, int]:
    """Return an anonymous region without huge pages, and its address."""
    area = mmap.mmap(-1, pages * PAGE, flags=PRIVATE)
    area.madvise(mmap.MADV_NOHUGEPAGE)
    return area, ctypes.addressof(ctypes.c_char.from_buffer(area))


def call(number: int, *arguments: int) -> None:
    if LIBC.syscall(number, *map(ctypes.c_ulong, arguments)):
        raise OSError(ctypes.get_errno(), f"system call {number}")


def fault_loop() -> float:
    """Return the seconds that it takes to write to so many pages for the first time."""
    area, start = region(LOOP_PAGES)
    since = time.monotonic()
    ctypes.memset(start, 1, len(area))
    return time.monotonic() - since


def in_a_child(start: int, *, bind: bool) -> None:
    """Fork, and write to pages there; give them a policy of RAM first, if asked to."""
    pid = os.fork()
    if not pid:
        if bind:
            mask = ctypes.c_ulong(RAM_MASK)
            call(MBIND, start, 4 * PAGE, BIND, ctypes.addressof(mask), 65, 0)
        ctypes.memset(start, 2, 16 * PAGE)
        os._exit(0)
    os.waitpid(pid, 0)


def a_bit_of_everything() -> None:
    """Fault, fork, copy, map files, move, split, compact: all on RAM."""
    for _ in range(TIMES):
        area, start = region(PAGES)
        ctypes.memset(start, 1, len(area))
        in_a_child(start, bind=False)
        LIBC.mprotect(ctypes.c_void_p(start), 64 * PAGE, mmap.PROT_READ)
        area.madvise(MADV_UNMERGEABLE)
        area.madvise(mmap.MADV_DONTNEED, 64 * PAGE, 64 * PAGE)
        new = LIBC.mremap(
            *(ctypes.c_void_p(start + 128 * PAGE), ctypes.c_ulong(64 * PAGE)),
            *(ctypes.c_ulong(128 * PAGE), 1),
        )
        LIBC.munmap(ctypes.c_void_p(new), 128 * PAGE)
    path = Path("/tmp/probe-cost")
    path.write_bytes(bytes(PAGES * PAGE))
    with path.open("rb") as file:
        for _ in range(TIMES):
            with mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapped:
                mapped.madvise(mmap.MADV_RANDOM)
                sum(mapped[at] for at in range(0, len(mapped), PAGE))
    kept, start = region(8 * PAGES)
    ctypes.memset(start, 1, len(kept))
    Path("/proc/sys/vm/compact_memory").write_text("1")


def policies() -> None:
    """Set policies of RAM: that calls do is told, and their processes followed then."""
    kept, start = region(16)
    for _ in range(TIMES):
        in_a_child(start, bind=True)
    kept.close()


ORDERS = {b"l": fault_loop, b"e": a_bit_of_everything, b"p": policies}


def work(orders: int, answers: int) -> None:
    """Do what is ordered, one byte each time, and answer with the seconds it took."""
    while order := os.read(orders, 1):
        seconds = ORDERS[order]()
        os.write(answers, f"{seconds or 0.0}\n".encode())


class Worker:
    """A process of its own: of the recorder's nothing is recorded."""

    def __init__(self) -> None:
        self._theirs, self._orders = os.pipe()
        self._answers, theirs = os.pipe()
        self.pid = os.fork()
        if not self.pid:
            os.close(self._orders)
            work(self._theirs, theirs)
            os._exit(0)

    def do(self, order: bytes) -> float:
        """Return the seconds that it took."""
        os.write(self._orders, order)
        return float(os.read(self._answers, 64))

    def end(self) -> None:
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)


# --- the probes -------------------------------------------------------------------


class Compiled(Exception):
    """Carries the loader out of record(), which would go on otherwise."""


def load() -> bcc.BccLoader:
    """Return the program as ``record`` compiles it for this machine."""
    text = bcc.program_text
    bcc.program_text = lambda defines: text(defines) + EMPTY

    def compiled(numbers: dict[str, int]) -> Any:
        raise Compiled(bcc.BccLoader(numbers))

    options = Options(output=Path("none.arrows"), ring_pages=RING_PAGES)
    try:
        with mock.patch.object(recorder, "BccLoader", compiled):
            recorder.record(options)
    except Compiled as caught:
        loader: bcc.BccLoader = caught.args[0]
        return loader
    raise AssertionError("nothing was compiled")


def attach_empty(bpf: Any) -> None:
    bpf.attach_kretprobe(event=FAULTED, fn_name="empty_return", maxactive=bcc.MAXACTIVE)
    bpf.attach_kprobe(event=FAULTED, fn_name="empty_entry")


def detach_empty(bpf: Any) -> None:
    bpf.detach_kprobe(event=FAULTED, fn_name="empty_entry")
    bpf.detach_kretprobe(event=FAULTED, fn_name="empty_return")


def detach(bpf: Any, plans: tuple[Plan, ...]) -> None:
    for item in reversed(plans):
        pairs = zip(item.probe.attachments, item.symbols, strict=not item.missing)
        for attachment, symbol in reversed(list(pairs)):
            match attachment.kind:
                case Kind.KPROBE:
                    bpf.detach_kprobe(event=symbol, fn_name=attachment.handler)
                case Kind.KRETPROBE:
                    bpf.detach_kretprobe(event=symbol, fn_name=attachment.handler)
                case Kind.TRACEPOINT:
                    bpf.detach_tracepoint(tp=symbol)


def statistics(bpf: Any) -> dict[str, tuple[int, int]]:
    """Return program -> (runs, ns) until now, by the kernel."""
    found = {}
    for name, function in bpf.funcs.items():
        text = Path(f"/proc/self/fdinfo/{function.fd}").read_text()
        told = dict(re.findall(r"^(run_\w+):\s+(\d+)$", text, re.MULTILINE))
        found[name.decode()] = int(told["run_cnt"]), int(told["run_time_ns"])
    return found


def since(
    before: dict[str, tuple[int, int]], after: dict[str, tuple[int, int]]
) -> dict[str, tuple[int, int]]:
    return {
        name: (runs - before[name][0], ns - before[name][1])
        for name, (runs, ns) in after.items()
    }


def measure_programs(
    bpf: Any, worker: Worker, ring: Ring
) -> dict[str, tuple[int, int]]:
    """Return program -> (runs, ns) of one round in which every event is rejected."""
    before = statistics(bpf)
    worker.do(b"e")
    snapshot.look(worker.pid)
    after = statistics(bpf)
    if len(ring.drain()):
        raise AssertionError("this was to have nothing to do with CDM")
    found = since(before, after)
    worker.do(b"p")
    policy = since(after, statistics(bpf))
    ring.drain()
    return found | {n: told for n, told in policy.items() if n.startswith("mbind_")}


def main(rounds: int) -> None:
    """Measure, and leave cost.json."""
    worker = Worker()
    loader = load()
    bpf: Any = loader._bpf
    plans = plan(symbols.functions(), tracefs.tracepoints(tracefs.mounted()))
    loop: dict[str, list[float]] = {"untraced": [], "empty pair": [], "recorded": []}
    worker.do(b"l")
    for _ in range(rounds):
        loop["untraced"].append(worker.do(b"l"))
        attach_empty(bpf)
        loop["empty pair"].append(worker.do(b"l"))
        detach_empty(bpf)
        loader.attach(plans)
        loader.enable(True)
        loop["recorded"].append(worker.do(b"l"))
        loader.enable(False)
        detach(bpf, plans)

    loader.attach(plans)
    attach_empty(bpf)
    loader.enable(True)
    switch = Path("/proc/sys/kernel/bpf_stats_enabled")
    switch.write_text("1")
    with Ring(loader.ring_fd, RING_PAGES * PAGE, EVENT_DTYPE) as ring:
        programs = [measure_programs(bpf, worker, ring) for _ in range(rounds)]
    switch.write_text("0")
    loader.enable(False)
    detach_empty(bpf)
    Path("cost.json").write_text(json.dumps({"loop": loop, "programs": programs}))
    worker.end()
    loader.close()


if __name__ == "__main__":
    main(int(sys.argv[1]))
