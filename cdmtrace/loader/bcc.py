"""Compile, load and attach with bcc.

bcc is the distribution's package (Debian: python3-bpfcc), never PyPI's: the project
called bcc there is something else. It is imported from here and nowhere else.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import importlib.util
import os
import platform
import re
import resource
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, Final

import numpy as np

from cdmtrace.errors import CdmtraceError, RecordError, apt_hint
from cdmtrace.events import Lost, Probe
from cdmtrace.kernel import symbols, tracefs
from cdmtrace.losses import Losses, Missing, Waiting, Where
from cdmtrace.planning import Plan
from cdmtrace.probes import Kind

SOURCES: Final = (
    *("events.h", "compat.h", "maps.h", "filters.h", "cdmtrace.bpf.c"),
    *("calls.bpf.c", "pages.bpf.c", "vmas.bpf.c", "snapshots.bpf.c"),
    "processes.bpf.c",
)
"""In the order in which they make one program."""

BPF_DIRECTORY: Final = Path(__file__).parent.parent / "bpf"
DIST_PACKAGES: Final = Path("/usr/lib/python3/dist-packages")

MAXACTIVE: Final = 1024
"""Returns that one probe can wait for at a time; 24 bytes each in the kernel."""


class BccMissing(RecordError):
    """bcc cannot be imported (exit status 125)."""


class ProgramRejected(RecordError):
    """The BPF program does not compile, or the kernel refuses it (status 125)."""


def import_bcc(directory: Path = DIST_PACKAGES) -> ModuleType:
    """Return the bcc module, also for a Python that does not see Debian's packages.

    Raises BccMissing.
    """
    with contextlib.suppress(ImportError):
        module = importlib.import_module("bcc")
        # PyPI's bcc, about lattices, has no BPF.
        if hasattr(module, "BPF"):
            return module
        del sys.modules["bcc"]
    path = directory / "bcc" / "__init__.py"
    try:
        spec = importlib.util.spec_from_file_location(
            "bcc", path, submodule_search_locations=[str(path.parent)]
        )
        if spec is None or spec.loader is None or not path.exists():
            raise ImportError(f"{path} does not exist")
        module = importlib.util.module_from_spec(spec)
        sys.modules["bcc"] = module
        spec.loader.exec_module(module)
    except (ImportError, OSError) as error:
        sys.modules.pop("bcc", None)
        raise BccMissing(
            f"bcc cannot be imported: {error}", hint=apt_hint("python3-bpfcc")
        ) from error
    return module


def program_text(defines: Mapping[str, int], more: tuple[str, ...] = ()) -> str:
    """Return the whole program: macros, then the sources as one text.

    more: sources that come behind those of ``record``.
    """
    macros = [f"#define {name} {value:#x}ULL" for name, value in defines.items()]
    sources = [
        # One text: line numbers in the compiler's messages are those of a file.
        f'#line 1 "{name}"\n{(BPF_DIRECTORY / name).read_text()}'
        for name in (*SOURCES, *more)
    ]
    return "\n".join([*macros, *sources])


@contextlib.contextmanager
def _stderr_kept(kept: list[str]) -> Iterator[None]:
    """Keep what C code writes to stderr: bcc's compiler says there what is wrong."""
    sys.stderr.flush()
    saved = os.dup(2)
    with tempfile.TemporaryFile() as file:
        os.dup2(file.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(saved, 2)
            os.close(saved)
            file.seek(0)
            kept.append(file.read().decode(errors="replace"))


def _release() -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", platform.release())[:2]))


@contextlib.contextmanager
def _memlock_kept() -> Iterator[None]:
    """Set the limit of locked memory back: bcc raises it, and our command inherits."""
    before = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_MEMLOCK, before)


class BccLoader:
    """The program, compiled by bcc for the running kernel and loaded."""

    def __init__(
        self, defines: Mapping[str, int], *, more: tuple[str, ...] = ()
    ) -> None:
        """Compile and load. Raises BccMissing, ProgramRejected."""
        self._module = import_bcc()
        self._returns: tracefs.Returns | None = None
        self._return_fds: list[int] = []
        output: list[str] = []
        try:
            with _stderr_kept(output), _memlock_kept():
                self._bpf: Any = self._module.BPF(text=program_text(defines, more))
        except CdmtraceError:
            raise  # A signal has come.
        except Exception as error:
            raise ProgramRejected(
                f"bcc cannot compile the BPF program: {error}",
                details="\n".join("".join(output).splitlines()[:30]),
                hint="cdmtrace doctor",
            ) from error

    @property
    def ring_fd(self) -> int:
        """The ring buffer map's file descriptor."""
        return int(self._bpf["events"].map_fd)

    def attach(self, plans: tuple[Plan, ...]) -> None:
        """Attach every probe that nothing keeps from it.

        Raises ProgramRejected with the verifier's last lines, or with the name of
        what cannot be attached.
        """
        for item in plans:
            for attachment, symbol in zip(
                item.probe.attachments, item.symbols, strict=item.why_not is None
            ):
                self._attach(attachment.kind, attachment.handler, symbol)
        # Once, and now, while their addresses may be seen.
        self._names = symbols.Names()

    def _attach(self, kind: Kind, handler: str, symbol: str) -> None:
        output: list[str] = []
        try:
            with _stderr_kept(output), _memlock_kept():
                match kind:
                    case Kind.KPROBE:
                        self._bpf.attach_kprobe(event=symbol, fn_name=handler)
                    case Kind.KRETPROBE:
                        self._attach_return(handler, symbol)
                    case Kind.TRACEPOINT:
                        self._bpf.attach_tracepoint(tp=symbol, fn_name=handler)
        except CdmtraceError:
            raise  # A signal has come.
        except Exception as error:
            raise ProgramRejected(
                f"{handler} cannot be attached to {kind} {symbol}: {error}",
                details="\n".join("".join(output).splitlines()[-20:]),
                hint="cdmtrace probes",
            ) from error

    def _load(self, handler: str, kind: int) -> int:
        """Return the fd of one program. Raises ProgramRejected."""
        output: list[str] = []
        try:
            with _stderr_kept(output), _memlock_kept():
                return int(self._bpf.load_func(handler, kind).fd)
        except CdmtraceError:
            raise  # A signal has come.
        except Exception as error:
            raise ProgramRejected(
                f"the kernel refuses {handler}: {error}",
                details="\n".join("".join(output).splitlines()[-20:]),
                hint="cdmtrace doctor",
            ) from error

    def _attach_return(self, handler: str, symbol: str) -> None:
        """Attach to a return of which many may be waited for at a time.

        bcc could, but asks with access(2) whether the probe is there: it means the
        real user, whom capabilities do not let into tracefs.
        """
        if self._returns is None:
            self._returns = tracefs.Returns(tracefs.mounted())
        function = self._bpf.load_func(handler, self._module.BPF.KPROBE)
        name = self._returns.define(symbol, MAXACTIVE)
        fd = self._module.lib.bpf_attach_tracepoint(
            function.fd, tracefs.GROUP.encode(), name.encode()
        )
        if fd < 0:
            raise OSError(f"the kernel refuses a program at {name}")
        self._return_fds.append(fd)

    def enable(self, on: bool) -> None:
        """Let events through, or stop them while all probes stay attached."""
        self._bpf["enabled"][ctypes.c_int(0)] = ctypes.c_uint32(on)

    def follow(self, pid: int, on: bool) -> None:
        """Let a process be one of those that --pid names, or not.

        Raises RecordError where there is no room for another one.
        """
        table = self._bpf["tgids"]
        if on:
            try:
                table[ctypes.c_uint32(pid)] = ctypes.c_uint8(1)
            except Exception as error:
                raise RecordError(
                    f"--pid: there is no room for process {pid}: {error}",
                    hint="make room with --map-size",
                ) from error
            return
        # It may have ended, and the program knows that already.
        with contextlib.suppress(KeyError):
            del table[ctypes.c_uint32(pid)]

    def follow_cgroup(self, group: Path) -> None:
        """Let this cgroup be the one that --cgroup names. Raises OSError."""
        fd = os.open(group, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            self._bpf["cgroups"][0] = fd
        finally:
            os.close(fd)

    def lost(self) -> Losses:
        """Return the counters of losses so far; those that are 0 are left out."""
        found: dict[Where, Missing] = {}
        for key, per_cpu in self._bpf["lost_places"].items():
            counts = np.frombuffer(bytes(per_cpu), np.uint64).reshape(len(per_cpu), 3)
            counts = counts[counts[:, 0] > 0]
            found[Where(key.probe, key.reason, key.mm)] = Missing(
                int(counts[:, 0].sum()),
                int(counts[:, 1].min()),
                int(counts[:, 2].max()),
            )
        per_cpu = self._bpf["lost"][ctypes.c_int(0)]
        shape = (len(per_cpu), int(Probe.MAX), int(Lost.MAX))
        total = np.frombuffer(bytes(per_cpu), np.uint64).reshape(shape).sum(axis=0)
        for probe, reason in np.argwhere(total).tolist():
            found[Where(probe, reason)] = Missing(int(total[probe, reason]))
        return found

    def stack(self, number: int) -> tuple[str, ...]:
        """Return a stack that an event names: name+0xoffset, innermost first."""
        return tuple(
            self._names.at(address) for address in self._bpf["stacks"].walk(number - 1)
        )

    def waiting(self) -> list[Waiting]:
        """Return what has begun and not returned: calls and functions."""
        return [
            Waiting(
                probe=entry.probe,
                call=entry.id,
                concerns=bool(entry.touched),
                ts=entry.ts,
                pid=entry.pid,
                tid=key.value & 0xFFFFFFFF,
                mm=entry.mm_id,
                policy=entry.policy,
                nodes=entry.nodes,
                args=tuple(entry.arg),
            )
            for key, entry in self._bpf["entries"].items()
        ] + [
            Waiting(probe=Probe.ALLOC, call=0, concerns=False, ts=begun.ts)
            for begun in self._bpf["allocations"].values()
        ]

    def needs_capability(self) -> bool:
        """Return whether lost() and its kin need CAP_BPF here.

        Until 5.18, all of bpf(2) does where it is not for everybody; from 5.19 on, who
        has a map open may use it (c8644cd0efe7).
        """
        return _release() < (5, 19)

    def close(self) -> None:
        """Detach everything, whatever privileges are left. Twice is harmless."""
        close = self._module.lib.bpf_close_perf_event_fd
        # A kprobe ends with what holds it open; bcc would look into tracefs for it.
        for fds in self._bpf.kprobe_fds.values():
            for fd in fds.values():
                close(fd)
        self._bpf.kprobe_fds.clear()
        while self._return_fds:
            close(self._return_fds.pop())
        if self._returns is not None:
            self._returns.close()
            self._returns = None
        self._bpf.cleanup()
