"""Who called sudo, and what is done as them."""

from __future__ import annotations

import os
import pwd
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from cdmtrace.caller import Caller, acting_as, caller, user
from cdmtrace.command import environment

NOBODY = 65534
as_root = pytest.mark.skipif(
    os.geteuid() != 0, reason="only root is somebody else than it is"
)


@pytest.mark.parametrize(
    ("uid", "gid", "euid", "found"),
    [
        ("54321", "54322", 0, (54321, 54322)),
        ("54321", "54322", 1000, None),
        ("0", "0", 0, None),
        ("", "", 0, None),
        ("-1", "5", 0, None),
        ("54321", "x", 0, None),
    ],
)
def test_who_called_sudo(
    uid: str,
    gid: str,
    euid: int,
    found: tuple[int, int] | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("os.geteuid", lambda: euid)
    monkeypatch.setenv("SUDO_UID", uid)
    monkeypatch.setenv("SUDO_GID", gid)
    who = caller()
    assert (None if who is None else (who.uid, who.gid)) == found


def test_a_user_with_a_name() -> None:
    known = pwd.getpwuid(NOBODY)
    who = user(NOBODY, known.pw_gid)
    assert set(who.groups) == set(os.getgrouplist(known.pw_name, known.pw_gid))
    assert who.names["HOME"] == known.pw_dir
    assert who.names["USER"] == who.names["LOGNAME"] == known.pw_name
    assert who.names["SHELL"] == known.pw_shell


def test_a_user_without_a_name() -> None:
    assert user(54321, 54322) == Caller(uid=54321, gid=54322, groups=(54322,))


IDS = """
import os, sys
from pathlib import Path
from cdmtrace.caller import acting_as, user
def ids():
    return os.getresuid(), os.getresgid(), os.getgroups()
os.setgroups([0, 1])
before = ids()
with acting_as(user(54321, 54322)):
    print(*os.getresuid(), *os.getresgid(), *os.getgroups())
    Path(sys.argv[1], "new").touch()
assert ids() == before, ids()
with acting_as(None):
    assert ids() == before
"""


@as_root
def test_what_is_done_as_somebody_else() -> None:
    """In a process of its own: should it fail, we would go on as somebody else."""
    with tempfile.TemporaryDirectory() as place:
        os.chown(place, 54321, 54322)
        result = subprocess.run(
            [sys.executable, "-c", IDS, place],
            text=True,
            capture_output=True,
            check=False,
            cwd=Path(__file__).parents[2],
        )
        assert result.returncode == 0, result.stderr
        # The saved ids are root's still, to come back to.
        assert result.stdout == "0 54321 0 0 54322 0 54322\n"
        status = Path(place, "new").stat()
        assert (status.st_uid, status.st_gid) == (54321, 54322)


def test_as_who_we_are_nothing_changes() -> None:
    before = os.getresuid(), os.getgroups()
    with acting_as(user(os.geteuid(), os.getegid())):
        assert (os.getresuid(), os.getgroups()) == before


ROOTS = {
    "SUDO_UID": "54321",
    "SUDO_COMMAND": "cdmtrace",
    "MAIL": "/var/mail/root",
    "XDG_RUNTIME_DIR": "/run/user/0",
    "HOME": "/root",
    "USER": "root",
    "CDMTRACE_RECORD_PID": "1",
    "BCC_KERNEL_SOURCE": "/usr/src",
    "PYTHONPATH": "/usr/lib",
    "LD_LIBRARY_PATH": "/tmp/lib",
}
KEPT = {"PATH": "/usr/bin", "TERM": "dumb", "LANG": "C", "MAILCHECK": "1", "X": "LD_"}


def test_the_command_s_environment_is_the_caller_s() -> None:
    who = Caller(uid=1, gid=1, groups=(1,), names={"HOME": "/home/x", "USER": "x"})
    expected = {**KEPT, "HOME": "/home/x", "USER": "x"}
    assert environment({**ROOTS, **KEPT}, who) == expected


def test_without_sudo_the_environment_is_the_caller_s_already() -> None:
    assert environment({**ROOTS, **KEPT}, None) == {**ROOTS, **KEPT}
