"""The drain, against a ring laid out by hand: no kernel, no root."""

from __future__ import annotations

import mmap
import os
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
import pytest

from cdmtrace.errors import RingError
from cdmtrace.ring import HEADER_SIZE, Ring

if TYPE_CHECKING:
    from collections.abc import Iterator

PAGE = mmap.PAGESIZE
SIZE = PAGE
# 8 + 32 bytes do not divide a page: some record lies across its end.
WIDE = np.dtype([("n", "=u8"), ("rest", "V24")])
BUSY, DISCARDED = 1 << 31, 1 << 30


class Producer:
    """The kernel's end: writes both halves, as the kernel's double map does."""

    def __init__(self, fd: int, record: np.dtype[np.void]) -> None:
        self.fd = fd
        self.record = record
        self.stride = HEADER_SIZE + (record.itemsize + 7) // 8 * 8
        self.position = 0

    def header(self, position: int, flags: int, length: int | None = None) -> None:
        length = self.record.itemsize if length is None else length
        self.poke(position, np.array([length | flags, 0], "=u4").tobytes())

    def put(self, n: int, flags: int = 0, length: int | None = None) -> int:
        """Put one record; return where it is."""
        at = self.position
        row = np.zeros(1, self.record)
        row["n"] = n
        self.header(at, flags, length)
        self.poke(at + HEADER_SIZE, row.tobytes())
        self.position += self.stride
        self.publish()
        return at

    def publish(self) -> None:
        os.pwrite(self.fd, np.array([self.position], "=u8").tobytes(), PAGE)

    def poke(self, position: int, data: bytes) -> None:
        for i, byte in enumerate(data):
            place = 2 * PAGE + (position + i) % SIZE
            os.pwrite(self.fd, bytes([byte]), place)
            os.pwrite(self.fd, bytes([byte]), place + SIZE)

    def consumed(self) -> int:
        return int(np.frombuffer(os.pread(self.fd, 8, 0), "=u8")[0])


@contextmanager
def made(record: np.dtype[np.void]) -> Iterator[tuple[Ring, Producer]]:
    fd = os.memfd_create("ring")
    os.truncate(fd, 2 * PAGE + 2 * SIZE)
    try:
        with Ring(fd, SIZE, record) as ring:
            yield ring, Producer(fd, record)
    finally:
        os.close(fd)


@pytest.fixture
def pair() -> Iterator[tuple[Ring, Producer]]:
    with made(WIDE) as both:
        yield both


def test_empty(pair: tuple[Ring, Producer]) -> None:
    ring, _ = pair
    got = ring.drain()
    assert got.dtype == WIDE
    assert got.tolist() == []
    assert ring.pending == 0


def test_order_and_position(pair: tuple[Ring, Producer]) -> None:
    ring, producer = pair
    for n in range(23):
        producer.put(n)
    assert ring.pending == 23 * producer.stride
    assert ring.drain()["n"].tolist() == list(range(23))
    assert producer.consumed() == producer.position
    assert ring.pending == 0


def test_stops_at_busy(pair: tuple[Ring, Producer]) -> None:
    ring, producer = pair
    producer.put(0)
    busy = producer.put(1, BUSY)
    producer.put(2)
    assert ring.drain()["n"].tolist() == [0]
    assert producer.consumed() == busy
    assert ring.drain()["n"].tolist() == []
    producer.header(busy, 0)
    assert ring.drain()["n"].tolist() == [1, 2]


def test_discarded_beyond_a_busy_one(pair: tuple[Ring, Producer]) -> None:
    ring, producer = pair
    producer.put(0)
    producer.put(1, BUSY)
    producer.put(2, DISCARDED)
    assert ring.drain()["n"].tolist() == [0]


def test_skips_discarded(pair: tuple[Ring, Producer]) -> None:
    ring, producer = pair
    for n in range(10):
        producer.put(n, DISCARDED if n % 3 == 0 else 0)
    assert ring.drain()["n"].tolist() == [1, 2, 4, 5, 7, 8]
    assert producer.consumed() == producer.position


def test_only_discarded(pair: tuple[Ring, Producer]) -> None:
    ring, producer = pair
    producer.put(0, DISCARDED)
    assert ring.drain()["n"].tolist() == []
    assert producer.consumed() == producer.position


def test_busy_and_later_discarded(pair: tuple[Ring, Producer]) -> None:
    ring, producer = pair
    at = producer.put(0, BUSY)
    assert ring.drain()["n"].tolist() == []
    producer.header(at, DISCARDED)
    producer.put(1)
    assert ring.drain()["n"].tolist() == [1]


def test_max_records(pair: tuple[Ring, Producer]) -> None:
    ring, producer = pair
    for n in range(10):
        producer.put(n)
    assert ring.drain(0)["n"].tolist() == []
    assert ring.drain(7)["n"].tolist() == list(range(7))
    assert ring.drain(7)["n"].tolist() == [7, 8, 9]


def test_wraps(pair: tuple[Ring, Producer]) -> None:
    ring, producer = pair
    assert SIZE % producer.stride != 0, "or no record lies across the end"
    put, got = 0, []
    while producer.position < 5 * SIZE:
        for _ in range(17):
            producer.put(put)
            put += 1
        got += ring.drain()["n"].tolist()
    assert got == list(range(put))


def test_result_is_a_copy(pair: tuple[Ring, Producer]) -> None:
    ring, producer = pair
    at = producer.put(7)
    got = ring.drain()
    producer.poke(at, b"\xff" * producer.stride)
    assert got["n"].tolist() == [7]


def test_payload_that_is_no_multiple_of_eight() -> None:
    with made(np.dtype([("n", "=u8"), ("x", "u1")])) as (ring, producer):
        assert producer.stride == HEADER_SIZE + 16
        for n in range(5):
            producer.put(n)
        assert ring.drain()["n"].tolist() == list(range(5))


@pytest.mark.parametrize("length", [8, 31, 33, 64])
def test_record_of_another_size(pair: tuple[Ring, Producer], length: int) -> None:
    ring, producer = pair
    producer.put(0)
    producer.put(1, 0, length)
    with pytest.raises(RingError, match=f"a record of {length} bytes .* records of 32"):
        ring.drain()
    assert producer.consumed() == 0


def test_error_passes_through_the_with_statement() -> None:
    def use_it() -> None:
        with made(WIDE) as (ring, producer):
            producer.put(0, 0, 8)
            ring.drain()

    with pytest.raises(RingError, match="a record of 8 bytes"):
        use_it()


def test_a_lone_smaller_record(pair: tuple[Ring, Producer]) -> None:
    ring, producer = pair
    producer.header(0, 0, 8)
    producer.position = 16
    producer.publish()
    with pytest.raises(RingError, match="16 bytes in a ring of records of 32"):
        ring.drain()


@pytest.mark.parametrize("size", [0, 1, PAGE // 2, 3 * PAGE, PAGE + 8])
def test_impossible_size(size: int) -> None:
    with pytest.raises(ValueError, match="is no power of two of pages"):
        Ring(0, size, WIDE)


def test_fd_that_is_no_ring() -> None:
    fd = os.open("/dev/null", os.O_RDWR)
    try:
        with pytest.raises(OSError, match="No such device"):
            Ring(fd, SIZE, WIDE)
    finally:
        os.close(fd)


def test_results_outlive_the_ring() -> None:
    with made(WIDE) as (ring, producer):
        producer.put(7)
        got = ring.drain()
    assert got["n"].tolist() == [7]
