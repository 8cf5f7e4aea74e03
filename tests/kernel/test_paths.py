"""Counted scenarios, recorded: the model's account held against the program's lines.

That each step moves what it says, the program judges itself (test_quirks runs it
under every quirk). Here its books are held against numa_maps, which it copies at the
end; and its recording against its books: what came and what left in each step must
be what the lines say, which pages of which process, and by what.

Then one probe after the other is taken out, by leaving out its rows, and what needed
it must no longer agree. Probes that only help others to fill in theirs have no rows:
test_blind.py takes them out.
"""

from __future__ import annotations

import functools
import re
import shlex
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from labrun import found_under, lab_record
from msgspec.structs import replace
from scenariotap import failures

from cdmtrace.analysis import check, load, names
from cdmtrace.analysis.frames import Event, Trace
from cdmtrace.analysis.notes import Arrived, Left, Note
from cdmtrace.analysis.result import Life, Mm, Result
from cdmtrace.events import Cause, EventKind, Probe
from cdmtrace.lab import quirks, scenarios
from cdmtrace.lab.paths import Layout

pytestmark = pytest.mark.timeout(3600)

GIB = 1 << 30
ARENA, ARENA_END = 0x100000000000, 0x100000000000 + 64 * GIB
"""Where the programs have their regions (scenario.h)."""
PAGE = 4096
CDM_NODE = 1
LOOKS = 20
"""Seconds in which two looks at all processes of an emulated guest are over."""
NAMES = (quirks.NONE, quirks.RFC)
FIRST, LAST = PROGRAMS = ("unasked", "paths")
COUNTED = re.compile(
    r"# counted step=(?P<step>\S+) event=(?P<event>arrive|depart|renew)"
    r" way=(?P<way>\S+)"
    r" pid=(?P<pid>\d+) addr=0x(?P<addr>[0-9a-f]+) span=(?P<span>\d+)"
    r" pages=(?P<pages>\d+) node=(?P<node>\d+)"
)
ONLY_UNDER_RFC = {
    ("arrive", "ksm"),
    ("depart", "ksm"),
    ("arrive", "migrate_pages"),
    ("arrive", "shmem"),
    ("arrive", "shmem-swap"),
    ("arrive", "file-read"),
    ("arrive", "readahead"),
    ("depart", "punch-hole"),
    ("depart", "remove"),
}
"""Movements that no kernel without these defects makes."""

STEPS = (
    # paths
    *("fault", "zero-page", "populate", "remote", "preferred", "interleave", "fork"),
    *("cow", "exec", "file-cow", "truncate", "userfaultfd", "swap", "swap-cache"),
    *("swapoff", "free", "dontneed", "munmap", "map-fixed", "mremap", "mbind"),
    *("move-pages", "migrate-pages", "thp", "thp-whole", "thp-fork", "collapse"),
    *("thp-shifted", "thp-split", "khugepaged", "ksm"),
    # unasked
    *("hot-remove", "compaction", "numa-balancing", "shmem", "shmem-swap", "file"),
    *("readahead", "soft-offline", "poison"),
)
STILL = {"shmem", "shmem-swap", "file"}
"""Steps in which no page comes or goes but under rfc."""

BY = {
    ("arrive", "fault"): "fault",
    ("arrive", "interleave"): "interleave",
    ("arrive", "thp"): "thp",
    ("arrive", "cow"): "cow",
    ("arrive", "swap-in"): "swap-in",
    ("arrive", "khugepaged"): "khugepaged",
    ("arrive", "ksm"): "ksm",
    ("arrive", "mbind"): "mbind",
    ("arrive", "move_pages"): "move_pages",
    ("arrive", "migrate_pages"): "migrate_pages",
    ("arrive", "fork"): "copy",
    ("arrive", "mremap"): "move",
    ("arrive", "userfaultfd"): "userfaultfd",
    # A fault is a fault, whoever asks for it.
    ("arrive", "mlock"): "fault",
    ("arrive", "populate"): "fault",
    ("arrive", "remote"): "fault",
    # do_cow_fault() is inlined, and its caller is that of every fault on a file.
    ("arrive", "file-fault"): "fault",
    # The zero page and a file's page are copied as any other is.
    ("arrive", "zero-page"): "cow",
    ("arrive", "file-cow"): "cow",
    # swapoff() reads in as a fault does, madvise(COLLAPSE) does khugepaged's work.
    ("arrive", "swapoff"): "swap-in",
    ("arrive", "collapse"): "khugepaged",
    # Of a page of a file no more is known than that it is one, wherever it comes from.
    ("arrive", "shmem"): "file",
    ("arrive", "shmem-swap"): "file",
    ("arrive", "file-read"): "file",
    ("arrive", "readahead"): "swap-in",
    # The model does not ask why a page left. The call in which it did is known, ...
    ("depart", "munmap"): "sys_munmap",
    ("depart", "map-fixed"): "sys_mmap",
    ("depart", "shrink"): "sys_mremap",
    ("depart", "dontneed"): "sys_madvise",
    ("depart", "pageout"): "sys_madvise",
    ("depart", "collapse"): "sys_madvise",
    ("depart", "mbind"): "sys_mbind",
    ("depart", "move_pages"): "sys_move_pages",
    ("depart", "migrate_pages"): "sys_migrate_pages",
    ("depart", "remove"): "sys_madvise",
    ("depart", "poison"): "sys_madvise",
    # ... but faults and daemons are in none, and ftruncate(), fallocate() and
    # writes to sysfs are not recorded.
    ("depart", "cow"): "",
    ("depart", "ksm"): "",
    ("depart", "khugepaged"): "",
    ("depart", "truncate"): "",
    ("depart", "punch-hole"): "",
    ("depart", "hot-remove"): "",
    ("depart", "numa-balancing"): "",
    ("depart", "mremap"): "move",
    # An mm ends, be it that of a process or that of the program before exec.
    ("depart", "exit"): "end",
    ("depart", "exec"): "end",
    # What moves within its node is not told as a movement by the model; its rows are.
    ("renew", "compaction"): "compaction",
    ("renew", "soft-offline"): "sys_madvise",
}
"""(event, the program's word) -> what a recording says that it was by."""

NEEDED_BY = {
    # It alone tells a copy that is put into a huge page from a part of that page.
    Probe.ALLOC: {"thp-fork"},
    # The pages of these two are moved to the node.
    Probe.RMAP_ADD: {*STEPS} - {"mbind", "numa-balancing"},
    # In the others what leaves goes with the whole mm, or nothing does.
    Probe.RMAP_REMOVE: {
        *("fork", "cow", "truncate", "swap", "swap-cache", "swapoff", "free"),
        *("dontneed", "munmap", "map-fixed", "mremap", "mbind", "move-pages"),
        *("migrate-pages", "thp", "thp-whole", "thp-fork", "collapse", "khugepaged"),
        *("ksm", "thp-shifted", "thp-split", "hot-remove", "compaction"),
        *("numa-balancing", "shmem", "shmem-swap", "file", "readahead"),
        *("soft-offline", "poison"),
    },
    Probe.REMOVE_MIGRATION_PTE: {
        *("mbind", "move-pages", "migrate-pages", "thp-split", "hot-remove"),
        *("compaction", "numa-balancing", "soft-offline"),
    },
    Probe.COPY_PAGE_RANGE: {"fork", "cow", "exec", "thp-fork"},
    Probe.MOVE_PAGE_TABLES: {"mremap", "thp-whole", "thp-shifted"},
    Probe.EXIT_MMAP: {
        *("fork", "cow", "exec", "swap-cache", "migrate-pages", "thp-fork", "shmem"),
    },
    Probe.SYS_MBIND: {"mbind"},
    # Of the children of cow and exec no other row says which process they are.
    Probe.SYS_MOVE_PAGES: {"move-pages", "cow", "exec", "numa-balancing"},
    Probe.SYS_MIGRATE_PAGES: {"migrate-pages"},
    Probe.SYS_MADVISE: {
        *("swap", "swap-cache", "swapoff", "free", "dontneed", "thp", "thp-whole"),
        *("collapse", "thp-split", "hot-remove", "compaction", "shmem"),
        *("shmem-swap", "file", "readahead", "soft-offline", "poison"),
    },
    Probe.SYS_MMAP: {"map-fixed"},
    Probe.SYS_MUNMAP: {"munmap", "thp", "thp-whole", "thp-shifted", "shmem", "file"},
    Probe.SYS_MREMAP: {"mremap"},
}
"""Probe -> the steps that no longer agree without its rows, and no others."""

SERVED = {
    ("arrive", "move_pages"): ("migration", "came"),
    ("arrive", "migrate_pages"): ("migration", "came"),
    ("arrive", "collapse"): ("khugepaged", "came"),
    ("arrive", "khugepaged"): ("khugepaged", "came"),
    ("arrive", "ksm"): ("ksm", "stayed"),
    ("depart", "move_pages"): ("migration", "left"),
    ("depart", "migrate_pages"): ("migration", "left"),
    ("depart", "mbind"): ("mempolicy", "left"),
    ("depart", "collapse"): ("khugepaged", "left"),
    ("depart", "khugepaged"): ("khugepaged", "left"),
    ("depart", "pageout"): ("reclaim", "left"),
    ("depart", "hot-remove"): ("offline", "left"),
    ("depart", "numa-balancing"): ("numa-balancing", "left"),
    ("depart", "poison"): ("memory-failure", "left"),
    ("renew", "soft-offline"): ("memory-failure", "stayed"),
    ("renew", "compaction"): ("compaction", "stayed"),
}
"""(event, the program's word) -> which service of the kernel it was, what it did."""
INHERITED = {("arrive", "fork"), ("arrive", "mremap")}
"""Arrivals that nobody has brought."""

FOUND = {
    ("CDM001", "mbind"),
    ("CDM002", "interleave"),
    ("CDM002", "migrate_pages"),
    ("CDM002", "move_pages"),
    ("CDM003", "fault"),
    ("CDM005", "mbind"),
    ("CDM014", "file"),
    ("CDM014", "swap-in"),
}
"""(rule, cause) of every finding under rfc."""

Key = tuple[int, str, str]
"""A movement: process, event, and by what."""

Moves = Mapping[Key, Mapping[int, int]]
"""Movement -> address of a base page -> how often that page made it."""


@dataclass(frozen=True, kw_only=True)
class Line:
    """What the program says of one movement; addr in bytes, span in pages."""

    step: str
    event: str
    way: str
    pid: int
    addr: int
    span: int
    pages: int
    node: int

    @property
    def key(self) -> Key:
        """The movement as a recording tells of it."""
        return self.pid, self.event, BY[self.event, self.way]

    @property
    def addresses(self) -> range:
        """The pages of its span."""
        return range(self.addr, self.addr + self.span * PAGE, PAGE)


@dataclass(frozen=True)
class Told:
    """What one program has told: status, TAP, numa_maps at its end."""

    status: int
    tap: tuple[str, ...]
    numa_maps: tuple[str, ...]

    @functools.cached_property
    def lines(self) -> list[Line]:
        """The lines of movements, taken apart."""
        found = []
        for line in self.tap:
            if line.startswith("# counted "):
                match = COUNTED.fullmatch(line)
                assert match, line
                step, event, way, pid, addr, *numbers = match.groups()
                span, pages, node = map(int, numbers)
                found.append(
                    Line(
                        step=step,
                        event=event,
                        way=way,
                        pid=int(pid),
                        addr=int(addr, 16),
                        span=span,
                        pages=pages,
                        node=node,
                    )
                )
        return found

    @property
    def pid(self) -> int:
        """The program's own process; its children are others."""
        return self.lines[0].pid

    @functools.cached_property
    def there(self) -> Mapping[int, int]:
        """Pages of the CDM node that numa_maps has at the end, by GiB."""
        found: Counter[int] = Counter()
        for text in self.numa_maps:
            nodes = re.findall(rf"\bN{CDM_NODE}=(\d+)", text)
            found[int(text.split()[0], 16) // GIB] += sum(map(int, nodes))
        return +found


@dataclass(frozen=True)
class Run:
    """The programs under one set of quirks, and their recording."""

    told: Mapping[str, Told]
    trace: Trace

    @functools.cached_property
    def lines(self) -> list[Line]:
        """The lines of all programs."""
        return [line for told in self.told.values() for line in told.lines]

    def step(self, name: str) -> list[Line]:
        """The lines of one step."""
        return [line for line in self.lines if line.step == name]

    @functools.cached_property
    def result(self) -> Result:
        """What check finds in the recording."""
        return check(self.trace)

    @functools.cached_property
    def moves(self) -> Moves:
        """What the recording tells."""
        return moves(self.trace)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Run]:
    """The programs under no quirk and under all of them, in one boot."""
    directory, statuses = lab_record(
        tmp_path_factory.mktemp("paths"),
        {name: ("--audit", "1", "--", "sh", "-c", both(name)) for name in NAMES},
    )
    assert statuses == dict.fromkeys(NAMES, 0)
    return {name: read_run(directory, name) for name in NAMES}


def both(name: str) -> str:
    """Return the script that runs one program after the other.

    The first lives on until the last ends, for the last must not get its address
    space. Not the other way round: the first moves what others have on the node.
    """
    commands = {}
    for program in PROGRAMS:
        built = scenarios.compile_scenario(
            scenarios.find_scenario(program), Layout.default()
        )
        words = [str(built), "--quirks", quirks.as_argument(quirks.resolve(name))]
        words += ["--numa-maps", f"{name}.{program}.maps", "--hold", "--slow"]
        commands[program] = f"{shlex.join(words)} > {name}.{program}.tap"
    ready = f"until grep -q 'READY.*%s' {name}.{FIRST}.tap || ! kill -0 $first"
    ready += "; do sleep 1; done"
    # Held at its end, until the recorder has looked at all processes once more.
    lines = f"echo; until [ -e {name}.{LAST}.maps ]; do sleep 1; done"
    lines += f"; sleep {LOOKS}; echo"
    script = [
        f"{commands[FIRST]} & first=$!",
        ready % "before",
        "kill -USR1 $first",
        ready % "after",
        f"{{ {lines}; }} | {commands[LAST]}",
        f"echo $? > {name}.{LAST}.status",
        "kill -USR1 $first",
        "wait $first",
        f"echo $? > {name}.{FIRST}.status",
    ]
    return "\n".join(script)


def read_run(directory: Path, name: str) -> Run:
    """Return what the programs have left behind."""

    def text(program: str, what: str) -> str:
        return (directory / f"{name}.{program}.{what}").read_text()

    told = {
        program: Told(
            status=int(text(program, "status")),
            tap=tuple(text(program, "tap").splitlines()),
            numa_maps=tuple(text(program, "maps").splitlines()),
        )
        for program in PROGRAMS
    }
    return Run(told, load(directory / f"{name}.arrows"))


# --- what a recording tells ---------------------------------------------------


def moves(trace: Trace) -> Moves:
    """Return the movements of pages of the CDM node.

    What came and left page by page are the model's notes. What a fork or an mremap
    moved by one row is what had come to the range that the row names; what an exit
    took is what the model held then. What was renewed, moved within its node, once or
    more, are rows of which the model says nothing.
    """
    notes, lives = replayed(trace)
    calls = {
        (event.tid, event.call): Probe(event.probe).name.lower()
        for event in trace.events
        if event.kind == EventKind.CALL
    }
    found: defaultdict[Key, Counter[int]] = defaultdict(Counter)
    held: defaultdict[int, set[int]] = defaultdict(set)
    ended: Counter[int] = Counter()
    for event in trace.events:
        life = lives.get((event.mm, ended[event.mm]))
        pid = life.mm.pid if life else 0
        left = pid, "depart", calls.get((event.tid, event.call), "")
        here = held[event.mm]
        told = notes.get(event.seq, ())
        for note in told:
            if isinstance(note, Arrived):
                pages = base_pages(note.page.addr, note.page.size)
                found[pid, "arrive", note.page.how].update(pages)
                here.update(pages)
            else:
                pages = base_pages(note.event.addr, note.event.size)
                found[left].update(pages)
                # No page: another has taken its place already.
                if note.page:
                    here.difference_update(pages)
        match event.kind:
            case EventKind.MIGRATE if event.node == CDM_NODE and not told:
                # It was moved within its node, or could not be moved.
                back = base_pages(event.addr, event.size)
                found[left].subtract(back)
                here.update(back)
                by = left[2] or names.BY_MIGRATION.get(Cause(event.cause), "")
                found[pid, "renew", by] |= Counter(back)
            case EventKind.COPY:
                copied = within(held[event.other], event)
                found[pid, "arrive", "copy"].update(copied)
                here.update(copied)
            case EventKind.MOVE:
                old = within(here, event)
                new = {addr - event.addr + event.other for addr in old}
                found[pid, "depart", "move"].update(old)
                found[pid, "arrive", "move"].update(new)
                here.difference_update(old)
                here.update(new)
            case EventKind.MM_EXIT if life:
                for page in life.state.pages.within(0, 1 << 64):
                    pages = base_pages(page.addr, page.size)
                    found[pid, "depart", "end"].update(pages)
                here.clear()
                ended[event.mm] += 1
    return found


def replayed(
    trace: Trace,
) -> tuple[Mapping[int, Sequence[Arrived | Left]], Mapping[tuple[int, int], Life]]:
    """Return the notes by the seq of their rows; and (mm, generation) -> its life."""
    notes: defaultdict[int, list[Arrived | Left]] = defaultdict(list)

    def observe(mm: Mm, event: Event, note: Note) -> None:
        del mm, event
        if isinstance(note, Arrived | Left):
            notes[note.event.seq].append(note)

    lives = check(trace, rules=(), observer=observe).lives
    return notes, {(life.mm.id, life.mm.generation): life for life in lives}


def base_pages(addr: int, size: int) -> range:
    return range(addr, addr + size, PAGE)


def within(pages: Iterable[int], event: Event) -> set[int]:
    return {page for page in pages if event.addr <= page < event.addr + event.size}


def without(trace: Trace, probe: Probe) -> Trace:
    """Return the trace as if nothing had come of a probe."""
    return replace(trace, events=[e for e in trace.events if e.probe != probe])


# --- the comparison -----------------------------------------------------------


def disagreements(lines: Sequence[Line], seen: Moves) -> dict[Key, str]:
    """Return the movements of one step that are not seen as its lines say, and why.

    A line about some of the pages of its span does not say which.
    """
    places = {(line.pid, line.addr // GIB) for line in lines}
    found = {}
    for key in {*seen, *(line.key for line in lines)}:
        told = [line for line in lines if line.key == key]
        if (key[2] == "end" or key[1] == "renew") and not told:
            # Of what is there when the program ends there are no lines, nor of what
            # could not be moved.
            continue
        here = {
            addr: times
            for addr, times in seen.get(key, {}).items()
            if times and (key[0], addr // GIB) in places
        }
        some = [line for line in told if line.pages < line.span]
        rest = Counter(here)
        for line in told:
            if line not in some:
                rest.subtract(line.addresses)
        wrong = {addr for addr, times in rest.items() if times}
        wrong -= {a for line in some for a in line.addresses if rest[a] > 0}
        due = sum(line.pages for line in told)
        if wrong or sum(here.values()) != due:
            found[key] = f"{due} told, {sum(here.values())} seen, {len(wrong)} wrong"
    return found


def missed(run: Run, seen: Moves) -> dict[str, set[Key]]:
    """Return the steps that are not seen as their lines say: which movements."""
    found = {step: disagreements(run.step(step), seen) for step in STEPS}
    return {step: set(wrong) for step, wrong in found.items() if wrong}


# --- the program --------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_every_step_comes_out(runs: dict[str, Run], name: str) -> None:
    run = runs[name]
    for told in run.told.values():
        assert failures(told.tap) == []
        assert told.status == 0
    still = STILL if name == quirks.NONE else set()
    assert {line.step for line in run.lines} == {*STEPS} - still
    children = {line.pid for line in run.lines} - {t.pid for t in run.told.values()}
    assert len(children) > 2


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("program", PROGRAMS)
def test_the_books_balance(runs: dict[str, Run], program: str, name: str) -> None:
    told = runs[name].told[program]
    left: Counter[tuple[int, int]] = Counter()
    for line in told.lines:
        assert line.node == CDM_NODE
        assert 0 < line.pages <= line.span
        if line.event != "renew":
            sign = 1 if line.event == "arrive" else -1
            left[line.pid, line.addr // GIB] += sign * line.pages
    # The children are gone with all that they had.
    assert {pid for (pid, _), pages in left.items() if pages} == {told.pid}

    assert told.there == {
        gib: pages for (pid, gib), pages in left.items() if pid == told.pid and pages
    }


def test_no_path_is_missing(runs: dict[str, Run]) -> None:
    none, rfc = (
        {(line.event, line.way) for line in runs[name].lines} for name in NAMES
    )
    assert rfc - none == ONLY_UNDER_RFC
    assert none < rfc
    assert rfc == BY.keys()


# --- the recordings -----------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("step", STEPS)
def test_what_is_recorded_is_what_was_done(
    runs: dict[str, Run], step: str, name: str
) -> None:
    run = runs[name]
    assert disagreements(run.step(step), run.moves) == {}


@pytest.mark.parametrize("name", NAMES)
def test_what_the_program_ends_with_is_in_numa_maps(
    runs: dict[str, Run], name: str
) -> None:
    run = runs[name]
    for told in run.told.values():
        held = run.moves[told.pid, "depart", "end"]
        assert Counter(addr // GIB for addr in held) == told.there
        assert set(held.values()) == {1}


@pytest.mark.parametrize("name", NAMES)
def test_the_account_equals_the_kernel_s(runs: dict[str, Run], name: str) -> None:
    audit = runs[name].result.audit
    assert audit
    assert audit.differences == ()
    assert audit.vmas > 0
    assert audit.pages > 0


@pytest.mark.parametrize(
    ("name", "expected"), [(quirks.NONE, set()), (quirks.RFC, FOUND)]
)
def test_what_is_found(
    runs: dict[str, Run], name: str, expected: set[tuple[str, str]]
) -> None:
    result = runs[name].result
    assert found_under(name, result.findings) == expected
    assert result.trace.lost == 0


@pytest.mark.parametrize("name", NAMES)
def test_what_numa_balancing_moves_it_has_scanned(
    runs: dict[str, Run], name: str
) -> None:
    """Each page that it moved has a row of that, and of the scan before."""
    events = list(runs[name].trace.events)
    moved = [row for row in events if row.kind == EventKind.NUMA_MOVE and row.ret]
    migrated = [
        row
        for row in events
        if row.kind == EventKind.MIGRATE
        and row.cause == Cause.NUMA_BALANCING
        and row.src_node != row.node
    ]
    assert len(moved) >= 43
    assert Counter(map(way_of, moved)) == Counter(map(way_of, migrated))
    scans = [row for row in events if row.kind == EventKind.NUMA_SCAN]
    for row in moved:
        assert any(
            scan.mm == row.mm and scan.ts < row.ts and row.addr in base_pages_of(scan)
            for scan in scans
        )


def way_of(row: Event) -> tuple[int, int, int, int]:
    return row.mm, row.addr, row.src_node, row.node


def base_pages_of(row: Event) -> range:
    return base_pages(row.addr, row.size)


def test_what_ksm_replaces_is_told_with_its_place(runs: dict[str, Run]) -> None:
    run = runs[quirks.RFC]
    (line,) = (one for one in run.lines if (one.event, one.way) == ("arrive", "ksm"))
    rows = [
        row
        for row in run.trace.events
        if row.kind == EventKind.KSM_PAGE and row.node == CDM_NODE
    ]
    assert Counter(row.addr for row in rows) == run.moves[line.key]
    assert len(rows) == line.pages
    assert {row.src_node for row in rows} == {CDM_NODE}
    assert {row.cause for row in rows} == {Cause.KSM}


@pytest.mark.parametrize("name", NAMES)
def test_what_services_did_is_what_was_counted(runs: dict[str, Run], name: str) -> None:
    """Whatever else arrived came by a policy, or, under rfc, because nobody asked."""
    counted: Counter[tuple[str, str]] = Counter()
    for line in runs[name].lines:
        way = line.event, line.way
        if way == ("arrive", "mlock"):
            counted["mlock", "stayed"] += line.pages
        if way in SERVED:
            counted[SERVED[way]] += line.pages
        elif line.event == "arrive" and way not in INHERITED:
            counted["mempolicy", "came"] += line.pages
    found: Counter[tuple[str, str]] = Counter()
    for cell in runs[name].result.services.cells:
        asked = cell.service.name not in ("fallback", "page-cache")
        service = cell.service.name if asked else "mempolicy"
        assert asked or name == quirks.RFC or not cell.pages
        for what in ("came", "left", "stayed"):
            found[service, what] += getattr(cell, what)
    # How often the scanner comes by nobody counts, nor what compaction tries in vain.
    assert found.pop(("numa-balancing", "stayed")) >= 43
    tried = found["compaction", "stayed"] - counted["compaction", "stayed"]
    assert tried >= 0
    found["compaction", "stayed"] -= tried
    # migrate_pages() moves the program itself, too, of which it counts nothing.
    found["migration", "came"] -= sum(
        row.size // PAGE
        for row in runs[name].trace.events
        if row.kind == EventKind.MIGRATE
        and (row.src_node, row.node) == (0, CDM_NODE)
        and not ARENA <= row.addr < ARENA_END
    )
    assert +found == counted


@pytest.fixture(scope="module")
def blind(runs: dict[str, Run]) -> dict[Probe, dict[str, set[Key]]]:
    """Probe -> what is missed without it, by step."""
    run = runs[quirks.RFC]
    return {probe: missed(run, moves(without(run.trace, probe))) for probe in NEEDED_BY}


@pytest.mark.parametrize("probe", NEEDED_BY, ids=lambda probe: probe.name.lower())
def test_a_path_whose_probe_is_taken_out_is_missed(
    blind: dict[Probe, dict[str, set[Key]]], probe: Probe
) -> None:
    if probe is Probe.EXIT_MMAP:
        # Who has not been told to end goes on as whoever gets an mm_struct at the same
        # address: which steps are in one, and seem another's, is up to the allocator.
        assert blind[probe].keys() >= NEEDED_BY[probe]
    else:
        assert blind[probe].keys() == NEEDED_BY[probe]


def test_there_is_a_probe_for_each_path(
    runs: dict[str, Run], blind: dict[Probe, dict[str, set[Key]]]
) -> None:
    """Each arrival and each departure of a step is missed without one of them."""
    told = {(line.step, line.key) for line in runs[quirks.RFC].lines}
    found = {
        (step, key)
        for steps in blind.values()
        for step, keys in steps.items()
        for key in keys
    }
    assert told - found == set()
