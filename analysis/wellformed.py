"""Whether a rule that somebody else has written, and what it says, is what it must be.

Python checks no types, and what is wrong in a rule would show far from it: in the
sorting of findings, or in a verdict that says "unchecked" for ever.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, get_args

from cdmtrace.analysis.frames import Event
from cdmtrace.analysis.notes import Note
from cdmtrace.analysis.profiles import PROFILES
from cdmtrace.analysis.rules import OWN_ID
from cdmtrace.analysis.rules.rule import Judgement, Rule, Severity, Violation
from cdmtrace.events import EventKind, Probe

_NAME: Final = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")
_EVENTS: Final = frozenset(kind.name for kind in EventKind)
_PROBES: Final = frozenset(probe.name.lower() for probe in Probe)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Kind:
    """What a field has to be. words: the same in words."""

    words: str
    holds: Callable[[Any], bool]


def _a(type_: type, words: str) -> _Kind:
    return _Kind(words=words, holds=lambda value: isinstance(value, type_))


def _several(
    container: type[tuple[Any, ...] | frozenset[Any]], of: type, words: str
) -> _Kind:
    return _Kind(
        words=words,
        holds=lambda value: (
            isinstance(value, container) and all(isinstance(one, of) for one in value)
        ),
    )


def _pattern(pattern: re.Pattern[str], words: str) -> _Kind:
    return _Kind(
        words=words,
        holds=lambda value: isinstance(value, str) and bool(pattern.fullmatch(value)),
    )


def _or_none(kind: _Kind) -> _Kind:
    return _Kind(
        words=f"{kind.words} or None",
        holds=lambda value: value is None or kind.holds(value),
    )


_TEXT: Final = _pattern(re.compile(r"(?s).+"), "a text")
_ADDRESS: Final = _Kind(
    words="an address",
    holds=lambda value: type(value) is int and 0 <= value <= 1 << 64,
)
_TEXTS: Final = _several(tuple, str, "a tuple of texts")
_NAMES: Final = _several(frozenset, str, "a frozenset of texts")
_FLAG: Final = _a(bool, "True or False")

_RULE: Final[Mapping[str, _Kind]] = {
    "id": _pattern(OWN_ID, "two to eight capitals, but CDM, and three digits: LAB001"),
    "name": _pattern(_NAME, "small letters with hyphens between: slow-mbind"),
    "severity": _a(Severity, "a Severity"),
    "statement": _TEXT,
    "premise": _TEXT,
    "source": _TEXT,
    "sentence": _TEXT,
    "events": _TEXTS,
    "needs": _NAMES,
    "leans": _NAMES,
    "threats": _TEXTS,
    "limits": _TEXTS,
    "judge": _Kind(words="a function", holds=callable),
    "note": _Kind(
        words="a class of notes or None",
        holds=lambda value: value is None or value in get_args(Note),
    ),
    "profiles": _NAMES,
    "once": _FLAG,
    "stacks": _Kind(
        words="'', 'changes' or 'all'",
        holds=lambda value: value in ("", "changes", "all"),
    ),
    "tagless": _FLAG,
    "departures": _FLAG,
}

_KNOWN: Final[Mapping[str, frozenset[str]]] = {
    "events": _EVENTS,
    "needs": _PROBES,
    "leans": _PROBES,
    "profiles": frozenset(PROFILES),
}
"""Field -> the words that may be in it: a probe that is misspelt is never attached."""

_JUDGEMENT: Final[Mapping[str, _Kind]] = {
    "window": _or_none(
        _Kind(
            words="a pair of times in ns",
            holds=lambda value: (
                isinstance(value, tuple) and [*map(type, value)] == [int, int]
            ),
        )
    ),
    "unknown": _or_none(_TEXT),
    "violation": _or_none(_a(Violation, "a Violation")),
}

_VIOLATION: Final[Mapping[str, _Kind]] = {
    "cause": _TEXT,
    "start": _ADDRESS,
    "end": _ADDRESS,
    "expected": _TEXT,
    "observed": _TEXT,
    "witness": _several(tuple, Event, "a tuple of Event"),
    "shape": _TEXTS,
    "breaks": _or_none(_TEXT),
}


def flaws(rule: Any, others: Collection[Rule]) -> Iterator[str]:
    """Yield what is wrong with a rule; others: that there are. After the first of them,
    nothing else can be relied on.
    """
    if not isinstance(rule, Rule):
        yield "it is no Rule"
    yield from _unlike("its", rule, _RULE)
    for name, known in _KNOWN.items():
        for word in sorted(getattr(rule, name)):
            # What is no row of a recording is told in words.
            if word not in known and not (name == "events" and " " in word):
                yield f"its {name} has {word!r}, which there is not"
    for other in others:
        if rule.id == other.id or rule.name == other.name:
            yield f"there is a rule {other.id} {other.name} already"


def wrongs(judgement: Any) -> Iterator[str]:
    """Yield what is wrong with what a rule says; as flaws() does."""
    if not isinstance(judgement, Judgement):
        yield f"{judgement!r} is no Judgement"
    yield from _unlike("its", judgement, _JUDGEMENT)
    violation = judgement.violation
    if violation is None:
        return
    yield from _unlike("the violation's", violation, _VIOLATION)
    if violation.start > violation.end:
        yield "the violation ends before it starts"
    if not violation.witness:
        yield "a violation without a witness shows nothing"


def _unlike(whose: str, thing: Any, kinds: Mapping[str, _Kind]) -> Iterator[str]:
    for name, kind in kinds.items():
        value = getattr(thing, name)
        if not kind.holds(value):
            yield f"{whose} {name} is {value!r}, and not {kind.words}"
