"""Runs in the guest: what a run of each handler takes where its event is rejected.

Leaves cost.json in the working directory: of each BPF program, and of two empty ones,
(runs, ns) by the kernel's own statistics, for each round in which a worker does a bit
of everything on plain RAM.

Usage: probe_cost_guest.py ROUNDS
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

from program import RING_PAGES, bpf_of, load
from worker import PAGE, Worker

from cdmtrace import snapshot
from cdmtrace.events import EVENT_DTYPE
from cdmtrace.kernel import symbols, tracefs
from cdmtrace.kernel.btf import Btf
from cdmtrace.loader.program import MAXACTIVE
from cdmtrace.planning import plan
from cdmtrace.ring import Ring

FAULTED = "handle_mm_fault"
"""Called once for each fault, and not probed by cdmtrace."""
EMPTY = """
int empty_entry(void *ctx) { return 0; }
int empty_return(void *ctx) { return 0; }
"""


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


def measure(bpf: Any, worker: Worker, ring: Ring) -> dict[str, tuple[int, int]]:
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
    loader = load(EMPTY)
    bpf = bpf_of(loader)
    tracepoints = tracefs.tracepoints(tracefs.mounted())
    loader.attach(plan(symbols.functions(), tracepoints, Btf.load()))
    bpf.attach_kretprobe(event=FAULTED, fn_name="empty_return", maxactive=MAXACTIVE)
    bpf.attach_kprobe(event=FAULTED, fn_name="empty_entry")
    loader.enable(True)
    switch = Path("/proc/sys/kernel/bpf_stats_enabled")
    switch.write_text("1")
    with Ring(loader.ring_fd, RING_PAGES * PAGE, EVENT_DTYPE) as ring:
        programs = [measure(bpf, worker, ring) for _ in range(rounds)]
    switch.write_text("0")
    Path("cost.json").write_text(json.dumps(programs))
    worker.end()
    loader.close()


if __name__ == "__main__":
    main(int(sys.argv[1]))
