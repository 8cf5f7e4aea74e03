"""Who called sudo: the trace file and the command are theirs, and made as them."""

from __future__ import annotations

import contextlib
import os
import pwd
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType


@dataclass(frozen=True, kw_only=True, slots=True)
class Caller:
    """A user: ids, all groups, and what their shell would say of them."""

    uid: int
    gid: int
    groups: tuple[int, ...]
    names: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))


def caller() -> Caller | None:
    """Return who called sudo; None if nobody did, or if that was root itself."""
    uid, gid = os.environ.get("SUDO_UID", ""), os.environ.get("SUDO_GID", "")
    if os.geteuid() != 0 or not (uid.isdecimal() and gid.isdecimal()):
        return None
    return user(int(uid), int(gid)) if int(uid) else None


def user(uid: int, gid: int) -> Caller:
    """Return what is known of a user, who may have no name."""
    try:
        known = pwd.getpwuid(uid)
    except KeyError:
        return Caller(uid=uid, gid=gid, groups=(gid,))
    return Caller(
        uid=uid,
        gid=gid,
        groups=tuple(os.getgrouplist(known.pw_name, gid)),
        names=MappingProxyType(
            {
                "HOME": known.pw_dir,
                "LOGNAME": known.pw_name,
                "USER": known.pw_name,
                "SHELL": known.pw_shell or "/bin/sh",
            }
        ),
    )


@contextlib.contextmanager
def acting_as(who: Caller | None) -> Iterator[None]:
    """Let the kernel take us for somebody else inside the block; None: for ourselves.

    For what is done in a directory of theirs: where they have put a symbolic link,
    or may not write, root would go on. Once we are that user there is nothing to do.
    Raises OSError.
    """
    if who is None or os.geteuid() == who.uid:
        yield
        return
    groups, gid, uid = os.getgroups(), os.getegid(), os.geteuid()
    try:
        os.setgroups(who.groups)
        os.setegid(who.gid)
        os.seteuid(who.uid)
        yield
    finally:
        os.seteuid(uid)
        os.setegid(gid)
        os.setgroups(groups)
