"""Which functions of the running kernel can be probed, and by what name."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from cdmtrace.errors import RecordError

KALLSYMS: Final = Path("/proc/kallsyms")

_TWIN: Final = re.compile(r"^(?P<base>\w+)\.(?:isra|constprop|part)\.\d+")
"""What GCC calls a copy of a function that it changed for some callers."""


class SymbolsUnknown(RecordError):
    """The kernel does not tell the names of its functions (exit status 125)."""


def functions(path: Path = KALLSYMS) -> frozenset[str]:
    """Return the names of all functions, those of modules and twins among them.

    Raises SymbolsUnknown.
    """
    if not path.exists():
        raise SymbolsUnknown(
            f"{path} is missing: the names of the kernel's functions are unknown",
            hint="boot a kernel that has CONFIG_KALLSYMS=y",
        )
    names = set()
    with path.open() as lines:
        for line in lines:
            _, kind, name, *_ = line.split(maxsplit=3)
            if kind in "tTwW":
                names.add(name)
    return frozenset(names)


def twins(known: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """Return function -> the compiler's changed copies of it, sorted.

    A copy may take other arguments than the original, so a probe that reads
    arguments must not be put on one. That there is one means that some callers
    are not seen.
    """
    found: dict[str, list[str]] = {}
    for name in known:
        if "." in name and (match := _TWIN.match(name)):
            found.setdefault(match["base"], []).append(name)
    return {base: tuple(sorted(names)) for base, names in found.items()}


def pick(candidates: Iterable[str], known: frozenset[str]) -> str | None:
    """Return the first candidate that the kernel has, newest name first."""
    return next((name for name in candidates if name in known), None)
