"""Rules from files of one's own, beside those of cdmtrace (docs/own-rules.md).

Such a file is a program, and reading it runs it. What it gives is looked at before it
judges anything, and so is each judgement: where a rule is wrong, that is told of the
rule, and is no error of the recording or of cdmtrace.
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, Final

from msgspec.structs import replace

from cdmtrace.analysis import wellformed
from cdmtrace.analysis.frames import Terms
from cdmtrace.analysis.notes import Note
from cdmtrace.analysis.rules import RULES
from cdmtrace.analysis.rules.rule import Judge, Judgement, Rule
from cdmtrace.errors import RuleFault, UnreadableFile
from cdmtrace.format.schema import printable

_HINT: Final = "docs/own-rules.md says what is in such a file"


def read(paths: Iterable[Path]) -> tuple[Rule, ...]:
    """Return the rules of these files, in order; this runs them.

    Raises UnreadableFile for a file that cannot be read, and as run() does.
    """
    return run((path, source(path)) for path in paths)


def source(path: Path) -> bytes:
    """Return what a file of rules holds. Raises UnreadableFile."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise UnreadableFile(
            f"{path}: cannot be read: {error.strerror}",
            hint="--rules-from names a file of Python",
        ) from error


def run(files: Iterable[tuple[Path, bytes]]) -> tuple[Rule, ...]:
    """Return the rules of files of which this is the path and the source.

    Raises UnreadableFile for a file that cannot be run, has no RULES, or has one that
    is no rule, or is called like another one. The rules raise RuleFault where they
    fail to judge.
    """
    found: list[Rule] = []
    for path, text in files:
        for rule in _rules(_run(path, text), path):
            _require_sound(rule, path, (*RULES, *found))
            found.append(replace(rule, judge=_guarded(rule, path)))
    return tuple(found)


def _run(path: Path, text: bytes) -> ModuleType:
    """Return the file as a module. Nothing is written beside it, as import would."""
    module = ModuleType(f"rules of {path.resolve()}")
    module.__file__ = str(path)
    # A dataclass looks there for what its annotations name.
    sys.modules[module.__name__] = module
    try:
        exec(compile(text, str(path), "exec"), module.__dict__)
    except (Exception, SystemExit) as error:
        del sys.modules[module.__name__]
        raise UnreadableFile(
            f"{path}: is no file of rules: {_said(error)}",
            details=_where(error, path),
            hint=_HINT,
        ) from error
    return module


def _rules(module: ModuleType, path: Path) -> Sequence[Any]:
    rules = getattr(module, "RULES", None)
    if not isinstance(rules, tuple | list) or not rules:
        what = "has no RULES" if rules is None else "has no rules in its RULES"
        raise UnreadableFile(f"{path}: {what}", hint="RULES = (MY_RULE,)")
    return rules


def _require_sound(rule: Any, path: Path, others: Collection[Rule]) -> None:
    """Raise UnreadableFile for what is no rule, and for an id or name that is taken."""
    flaw = next(wellformed.flaws(rule, others), None)
    if flaw is None:
        return
    called = rule.id if isinstance(rule, Rule) else rule
    raise UnreadableFile(f"{path}: {printable(f'{called!s}: {flaw}')}", hint=_HINT)


def _guarded(rule: Rule, path: Path) -> Judge:
    """Return the rule's judge, whose failures are told to be the rule's."""

    def judge(note: Note, terms: Terms, profile: str) -> Judgement | None:
        try:
            judgement = rule.judge(note, terms, profile)
        except (Exception, SystemExit) as error:
            raise _fault(rule, path, note, _said(error), _where(error, path)) from error
        if judgement is None:
            return None
        if flaw := next(wellformed.wrongs(judgement), None):
            raise _fault(rule, path, note, printable(flaw), None)
        return _printable(judgement)

    return judge


def _fault(
    rule: Rule, path: Path, note: Note, why: str, details: str | None
) -> RuleFault:
    return RuleFault(
        f"{path}: {rule.id} {rule.name} failed to judge row {note.event.seq} "
        f"({type(note).__name__}): {why}",
        details=details,
        hint="it is the rule that is wrong, not the kernel: mend it, or leave the file "
        "away",
    )


def _printable(judgement: Judgement) -> Judgement:
    """Return it with nothing in its words that moves a cursor: they may quote a row."""
    if judgement.unknown is not None:
        judgement = replace(judgement, unknown=printable(judgement.unknown))
    violation = judgement.violation
    if violation is None:
        return judgement
    shown = replace(
        violation,
        cause=printable(violation.cause),
        expected=printable(violation.expected),
        observed=printable(violation.observed),
        breaks=None if violation.breaks is None else printable(violation.breaks),
    )
    return replace(judgement, violation=shown)


def _said(error: BaseException) -> str:
    """Return an error in a line."""
    return printable(f"{type(error).__name__}: {error}".removesuffix(": "))


def _where(error: BaseException, path: Path) -> str | None:
    """Return the lines of the file that led to an error, None for none."""
    if isinstance(error, SyntaxError) and error.filename == str(path):
        return f"line {error.lineno}: {printable((error.text or '').strip())}"
    lines = [
        f"line {frame.lineno}: {printable(frame.line or '')}"
        for frame in traceback.extract_tb(error.__traceback__)
        if frame.filename == str(path)
    ]
    return "\n".join(lines) or None
