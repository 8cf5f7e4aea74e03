"""Capabilities: which are missing, and that what is given up is gone."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from cdmtrace import privileges
from cdmtrace.errors import RecordError
from cdmtrace.privileges import NEEDED, Capability

ROOT = Path(__file__).parents[2]
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root has privileges")


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine where nothing can be done without a capability."""
    (tmp_path / "kallsyms").write_text("0000000000000000 T _text\n" * 3)
    monkeypatch.setattr(privileges, "KALLSYMS", tmp_path / "kallsyms")
    monkeypatch.setattr(privileges, "TRACEFS", (tmp_path / "tracing",))
    monkeypatch.setattr(privileges, "caller", lambda: None)
    return tmp_path


def holding(monkeypatch: pytest.MonkeyPatch, *held: Capability) -> None:
    monkeypatch.setattr(privileges, "held", lambda: frozenset(map(int, held)))


@pytest.mark.usefixtures("machine")
@pytest.mark.parametrize("one", NEEDED)
def test_each_is_missed_by_its_name(
    one: Capability, monkeypatch: pytest.MonkeyPatch
) -> None:
    holding(monkeypatch, *NEEDED)
    assert privileges.missing() == {}
    privileges.require()
    holding(monkeypatch, *(cap for cap in NEEDED if cap is not one))
    assert list(privileges.missing()) == [one]
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    with pytest.raises(RecordError, match=rf"recording needs CAP_{one.name} \(") as e:
        privileges.require()
    assert e.value.hint == "sudo cdmtrace record …"
    assert e.value.exit_status == 125


def test_what_this_machine_allows_without(
    machine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    holding(monkeypatch)
    assert set(privileges.missing()) == set(NEEDED)
    with (machine / "kallsyms").open("a") as file:
        file.write("ffffffff81000000 T startup_64\n")
    (machine / "tracing").mkdir()
    (machine / "tracing/kprobe_events").touch()
    rest = set(NEEDED) - {Capability.SYSLOG, Capability.DAC_OVERRIDE}
    assert set(privileges.missing()) == rest


@pytest.mark.usefixtures("machine")
def test_for_who_called_sudo_more_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    holding(monkeypatch, *NEEDED)
    monkeypatch.setattr(privileges, "caller", object)
    assert set(privileges.missing()) == {Capability.SETUID, Capability.SETGID}


def test_the_numbers_are_those_that_others_know() -> None:
    listed = subprocess.run(
        ["setpriv", "--list-caps"], text=True, capture_output=True, check=True
    )
    names = listed.stdout.split()
    assert [names[one] for one in Capability] == [c.name.lower() for c in Capability]


def run(code: str, *before: str) -> str:
    """Run code in a process of its own, that may lose everything."""
    result = subprocess.run(
        [*before, sys.executable, "-u", "-c", code],
        text=True,
        capture_output=True,
        check=False,
        cwd=ROOT,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


SETS = ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "NoNewPrivs", "Uid", "Groups")
DROP = """
import os
from pathlib import Path
from cdmtrace import privileges
from cdmtrace.caller import user
os.setgroups([0, 1])
assert privileges.drop({keep}, {who}) == []
for line in Path("/proc/self/status").read_text().splitlines():
    name, _, text = line.partition(":")
    if name in {sets}:
        print(name, *text.split())
if os.getuid():
    try:
        os.setresuid(0, 0, 0)
    except PermissionError:
        print("never root again")
"""


@as_root
@pytest.mark.parametrize("somebody", [False, True])
@pytest.mark.parametrize(
    "keep", [(), (Capability.SYS_PTRACE, Capability.KILL), (Capability.BPF,)]
)
def test_what_is_left_is_what_was_kept(
    keep: tuple[Capability, ...], somebody: bool
) -> None:
    who = "user(54321, 54322)" if somebody else None
    code = DROP.format(keep=list(map(int, keep)), who=who, sets=SETS)
    told = dict(line.split(maxsplit=1) for line in run(code).splitlines())
    mask = f"{sum(1 << cap for cap in keep):016x}"
    assert told == {
        **dict.fromkeys(("CapInh", "CapBnd", "CapAmb"), "0" * 16),
        **dict.fromkeys(("CapPrm", "CapEff"), mask),
        "NoNewPrivs": "1",
        "Uid": " ".join(["54321" if somebody else "0"] * 4),
        "Groups": "54322" if somebody else "0 1",
        **({"never": "root again"} if somebody else {}),
    }


@as_root
def test_no_thread_keeps_what_we_gave_up() -> None:
    """numpy and pyarrow start some when they are imported; here they may not."""
    code = """
import os
from cdmtrace import privileges
before = dict(os.environ)
with privileges.single_threaded():
    import cdmtrace.recorder
assert dict(os.environ) == before
print(len(os.listdir("/proc/self/task")), privileges.drop(frozenset(), None))
"""
    assert run(code) == "1 []\n"


@as_root
def test_a_thread_that_keeps_them_is_told() -> None:
    code = """
import threading
from cdmtrace import privileges
stop = threading.Event()
threading.Thread(target=stop.wait, name="x").start()
(text,) = privileges.drop(frozenset(), None)
print(text)
stop.set()
"""
    assert run(code).endswith(" keeps its privileges\n")


@as_root
def test_what_we_start_inherits_nothing() -> None:
    """From somebody who is not root, and has capabilities by the ambient set."""
    code = """
import subprocess
from cdmtrace import privileges
print(sorted(privileges.held("CapAmb")))
privileges.nothing_to_inherit()
print(sorted(privileges.held()))
subprocess.run(["sed", "-n", "s/^CapEff:\\t//p", "/proc/self/status"])
"""
    words = ["setpriv", "--reuid", "54321", "--clear-groups"]
    words += ["--inh-caps", "+bpf,+kill", "--ambient-caps", "+bpf,+kill"]
    assert run(code, *words) == f"[5, 39]\n[5, 39]\n{'0' * 16}\n"
