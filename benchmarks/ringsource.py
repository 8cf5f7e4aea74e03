"""A ring and a BPF program that fills it, natively, as often as one says.

No guest and no compiler: a socket filter, assembled here by hand, is run by
BPF_PROG_TEST_RUN. So how many events there must be is known to the last one.
"""

from __future__ import annotations

import ctypes
import os
import platform
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

SYS_BPF = {"x86_64": 321, "aarch64": 280, "ppc64le": 361, "riscv64": 280}
MAP_CREATE, MAP_LOOKUP, PROG_LOAD, PROG_TEST_RUN = 0, 1, 5, 10
MAP_ARRAY, MAP_RINGBUF = 2, 27
SOCKET_FILTER = 1
NO_WAKEUP, FORCE_WAKEUP = 1, 2

LIBC = ctypes.CDLL(None, use_errno=True)


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


def _filled(template: bytes) -> bytes:
    """*r0 = template, word by word; its first 8 bytes are the number, in r8."""
    words = struct.unpack(f"={len(template) // 4}i", template)
    return b"".join(
        insn(0x62, 0, off=4 * place, imm=word) for place, word in enumerate(words)
    ) + insn(0x7B, 0, 8, 0)


def _numbered(size: int) -> bytes:
    """*r0 = zeros, but for the number, in r8, in the first and the last 8 bytes."""
    body = b"".join(insn(0x7A, 0, off=off, imm=0) for off in range(0, size, 8))
    return body + insn(0x7B, 0, 8, 0) + insn(0x7B, 0, 8, size - 8)


def _submit(ring_fd: int, mark: int | None, size: int) -> bytes:
    """Submit r0. mark: wake the consumer when so many bytes wait, as cdmtrace does."""
    if mark is None:
        return insn(0xBF, 1, 0) + mov(2, 0) + call(132)
    return b"".join(
        [
            insn(0xBF, 6, 0) + load_map(1, ring_fd) + mov(2, 0),
            call(134),  # bpf_ringbuf_query: what is there and not taken
            insn(0x17, 0, imm=mark) + mov(2, NO_WAKEUP),
            insn(0x35, 0, off=1, imm=64 * size) + mov(2, FORCE_WAKEUP),
            insn(0xBF, 1, 6) + call(132),
        ]
    )


def program(
    fds: tuple[int, int],
    size: int,
    discard_every: int,
    template: bytes | None,
    mark: int | None,
) -> bytes:
    """Return a program that puts one record of size bytes, numbered from 0.

    fds: of the ring, and of the counts: u64 runs so far, u64 lost. Every
    discard_every-th run gives its record up (0: none does).
    """
    ring_fd, counts_fd = fds
    body = _filled(template) if template else _numbered(size)
    submit = _submit(ring_fd, mark, size) + mov(0, 0) + EXIT
    if discard_every:
        # The last run of each round jumps over the submit.
        body += insn(0xBF, 3, 8) + insn(0x97, 3, imm=discard_every)
        body += insn(0x15, 3, off=len(submit) // 8, imm=discard_every - 1)
        body += submit + insn(0xBF, 1, 0) + mov(2, 0) + call(133) + mov(0, 0) + EXIT
    else:
        body += submit
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
    """A ring, and who fills it: ``run(n)`` n times; ``counts()``: (runs, lost)."""

    ring_fd: int
    run: Callable[[int], None]
    counts: Callable[[], tuple[int, int]]


@contextmanager
def source(
    ring_size: int,
    *,
    size: int = 128,
    discard_every: int = 0,
    template: bytes | None = None,
    mark: int | None = None,
) -> Iterator[Source]:
    """Make them. template: what a record is like; None: zeros.

    Raises OSError; AssertionError with the verifier's words if it refuses the program.
    """
    fds: list[int] = []
    try:
        fds.append(bpf(MAP_CREATE, struct.pack("=5I", MAP_RINGBUF, 0, 0, ring_size, 0)))
        fds.append(bpf(MAP_CREATE, struct.pack("=5I", MAP_ARRAY, 4, 16, 1, 0)))
        fds.append(
            _load(program((fds[0], fds[1]), size, discard_every, template, mark))
        )
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


def _load(code: bytes) -> int:
    log = ctypes.create_string_buffer(1 << 16)
    text, license_ = ctypes.create_string_buffer(code), ctypes.create_string_buffer(4)
    license_.value = b"GPL"
    attr = struct.pack(
        "=IIQQIIQ",
        *(SOCKET_FILTER, len(code) // 8),
        *(ctypes.addressof(text), ctypes.addressof(license_)),
        *(1, len(log), ctypes.addressof(log)),
    )
    try:
        return bpf(PROG_LOAD, attr)
    except OSError as error:
        if not log.value:
            raise
        raise AssertionError(f"bpf(2): {error}\n{log.value.decode()}") from error
