"""Take events out of a BPF ring buffer, many at a time.

The ring is mapped and read with numpy: one copy for a whole span of records,
45 ns an event where bcc's callback into Python takes 1773.

Layout (kernel/bpf/ringbuf.c, "ringbuf_map_mmap_kern" and its neighbours): the
first page holds the consumer's position, the second one the producer's, then
the data twice in a row, so that a span that wraps is still contiguous. A
record is a header of 8 bytes (u32 length, with bit 31 set while the producer
is busy with it and bit 30 if it gave it up; u32 page offset), then the
payload, rounded up to 8. Positions only grow; modulo the size they are places.

Every record here has the same size, so all headers of a span are one strided
column.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import platform
from typing import TYPE_CHECKING, Any, Final, Self

import numpy as np
import numpy.typing as npt

from cdmtrace.errors import RingError, apt_hint

if TYPE_CHECKING:
    from types import TracebackType

__all__ = ["HEADER_SIZE", "Ring"]

HEADER_SIZE: Final = 8
"""Bytes before each record in the ring."""

_BUSY: Final = 1 << 31
_DISCARDED: Final = 1 << 30
_LENGTH: Final = _DISCARDED - 1

# These never let a load pass an earlier load, nor a store an earlier one.
_STRONGLY_ORDERED: Final = frozenset({"x86_64", "i386", "i486", "i586", "i686"})
_SEQ_CST: Final = 5


class Ring:
    """The consumer's end of a BPF_MAP_TYPE_RINGBUF. There may be only one.

    For epoll, register ``fileno()`` for EPOLLIN: it is ready while there is
    anything in the ring.
    """

    def __init__(self, fd: int, size: int, dtype: np.dtype[Any]) -> None:
        """Map the ring.

        fd: the map's; it stays the caller's to close, after close(). size:
        bytes of data, the map's max_entries. dtype: of every record.

        Raises OSError if the fd is not a ring of that size, ValueError if
        size is no power of two of whole pages.
        """
        page = mmap.PAGESIZE
        if size < page or size & (size - 1):
            raise ValueError(f"a ring of {size} bytes is no power of two of pages")
        self._fd = fd
        self._size = size
        self._dtype = dtype
        self._stride = HEADER_SIZE + (dtype.itemsize + 7) // 8 * 8
        self._record = np.dtype(
            {
                "names": ["length", "payload"],
                # Opaque bytes: numpy copies a structured type field by field.
                "formats": ["=u4", f"V{dtype.itemsize}"],
                "offsets": [0, HEADER_SIZE],
                "itemsize": self._stride,
            }
        )
        self._consumer_map = mmap.mmap(
            fd, page, prot=mmap.PROT_READ | mmap.PROT_WRITE, offset=0
        )
        try:
            self._producer_map = mmap.mmap(
                fd, page + 2 * size, prot=mmap.PROT_READ, offset=page
            )
        except BaseException:
            self._consumer_map.close()
            raise
        self._consumer: npt.NDArray[np.uint64] = np.frombuffer(
            self._consumer_map, np.uint64, 1
        )
        self._producer: npt.NDArray[np.uint64] = np.frombuffer(
            self._producer_map, np.uint64, 1
        )
        self._fence = _fence()

    @property
    def pending(self) -> int:
        """Bytes that are reserved and not yet taken, busy ones included."""
        return int(self._producer[0]) - int(self._consumer[0])

    def fileno(self) -> int:
        """Return the map's file descriptor."""
        return self._fd

    def drain(self, max_records: int | None = None) -> npt.NDArray[Any]:
        """Take out what is finished, in the order it was reserved; return a copy.

        It looks at no more than max_records records, those that were given up
        included, so it may return fewer while there are more. It stops at the
        first record that is still being written.

        Raises RingError if a record is not of the size of dtype; nothing is
        taken then.
        """
        position = int(self._consumer[0])
        # Acquire: a header is looked at only after the position that covers
        # it. (The producer sets the busy bit before it moves the position.)
        produced = int(self._producer[0])
        self._fence()
        waiting = (produced - position) // self._stride
        if max_records is not None:
            waiting = min(waiting, max_records)
        if not waiting:
            self._expect_whole(produced - position)
            return np.empty(0, self._dtype)
        place = mmap.PAGESIZE + (position & (self._size - 1))
        records = np.frombuffer(self._producer_map, self._record, waiting, place)
        headers = records["length"].copy()
        # Acquire: a payload is read only after the header that says it is whole.
        self._fence()
        busy = headers & _BUSY != 0
        ready = int(busy.argmax()) if busy.any() else waiting
        headers = headers[:ready]
        wrong = headers & _LENGTH != self._dtype.itemsize
        if wrong.any():
            raise RingError(
                f"a record of {int(headers[wrong.argmax()]) & _LENGTH} bytes in a ring "
                f"of records of {self._dtype.itemsize}"
            )
        kept = headers & _DISCARDED == 0
        payloads = records["payload"][:ready]
        taken = payloads.copy() if kept.all() else payloads[kept]
        # Release: the producer may overwrite them only after they are copied.
        self._fence()
        self._consumer[0] = position + ready * self._stride
        return taken.view(self._dtype)

    def close(self) -> None:
        """Unmap the ring. What drain() returned stays valid."""
        # Arrays on them keep the maps from closing: ours, and those of a
        # drain() whose error is on its way up; the last one to go unmaps.
        del self._consumer, self._producer
        self._consumer_map.close()
        with contextlib.suppress(BufferError):
            self._producer_map.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _expect_whole(self, span: int) -> None:
        """Refuse a ring that holds a record smaller than ours and nothing more."""
        if 0 < span < self._stride:
            raise RingError(
                f"{span} bytes in a ring of records of {self._dtype.itemsize}"
            )


def _no_fence() -> None:
    """Do nothing: the processor keeps the order by itself."""


def _fence() -> Any:
    """Return a function that no load or store passes.

    x86 needs none between loads, nor between a load and a later store, and
    a call into numpy is no place for a compiler to reorder across. arm64 and
    ppc64 need one. Raises RingError where they have no libatomic.
    """
    if platform.machine() in _STRONGLY_ORDERED:
        return _no_fence
    try:
        fence = ctypes.CDLL("libatomic.so.1").atomic_thread_fence
    except (OSError, AttributeError) as error:
        raise RingError(
            f"{platform.machine()} needs memory fences, and libatomic.so.1 is missing",
            hint=apt_hint("libatomic1"),
        ) from error
    fence.argtypes = [ctypes.c_int]
    fence.restype = None
    return lambda: fence(_SEQ_CST)
