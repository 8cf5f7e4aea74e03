"""What has become of a guest: pure decisions on its console, its files and a clock.

Three things are kept apart that a plain exit status would mix up: the guest's command
ended (whatever its status), the guest died under it, and the laboratory never got as
far as to start it.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field

# An emulated guest on a busy host stalls for seconds; "soft lockup" and RCU stalls
# say nothing about its health, so they are not in these lists.
_PANIC = b"Kernel panic - not syncing"
_OOPS = (
    b"BUG: kernel NULL pointer",
    b"BUG: unable to handle",
    b"kernel BUG at",
    b"Oops:",
    b"general protection fault",
    b"stack guard page was hit",
)
_KERNEL_SPOKE = b"Linux version "


class Fate(enum.Enum):
    """How a run ended."""

    EXITED = "exited"
    TIMED_OUT = "timed out"
    NOT_STARTED = "not started"
    DIED = "died"


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """How a run ended: the command's status if it has one, else why it has none."""

    fate: Fate
    status: int | None = None
    why: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """How long to wait, all in seconds.

    ``total`` counts from the launch, ``boot`` until user space answers, ``panic``
    from a panic until the guest is given up, ``oops`` of silence after an oops.
    """

    total: float
    boot: float = 300.0
    panic: float = 5.0
    oops: float = 120.0


@dataclass(slots=True)
class Watchdog:
    """Watches one guest from ``launched`` on (monotonic clock, seconds)."""

    limits: Limits
    launched: float
    started: bool = False
    panic: str = ""
    oops: str = ""
    _kernel_spoke: bool = False
    _panic_at: float = 0.0
    _active_at: float = 0.0
    _rest: bytes = field(default=b"")

    def __post_init__(self) -> None:
        self._active_at = self.launched

    def console(self, data: bytes, now: float) -> None:
        """Take what came over the console."""
        self.activity(now)
        *lines, rest = (self._rest + data).split(b"\n")
        # A panic may be the last thing said, and its line never ended.
        for line in [*lines, rest]:
            self._line(line, now)
        self._rest = rest[-4096:]

    def activity(self, now: float) -> None:
        """Note a sign of life."""
        self._active_at = now

    def _line(self, line: bytes, now: float) -> None:
        self._kernel_spoke |= _KERNEL_SPOKE in line
        if _PANIC in line:
            if not self.panic:
                self._panic_at = now
            self.panic = _first(self.panic, line)
        if any(mark in line for mark in _OOPS):
            self.oops = _first(self.oops, line)

    def decide(
        self, now: float, *, status: int | None, refused: str, ended: bool
    ) -> Outcome | None:
        """Return the outcome, or None while the guest may go on.

        ``status`` is what the guest wrote of its command, ``refused`` why it could
        not even begin, ``ended`` whether the emulator is gone.
        """
        if status is not None:
            return Outcome(fate=Fate.EXITED, status=status)
        if refused:
            return Outcome(fate=Fate.NOT_STARTED, why=refused)
        if self.panic and (ended or now - self._panic_at >= self.limits.panic):
            return Outcome(fate=Fate.DIED, why=f"the guest panicked: {self.panic}")
        if ended:
            return self._ended()
        if self.oops and now - self._active_at >= self.limits.oops:
            return Outcome(fate=Fate.DIED, why=f"silent since: {self.oops}")
        if now - self.launched >= self.limits.total:
            if self.oops:
                return Outcome(
                    fate=Fate.DIED, why=f"the time ran out after: {self.oops}"
                )
            return Outcome(
                fate=Fate.TIMED_OUT, why=f"still running after {self.limits.total:g} s"
            )
        if not self.started and now - self.launched >= self.limits.boot:
            return Outcome(
                fate=Fate.NOT_STARTED,
                why=f"the guest did not reach user space in {self.limits.boot:g} s",
            )
        return None

    def _ended(self) -> Outcome:
        if self.started:
            why = "the guest ended without the command's status"
            if self.oops:
                why += f", after: {self.oops}"
            return Outcome(fate=Fate.DIED, why=why)
        if self.oops:
            return Outcome(fate=Fate.DIED, why=f"the guest died: {self.oops}")
        if self._kernel_spoke:
            why = "the guest ended before it reached user space"
        else:
            why = "the emulator ended before the kernel said anything"
        return Outcome(fate=Fate.NOT_STARTED, why=why)


def _first(told: str, line: bytes) -> str:
    """Return the first complaint, whole: what was told may be the half of a line."""
    text = _clean(line)
    return text if text.startswith(told) else told


def _clean(line: bytes) -> str:
    text = line.decode(errors="replace").strip()
    return "".join(character for character in text if character.isprintable())[:200]
