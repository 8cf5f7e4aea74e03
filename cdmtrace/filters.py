"""What ``record`` leaves out, as it was asked to: which processes, addresses, nodes.

The kernel decides, before it takes room in the ring: bpf/filters.h. Here is how a
filter is written, what the program has to be told for it, and what the trace's header
says of it, for who reads the file has to know what cannot be in it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

from cdmtrace.errors import RecordError, UsageTrouble
from cdmtrace.kernel import nodes, tasks
from cdmtrace.loader import Loader

STACKS: Final = ("all", "changes", "none")
COMM_BYTES: Final = 15
"""Of a name that the kernel keeps, TASK_COMM_LEN without its end."""

_UNITS: Final = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
_RANGE: Final = re.compile(
    r"(?P<start>(?:0x)?[0-9a-f]+)"
    r"(?:-(?P<end>(?:0x)?[0-9a-f]+)|\+(?P<size>0x[0-9a-f]+|\d+)(?P<unit>[KMGT]?))",
    re.IGNORECASE,
)


class Range(NamedTuple):
    """Addresses [start, end)."""

    start: int
    end: int

    def __str__(self) -> str:
        """Return it as /proc/PID/maps has it."""
        return f"{self.start:x}-{self.end:x}"


def parse_range(text: str) -> Range:
    """Return the addresses of ``START-END`` or ``START+SIZE``.

    Addresses are hexadecimal, 0x or not; a size is a number of bytes, or of K, M, G
    or T. Raises UsageTrouble for anything else, and for one that is empty.
    """
    match = _RANGE.fullmatch(text.strip())
    if not match:
        raise UsageTrouble(
            f"--addr {text}: is no range of addresses",
            hint="write it as --addr 7f0000000000-7f0000200000 or 7f0000000000+2M",
        )
    start = int(match["start"], 16)
    if match["end"]:
        end = int(match["end"], 16)
    else:
        end = start + int(match["size"], 0) * _UNITS[match["unit"].upper()]
    if not start < end < 1 << 64:
        raise UsageTrouble(
            f"--addr {text}: there is no address in it",
            hint="the end comes after the start, and below 2^64",
        )
    return Range(start, end)


@dataclass(frozen=True, kw_only=True, slots=True)
class Filters:
    """What was asked for. Filters of several kinds hold together.

    pids: any of these processes, and with children what they have forked and will.
    cgroup: its directory. nodes: a list, as it was given. stacks: one of STACKS.
    """

    pids: tuple[int, ...] = ()
    children: bool = True
    cgroup: Path | None = None
    comm: str | None = None
    nodes: str | None = None
    addr: Range | None = None
    stacks: str = "all"

    @property
    def of_processes(self) -> bool:
        """Whether some processes are left out."""
        return bool(self.pids or self.cgroup or self.comm)

    @property
    def _name(self) -> bytes:
        return os.fsencode(self.comm or "")

    def require(self) -> None:
        """Raise UsageTrouble for what there is not, or cannot be."""
        for pid in self.pids:
            _require_process(pid)
        if self.cgroup and not (self.cgroup / "cgroup.controllers").exists():
            raise UsageTrouble(
                f"--cgroup {self.cgroup}: no cgroup v2",
                hint="give its directory, such as /sys/fs/cgroup/NAME",
            )
        if self.comm is not None and (not self._name or b"\0" in self._name):
            raise UsageTrouble(
                "--comm: a task's name is not empty", hint="ps -eo pid,comm"
            )
        if len(self._name) > COMM_BYTES:
            kept = os.fsdecode(self._name[:COMM_BYTES])
            raise UsageTrouble(
                f"--comm {self.comm}: the kernel keeps {COMM_BYTES} bytes of a name",
                hint=f"--comm {kept!r}",
            )

    def told_nodes(self, cdm: tuple[int, ...]) -> tuple[int, ...]:
        """Return the CDM nodes that are followed. Raises UsageTrouble."""
        if self.nodes is None:
            return cdm
        found = nodes.parse_list(self.nodes, "--node")
        if strange := sorted(set(found) - set(cdm)):
            raise UsageTrouble(
                f"--node {self.nodes}: node {strange[0]} is no CDM node",
                hint=f"these are: {', '.join(map(str, cdm))} (--cdm-nodes)",
            )
        if not found:
            raise UsageTrouble("--node: no node", hint="such as --node 1")
        return found

    def numbers(self) -> dict[str, int]:
        """Return macro -> number for the BPF program, see bpf/cdmtrace.bpf.c."""
        name = self._name.ljust(COMM_BYTES + 1, b"\0")
        start, end = self.addr or (0, 0)
        return {
            "FOLLOW_PIDS": int(bool(self.pids)),
            "FOLLOW_CHILDREN": int(self.children),
            "FOLLOW_CGROUP": int(self.cgroup is not None),
            "FOLLOW_COMM": int(self.comm is not None),
            "COMM0": int.from_bytes(name[:8], "little"),
            "COMM1": int.from_bytes(name[8:], "little"),
            "ADDR_START": start,
            "ADDR_END": end,
            "STACKS": {"none": 0, "changes": 1, "all": 2}[self.stacks],
        }

    def header(self, cdm: tuple[int, ...]) -> dict[str, Any]:
        """Return what the trace's header says of them, nothing of what is not there.

        cdm: the CDM nodes. Addresses are text, for they may pass 2**53.
        """
        found: Mapping[str, Any] = {
            "pid": list(self.pids),
            "children": self.children if self.pids else None,
            "cgroup": str(self.cgroup) if self.cgroup else None,
            "comm": self.comm,
            "node": list(self.told_nodes(cdm)) if self.nodes is not None else None,
            "addr": str(self.addr) if self.addr else None,
            "stacks": self.stacks if self.stacks != "all" else None,
        }
        return {name: value for name, value in found.items() if value not in (None, [])}

    def processes(self) -> frozenset[int]:
        """Return the processes that there are, and that the filters name."""
        found = tasks.with_descendants(self.pids) if self.children else {*self.pids}
        if not self.pids:
            found = {int(p.name) for p in tasks.PROC.iterdir() if p.name.isdecimal()}
        if self.cgroup:
            found = found & tasks.in_cgroup(self.cgroup)
        if self.comm is not None:
            found = {pid for pid in found if self._name in tasks.comms(pid)}
        return frozenset(found - {os.getpid()})

    def arm(self, loader: Loader) -> None:
        """Tell a program that is attached whom to follow.

        A process that one of them forks is told of by the kernel from then on that its
        parent is, so that those are all when a last look finds no other. Raises
        RecordError if the cgroup is gone.
        """
        if self.cgroup:
            try:
                loader.follow_cgroup(self.cgroup)
            except OSError as error:
                raise RecordError(
                    f"--cgroup {self.cgroup}: cannot be followed: {error.strerror}"
                ) from error
        done: set[int] = set()
        named = frozenset(self.pids)
        while new := named - done:
            for pid in new:
                before = tasks.born(pid)
                loader.follow(pid, True)
                # Its end may have been before: who gets its number is another one.
                if before is None or tasks.born(pid) != before:
                    loader.follow(pid, False)
            done |= new
            if self.children:
                named = tasks.with_descendants(self.pids)


def _require_process(pid: int) -> None:
    try:
        status = (tasks.PROC / str(pid) / "status").read_text()
    except OSError as error:
        raise UsageTrouble(
            f"--pid {pid}: there is no such process", hint="ps -e"
        ) from error
    process = next(
        int(line.split()[1]) for line in status.splitlines() if line.startswith("Tgid:")
    )
    if process != pid:
        raise UsageTrouble(
            f"--pid {pid}: is a thread of process {process}", hint=f"--pid {process}"
        )
