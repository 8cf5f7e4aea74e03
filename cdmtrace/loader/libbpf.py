"""Load and attach with libbpf what clang has compiled once: no compiler, no headers.

What differs from kernel to kernel is written into the program's read-only data before
it is loaded (settings). libbpf.so.1 is called by ctypes: what Python packages there are
for it bring a copy of their own, or compile.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import mmap
import os
import re
from collections.abc import Iterator, Mapping
from typing import Any, Final

from cdmtrace.errors import CdmtraceError
from cdmtrace.kernel.btf import load_library
from cdmtrace.loader import build, settings
from cdmtrace.loader.output import memlock_kept
from cdmtrace.loader.program import ProgramRejected
from cdmtrace.probes import Kind
from cdmtrace.signals import signals_later

# enum bpf_prog_type (include/uapi/linux/bpf.h)
_TYPES: Final = {Kind.TRACEPOINT: 5, Kind.WATCHPOINT: 7}
_KPROBE: Final = 2

_DATA: Final = ".rodata.settings"
_PREFIX: Final = "map_"
"""Of each map's name in the object: what is called as the map is are its methods."""
_OPTIONAL: Final = {
    "tgids": "FOLLOW_PIDS",
    "cgroups": "FOLLOW_CGROUP",
    "followed": "FOLLOWS",
    "stacks": "STACKS",
    "watch_asked": "WATCHED_TGID",
    "watch_found": "WATCHED_TGID",
    "watchpoints": "WATCHED_TGID",
}
"""Maps that are not made but for an option."""

_POINTERS: Final = (
    *("bpf_object__open_mem", "bpf_object__next_map", "bpf_object__next_program"),
    *("bpf_object__find_map_by_name", "bpf_object__find_program_by_name"),
    *("bpf_program__attach_kprobe", "bpf_program__attach_tracepoint"),
)
"""Functions that return one; NULL, and errno, where they fail."""
_TEXTS: Final = ("bpf_map__name", "bpf_program__name")
_SAID: Final = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p
)
_VA_LIST: Final = 24
"""Bytes of a va_list on x86-64."""
_FAILED: Final = re.compile(r"prog '(\w+)': (?:BPF program load failed|failed to load)")
_DEBUG: Final = 2
"""The level of what nobody wants to read."""


@functools.cache
def _library() -> ctypes.CDLL:
    """Return libbpf. Raises BtfMissing."""
    library = load_library()
    for name in _POINTERS:
        getattr(library, name).restype = ctypes.c_void_p
    for name in _TEXTS:
        getattr(library, name).restype = ctypes.c_char_p
    return library


@contextlib.contextmanager
def _heard(lines: list[str]) -> Iterator[None]:
    """Keep what libbpf says, instead of having it on stderr.

    Signals wait meanwhile: what they raise within a callback would be lost.
    """
    library = _library()
    write = ctypes.CDLL(None).vsnprintf

    def hear(level: int, text: bytes, arguments: int) -> int:
        if level == _DEBUG:
            return 0
        # It can be a whole log of the verifier, whose end says what is wrong. Whoever
        # reads the arguments has used them up, so how long it is, a copy tells.
        copy = ctypes.create_string_buffer(ctypes.string_at(arguments, _VA_LIST))
        size = max(write(None, ctypes.c_size_t(0), text, copy), 0) + 1
        said = ctypes.create_string_buffer(size)
        write(said, ctypes.c_size_t(size), text, ctypes.c_void_p(arguments))
        lines.extend(said.value.decode(errors="replace").splitlines())
        return 0

    told = _SAID(hear)
    library.libbpf_set_print.restype = ctypes.c_void_p
    before = library.libbpf_set_print(told)
    try:
        with signals_later():
            yield
    finally:
        library.libbpf_set_print(ctypes.c_void_p(before))


class LibbpfProgram:
    """The program that was compiled once, told of the running kernel."""

    def __init__(self, numbers: Mapping[str, int]) -> None:
        """Open it. numbers: macro -> value, as for bcc.

        Raises ObjectMissing, ProgramRejected, NoRoom, BtfMissing (there is no libbpf).
        """
        self._library = _library()
        self._object: int | None = None
        self._links: list[int] = []
        # libbpf points into it as long as it has the object.
        self._data: Final = build.find()
        with self._refused("libbpf cannot open the BPF program"):
            self._object = self._library.bpf_object__open_mem(
                self._data, ctypes.c_size_t(len(self._data)), None
            )
            self._require(self._object)
        try:
            self._tell(numbers)
        except BaseException:
            self.close()
            raise

    def _tell(self, numbers: Mapping[str, int]) -> None:
        """Fill in what is asked for, and what is known of the kernel."""
        library = self._library
        follows = any(numbers[f"FOLLOW_{by}"] for by in ("PIDS", "CGROUP", "COMM"))
        asked = {"WATCHED_TGID": 0, **numbers, "FOLLOWS": int(follows)}
        sizes = {mark: numbers[name] for name, mark in settings.SIZES.items()}
        data = settings.values(numbers)
        with self._refused("libbpf cannot set the BPF program up"):
            for at in self._all("map"):
                name = library.bpf_map__name(at).decode().removeprefix(_PREFIX)
                entries = library.bpf_map__max_entries(at)
                error = 0
                if name == _DATA:
                    size = ctypes.c_size_t(len(data))
                    error = library.bpf_map__set_initial_value(at, data, size)
                elif name == "events":
                    ring = numbers["RING_PAGES"] * mmap.PAGESIZE
                    error = library.bpf_map__set_max_entries(at, ring)
                elif name in _OPTIONAL and not asked[_OPTIONAL[name]]:
                    error = library.bpf_map__set_autocreate(at, False)
                elif entries in sizes:
                    error = library.bpf_map__set_max_entries(at, sizes[entries])
                self._require(not error, -error)

    def _all(self, what: str) -> Iterator[ctypes.c_void_p]:
        """Yield all maps, or programs, of the object."""
        following = getattr(self._library, f"bpf_object__next_{what}")
        found = following(ctypes.c_void_p(self._object), None)
        while found:
            yield ctypes.c_void_p(found)
            found = following(ctypes.c_void_p(self._object), ctypes.c_void_p(found))

    def load(self, handlers: Mapping[str, Kind]) -> None:
        """Have the kernel take these handlers, and make the maps.

        Raises ProgramRejected.
        """
        library, left = self._library, {*handlers}
        with self._refused("the kernel refuses the BPF program", "cdmtrace doctor"):
            for at in self._all("program"):
                handler = library.bpf_program__name(at).decode()
                wanted = handler in handlers
                self._require(not library.bpf_program__set_autoload(at, wanted))
                if wanted:
                    kind = _TYPES.get(handlers[handler], _KPROBE)
                    self._require(not library.bpf_program__set_type(at, kind))
                    left.discard(handler)
            if left:
                raise OSError(f"there is no handler {min(left)}")
            error = library.bpf_object__load(ctypes.c_void_p(self._object))
            self._require(not error, -error)

    def map_fd(self, name: str) -> int:
        """Return the file descriptor of a map, once the program is loaded.

        Raises KeyError for one that is not there, as nobody has asked for it.
        """
        fd = int(self._library.bpf_map__fd(self._named("map", f"{_PREFIX}{name}")))
        if fd < 0:
            raise KeyError(f"{name} was not asked for")
        return fd

    def program_fd(self, handler: str) -> int:
        """Return the file descriptor of a handler that is loaded."""
        return int(self._library.bpf_program__fd(self._named("program", handler)))

    def _named(self, what: str, name: str) -> ctypes.c_void_p:
        find = getattr(self._library, f"bpf_object__find_{what}_by_name")
        found = find(ctypes.c_void_p(self._object), name.encode())
        if not found:
            raise KeyError(name)
        return ctypes.c_void_p(found)

    def attach_function(self, handler: str, symbol: str) -> None:
        """Have a handler run where a function begins. Raises ProgramRejected."""
        what = f"{handler} cannot be attached to {symbol}"
        at = self._named("program", handler)
        with self._refused(what, "cdmtrace probes"):
            self._keep(
                self._library.bpf_program__attach_kprobe(at, False, symbol.encode())
            )

    def attach_tracepoint(self, handler: str, name: str) -> None:
        """Have a handler run at ``category:name``. Raises ProgramRejected."""
        what = f"{handler} cannot be attached to {name}"
        at = self._named("program", handler)
        category, _, event = name.encode().partition(b":")
        with self._refused(what, "cdmtrace probes"):
            self._keep(
                self._library.bpf_program__attach_tracepoint(at, category, event)
            )

    def _keep(self, link: int | None) -> None:
        self._require(link)
        if link:
            self._links.append(link)

    def close(self) -> None:
        """Detach everything, whatever privileges are left. Twice is harmless."""
        said: list[str] = []
        with _heard(said):
            while self._links:
                self._library.bpf_link__destroy(ctypes.c_void_p(self._links.pop()))
            if self._object is not None:
                self._library.bpf_object__close(ctypes.c_void_p(self._object))
                self._object = None

    def _require(self, done: Any, error: int | None = None) -> None:
        """Raise OSError where a call of libbpf has failed; error: what it returned."""
        if not done:
            number = error or ctypes.get_errno()
            raise OSError(number, os.strerror(number))

    @contextlib.contextmanager
    def _refused(self, what: str, hint: str = "cdmtrace doctor") -> Iterator[None]:
        """Turn an OSError into ProgramRejected, with what libbpf said last."""
        said: list[str] = []
        try:
            with _heard(said), memlock_kept():
                yield
        except CdmtraceError:
            raise  # A signal has come.
        except OSError as error:
            named = next(filter(None, map(_FAILED.search, said)), None)
            why = error.strerror or str(error)
            raise ProgramRejected(
                f"{what}: {named[1]}: {why}" if named else f"{what}: {why}",
                details="\n".join(said[-20:]),
                hint=hint,
            ) from error
