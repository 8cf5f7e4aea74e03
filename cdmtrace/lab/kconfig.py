"""Kernel configuration fragments: reading them, and holding a build to them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

NOT_SET = "n"

_ASSIGNMENT = re.compile(r"(CONFIG_\w+)=(.*)")
_UNSET = re.compile(r"# (CONFIG_\w+) is not set")


@dataclass(frozen=True, kw_only=True, slots=True)
class Unhonoured:
    """An option that the final configuration does not have as asked."""

    option: str
    wanted: str
    got: str

    def __str__(self) -> str:
        return f"{self.option}={self.wanted}, but the build has {self.got}"


def parse(text: str) -> dict[str, str]:
    """Return option → value of a fragment or a ``.config``; the last line wins.

    ``# CONFIG_X is not set`` gives ``n``.  Other comments and blank lines are
    skipped; any other line raises ValueError, for a misspelt one would vanish.
    """
    options: dict[str, str] = {}
    for number, raw in enumerate(text.splitlines(), start=1):
        line = raw.strip()
        if match := _ASSIGNMENT.fullmatch(line):
            options[match[1]] = match[2]
        elif match := _UNSET.fullmatch(line):
            options[match[1]] = NOT_SET
        elif line and not line.startswith("#"):
            raise ValueError(f"line {number} is no configuration option: {line!r}")
    return options


def merge(fragments: Sequence[str]) -> dict[str, str]:
    """Return what ``fragments`` ask for together; later ones win."""
    wanted: dict[str, str] = {}
    for fragment in fragments:
        wanted.update(parse(fragment))
    return wanted


def render(options: Mapping[str, str]) -> str:
    """Return ``options`` as lines that kconfig reads."""
    return "".join(
        f"# {option} is not set\n" if value == NOT_SET else f"{option}={value}\n"
        for option, value in options.items()
    )


def unhonoured(wanted: Mapping[str, str], final: Mapping[str, str]) -> list[Unhonoured]:
    """Return the options of ``wanted`` that ``final`` has otherwise or not at all.

    kconfig drops an option whose dependencies are not met without a word.
    """
    return [
        Unhonoured(option=option, wanted=value, got=final.get(option, NOT_SET))
        for option, value in wanted.items()
        if final.get(option, NOT_SET) != value
    ]
