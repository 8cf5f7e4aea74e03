"""Which bit of vm_flags is VM_CDM on this kernel, and whose the other bits are.

The kernel's headers say it: include/linux/mm.h, as text. Compiling them to find out
takes half a minute in an emulated guest.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from cdmtrace.errors import RecordError, UsageTrouble

MM_H: Final = Path("include/linux/mm.h")

_DEFINE: Final = re.compile(
    r"^[ \t]*#[ \t]*define[ \t]+(?P<name>(?:VM|_VM)_\w+|VM_\w+_BIT)[ \t]+"
    r"(?P<value>[^\n]*?)[ \t]*(?:/\*.*)?$",
    re.MULTILINE,
)
_NO_FLAG: Final = re.compile(r"_BIT(_\d+)?$|_SHIFT$|_MASK$|^VM_UNMAPPED_AREA_")
"""Numbers beside the flags: bit numbers, and flags of other words."""

_ATOM: Final = re.compile(
    r"0[xX](?P<hex>[0-9a-fA-F]+)[uUlL]*|(?P<dec>\d+)[uUlL]*|(?P<name>[A-Za-z_]\w*)"
    r"|(?P<op><<|[()|+\-])|(?P<space>\s+)"
)


class MaskUnknown(RecordError):
    """It is not known which bit is VM_CDM (exit status 125)."""


class BitTaken(RecordError):
    """The bit has another meaning on this kernel: CDM020 (exit status 125)."""


def parse_mask(text: str) -> int:
    """Return the mask that was given: one bit, or ``bit:38``. Raises UsageTrouble."""
    try:
        mask = 1 << int(text[4:], 0) if text.startswith("bit:") else int(text, 0)
    except ValueError:
        mask = 0
    if mask <= 0 or mask & (mask - 1) or mask >= 1 << 64:
        raise UsageTrouble(
            f"--vm-cdm-mask {text}: not a mask of one bit among 64",
            hint="write it as 0x4000000000 or bit:38",
        )
    return mask


def evaluate(
    expression: str, names: Mapping[str, str], config: Mapping[str, str]
) -> int | None:
    """Return the value of a flag's definition, None if it cannot be told.

    Knows numbers, <<, |, +, -, parentheses, BIT() and BIT_ULL(), other definitions
    of the same header, and options of the configuration.
    """
    return _Parser(expression, names, config, depth=0).value()


class _Parser:
    """A recursive descent over one definition; gives up at what it does not know."""

    def __init__(
        self,
        text: str,
        names: Mapping[str, str],
        config: Mapping[str, str],
        *,
        depth: int,
    ) -> None:
        self._names, self._config, self._depth = names, config, depth
        self._tokens: list[tuple[str, str]] = []
        position = 0
        while position < len(text):
            match = _ATOM.match(text, position)
            if match is None or match.lastgroup is None:
                self._tokens = [("unknown", text)]
                return
            if match.lastgroup != "space":
                self._tokens.append((match.lastgroup, match[match.lastgroup]))
            position = match.end()

    def value(self) -> int | None:
        if self._depth > 8 or not self._tokens:
            return None
        try:
            result = self._sum()
        except (IndexError, LookupError, ValueError):
            return None
        return None if self._tokens else result

    def _sum(self) -> int:
        left = self._term()
        while self._tokens and self._tokens[0] in (
            ("op", "|"),
            ("op", "<<"),
            ("op", "+"),
            ("op", "-"),
        ):
            _, operator = self._tokens.pop(0)
            right = self._term()
            if operator == "<<":
                if right > 63:
                    raise ValueError(right)
                left <<= right
            else:
                left = {"|": left | right, "+": left + right, "-": left - right}[
                    operator
                ]
        return left

    def _term(self) -> int:
        kind, text = self._tokens.pop(0)
        if kind == "hex":
            return int(text, 16)
        if kind == "dec":
            return int(text, 8 if text.startswith("0") and text != "0" else 10)
        if (kind, text) == ("op", "("):
            inner = self._sum()
            self._expect(")")
            return inner
        if kind == "name" and text in ("BIT", "BIT_ULL"):
            self._expect("(")
            bit = self._sum()
            self._expect(")")
            if not 0 <= bit <= 63:
                raise ValueError(bit)
            return 1 << bit
        if kind == "name" and text in self._config:
            return int(self._config[text], 0)
        if kind == "name" and text in self._names:
            value = _Parser(
                self._names[text], self._names, self._config, depth=self._depth + 1
            ).value()
            if value is not None:
                return value
        raise LookupError(text)

    def _expect(self, operator: str) -> None:
        if self._tokens.pop(0) != ("op", operator):
            raise ValueError(operator)


def definitions(text: str, config: Mapping[str, str]) -> dict[str, int]:
    """Return name -> mask of every one-bit VM_ flag that the header defines.

    A name with several definitions (one for each configuration) has the first that
    can be told and is not 0.
    """
    raw: dict[str, list[str]] = {}
    for match in _DEFINE.finditer(text):
        raw.setdefault(match["name"], []).append(match["value"])
    first = {name: values[0] for name, values in raw.items()}
    flags = {}
    for name, values in raw.items():
        for expression in values:
            value = evaluate(expression, first, config)
            if value and not value & (value - 1) and not _NO_FLAG.search(name):
                flags[name] = value
                break
    return flags


def read(roots: tuple[Path, ...], config: Mapping[str, str]) -> dict[str, int]:
    """Return definitions() of the first mm.h below roots; nothing if there is none."""
    for root in roots:
        path = root / MM_H
        if path.is_file():
            return definitions(path.read_text(errors="replace"), config)
    return {}


def find_mask(
    given: str | None, flags: Mapping[str, int], *, force: bool = False
) -> tuple[int, str, str | None]:
    """Return VM_CDM's mask, where it is from, and whose bit it is otherwise.

    Raises MaskUnknown if it was not given and the headers do not define VM_CDM,
    BitTaken if another flag has the same bit (unless forced; rule CDM020).
    """
    if given is not None:
        mask, source = parse_mask(given), "--vm-cdm-mask"
    elif "VM_CDM" in flags:
        mask, source = flags["VM_CDM"], f"{MM_H} of the running kernel"
    else:
        raise MaskUnknown(
            "the headers of this kernel do not define VM_CDM",
            hint="name its bit with --vm-cdm-mask, such as --vm-cdm-mask bit:38",
        )
    others = sorted(
        name for name, value in flags.items() if value == mask and name != "VM_CDM"
    )
    if others and not force:
        raise BitTaken(
            f"CDM020: {mask:#x} is {others[0]} on this kernel, not VM_CDM",
            hint="give another bit with --vm-cdm-mask, or record all the same "
            "with --force",
        )
    return mask, source, others[0] if others else None
