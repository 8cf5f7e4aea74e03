#!/usr/bin/env python3
"""Hold the model against the kernel's own count, under a mixed load, in a guest.

    scripts/audit.py [--kernel NAME] [--quirks NAMES] [--all] [--seconds N] [--every N]
                     [--keep DIR]
    scripts/audit.py [--quirks NAMES] --from FILE

Records stress-ng and our own churn in a cgroup that stands still once in a while, then
compares what the model holds of every VMA with what numa_maps counted, page by page
and node by node. Then the same with one arrival forgotten on purpose, which must be
found. Prints the numbers, and ends with 0 if there is no difference, the control is
found, and each finding of the rules is one that a quirk explains, or that the kernel is
not one of ours, and has no VM_CDM; with 3 if only the last does not hold, else with 1.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

from msgspec.structs import replace

from cdmtrace.analysis import Trace, check, load
from cdmtrace.events import EventKind
from cdmtrace.kernel.vmflags import parse_mask
from cdmtrace.lab import quirks, scenarios
from cdmtrace.lab.paths import Layout
from cdmtrace.lab.specs import BUILT, DEFAULT_KERNEL
from cdmtrace.loader.choice import LOADERS

HERE = Path(__file__).parent

EXPLAINED = {
    ("CDM001", "mbind"): "one-way",
    ("CDM001", "migration"): "one-way",
    ("CDM001", "unmap"): "one-way",
    ("CDM001", "unknown"): "one-way",
    ("CDM002", "mbind"): "bind-only",
    ("CDM002", "fault"): "bind-only",
    ("CDM002", "cow"): "bind-only",
    ("CDM002", "swap-in"): "bind-only",
    ("CDM002", "interleave"): "interleave-untagged",
    ("CDM002", "thp"): "thp-untagged",
    ("CDM002", "file"): "shared-policy",
    ("CDM002", "khugepaged"): "khugepaged",
    ("CDM002", "ksm"): "ksm-merge",
    ("CDM002", "move_pages"): "migration-ungated",
    ("CDM002", "migrate_pages"): "migration-ungated",
    ("CDM002", "driver"): "driver-untagged",
    ("CDM003", "fault"): "fault-tag",
    ("CDM005", "fault"): "ksm-left-on",
    ("CDM005", "mbind"): "ksm-left-on",
    # mbind() has tagged, and another thread's row is the first to show it.
    ("CDM005", "unknown"): "ksm-left-on",
    ("CDM010", "fault"): "fault-tag",
    ("CDM010", "mbind"): "whole-vma",
    ("CDM010", "unknown"): "whole-vma",
    ("CDM011", "mbind"): "whole-vma",
    ("CDM014", "fault"): "task-policy",
    ("CDM014", "cow"): "task-policy",
    ("CDM014", "interleave"): "task-policy",
    ("CDM014", "thp"): "task-policy",
    ("CDM014", "file"): "task-policy",
    ("CDM014", "swap-in"): "swap-readahead",
    ("CDM014", "khugepaged"): "khugepaged",
    ("CDM014", "ksm"): "ksm-merge",
    ("CDM006", "ksm"): "ksm-left-on",
    ("CDM009", "numa-balancing"): "numa-residual",
    ("CDM012", "mbind"): "whole-vma",
    **{
        ("CDM013", cause): "fault-tag"
        for cause in ("fault", "cow", "swap-in", "khugepaged", "userfaultfd")
    },
    ("CDM015", "pseudo-vma"): "fault-tag",
    ("CDM015", "readahead"): "fault-tag",
    ("CDM016", "fork"): "one-way",
    ("CDM016", "mremap"): "one-way",
    ("CDM016", "split"): "one-way",
    # An inherited tag, too. What showed the VMA last was its policy, or that its page
    # left, by mbind() or migrate_pages(): read in the 13 witnesses of ten minutes.
    ("CDM016", "unknown"): "one-way",
    ("CDM017", "fault"): "fault-tag",
    ("CDM017", "leftover"): "one-way",
    ("CDM018", "fault"): "fault-tag",
}
"""(rule, cause) of a finding -> the quirk that makes it."""
ON_ANY_KERNEL = {("CDM019", "driver"): "the driver, which says NUMA balancing"}
"""(rule, cause) of a finding that is no defect of the kernel's -> what makes it."""


UNUSED = "bit:45"
"""A bit of vm_flags that has no meaning on any of the laboratory's kernels."""


def record(options: argparse.Namespace, directory: Path) -> Path:
    """Record the load in a guest; return the trace."""
    program = scenarios.compile_scenario(
        scenarios.find_scenario("churn"), Layout.default()
    )
    ours = options.kernel in BUILT
    run = [sys.executable, "-m", "cdmtrace"]
    words = [
        *(*run, "lab", "run", "--kernel", options.kernel, "--run-dir", str(directory)),
        *(["--quirks", options.quirks] if ours else []),
        *("--timeout", str(options.seconds * 4 + 3000), "--"),
        *("sh", str(HERE.resolve() / "audit-guest.sh")),
        *(str(options.seconds), str(options.every), str(program)),
        *(*run, "record", "--ring-pages", "32768"),
        *("--loader", options.loader),
        *(["--all"] if options.all else []),
        *([] if ours else ["--vm-cdm-mask", UNUSED]),
    ]
    subprocess.run(words, check=True)
    return directory / "audit.arrows"


def forgetful(trace: Trace) -> tuple[Trace, int, str]:
    """Return the trace without the arrival of one page that is counted later.

    Also which row of that counts it, and what was forgotten, in words.
    """
    events = list(trace.events)
    arrived: dict[tuple[int, int], int] = {}
    for at, event in enumerate(events):
        where = event.mm, event.addr
        if event.kind in (EventKind.MAP, EventKind.MIGRATE):
            arrived[where] = at
        elif event.kind == EventKind.UNMAP:
            arrived.pop(where, None)
        elif event.kind in (EventKind.MOVE, EventKind.MM_EXIT):
            # Where it is told of then is not worth following for a control.
            arrived = {key: row for key, row in arrived.items() if key[0] != event.mm}
        elif event.kind == EventKind.SNAP_PAGES:
            for (mm, addr), row in arrived.items():
                if (
                    (mm, events[row].node) == (event.mm, event.node)
                    and event.start <= addr < event.end
                    and events[row].ts < event.ts_entry
                    and events[row].size == trace.terms.page
                ):
                    told = f"row {events[row].seq}, {addr:x} on node {event.node}"
                    del events[row]
                    without = replace(trace, events=events, count=len(events))
                    return without, at - 1, told
    sys.exit("audit: no arrival to forget: the load left nothing to count")


def until_counted(trace: Trace, row: int) -> Trace:
    """Return the trace up to the end of the look that a row is of."""
    mm = trace.events[row].mm
    end = row
    while (trace.events[end].kind, trace.events[end].mm) != (EventKind.SNAP_MM, mm):
        end += 1
        if end == len(trace.events):
            return trace
    return replace(trace, events=trace.events[: end + 1], count=end + 1)


def control(trace: Trace) -> tuple[bool, str]:
    """Return whether one arrival that is forgotten on purpose is found, and which."""
    without, row, told = forgetful(trace)
    # Where it is counted it must show, unless pages of that VMA came or went just then.
    for part in (until_counted(without, row), without):
        audit = check(part, rules=()).audit
        if audit and audit.differences:
            return True, told
    return False, told


def judge(trace: Trace, names: str) -> int:
    """Print what comes of the comparison; return 1 for a difference, 3 for a finding
    that nothing explains, else 0."""
    result = check(trace)
    audit = result.audit
    if audit is None:
        sys.exit("audit: the recording has none")
    print(
        f"{trace.count:,} events, {trace.lost:,} lost; "
        f"{audit.looks:,} looks at an address space: {audit.vmas:,} VMAs and "
        f"{audit.pages:,} pages compared, {audit.moving:,} VMAs were moving, "
        f"{audit.unknown:,} unknown; {len(audit.differences):,} differences"
    )
    for one in audit.differences[:10]:
        print(f"  {one.start:x}-{one.end:x}: kernel {one.kernel}, model {one.model}")
    findings = Counter((one.rule.id, one.cause) for one in result.findings)
    switched_on = quirks.resolve(names)
    stock = trace.terms.tag == parse_mask(UNUSED)
    wrong = 0
    for (rule, cause), count in sorted(findings.items()):
        quirk = EXPLAINED.get((rule, cause))
        why = ON_ANY_KERNEL.get((rule, cause), quirk if quirk in switched_on else None)
        why = why or ("this kernel has no VM_CDM" if stock else None)
        wrong += why is None
        print(f"  {rule} {cause}: {count}, {why or 'NOT EXPLAINED'}")
    return 1 if audit.differences else 3 if wrong else 0


def main() -> int:
    """Do as the module says."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kernel", default=DEFAULT_KERNEL)
    parser.add_argument("--quirks", default="none")
    parser.add_argument("--all", action="store_true")
    parser.add_argument("--seconds", type=int, default=600)
    parser.add_argument("--every", type=int, default=60)
    parser.add_argument("--keep", type=Path, metavar="DIR")
    parser.add_argument("--loader", choices=LOADERS, default=LOADERS[0])
    parser.add_argument("--from", dest="recorded", type=Path, metavar="FILE")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="cdmtrace-audit-") as scratch:
        trace = load(
            options.recorded or record(options, options.keep or Path(scratch) / "run")
        )
        # Its rows are read from the file each time.
        status = judge(trace, options.quirks)
        # Somebody waits for it, and the control takes its time.
        sys.stdout.flush()
        found, told = control(trace)
    print(f"control: {told} forgotten: {'found' if found else 'NOT FOUND'}")
    return status if found else 1


if __name__ == "__main__":
    sys.exit(main())
