"""What ``record`` is asked for, and what came of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from cdmtrace.filters import Filters
from cdmtrace.planning import Plan


@dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    """What ``record`` was asked for. Sizes in pages, times in seconds.

    missing_probes: what one means that the kernel has not got: "error", "warn" or
    "ignore". max_events: see cdmtrace.drain.COUNTED. delay: from the command's start,
    or the attaching, to the first look.
    loader: one of cdmtrace.loader.choice.LOADERS.
    rotate: bytes that a part of the recording may have, None: it is one file.
    rotate_keep: how many parts are kept, None: all.
    """

    output: Path
    command: tuple[str, ...] = ()
    force: bool = False
    filters: Filters = field(default_factory=Filters)
    duration: float | None = None
    cdm_nodes: str | None = None
    vm_cdm_mask: str | None = None
    kernel_profile: str | None = None
    ring_pages: int = 4096
    map_size: int = 16384
    all: bool = False
    audit: float | None = None
    freeze: Path | None = None
    probes: tuple[str, ...] = ()
    without: tuple[str, ...] = ()
    missing_probes: str = "warn"
    max_events: int | None = None
    delay: float = 0.0
    ready_file: Path | None = None
    rotate: int | None = None
    rotate_keep: int | None = None
    live: bool = False
    loader: str = "auto"


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """How a recording ended. ``status`` is the command's; 0 without one.

    files: those that it is in, with ``size`` bytes in all.
    """

    events: int
    lost: int
    size: int
    reason: str
    status: int
    missing: tuple[Plan, ...]
    files: tuple[Path, ...] = ()
