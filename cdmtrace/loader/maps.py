"""Read and write the program's maps, whoever has made them: all it takes is an fd.

The calls are libbpf's. A value is a numpy record, as the structs of bpf/maps.h and
bpf/watch.bpf.c have it (RECORDS); a test holds these against the compiler's account.
"""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Iterator, Mapping
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from cdmtrace.events import Lost, Probe
from cdmtrace.kernel.btf import load_library
from cdmtrace.kernel.watchpoints import REGISTERS

Value = npt.NDArray[Any]

_U64: Final = np.dtype("u8")
_U32: Final = np.dtype("u4")
_U8: Final = np.dtype("u1")


def _record(**members: Any) -> np.dtype[Any]:
    """Return a struct as C lays it out."""
    return np.dtype(list(members.items()), align=True)


RECORDS: Final[Mapping[str, np.dtype[Any]]] = {
    "entry": _record(
        ts="u8",
        arg=("u8", 6),
        vma="u8",
        mm="u8",
        mm_id="u8",
        flags="u8",
        nodes="u8",
        start="u8",
        end="u8",
        sp="u8",
        id="u4",
        pid="u4",
        depth="u2",
        probe="u1",
        policy="u1",
        lock="u1",
        touched="u1",
        unread="u1",
        merge="u1",
    ),
    "allocation": _record(
        ts="u8",
        vma="u8",
        mm="u8",
        addr="u8",
        flags="u8",
        nodes="u8",
        order="u4",
        lock="u1",
        policy="u1",
    ),
    "lost_key": _record(mm="u8", probe="u4", reason="u4"),
    "lost_place": _record(count="u8", start="u8", end="u8"),
    "lost_counts": _record(n=("u8", (int(Probe.MAX), int(Lost.MAX)))),
    "watch_asked_all": _record(w=(_record(addr="u8", vma="u8"), REGISTERS)),
    "watch_found_all": _record(
        w=(_record(vma="u8", mm="u8", start="u8", end="u8", flags="u8"), REGISTERS)
    ),
    "watchpoints": _record(
        w=(
            _record(
                vma="u8",
                mm="u8",
                last="u8",
                hits="u8",
                strange="u8",
                begun="u8",
                ended="u8",
                state="u8",
            ),
            REGISTERS,
        )
    ),
}
"""Struct of the program -> its layout."""

_FRAMES: Final = 127
"""Of a stack at most: PERF_MAX_STACK_DEPTH."""


def _layout(key: np.dtype[Any], value: np.dtype[Any] | str) -> tuple[Any, Any]:
    return key, RECORDS[value] if isinstance(value, str) else value


LAYOUTS: Final[Mapping[str, tuple[np.dtype[Any], np.dtype[Any]]]] = {
    "allocations": _layout(_U32, "allocation"),
    "comms": _layout(_U32, np.dtype("S16")),
    "enabled": _layout(_U32, _U32),
    "entries": _layout(_U64, "entry"),
    "lost": _layout(_U32, "lost_counts"),
    "lost_places": _layout(RECORDS["lost_key"], "lost_place"),
    "places": _layout(_U64, np.dtype("V48")),
    "stacks": _layout(_U32, np.dtype(("u8", _FRAMES))),
    "tgids": _layout(_U32, _U8),
    "cgroups": _layout(_U32, _U32),
    "watched": _layout(_U64, _U8),
    "watch_asked": _layout(_U32, "watch_asked_all"),
    "watch_found": _layout(_U32, "watch_found_all"),
    "watchpoints": _layout(_U32, "watchpoints"),
}
"""Map -> its key and its value."""
PER_CPU: Final = frozenset({"lost", "lost_places"})
"""Maps that have a value for each cpu that there may be."""


class MapError(OSError):
    """A map refused what it was asked. ``errno`` says why."""


class Map:
    """One map of a program that is loaded. It is open as long as the program is."""

    def __init__(self, name: str, fd: int) -> None:
        """Take the map of that name, one of LAYOUTS. Raises BtfMissing (no libbpf)."""
        self._fd = fd
        self._name = name
        self._key, value = LAYOUTS[name]
        self._library = load_library()
        cpus = self._library.libbpf_num_possible_cpus() if name in PER_CPU else 1
        # One value after the other, for there is no padding in a multiple of 8 bytes.
        self._value = value
        self._room = np.zeros(cpus if name in PER_CPU else (), value)

    def get(self, key: Any = 0) -> Value | None:
        """Return the value of a key, one for each cpu where it is such a map, or None.

        Raises MapError.
        """
        packed, value = self._packed(key), np.zeros_like(self._room)
        error = self._library.bpf_map_lookup_elem(self._fd, packed, _at(value))
        if error == -errno.ENOENT:
            return None
        self._require(error, "read")
        return value

    def put(self, value: Any, key: Any = 0) -> None:
        """Set the value of a key. Raises MapError."""
        array = np.array(value, self._value)
        error = self._library.bpf_map_update_elem(
            self._fd, self._packed(key), _at(array), ctypes.c_uint64(0)
        )
        self._require(error, "written")

    def drop(self, key: Any) -> None:
        """Remove a key, if it is there. Raises MapError."""
        error = self._library.bpf_map_delete_elem(self._fd, self._packed(key))
        if error != -errno.ENOENT:
            self._require(error, "cleared")

    def keys(self) -> Iterator[Value]:
        """Yield the keys.

        One that is added or removed meanwhile may be missing, or come twice: the kernel
        begins again where it does not find the last one any more.
        """
        last: bytes | None = None
        while True:
            key = np.zeros((), self._key)
            error = self._library.bpf_map_get_next_key(self._fd, last, _at(key))
            if error == -errno.ENOENT:
                return
            self._require(error, "listed")
            last = key.tobytes()
            yield key

    def items(self) -> Iterator[tuple[Value, Value]]:
        """Yield each key once, with its value."""
        seen = set()
        for key in self.keys():
            name = key.tobytes()
            if name not in seen and (value := self.get(key)) is not None:
                seen.add(name)
                yield key, value

    def clear(self) -> None:
        """Remove all keys. Raises MapError."""
        for key in list(self.keys()):
            self.drop(key)

    def _packed(self, key: Any) -> bytes:
        return np.array(key, self._key).tobytes()

    def _require(self, error: int, what: str) -> None:
        if error:
            text = f"map {self._name} cannot be {what}: {os.strerror(-error)}"
            raise MapError(-error, text)


def _at(array: Value) -> ctypes.c_void_p:
    return ctypes.c_void_p(array.ctypes.data)
