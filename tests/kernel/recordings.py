"""Runs in the guest: several recordings, by one process that has imported all once.

That takes half a minute in an emulated guest, so each recording is made by a child of
this process, which has it all. They are libbpf's, which has nothing to compile: bcc's
are test_story.py's. What comes out is left in the working directory, for test_record.py
to look at: for each recording its trace, its stdout and stderr, and its exit status in
``statuses.json``.

Usage: recordings.py GATES STORY [ARGUMENT...]
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import importlib
import json
import mmap
import os
import platform
import shutil
import signal
import struct
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

NOBODY = 65534
FLOOD_PAGES = 10007
LIVE_PAGES = 503
MAP_SIZE, PROCESSES = 8, 19
PAGES_WAITING = 23
STORY_STATUS = 23
PATIENCE = 1200
"""Seconds until something must have come. Compiling takes two minutes in an emulated
guest, and a multiple of that where the host is busy."""
PRIVATE = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
CHANGES, AT_A_TIME = 211, 8
MBIND, BIND, CDM_MASK = 237, 2, 1 << 1
MMAP, MOVE_PAGES, PR_SET_NAME = 9, 279, 15
USERFAULTFD, UFFDIO_API, UFFDIO_REGISTER = 323, 0xC018AA3F, 0xC020AA00

CGROUPS = Path("/tmp/cdmtrace-cgroups")
CGROUP = CGROUPS / "filters"
COMM = "fifteen_letters"
AT, INSIDE, PLACED = 0x6F0000000000, (8, 24), 32
"""Where --addr looks: these pages of a VMA of so many."""
LIMIT, DELAY = 101, 3

LIBC = ctypes.CDLL(None, use_errno=True)


def bind_a_page_each(processes: int) -> None:
    """Let so many processes, one after the other, bind a page, and live on."""
    children = []
    for _ in range(processes):
        ready, done = os.pipe()
        pid = os.fork()
        if not pid:
            fault(1)
            os.write(done, b".")
            signal.pause()
        os.read(ready, 1)
        children.append(pid)
    for pid in children:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def bind(start: int, size: int, node_mask: int = CDM_MASK) -> None:
    mask = ctypes.c_ulong(node_mask)
    arguments = (start, size, BIND, ctypes.addressof(mask), 65, 0)
    if LIBC.syscall(MBIND, *map(ctypes.c_ulong, arguments)):
        raise OSError(ctypes.get_errno(), "mbind")


def bound(pages: int, *advice: int, node_mask: int = CDM_MASK) -> mmap.mmap:
    """Return an anonymous region that is bound to the CDM node, or to others; advice
    comes before."""
    assert platform.machine() == "x86_64"
    size = pages * mmap.PAGESIZE
    region = mmap.mmap(-1, size, flags=PRIVATE)
    for what in (mmap.MADV_NOHUGEPAGE, *advice):
        region.madvise(what)
    bind(ctypes.addressof(ctypes.c_char.from_buffer(region)), size, node_mask)
    return region


def change_in_a_flood(changes: int, file: str) -> None:
    """Bind so many pages, one after the other, while another process does but fault.

    file: of the recorder. What is kept for changes in its ring has room for some of
    them, so a few are made, and then it must have written twice: what it wrote first it
    may have taken from the ring before.
    """
    Path("changes.pid").write_text(f"{os.getpid()}\n")
    flood = os.fork()
    if not flood:
        region = bound(FLOOD_PAGES)
        while True:
            for page in range(FLOOD_PAGES):
                region[page * mmap.PAGESIZE] = 1
            region.madvise(mmap.MADV_DONTNEED)
    region = mmap.mmap(-1, changes * mmap.PAGESIZE, flags=PRIVATE)
    start = ctypes.addressof(ctypes.c_char.from_buffer(region))
    for page in range(changes):
        bind(start + page * mmap.PAGESIZE, mmap.PAGESIZE)
        time.sleep(0.02)
        if page % AT_A_TIME == 0:
            for _ in range(2):
                wait_for_growth(Path(file), 1)
    os.kill(flood, signal.SIGKILL)
    os.waitpid(flood, 0)


def fault_side_by_side(pages: int) -> None:
    """Fault so many pages in, in each of two processes, at the same time."""
    region = bound(pages)
    ready, go = os.pipe()
    other = os.fork()
    # Each has a cpu of its own, and waits for the other.
    os.sched_setaffinity(0, {0 if other else 1})
    if other:
        os.write(go, b".")
    else:
        os.read(ready, 1)
    for page in range(pages):
        region[page * mmap.PAGESIZE] = 1
    if not other:
        os._exit(0)
    os.waitpid(other, 0)


def fault(pages: int, pause: float = 0.0) -> None:
    """Fault in so many pages, one by one, in a VMA that is bound to the CDM node."""
    region = bound(pages)
    for page in range(pages):
        region[page * mmap.PAGESIZE] = 1
        if pause:
            time.sleep(pause)


@contextlib.contextmanager
def prepared(loader: str = "libbpf") -> Iterator[None]:
    """Import all that it takes, for the recordings that start() begins meanwhile."""
    from cdmtrace.loader.bcc import import_bcc
    from cdmtrace.loader.choice import headers_for

    importlib.import_module("cdmtrace.recorder")
    if loader == "bcc":
        import_bcc()
    for verb in ("RECORD", "WATCH"):
        os.environ[f"CDMTRACE_{verb}_LOADER"] = loader
    with headers_for(loader):
        yield


def start(
    name: str,
    *words: str,
    sudo_uid: int | None = None,
    maxactive: int = 1024,
    become: Callable[[], object] = lambda: None,
    place: str = ".",
    verb: str = "record",
    stderr: int | None = None,
) -> int:
    """Begin a recording in a child; return its pid.

    become: is called there first. place: the directory of the trace. stderr: a file
    if None.
    """
    from cdmtrace.cli import main
    from cdmtrace.loader import program

    pid = os.fork()
    if pid:
        return pid
    status = 99
    try:
        program.MAXACTIVE = maxactive
        for number, stream in ((1, "stdout"), (2, "stderr")):
            kept = os.open(f"{name}.{stream}", os.O_WRONLY | os.O_CREAT, 0o644)
            os.dup2(kept if number == 1 or stderr is None else stderr, number)
        if sudo_uid is not None:
            os.environ |= {"SUDO_UID": str(sudo_uid), "SUDO_GID": str(sudo_uid)}
        become()
        status = main([verb, "-o", f"{place}/{name}.arrows", *words])
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def place_of_all() -> str:
    """Return a directory where all may make files, and are told whose they are.

    What is on 9p is root's, whoever has made it.
    """
    place = Path("/tmp/all")
    place.mkdir(exist_ok=True)
    place.chmod(0o1777)
    return str(place)


def fetch(name: str) -> None:
    """Copy a trace from there, and leave its uid, gid and mode in NAME.owner."""
    path = Path(place_of_all(), f"{name}.arrows")
    status = path.stat()
    told = [status.st_uid, status.st_gid, status.st_mode & 0o7777]
    Path(f"{name}.owner").write_text(json.dumps(told))
    shutil.copyfile(path, path.name)


def finish(pid: int) -> int:
    """Wait for a recording; return its status, negative if a signal ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def wait_for_growth(path: Path, more: int, pid: int | None = None) -> None:
    """Wait until the file that a recorder writes has grown by so many bytes.

    pid: that of the recorder, if it is our child.
    """
    deadline = time.monotonic() + PATIENCE
    first = None
    while first is None or path.stat().st_size < first + more:
        if time.monotonic() > deadline:
            raise TimeoutError(f"{path} does not grow")
        if pid and os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            raise ChildProcessError(f"the recorder of {path} has ended")
        time.sleep(0.1)
        if first is None and path.exists():
            first = path.stat().st_size


def again(*words: str) -> list[str]:
    """Return the command that runs this file again, as a workload.

    Its text is handed over, for who runs it may not be able to read the file.
    """
    python = shutil.which("python3", path="/usr/bin") or sys.executable
    return [python, "-c", Path(__file__).read_text(), *words]


def child_of(parent: int, word: bytes) -> tuple[int, str]:
    """Return the child in whose command the word is, and /proc/PID/status of it."""
    for entry in Path("/proc").glob("[0-9]*"):
        # Whoever ends meanwhile is not it.
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            status = (entry / "status").read_text()
            ours = f"\nPPid:\t{parent}\n" in status
            if ours and word in (entry / "cmdline").read_bytes():
                return int(entry.name), status
    raise LookupError(f"{parent} has no child with {word!r}")


def record_and_look_on() -> int:
    """Show a recording of everything on a terminal; kill who draws it midway."""
    ours, theirs = os.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("4H", 24, 80, 0, 0))
    os.environ["TERM"] = "xterm"
    drawn = bytearray()

    def look() -> None:
        with contextlib.suppress(OSError):
            while data := os.read(ours, 1 << 16):
                drawn.extend(data)

    def wait_for(text: bytes) -> None:
        deadline = time.monotonic() + PATIENCE
        while text not in drawn:
            if time.monotonic() > deadline:
                raise TimeoutError(f"{text!r} is not drawn: {bytes(drawn[-4000:])!r}")
            time.sleep(0.1)

    looker = threading.Thread(target=look, daemon=True)
    wait = 'while [ ! -e "$1" ]; do sleep 0.2; done'
    script = f'{wait}; shift; "$@"; set -- killed.go "$@"; {wait}; shift; "$@"'
    work = again("fault", str(LIVE_PAGES), "0")
    words = ("--live", "--all", "--", "sh", "-c", script, "sh", "live.go", *work)
    pid = start("live", *words, stderr=theirs)
    os.close(theirs)
    looker.start()
    try:
        wait_for(b"Tagged VMAs")
        viewer, status = child_of(pid, b"cdmtrace.live")
        Path("live.json").write_text(json.dumps({"pid": viewer, "status": status}))
        Path("live.go").touch()
        wait_for(b"sys_mbind")
        os.kill(viewer, signal.SIGKILL)
        wait_for(b"the live view has ended (SIGKILL)")
    finally:
        Path("live.go").touch()
        Path("killed.go").touch()
        result = finish(pid)
        looker.join(60)
        Path("live.stderr").write_bytes(drawn)
    return result


def record_the_story(story: list[str]) -> int:
    """A command that fails must be told from one that does not, so this one does."""
    script = '"$@" >story.out; echo $? >story.status; exit "$STORY_STATUS"'
    os.environ["STORY_STATUS"] = str(STORY_STATUS)
    return finish(start("story", "--", "sh", "-c", script, "sh", *story))


def record_the_gates(gates: str, story: list[str]) -> int:
    """Pages that come back from swap, and a huge page that khugepaged makes."""
    told = story[story.index("--quirks") + 1]
    command = (gates, "--quirks", told, "--step", "swap,collapse")
    return finish(start("gates", "--", *command))


def record_a_flood() -> int:
    """More than a small ring can hold, made by who called sudo, ended by a signal."""
    script = 'id -u; id -g; id -G; "$@"; kill -TERM $$'
    status = finish(
        start(
            *("flood", "--ring-pages", "1", "--"),
            *("sh", "-c", script, "sh", *again("fault", str(FLOOD_PAGES), "0")),
            sudo_uid=NOBODY,
            place=place_of_all(),
        )
    )
    fetch("flood")
    return status


def record_changes_in_a_flood() -> int:
    """A ring of 480 records, and many times as many pages."""
    command = again("change", str(CHANGES), "changes.arrows")
    return finish(start("changes", "--ring-pages", "16", "--", *command))


def record_and_be_killed() -> int:
    """Kill the recorder when it has written some batches."""
    script = 'echo $$ > killed.pid; exec "$@"'
    command = ("sh", "-c", script, "sh", *again("fault", "100003", "0.01"))
    pid = start("killed", "--", *command)
    try:
        wait_for_growth(Path("killed.arrows"), 1 << 16, pid)
    finally:
        os.kill(pid, signal.SIGKILL)
    status = finish(pid)
    # Its command goes on: nobody else is left to end it.
    os.kill(int(Path("killed.pid").read_text()), signal.SIGKILL)
    return status


def record_one_of_two() -> int:
    """Record one of two processes that do the same, for three seconds."""
    workers = [
        subprocess.Popen(again("fault", "100003", "0.01"), stderr=subprocess.DEVNULL)
        for _ in range(2)
    ]
    Path("pids.json").write_text(json.dumps([worker.pid for worker in workers]))
    try:
        pid = str(workers[0].pid)
        return finish(start("one", "--pid", pid, "--duration", "3"))
    finally:
        for worker in workers:
            worker.kill()
            worker.wait()


def record_with_full_maps() -> int:
    """More address spaces than are followed."""
    size = str(MAP_SIZE)
    return finish(
        start("full", "--map-size", size, "--", *again("bind", str(PROCESSES)))
    )


def record_unpaired() -> int:
    """Faults side by side, where the kernel waits for one return at a time.

    It counts itself how many it did not wait for.
    """
    script = '"$@"; cat /sys/kernel/tracing/kprobe_profile'
    words = again("side by side", str(FLOOD_PAGES))
    return finish(
        start("unpaired", "--", "sh", "-c", script, "sh", *words, maxactive=1)
    )


def record_in_parts() -> int:
    """More than a file of 1 MiB has room for."""
    words = again("fault", str(FLOOD_PAGES), "0")
    return finish(start("parts", "--rotate", "1M", "--", *words))


def record_an_open_call() -> int:
    """Stop recording while a call is under way that waits for its arguments."""
    pid = start("open")
    wait_for_growth(Path("open.arrows"), 0, pid)
    with subprocess.Popen(again("wait")) as worker:
        deadline = time.monotonic() + PATIENCE
        while not Path("open.json").exists():
            if worker.poll() is not None or time.monotonic() > deadline:
                raise ChildProcessError("no call waits")
            time.sleep(0.1)
        os.kill(pid, signal.SIGINT)
        status = finish(pid)
        worker.kill()
    return status


def wait_in_mbind() -> None:
    """Call mbind() with a node mask that lies in a page that nobody brings."""
    region, mask = bound(PAGES_WAITING), mmap.mmap(-1, mmap.PAGESIZE)
    start, where = (
        ctypes.addressof(ctypes.c_char.from_buffer(area)) for area in (region, mask)
    )
    fd = LIBC.syscall(USERFAULTFD, os.O_CLOEXEC)
    if fd < 0:
        raise OSError(ctypes.get_errno(), "userfaultfd")
    fcntl.ioctl(fd, UFFDIO_API, struct.pack("3Q", 0xAA, 0, 0))
    missing = struct.pack("4Q", where, mmap.PAGESIZE, 1, 0)
    fcntl.ioctl(fd, UFFDIO_REGISTER, missing)
    size = len(region)
    arguments = map(ctypes.c_ulong, (start, size, BIND, where, 65, 0))
    threading.Thread(target=LIBC.syscall, args=(MBIND, *arguments)).start()
    # Now it waits: what it waits for has been asked of us.
    os.read(fd, 32)
    told = {"pid": os.getpid(), "addr": start, "size": size}
    Path("waiting.json").write_text(json.dumps(told))
    Path("waiting.json").rename("open.json")
    signal.pause()


# --- filters --------------------------------------------------------------------


def wait_for(path: str) -> None:
    """Wait until there is such a file."""
    deadline = time.monotonic() + PATIENCE
    while not Path(path).exists():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{path} does not come")
        time.sleep(0.02)


def fork(work: Callable[[], object]) -> int:
    """Let a child do that; return its pid."""
    pid = os.fork()
    if pid:
        return pid
    try:
        work()
    except BaseException as error:
        sys.stderr.write(f"{work}: {error!r}\n")
        sys.stderr.flush()
        os._exit(1)
    os._exit(0)


def join(*pids: int) -> None:
    for pid in pids:
        status = finish(pid)
        if status:
            raise ChildProcessError(f"{pid}: {status}")


def note(name: str, pid: int) -> None:
    """Leave the pid of a process that the test asks for."""
    Path(f"{name}.pid").write_text(f"{pid}\n")


def faults(ready: str, name: str, pages: int) -> Callable[[], None]:
    """Return what notes its pid, waits for the recorder, and faults pages in."""

    def work() -> None:
        note(name, os.getpid())
        wait_for(ready)
        fault(pages)

    return work


def move(pid: int, start: int, pages: int, node: int) -> None:
    """Move pages of a process to a node."""
    where = (ctypes.c_ulong * pages)(*(start + n * mmap.PAGESIZE for n in range(pages)))
    nodes, status = (ctypes.c_int * pages)(*[node] * pages), (ctypes.c_int * pages)()
    if LIBC.syscall(MOVE_PAGES, pid, ctypes.c_ulong(pages), where, nodes, status, 2):
        raise OSError(ctypes.get_errno(), "move_pages")
    if set(status) != {node}:
        raise OSError(f"pages did not move: {list(status)}")


def start_of(region: mmap.mmap) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(region))


def family(ready: str) -> None:
    """A process with a child from before, and a child, a grandchild and a program."""
    early = fork(faults(ready, "early", 13))
    wait_for(ready)
    region = bound(11)
    for page in range(11):
        region[page * mmap.PAGESIZE] = 1
    Path("family.tmp").write_text(json.dumps(start_of(region)))
    Path("family.tmp").rename("family.json")
    wait_for("moved")

    def late() -> None:
        note("late", os.getpid())
        fault(17)
        join(fork(faults(ready, "grandchild", 19)))

    def program() -> None:
        note("program", os.getpid())
        words = again("fault", "23", "0")
        os.execv(words[0], words)

    join(early, fork(late), fork(program))


def stranger(ready: str, pid: int) -> None:
    """Move pages of a process that is recorded, and its own."""
    note("stranger", os.getpid())
    wait_for(ready)
    region = bound(29)
    for page in range(29):
        region[page * mmap.PAGESIZE] = 1
    move(0, start_of(region), 3, 0)
    wait_for("family.json")
    move(pid, json.loads(Path("family.json").read_text()), 5, 0)
    Path("moved").touch()


def record_a_family() -> int:
    """One process with all that comes from it, and what others do to its pages."""
    ready = "family.ready"
    parent = fork(lambda: family(ready))
    note("parent", parent)
    other = fork(lambda: stranger(ready, parent))
    wait_for("early.pid")
    status = finish(start("family", "--pid", str(parent), "--ready-file", ready))
    join(parent, other)
    return status


def record_a_cgroup() -> int:
    """Two processes without their children, if they are in a cgroup or below it."""
    inner = CGROUP / "inner"
    CGROUPS.mkdir()
    subprocess.run(["mount", "-t", "cgroup2", "none", str(CGROUPS)], check=True)
    inner.mkdir(parents=True)
    ready = "group.ready"

    def inside() -> None:
        (inner / "cgroup.procs").write_text(str(os.getpid()))
        child = fork(faults(ready, "inside_child", 13))
        faults(ready, "inside", 11)()
        join(child, fork(faults(ready, "inside_later", 31)))

    def unnamed() -> None:
        (CGROUP / "cgroup.procs").write_text(str(os.getpid()))
        faults(ready, "unnamed", 19)()

    pids = [fork(inside), fork(faults(ready, "outside", 17)), fork(unnamed)]
    for name in ("inside_child", "inside", "outside", "unnamed"):
        wait_for(f"{name}.pid")
    words = [word for pid in pids[:2] for word in ("--pid", str(pid))]
    words += ["--no-children", "--cgroup", str(CGROUP), "--stacks", "none"]
    try:
        return finish(start("group", *words, "--ready-file", ready))
    finally:
        join(*pids)
        inner.rmdir()
        CGROUP.rmdir()
        subprocess.run(["umount", str(CGROUPS)], check=True)


def placed(ready: str, comm: str) -> None:
    """Fault in a region at AT: some pages before recording begins, then the rest."""
    LIBC.prctl(PR_SET_NAME, comm.encode(), 0, 0, 0)
    size, beside = PLACED * mmap.PAGESIZE, AT + (1 << 30)
    for where in (AT, beside):
        # MAP_PRIVATE, MAP_ANONYMOUS and MAP_FIXED_NOREPLACE
        got = LIBC.mmap(*map(ctypes.c_ulong, (where, size, 3, 0x100022, -1, 0)))
        if got % (1 << 64) != where:
            raise OSError(ctypes.get_errno(), "mmap")
        LIBC.madvise(ctypes.c_ulong(where), ctypes.c_ulong(size), 15)
        bind(where, size)
    for page in range(10):
        ctypes.memset(AT + page * mmap.PAGESIZE, 1, 1)
    note(comm, os.getpid())
    wait_for(ready)
    for where in (AT, beside):
        ctypes.memset(where, 1, size)
    for where in (AT, beside):
        LIBC.mprotect(ctypes.c_ulong(where), ctypes.c_ulong(size), 1)
        LIBC.munmap(ctypes.c_ulong(where), ctypes.c_ulong(size))


def record_a_name() -> int:
    """One of two processes whose names differ in one letter, and some addresses."""
    LIBC.mmap.restype = ctypes.c_ulong
    ready, names = "named.ready", (COMM, COMM[:-1])
    pids = [fork(lambda name=name: placed(ready, name)) for name in names]
    for name in names:
        wait_for(f"{name}.pid")
    first, last = (AT + page * mmap.PAGESIZE for page in INSIDE)
    words = ("--comm", COMM, "--addr", f"{first:#x}-{last:#x}", "--stacks", "changes")
    recorder = start("named", *words, "--ready-file", ready)
    try:
        wait_for(ready)
    finally:
        join(*pids)
        os.kill(recorder, signal.SIGINT)
    return finish(recorder)


def fault_on_both_nodes(pages: int) -> None:
    """Fault pages in, one on each node by turns."""
    regions = [bound(pages), bound(pages, node_mask=1)]
    for page in range(pages):
        for region in regions:
            region[page * mmap.PAGESIZE] = 1
        time.sleep(0.01)


def record_so_many() -> int:
    """One of two CDM nodes, from some seconds on, until there are so many events."""
    words = ("--cdm-nodes", "0,1", "--node", "1", "--max-events", str(LIMIT))
    command = again("both", "30011")
    return finish(start("limited", *words, "--delay", str(DELAY), "--", *command))


def rehearse() -> int:
    """Nothing is recorded."""
    return finish(start("dry", "--dry-run", "--pid", "1", "--stacks", "none"))


def watch_writes() -> int:
    """Watch what a process does to its VMAs, and what a work item does to one."""
    from watching import watch_acts

    quirks = Path("/sys/kernel/debug/cdm/quirks")
    quirks.write_text("workqueue-tag")
    try:
        return watch_acts()
    finally:
        quirks.write_text("rfc")


def ask(verb: str, *words: str) -> None:
    """Leave what a verb says on stdout, and its status, in a file."""
    from cdmtrace.cli import main

    with (
        Path(f"{verb}.json").open("w") as file,
        contextlib.redirect_stdout(file),
    ):
        status = main([verb, *words])
    Path(f"{verb}.status").write_text(f"{int(status)}\n")


def run(gates: str, story: list[str]) -> None:
    """Make all recordings."""
    makers = {
        "story": lambda: record_the_story(story),
        "gates": lambda: record_the_gates(gates, story),
        "flood": record_a_flood,
        "changes": record_changes_in_a_flood,
        "killed": record_and_be_killed,
        "one": record_one_of_two,
        "full": record_with_full_maps,
        "unpaired": record_unpaired,
        "parts": record_in_parts,
        "open": record_an_open_call,
        "family": record_a_family,
        "group": record_a_cgroup,
        "named": record_a_name,
        "limited": record_so_many,
        "dry": rehearse,
        "watch": watch_writes,
        "live": record_and_look_on,
    }
    statuses = {}
    with prepared():
        for name, make in makers.items():
            statuses[name] = make()
            Path("statuses.json").write_text(json.dumps(statuses))
            shutil.copy("/sys/kernel/tracing/kprobe_events", f"{name}.kprobe_events")
    ask("doctor", "--format", "json")
    ask("probes", "--format", "json")


if __name__ == "__main__":
    if sys.argv[1] == "fault":
        fault(int(sys.argv[2]), float(sys.argv[3]))
    elif sys.argv[1] == "change":
        change_in_a_flood(int(sys.argv[2]), sys.argv[3])
    elif sys.argv[1] == "side by side":
        fault_side_by_side(int(sys.argv[2]))
    elif sys.argv[1] == "bind":
        bind_a_page_each(int(sys.argv[2]))
    elif sys.argv[1] == "both":
        fault_on_both_nodes(int(sys.argv[2]))
    elif sys.argv[1] == "wait":
        wait_in_mbind()
    else:
        run(sys.argv[1], sys.argv[2:])
