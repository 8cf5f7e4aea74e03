"""A program in the kernel, whoever compiles and loads it: what record does with it."""

from __future__ import annotations

import contextlib
import os
import platform
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Final, Protocol

import numpy as np

from cdmtrace.errors import RecordError
from cdmtrace.events import Probe
from cdmtrace.kernel import symbols, tracefs
from cdmtrace.loader.maps import Map, Value
from cdmtrace.losses import Losses, Missing, Waiting, Where
from cdmtrace.planning import Plan
from cdmtrace.probes import Kind

MAXACTIVE: Final = 1024
"""Returns that one probe can wait for at a time; 24 bytes each in the kernel."""


class ProgramRejected(RecordError):
    """The BPF program does not compile, or the kernel refuses it (status 125)."""


class Program(Protocol):
    """What bcc and libbpf each do in their own way."""

    def load(self, handlers: Mapping[str, Kind]) -> None:
        """Have the kernel take these handlers, and make the maps.

        Raises ProgramRejected.
        """

    def map_fd(self, name: str) -> int:
        """Return the file descriptor of a map, once the program is loaded."""

    def program_fd(self, handler: str) -> int:
        """Return the file descriptor of a handler that is loaded."""

    def attach_function(self, handler: str, symbol: str) -> None:
        """Have a handler run where a function begins. Raises ProgramRejected."""

    def attach_tracepoint(self, handler: str, name: str) -> None:
        """Have a handler run at ``category:name``. Raises ProgramRejected."""

    def close(self) -> None:
        """Detach everything, whatever privileges are left. Twice is harmless."""


def _release() -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", platform.release())[:2]))


class ProgramLoader:
    """A Loader: a program, its maps, and what it is attached to."""

    def __init__(
        self, program: Program, also: Mapping[str, Kind] | None = None
    ) -> None:
        """Take a program that is not loaded yet.

        also: handlers to load that no plan attaches.
        """
        self.program: Final = program
        self._also = dict(also or {})
        self._returns: tracefs.Returns | None = None
        self._maps: dict[str, Map] = {}
        self._names: symbols.Names | None = None

    def map(self, name: str) -> Map:
        """Return a map, once the program is loaded."""
        if name not in self._maps:
            self._maps[name] = Map(name, self.program.map_fd(name))
        return self._maps[name]

    def only(self, name: str) -> Value:
        """Return what the one key of an array holds."""
        value = self.map(name).get()
        if value is None:
            raise AssertionError(f"{name} is no array: it has no key 0")
        return value

    @property
    def ring_fd(self) -> int:
        """The ring buffer map's file descriptor."""
        return self.program.map_fd("events")

    def attach(self, plans: tuple[Plan, ...]) -> None:
        """Load the program, and attach every probe that nothing keeps from it.

        Raises ProgramRejected with the verifier's last lines, or with the name of
        what cannot be attached.
        """
        wanted = [
            (attachment, symbol)
            for item in plans
            for attachment, symbol in zip(
                item.probe.attachments, item.symbols, strict=item.why_not is None
            )
        ]
        kinds = {attachment.handler: attachment.kind for attachment, _ in wanted}
        self.program.load({**kinds, **self._also})
        for attachment, symbol in wanted:
            match attachment.kind:
                case Kind.KPROBE:
                    self.program.attach_function(attachment.handler, symbol)
                case Kind.KRETPROBE:
                    self._attach_return(attachment.handler, symbol)
                case Kind.TRACEPOINT:
                    self.program.attach_tracepoint(attachment.handler, symbol)
        # Once, and now, while their addresses may be seen.
        self._names = symbols.Names()

    def _attach_return(self, handler: str, symbol: str) -> None:
        """Attach to a return of which many may be waited for at a time.

        Neither library asks for that: bcc does, but looks with access(2) whether the
        probe is there, which means the real user, whom capabilities do not let into
        tracefs.
        """
        try:
            if self._returns is None:
                self._returns = tracefs.Returns(tracefs.mounted())
            name = self._returns.define(symbol, MAXACTIVE)
        except OSError as error:
            raise ProgramRejected(
                f"{handler} cannot be attached to {Kind.KRETPROBE} {symbol}: {error}",
                hint="cdmtrace probes",
            ) from error
        self.program.attach_tracepoint(handler, f"{tracefs.GROUP}:{name}")

    def enable(self, on: bool) -> None:
        """Let events through, or stop them while all probes stay attached."""
        self.map("enabled").put(int(on))

    def follow(self, pid: int, on: bool) -> None:
        """Let a process be one of those that --pid names, or not.

        Raises RecordError where there is no room for another one.
        """
        if not on:
            # It may have ended, and the program knows that already.
            self.map("tgids").drop(pid)
            return
        try:
            self.map("tgids").put(1, pid)
        except OSError as error:
            raise RecordError(
                f"--pid: there is no room for process {pid}: {error.strerror}",
                hint="make room with --map-size",
            ) from error

    def follow_cgroup(self, group: Path) -> None:
        """Let this cgroup be the one that --cgroup names. Raises OSError."""
        fd = os.open(group, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            self.map("cgroups").put(fd)
        finally:
            os.close(fd)

    def lost(self) -> Losses:
        """Return the counters of losses so far; those that are 0 are left out."""
        found: dict[Where, Missing] = {}
        for key, per_cpu in self.map("lost_places").items():
            counts = per_cpu[per_cpu["count"] > 0]
            if len(counts):
                where = Where(int(key["probe"]), int(key["reason"]), int(key["mm"]))
                found[where] = Missing(
                    int(counts["count"].sum()),
                    int(counts["start"].min()),
                    int(counts["end"].max()),
                )
        total = self.only("lost")["n"].sum(axis=0)
        for probe, reason in np.argwhere(total).tolist():
            found[Where(probe, reason)] = Missing(int(total[probe, reason]))
        return found

    def stack(self, number: int) -> tuple[str, ...]:
        """Return a stack that an event names: name+0xoffset, innermost first."""
        frames = self.map("stacks").get(number - 1)
        if frames is None or self._names is None:
            return ()
        return tuple(self._names.at(at) for at in frames[frames > 0].tolist())

    def waiting(self) -> list[Waiting]:
        """Return what has begun and not returned: calls and functions."""
        return [
            Waiting(
                probe=int(entry["probe"]),
                call=int(entry["id"]),
                concerns=bool(entry["touched"]),
                ts=int(entry["ts"]),
                pid=int(entry["pid"]),
                tid=int(key) & 0xFFFFFFFF,
                mm=int(entry["mm_id"]),
                policy=int(entry["policy"]),
                nodes=int(entry["nodes"]),
                args=tuple(entry["arg"].tolist()),
            )
            for key, entry in self.map("entries").items()
        ] + [
            Waiting(probe=Probe.ALLOC, call=0, concerns=False, ts=int(begun["ts"]))
            for _, begun in self.map("allocations").items()
        ]

    def forget(self) -> None:
        """Forget all about processes: calls under way, VMAs, names; stay attached."""
        for name in ("entries", "places", "watched", "comms"):
            self.map(name).clear()
        # There are none where none are taken.
        with contextlib.suppress(KeyError):
            self.map("stacks").clear()

    def needs_capability(self) -> bool:
        """Return whether lost() and its kin need CAP_BPF here.

        Until 5.18, all of bpf(2) does where it is not for everybody; from 5.19 on, who
        has a map open may use it (c8644cd0efe7).
        """
        return _release() < (5, 19)

    def close(self) -> None:
        """Detach everything, whatever privileges are left. Twice is harmless."""
        with contextlib.ExitStack() as rest:
            if self._returns is not None:
                rest.callback(self._returns.close)
                self._returns = None
            self.program.close()
