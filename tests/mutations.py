"""Trace files that somebody has damaged, or made up: one for each number.

Every kind of damage is done where it reaches deepest: what a checksum covers gets a
right one afterwards, so that the reader goes on to what lies behind it.
"""

from __future__ import annotations

import functools
import json
import random
import struct
import tempfile
import zlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa

from cdmtrace.events import EVENT_DTYPE, EventKind, Events, Probe
from cdmtrace.format.reader import TraceReader
from cdmtrace.format.schema import (
    CRC_KEY,
    HEADER_KEY,
    SCHEMA,
    Header,
    Part,
    Shortfall,
    batch_crc,
    column_values,
)
from cdmtrace.format.writer import TraceWriter

GOLDEN: Final = Path(__file__).parent / "golden"
ROWS: Final = 7
"""Rows of a batch of a base file, which has two: a few KiB, so that many are read."""
NUMBERS: Final = (
    *(0, 1, 2, 7, 8, 255, 256, 4095, 4096, 65535, 65536),
    *((1 << n) + d for n in (31, 32, 47, 62, 63, 64) for d in (-1, 0, 1)),
)
_JSON: Final[tuple[Any, ...]] = (
    *(None, True, False, 0, -1, 1, 23, 1 << 31, (1 << 63) - 1, 1 << 64, -(1 << 64)),
    *(10**30, 10**4000, 1.5, 1e308, float("nan"), float("inf")),
    *("", "x", "\ud800", "\x1b[2J", "\0", "ff" * 40, "-1", "x" * 100_000),
    *([], {}, [[]], {"": {}}, [1, 2], ["a", "b"], [0] * 1000),
)
Damage = Callable[[random.Random, bytes], bytes]


class Message:
    """One message of a stream: where it lies."""

    def __init__(self, data: bytes, start: int) -> None:
        self.start = start
        self.body = start + 8 + struct.unpack_from("<i", data, start + 4)[0]
        message = pa.ipc.read_message(pa.py_buffer(data[start:]))
        self.end = self.body + (message.body.size if message.body else 0)


@functools.lru_cache(64)
def messages(data: bytes) -> list[Message]:
    """Return the messages of a whole file, without the mark that ends the stream."""
    found: list[Message] = []
    at = 0
    while at < len(data) and data[at : at + 8] != b"\xff\xff\xff\xff\0\0\0\0":
        found.append(Message(data, at))
        at = found[-1].end
    return found


def write(
    header: Header,
    batches: Sequence[tuple[Events, list[bytes | None] | None]],
    lost: Sequence[Shortfall] = (),
) -> bytes:
    """Return a whole file of such batches, the second of which has lost something."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.arrows"
        with TraceWriter(path, header) as writer:
            for number, (events, payloads) in enumerate(batches):
                ts = int(events["ts"].max()) if len(events) else header.started
                here = lost if number == 1 else ()
                window = (ts, ts + 1) if here else None
                writer.write(events, payloads=payloads, lost=here, window=window)
            writer.end("it is over")
        return path.read_bytes()


def events_of(columns: pa.RecordBatch) -> Events:
    """Return the rows of a batch as they came from the ring."""
    events: Events = np.empty(columns.num_rows, EVENT_DTYPE)
    for name in EVENT_DTYPE.names or ():
        events[name] = column_values(columns.column(name))
    return events


@functools.cache
def recorded() -> tuple[Header, Events, tuple[bytes | None, ...]]:
    """Return a real recording: header, rows and payloads."""
    with TraceReader(GOLDEN / "cdm-6.1-rfc.arrows") as reader:
        batches = [batch.columns for batch in reader]
        header = reader.header
    events = np.concatenate([events_of(batch) for batch in batches])
    payloads = [p for batch in batches for p in batch.column("payload").to_pylist()]
    return header, events, tuple(payloads)


LOST: Final = (
    Shortfall(probe="alloc", reason="ring", count=4, mm=7, end=4096),
    Shortfall(probe="rmap_add", reason="ring", count=3),
    Shortfall(probe="watch", reason="map", count=1, mm=9),
)


@functools.cache
def bases() -> tuple[bytes, ...]:
    """Return small whole files with rows from all over a real recording."""
    header, events, payloads = recorded()
    header = replace(header, probes=header.probes[:3], enums={"kind": {"alloc": 1}})
    files = []
    for number, first in enumerate(range(0, len(events) - 2 * ROWS, 4 * ROWS)):
        slices = slice(first, first + ROWS), slice(first + ROWS, first + 2 * ROWS)
        part = Part(recording="f00d", number=3, seq=first, began=9, counted=7)
        mine = replace(header, part=part) if number % 3 == 0 else header
        rows = [(events[where], list(payloads[where])) for where in slices]
        files.append(write(mine, rows, LOST))
    return tuple(files)


# --- damage that a checksum finds, or that comes before any -----------------------


def flip(rng: random.Random, data: bytes) -> bytes:
    """Flip a few bits, anywhere."""
    return _flipped(rng, data, 0, len(data))


def flip_metadata(rng: random.Random, data: bytes) -> bytes:
    """Flip bits in the metadata of one message: FlatBuffers, and our JSON."""
    one = rng.choice(messages(data))
    return _flipped(rng, data, one.start, one.body)


def numbers(rng: random.Random, data: bytes) -> bytes:
    """Put absurd numbers into the metadata of one message."""
    one = rng.choice(messages(data))
    out = bytearray(data)
    for _ in range(rng.randint(1, 3)):
        width, kind = rng.choice(((1, "B"), (2, "H"), (4, "I"), (8, "Q")))
        at = rng.randrange(one.start, one.body - 8) // width * width
        value = rng.choice((*NUMBERS, rng.getrandbits(64))) * rng.choice((1, -1))
        struct.pack_into(f"<{kind}", out, at, value % (1 << 8 * width))
    return bytes(out)


def cut(rng: random.Random, data: bytes) -> bytes:
    """Leave off the end, or leave zeros or rubbish there."""
    at = rng.randrange(len(data))
    tail = len(data) - at
    return data[:at] + rng.choice((b"", bytes(tail), rng.randbytes(tail)))


def shuffle(rng: random.Random, data: bytes) -> bytes:
    """Drop, double or exchange messages, or take one of another file."""
    pieces = [data[one.start : one.end] for one in messages(data)]
    other = rng.choice(bases())
    for _ in range(rng.randint(1, 3)):
        at = rng.randrange(len(pieces))
        stranger = rng.choice(messages(other))
        piece = rng.choice((pieces[at], other[stranger.start : stranger.end]))
        pieces[at : at + rng.randint(0, 1)] = [piece] * rng.randint(0, 2)
        if not pieces:
            break
    return b"".join(pieces) + rng.choice((b"", data[-8:]))


def rubbish(rng: random.Random, data: bytes) -> bytes:
    """Overwrite, insert or remove a run of bytes."""
    at, size = rng.randrange(len(data)), rng.randint(1, 64)
    return data[:at] + rng.randbytes(rng.randint(0, 64)) + data[at + size :]


def _flipped(rng: random.Random, data: bytes, start: int, end: int) -> bytes:
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 5, 20))):
        out[rng.randrange(start, end)] ^= 1 << rng.randrange(8)
    return bytes(out)


# --- damage with right checksums ----------------------------------------------------


def flip_values(rng: random.Random, data: bytes) -> bytes:
    """Flip bits in a batch, and give it the checksum of what it has now."""
    one = rng.choice(messages(data)[1:])
    start = rng.choice((one.start + 8, one.body)) if one.body < one.end else one.start
    return mended(_flipped(rng, data, start, one.end), one)


def number_values(rng: random.Random, data: bytes) -> bytes:
    """Put absurd numbers anywhere into a batch, and mend its checksum."""
    out = bytearray(data)
    one = rng.choice(messages(data)[1:])
    for _ in range(rng.randint(1, 5)):
        at = rng.randrange(one.start + 8, one.end - 8) // 8 * 8
        value = rng.choice(NUMBERS) * rng.choice((1, -1))
        struct.pack_into("<Q", out, at, value % (1 << 64))
    return mended(bytes(out), one)


def mended(data: bytes, one: Message) -> bytes:
    """Give a batch the right checksum, as far as anything can be made of it."""
    try:
        stream = SCHEMA.serialize().to_pybytes() + data[one.start : one.end]
        batch, metadata = pa.ipc.open_stream(
            pa.BufferReader(stream)
        ).read_next_batch_with_custom_metadata()
        batch.validate(full=True)
        crc = b"%08x" % batch_crc(metadata[HEADER_KEY], batch)
        old = metadata[CRC_KEY]
    except Exception:
        return data
    at = data.find(old, one.start, one.body)
    return data[:at] + crc + data[at + len(crc) :] if at >= 0 else data


def header_json(rng: random.Random, data: bytes) -> bytes:
    """Say something else in the header, with a right checksum."""
    one = messages(data)[0]
    schema = pa.ipc.open_stream(pa.BufferReader(data)).schema
    text = _other_json(rng, schema.metadata[HEADER_KEY])
    metadata = {HEADER_KEY: text, CRC_KEY: b"%08x" % zlib.crc32(text)}
    return SCHEMA.with_metadata(metadata).serialize().to_pybytes() + data[one.end :]


def mark_json(rng: random.Random, data: bytes) -> bytes:
    """Say something else in the mark of a batch, with a right checksum."""
    one = rng.choice(messages(data)[1:])
    stream = SCHEMA.serialize().to_pybytes() + data[one.start : one.end]
    batch, metadata = pa.ipc.open_stream(
        pa.BufferReader(stream)
    ).read_next_batch_with_custom_metadata()
    text = _other_json(rng, metadata[HEADER_KEY])
    return data[: one.start] + message(batch, text) + data[one.end :]


def message(batch: pa.RecordBatch, text: bytes) -> bytes:
    """Return a batch with any text for a mark, and a right checksum."""
    sink = pa.BufferOutputStream()
    metadata = {HEADER_KEY: text, CRC_KEY: b"%08x" % batch_crc(text, batch)}
    with pa.ipc.new_stream(sink, SCHEMA) as stream:
        stream.write_batch(batch, custom_metadata=metadata)
    return sink.getvalue().to_pybytes()[SCHEMA.serialize().size : -8]


def _other_json(rng: random.Random, text: bytes) -> bytes:
    way = rng.randrange(10)
    if way == 0:
        return rng.choice((b"[", b'{"a":')) * rng.choice((100, 990, 100_000))
    if way == 1:
        # A key that is there twice, and a number of many digits.
        return text[:-1] + b',"format":1,"batch":%s}' % (b"9" * rng.choice((1, 5000)))
    if way == 2:
        return text.decode().encode(rng.choice(("utf-16", "utf-32", "utf-8-sig")))
    if way == 3:
        return _flipped(rng, text, 0, len(text))
    data = json.loads(text)
    for _ in range(rng.randint(1, 3)):
        _replace_in(rng, data)
    try:
        return json.dumps(data).encode()
    except ValueError:
        # A number with more digits than Python prints.
        return text


def _replace_in(rng: random.Random, data: Any) -> None:
    """Replace one value somewhere in a JSON object."""
    here = data
    while True:
        keys = list(here) if isinstance(here, dict) else list(range(len(here)))
        if not keys:
            return
        key = rng.choice(keys)
        inner = here[key]
        if isinstance(inner, dict | list) and inner and rng.random() < 0.8:
            here = inner
            continue
        if isinstance(here, dict) and rng.random() < 0.2:
            del here[key]
        else:
            here[key] = rng.choice(_JSON)
        return


# --- whole files with rows that no kernel has made -----------------------------------

_BASE: Final = 0x100040000000
_PAGE: Final = 4096


def wild_events(rng: random.Random, count: int) -> tuple[Events, list[bytes | None]]:
    """Return rows of any kind about a few address spaces and addresses."""
    gen = np.random.default_rng(rng.getrandbits(64))
    events: Events = np.zeros(count, EVENT_DTYPE)
    absurd = np.array([n for n in NUMBERS if n < 1 << 64], np.uint64)
    for name in EVENT_DTYPE.names or ():
        kind = EVENT_DTYPE[name]
        if kind.itemsize == 8:
            near = _BASE + _PAGE * gen.integers(0, 40, count).astype(np.uint64)
            values = np.where(
                gen.random(count) < rng.choice((0.0, 0.02, 0.3)),
                gen.choice(absurd, count),
                near,
            )
        else:
            info = np.iinfo(kind)
            small = gen.integers(0, 4, count)
            wide = gen.integers(info.min, info.max, count, endpoint=True)
            values = np.where(gen.random(count) < rng.choice((0, 0.1)), wide, small)
        events[name] = values.astype(kind)
    events["kind"] = gen.choice([int(k) for k in EventKind], count)
    events["probe"] = gen.choice([int(p) for p in Probe], count)
    events["mm"] = gen.integers(0, 4, count)
    events["bits"] = np.where(gen.random(count) < 0.6, 0, events["bits"])
    if rng.random() < 0.8:
        # Ranges and times that run forwards, so that more is made of them.
        size = _PAGE * gen.integers(1, 8, count).astype(np.uint64)
        events["end"] = events["start"] + size
        events["size"] = rng.choice((_PAGE, 1 << 21, _PAGE * 4))
        events["ts"] = 10**9 + np.cumsum(gen.integers(0, 1000, count))
        events["ts_entry"] = events["ts"] - gen.integers(0, 5000, count).astype("u8")
    payloads: list[bytes | None] = []
    for row in events["kind"].tolist():
        long = rng.random() < 0.01
        if row == EventKind.SNAP_RANGES:
            pairs = rng.randint(0, 4)
            words = [_BASE + _PAGE * rng.randrange(40), _PAGE * rng.randint(1, 8)]
            text = struct.pack("=2Q", *words) * pairs
            if rng.random() < 0.2:
                text = rng.randbytes(rng.choice((0, 1, 15, 16, 17, 160)))
            payloads.append(text)
        elif row in (EventKind.STACK, EventKind.COMM) or long:
            text = rng.choice((b"", b"a", b"do_mbind+0x10\nksys_mbind+0x20", b"\xff\n"))
            payloads.append(text * (1000 if long else 1))
        else:
            payloads.append(None)
    return events, payloads


def wild(rng: random.Random, data: bytes) -> bytes:
    """A file that is whole, of rows that no kernel has made."""
    header = recorded()[0]
    count = rng.choice((1, 10, 30))
    return write(header, [wild_events(rng, count) for _ in range(3)], LOST)


def wilder(rng: random.Random, data: bytes) -> bytes:
    """Real rows, of which some values are others."""
    header, events, payloads = recorded()
    first = rng.randrange(len(events) - 10 * ROWS)
    part = slice(first, first + 10 * ROWS)
    mine = events[part].copy()
    for _ in range(rng.randint(1, 10)):
        name = rng.choice(EVENT_DTYPE.names or ())
        row, kind = rng.randrange(len(mine)), EVENT_DTYPE[name]
        other = int(mine[rng.randrange(len(mine))][name])
        value = rng.choice((other, rng.choice(NUMBERS), rng.getrandbits(64)))
        bits = np.array(value % (1 << 64), np.uint64).tobytes()[: kind.itemsize]
        mine[name][row] = np.frombuffer(bits, kind)[0]
    some = list(payloads[part])
    return write(header, [(mine[:ROWS], some[:ROWS]), (mine[ROWS:], some[ROWS:])], LOST)


RAW: Final[tuple[Damage, ...]] = (
    *(flip, flip_metadata, numbers, cut, shuffle, rubbish),
    *(flip_values, number_values, header_json, mark_json),
)
MADE_UP: Final[tuple[Damage, ...]] = (wild, wilder)


def damaged(seed: int, number: int) -> tuple[str, bytes]:
    """Return the name of a kind of damage and a file that has it."""
    rng = random.Random(f"{seed} {number}")
    way = rng.choice(MADE_UP if rng.random() < 0.02 else RAW)
    data = way(rng, rng.choice(bases()))
    if way not in MADE_UP and rng.random() < 0.2 and len(data) > 8:
        data = flip(rng, data)
    return way.__name__, data
