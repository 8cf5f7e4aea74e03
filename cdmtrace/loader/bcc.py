"""Compile, load and attach with bcc.

bcc is the distribution's package (Debian: python3-bpfcc), never PyPI's: the project
called bcc there is something else. It is imported from here and nowhere else.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, Final

from cdmtrace.errors import CdmtraceError, RecordError, apt_hint
from cdmtrace.loader.output import memlock_kept, stderr_kept
from cdmtrace.loader.program import ProgramRejected
from cdmtrace.loader.sources import program_text
from cdmtrace.probes import Kind

DIST_PACKAGES: Final = Path("/usr/lib/python3/dist-packages")


class BccMissing(RecordError):
    """bcc cannot be imported (exit status 125)."""


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


class BccProgram:
    """The program, compiled by bcc for the running kernel."""

    def __init__(
        self, defines: Mapping[str, int], *, more: tuple[str, ...] = ()
    ) -> None:
        """Compile. more: sources besides those of ``record``.

        Raises BccMissing, ProgramRejected.
        """
        self._module = import_bcc()
        self._kinds: dict[str, Kind] = {}
        self._fds: list[int] = []
        what = "bcc cannot compile the BPF program"
        # A compiler says first what is wrong, and the verifier last.
        with _refused(what, "cdmtrace doctor", slice(30)):
            self._bpf: Any = self._module.BPF(text=program_text(defines, more))

    def load(self, handlers: Mapping[str, Kind]) -> None:
        """Have the kernel take these handlers. Raises ProgramRejected."""
        self._kinds = dict(handlers)
        for handler in handlers:
            self.program_fd(handler)

    def map_fd(self, name: str) -> int:
        """Return the file descriptor of a map."""
        return int(self._bpf[name].map_fd)

    def program_fd(self, handler: str) -> int:
        """Return the file descriptor of a handler. Raises ProgramRejected."""
        of_type = {
            Kind.TRACEPOINT: self._module.BPF.TRACEPOINT,
            Kind.WATCHPOINT: self._module.BPF.PERF_EVENT,
        }.get(self._kinds[handler], self._module.BPF.KPROBE)
        with _refused(f"the kernel refuses {handler}", "cdmtrace doctor"):
            return int(self._bpf.load_func(handler, of_type).fd)

    def attach_function(self, handler: str, symbol: str) -> None:
        """Have a handler run where a function begins. Raises ProgramRejected."""
        with _refused(f"{handler} cannot be attached to {symbol}", "cdmtrace probes"):
            self._bpf.attach_kprobe(event=symbol, fn_name=handler)

    def attach_tracepoint(self, handler: str, name: str) -> None:
        """Have a handler run at ``category:name``. Raises ProgramRejected."""
        category, _, event = name.partition(":")
        what = f"{handler} cannot be attached to {name}"
        program = self.program_fd(handler)
        with _refused(what, "cdmtrace probes"):
            # By fd: bcc's own method takes handlers of one type only.
            fd = self._module.lib.bpf_attach_tracepoint(
                program, category.encode(), event.encode()
            )
            if fd < 0:
                raise OSError(f"the kernel refuses a program at {name}")
        self._fds.append(fd)

    def detach(self) -> None:
        """Detach everything, whatever privileges are left."""
        close = self._module.lib.bpf_close_perf_event_fd
        # A kprobe ends with what holds it open; bcc would look into tracefs for it.
        for fds in self._bpf.kprobe_fds.values():
            self._fds.extend(fds.values())
        self._bpf.kprobe_fds.clear()
        while self._fds:
            close(self._fds.pop())

    def close(self) -> None:
        """Detach and unload everything. Twice is harmless."""
        self.detach()
        self._bpf.cleanup()


@contextlib.contextmanager
def _refused(what: str, hint: str, lines: slice = slice(-20, None)) -> Iterator[None]:
    """Turn what bcc raises into ProgramRejected; lines: of what it says, to keep."""
    output: list[str] = []
    try:
        with stderr_kept(output), memlock_kept():
            yield
    except CdmtraceError:
        raise  # A signal has come.
    except Exception as error:
        raise ProgramRejected(
            f"{what}: {error}",
            details="\n".join("".join(output).splitlines()[lines]),
            hint=hint,
        ) from error
