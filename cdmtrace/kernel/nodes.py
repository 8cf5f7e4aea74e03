"""Find out which NUMA nodes are coherent device memory."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path
from typing import Final

from cdmtrace.errors import RecordError, UsageTrouble

NODES: Final = Path("/sys/devices/system/node")
CMDLINE: Final = Path("/proc/cmdline")

MAX_NODE: Final = 63
"""Node masks of events have 64 bits."""

_SYSFS: Final = ("is_coherent_device", "is_cdm_node")
"""As RFC V2 (30 January 2017) and PATCH V3 (15 February 2017) call the file."""


class NodesUnknown(RecordError):
    """No CDM node was found and none was given (exit status 125)."""


def parse_list(text: str, option: str = "--cdm-nodes") -> tuple[int, ...]:
    """Return the numbers of a node list such as ``1,3-5``, sorted.

    option: whose value it is, for the hint. Raises UsageTrouble for anything else,
    and for a node above MAX_NODE.
    """
    found: set[int] = set()
    for part in filter(None, text.strip().split(",")):
        match = re.fullmatch(r"(\d+)(?:-(\d+))?", part.strip())
        if not match or int(match[2] or match[1]) < int(match[1]):
            raise UsageTrouble(
                f"{text!r} is not a node list",
                hint=f"write it as {option} 1 or {option} 1,3-5",
            )
        first = int(match[1])
        last = int(match[2] or first)
        if last > MAX_NODE:
            raise UsageTrouble(f"node {last}: only nodes 0 to {MAX_NODE} can be traced")
        found.update(range(first, last + 1))
    return tuple(sorted(found))


def online(root: Path = NODES) -> tuple[int, ...]:
    """Return the nodes that are online; node 0 alone without NUMA."""
    path = root / "online"
    return parse_list(path.read_text()) if path.exists() else (0,)


def has_cdm(root: Path = NODES) -> bool:
    """Return whether the kernel itself knows of CDM nodes, whichever these are.

    Such a kernel has a VM_CDM, too, be it that nobody says which bit that is.
    """
    return any((root / name).exists() for name in _SYSFS)


def discover(
    given: str | None = None, *, root: Path = NODES, cmdline: Path = CMDLINE
) -> tuple[tuple[int, ...], str]:
    """Return the CDM nodes and where that is known from.

    In this order: what was given; the kernel's sysfs file; cdm-nodes= on its command
    line, a mask, as openEuler has it. Raises NodesUnknown, and UsageTrouble for a
    node that is not there.
    """
    if given is not None:
        nodes = parse_list(given)
        missing = sorted(set(nodes) - set(online(root)))
        if missing or not nodes:
            raise UsageTrouble(
                f"--cdm-nodes {given}: "
                + (f"node {missing[0]} is not online" if missing else "no node"),
                hint=f"these are: {', '.join(map(str, online(root)))}",
            )
        return nodes, "--cdm-nodes"
    for name in _SYSFS:
        path = root / name
        if path.exists() and (nodes := parse_list(path.read_text())):
            return nodes, str(path)
    if mask := _boot_mask(cmdline.read_text()):
        return tuple(n for n in range(MAX_NODE + 1) if mask >> n & 1), str(cmdline)
    raise NodesUnknown(
        "this kernel does not say which nodes are coherent device memory",
        hint="name them with --cdm-nodes, such as --cdm-nodes 1 "
        f"(online: {', '.join(map(str, online(root)))}); openEuler's kernel is told "
        "them at boot: cdm-nodes=MASK",
    )


def _boot_mask(line: str) -> int:
    """Return the nodes of every cdm-nodes= on a command line, as a mask.

    The kernel adds them up, and takes a number with a leading 0 for octal.
    """
    mask = 0
    for text in re.findall(r"(?:^|\s)cdm[-_]nodes=(\S+)", line):
        with contextlib.suppress(ValueError):
            mask |= int(text, 8 if re.fullmatch("0[0-7]+", text) else 0)
    return mask
