"""What a trace file holds: columns, header, and the mark on each batch.

Pure data and its text form; no file is touched here.

The file is one Arrow IPC stream. Its columns are the fields of EVENT_DTYPE,
``payload`` (what has no fixed size; null but on rows of a few kinds) and
``seq``, which numbers the rows of a recording from 1 without a gap, also
where it is in several files (header member ``part``). The
header is JSON under the schema's metadata key ``cdmtrace``; the mark of a
batch is JSON under the same key of that batch's metadata. Both are covered by
a CRC-32 under the key ``cdmtrace.crc32``: an Arrow stream has no checksum of
its own, and a tail of zeros would read as values.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from cdmtrace.events import C_ENUMS, EVENT_DTYPE
from cdmtrace.vmbits import BITS

FORMAT: Final = 1
"""The format this version writes, and the newest it reads."""

HEADER_KEY: Final = b"cdmtrace"
CRC_KEY: Final = b"cdmtrace.crc32"

_SHOWN: Final = 200
"""Characters of what a file says of itself that are repeated to a person."""
_LAST: Final = (1 << 63) - 1
_LARGEST_PAGE: Final = 1 << 30
_HEX: Final = 18
_ID: Final = 64

LostCounts = Mapping[str, Mapping[str, int]]
"""Probe name -> reason -> events lost; names as in the header's enums."""

Json = dict[str, Any]


def _columns() -> list[pa.Field]:
    assert EVENT_DTYPE.names is not None
    columns = [
        pa.field(name, pa.from_numpy_dtype(EVENT_DTYPE[name]), nullable=False)
        for name in EVENT_DTYPE.names
    ]
    # seq is last so that its values are the last bytes of a batch.
    return [
        *columns,
        pa.field("payload", pa.binary(), nullable=True),
        pa.field("seq", pa.uint64(), nullable=False),
    ]


SCHEMA: Final[pa.Schema] = pa.schema(_columns())
"""The columns of format 1, without metadata."""


def enum_names() -> dict[str, dict[str, int]]:
    """Return enum -> name -> number, in lower case, as the header holds them."""
    return {
        enum.removeprefix("cdm_"): {
            name.lower(): int(value) for name, value in mirror.__members__.items()
        }
        for enum, (_, mirror) in C_ENUMS.items()
    }


ANYWHERE: Final = 1 << 64
"""The end of a range that leaves no address out."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Shortfall:
    """Events of one probe that are missing for one reason, and where they belong.

    probe, reason: names as in the header's enums. count: events. mm: id of the
    address space, 0 if it can be any. [start, end): the addresses that they lie in.
    """

    probe: str
    reason: str
    count: int
    mm: int = 0
    start: int = 0
    end: int = ANYWHERE


@dataclass(frozen=True, kw_only=True, slots=True)
class ProbeEntry:
    """One line of the header's probe table.

    symbol is None for a probe that was not attached, and why_not says why (files of
    older versions do not); kind is what it was attached as (kprobe, tracepoint, …).
    """

    id: int
    name: str
    symbol: str | None
    kind: str
    why_not: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """Which part of a recording a file is, where the recording has several.

    recording: its id, the same in all parts. number: of the part, from 0. seq: of
    the last row before it, 0 if there is none. began: when the part was begun;
    counted: when the loss counters had been read last by then, or the start of the
    recording (ns, CLOCK_MONOTONIC).
    """

    recording: str
    number: int
    seq: int
    began: int
    counted: int

    def to_json(self) -> Json:
        """Return it as a JSON object."""
        return {name: getattr(self, name) for name in self.__slots__}

    @classmethod
    def from_json(cls, data: Json) -> Part:
        """Return the part that data holds. Raises ValueError as Header's does."""
        recording = _get(data, "recording", str)
        if not 0 < len(recording) <= _ID or not recording.isalnum():
            raise ValueError("the part's recording has no id")
        return cls(
            recording=recording,
            number=_number(data, "number", 0, _LAST),
            seq=_number(data, "seq", 0, _LAST),
            began=_number(data, "began", 0, _LAST),
            counted=_number(data, "counted", 0, _LAST),
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Header:
    """What a recording says about itself, once, at its start.

    Times are ns. ``utc_offset`` is what to add to a CLOCK_MONOTONIC time to
    get one in UTC, measured at ``started`` (CLOCK_MONOTONIC). Sizes are bytes.
    ``part`` is None where the file is the whole recording. ``extra`` holds what a
    later tool wrote under keys that this one does not know.
    """

    tool: str
    kernel_release: str
    kernel_build: str
    machine: str
    boot_id: str
    started: int
    utc_offset: int
    page_size: int
    ring_size: int
    cdm_nodes: tuple[int, ...]
    cdm_nodes_from: str
    vm_cdm_mask: int
    vm_cdm_mask_from: str
    vm_flags: Mapping[int, str] = field(default_factory=lambda: MappingProxyType({}))
    vm_flags_from: str = ""
    probes: tuple[ProbeEntry, ...] = ()
    command: tuple[str, ...] = ()
    filters: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    enums: Mapping[str, Mapping[str, int]] = field(default_factory=enum_names)
    clock: str = "CLOCK_MONOTONIC"
    format: int = FORMAT
    part: Part | None = None
    extra: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))

    def to_json(self) -> Json:
        """Return it as a JSON object. The mask is text, for it may pass 2**53."""
        return {
            **self.extra,
            "format": self.format,
            "tool": self.tool,
            "kernel": {
                "release": self.kernel_release,
                "build": self.kernel_build,
                "machine": self.machine,
            },
            "boot_id": self.boot_id,
            "clock": {
                "name": self.clock,
                "started": self.started,
                "utc_offset": self.utc_offset,
            },
            "page_size": self.page_size,
            "ring_size": self.ring_size,
            "cdm_nodes": {"nodes": list(self.cdm_nodes), "from": self.cdm_nodes_from},
            "vm_cdm": {"mask": hex(self.vm_cdm_mask), "from": self.vm_cdm_mask_from},
            **(
                {
                    "vm_flags": {
                        "bits": {str(bit): name for bit, name in self.vm_flags.items()},
                        "from": self.vm_flags_from,
                    }
                }
                if self.vm_flags
                else {}
            ),
            "probes": [
                {
                    "id": p.id,
                    "name": p.name,
                    "symbol": p.symbol,
                    "kind": p.kind,
                    **({"why_not": p.why_not} if p.why_not else {}),
                }
                for p in self.probes
            ],
            "command": list(self.command),
            "filters": dict(self.filters),
            "enums": {name: dict(names) for name, names in self.enums.items()},
            **({"part": self.part.to_json()} if self.part else {}),
        }

    @classmethod
    def from_json(cls, data: Json) -> Header:
        """Return the header that data holds.

        Raises ValueError that names what is missing or of another type.
        """
        kernel, clock = _get(data, "kernel", dict), _get(data, "clock", dict)
        nodes, mask = _get(data, "cdm_nodes", dict), _get(data, "vm_cdm", dict)
        # Absent where an older tool recorded.
        flags = _get({"vm_flags": {"bits": {}, "from": ""}, **data}, "vm_flags", dict)
        known = {
            *("format", "tool", "kernel", "boot_id", "clock", "page_size"),
            *("ring_size", "cdm_nodes", "vm_cdm", "probes", "command"),
            *("filters", "enums", "part", "vm_flags"),
        }
        return cls(
            format=_get(data, "format", int),
            tool=_get(data, "tool", str),
            kernel_release=_get(kernel, "release", str),
            kernel_build=_get(kernel, "build", str),
            machine=_get(kernel, "machine", str),
            boot_id=_get(data, "boot_id", str),
            clock=_get(clock, "name", str),
            started=_number(clock, "started", 0, _LAST),
            utc_offset=_number(clock, "utc_offset", -_LAST, _LAST),
            page_size=_page_size(data),
            ring_size=_number(data, "ring_size", 0, _LAST),
            cdm_nodes=_nodes(_get(nodes, "nodes", list)),
            cdm_nodes_from=_get(nodes, "from", str),
            vm_cdm_mask=_mask(_get(mask, "mask", str)),
            vm_cdm_mask_from=_get(mask, "from", str),
            vm_flags=_bits(_get(flags, "bits", dict)),
            vm_flags_from=_get(flags, "from", str),
            probes=tuple(
                ProbeEntry(
                    id=_get(entry, "id", int),
                    name=_get(entry, "name", str),
                    symbol=_get(entry, "symbol", str, type(None)),
                    kind=_get(entry, "kind", str),
                    why_not=_get(
                        {"why_not": None, **entry}, "why_not", str, type(None)
                    ),
                )
                for entry in _all(_get(data, "probes", list), dict)
            ),
            command=_all(_get(data, "command", list), str),
            filters=_get(data, "filters", dict),
            enums={
                name: dict(zip(names, _all(names.values(), int), strict=True))
                for name, names in _get(data, "enums", dict).items()
                if isinstance(names, dict)
            },
            part=(Part.from_json(_get(data, "part", dict)) if "part" in data else None),
            extra=_extra({key: data[key] for key in data if key not in known}),
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Mark:
    """What each batch says about itself.

    batch: its number, from 0. rows: how many. first_ts, last_ts: least and
    greatest ts of its rows (ns), None without rows. last_seq: the seq of the
    last row written so far, 0 if none was. window: when the loss counters
    were read (ns, CLOCK_MONOTONIC, just before and just after), None if they
    were not. lost: events lost since they were read last, one entry for each
    probe, reason and address space. end: why the file ended, on its last batch;
    None on all others. more: the recording goes on in its next part. totals: the
    sum of lost over all batches of the file, on the last batch.
    """

    batch: int
    rows: int
    first_ts: int | None
    last_ts: int | None
    last_seq: int
    window: tuple[int, int] | None = None
    lost: tuple[Shortfall, ...] = ()
    end: str | None = None
    totals: LostCounts | None = None
    more: bool = False

    def to_json(self) -> Json:
        """Return it as a JSON object; what is absent is left out."""
        data: Json = {
            "batch": self.batch,
            "n": self.rows,
            "first_ts": self.first_ts,
            "last_ts": self.last_ts,
            "last_seq": self.last_seq,
            "window": None if self.window is None else list(self.window),
            "lost": sum_losses(self.lost),
        }
        placed = [entry for entry in self.lost if entry.mm]
        if placed:
            data["lost_in"] = [
                [e.probe, e.reason, e.count, e.mm, e.start, e.end] for e in placed
            ]
        if self.end is not None:
            data["end"] = self.end
            if self.more:
                data["more"] = True
            data["totals"] = {
                "events": self.last_seq,
                "batches": self.batch + 1,
                "lost": _plain(self.totals or {}),
            }
        return data

    @classmethod
    def from_json(cls, data: Json) -> Mark:
        """Return the mark that data holds.

        Raises ValueError that names what is missing or of another type.
        """
        window = _get(data, "window", list, type(None))
        if window is not None:
            before, after = _all(window, int)
            window = (before, after)
        end = data.get("end")
        return cls(
            batch=_number(data, "batch", 0, _LAST),
            rows=_number(data, "n", 0, _LAST),
            first_ts=_get(data, "first_ts", int, type(None)),
            last_ts=_get(data, "last_ts", int, type(None)),
            last_seq=_number(data, "last_seq", 0, _LAST),
            window=window,
            lost=_shortfalls(_lost(_get(data, "lost", dict)), data.get("lost_in", [])),
            end=None if end is None else _get(data, "end", str),
            more=data.get("more") is True,
            totals=(
                None
                if end is None
                else _lost(_get(_get(data, "totals", dict), "lost", dict))
            ),
        )


def encode(data: Json) -> bytes:
    """Return data as compact JSON; equal objects give equal bytes."""
    return json.dumps(data, separators=(",", ":"), sort_keys=True).encode()


def decode(text: bytes) -> Json:
    """Return the JSON object in text; half a surrogate pair in it becomes "?".

    Raises ValueError if it holds none.
    """
    try:
        data = json.loads(text.decode())
        plain = json.dumps(data, ensure_ascii=False)
        clean = plain.encode(errors="replace").decode()
        # The words of a command need not be UTF-8, and what is no text cannot be shown.
        if clean != plain:
            data = json.loads(clean)
    except RecursionError as error:
        raise ValueError("JSON that is nested too deep") from error
    if not isinstance(data, dict):
        raise ValueError("no JSON object")
    return data


def shown(text: str) -> str:
    """Return what a file says of itself as it may be shown to a person.

    It is cut where it is long, and nothing in it moves a cursor.
    """
    return printable(text if len(text) <= _SHOWN else f"{text[:_SHOWN]} …")


def printable(text: str) -> str:
    """Return text that a recording holds with nothing in it that moves a cursor."""
    return "".join(c if c.isprintable() else "?" for c in text)


def header_metadata(header: Header) -> dict[bytes, bytes]:
    """Return the schema's metadata for header."""
    text = encode(header.to_json())
    return {HEADER_KEY: text, CRC_KEY: _hex(zlib.crc32(text))}


def mark_metadata(mark: Mark, batch: pa.RecordBatch) -> dict[bytes, bytes]:
    """Return the metadata to write with batch."""
    text = encode(mark.to_json())
    return {HEADER_KEY: text, CRC_KEY: _hex(batch_crc(text, batch))}


def batch_crc(text: bytes, batch: pa.RecordBatch) -> int:
    """Return the CRC-32 over a mark's text and all values of its batch.

    Column by column in the schema's order, the values as they lie in memory
    without padding. For payload: one byte a row (1: null), then the lengths
    (int32), then the bytes. The batch must have passed validate(full=True).
    It costs 21 to 35 ns an event (128 bytes), a seventh of what writing the
    event costs, and so is always on.
    """
    crc = zlib.crc32(text)
    for column in batch.columns:
        for part in _parts(column):
            crc = zlib.crc32(part.data, crc)
    return crc


def column_values(column: pa.Array) -> npt.NDArray[Any]:
    """Return a view on the values of a column of fixed width.

    pyarrow's own to_numpy(), like pa.array(), imports pandas on the way if it
    is installed, which costs a recorder in the laboratory half a minute.

    The column must have passed validate(). Raises ValueError if there are
    nulls in it.
    """
    if column.null_count:
        raise ValueError(f"{column.null_count} nulls in a column that has none")
    dtype = column.type.to_pandas_dtype()
    values = column.buffers()[1]
    if values is None:
        return np.empty(0, dtype)
    return np.frombuffer(
        values, dtype, len(column), column.offset * np.dtype(dtype).itemsize
    )


def _parts(column: pa.Array) -> Iterator[npt.NDArray[Any]]:
    """Return what of a column goes into the CRC, each part contiguous."""
    rows, first = len(column), column.offset
    if column.type != pa.binary():
        yield column_values(column)
        return
    valid, offset_buffer, value_buffer = column.buffers()
    if column.null_count and valid is not None:
        bits = np.unpackbits(np.frombuffer(valid, np.uint8), bitorder="little")
        yield 1 - bits[first : first + rows]
    else:
        yield np.zeros(rows, np.uint8)
    if not rows or offset_buffer is None:
        return
    offsets = np.frombuffer(
        offset_buffer, np.int32, rows + 1, first * np.int32().itemsize
    )
    yield np.diff(offsets)
    start, size = int(offsets[0]), int(offsets[-1] - offsets[0])
    if size and value_buffer is not None:
        yield np.frombuffer(value_buffer, np.uint8, size, start)


def parse_crc(text: bytes | None) -> int | None:
    """Return the number in a CRC's metadata value, None if there is none."""
    try:
        return None if text is None else int(text, 16)
    except ValueError:
        return None


def sum_losses(
    lost: Iterable[Shortfall], before: LostCounts = MappingProxyType({})
) -> dict[str, dict[str, int]]:
    """Return how many events are missing in all, on top of those before."""
    total = {probe: dict(reasons) for probe, reasons in before.items()}
    for entry in lost:
        mine = total.setdefault(entry.probe, {})
        mine[entry.reason] = mine.get(entry.reason, 0) + entry.count
    return total


def _page_size(data: Json) -> int:
    size = _number(data, "page_size", 1, _LARGEST_PAGE)
    if size & (size - 1):
        raise ValueError(f"page_size is {size}, no power of two")
    return size


def _nodes(values: list[Any]) -> tuple[int, ...]:
    """Return node ids: what a mask of 64 bits has room for, each once."""
    found = _all(values, int)
    if len(set(found)) < len(found) or not all(0 <= node < 64 for node in found):
        raise ValueError("cdm_nodes has what is no list of nodes")
    return found


def _mask(text: str) -> int:
    """Return the number in VM_CDM's mask, 0 if there is none (shadow mode).

    Raises ValueError if it is no flag word.
    """
    mask = int(text[:_HEX], 16)
    if len(text) > _HEX or not 0 <= mask < ANYWHERE:
        raise ValueError(f"vm_cdm's mask is {text[:_HEX]!r}")
    return mask


def _bits(data: Json) -> dict[int, str]:
    """Return bit -> name of the flags of vm_flags. Raises ValueError for other bits."""
    bits = {str(bit) for bit in range(BITS)}
    if not data.keys() <= bits:
        raise ValueError("vm_flags has what is no bit of it")
    return dict(zip(map(int, data), _all(data.values(), str), strict=True))


def _extra(data: Json) -> Json:
    """Return what no key above is about; of it, one key has a meaning here."""
    if "vm_cdm_taken_by" in data:
        _get(data, "vm_cdm_taken_by", str)
    return data


def _hex(crc: int) -> bytes:
    return b"%08x" % crc


def _plain(lost: LostCounts) -> dict[str, dict[str, int]]:
    return {probe: dict(reasons) for probe, reasons in lost.items()}


def _lost(data: Json) -> dict[str, dict[str, int]]:
    return {
        probe: {reason: _number(reasons, reason, 0, _LAST) for reason in reasons}
        for probe in data
        for reasons in [_get(data, probe, dict)]
    }


def _shortfalls(lost: LostCounts, placed: Any) -> tuple[Shortfall, ...]:
    """Return the entries of a mark: those with a place, and the rest without.

    Raises ValueError where more have a place than were lost.
    """
    if not isinstance(placed, list):
        raise ValueError(f"lost_in is {_quoted(placed)}")
    entries = []
    left = {probe: dict(reasons) for probe, reasons in lost.items()}
    for row in placed:
        if not isinstance(row, list) or len(row) != 6:
            raise ValueError("lost_in has what is no loss")
        (probe, reason), (count, mm, start, end) = row[:2], _all(row[2:], int)
        _all((probe, reason), str)
        more = left.get(probe, {}).get(reason, 0) - count
        if more < 0 or count < 1:
            raise ValueError(f"lost_in has {count} of {probe}, and lost has fewer")
        left[probe][reason] = more
        entries.append(
            Shortfall(
                probe=probe, reason=reason, count=count, mm=mm, start=start, end=end
            )
        )
    entries += [
        Shortfall(probe=probe, reason=reason, count=count)
        for probe, reasons in left.items()
        for reason, count in reasons.items()
        if count
    ]
    return tuple(entries)


def _get(data: Json, key: str, *types: type) -> Any:
    if key not in data:
        raise ValueError(f"{key} is missing")
    value = data[key]
    if not _fits(value, *types):
        raise ValueError(f"{key} is {_quoted(value)}")
    return value


def _number(data: Json, key: str, least: int, most: int) -> int:
    value: int = _get(data, key, int)
    if not least <= value <= most:
        raise ValueError(f"{key} is {_quoted(value)}")
    return value


def _fits(value: Any, *types: type) -> bool:
    """Return whether a value is of one of these types, and an int none that is absurd.

    bool is an int to Python, and never one here.
    """
    if isinstance(value, int):
        return int in types and not isinstance(value, bool) and abs(value) <= ANYWHERE
    return isinstance(value, types)


def _quoted(value: Any) -> str:
    """Return a value for a message, in which a list or an object has no place."""
    if isinstance(value, int) and abs(value) > ANYWHERE:
        return "a number of more than 64 bits"
    if isinstance(value, list | dict):
        return "a list" if isinstance(value, list) else "an object"
    return repr(value)


def _all(values: Any, kind: type) -> tuple[Any, ...]:
    found = tuple(values)
    for value in found:
        if not _fits(value, kind):
            raise ValueError(f"{_quoted(value)} in a list of {kind.__name__}")
    return found
