"""A bar on stderr for what takes longer than two seconds, on a terminal only."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Final

import click

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from cdmtrace.analysis.rows import Ticker

PATIENCE: Final = 2.0
"""Seconds without a bar."""


def ticker() -> Ticker:
    """Return who shows on a terminal how far it is, while the command runs."""
    command = click.get_current_context(silent=True)
    # In a thread there is no command that would take the bar away.
    if command is None or not sys.stderr.isatty():
        return _nobody_looks
    bar = Bar()
    command.call_on_close(bar.close)
    return bar.tick


def _nobody_looks(what: str, done: int, total: int) -> None:
    """Show nothing."""


class Bar:
    """One bar, for one thing after the other. It is gone when a thing is done."""

    def __init__(self) -> None:
        self._what = ""
        self._began = 0.0
        self._shown: tuple[Progress, TaskID] | None = None

    def tick(self, what: str, done: int, total: int) -> None:
        """Show that so much is done; another thing, or one once more, begins anew."""
        if done >= total:
            self.close()
            return
        if what != self._what:
            self.close()
            self._what, self._began = what, time.monotonic()
        if self._shown is None:
            if time.monotonic() - self._began < PATIENCE:
                return
            self._shown = _start(what, total)
        progress, task = self._shown
        progress.update(task, completed=done)

    def close(self) -> None:
        """Take it away."""
        self._what = ""
        if self._shown is not None:
            self._shown[0].stop()
            self._shown = None


def _start(what: str, total: int) -> tuple[Progress, TaskID]:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        Progress,
        TaskProgressColumn,
        TextColumn,
        TimeRemainingColumn,
    )

    progress = Progress(
        TextColumn("cdmtrace: {task.description}", markup=False),
        BarColumn(bar_width=20),
        TaskProgressColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True, force_terminal=True),
        transient=True,
        redirect_stdout=False,
    )
    progress.start()
    return progress, progress.add_task(what, total=total)
