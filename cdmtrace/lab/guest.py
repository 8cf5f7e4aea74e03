"""Run one command in one guest: boot, stream, watch, clean up."""

from __future__ import annotations

import json
import os
import pty
import select
import shutil
import sys
import time
import tty
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from cdmtrace import __version__
from cdmtrace.errors import GuestDied, LabError, TimedOut
from cdmtrace.lab import guestscript
from cdmtrace.lab.machine import Machine, find_tools, vng_arguments
from cdmtrace.lab.paths import write_atomically
from cdmtrace.lab.processes import Session, signals_as_errors, tail
from cdmtrace.lab.watchdog import Fate, Limits, Outcome, Watchdog

if TYPE_CHECKING:
    from collections.abc import Callable

    from cdmtrace.lab.accel import Accelerator
    from cdmtrace.lab.machine import Tools

CONSOLE = "console.log"
CONFIG = "run.json"

_POLL_SECONDS = 0.1
# From the command's status to the guest's power-off.
_POWER_OFF_SECONDS = 30.0
_CHUNK = 1 << 16


@dataclass(frozen=True, kw_only=True, slots=True)
class GuestRun:
    """One run: what to boot, what to run in it, and where everything goes.

    ``run_dir`` exists and is empty; it is the command's working directory.
    ``append`` are words for the kernel's command line; ``modules`` are loaded first.
    """

    kernel: Path
    command: tuple[str, ...]
    run_dir: Path
    accelerator: Accelerator
    limits: Limits
    quirks: tuple[str, ...] = ()
    machine: Machine = field(default_factory=Machine)
    append: tuple[str, ...] = ()
    modules: tuple[Path, ...] = ()


class Tail:
    """Copies to a stream whatever has been added to a file since the last call."""

    def __init__(self, path: Path, stream: BinaryIO) -> None:
        self._path = path
        self._stream = stream
        self._offset = 0

    def copy(self) -> bool:
        """Copy what is new; return whether there was anything."""
        try:
            with self._path.open("rb") as file:
                file.seek(self._offset)
                copied = 0
                while chunk := file.read(_CHUNK):
                    self._stream.write(chunk)
                    copied += len(chunk)
        except FileNotFoundError:
            return False
        if copied:
            self._stream.flush()
            self._offset += copied
        return copied > 0


def run_guest(
    run: GuestRun,
    *,
    stdout: BinaryIO,
    stderr: BinaryIO,
    tools: Tools | None = None,
    note: Callable[[str], None] = lambda _: None,
) -> int:
    """Boot the guest, run the command, and return the command's exit status.

    The command's output goes to ``stdout`` and ``stderr`` while it runs, the console
    to ``console.log`` in the run directory.  ``note`` gets remarks for a person.
    Raises :class:`TimedOut`, :class:`GuestDied`, or :class:`LabError` if the guest
    did not get as far as to run the command.  No process is left behind.
    """
    tools = tools or find_tools()
    script = run.run_dir / guestscript.SCRIPT
    arguments = vng_arguments(
        tools.vng,
        kernel=run.kernel,
        machine=run.machine,
        accelerator=run.accelerator,
        run_dir=run.run_dir,
        script=script,
        append=run.append,
    )
    script.write_text(
        guestscript.guest_script(
            run_dir=run.run_dir,
            command=run.command,
            quirks=run.quirks,
            environment=_guest_environment(run.run_dir, tools.path),
            modules=run.modules,
        )
    )
    _describe(run, arguments)
    with signals_as_errors():
        outcome, watchdog = _boot_and_watch(run, arguments, tools, stdout, stderr)
    if outcome.fate is Fate.EXITED and (trouble := watchdog.panic or watchdog.oops):
        note(f"the guest's kernel complained: {trouble}")
    return _status(outcome, run.run_dir)


def _guest_environment(run_dir: Path, path: str) -> dict[str, str]:
    environment = {
        "PATH": path,
        "HOME": "/root",
        "LC_ALL": "C.UTF-8",
        "TERM": "dumb",
        # What the guest would write of it is gone with the guest.
        "PYTHONDONTWRITEBYTECODE": "1",
        "CDMTRACE_RUN_DIR": str(run_dir),
    }
    if "PYTHONPATH" in os.environ:
        environment["PYTHONPATH"] = os.environ["PYTHONPATH"]
    return environment


def _describe(run: GuestRun, arguments: list[str]) -> None:
    config = {
        "cdmtrace": __version__,
        "kernel": str(run.kernel),
        "quirks": list(run.quirks),
        "modules": [str(module) for module in run.modules],
        "command": list(run.command),
        "accelerator": run.accelerator.value,
        "timeout_seconds": run.limits.total,
        "vng": arguments,
    }
    write_atomically(
        run.run_dir / CONFIG, json.dumps(config, indent=2).encode() + b"\n"
    )
    kernel_config = run.kernel.parent / "config"
    if kernel_config.is_file():
        shutil.copy(kernel_config, run.run_dir / "kernel.config")


def _boot_and_watch(
    run: GuestRun,
    arguments: list[str],
    tools: Tools,
    stdout: BinaryIO,
    stderr: BinaryIO,
) -> tuple[Outcome, Watchdog]:
    # vng loses the guest's output unless its streams are a terminal.
    master, slave = pty.openpty()
    tty.setraw(slave)
    watchdog = Watchdog(limits=run.limits, launched=time.monotonic())
    tails = (
        Tail(run.run_dir / guestscript.STDOUT, stdout),
        Tail(run.run_dir / guestscript.STDERR, stderr),
    )
    environment = {**os.environ, "PATH": tools.path, "TERM": "dumb"}
    try:
        with (run.run_dir / CONSOLE).open("wb", buffering=0) as console:
            try:
                session = Session(
                    arguments,
                    stdin=slave,
                    stdout=slave,
                    stderr=slave,
                    cwd=run.run_dir,
                    env=environment,
                )
            except OSError as error:
                raise LabError(f"cannot start {arguments[0]}: {error}") from error
            finally:
                os.close(slave)
            with session:
                outcome = _watch(run.run_dir, session, watchdog, master, console, tails)
                if outcome.fate is Fate.EXITED:
                    _power_off(session, master, console)
    finally:
        os.close(master)
    for one in tails:
        one.copy()
    return outcome, watchdog


def _watch(
    run_dir: Path,
    session: Session,
    watchdog: Watchdog,
    master: int,
    console: BinaryIO,
    tails: tuple[Tail, ...],
) -> Outcome:
    while True:
        # Looked at before the files are: what it left behind is then complete.
        ended = session.leader_ended()
        data = _read_console(master, _POLL_SECONDS)
        while data:
            console.write(data)
            watchdog.console(data, time.monotonic())
            data = _read_console(master, 0.0)
        for one in tails:
            if one.copy():
                watchdog.activity(time.monotonic())
        watchdog.started |= (run_dir / guestscript.STARTED).exists()
        outcome = watchdog.decide(
            time.monotonic(),
            status=_read_status(run_dir / guestscript.STATUS),
            refused=_read_line(run_dir / guestscript.REFUSED),
            ended=ended,
        )
        if outcome is not None:
            return outcome


def _power_off(session: Session, master: int, console: BinaryIO) -> None:
    """Let a guest whose command is done go down by itself, for a while."""
    deadline = time.monotonic() + _POWER_OFF_SECONDS
    while time.monotonic() < deadline and not session.leader_ended():
        console.write(_read_console(master, _POLL_SECONDS))
    while data := _read_console(master, 0.0):
        console.write(data)


def _read_console(master: int, timeout: float) -> bytes:
    ready, _, _ = select.select([master], [], [], timeout)
    if not ready:
        return b""
    try:
        # The guest's terminal layer and ours each add one to the end of a line.
        return os.read(master, _CHUNK).replace(b"\r", b"")
    except OSError:
        # EIO: nobody has the other end open (any more).
        time.sleep(timeout)
        return b""


def _read_line(path: Path) -> str:
    try:
        return path.read_text(errors="replace").strip()
    except FileNotFoundError:
        return ""


def _read_status(path: Path) -> int | None:
    text = _read_line(path)
    return int(text) if text.isdecimal() else None


def _status(outcome: Outcome, run_dir: Path) -> int:
    console = run_dir / CONSOLE
    match outcome.fate:
        case Fate.EXITED:
            assert outcome.status is not None
            return outcome.status
        case Fate.TIMED_OUT:
            raise TimedOut(
                f"the guest was ended: {outcome.why}", hint="--timeout SECONDS"
            )
        case Fate.DIED:
            raise GuestDied(outcome.why, details=_console_tail(console))
        case Fate.NOT_STARTED:
            raise LabError(
                f"the lab could not start: {outcome.why}",
                details=_console_tail(console),
            )


def _console_tail(console: Path) -> str:
    return tail(console.read_bytes().decode(errors="replace"), 15)


def host_cpus(wanted: int) -> int:
    """Return ``wanted``, or fewer where the host has not as many."""
    return max(1, min(wanted, len(os.sched_getaffinity(0))))


def resolve_command(command: tuple[str, ...]) -> tuple[str, ...]:
    """Return ``command`` with a program given by a relative path made absolute.

    The guest's working directory is the run directory, not ours.  ``cdmtrace``
    itself is the one that runs now, whether or not it is on the guest's PATH.
    """
    program, *arguments = command
    if program == "cdmtrace":
        return (sys.executable, "-m", "cdmtrace", *arguments)
    if "/" in program and not program.startswith("/") and Path(program).exists():
        program = str(Path(program).resolve())
    return (program, *arguments)
