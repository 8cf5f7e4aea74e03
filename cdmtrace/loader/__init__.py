"""Get the BPF program into the kernel.

One protocol, so that nothing else has to know who compiles and attaches.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from cdmtrace.probes import Plan


class Loader(Protocol):
    """A loaded program. Nothing of it stays in the kernel after close()."""

    def attach(self, plans: tuple[Plan, ...]) -> None:
        """Attach every probe that is not missing. Raises RecordError."""

    def enable(self, on: bool) -> None:
        """Let events through, or stop them while all probes stay attached."""

    @property
    def ring_fd(self) -> int:
        """The ring buffer map's file descriptor."""

    def lost(self) -> npt.NDArray[np.integer[Any]]:
        """Return the counters of losses so far: shape (Probe.MAX, Lost.MAX)."""

    def close(self) -> None:
        """Detach everything."""
