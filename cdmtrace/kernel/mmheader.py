"""The flags that include/linux/mm.h defines, read as text.

Compiling it to find out takes half a minute in an emulated guest.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

MM_H: Final = Path("include/linux/mm.h")

_DEFINE: Final = re.compile(
    r"[ \t]*#[ \t]*define[ \t]+(?P<name>_?VM_\w+)[ \t]+"
    r"(?P<value>.*?)[ \t]*(?:/[*/].*)?$"
)
_DECLARE: Final = re.compile(
    r"[ \t]*DECLARE_VMA_BIT(?P<alias>_ALIAS)?\((?P<name>\w+),[ \t]*(?P<value>\w+)\)"
)
"""One bit of the enum that holds the numbers from 6.19 on. An alias names another."""

_CONDITION: Final = re.compile(
    r"[ \t]*#[ \t]*(?P<word>if|ifdef|ifndef|elif|else|endif)\b(?P<rest>.*)"
)
_DEFINED: Final = re.compile(r"(?P<no>!)?\s*defined\s*(?:\(\s*(\w+)\s*\)|(\w+))")
_COMPARED: Final = re.compile(r"(CONFIG_\w+)\s*(>=|<=|==|!=|>|<)\s*(\d+)")
_COMPARE: Final = {
    ">": operator.gt,
    ">=": operator.ge,
    "<": operator.lt,
    "<=": operator.le,
    "==": operator.eq,
    "!=": operator.ne,
}

_NO_FLAG: Final = re.compile(r"_BIT(_\d+)?$|_SHIFT$|_MASK$|^VM_UNMAPPED_AREA_")
"""Numbers beside the flags: bit numbers, and flags of other words."""

_BIT_MACROS: Final = frozenset({"BIT", "BIT_ULL", "_BITUL", "_BITULL"})

_ATOM: Final = re.compile(
    r"0[xX](?P<hex>[0-9a-fA-F]+)[uUlL]*|(?P<dec>\d+)[uUlL]*|(?P<name>[A-Za-z_]\w*)"
    r"|(?P<op><<|[()|+\-])|(?P<space>\s+)"
)


def evaluate(
    expression: str, names: Mapping[str, str], config: Mapping[str, str]
) -> int | None:
    """Return the value of a flag's definition, None if it cannot be told.

    Knows numbers, <<, |, +, -, parentheses, BIT() and its kin, INIT_VM_FLAG(), other
    definitions of the same header, and options of the configuration. A name that the
    header does not define is taken for the option that is called like it.
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
            _, sign = self._tokens.pop(0)
            right = self._term()
            if sign == "<<":
                if right > 63:
                    raise ValueError(right)
                left <<= right
            else:
                left = {"|": left | right, "+": left + right, "-": left - right}[sign]
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
        if kind == "name" and text in _BIT_MACROS:
            self._expect("(")
            bit = self._sum()
            self._expect(")")
            return _bit(bit)
        if kind == "name" and text == "INIT_VM_FLAG":
            self._expect("(")
            _, flag = self._tokens.pop(0)
            self._expect(")")
            return _bit(self._named(f"VMA_{flag}_BIT"))
        if kind == "name":
            return self._named(text)
        raise LookupError(text)

    def _named(self, name: str) -> int:
        option = name
        if name not in self._names and not name.startswith("CONFIG_"):
            # From another header, where nobody looks: most likely what is configured.
            option = f"CONFIG_{name}"
        if option in self._config:
            return int(self._config[option], 0)
        value = _Parser(
            self._names[name], self._names, self._config, depth=self._depth + 1
        ).value()
        if value is None:
            raise LookupError(name)
        return value

    def _expect(self, sign: str) -> None:
        if self._tokens.pop(0) != ("op", sign):
            raise ValueError(sign)


def _bit(number: int) -> int:
    if not 0 <= number <= 63:
        raise ValueError(number)
    return 1 << number


def _atom(text: str, config: Mapping[str, str]) -> bool | None:
    """Return whether one term of a condition holds, None if it cannot be told."""
    if match := _DEFINED.fullmatch(text.strip()):
        name = match[2] or match[3]
        # What is built as a module has another macro.
        there = name in config and config[name] != "m"
        return there is not bool(match["no"]) if name.startswith("CONFIG_") else None
    match = _COMPARED.fullmatch(text.strip())
    if match and config.get(match[1], "").isdecimal():
        return bool(_COMPARE[match[2]](int(config[match[1]]), int(match[3])))
    return None


def _holds(condition: str, config: Mapping[str, str]) -> bool | None:
    """Return whether a condition holds, None if it cannot be told."""
    if not config:
        return None
    found: bool | None = False
    for part in condition.split("||"):
        terms = [_atom(term, config) for term in part.split("&&")]
        if all(terms):
            return True
        if False not in terms:
            found = None
    return found


def _compiled(text: str, config: Mapping[str, str]) -> Iterator[str]:
    """Yield the lines that a kernel of this configuration has, and may have.

    A condition that is not about the configuration alone hides nothing, neither the
    lines that it is for nor those that it is not.
    """
    frames: list[tuple[bool | None, bool]] = []
    for line in text.replace("\\\n", " ").splitlines():
        match = _CONDITION.match(line)
        if match is None:
            if all(live is not False for live, _ in frames):
                yield line
            continue
        kind, rest = match["word"], re.sub(r"/\*.*", "", match["rest"]).strip()
        had = False
        if not kind.startswith("if"):
            if not frames:
                continue
            _, had = frames.pop()
            if kind == "endif":
                continue
        condition = {"ifdef": f"defined({rest})", "ifndef": f"!defined({rest})"}
        holds = kind == "else" or _holds(condition.get(kind, rest), config)
        live = False if had else holds
        frames.append((live, had or holds is True))


def definitions(text: str, config: Mapping[str, str]) -> dict[str, int]:
    """Return name -> mask of every one-bit VM_ flag that the header defines.

    Of lines for another configuration there are none; all of them where config is
    empty. A name with several definitions has the first that can be told and is not 0.
    A bit that the enum reserves counts, be its flag defined or not.
    """
    raw: dict[str, list[str]] = {}
    reserved = []
    for line in _compiled(text, config):
        if match := _DEFINE.match(line):
            raw.setdefault(match["name"], []).append(match["value"])
        elif match := _DECLARE.match(line):
            value = f"VMA_{match['value']}_BIT" if match["alias"] else match["value"]
            raw.setdefault(f"VMA_{match['name']}_BIT", []).append(value)
            if not match["alias"]:
                reserved.append(match["name"])
    for name in reserved:
        raw.setdefault(f"VM_{name}", []).append(f"INIT_VM_FLAG({name})")
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
