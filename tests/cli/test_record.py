"""What ``record`` refuses, before it compiles anything."""

from __future__ import annotations

import functools
import os
import platform
import sys
from pathlib import Path
from typing import NoReturn

import pytest
from fakemachine import NAMES, OPTIONS, pretend

from cdmtrace import privileges, recorder
from cdmtrace.cli import main
from cdmtrace.kernel import config, headers, nodes, symbols, tracefs
from cdmtrace.loader import build, choice
from cdmtrace.privileges import Capability

DISCOVER = nodes.discover
"""As it is without the machine below."""


class Reached(BaseException):
    """Everything was found to be in order, and compiling would begin."""


@pytest.fixture(autouse=True)
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine that can record: each test takes one thing away."""

    def reached(how: str, numbers: object, *_: object, **more: object) -> NoReturn:
        raise Reached(numbers, how)

    pretend(tmp_path, monkeypatch)
    monkeypatch.setattr(recorder, "record_loader", reached)
    return tmp_path


def refused(
    capsys: pytest.CaptureFixture[str], status: int, *parts: str, words: str
) -> None:
    """Run it; hold it to its status, its message and its hint; no file is made."""
    before = sorted(Path.cwd().iterdir())
    assert main(["record", *words.split()]) == status
    out, err = capsys.readouterr()
    assert out == ""
    for part in parts:
        assert part in err, err
    assert sorted(Path.cwd().iterdir()) == before


def test_a_machine_that_can_record_gets_as_far_as_compiling() -> None:
    with pytest.raises(Reached) as caught:
        main(["record", "--", "true"])
    numbers, _ = caught.value.args
    assert numbers["CDM_NODES"] == 2
    assert numbers["CDM_MASK"] == 1 << 38
    assert numbers["RING_PAGES"] == 4096
    assert numbers["FOLLOW_PIDS"] == numbers["ADDR_END"] == 0
    assert not Path("cdmtrace.arrows").exists()


def test_the_probes_are_told_whom_to_leave_out_and_what_to_follow(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(nodes, "online", lambda *_, **__: frozenset({0, 1, 64}))
    for words, everything in (([], 0), (["--all"], 1)):
        with pytest.raises(Reached) as caught:
            main(["record", *words, "--", "true"])
        numbers, _ = caught.value.args
        assert numbers["ALL"] == everything
        assert numbers["MEMORY_NODES"] == 3
        assert numbers["RECORDER"] == os.getpid()


def test_each_recording_has_its_own_keys() -> None:
    keys = set()
    for _ in range(3):
        with pytest.raises(Reached) as caught:
            main(["record", "--pid", str(os.getpid())])
        numbers = caught.value.args[0]
        assert numbers["FOLLOW_PIDS"] == 1
        keys |= {numbers["KEY0"], numbers["KEY1"]}
    assert len(keys) == 6


def test_live_without_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    refused(
        capsys,
        *(2, "--live draws on a terminal, and stderr is none"),
        "hint: leave it out, and in a terminal: cdmtrace live x.arrows",
        words="--live -o x.arrows -- true",
    )


def test_live_shows_one_file(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    refused(
        capsys,
        *(2, "--live shows one file, and --rotate makes several"),
        "hint: leave one of them out",
        words="--live --rotate 1M -- true",
    )


def test_live_on_a_terminal_that_cannot_be_drawn_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("TERM", "dumb")
    refused(capsys, *(2, "--live draws on a terminal"), words="--live -- true")


def test_nobody_looks_on_unless_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Reached) as caught:
        main(["record", "--", "true"])
    assert caught.value.args[0]["VIEWER"] == 0


def test_who_looks_on_is_known_to_the_probes_and_ends_with_an_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    with pytest.raises(Reached) as caught:
        main(["record", "--live", "--", "true"])
    viewer = caught.value.args[0]["VIEWER"]
    assert viewer > 0
    with pytest.raises(ProcessLookupError):
        os.kill(viewer, 0)


def test_privileges_that_are_missing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lacking = {Capability.BPF: "to load", Capability.SYSLOG: "to see"}
    monkeypatch.setattr(privileges, "missing", lambda: lacking)
    sentence = "recording needs CAP_BPF (to load), CAP_SYSLOG (to see)"
    for uid, hint in ((1000, "sudo cdmtrace record"), (0, "they were taken from")):
        monkeypatch.setattr("os.geteuid", lambda uid=uid: uid)
        refused(capsys, 125, sentence, f"hint: {hint}", words="-- true")


def test_the_output_exists(capsys: pytest.CaptureFixture[str]) -> None:
    Path("x.arrows").write_text("precious")
    refused(
        capsys,
        *(125, "x.arrows: exists already", "hint: name another", "-f"),
        words="-o x.arrows -- true",
    )
    assert Path("x.arrows").read_text() == "precious"
    with pytest.raises(Reached):
        main(["record", "-f", "-o", "x.arrows", "--", "true"])
    assert Path("x.arrows").read_text() == "precious"


def test_parts_of_an_earlier_recording(capsys: pytest.CaptureFixture[str]) -> None:
    """Said at once, as of a file; one that is no part is in nobody's way."""
    Path("x.0007.arrows").write_text("old")
    Path("x.arrows").write_text("other")
    words = "-o x.arrows --rotate 1g -- true"
    hint = "replace all its parts with -f"
    refused(capsys, 125, "x.0007.arrows: exists already", hint, words=words)
    with pytest.raises(Reached):
        main(["record", "-f", *words.split()])
    assert Path("x.0007.arrows").read_text() == "old"


def test_a_dangling_link_is_there_too(capsys: pytest.CaptureFixture[str]) -> None:
    Path("x.arrows").symlink_to("nowhere")
    refused(capsys, 125, "exists already", words="-o x.arrows -- true")


def test_no_such_directory(capsys: pytest.CaptureFixture[str]) -> None:
    refused(
        capsys,
        *(125, "none: no such directory", "hint: make the directory first"),
        words="-o none/x.arrows -- true",
    )


@pytest.mark.parametrize("name", ["no-such-command", "./none", "/none/none"])
def test_a_command_that_is_not_there(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    refused(capsys, 127, f"{name}: command not found", words=f"-- {name} x")


@pytest.mark.parametrize("what", ["file", "directory"])
def test_a_command_that_cannot_be_executed(
    what: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if what == "file":
        Path("x").write_text("#!/bin/sh\n")
    else:
        Path("x").mkdir()
    refused(capsys, 126, "./x: cannot be executed", words="-- ./x")


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        ("--ring-pages 3 -- true", ("3 is no power of two", "hint: --ring-pages 4")),
        ("--ring-pages 0 -- true", ("--ring-pages",)),
        ("--ring-pages 524288 -- true", ("--ring-pages",)),
        ("--pid 1 -- true", ("exclude each other", "hint: give one of them")),
        ("--pid 0", ("--pid",)),
        ("--pid 4194305", ("--pid 4194305: there is no such process",)),
        ("--duration 0", ("--duration",)),
        ("--duration -1", ("--duration",)),
        ("--vm-cdm-mask 3 -- true", ("not a mask of one bit", "hint: ", "bit:38")),
        ("--vm-cdm-mask bit:64 -- true", ("not a mask of one bit",)),
        ("--vm-cdm-mask x -- true", ("not a mask of one bit",)),
        ("--cdm-nodes x -- true", ("'x' is not a node list", "hint: ", "1,3-5")),
        ("--cdm-nodes 64 -- true", ("only nodes 0 to 63",)),
        ("--cdm-nodes 7 -- true", ("node 7 is not online", "hint: these are: 0, 1")),
        ("-o . -- true", ("directory",)),
        ("--audit 0 -- true", ("--audit",)),
        ("--freeze . -- true", ("there is none", "hint: --audit SECONDS")),
        ("--audit 1 --pid 1", ("leaves some of it out", "hint: leave --pid")),
        ("--audit 1 --freeze . -- true", ("--freeze .: no cgroup v2", "hint: give")),
        ("--probe ksm", ("--probe ksm: there is no such", "hint: cdmtrace probes")),
        ("--no-probe rmap_walks", ("no such probe; did you mean rmap_walk?",)),
        ("--no-probe alloc", ("alloc: without it nothing can be recorded",)),
        ("--rotate 64X -- true", ("'64X' is no size such as 64M or 1G",)),
        ("--rotate -1 -- true", ("'-1' is no size",)),
        ("--rotate 1023K -- true", ("--rotate 1047552 is less", "--rotate 1M")),
        ("--rotate-keep 3 -- true", ("there is one", "--rotate 64M --rotate-keep 3")),
        ("--rotate 1M --rotate-keep 0 -- true", ("--rotate-keep",)),
        ("--no-such-option", ("--no-such-option",)),
        ("--no-children -- true", ("there is none", "hint: --pid PID")),
        ("--pid 1 --pid 4194305", ("--pid 4194305: there is no such process",)),
        ("--cgroup none -- true", ("--cgroup none: no cgroup v2", "hint: give its")),
        ("--comm sixteen__letters", ("15 bytes", "hint: --comm 'sixteen__letter'")),
        ("--node 0 -- true", ("node 0 is no CDM node", "hint: these are: 1")),
        ("--node 1 --all -- true", ("leaves some out", "hint: give one")),
        ("--node x -- true", ("'x' is not a node list", "--node 1,3-5")),
        ("--addr 1000 -- true", ("is no range", "hint: write it as --addr 7f00")),
        ("--addr 2-1 -- true", ("no address in it", "hint: the end comes after")),
        ("--stacks some -- true", ("--stacks",)),
        ("--max-events 0 -- true", ("--max-events",)),
        ("--delay -1 -- true", ("--delay",)),
        ("--missing-probes x -- true", ("--missing-probes",)),
        ("--audit 1 --comm x -- true", ("leaves some of it out",)),
        ("--audit 1 --addr 1-2 -- true", ("leaves some of it out",)),
        ("--audit 1 --node 1 -- true", ("leaves some of it out",)),
    ],
)
def test_arguments_that_make_no_sense(
    words: str, parts: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    refused(capsys, 2, *parts, words=words)


def test_an_audit_that_could_not_look(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    refused(
        capsys,
        *(125, "snapshot is not attached: not asked for"),
        words="--audit 1 --probe alloc -- true",
    )
    functions = NAMES["functions"] - {"show_numa_map"}
    monkeypatch.setattr(symbols, "functions", lambda: functions)
    refused(
        capsys,
        *(125, "snapshot is not attached: no show_numa_map on this kernel"),
        *("--audit", "hint: cdmtrace probes"),
        words="--audit 1 -- true",
    )


def test_what_the_program_is_told_of_filters() -> None:
    words = ["--comm", "abc", "--addr", "1000+1000", "--stacks", "changes"]
    with pytest.raises(Reached) as caught:
        main(["record", *words, "--cdm-nodes", "0,1", "--node", "1", "--", "true"])
    numbers, _ = caught.value.args
    assert numbers["FOLLOW_COMM"] == 1
    assert numbers["COMM0"] == int.from_bytes(b"abc", "little")
    assert (numbers["ADDR_START"], numbers["ADDR_END"]) == (0x1000, 0x1000 + 1000)
    assert (numbers["STACKS"], numbers["CDM_NODES"]) == (1, 2)
    assert numbers["FOLLOW_PIDS"] == numbers["FOLLOW_CGROUP"] == 0


def test_a_ready_file_that_is_there(capsys: pytest.CaptureFixture[str]) -> None:
    Path("ready").symlink_to("nowhere")
    refused(
        capsys,
        *(125, "--ready-file ready: exists already", "hint: remove it"),
        words="--ready-file ready -- true",
    )


def test_a_probe_that_is_missing_may_be_an_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    functions = NAMES["functions"] - {"ksm_madvise"}
    monkeypatch.setattr(symbols, "functions", lambda: functions)
    refused(
        capsys,
        *(125, "this kernel has no ksm_madvise (ksm_madvise)", "--no-probe"),
        words="--missing-probes error -- true",
    )
    for words in (
        ["--missing-probes", "warn"],
        ["--missing-probes", "ignore"],
        ["--missing-probes", "error", "--no-probe", "ksm_madvise"],
    ):
        with pytest.raises(Reached):
            main(["record", *words, "--", "true"])


def test_whom_to_follow_needs_probes_of_its_own(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    functions = NAMES["functions"] - {"wake_up_new_task"}
    monkeypatch.setattr(symbols, "functions", lambda: functions)
    pid = f"--pid {os.getpid()}"
    refused(capsys, *(125, "no wake_up_new_task, which follow needs"), words=pid)
    with pytest.raises(Reached):
        main(["record", "--no-children", *pid.split()])
    with pytest.raises(Reached):
        main(["record", "--", "true"])


def test_a_rehearsal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def touched(*_: object) -> NoReturn:
        raise AssertionError("the kernel would be changed")

    for name in ("mounted", "sweep"):
        monkeypatch.setattr(tracefs, name, touched)
    monkeypatch.setattr(tracefs, "find", Path.cwd)
    words = "--dry-run --pid 1 --no-children --addr 1000-2000 --no-probe ksm_madvise"
    before = sorted(Path.cwd().iterdir())
    assert main(["record", *words.split()]) == 0
    assert sorted(Path.cwd().iterdir()) == before
    out, err = capsys.readouterr()
    assert out == ""
    lines = [" ".join(line.split()) for line in err.splitlines()]
    for line in (
        "would write cdmtrace.arrows",
        "filters pid 1, addr 1000-2000, without children",
        "follow kprobe release_task",
    ):
        assert line in lines, err
    assert any("missing: ksm_madvise (not asked for)" in line for line in lines)
    # What record would refuse, a rehearsal refuses.
    refused(
        capsys,
        *(2, "node 0 is no CDM node"),
        words="--dry-run --node 0 -- true",
    )
    monkeypatch.setattr(tracefs, "find", lambda: None)
    refused(capsys, 125, "tracefs is not mounted", words="--dry-run -- true")


def test_a_bit_that_is_taken(capsys: pytest.CaptureFixture[str]) -> None:
    words = "--vm-cdm-mask 0x80000000 -- true"
    refused(
        capsys,
        *(125, "CDM020: 0x80000000 is VM_MERGEABLE on this kernel", "--force"),
        words=words,
    )
    with pytest.raises(Reached) as caught:
        main(["record", "--force", *words.split()])
    assert caught.value.args[0]["CDM_MASK"] == 1 << 31


def openeuler(machine: Path, monkeypatch: pytest.MonkeyPatch, header: str) -> None:
    """Make it one of openEuler's kernels, whose nodes are a boot parameter."""
    options = {**OPTIONS, "CONFIG_COHERENT_DEVICE": "y"}
    monkeypatch.setattr(config, "load", lambda: options)
    monkeypatch.setattr(platform, "release", lambda: "5.10.0-60.18.0.50.oe2203.x86_64")
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    (machine / "node/is_coherent_device").unlink(missing_ok=True)
    boot = machine / "cmdline"
    boot.write_text("quiet cdm-nodes=0x2\n")
    discover = functools.partial(DISCOVER, root=machine / "node", cmdline=boot)
    monkeypatch.setattr(nodes, "discover", discover)
    (machine / "include/linux/mm.h").write_text(header)


def rehearsed(capsys: pytest.CaptureFixture[str], *words: str) -> list[str]:
    assert main(["record", "--dry-run", *words, "--", "true"]) == 0
    return [" ".join(line.split()) for line in capsys.readouterr().err.splitlines()]


def test_a_kernel_of_openeuler(
    machine: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """By its release and configuration; what its headers have is as good."""
    table = "cdmtrace's table, Linux 5.10, and the profile openeuler"
    openeuler(machine, monkeypatch, header="")
    lines = rehearsed(capsys)
    assert f"CDM nodes 1 (from {machine / 'cmdline'})" in lines
    assert f"VM_CDM 0x100000000, bit 32 (from {table})" in lines
    assert f"vm_flags 38 bits named (from {table})" in lines
    with pytest.raises(Reached) as caught:
        main(["record", "--", "true"])
    assert caught.value.args[0]["CDM_MASK"] == 1 << 32
    assert caught.value.args[0]["CDM_NODES"] == 2

    openeuler(machine, monkeypatch, "#define VM_READ 1\n#define VM_CHECKNODE BIT(33)\n")
    assert "VM_CDM 0x100000000, bit 32 (from the profile openeuler)" in rehearsed(
        capsys
    )
    openeuler(machine, monkeypatch, "#define VM_CDM 0x100000000\n")
    source = "include/linux/mm.h of the running kernel"
    assert f"VM_CDM 0x100000000, bit 32 (from {source})" in rehearsed(capsys)


def test_another_profile_than_it_would_be(
    machine: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    openeuler(machine, monkeypatch, header="")
    refused(
        capsys,
        *(125, "table, Linux 5.10 does not define it", "--vm-cdm-mask"),
        words="--kernel-profile upstream -- true",
    )
    refused(
        capsys,
        *(125, "CDM020: 0x100000000 is VM_PKEY_BIT0", "--force"),
        words="--kernel-profile upstream --vm-cdm-mask bit:32 -- true",
    )
    monkeypatch.setattr(platform, "release", lambda: "6.1.0-56-amd64")
    monkeypatch.setenv("CDMTRACE_RECORD_KERNEL_PROFILE", "openeuler")
    assert any("Linux 6.1, and the profile open" in line for line in rehearsed(capsys))
    # The headers of a kernel that has keys there are right.
    (machine / "include/linux/mm.h").write_text("#define VM_PKEY_BIT0 BIT(32)\n")
    refused(
        capsys,
        *(125, "CDM020: 0x100000000 is VM_PKEY_BIT0", "--force"),
        words="-- true",
    )


def test_a_bit_that_is_unknown(
    machine: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (machine / "include/linux/mm.h").write_text("#define VM_READ 1\n")
    refused(
        capsys,
        *(
            125,
            "mm.h of the running kernel does not define it",
            "hint: name its bit with --vm-cdm-mask",
        ),
        words="-- true",
    )


def stock(machine: Path) -> None:
    """Make it a kernel that knows of no CDM nodes, and has no VM_CDM."""
    (machine / "node/is_coherent_device").unlink()
    (machine / "include/linux/mm.h").write_text("#define VM_READ 1\n")


def test_a_kernel_without_vm_cdm_is_recorded_in_shadow_mode(
    machine: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stock(machine)
    monkeypatch.setattr(tracefs, "find", Path.cwd)
    lines = rehearsed(capsys, "--cdm-nodes", "1")
    silent = "include/linux/mm.h of the running kernel does not define it"
    assert f"VM_CDM none: shadow mode; {silent}" in lines
    assert (
        "told is what would have to be tagged; rules about the tag are not checked"
        in lines
    )
    with pytest.raises(Reached) as caught:
        main(["record", "--cdm-nodes", "1", "--", "true"])
    assert caught.value.args[0]["CDM_MASK"] == 0
    assert caught.value.args[0]["CDM_NODES"] == 2
    said = capsys.readouterr().err
    assert "cdmtrace: shadow mode: include/linux/mm.h of the running kernel" in said
    # A bit that was named, or is known, comes before that.
    lines = rehearsed(capsys, "--cdm-nodes", "1", "--vm-cdm-mask", "bit:45")
    assert "VM_CDM 0x200000000000, bit 45 (from --vm-cdm-mask)" in lines
    assert not any("shadow" in line for line in lines)
    (machine / "include/linux/mm.h").write_text("#define VM_CDM BIT(38)\n")
    lines = rehearsed(capsys, "--cdm-nodes", "1")
    assert not any("shadow" in line for line in lines)


def test_shadow_mode_has_to_be_asked_for(
    machine: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The nodes may be known by the kernel's command line, as the lab gives it."""
    stock(machine)
    boot = machine / "cmdline"
    boot.write_text("quiet cdm-nodes=0x2\n")
    discover = functools.partial(DISCOVER, root=machine / "node", cmdline=boot)
    monkeypatch.setattr(nodes, "discover", discover)
    refused(
        capsys,
        *(125, "which bit is VM_CDM is not known", "--vm-cdm-mask", "--cdm-nodes"),
        words="-- true",
    )


def test_a_kernel_that_has_cdm_nodes_has_vm_cdm(
    machine: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is not known which bit that is, and that is another thing than none."""
    (machine / "include/linux/mm.h").write_text("#define VM_READ 1\n")
    refused(
        capsys,
        *(125, "which bit is VM_CDM is not known", "--vm-cdm-mask"),
        words="--cdm-nodes 1 -- true",
    )


def test_a_kernel_that_was_built_to_tag_has_vm_cdm(
    machine: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Though it has no file that says which nodes."""
    (machine / "include/linux/mm.h").write_text("#define VM_READ 1\n")
    (machine / "node/is_coherent_device").unlink()
    words = ["record", "--cdm-nodes", "1", "--", "true"]
    with pytest.raises(Reached):
        main(words)
    capsys.readouterr()
    monkeypatch.setattr(
        config, "load", lambda: OPTIONS | {"CONFIG_COHERENT_DEVICE": "y"}
    )
    refused(
        capsys,
        *(125, "which bit is VM_CDM is not known"),
        words="--cdm-nodes 1 -- true",
    )


@pytest.mark.parametrize("words", ["--dry-run", ""])
def test_probes_that_nobody_has_compiled(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    words: str,
) -> None:
    def find() -> NoReturn:
        raise build.ObjectMissing("the BPF program is not compiled", hint="make bpf")

    monkeypatch.setattr(build, "find", find)
    monkeypatch.setattr(tracefs, "find", lambda: tmp_path)
    monkeypatch.setattr(recorder, "record_loader", choice.record_loader)
    refused(
        capsys,
        *(125, "the BPF program is not compiled", "hint: make bpf"),
        words=f"--loader libbpf {words} -- true",
    )


def test_nodes_that_are_unknown(
    machine: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (machine / "node/is_coherent_device").unlink()
    refused(
        capsys,
        *(125, "does not say which nodes", "hint: name them with --cdm-nodes"),
        words="-- true",
    )


def test_a_kernel_without_kprobes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    options = {**OPTIONS, "CONFIG_KPROBES": "n"}
    monkeypatch.setattr(config, "load", lambda: options)
    refused(
        capsys,
        *(125, "CONFIG_KPROBES is not set", "hint: cdmtrace doctor"),
        words="-- true",
    )


def test_a_function_that_is_missing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    functions = NAMES["functions"] - {"mbind_range"}
    monkeypatch.setattr(symbols, "functions", lambda: functions)
    refused(
        capsys,
        *(125, "this kernel has no mbind_range", "hint: cdmtrace probes"),
        words="-- true",
    )


def test_headers_that_are_missing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(headers.SOURCE_VARIABLE, "none")
    refused(
        capsys,
        *(125, "does not exist", f"hint: unset {headers.SOURCE_VARIABLE}"),
        words="-- true",
    )


def without_headers(monkeypatch: pytest.MonkeyPatch, *, compiled: bool) -> None:
    monkeypatch.delenv(headers.SOURCE_VARIABLE)
    monkeypatch.setattr(headers, "find", lambda release=None: None)
    monkeypatch.setattr(build, "is_there", lambda: compiled)


@pytest.mark.parametrize(("how", "compiled"), [("bcc", True), ("auto", False)])
def test_no_headers_for_who_needs_them(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    how: str,
    compiled: bool,
) -> None:
    without_headers(monkeypatch, compiled=compiled)
    refused(
        capsys,
        *(125, "the headers of kernel", "hint: sudo apt-get install -y linux-headers-"),
        words=f"--loader {how} -- true",
    )


@pytest.mark.parametrize("how", ["auto", "libbpf"])
def test_no_headers_for_who_needs_none(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], how: str
) -> None:
    """But which bit is VM_CDM nobody says then."""
    without_headers(monkeypatch, compiled=True)
    refused(
        capsys,
        *(125, "VM_CDM", "--vm-cdm-mask bit:38"),
        words=f"--loader {how} -- true",
    )
    words = ["record", "--loader", how, "--vm-cdm-mask", "bit:45", "--", "true"]
    with pytest.raises(Reached) as caught:
        main(words)
    assert caught.value.args[1] == how
    assert caught.value.args[0]["CDM_MASK"] == 1 << 45


def test_bcc_that_is_missing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    from cdmtrace.loader import bcc

    monkeypatch.setattr(recorder, "record_loader", choice.record_loader)
    monkeypatch.setitem(sys.modules, "bcc", None)
    default = bcc.import_bcc
    monkeypatch.setattr(bcc, "import_bcc", lambda: default(tmp_path))
    refused(
        capsys,
        *(125, "bcc cannot be imported", "hint: sudo apt-get install -y python3-bpfcc"),
        words="--loader bcc -- true",
    )


@pytest.mark.parametrize(
    "name",
    [
        *("CDMTRACE_RECORD_CDM_NODES", "CDMTRACE_RECORD_PID", "CDMTRACE_RECORD_PROBE"),
        *("CDMTRACE_RECORD_NO_PROBE", "CDMTRACE_RECORD_CGROUP", "CDMTRACE_RECORD_ADDR"),
        *("CDMTRACE_RECORD_NODE", "CDMTRACE_RECORD_STACKS", "CDMTRACE_RECORD_DELAY"),
        *("CDMTRACE_RECORD_MAX_EVENTS", "CDMTRACE_RECORD_MISSING_PROBES"),
    ],
)
def test_options_may_come_from_the_environment(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(name, "x")
    assert main(["record"]) == 2
    assert "x" in capsys.readouterr().err
