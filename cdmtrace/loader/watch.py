"""The program of ``watch``: that of ``record``, and what debug registers run."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from cdmtrace.events import Lost, Probe
from cdmtrace.kernel.watchpoints import REGISTERS, Watchpoint
from cdmtrace.loader.bcc import BccLoader
from cdmtrace.losses import Losses, Missing, Where

SOURCE: Final = "watch.bpf.c"
HANDLER: Final = "watch_hit"
OFFSET: Final = "OFF_vm_area_struct_vm_flags"

_ONLY: Final = ctypes.c_int(0)


@dataclass(frozen=True, kw_only=True, slots=True)
class Found:
    """The VMA that holds an address. vma, mm: where the kernel has them."""

    vma: int
    mm: int
    start: int
    end: int
    flags: int


class WatchLoader(BccLoader):
    """The program of a watch. Its watchpoints are numbered from 0."""

    def __init__(self, defines: Mapping[str, int]) -> None:
        """Compile and load. Raises BccMissing, ProgramRejected."""
        self._points: dict[int, tuple[Watchpoint, int]] = {}
        self._missed = 0
        super().__init__({**defines, "WATCHES": REGISTERS}, more=(SOURCE,))
        self._offset = defines[OFFSET]
        try:
            self._program: int = self._load(HANDLER, self._module.BPF.PERF_EVENT)
        except BaseException:
            self.close()
            raise
        self.strange: int = 0
        """Hits that were no writes to what is watched, once it is over."""

    def ask(self, number: int, addr: int, vma: int = 0) -> None:
        """Have the next look at numa_maps find the VMA that holds addr.

        vma: where the watchpoint has been set; if the VMA is still the same one, the
        look arms it.
        """
        asked = self._bpf["watch_asked"][_ONLY]
        asked.w[number].addr, asked.w[number].vma = addr, vma
        self._bpf["watch_asked"][_ONLY] = asked
        found = self._bpf["watch_found"][_ONLY]
        ctypes.memset(ctypes.byref(found.w[number]), 0, ctypes.sizeof(found.w[number]))
        self._bpf["watch_found"][_ONLY] = found

    def found(self, number: int) -> Found | None:
        """Return what the last look has found, None if no VMA holds the address."""
        one = self._bpf["watch_found"][_ONLY].w[number]
        if not one.vma:
            return None
        return Found(
            vma=one.vma, mm=one.mm, start=one.start, end=one.end, flags=one.flags
        )

    def set(self, number: int, addr: int, vma: int) -> None:
        """Set the debug registers on vm_flags of a VMA, for the next look to arm.

        Raises NoWatchpoint.
        """
        self.unset(number)
        self.ask(number, addr, vma)
        before = self._hits(number)
        point = Watchpoint(vma + self._offset, self._program)
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
            points: Any = self._bpf["watchpoints"][_ONLY]
            self.strange = sum(point.strange for point in points.w)
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
        points: Any = self._bpf["watchpoints"][_ONLY]
        return int(points.w[number].hits)
