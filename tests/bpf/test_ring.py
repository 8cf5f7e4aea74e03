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
import struct
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

import pytest

from cdmtrace.errors import RingError
from cdmtrace.events import EVENT_DTYPE
from cdmtrace.ring import HEADER_SIZE, Ring

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import numpy as np

pytestmark = pytest.mark.bpf

RING_SIZE = 64 * mmap.PAGESIZE
STRIDE = HEADER_SIZE + EVENT_DTYPE.itemsize
ROOM = RING_SIZE // STRIDE

SYS_BPF = {"x86_64": 321, "aarch64": 280, "ppc64le": 361, "riscv64": 280}
MAP_CREATE, MAP_LOOKUP, PROG_LOAD, PROG_TEST_RUN = 0, 1, 5, 10
MAP_ARRAY, MAP_RINGBUF = 2, 27
SOCKET_FILTER = 1

LIBC = ctypes.CDLL(None, use_errno=True)


def require(condition: object, reason: str) -> None:
    """Skip, or fail where CDMTRACE_KERNEL_TESTS=1 says that nothing may be."""
    if condition:
        return
    if os.environ.get("CDMTRACE_KERNEL_TESTS") == "1":
        pytest.fail(reason)
    pytest.skip(reason)


def bpf(command: int, attr: bytes) -> int:
    """bpf(2). Raises OSError."""
    buffer = ctypes.create_string_buffer(attr.ljust(144, b"\0"), 144)
    got = LIBC.syscall(SYS_BPF[platform.machine()], command, buffer, 144)
    if got < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return int(got)


def insn(code: int, dst: int = 0, src: int = 0, off: int = 0, imm: int = 0) -> bytes:
    """One instruction (include/uapi/linux/bpf.h, struct bpf_insn)."""
    return struct.pack("=BBhi", code, dst | src << 4, off, imm)


def load_map(dst: int, fd: int) -> bytes:
    return insn(0x18, dst, 1, 0, fd) + insn(0)  # dst = map fd, 16 bytes


def mov(dst: int, imm: int) -> bytes:
    return insn(0xB7, dst, imm=imm)


def call(helper: int) -> bytes:
    return insn(0x85, imm=helper)


EXIT = insn(0x95)


def program(ring_fd: int, counts_fd: int, discard_every: int, size: int) -> bytes:
    """Return a program that puts one record of size bytes, numbered from 0.

    The number is in its first and its last 8 bytes. counts: u64 runs so far,
    u64 lost. Every discard_every-th run gives its record up (0: none does).
    """
    body = b"".join(insn(0x7A, 0, off=off, imm=0) for off in range(0, size, 8))
    body += insn(0x7B, 0, 8, 0)  # first = r8
    body += insn(0x7B, 0, 8, size - 8)  # last = r8
    body += insn(0xBF, 1, 0) + mov(2, 0)
    if discard_every:
        submit = call(132) + mov(0, 0) + EXIT
        # The last run of each round jumps over the submit.
        body += insn(0xBF, 3, 8) + insn(0x97, 3, imm=discard_every)
        body += insn(0x15, 3, off=len(submit) // 8, imm=discard_every - 1)
        body += submit + call(133) + mov(0, 0) + EXIT
    else:
        body += call(132) + mov(0, 0) + EXIT
    lost = mov(1, 1) + insn(0xDB, 7, 1, 8, 0) + mov(0, 0) + EXIT
    return b"".join(
        [
            insn(0x62, 10, off=-4, imm=0),  # *(u32 *)(r10 - 4) = 0
            load_map(1, counts_fd),
            insn(0xBF, 2, 10) + insn(0x07, 2, imm=-4),
            call(1),  # bpf_map_lookup_elem
            insn(0x55, 0, off=2, imm=0) + mov(0, 0) + EXIT,
            insn(0xBF, 7, 0),
            mov(8, 1) + insn(0xDB, 7, 8, 0, 0x01),  # r8 = fetch_add(r7, 1)
            load_map(1, ring_fd),
            mov(2, size) + mov(3, 0) + call(131),  # bpf_ringbuf_reserve
            insn(0x55, 0, off=len(lost) // 8, imm=0) + lost,
            body,
        ]
    )


class Source(NamedTuple):
    """A ring and a program that fills it."""

    ring_fd: int
    run: Callable[[int], None]
    counts: Callable[[], tuple[int, int]]


@contextmanager
def source(
    discard_every: int = 0, size: int = EVENT_DTYPE.itemsize
) -> Iterator[Source]:
    require(platform.machine() in SYS_BPF, f"no bpf(2) number for {platform.machine()}")
    fds: list[int] = []
    try:
        try:
            fds.append(
                bpf(MAP_CREATE, struct.pack("=5I", MAP_RINGBUF, 0, 0, RING_SIZE, 0))
            )
            fds.append(bpf(MAP_CREATE, struct.pack("=5I", MAP_ARRAY, 4, 16, 1, 0)))
            code = program(fds[0], fds[1], discard_every, size)
            log = ctypes.create_string_buffer(1 << 16)
            text, license_ = ctypes.create_string_buffer(code), b"GPL\0"
            keep = ctypes.create_string_buffer(license_)
            attr = struct.pack(
                "=IIQQIIQ",
                *(SOCKET_FILTER, len(code) // 8),
                *(ctypes.addressof(text), ctypes.addressof(keep)),
                *(1, len(log), ctypes.addressof(log)),
            )
            fds.append(bpf(PROG_LOAD, attr))
        except PermissionError:
            require(False, "bpf(2) is not permitted here: run the tests as root")
        except OSError as error:
            # A program that the verifier refuses is a bug here, never a skip.
            said = log.value.decode() if len(fds) == 2 else ""
            pytest.fail(f"bpf(2): {error}\n{said}")
        ring_fd, counts_fd, prog_fd = fds

        def run(times: int) -> None:
            packet = ctypes.create_string_buffer(64)
            attr = struct.pack(
                "=IIIIQQII", prog_fd, 0, 64, 0, ctypes.addressof(packet), 0, times, 0
            )
            bpf(PROG_TEST_RUN, attr)

        def counts() -> tuple[int, int]:
            key, value = ctypes.c_uint32(0), (ctypes.c_uint64 * 2)()
            where = ctypes.addressof(key), ctypes.addressof(value)
            bpf(MAP_LOOKUP, struct.pack("=IIQQQ", counts_fd, 0, *where, 0))
            return int(value[0]), int(value[1])

        yield Source(ring_fd, run, counts)
    finally:
        for fd in fds:
            os.close(fd)


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
