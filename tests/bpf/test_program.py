"""The BPF program itself: no warning from the compiler, no word from the verifier.

Both need no more than some kernel's headers and the right to load programs: what
is attached, and to what, is for the guest (tests/kernel/test_record.py), where the
same flags are used. So this one is skipped, and never failed, without headers.
"""

from __future__ import annotations

import contextlib
import functools
import os
import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from bpfnumbers import CHOICES, FILTERED, NEWEST, OLDEST, WHOLE

from cdmtrace.kernel import bpf, headers
from cdmtrace.lab.paths import Layout
from cdmtrace.lab.specs import BUILT, DEFAULT_KERNEL
from cdmtrace.loader import watch
from cdmtrace.loader.bcc import BccProgram, import_bcc
from cdmtrace.loader.program import ProgramRejected
from cdmtrace.loader.sources import BPF_DIRECTORY, WATCH, program_text
from cdmtrace.probes import PROBES, WATCHPOINT, Kind, following

pytestmark = [
    pytest.mark.bpf,
    # bcc says that of every name that it is given as text.
    pytest.mark.filterwarnings("ignore:not a bytes object:DeprecationWarning"),
]

OLDER = re.findall(
    r"^int (\w+)\(", (BPF_DIRECTORY / "older.bpf.c").read_text(), re.MULTILINE
)

STRICT = ["-Wall", "-Wextra", "-Werror", "-Wno-unused-parameter"]

# Before a fixture puts an empty cache in its place.
LAB = Layout.default()


def find_headers(unpacked: Path) -> Path | None:
    """Return the running kernel's headers, else those in the lab's kernel."""
    found = headers.find()
    if found is not None and found != headers.KHEADERS:
        return found
    packed = [found] if found else []
    objects = f"obj-{BUILT[DEFAULT_KERNEL].patches.name}"
    packed += sorted(LAB.work.glob(f"*/{objects}/kernel/kheaders_data.tar.xz"))
    if not packed:
        return None
    words = ["tar", "-xJf", str(packed[0]), "-C", str(unpacked)]
    subprocess.run(words, check=True)
    return unpacked


@pytest.fixture(scope="module")
def bcc(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Return bcc's module, told where headers are."""
    if os.geteuid() != 0:
        pytest.skip("loading programs needs root")
    directory = find_headers(tmp_path_factory.mktemp("headers"))
    if directory is None:
        pytest.skip("no kernel headers here: cdmtrace lab build makes some")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(headers.SOURCE_VARIABLE, str(directory))
        yield import_bcc()


@pytest.fixture(scope="module")
def build(bcc: Any) -> Iterator[Callable[[dict[str, int]], Any]]:
    """Return what compiles the program, once for each set of numbers."""
    with contextlib.ExitStack() as compiled:

        @functools.cache
        def building(text: str) -> Any:
            program = bcc.BPF(text=text, cflags=STRICT)
            compiled.callback(program.cleanup)
            return program

        yield lambda numbers: building(program_text(numbers))


@pytest.fixture(scope="module", params=["whole", "filtered", "newest", "oldest"])
def program(
    build: Callable[[dict[str, int]], Any], request: pytest.FixtureRequest
) -> Any:
    more = {"whole": {}, "filtered": FILTERED, "newest": NEWEST, "oldest": OLDEST}
    return build(WHOLE | more[request.param])


@pytest.mark.parametrize("numbers", CHOICES, ids=" ".join)
def test_the_compiler_finds_no_fault(
    build: Callable[[dict[str, int]], Any], numbers: dict[str, int]
) -> None:
    assert build(WHOLE | numbers)["events"].map_fd >= 0


def has_map(program: Any, name: str) -> bool:
    try:
        return program[name] is not None
    except KeyError:
        return False


def test_what_nobody_asks_for_is_not_there(
    build: Callable[[dict[str, int]], Any],
) -> None:
    """No map, and so nothing that would look into it."""
    maps = {"followed", "tgids", "cgroups"}
    for numbers, there in ((WHOLE, set()), (WHOLE | FILTERED, maps)):
        program = build(numbers)
        found = {name for name in maps if has_map(program, name)}
        assert found == there


@pytest.fixture(scope="module")
def watching(bcc: Any) -> Any:
    numbers = WHOLE | {"WATCHED_TGID": 71, "WATCHES": 4}
    text = program_text(numbers, more=(WATCH,))
    compiled = bcc.BPF(text=text, cflags=STRICT)
    yield compiled
    compiled.cleanup()


@pytest.mark.parametrize("handler", [a.handler for a in WATCHPOINT.attachments])
def test_the_verifier_takes_what_follows_a_vma(
    watching: Any, bcc: Any, handler: str
) -> None:
    if not bpf.has_program_type(bpf.PROG_KPROBE):
        pytest.skip("this kernel takes no such programs")
    assert watching.load_func(handler, bcc.BPF.KPROBE).fd >= 0


def test_the_verifier_takes_what_a_debug_register_runs(watching: Any, bcc: Any) -> None:
    if not bpf.has_program_type(bcc.BPF.PERF_EVENT):
        pytest.skip("this kernel takes no such programs")
    assert watching.load_func(watch.HANDLER, bcc.BPF.PERF_EVENT).fd >= 0


def test_the_compiler_would_say_so(bcc: Any, capfd: pytest.CaptureFixture[str]) -> None:
    """The flags do get through."""
    text = program_text(WHOLE) + "\nint f(void *c) { int unused; return 0; }\n"
    with pytest.raises(Exception, match="Failed to compile"):
        bcc.BPF(text=text, cflags=STRICT)
    assert "unused-variable" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("handler", "kind"),
    sorted(
        {
            (a.handler, a.kind)
            for probe in (*PROBES, following(children=True))
            for a in probe.every_attachment
        }
    ),
)
def test_the_verifier_takes_every_handler(
    program: Any, bcc: Any, handler: str, kind: Kind, request: pytest.FixtureRequest
) -> None:
    tracepoint = kind is Kind.TRACEPOINT
    number = bpf.PROG_TRACEPOINT if tracepoint else bpf.PROG_KPROBE
    if not bpf.has_program_type(number):
        pytest.skip("this kernel takes no such programs")
    of_type = bcc.BPF.TRACEPOINT if tracepoint else bcc.BPF.KPROBE
    of_oldest = request.node.callspec.params["program"] == "oldest"
    if (handler.startswith("task_") and not has_map(program, "tgids")) or (
        handler in OLDER and not of_oldest
    ):
        # No process is named in this one, or the kernel is none of those.
        with pytest.raises(Exception, match=f"Unknown program .*{handler}"):
            program.load_func(handler, of_type)
        return
    assert program.load_func(handler, of_type).fd >= 0


@pytest.mark.usefixtures("bcc")
def test_what_does_not_compile_is_told_with_the_compiler_s_words(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    numbers = {name: value for name, value in WHOLE.items() if name != "CDM_NODES"}
    with pytest.raises(ProgramRejected, match="cannot compile") as caught:
        BccProgram(numbers)
    assert "CDM_NODES" in (caught.value.details or "")
    assert caught.value.exit_status == 125
