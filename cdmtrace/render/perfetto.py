"""Tracks as a Perfetto trace: protobuf packets, each written as it comes.

The format is that of Perfetto's ``TrackEvent``s and ``TrackDescriptor``s
(https://perfetto.dev/docs/reference/synthetic-track-event); the classes are those of
the package ``perfetto``.
"""

from __future__ import annotations

import hashlib
import importlib
import shlex
import sys
from collections.abc import Iterable
from functools import lru_cache
from typing import IO, TYPE_CHECKING, Any, Final

from cdmtrace.errors import CdmtraceError
from cdmtrace.tracks import Clock, Count, Edge, Item, Key, Mark, Track, Value

if TYPE_CHECKING:
    from perfetto.trace_builder.proto_builder import StreamingTraceProtoBuilder

_SEQUENCE: Final = 1
"""The one writer of packets, as which it has its own table of names."""

_INTERNED: Final = 1 << 15
"""So many names and texts are numbered; others are written out."""

_LONG: Final = 24
"""Values of arguments that are as long as this are numbered: stacks, sentences."""

_PIDS: Final = range(1, 1 << 31)
"""Processes and threads that Perfetto can have."""

_CATEGORY: Final = "cdm"


_NEEDED: Final = ("perfetto>=0.59.1", "protobuf>=6.31.1")
"""The extra "perfetto" of pyproject.toml; it says why."""


def require() -> None:
    """Raise CdmtraceError where the library is missing, or cannot be loaded."""
    try:
        importlib.import_module("perfetto.trace_builder.proto_builder")
    except Exception as error:
        # What was generated for a newer protobuf raises an error of its own.
        raise CdmtraceError(
            f"the Python package perfetto cannot be loaded: {error}",
            hint=shlex.join([sys.executable, "-m", "pip", "install", *_NEEDED]),
        ) from error


def write(items: Iterable[Item], clock: Clock, file: IO[bytes]) -> int:
    """Write a trace; return how many packets it has.

    items: each track before what is on it. Tracks and flows have the same numbers each
    time that the same recording is written, and other ones than those of any other.
    Raises OSError, and CdmtraceError as require() does.
    """
    require()
    from perfetto.trace_builder.proto_builder import StreamingTraceProtoBuilder

    writer = _Writer(StreamingTraceProtoBuilder(file), clock)
    for item in items:
        match item:
            case Track():
                writer.track(item)
            case Mark():
                writer.mark(item)
            case Count():
                writer.count(item)
    return writer.packets


class _Interned:
    """Texts of one table, and their numbers."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}

    def number(self, text: str, table: Any) -> int:
        """Return a text's number, 0: it has none. table: where a new one is told."""
        known = self._numbers.get(text, 0)
        if known or len(self._numbers) >= _INTERNED:
            return known
        number = len(self._numbers) + 1
        self._numbers[text] = number
        entry = table.add()
        entry.iid = number
        if hasattr(entry, "str"):
            entry.str = text.encode()
        else:
            entry.name = text
        return number


class _Writer:
    def __init__(self, builder: StreamingTraceProtoBuilder, clock: Clock) -> None:
        self.packets = 0
        self._builder = builder
        seed = f"{clock.started} {clock.utc_offset}"
        self._id = lru_cache(1 << 16)(lambda key: _hashed(seed, key))
        self._names, self._keys, self._texts = _Interned(), _Interned(), _Interned()
        self._begin(clock)

    def _begin(self, clock: Clock) -> None:
        """Say what clock times are of, and begin the tables of names."""
        from perfetto.protos.perfetto.trace import perfetto_trace_pb2 as pb

        clocks = pb.ClockSnapshot.Clock
        packet = self._packet()
        packet.sequence_flags = pb.TracePacket.SEQ_INCREMENTAL_STATE_CLEARED
        packet.trace_packet_defaults.timestamp_clock_id = clocks.MONOTONIC
        snapshot = packet.clock_snapshot
        snapshot.primary_trace_clock = pb.BUILTIN_CLOCK_MONOTONIC
        snapshot.clocks.add(clock_id=clocks.MONOTONIC, timestamp=clock.started)
        utc = clock.started + clock.utc_offset
        if utc >= 0:
            snapshot.clocks.add(clock_id=clocks.REALTIME, timestamp=utc)
        self._write(packet)
        self._later = pb.TracePacket.SEQ_NEEDS_INCREMENTAL_STATE
        self._types = {
            Edge.BEGIN: pb.TrackEvent.TYPE_SLICE_BEGIN,
            Edge.END: pb.TrackEvent.TYPE_SLICE_END,
            Edge.INSTANT: pb.TrackEvent.TYPE_INSTANT,
            None: pb.TrackEvent.TYPE_COUNTER,
        }
        self._tracks = pb.TrackDescriptor

    def _packet(self) -> Any:
        packet = self._builder.create_packet()
        packet.trusted_packet_sequence_id = _SEQUENCE
        return packet

    def _write(self, packet: Any) -> None:
        self._builder.write_packet(packet)
        self.packets += 1

    def track(self, track: Track) -> None:
        """Write what a track is. A pid that cannot be one is but a name."""
        packet = self._packet()
        descriptor = packet.track_descriptor
        descriptor.uuid = self._id(track.key)
        descriptor.child_ordering = self._tracks.EXPLICIT
        descriptor.sibling_order_rank = track.rank
        if track.parent is not None:
            descriptor.parent_uuid = self._id(track.parent)
        name = _utf8(track.name)
        fits = track.pid in _PIDS
        if track.tid and fits and track.tid in _PIDS:
            descriptor.thread.pid, descriptor.thread.tid = track.pid, track.tid
            if name:
                descriptor.thread.thread_name = name
        elif track.pid and not track.tid and fits:
            descriptor.process.pid = track.pid
            if name:
                descriptor.process.process_name = name
        else:
            number = track.tid or track.pid
            descriptor.name = f"{name} {number}".strip() if number else name
            # Lanes of one name are one; VMAs that come one after the other are not.
            if track.key[-2:-1] == ("vma",):
                descriptor.sibling_merge_behavior = (
                    self._tracks.SIBLING_MERGE_BEHAVIOR_NONE
                )
        if track.unit:
            descriptor.counter.unit_name = track.unit
        self._write(packet)

    def mark(self, mark: Mark) -> None:
        """Write the begin or end of a slice, or an instant."""
        packet = self._event(mark.track, mark.ts, mark.edge)
        event, table = packet.track_event, packet.interned_data
        if mark.name:
            event.categories.append(_CATEGORY)
            name = _utf8(mark.name)
            number = self._names.number(name, table.event_names)
            if number:
                event.name_iid = number
            else:
                event.name = name
        event.flow_ids.extend(self._id(flow) for flow in mark.flows)
        event.terminating_flow_ids.extend(self._id(flow) for flow in mark.ends)
        for key, value in mark.args.items():
            self._argument(event.debug_annotations.add(), table, key, value)
        self._write(packet)

    def _argument(self, annotation: Any, table: Any, key: str, value: Value) -> None:
        annotation.name_iid = self._keys.number(key, table.debug_annotation_names)
        if isinstance(value, int):
            # Of 64 bits, with or without a sign.
            field = "int_value" if value < 1 << 63 else "uint_value"
            setattr(annotation, field, value)
            return
        text = _utf8(value)
        number = 0
        if len(text) >= _LONG:
            number = self._texts.number(text, table.debug_annotation_string_values)
        if number:
            annotation.string_value_iid = number
        else:
            annotation.string_value = text

    def count(self, count: Count) -> None:
        """Write what a track counts from a time on."""
        packet = self._event(count.track, count.ts, None)
        packet.track_event.counter_value = count.value
        self._write(packet)

    def _event(self, track: Key, ts: int, edge: Edge | None) -> Any:
        packet = self._packet()
        packet.sequence_flags = self._later
        packet.timestamp = ts
        packet.track_event.track_uuid = self._id(track)
        packet.track_event.type = self._types[edge]
        return packet


def _hashed(seed: str, key: Key) -> int:
    """Return a number of 64 bits, not 0, for a track or a flow of a recording."""
    digest = hashlib.blake2b(repr((seed, key)).encode(), digest_size=8).digest()
    return int.from_bytes(digest) or 1


def _utf8(text: str) -> str:
    """Return text that can be encoded: half a surrogate pair cannot."""
    return text.encode("utf-8", "replace").decode()
