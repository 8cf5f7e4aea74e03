"""``cdmtrace live``."""

from __future__ import annotations

import os
import select
import signal
from pathlib import Path

import click

from cdmtrace.cli.options import profile_option
from cdmtrace.errors import ExitStatus, UnreadableFile, UsageTrouble


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@profile_option("What the tag must mean, as for check.")
def live(file: Path, profile: str) -> int:
    """Show a recording while it is made: rates, losses, tagged VMAs, findings.

    It reads FILE as far as it is written, by whomever, and goes on until the recording
    ends, or Ctrl-C. The last picture stays. Findings are what was found so far: check
    has the last word.
    """
    from cdmtrace.live import view
    from cdmtrace.render import live as render

    console = view.console_for(1)
    if not view.drawable(console):
        raise UsageTrouble(
            "live draws on a terminal, and stdout is none that can be drawn on",
            hint=f"cdmtrace check {file}",
        )
    fd = _open(file)
    ended: list[int] = []
    for kind in (signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(kind) is not signal.SIG_IGN:
            signal.signal(kind, lambda number, _: ended.append(number))
    try:
        shown = view.View(fd, str(file), profile=profile)
        view.stoppable(1)
        view.follow(shown, console, lambda seconds: _wait(seconds, ended))
        width, height = console.size
        # It is to be seen whole above the lines that follow.
        console.print(render.render(shown.frame(), width, height - 2))
    except OSError:
        # The terminal has gone.
        return ExitStatus.BROKEN_PIPE
    finally:
        os.close(fd)
    click.echo(f"cdmtrace: next: cdmtrace check {file}", err=True)
    others = [number for number in ended if number != signal.SIGINT]
    return 128 + others[0] if others else ExitStatus.OK


def _wait(seconds: float, ended: list[int]) -> bool:
    """Wait for so long, or for a signal; return whether there was none."""
    if not ended and seconds:
        # A handler that returns has select() go on waiting: so never for long.
        select.select([], [], [], seconds)
    return not ended


def _open(file: Path) -> int:
    try:
        return os.open(file, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        hint = "cdmtrace record -o FILE -- CMD makes a trace file"
        if isinstance(error, PermissionError):
            hint = f"sudo cdmtrace live {file}"
        raise UnreadableFile(
            f"{file}: cannot be read: {error.strerror}", hint=hint
        ) from error
