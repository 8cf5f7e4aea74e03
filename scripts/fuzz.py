#!/usr/bin/env python3
"""Read damaged and made-up trace files, a million of them: what falls over?

    scripts/fuzz.py [--count N] [--seed N] [--first N] [--keep DIR]

A process apart reads them, with 2 GiB of addresses and ten seconds for each, and does
with them what info does; with some, and all that are made up, what check and report do,
too. What ends that process, or raises anything but an error that is meant for a person,
is kept in DIR with its traceback, and the end is 1.
"""

from __future__ import annotations

import argparse
import gc
import json
import mmap
import os
import resource
import signal
import subprocess
import sys
import time
import traceback
from collections import Counter
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

ADDRESSES: Final = 2 << 30
SECONDS: Final = 10
GROWTH: Final = 256 << 20
"""Bytes that one input of some ten KiB may cost at most."""
BATCH: Final = 20_000
"""Inputs of one process."""
EVERY: Final = 50
"""Of inputs whose values are real, one in so many is judged as well as read."""
NEW_VALUES: Final = frozenset({"wild", "wilder"})
READABLE: Final = 2000
"""Characters of an error at most."""
OUTCOMES: Final = ("whole", "torn", "refused", "raised", "ended")


def _most_memory() -> int:
    """Return the most bytes of memory that this program has had.

    Not ru_maxrss, which outlives exec: it would be that of who started us.
    """
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) << 10


def read(path: Path, *, judged: bool = True) -> str:
    """Do with a file what the verbs do; return what came of it. Raises anything.

    judged: print what info prints, too, and do what check and report do.
    """
    from cdmtrace.analysis import aggregate, document, frames, replay
    from cdmtrace.errors import CdmtraceError
    from cdmtrace.format.reader import TraceReader, count_kinds
    from cdmtrace.render import divergence, tables
    from cdmtrace.render.info import info_json, info_text

    try:
        with TraceReader(path) as reader:
            kinds = count_kinds(reader)
            info = reader.info
        assert 0 < info.bytes_intact <= info.bytes_total
        said, outcome = [], "torn" if info.torn else "whole"
        if judged:
            said += [info_text(info, kinds), json.dumps(info_json(info, kinds))]
            trace = frames.load(path)
            assert (trace.count, trace.cut is None) == (
                info.events,
                not (info.torn or info.more),
            )
            for profile in ("intended", "rfc-v2"):
                result = replay.check(trace, profile=profile)
                said.append(divergence.check(document.check(result)))
            said.append(tables.render(aggregate.report(trace), "table"))
    except CdmtraceError as error:
        said, outcome = [str(error)], "refused"
        if len(said[0]) > READABLE:
            raise ValueError("an error that nobody can read") from error
    "".join(said).encode()
    return outcome


def work(seed: int, first: int, count: int, keep: Path, progress: Path) -> None:
    """Read count inputs from number first on; note what comes of each."""
    from mutations import bases, damaged

    bases()
    folder = Path("/dev/shm" if os.access("/dev/shm", os.W_OK) else "/tmp")
    path = folder / f"cdmtrace-fuzz-{os.getppid()}.arrows"
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESSES, ADDRESSES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    before = 0
    # All of it goes with its input.
    gc.freeze()
    gc.disable()
    with progress.open("r+b") as file, mmap.mmap(file.fileno(), count) as told:
        for at in range(count):
            way, data = damaged(seed, first + at)
            told[at] = _code(way, "ended")
            if at % 100 == 0:
                gc.collect()
            path.write_bytes(data)
            signal.setitimer(signal.ITIMER_REAL, SECONDS)
            try:
                judged = way in NEW_VALUES or at % EVERY == 0
                told[at] = _code(way, read(path, judged=judged))
                now = _most_memory()
                grown, before = now - (before or now), now
                assert grown < GROWTH, f"{grown} bytes more"
            except Exception:
                told[at] = _code(way, "raised")
                _keep(keep, first + at, data, traceback.format_exc())
            signal.setitimer(signal.ITIMER_REAL, 0)


def _code(way: str, outcome: str) -> int:
    """Return the byte that says so; never 0."""
    return 1 + _ways().index(way) * len(OUTCOMES) + OUTCOMES.index(outcome)


def _ways() -> list[str]:
    from mutations import MADE_UP, RAW

    return [way.__name__ for way in (*RAW, *MADE_UP)]


def _keep(keep: Path, number: int, data: bytes, why: str) -> None:
    keep.mkdir(parents=True, exist_ok=True)
    (keep / f"{number}.arrows").write_bytes(data)
    (keep / f"{number}.txt").write_text(why, errors="replace")


def drive(seed: int, first: int, count: int, keep: Path) -> int:
    """Have processes read count inputs; return how many fell over."""
    from mutations import damaged

    begin, end = time.monotonic(), first + count
    outcomes: Counter[int] = Counter()
    keep.mkdir(parents=True, exist_ok=True)
    progress = keep / ".progress"
    at = first
    while at < end:
        many = min(BATCH, end - at)
        progress.write_bytes(bytes(many))
        words = [f"--seed={seed}", f"--first={at}", f"--count={many}"]
        worker = subprocess.run(
            [sys.executable, __file__, *words, f"--keep={keep}", "--worker"],
            check=False,
        )
        done = progress.read_bytes().rstrip(b"\0")
        if worker.returncode:
            if not done:
                raise SystemExit(f"fuzz: the worker ended with {worker.returncode}")
            number = at + len(done) - 1
            why = f"the process ended with {worker.returncode}"
            _keep(keep, number, damaged(seed, number)[1], why)
        outcomes.update(done)
        at += len(done)
        took = time.monotonic() - begin
        print(f"{at - first:,} of {count:,} in {took:.0f} s", file=sys.stderr)
    progress.unlink()
    folder = Path("/dev/shm" if os.access("/dev/shm", os.W_OK) else "/tmp")
    (folder / f"cdmtrace-fuzz-{os.getpid()}.arrows").unlink(missing_ok=True)
    return _sum(outcomes, count, seed, time.monotonic() - begin)


def _sum(outcomes: Counter[int], count: int, seed: int, took: float) -> int:
    """Print what came of the inputs; return how many fell over."""
    print(f"{'':16}" + "".join(f"{name:>10}" for name in OUTCOMES))
    for way in _ways():
        row = [outcomes[_code(way, outcome)] for outcome in OUTCOMES]
        print(f"{way:16}" + "".join(f"{many:>10,}" for many in row))
    failed = sum(
        outcomes[_code(way, outcome)] for way in _ways() for outcome in OUTCOMES[3:]
    )
    print(f"{count:,} inputs (seed {seed}) in {took:.0f} s: {failed} fell over")
    return failed


def main() -> int:
    """Return 1 if an input has made the reader or the analysis fall over."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--keep", type=Path, default=ROOT / "fuzz")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.worker:
        progress = asked.keep / ".progress"
        work(asked.seed, asked.first, asked.count, asked.keep, progress)
        return 0
    return int(drive(asked.seed, asked.first, asked.count, asked.keep) > 0)


if __name__ == "__main__":
    sys.exit(main())
