from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from cdmtrace.errors import LabError
from cdmtrace.lab.accel import Accelerator
from cdmtrace.lab.guest import resolve_command
from cdmtrace.lab.guestscript import guest_script
from cdmtrace.lab.machine import (
    ROOT_FLAGS,
    Machine,
    check_device,
    find_tools,
    parse_mib,
    vng_arguments,
)


def arguments(
    *,
    run_dir: Path = Path("/run/x"),
    accelerator: Accelerator = Accelerator.TCG,
    machine: Machine | None = None,
) -> list[str]:
    return vng_arguments(
        Path("/bin/vng"),
        kernel=Path("/k/bzImage"),
        machine=machine or Machine(),
        accelerator=accelerator,
        run_dir=run_dir,
        script=run_dir / "guest.sh",
        append=("quiet",),
    )


def test_two_nodes_the_second_without_cpus_and_named_on_the_command_line() -> None:
    assert arguments() == [
        "/bin/vng",
        "--verbose",
        *("--run", "/k/bzImage"),
        *("--disable-kvm", "--disable-microvm", "--force-9p"),
        *("--memory", "4096M", "--cpus", "2"),
        *("--numa", "3072M,cpus=0-1", "--numa", "1024M"),
        *("--user", "root", "--rwdir=/run/x"),
        *("--append=cdm-nodes=0x2", f"--append=rootflags={ROOT_FLAGS}"),
        *("--append=nokaslr", "--append=no_timer_check"),
        *("--append=rcupdate.rcu_expedited=1", "--append=mitigations=off"),
        "--append=quiet",
        *("--", "sh /run/x/guest.sh"),
    ]


def test_memory_is_the_sum_of_the_nodes() -> None:
    words = arguments(machine=Machine(ram_mib=512, cdm_mib=256, cpus=1))
    assert words[words.index("--memory") + 1] == "768M"
    assert "512M,cpus=0-0" in words


def test_devices_are_handed_to_qemu() -> None:
    words = arguments(machine=Machine(devices=("intel-iommu", "edu,addr=0x1f.0")))
    added = [word for word in words if word.startswith("--qemu-opts")]
    assert added == [
        "--qemu-opts=-device intel-iommu",
        "--qemu-opts=-device edu,addr=0x1f.0",
    ]


@pytest.mark.parametrize("text", ["", "edu -S", "edu;ls", "$(ls)", "'edu'", "a/b"])
def test_a_device_that_is_more_than_one_is_refused(text: str) -> None:
    assert check_device("edu,addr=0x1f.0") == "edu,addr=0x1f.0"
    with pytest.raises(LabError, match="no device of QEMU's"):
        check_device(text)


def test_kvm_is_not_disabled_where_it_works() -> None:
    words = arguments(accelerator=Accelerator.KVM)
    assert "--disable-kvm" not in words
    assert "--append=mitigations=off" not in words


@pytest.mark.parametrize("name", ["/a b", "/a,b", "/a'b", "/$(a)", "relative", "/a=b"])
def test_a_path_that_would_not_get_through_is_refused(name: str) -> None:
    with pytest.raises(LabError, match="cannot be given the path"):
        arguments(run_dir=Path(name))


def test_sizes() -> None:
    assert parse_mib("3G") == 3072
    assert parse_mib("512m") == 512
    for text in ("3", "G", "0G", "-1G", "1.5G", "3GB"):
        with pytest.raises(LabError, match="memory size"):
            parse_mib(text)


def test_missing_virtme_ng_names_the_command_that_installs_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("sys.executable", str(tmp_path / "python"))
    with pytest.raises(LabError, match="virtme-ng") as caught:
        find_tools()
    assert "pip install" in str(caught.value.hint)


def test_a_relative_program_is_made_absolute(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "prog").touch()
    assert resolve_command(("./prog", "./x")) == (str(tmp_path / "prog"), "./x")
    assert resolve_command(("./missing",)) == ("./missing",)
    assert resolve_command(("true",)) == ("true",)
    assert resolve_command(("cdmtrace", "info"))[1:] == ("-m", "cdmtrace", "info")


def test_the_guest_script_quotes_and_is_a_shell_script() -> None:
    text = guest_script(
        run_dir=Path("/run/x"),
        command=["printf", "%s\n", "it's $HOME"],
        quirks=("one-way",),
        environment={"A": "b c; d"},
        modules=[Path("/a b/it's.ko")],
    )
    assert "export A='b c; d'\n" in text
    assert "it'\"'\"'s $HOME" in text
    assert "printf '%s' one-way > /sys/kernel/debug/cdm/quirks" in text
    assert text.index("/sbin/insmod '/a b/it'\"'\"'s.ko' ||") < text.index(
        "leave started"
    )
    subprocess.run(["sh", "-n"], input=text, text=True, check=True)
