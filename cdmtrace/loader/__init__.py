"""Get the BPF program into the kernel.

One protocol, so that nothing else has to know who compiles and attaches.
"""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from cdmtrace.losses import Losses, Waiting
from cdmtrace.planning import Plan


class Loader(Protocol):
    """A loaded program. Nothing of it stays in the kernel after close()."""

    def attach(self, plans: tuple[Plan, ...]) -> None:
        """Attach every probe that nothing keeps from it. Raises RecordError."""

    def enable(self, on: bool) -> None:
        """Let events through, or stop them while all probes stay attached."""

    def follow(self, pid: int, on: bool) -> None:
        """Let --pid name this process, or not any more. Raises RecordError."""

    def follow_cgroup(self, group: Path) -> None:
        """Let this cgroup be the one that --cgroup names. Raises OSError."""

    @property
    def ring_fd(self) -> int:
        """The ring buffer map's file descriptor."""

    def lost(self) -> Losses:
        """Return the counters of losses so far; those that are 0 are left out."""

    def stack(self, number: int) -> tuple[str, ...]:
        """Return a stack that an event names: name+0xoffset, innermost first."""

    def waiting(self) -> list[Waiting]:
        """Return what has begun and not returned: calls and functions."""

    def needs_capability(self) -> bool:
        """Return whether lost() and its kin need CAP_BPF here."""

    def close(self) -> None:
        """Detach everything."""
