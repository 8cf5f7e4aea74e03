"""A trace file that grows, is torn meanwhile, or was cut again."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import simstory
from simfile import save
from simkernel import SimKernel

from cdmtrace.errors import TraceFileError
from cdmtrace.format.follow import Follower
from cdmtrace.format.reader import TraceReader


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    kernel = SimKernel("rfc")
    simstory.tell(kernel)
    kernel.lose("rmap_remove", 0)
    path = save(kernel.trace(), tmp_path_factory.mktemp("whole") / "x.arrows")
    return path.read_bytes()


@pytest.fixture
def fd(tmp_path: Path) -> Iterator[int]:
    fd = os.open(tmp_path / "x.arrows", os.O_RDWR | os.O_CREAT | os.O_APPEND)
    yield fd
    os.close(fd)


def ends(data: bytes, tmp_path: Path) -> list[int]:
    """Return where the header and each batch ends."""
    path = tmp_path / "whole.arrows"
    path.write_bytes(data)
    with TraceReader(path) as trace:
        return [batch.offset for batch in trace]


def test_a_batch_is_read_when_all_of_it_is_there(
    whole: bytes, fd: int, tmp_path: Path
) -> None:
    offsets = [*ends(whole, tmp_path), len(whole) - 8]
    os.write(fd, whole[: offsets[0]])
    follower = Follower(fd, "x")
    done = offsets[0]
    seen = []
    # A few bytes at a time: mostly something is torn.
    for size in range(offsets[0], len(whole) + 1, 997):
        os.write(fd, whole[done:size])
        done = size
        seen += [(batch.offset, size) for batch in follower.new()]
        assert not follower.damage
    os.write(fd, whole[done:])
    seen += [(batch.offset, len(whole)) for batch in follower.new()]
    assert [offset for offset, _ in seen] == offsets[:-1]
    for (_, size), end in zip(seen, offsets[1:], strict=True):
        # At the first look at which it was whole, and not before.
        assert end <= size < end + 997
    assert follower.over
    assert follower.end == "test"


def test_what_is_read_is_what_the_reader_reads(
    whole: bytes, fd: int, tmp_path: Path
) -> None:
    os.write(fd, whole)
    path = tmp_path / "whole.arrows"
    path.write_bytes(whole)
    with TraceReader(path) as trace:
        follower = Follower(fd, "x")
        assert follower.header == trace.header
        pairs = list(zip(follower.new(), trace, strict=True))
        assert len(pairs) == 3
        for mine, theirs in pairs:
            assert mine.mark == theirs.mark
            assert mine.losses == theirs.losses
            assert mine.columns.equals(theirs.columns)
        assert follower.events == trace.info.events


def test_a_part_that_is_cut_off_again(whole: bytes, fd: int, tmp_path: Path) -> None:
    """A full disk: what got through of a batch goes, and comes again."""
    first, second = ends(whole, tmp_path)[:2]
    os.write(fd, whole[: second + 1000])
    follower = Follower(fd, "x")
    assert [batch.offset for batch in follower.new()] == [first]
    os.ftruncate(fd, second)
    assert list(follower.new()) == []
    os.write(fd, whole[second:])
    assert len(list(follower.new())) == 2
    assert follower.end == "test"


@pytest.mark.parametrize("at", [40, -40])
def test_damage_ends_it_and_says_where(
    at: int, whole: bytes, fd: int, tmp_path: Path
) -> None:
    first, second = ends(whole, tmp_path)[:2]
    place = second + at if at < 0 else first + at
    data = bytearray(whole)
    data[place] ^= 0xFF
    os.write(fd, data)
    follower = Follower(fd, "x")
    assert list(follower.new()) == []
    assert follower.damage is not None
    assert f"batch at byte {first}: " in follower.damage
    assert follower.over
    assert follower.end is None


def test_a_length_that_nobody_wrote_is_not_read(
    whole: bytes, fd: int, tmp_path: Path
) -> None:
    """It may be more than there is memory; so it is waited for, and not asked for."""
    first, _ = ends(whole, tmp_path)[:2]
    os.write(fd, whole[:first])
    follower = Follower(fd, "x")
    os.write(fd, b"\xff\xff\xff\xff" + (16 << 20).to_bytes(4, "little") + bytes(64))
    assert list(follower.new()) == []
    assert not follower.over


@pytest.mark.parametrize("size", [0, 3, 23, 1000])
def test_a_header_that_is_not_there_yet(whole: bytes, fd: int, size: int) -> None:
    os.write(fd, whole[:size])
    with pytest.raises(TraceFileError, match=r"x: is "):
        Follower(fd, "x")
