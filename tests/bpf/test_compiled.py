"""The BPF program as it is compiled once and loaded by libbpf, and its maps.

What is attached is for the guest. Here the kernel's verifier looks at every handler.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bpfnumbers import CHOICES, FILTERED, NEWEST, OLDEST, WHOLE

from cdmtrace.kernel import bpf
from cdmtrace.loader import build, libbpf, maps, watch
from cdmtrace.loader.libbpf import LibbpfProgram
from cdmtrace.loader.program import ProgramLoader, ProgramRejected
from cdmtrace.losses import Missing, Waiting, Where
from cdmtrace.probes import PROBES, WATCHPOINT, Kind, following

pytestmark = pytest.mark.bpf


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """Return what clang makes of the program, or has made of these sources."""
    with contextlib.suppress(build.ObjectMissing):
        return build.find()
    path = tmp_path_factory.mktemp("compiled") / build.OBJECT
    build.build(path)
    return path.read_bytes()


def handlers(numbers: dict[str, int]) -> dict[str, Kind]:
    """Return what a recording with these numbers may attach."""
    probes = [*PROBES]
    probes += [following(children=True)] if numbers.get("FOLLOW_PIDS") else []
    probes += [WATCHPOINT] if numbers.get("WATCHED_TGID") else []
    found = {a.handler: a.kind for probe in probes for a in probe.every_attachment}
    return found | ({watch.HANDLER: Kind.WATCHPOINT} if WATCHPOINT in probes else {})


@pytest.fixture
def load(
    compiled: bytes, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., LibbpfProgram]]:
    """Return what has libbpf load the program, every handler that it then has."""
    if os.geteuid() != 0:
        pytest.skip("loading programs needs root")
    if not bpf.has_program_type(bpf.PROG_KPROBE):
        pytest.skip("this kernel takes no such programs")
    monkeypatch.setattr(build, "find", lambda: compiled)
    with contextlib.ExitStack() as loaded:

        def loading(**numbers: int) -> LibbpfProgram:
            program = LibbpfProgram(WHOLE | numbers)
            loaded.callback(program.close)
            program.load(handlers(numbers))
            return program

        yield loading


@pytest.mark.parametrize(
    "numbers",
    [*CHOICES, NEWEST, OLDEST],
    ids=[*map(" ".join, CHOICES), "newest", "oldest"],
)
def test_the_verifier_takes_what_was_compiled_before(
    load: Callable[..., LibbpfProgram], numbers: dict[str, int]
) -> None:
    program = load(**numbers, WATCHED_TGID=71)
    for handler in ("alloc_entry", "alloc_return", "call_exit", watch.HANDLER):
        assert program.program_fd(handler) >= 0
    with pytest.raises(KeyError):
        program.program_fd("no_such")


def test_maps_have_the_sizes_that_were_asked_for(
    load: Callable[..., LibbpfProgram],
) -> None:
    program = load(MAP_SIZE=71, LOST_PLACES=73, RING_PAGES=8, **FILTERED)
    for name, size in (
        *(("entries", 71), ("tgids", 71), ("watched", 71), ("lost_places", 73)),
        *(("events", 8 * mmap.PAGESIZE), ("lost", 1), ("cgroups", 1)),
    ):
        fd = program.map_fd(name)
        told = Path(f"/proc/self/fdinfo/{fd}").read_text()
        assert f"max_entries:\t{size}\n" in told, name


def test_what_nobody_asks_for_is_not_loaded(
    load: Callable[..., LibbpfProgram],
) -> None:
    """No map, and so nothing that would look into it."""
    for numbers, there in (({}, False), (FILTERED, True)):
        program = load(**numbers)
        for name in ("followed", "tgids", "cgroups"):
            if there:
                assert program.map_fd(name) >= 0
            else:
                with pytest.raises(KeyError, match=f"{name} was not asked for"):
                    program.map_fd(name)
    program = load(STACKS=0)
    for name in ("stacks", "watch_asked", "watch_found", "watchpoints"):
        with pytest.raises(KeyError):
            program.map_fd(name)
    ProgramLoader(program).forget()


def test_a_map_holds_what_is_put_into_it(load: Callable[..., LibbpfProgram]) -> None:
    loader = ProgramLoader(load(**FILTERED))
    assert loader.lost() == {}
    assert loader.waiting() == []
    for pid in (71, 73):
        loader.follow(pid, True)
    loader.follow(71, False)
    loader.follow(71, False)
    assert [int(key) for key, _ in loader.map("tgids").items()] == [73]
    entries = loader.map("entries")
    begun = np.zeros((), maps.RECORDS["entry"])
    begun["probe"], begun["id"], begun["pid"], begun["touched"] = 5, 77, 71, 1
    begun["arg"] = range(6)
    entries.put(begun, 3 << 32 | 79)
    assert loader.waiting() == [
        Waiting(
            probe=5, call=77, concerns=True, pid=71, tid=79, args=(0, 1, 2, 3, 4, 5)
        )
    ]
    with pytest.raises(OSError, match=r"entries cannot be written: .*"):
        for key in range(100):
            entries.put(begun, key)
    loader.forget()
    assert loader.waiting() == []


def test_losses_are_added_up_over_all_cpus(load: Callable[..., LibbpfProgram]) -> None:
    loader = ProgramLoader(load())
    places = loader.map("lost_places")
    each = np.zeros_like(loader.only("lost")[:, ...], maps.RECORDS["lost_place"])
    each["count"][0], each["start"][0], each["end"][0] = 2, 100, 200
    each["count"][-1] += 3
    each["start"][-1], each["end"][-1] = 50, 70
    places.put(each, np.array((9, 7, 1), maps.RECORDS["lost_key"]))
    places.put(np.zeros_like(each), np.array((9, 8, 1), maps.RECORDS["lost_key"]))
    total = loader.only("lost")
    total["n"][0, 4, 2] = 1
    total["n"][-1, 4, 2] += 4
    loader.map("lost").put(total)
    assert loader.lost() == {
        Where(7, 1, 9): Missing(5, 50, 200),
        Where(4, 2): Missing(5),
    }


def test_a_program_that_is_closed_twice(load: Callable[..., LibbpfProgram]) -> None:
    program = load()
    program.close()
    program.close()


@pytest.mark.parametrize(
    ("handler", "words", "named"),
    [
        # Nobody is named, so there is no map of names that it could look into.
        ("task_new", "map_tgids", True),
        ("no_such", "there is no handler no_such", False),
    ],
)
def test_what_cannot_be_loaded_is_told(
    compiled: bytes,
    monkeypatch: pytest.MonkeyPatch,
    handler: str,
    words: str,
    named: bool,
) -> None:
    if os.geteuid() != 0:
        pytest.skip("loading programs needs root")
    monkeypatch.setattr(build, "find", lambda: compiled)
    with (
        contextlib.closing(LibbpfProgram(WHOLE)) as program,
        pytest.raises(ProgramRejected, match="kernel refuses") as caught,
    ):
        program.load({handler: Kind.KPROBE})
    assert words in str(caught.value)
    assert "refuses the BPF program: task_new: " in str(caught.value) or not named


def test_a_log_is_kept_to_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """The verifier's are long, and libbpf hands them over in one piece."""
    text = "\n".join(f"line {number}" for number in range(30_000))
    told: list[Any] = []

    class Library:
        @staticmethod
        def libbpf_set_print(function: Any) -> int:
            told.append(function)
            return 0

    # A va_list whose registers are used up, so that its one argument is in memory.
    argument = ctypes.c_char_p(text.encode())
    place = ctypes.addressof(argument)
    rest = ctypes.create_string_buffer(struct.pack("IIQQ", 48, 304, place, 0), 24)
    monkeypatch.setattr(libbpf, "_library", lambda: Library)
    lines: list[str] = []
    with libbpf._heard(lines):
        assert told[0](1, b"%s", ctypes.addressof(rest)) == 0
    assert lines == text.split("\n")


def test_what_is_no_program(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "find", lambda: b"\x7fELF nothing of the kind")
    with pytest.raises(ProgramRejected, match="cannot open") as caught:
        LibbpfProgram(WHOLE)
    assert "elf" in (caught.value.details or "").lower()
