#!/usr/bin/env python3
"""Measure natively how long `record` takes until its programs are in the kernel.

    sudo benchmarks/startup.py [--rounds N]

Once with bcc, which compiles, and once with libbpf, which loads what is compiled.

The machine that this was made on has no kprobes. So what is measured ends with the
verifier, and what it takes to attach is measured in the guest (fault_cost.py). The
headers are the laboratory's kernel's where the running kernel's are not installed.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from cdmtrace.kernel import headers
from cdmtrace.lab.paths import Layout
from cdmtrace.lab.specs import DEFAULT_KERNEL

# The tests compile the program as well, so what they compile it with is complete.
sys.path.append(str(Path(__file__).parents[1] / "tests"))
from bpfnumbers import KERNEL, WHOLE
from signatures import ARGUMENTS, types_of

STEPS = ("import", "numbers", "compile, or open", "verify and load")


def once(how: str) -> None:
    """Print the seconds of each step, as JSON."""
    begin = time.monotonic()
    times = [begin]
    import cdmtrace.session
    from cdmtrace.kernel import bpf, btf, config, layout, profiles, vmflags
    from cdmtrace.loader.bcc import import_bcc
    from cdmtrace.loader.choice import make_program
    from cdmtrace.planning import plan
    from cdmtrace.probes import PROBES, Kind

    del cdmtrace.session
    if how == "bcc":
        import_bcc()
    times.append(time.monotonic())
    directory = headers.require()
    options = {"CONFIG_NODES_SHIFT": "10", "CONFIG_SPARSEMEM_VMEMMAP": "y"}
    known = options | config.load()
    vmflags.running(directory, known, btf.Btf.load, profiles.UPSTREAM)
    kernel = btf.Btf.load()
    # Offsets make no difference to the time. The kernel of this machine need not be one
    # that can be recorded.
    members = (*layout.MEMBERS, *layout.MAPLE_TREE, *layout.OPTIONAL)
    for struct in sorted({struct for struct, _ in members}):
        with contextlib.suppress(btf.TypeMissing):
            kernel.sizeof(struct)
    numbers = {
        **WHOLE,
        "RING_PAGES": 4096,
        "MAP_SIZE": 16384,
        "LOST_PLACES": 1024,
    }
    times.append(time.monotonic())
    program = make_program(how, numbers)
    times.append(time.monotonic())
    able = {
        kind: bpf.has_program_type(
            bpf.PROG_TRACEPOINT if kind is Kind.TRACEPOINT else bpf.PROG_KPROBE
        )
        for kind in Kind
    }
    tracepoints = frozenset(
        n for p in PROBES for a in p.attachments for n in a.candidates
    )
    program.load(
        {
            one.handler: one.kind
            for item in plan(
                frozenset(ARGUMENTS[KERNEL]), tracepoints, types_of(KERNEL)
            )
            for one in item.probe.attachments
            if able[one.kind]
        }
    )
    times.append(time.monotonic())
    program.close()
    print(json.dumps([b - a for a, b in itertools.pairwise(times)]))


def main() -> None:
    """Do as the module says."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--once", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.once:
        once(options.once)
        return
    for how in ("bcc", "libbpf"):
        print(f"\n{how}:\n")
        measure(how, options.rounds)


def measure(how: str, count: int) -> None:
    """Print the table of one loader."""
    with tempfile.TemporaryDirectory() as scratch:
        environment = dict(os.environ)
        if headers.find() in (None, headers.KHEADERS):
            packed = sorted(
                Layout.default().work.glob(
                    f"*/obj-{DEFAULT_KERNEL}/kernel/kheaders_data.tar.xz"
                )
            )
            if not packed:
                sys.exit("no kernel headers here: make kernel")
            subprocess.run(["tar", "-xJf", packed[0], "-C", scratch], check=True)
            environment[headers.SOURCE_VARIABLE] = scratch
        rounds = [
            json.loads(
                subprocess.run(
                    [sys.executable, Path(__file__), "--once", how],
                    env=environment,
                    check=True,
                    stdout=subprocess.PIPE,
                    text=True,
                ).stdout
            )
            for _ in range(count)
        ]
    print("| step | least, s | median, s |")
    print("|---|---:|---:|")
    for name, seconds in zip(STEPS, zip(*rounds, strict=True), strict=True):
        print(f"| {name} | {min(seconds):.2f} | {statistics.median(seconds):.2f} |")
    whole = [sum(one) for one in rounds]
    print(f"| all | {min(whole):.2f} | {statistics.median(whole):.2f} |")


if __name__ == "__main__":
    main()
