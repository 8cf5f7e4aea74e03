"""Options whose environment variable is named after the option as it is typed."""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, TypeVar

import click

from cdmtrace.errors import UsageTrouble
from cdmtrace.kernel.profiles import PROFILES

_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


class Option(click.Option):
    """A click option read from ``CDMTRACE_VERB_OPTION`` too.

    click itself would name the variable after the Python parameter, which differs
    where the option's name is taken (``--format``).
    """

    def resolve_envvar_value(self, ctx: click.Context) -> str | None:
        """Return the value of the option's environment variable, if it is set."""
        if ctx.auto_envvar_prefix is None or self.envvar is not None:
            return super().resolve_envvar_value(ctx)
        name = max(self.opts, key=len).lstrip("-").replace("-", "_").upper()
        return os.environ.get(f"{ctx.auto_envvar_prefix}_{name}") or None


def size(text: str) -> int:
    """Return bytes from a number with K, M, G or T after it: powers of 1024.

    Raises click.BadParameter.
    """
    match = re.fullmatch(r"([0-9]{1,15})([KMGT]?)(?:i?B)?", text, re.IGNORECASE)
    if match is None:
        raise click.BadParameter(f"{text!r} is no size such as 64M or 1G")
    return int(match[1]) * _UNITS[match[2].upper()]


def address(text: str) -> int:
    """Return an address of a process, from --addr. Raises UsageTrouble."""
    try:
        number = int(text, 16)
    except ValueError:
        number = -1
    if not 0 < number < 1 << 64:
        raise UsageTrouble(
            f"--addr {text}: not an address",
            hint="in hexadecimal, as in /proc/PID/maps",
        )
    return number


option = functools.partial(click.option, cls=Option)
"""``click.option`` with :class:`Option`."""

SPECIFICATIONS: Final = ("intended", "rfc-v2", "np")
"""What --profile takes of a verb that judges; the first one counts where nobody says.
"""

rules_from_option = option(
    "--rules-from",
    multiple=True,
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Rules of your own, beside those that there are: a file of Python, which is "
    "run. May be repeated.",
)
"""For every verb that has findings."""

_JUDGING: Final = (
    rules_from_option,
    option(
        "--rules",
        metavar="LIST",
        help="Check these only, by id or name, separated by commas.",
    ),
    option(
        "--profile",
        type=click.Choice(SPECIFICATIONS),
        default=SPECIFICATIONS[0],
        show_default=True,
        help="What the tag must mean: as the review wants it, or as the patches have "
        "it. np: not the tag, but which services of the kernel touched pages of CDM "
        "nodes.",
    ),
    option(
        "--allow",
        multiple=True,
        metavar="NODE:SERVICE[,SERVICE...]",
        help="Under --profile np: these services may touch pages of this node, beside "
        "what --permissions allows, or mempolicy. NODE or SERVICE may be all. May be "
        "repeated.",
    ),
    option(
        "--permissions",
        type=click.Path(path_type=Path),
        metavar="FILE",
        help="The same from a file of TOML, instead of mempolicy: [node.1] and "
        'allow = ["ksm"].',
    ),
)

_Command = TypeVar("_Command", bound=Callable[..., Any])


def judged_by(command: _Command) -> _Command:
    """Give a verb the options that say by what recordings are judged."""
    for one in reversed(_JUDGING):
        command = one(command)
    return command


kernel_profile = option(
    "--kernel-profile",
    type=click.Choice(tuple(PROFILES)),
    help="What kind of kernel this is, for what its headers leave open: which bit is "
    "VM_CDM, and whose the others are. Told by its release and configuration unless "
    "given.",
)
"""For every verb that looks at the kernel it runs on."""

loader_option = option(
    "--loader",
    type=click.Choice(("auto", "bcc", "libbpf")),
    default="auto",
    show_default=True,
    help="Who loads the probes: bcc, which compiles them with the kernel's headers; "
    "libbpf, which loads what was compiled before; auto: bcc, or libbpf where bcc "
    "cannot.",
)
