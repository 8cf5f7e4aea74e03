"""Which functions of the running kernel can be probed, and by what name."""

from __future__ import annotations

import re
from array import array
from bisect import bisect_right
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from cdmtrace.errors import RecordError

KALLSYMS: Final = Path("/proc/kallsyms")

_FUNCTION: Final = re.compile(r"^(\w+) [tTwW] (\S+)", re.MULTILINE)
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
    return frozenset(name for _, name in _listed(path))


def _listed(path: Path) -> list[tuple[str, str]]:
    """Return address and name of each function, as they are in the file."""
    # In one go, for there are a hundred thousand of them on a large kernel.
    return _FUNCTION.findall(path.read_text())


class Names:
    """Names of the kernel's functions by address, as they were when this was made.

    bcc knows them too, but asks for nobody whose effective user is not root.
    """

    def __init__(self, path: Path = KALLSYMS) -> None:
        """Read them all. Raises OSError. Who may not see addresses sees zeros."""
        # Of several at one address the first counts, as in the kernel's own dumps.
        found = dict(reversed(_listed(path)))
        # All are of one length, so that they sort as numbers do.
        told = sorted(address for address in found if address.strip("0"))
        self._addresses = array("Q", [int(address, 16) for address in told])
        self._names = [found[address] for address in told]

    def at(self, address: int) -> str:
        """Return name+0xoffset of an address in a function."""
        index = bisect_right(self._addresses, address) - 1
        if index < 0:
            return "[unknown]"
        return f"{self._names[index]}+{address - self._addresses[index]:#x}"


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
