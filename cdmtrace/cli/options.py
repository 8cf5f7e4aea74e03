"""Options whose environment variable is named after the option as it is typed."""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final, TypeVar

import click
from click.core import ParameterSource

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


def typed(name: str) -> bool:
    """Return whether a parameter of the verb was given on the command line."""
    source = click.get_current_context().get_parameter_source(name)
    return source is ParameterSource.COMMANDLINE


def of_no_use(name: str, why: str, hint: str) -> None:
    """Raise UsageTrouble for an option that this call has no use for, if it was typed.

    A variable is set once, for many calls: where it is of no use it does nothing.
    """
    if typed(name):
        raise UsageTrouble(why, hint=hint)


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


_Command = TypeVar("_Command", bound=Callable[..., Any])

option = functools.partial(click.option, cls=Option)
"""``click.option`` with :class:`Option`."""

SPECIFICATIONS: Final = ("intended", "rfc-v2", "np")
"""What --profile takes of a verb that judges; the first one counts where nobody says.
"""


def files_argument(
    metavar: str = "FILE...", kind: click.Path | None = None
) -> Callable[[_Command], _Command]:
    """Return what gives a verb the recordings that it reads, one at least.

    kind: what they are, where that is not files only.
    """
    return click.argument(
        "files",
        nargs=-1,
        required=True,
        metavar=metavar,
        type=kind or click.Path(path_type=Path),
    )


def format_option(
    forms: Sequence[str], about: str | None = None
) -> Callable[[_Command], _Command]:
    """Return --format, which is the first one where nobody says."""
    return option(
        "--format",
        "form",
        type=click.Choice(forms),
        default=forms[0],
        show_default=True,
        help=about,
    )


def profile_option(about: str) -> Callable[[_Command], _Command]:
    """Return --profile, of a verb that judges."""
    return option(
        "--profile",
        type=click.Choice(SPECIFICATIONS),
        default=SPECIFICATIONS[0],
        show_default=True,
        help=about,
    )


kernel_profile = option(
    "--kernel-profile",
    type=click.Choice(tuple(PROFILES)),
    help="What kind of kernel this is, for what its headers leave open: which bit is "
    "VM_CDM, and whose the others are. Told by its release and configuration unless "
    "given.",
)
"""For every verb that looks at the kernel it runs on."""

_loader = option(
    "--loader",
    type=click.Choice(("auto", "bcc", "libbpf")),
    default="auto",
    show_default=True,
    help="Who loads the probes: bcc, which compiles them with the kernel's headers; "
    "libbpf, which loads what was compiled before; auto: bcc, or libbpf where bcc "
    "cannot.",
)

trace_option = option(
    "-o",
    "--output",
    type=click.Path(path_type=Path, dir_okay=False),
    default=Path("cdmtrace.arrows"),
    show_default=True,
    help="The trace file.",
)

duration_option = option(
    "--duration",
    type=click.FloatRange(min=0, min_open=True),
    metavar="SECONDS",
    help="End the recording, and COMMAND with it (SIGTERM), after so many seconds.",
)


def recorded_kernel(command: _Command) -> _Command:
    """Give a verb that records the options that say what there is to know of its
    kernel, and who loads the probes."""
    nodes = option(
        "--cdm-nodes",
        metavar="LIST",
        help="The CDM nodes, such as 1 or 1,3-5. A kernel without VM_CDM is recorded "
        "in shadow mode then.",
    )
    mask = option(
        "--vm-cdm-mask",
        metavar="MASK",
        help="The bit of vm_flags that is VM_CDM, such as 0x4000000000 or bit:38.",
    )
    return nodes(mask(kernel_profile(_loader(command))))
