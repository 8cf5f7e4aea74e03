"""Runs in the guest: watch a process whose writes to vm_flags are known and counted.

The process that is watched is this file again, told what to do. Leaves watch.arrows,
watch.stdout, watch.stderr, and taken.stderr of a watch that got no debug registers. Of
the scenario vfio, whose BAR is watched from before its first access on, it leaves
vfio.tap, and vfio.arrows, vfio.stdout and vfio.stderr of the watch.

Usage: watching.py vfio SCENARIO...
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import mmap
import os
import signal
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

PAGE = mmap.PAGESIZE
PAGES = 8
PLACES = [0x2000_0000_0000 + (n << 30) for n in range(3)]
PLACES += [PLACES[1] + PAGES * PAGE]
"""Each is a VMA; the last is beside the second, and differs from it in a flag."""
OTHERS = PLACES[0] + (1 << 40)
BAR = 0x1000_4000_0000
"""Where the scenario vfio maps it."""
READ, WRITE = mmap.PROT_READ, mmap.PROT_WRITE
FIXED_NOREPLACE = 0x100000
MBIND, BIND, CDM_MASK = 237, 2, 1 << 1

MPROTECTS, MADVISES, MLOCKS, RACES, BEFORE = 23, 11, 7, 200, 3
WRITES, STATUS = 5, 17
WRITE_FLAGS = 0x4018CD30
UNLOCKED, LOCK_READ, LOCK_WRITE = range(3)
VM_DONTCOPY = 0x20000
DELAY_MS, HEAD_START = 200, 0.05
PATIENCE = 1200
"""As in recordings.py, which imports what who is watched does without."""

LIBC = ctypes.CDLL(None, use_errno=True)
MADV_NORMAL, MADV_SEQUENTIAL = 0, 2
MADV_DONTFORK, MADV_DOFORK, MADV_DONTDUMP, MADV_DODUMP = 10, 11, 16, 17


def call(name: str, *arguments: int) -> int:
    """Call a function of libc; it must not fail."""
    function = getattr(LIBC, name)
    function.restype = ctypes.c_long
    result: int = function(*map(ctypes.c_ulong, arguments))
    if result == -1:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")
    return result


def place(addr: int, pages: int = PAGES) -> None:
    """Map a VMA at an address."""
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | FIXED_NOREPLACE
    none, size = (1 << 64) - 1, pages * PAGE
    assert call("mmap", addr, size, READ, flags, none, 0) == addr
    if addr == PLACES[3]:
        call("madvise", addr, size, MADV_SEQUENTIAL)
    call("mprotect", addr, size, READ | WRITE)
    # VMAs with pages become one only if they were alike when these came.
    if addr != PLACES[3]:
        ctypes.memset(addr, 1, size)


def wait_for(what: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not what():
        if time.monotonic() > deadline:
            raise TimeoutError(what)
        time.sleep(0.05)


def said(text: str, times: int = 1, file: str = "watch.stderr") -> Callable[[], bool]:
    """Return whether the watch, or who writes the file, has said it so often."""
    path = Path(file)
    return lambda: path.exists() and path.read_text().count(text) >= times


def has_tag(addr: int) -> bool:
    text = Path("/proc/self/smaps").read_text()
    flags = text[text.index(f"{addr:x}-") :]
    flags = flags[flags.index("VmFlags:") :].splitlines()[0]
    return " cd" in flags


def toggle(addr: int, advice: tuple[int, int], times: int) -> None:
    for _ in range(times):
        for one in advice:
            call("madvise", addr, PAGES * PAGE, one)


def act() -> None:
    """What any kernel does, on four VMAs, and what the lab's does with a quirk."""
    size = PAGES * PAGE
    counted, parted, unmapped, raced = PLACES
    for _ in range(MPROTECTS):
        call("mprotect", counted, size, READ)
        call("mprotect", counted, size, READ | WRITE)
    toggle(counted, (MADV_DONTFORK, MADV_DOFORK), MADVISES)
    for _ in range(MLOCKS):
        call("mlock", counted, size)
        call("munlock", counted, size)
    mask = ctypes.c_ulong(CDM_MASK)
    arguments = (counted, size, BIND, ctypes.addressof(mask), 65, 0)
    call("syscall", MBIND, *arguments)
    wait_for(lambda: has_tag(counted))

    # Split: the address is in another VMA then. Merged: in a third.
    call("mprotect", parted + size // 2, size // 2, READ)
    wait_for(said("#1 watches", 2))
    call("mprotect", parted, size // 2, READ)
    wait_for(said("#1 watches", 3))
    call("mprotect", parted, size, READ | WRITE)

    for _ in range(BEFORE):
        call("mprotect", unmapped, size, READ)
        call("mprotect", unmapped, size, READ | WRITE)
    call("munmap", unmapped, size)
    # What the VMA was is given to others.
    for n in range(64):
        place(OTHERS + (n << 21), 1)
        call("mprotect", OTHERS + (n << 21), PAGE, READ)

    other = threading.Thread(
        target=toggle, args=(raced, (MADV_DONTDUMP, MADV_DODUMP), RACES)
    )
    other.start()
    toggle(raced, (MADV_DONTFORK, MADV_DOFORK), RACES)
    other.join()
    # What it differed in is gone: it becomes one with the VMA that is beside it.
    call("madvise", raced, size, MADV_NORMAL)
    wait_for(said("#3 watches no more"))


def write_flags(device: int, addr: int, lock: int, delay: int = 0) -> None:
    """Have the lab's module write the flags of a VMA, under this lock."""
    fcntl.ioctl(
        device, WRITE_FLAGS, struct.pack("=QQII", addr, VM_DONTCOPY, lock, delay)
    )


def act_with_writer() -> None:
    """What the lab's module flag_writer does, on a kernel that nobody has patched."""
    alone, lost, readers = PLACES[:3]
    device = os.open("/dev/flag-writer", os.O_RDWR)
    for lock in (UNLOCKED, LOCK_READ, LOCK_WRITE):
        for _ in range(WRITES):
            write_flags(device, alone, lock)
            call("madvise", alone, PAGE * PAGES, MADV_DOFORK)
    for addr, lock in ((lost, UNLOCKED), (readers, LOCK_READ)):
        for _ in range(WRITES):
            other = threading.Thread(
                target=write_flags, args=(device, addr, lock, DELAY_MS)
            )
            other.start()
            if addr == lost:
                time.sleep(HEAD_START)
                call("madvise", addr, PAGE * PAGES, MADV_DONTDUMP)
            else:
                write_flags(device, addr, lock, DELAY_MS)
            other.join()
            call("madvise", addr, PAGE * PAGES, MADV_DOFORK)
            if addr == lost:
                call("madvise", addr, PAGE * PAGES, MADV_DODUMP)


def work(what: str, places: int) -> None:
    for addr in PLACES[:places]:
        place(addr)
    Path("ready").touch()
    wait_for(Path("go").exists)
    {"acts": act, "writer": act_with_writer}[what]()
    Path("done").touch()
    # That the recorder takes what is in the ring.
    time.sleep(1)


def watched(what: str, places: int, *options: str, command: tuple[str, ...]) -> int:
    """Watch a process that does something; return the status."""
    from recordings import finish, start, wait_for_growth

    words = [sys.executable, __file__, "work", what, str(places)]
    with subprocess.Popen(words) as worker:
        try:
            wait_for(Path("ready").exists)
            asked = ["--pid", str(worker.pid), *options]
            for addr in PLACES[:places]:
                asked += ["--addr", f"{addr:x}"]
            Path("taken.status").write_text(str(taken_by_another(*asked)))
            pid = start("watch", *asked, *command, verb="watch")
            if not command:
                wait_for_growth(Path("watch.arrows"), 0, pid)
                wait_for(said("recording"))
                Path("go").touch()
            return finish(pid)
        finally:
            worker.kill()


def taken_by_another(*words: str) -> int:
    """Watch while others have some of the debug registers; return the status."""
    from recordings import finish, start

    from cdmtrace.kernel import watchpoints

    with contextlib.ExitStack() as stack:
        for number in range(2):
            for cpu in watchpoints.cpus():
                address = (1 << 64) - ((1 + number) << 20)
                stack.callback(os.close, watchpoints.open_event(address, cpu))
        return finish(start("taken", *words, verb="watch"))


def watch_acts() -> int:
    """Until the process ends."""
    return watched("acts", 4, command=())


def watch_writer() -> int:
    """Until a command ends, which begins when all is armed."""
    script = f"touch go; while test ! -e done; do sleep 0.2; done; exit {STATUS}"
    command = ("--", "sh", "-c", script)
    return watched("writer", 3, "--vm-cdm-mask", "bit:38", command=command)


def watch_vfio(scenario: list[str]) -> int:
    """Until the scenario ends, whose first access to the BAR waits for the watch."""
    from recordings import finish, start

    words = [*scenario, "--hold-before", "touch"]
    with (
        Path("vfio.tap").open("w") as tap,
        subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=tap) as program,
    ):
        try:
            wait_for(said("\nREADY ", file="vfio.tap"))
            pid = start(
                *("vfio", "--pid", str(program.pid), "--addr", f"{BAR:x}"),
                *("--vm-cdm-mask", "bit:38", "--stack"),
                verb="watch",
            )
            wait_for(said("recording", file="vfio.stderr"))
            program.send_signal(signal.SIGUSR1)
            return finish(pid)
        finally:
            program.kill()


def main(scenario: list[str]) -> int:
    """Watch the scenario vfio."""
    from recordings import prepared

    with prepared():
        return watch_vfio(scenario)


if __name__ == "__main__":
    if sys.argv[1] == "work":
        work(sys.argv[2], int(sys.argv[3]))
    else:
        assert sys.argv[1] == "vfio"
        sys.exit(main(sys.argv[2:]))
