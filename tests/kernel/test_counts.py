"""A recording's rows, counted, against what independent tools count in the same run.

counts.sh records the paths scenario with ``--all`` and all defects while bpftrace
(counts.bt) and the kernel's function profiler count the same functions, and reads what
the kernel itself counts: vmstat and numastat, before and after, and the scenario's
memory cgroup. What is compared here must be equal, and why it must:

- Calls of functions and system calls, for each process of the scenario: ``--all`` drops
  none of them, and bpftrace, there before the recorder and after it, sees each process
  from its fork to its end.
- Pages mapped and unmapped, for each process and node. bpftrace reads the node off the
  page's frame, the recorder off the page's flags.
- What the profiler counts of all processes is what bpftrace does; there are rows of all
  of it but for the recorder, which leaves itself out. It asks where pages are by
  move_pages(), and OpenBLAS, which numpy loads, calls mbind().
- Pages that migrate. The kernel counts frames, and rows are entries of page tables:
  that is one each, as no page that moves here is shared.
- What is allocated on the CDM node: it gives nothing to who does not ask for it, and
  nothing that cannot move. numastat counts a huge page once, as rows do.
- Huge pages in the scenario's address spaces, whoever made them, by its memory cgroup:
  vmstat has those of the recorder, too.

In one place two tools differ. The compiler has parted move_page_tables(): mremap(), in
the same file, calls the part, and a probe on the function misses these calls. bpftrace
has no way to name the part. The profiler has counted both, and the difference is what
bpftrace misses and the recorder (cdmtrace.probes) does not.
"""

from __future__ import annotations

import json
import re
import sys
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
from labrun import by_libbpf, lab_run
from scenariotap import failures

from cdmtrace.analysis import Trace, load
from cdmtrace.analysis.frames import Event
from cdmtrace.events import EventKind, Probe
from cdmtrace.lab import quirks, scenarios
from cdmtrace.lab.paths import Layout

pytestmark = pytest.mark.timeout(3600)

HERE = Path(__file__).parent
PAGE, HUGE = 4096, 512 * 4096
CDM_NODE = 1

FUNCTIONS = {
    "vma_alloc_folio": EventKind.ALLOC,
    "mbind_range": EventKind.POLICY,
    "copy_page_range": EventKind.COPY,
    "__split_vma": EventKind.VMA_SPLIT,
    "exit_mmap": EventKind.MM_EXIT,
}
"""Function -> the kind of the one row that each of its calls makes."""

BY_SYSCALL = 3
"""enum migrate_reason, include/linux/migrate_mode.h: move_pages(), migrate_pages()."""

SYSTEM_CALLS = {
    "mbind": Probe.SYS_MBIND,
    "migrate_pages": Probe.SYS_MIGRATE_PAGES,
    "move_pages": Probe.SYS_MOVE_PAGES,
    "madvise": Probe.SYS_MADVISE,
    "mmap": Probe.SYS_MMAP,
    "munmap": Probe.SYS_MUNMAP,
    "mremap": Probe.SYS_MREMAP,
    "mprotect": Probe.SYS_MPROTECT,
    "brk": Probe.SYS_BRK,
}

Table = Mapping[tuple[str, ...], int]
"""A map of bpftrace: its keys, as text -> a number."""


@dataclass(frozen=True, kw_only=True)
class Counts:
    """What each source has counted in the run.

    tables: bpftrace's. profile: function -> hits. vmstat, node: what was added
    meanwhile, node of the CDM node's numastat. outside: what was added to vmstat from
    before bpftrace came until it had gone. memory: the scenario's memory.stat.
    recorder: its pid.
    """

    trace: Trace
    tap: tuple[str, ...]
    tables: Mapping[str, Table]
    profile: Mapping[str, int]
    vmstat: Mapping[str, int]
    outside: Mapping[str, int]
    node: Mapping[str, int]
    memory: Mapping[str, int]
    recorder: int

    @property
    def pids(self) -> set[int]:
        """The scenario's processes, as bpftrace has seen them end."""
        return {int(pid) for (pid,) in self.tables["@paths"]}

    def called(self, probe: str) -> Counter[int]:
        """Return pid -> calls, of any process, by bpftrace."""
        return Counter(
            {
                int(pid): calls
                for (name, pid), calls in self.tables["@calls"].items()
                if name == probe
            }
        )

    def ours(self, counts: Mapping[int, int]) -> Mapping[int, int]:
        """Return the counts of the scenario's processes."""
        return {pid: count for pid, count in counts.items() if pid in self.pids}

    def placed(self, table: str) -> Counter[tuple[int, int]]:
        """Return (node, pid) -> pages, by bpftrace."""
        return Counter(
            {
                (int(node), int(pid)): pages
                for (node, pid), pages in self.tables[table].items()
                if int(pid) in self.pids
            }
        )

    def rows(self, *kinds: EventKind) -> list[Event]:
        """Return the rows of the scenario's processes."""
        return [
            event
            for event in self.trace.events
            if event.kind in kinds and event.pid in self.pids
        ]


def numbers(path: Path) -> Counter[str]:
    """Return name -> number of a file with one of both a line."""
    pairs = (line.split() for line in path.read_text().splitlines())
    return Counter({name: int(number) for name, number in pairs})


def added(directory: Path, name: str) -> Counter[str]:
    after, before = (
        numbers(directory / f"{name}.{when}") for when in ("after", "before")
    )
    after.subtract(before)
    return after


def bpftrace(path: Path) -> dict[str, Table]:
    """Return the maps that bpftrace has printed."""
    found: dict[str, Table] = {}
    for line in path.read_text().splitlines():
        printed = json.loads(line)
        if printed["type"] == "map":
            for name, table in printed["data"].items():
                found[name] = {
                    tuple(keys.split(",")): value for keys, value in table.items()
                }
    return found


def profiled(path: Path) -> Counter[str]:
    """Return function -> hits on all cpus."""
    hits: Counter[str] = Counter()
    for name, count in re.findall(
        r"^ +([\w.]+) +(\d+) ", path.read_text(), re.MULTILINE
    ):
        hits[name] += int(count)
    return hits


def huge(events: Iterable[Event], kind: EventKind) -> int:
    """Return how many rows of a kind are about a huge page."""
    return sum(row.kind == kind and row.size == HUGE for row in events)


@pytest.fixture(scope="module")
def counts(tmp_path_factory: pytest.TempPathFactory) -> Counts:
    """One run, in one boot."""
    program = scenarios.compile_scenario(
        scenarios.find_scenario("paths"), Layout.default()
    )
    directory = tmp_path_factory.mktemp("counts")
    words = ["sh", str(HERE / "counts.sh"), quirks.as_argument(quirks.resolve("rfc"))]
    words += [str(program), sys.executable, "-m", "cdmtrace", "record"]
    result = lab_run(
        directory,
        *("--quirks", quirks.RFC, "--timeout", "3300", "--"),
        # The recorder would call mremap(), too, where what it reads outgrows its place.
        *by_libbpf("env", "MALLOC_MMAP_MAX_=0", *words),
    )
    assert result.returncode == 0, result.stdout + result.stderr
    run = directory / "run"
    assert (run / "status").read_text() == "0\n"
    return read(run)


def read(run: Path) -> Counts:
    """Return what a run has left behind."""
    return Counts(
        trace=load(run / "counts.arrows"),
        tap=tuple((run / "counts.tap").read_text().splitlines()),
        tables=bpftrace(run / "bpftrace.json"),
        profile=profiled(run / "profile"),
        vmstat=added(run, "vmstat"),
        outside=added(run, "vmstat.outside"),
        node=added(run, "numastat"),
        memory=numbers(run / "memory.stat"),
        recorder=int((run / "recorder").read_text()),
    )


# --- the comparisons ----------------------------------------------------------


def test_nothing_is_missing(counts: Counts) -> None:
    assert counts.trace.lost == 0
    assert failures(counts.tap) == []
    told = {
        int(pid)
        for line in counts.tap
        for pid in re.findall(r"^# counted .* pid=(\d+)", line)
    }
    assert told <= counts.pids
    assert len(told) > 3


@pytest.mark.parametrize("function", FUNCTIONS)
def test_calls_of_a_function(counts: Counts, function: str) -> None:
    made = Counter(row.pid for row in counts.rows(FUNCTIONS[function]))
    assert made == counts.ours(counts.called(f"kprobe:{function}"))
    assert made.total() > 4


def test_calls_of_a_function_that_is_parted(counts: Counts) -> None:
    # Nobody else calls mremap().
    assert counts.called("tracepoint:syscalls:sys_exit_mremap").keys() <= counts.pids
    parts = counts.profile.get("move_page_tables.part.0", 0)
    hidden = parts - counts.profile["move_page_tables"] if parts else 0
    called = counts.ours(counts.called("kprobe:move_page_tables"))
    rows = counts.rows(EventKind.MOVE)
    assert len(rows) == sum(called.values()) + hidden
    assert len(rows) > 4


@pytest.mark.parametrize("name", SYSTEM_CALLS)
def test_system_calls(counts: Counts, name: str) -> None:
    rows = counts.rows(EventKind.CALL)
    made = Counter(row.pid for row in rows if row.probe == SYSTEM_CALLS[name])
    assert made == counts.ours(counts.called(f"tracepoint:syscalls:sys_exit_{name}"))
    assert made.total() > 0


def test_pages_that_are_mapped(counts: Counts) -> None:
    mapped = counts.placed("@mapped")
    assert {node for node, _ in mapped} == {0, 1}
    rows = counts.rows(EventKind.MAP, EventKind.MIGRATE)
    assert Counter((row.node, row.pid) for row in rows) == mapped


def test_pages_that_are_unmapped(counts: Counts) -> None:
    unmapped = counts.placed("@unmapped")
    assert {node for node, _ in unmapped} == {0, 1}
    rows = counts.rows(EventKind.UNMAP)
    assert Counter((row.src_node, row.pid) for row in rows) == unmapped


@pytest.mark.parametrize(
    "name", ["mbind_range", "mbind", "migrate_pages", "move_pages"]
)
def test_what_the_profiler_counts(counts: Counts, name: str) -> None:
    if name in SYSTEM_CALLS:
        function, probe = f"__x64_sys_{name}", f"tracepoint:syscalls:sys_exit_{name}"
        kind, by = EventKind.CALL, SYSTEM_CALLS[name]
    else:
        function, probe = name, f"kprobe:{name}"
        kind, by = EventKind.POLICY, Probe.MBIND_RANGE
    called = counts.called(probe)
    assert counts.profile[function] == called.total() > 0
    made = Counter(
        row.pid for row in counts.trace.events if (row.kind, row.probe) == (kind, by)
    )
    assert counts.recorder not in made
    called.pop(counts.recorder, None)
    assert made == called


def test_pages_that_migrate(counts: Counts) -> None:
    moved: Counter[int] = Counter()
    for row in counts.rows(EventKind.MIGRATE):
        if row.src_node not in (-1, row.node):
            moved[row.pid] += row.size // PAGE
    told = {int(pid): pages for (pid,), pages in counts.tables["@migrated"].items()}
    assert moved.total() > 0
    assert moved == Counter({pid: n for pid, n in counts.ours(told).items() if n})
    # The machine's own count has kcompactd's, too, which may be at work at any time:
    # as a rule it is not, and these are equal.
    least, most = (one["pgmigrate_success"] for one in (counts.vmstat, counts.outside))
    assert least <= sum(told.values()) <= most


def test_what_is_allocated_on_the_node(counts: Counts) -> None:
    here = [row for row in counts.trace.events if row.node == CDM_NODE]
    allocated = [row for row in here if row.kind == EventKind.ALLOC]
    # mbind() allocates its targets for the VMA; these are among them.
    moved = [
        row for row in here if row.kind == EventKind.MIGRATE and row.arg == BY_SYSCALL
    ]
    collapsed = huge(here, EventKind.MAP) - huge(here, EventKind.ALLOC)
    assert len(allocated) > 2000
    assert len(moved) > 100
    assert collapsed > 0
    made = len(allocated) + len(moved) + collapsed
    assert made == counts.node["numa_hit"] + counts.node["numa_miss"]


def test_huge_pages(counts: Counts) -> None:
    """Those that faults ask for, and those that khugepaged makes of small ones."""
    # khugepaged makes some for others as well, such as the recorder.
    homes = {row.mm for row in counts.rows(EventKind.ALLOC)}
    events = [row for row in counts.trace.events if row.mm in homes]
    faulted, mapped = huge(events, EventKind.ALLOC), huge(events, EventKind.MAP)
    assert faulted == counts.memory["thp_fault_alloc"] > 0
    assert mapped - faulted == counts.memory["thp_collapse_alloc"] > 0
