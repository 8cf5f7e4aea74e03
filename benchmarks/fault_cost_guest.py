"""Runs in the guest: what a fault costs untraced, and under one tracer after the other.

Leaves faults.json in the working directory: for each tracer, and for faults that have
nothing to do with CDM ("ram") and those that bring a page of the CDM node ("cdm"),
seconds a page, one number a round. The tracers take turns within each round. Beside it,
what each has told of the pages of the CDM node.

Usage: fault_cost_guest.py ROUNDS
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import select
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from bareheader import bare
from idiom import PROBES, TEXT, Idiom
from program import RING_PAGES, bpf_of, detach, load
from worker import LOOP_PAGES, LOOPS, Worker

from cdmtrace.drain import Drain
from cdmtrace.filters import Filters
from cdmtrace.format.writer import TraceWriter
from cdmtrace.kernel import config, layout, symbols, tracefs
from cdmtrace.loader.program import ProgramLoader
from cdmtrace.planning import Plan, plan

HERE = Path(__file__).parent
FUNCTION = "vma_alloc_folio"
EMPTY = f"""
int empty_entry(void *ctx) {{ return 0; }}
int empty_return(void *ctx) {{ return 0; }}
int multi_entry(void *ctx) {{ return 0; }}
int multi_return(void *ctx) {{ return 0; }}
KFUNC_PROBE({FUNCTION}) {{ return 0; }}
KRETFUNC_PROBE({FUNCTION}) {{ return 0; }}
"""
HEADER = bare(RING_PAGES)
SYS_BPF, LINK_CREATE, KPROBE_MULTI, MULTI_RETURN = 321, 28, 42, 1
TRACEFS = Path("/sys/kernel/tracing")

Consumer = Callable[[], object]


def idle() -> None:
    """There is nothing to take out."""


@contextlib.contextmanager
def untraced() -> Iterator[Consumer]:
    yield idle


@contextlib.contextmanager
def empty_kprobes(bpf: Any) -> Iterator[Consumer]:
    bpf.attach_kretprobe(event=FUNCTION, fn_name="empty_return", maxactive=1024)
    bpf.attach_kprobe(event=FUNCTION, fn_name="empty_entry")
    yield idle
    bpf.detach_kprobe(event=FUNCTION, fn_name="empty_entry")
    bpf.detach_kretprobe(event=FUNCTION, fn_name="empty_return")


def detach_fentry(bpf: Any) -> None:
    bpf.detach_kfunc(f"kfunc__{FUNCTION}")
    bpf.detach_kretfunc(f"kretfunc__{FUNCTION}")


@contextlib.contextmanager
def empty_fentry(bpf: Any) -> Iterator[Consumer]:
    bpf.attach_kretfunc(f"kretfunc__{FUNCTION}")
    bpf.attach_kfunc(f"kfunc__{FUNCTION}")
    yield idle
    detach_fentry(bpf)


def link_multi(program: int, flags: int) -> int:
    """Return the fd of a kprobe.multi link; bcc knows nothing of them."""
    name = ctypes.create_string_buffer(FUNCTION.encode())
    names = (ctypes.c_char_p * 1)(ctypes.addressof(name))
    attr = struct.pack(
        "=IIIIIIQQQ",
        *(program, 0, KPROBE_MULTI, 0, flags, 1, ctypes.addressof(names), 0, 0),
    )
    buffer = ctypes.create_string_buffer(attr, len(attr))
    libc = ctypes.CDLL(None, use_errno=True)
    fd: int = libc.syscall(SYS_BPF, LINK_CREATE, buffer, len(attr))
    if fd < 0:
        raise OSError(ctypes.get_errno(), "BPF_LINK_CREATE")
    return fd


@contextlib.contextmanager
def empty_multi(bpf: Any) -> Iterator[Consumer]:
    fds = [
        link_multi(
            bpf.load_func(handler, bpf.KPROBE, attach_type=KPROBE_MULTI).fd, flags
        )
        for handler, flags in (("multi_return", MULTI_RETURN), ("multi_entry", 0))
    ]
    yield idle
    for fd in fds:
        os.close(fd)


@contextlib.contextmanager
def cdmtrace(
    name: str, loader: ProgramLoader, plans: tuple[Plan, ...]
) -> Iterator[Consumer]:
    loader.attach(plans)
    loader.enable(True)
    with TraceWriter(f"{name}.arrows", HEADER, force=True) as writer:
        drain = Drain(loader, writer, RING_PAGES)
        yield drain
        drain()
        drain.close()
        writer.end("measured")
        told(name, writer.events, drain.lost)
    loader.enable(False)
    detach(loader)


@contextlib.contextmanager
def bpftrace(shift: int) -> Iterator[Consumer]:
    with Path("bpftrace.out").open("w") as out:
        process = subprocess.Popen(
            ["bpftrace", str(HERE / "equivalent.bt"), str(shift)], stdout=out
        )
        try:
            while not Path("bpftrace.out").read_text().startswith("Attaching"):
                time.sleep(0.2)
            time.sleep(3)
            yield idle
        finally:
            process.send_signal(signal.SIGINT)
            process.wait()
    lines = Path("bpftrace.out").read_text().splitlines()
    told("bpftrace", sum(x.startswith(("alloc ", "map ")) for x in lines), None)


@contextlib.contextmanager
def idiom(bpf: Any, consumer: Idiom) -> Iterator[Consumer]:
    for handler, (kind, function) in PROBES.items():
        getattr(bpf, f"attach_{kind}")(event=function, fn_name=handler)
    yield consumer
    consumer()
    for handler, (kind, function) in PROBES.items():
        getattr(bpf, f"detach_{kind}")(event=function, fn_name=handler)


def define(line: str) -> None:
    """Add a line to kprobe_events, of which Python's open() cannot find the end."""
    fd = os.open(TRACEFS / "kprobe_events", os.O_WRONLY | os.O_APPEND)
    os.write(fd, line.encode() + b"\n")
    os.close(fd)


@contextlib.contextmanager
def ftrace(offsets: dict[str, int]) -> Iterator[Consumer]:
    """kprobe events, those of pages filtered by the node's bit; of the rest, all."""
    flags = f"+{offsets['OFF_vm_area_struct_vm_flags']}"
    page = f"+{offsets['OFF_page_flags']}"
    bit = 1 << offsets["NODES_PGSHIFT"]
    events = {
        "alloc": f"p:bench/alloc {FUNCTION} vma=$arg3 addr=$arg4 "
        f"flags={flags}($arg3):x64",
        "allocated": f"r:bench/allocated {FUNCTION} page=$retval "
        f"flags={page}($retval):x64",
        "mapped": "p:bench/mapped page_add_new_anon_rmap page=$arg1 vma=$arg2 "
        f"addr=$arg3 flags={page}($arg1):x64 vmflags={flags}($arg2):x64",
    }
    (TRACEFS / "trace").write_text("")
    for name, line in events.items():
        define(line)
        folder = TRACEFS / "events/bench" / name
        if name != "alloc":
            (folder / "filter").write_text(f"flags & {bit:#x}\n")
            (folder / "trigger").write_text(f"stacktrace if flags & {bit:#x}\n")
        (folder / "enable").write_text("1")
    with Path("ftrace.out").open("wb") as out:
        process = subprocess.Popen(["cat", str(TRACEFS / "trace_pipe")], stdout=out)
        time.sleep(0.5)
        yield idle
        time.sleep(1)
        process.kill()
        process.wait()
    for name in events:
        folder = TRACEFS / "events/bench" / name
        (folder / "enable").write_text("0")
        if name != "alloc":
            (folder / "trigger").write_text("!stacktrace\n")
        define(f"-:bench/{name}")
    text = Path("ftrace.out").read_text(errors="replace")
    told("ftrace", text.count(" allocated: ") + text.count(" mapped: "), None)


TOLD: dict[str, list[tuple[int, int | None]]] = {}


def told(name: str, events: int, lost: int | None) -> None:
    TOLD.setdefault(name, []).append((events, lost))


def measure(worker: Worker, order: bytes, consume: Consumer) -> float:
    """Return the seconds a page takes; what is told meanwhile is taken out."""
    worker.order(order)
    ready = select.poll()
    ready.register(worker.answers, select.POLLIN)
    while not ready.poll(50):
        consume()
    return worker.answer() / LOOP_PAGES


def main(rounds: int) -> None:
    """Measure, and leave faults.json."""
    worker = Worker()
    worker.do(b"l")
    one, everything = load(EMPTY + TEXT), load(all=True)
    stackless = load(filters=Filters(stacks="none"))
    bpf = bpf_of(one)
    # bcc attaches those as soon as it has compiled them.
    detach_fentry(bpf)
    btf = layout.Btf.load()
    kernel = layout.defines(btf, config.load())
    tracepoints = tracefs.tracepoints(tracefs.mounted())
    plans = plan(symbols.functions(), tracepoints, btf)
    by_name = {of.probe.name: of for of in plans}
    consumer = Idiom(bpf, Path("idiom.out"))
    tracers: dict[str, Callable[[], contextlib.AbstractContextManager[Consumer]]] = {
        "untraced": untraced,
        "empty kprobe + kretprobe": lambda: empty_kprobes(bpf),
        "empty fentry + fexit": lambda: empty_fentry(bpf),
        "empty kprobe.multi pair": lambda: empty_multi(bpf),
        "cdmtrace": lambda: cdmtrace("cdmtrace", one, plans),
        "cdmtrace, only alloc": lambda: cdmtrace("alloc", one, (by_name["alloc"],)),
        "cdmtrace, only rmap_add": lambda: cdmtrace("map", one, (by_name["rmap_add"],)),
        "cdmtrace --stacks none": lambda: cdmtrace("stackless", stackless, plans),
        "cdmtrace --all": lambda: cdmtrace("all", everything, plans),
        "bpftrace": lambda: bpftrace(kernel["NODES_PGSHIFT"]),
        "bcc's idiom": lambda: idiom(bpf, consumer),
        "ftrace": lambda: ftrace(kernel),
    }
    found: dict[str, dict[str, list[float]]] = {
        name: {"ram": [], "cdm": []} for name in tracers
    }
    for number in range(rounds):
        for name, tracer in tracers.items():
            with tracer() as consume:
                for what, order in (("ram", b"l"), ("cdm", b"c")):
                    found[name][what].append(measure(worker, order, consume))
            print(
                number,
                name,
                *(f"{x[-1] * 1e6:.2f}" for x in found[name].values()),
                flush=True,
            )
    Path("faults.json").write_text(
        json.dumps({"pages": LOOP_PAGES * LOOPS, "faults": found, "told": TOLD})
    )
    worker.end()
    one.close()
    everything.close()
    stackless.close()


if __name__ == "__main__":
    main(int(sys.argv[1]))
