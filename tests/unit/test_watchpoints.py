"""Debug registers, as far as they can be told of without having any."""

from __future__ import annotations

import errno
import os
import platform
import re
import subprocess
from pathlib import Path

import pytest

from cdmtrace.cli import watch as cli
from cdmtrace.kernel import watchpoints
from cdmtrace.kernel.watchpoints import NoWatchpoint

HEADER = Path("/usr/include/linux/perf_event.h")


def test_the_command_line_knows_how_many_there_are() -> None:
    assert cli.REGISTERS == watchpoints.REGISTERS


def test_what_the_kernel_is_asked_for_is_what_its_header_says(tmp_path: Path) -> None:
    if not HEADER.exists():
        pytest.skip("no kernel headers here")
    source = tmp_path / "attr.c"
    source.write_text(
        """
        #include <linux/perf_event.h>
        #include <linux/hw_breakpoint.h>
        #include <stdio.h>
        #include <string.h>
        int main(void)
        {
            struct perf_event_attr attr;
            memset(&attr, 0, sizeof(attr));
            attr.type = PERF_TYPE_BREAKPOINT;
            attr.size = PERF_ATTR_SIZE_VER1;
            attr.sample_period = 1;
            attr.disabled = attr.pinned = attr.exclude_user = 1;
            attr.bp_type = HW_BREAKPOINT_W;
            attr.bp_addr = 0x123456789abcdef0;
            attr.bp_len = HW_BREAKPOINT_LEN_8;
            fwrite(&attr, PERF_ATTR_SIZE_VER1, 1, stdout);
            fprintf(stderr, "%lu %lu %lu %lu", PERF_EVENT_IOC_ENABLE + 0UL,
                    PERF_EVENT_IOC_DISABLE + 0UL, PERF_EVENT_IOC_SET_BPF + 0UL,
                    PERF_FLAG_FD_CLOEXEC + 0UL);
            return 0;
        }
        """
    )
    program = tmp_path / "attr"
    subprocess.run(["cc", "-o", program, source], check=True)
    said = subprocess.run([program], capture_output=True, check=True)
    assert said.stdout == watchpoints.attributes(0x123456789ABCDEF0)
    assert tuple(map(int, said.stderr.split())) == (
        watchpoints._ENABLE,
        watchpoints._DISABLE,
        watchpoints._SET_BPF,
        watchpoints._CLOEXEC,
    )


def test_every_cpu_that_is_online(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watchpoints, "_ONLINE", tmp_path / "online")
    (tmp_path / "online").write_text("0-2,5,7-8\n")
    assert watchpoints.cpus() == (0, 1, 2, 5, 7, 8)


def test_a_machine_whose_watchpoints_are_not_known(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "ppc64le")
    with pytest.raises(NoWatchpoint, match="ppc64le") as caught:
        watchpoints.check_machine()
    assert caught.value.exit_status == 125


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.ENOSPC, "no debug register of cpu 3 is left"),
        (errno.EBUSY, "no debug register of cpu 3 is left"),
        (errno.EPERM, "CAP_SYS_ADMIN"),
        (errno.EACCES, "CAP_SYS_ADMIN"),
        (errno.EOPNOTSUPP, "of cpu 3: Operation not supported"),
    ],
)
def test_why_one_cannot_be_had(
    monkeypatch: pytest.MonkeyPatch, number: int, words: str
) -> None:
    """And those that were had are given back."""
    given = []

    def open_event(address: int, cpu: int) -> int:
        if cpu == 3:
            raise OSError(number, os.strerror(number), f"cpu {cpu}")
        given.append(os.open("/dev/null", os.O_RDONLY))
        return given[-1]

    monkeypatch.setattr(watchpoints, "cpus", lambda: (0, 3))
    monkeypatch.setattr(watchpoints, "open_event", open_event)
    for ask in (
        lambda: watchpoints.check_free(2),
        lambda: watchpoints.Watchpoint(1 << 63, 0),
    ):
        with pytest.raises(NoWatchpoint, match=re.escape(words)):
            ask()
    assert len(given) == 3
    for fd in given:
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(fd)
