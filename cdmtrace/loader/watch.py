"""The program of ``watch``: that of ``record``, and what debug registers run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from cdmtrace.events import Lost, Probe
from cdmtrace.kernel.watchpoints import Watchpoint
from cdmtrace.loader.program import Program, ProgramLoader
from cdmtrace.losses import Losses, Missing, Where
from cdmtrace.planning import Plan
from cdmtrace.probes import Kind

HANDLER: Final = "watch_hit"
"""What runs when a debug register sees a write."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Found:
    """The VMA that holds an address. vma, mm: where the kernel has them."""

    vma: int
    mm: int
    start: int
    end: int
    flags: int


class WatchLoader(ProgramLoader):
    """The program of a watch. Its watchpoints are numbered from 0."""

    def __init__(self, program: Program, offset: int) -> None:
        """Take a program that is not loaded yet. offset: of vm_flags in a VMA."""
        super().__init__(program, {HANDLER: Kind.WATCHPOINT})
        self._points: dict[int, tuple[Watchpoint, int]] = {}
        self._missed = 0
        self._offset = offset
        self.strange: int = 0
        """Hits that were no writes to what is watched, once it is over."""

    def attach(self, plans: tuple[Plan, ...]) -> None:
        """As ProgramLoader; the handler of the watchpoints waits for set()."""
        super().attach(plans)
        self._handler = self.program.program_fd(HANDLER)

    def ask(self, number: int, addr: int, vma: int = 0) -> None:
        """Have the next look at numa_maps find the VMA that holds addr.

        vma: where the watchpoint has been set; if the VMA is still the same one, the
        look arms it.
        """
        asked = self.only("watch_asked")
        asked["w"][number] = addr, vma
        self.map("watch_asked").put(asked)
        found = self.only("watch_found")
        found["w"][number] = 0
        self.map("watch_found").put(found)

    def found(self, number: int) -> Found | None:
        """Return what the last look has found, None if no VMA holds the address."""
        one = self.only("watch_found")["w"][number]
        if not one["vma"]:
            return None
        return Found(**{name: int(one[name]) for name in one.dtype.names})

    def set(self, number: int, addr: int, vma: int) -> None:
        """Set the debug registers on vm_flags of a VMA, for the next look to arm.

        Raises NoWatchpoint.
        """
        self.unset(number)
        self.ask(number, addr, vma)
        before = self._hits(number)
        point = Watchpoint(vma + self._offset, self._handler)
        self._points[number] = point, before

    def unset(self, number: int) -> None:
        """Give a watchpoint's debug registers back, if it has them.

        The kernel counts writes by itself: where the program has missed one, it is
        lost.
        """
        if number not in self._points:
            return
        point, before = self._points.pop(number)
        # Nothing is to be armed without a debug register behind it.
        self.ask(number, 0)
        try:
            self._missed += max(point.stop() - (self._hits(number) - before), 0)
        finally:
            point.close()

    def enable(self, on: bool) -> None:
        """Let events through, or stop them, and the watchpoints for good."""
        if not on:
            for number in list(self._points):
                self.unset(number)
            self.strange = int(self.only("watchpoints")["w"]["strange"].sum())
        super().enable(on)

    def lost(self) -> Losses:
        """Return the counters of losses so far; those that are 0 are left out."""
        found: dict[Where, Missing] = dict(super().lost())
        if self._missed:
            found[Where(Probe.WATCHPOINT, Lost.UNPAIRED)] = Missing(self._missed)
        return found

    def close(self) -> None:
        """Detach everything. Closing twice is harmless."""
        for point, _ in self._points.values():
            point.close()
        self._points.clear()
        super().close()

    def _hits(self, number: int) -> int:
        return int(self.only("watchpoints")["w"][number]["hits"])
