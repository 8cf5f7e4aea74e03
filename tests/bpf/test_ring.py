"""The drain against a real ring, filled by a BPF program in this kernel.

No guest and no compiler: a socket filter, assembled here by hand, is run by
BPF_PROG_TEST_RUN as often as we say, so how many events there must be is
known to the last one.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import platform
import select
import threading
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

import pytest
import ringsource

from cdmtrace.errors import RingError
from cdmtrace.events import EVENT_DTYPE
from cdmtrace.ring import HEADER_SIZE, Ring

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy as np

pytestmark = pytest.mark.bpf

RING_SIZE = 64 * mmap.PAGESIZE
STRIDE = HEADER_SIZE + EVENT_DTYPE.itemsize
ROOM = RING_SIZE // STRIDE


def require(condition: object, reason: str) -> None:
    """Skip, or fail where CDMTRACE_KERNEL_TESTS=1 says that nothing may be."""
    if condition:
        return
    if os.environ.get("CDMTRACE_KERNEL_TESTS") == "1":
        pytest.fail(reason)
    pytest.skip(reason)


@contextmanager
def source(
    discard_every: int = 0, size: int = EVENT_DTYPE.itemsize
) -> Iterator[ringsource.Source]:
    """A ring of RING_SIZE, or a skip where bpf(2) is not to be had."""
    require(
        platform.machine() in ringsource.SYS_BPF,
        f"no bpf(2) number for {platform.machine()}",
    )
    with ExitStack() as stack:
        try:
            made = stack.enter_context(
                ringsource.source(RING_SIZE, size=size, discard_every=discard_every)
            )
        except PermissionError:
            require(False, "bpf(2) is not permitted here: run the tests as root")
        yield made


def numbers(events: np.ndarray) -> list[int]:
    """Return each event's number, having seen that it is whole."""
    raw = events.view("=u8").reshape(-1, EVENT_DTYPE.itemsize // 8)
    assert (raw[:, 0] == raw[:, -1]).all()
    assert not raw[:, 1:-1].any()
    return raw[:, 0].tolist()


def test_known_count() -> None:
    with source() as src, Ring(src.ring_fd, RING_SIZE, EVENT_DTYPE) as ring:
        src.run(23)
        assert numbers(ring.drain()) == list(range(23))
        assert numbers(ring.drain()) == []
        assert src.counts() == (23, 0)


def test_wraps_fifty_times() -> None:
    """A record that does not divide the ring lies across its end, often."""
    assert RING_SIZE % STRIDE
    with source() as src, Ring(src.ring_fd, RING_SIZE, EVENT_DTYPE) as ring:
        got: list[int] = []
        while len(got) < 50 * ROOM:
            src.run(1009)
            got += numbers(ring.drain())
        assert got == list(range(len(got)))
        assert src.counts() == (len(got), 0)


def test_discards() -> None:
    with (
        source(discard_every=5) as src,
        Ring(src.ring_fd, RING_SIZE, EVENT_DTYPE) as ring,
    ):
        src.run(101)
        assert numbers(ring.drain()) == [n for n in range(101) if n % 5 != 4]
        assert ring.pending == 0


def test_overflow_is_counted_to_the_last_event() -> None:
    produced = 10007
    with source() as src, Ring(src.ring_fd, RING_SIZE, EVENT_DTYPE) as ring:
        src.run(produced)
        kept = numbers(ring.drain())
        runs, lost = src.counts()
        assert runs == produced
        assert lost > 0
        assert len(kept) + lost == produced
        assert kept == list(range(len(kept)))
        # and it goes on as if nothing had been
        src.run(23)
        assert numbers(ring.drain()) == list(range(produced, produced + 23))


def test_overflow_with_discards() -> None:
    """A record that is given up takes its room all the same."""
    produced = 10007
    with (
        source(discard_every=7) as src,
        Ring(src.ring_fd, RING_SIZE, EVENT_DTYPE) as ring,
    ):
        src.run(produced)
        kept = numbers(ring.drain())
        runs, lost = src.counts()
        reserved = runs - lost
        assert kept == [n for n in range(reserved) if n % 7 != 6]


def test_partial_drains() -> None:
    with source() as src, Ring(src.ring_fd, RING_SIZE, EVENT_DTYPE) as ring:
        src.run(101)
        parts = [numbers(ring.drain(17)) for _ in range(7)]
        assert [len(part) for part in parts] == [17, 17, 17, 17, 17, 16, 0]
        assert [n for part in parts for n in part] == list(range(101))


@pytest.mark.parametrize("producers", [1, 2])
def test_drain_beside_producers(producers: int) -> None:
    """Kept and lost add up while the ring is filled and emptied at once."""
    each = 200003
    with source() as src, Ring(src.ring_fd, RING_SIZE, EVENT_DTYPE) as ring:
        threads = [
            threading.Thread(target=src.run, args=(each,)) for _ in range(producers)
        ]
        for thread in threads:
            thread.start()
        got: list[int] = []
        while any(thread.is_alive() for thread in threads):
            got += numbers(ring.drain())
        for thread in threads:
            thread.join()
        got += numbers(ring.drain())
        runs, lost = src.counts()
        assert runs == producers * each
        assert len(got) + lost == runs
        assert len(set(got)) == len(got)
        if producers == 1:
            assert got == sorted(got)
        assert ring.pending == 0


def test_epoll() -> None:
    with (
        source() as src,
        Ring(src.ring_fd, RING_SIZE, EVENT_DTYPE) as ring,
        select.epoll() as poll,
    ):
        poll.register(ring.fileno(), select.EPOLLIN)
        assert poll.poll(0) == []
        src.run(1)
        assert poll.poll(1) == [(ring.fileno(), select.EPOLLIN)]
        ring.drain()
        assert poll.poll(0) == []


def test_record_of_another_size() -> None:
    with source(size=64) as src, Ring(src.ring_fd, RING_SIZE, EVENT_DTYPE) as ring:
        src.run(23)
        with pytest.raises(RingError, match=r"a record of 64 bytes .* records of 128"):
            ring.drain()


def test_size_that_is_not_the_rings() -> None:
    with source() as src, pytest.raises(OSError, match="Invalid argument"):
        Ring(src.ring_fd, 2 * RING_SIZE, EVENT_DTYPE)


def test_libbpf_sees_the_same() -> None:
    """Another consumer, of other authors, on the same sequence of events."""
    try:
        libbpf = ctypes.CDLL("libbpf.so.1")
    except OSError:
        require(False, "libbpf.so.1 is missing: apt-get install libbpf1")
    kind = ctypes.CFUNCTYPE(
        ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t
    )
    theirs: list[bytes] = []

    def sample(_: int, data: int, size: int) -> int:
        theirs.append(ctypes.string_at(data, size))
        return 0

    libbpf.ring_buffer__new.restype = ctypes.c_void_p
    libbpf.ring_buffer__consume.argtypes = [ctypes.c_void_p]
    libbpf.ring_buffer__free.argtypes = [ctypes.c_void_p]
    callback = kind(sample)
    with source(discard_every=5) as src:
        rings = libbpf.ring_buffer__new(src.ring_fd, callback, None, None)
        assert rings
        for _ in range(7):
            src.run(1009)
            libbpf.ring_buffer__consume(rings)
        libbpf.ring_buffer__free(rings)
    with (
        source(discard_every=5) as src,
        Ring(src.ring_fd, RING_SIZE, EVENT_DTYPE) as ring,
    ):
        ours = []
        for _ in range(7):
            src.run(1009)
            ours += [event.tobytes() for event in ring.drain()]
    assert len(ours) == 7 * 1009 - 7 * 1009 // 5
    assert ours == theirs
