"""Findings that are known and stay for now, each with the reason why.

A file of TOML: people write the reasons, review them and comment on them, and a table
for each finding makes each of them one change of a diff.

    [findings.1b7f4b7b2d775104]
    rule = "CDM001"
    reason = "one-way tags are mended by the next series"

The key is a finding's fingerprint, in which is no address, pid or time.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from cdmtrace import tomlfile
from cdmtrace.analysis.compare import not_judged
from cdmtrace.analysis.result import Finding, Result
from cdmtrace.analysis.rules import BY_ID, OWN_ID, find
from cdmtrace.errors import UsageTrouble

EXAMPLE: Final = '[findings.1b7f4b7b2d775104] and reason = "..."'

_KEYS: Final = ("rule", "cause", "process", "profile", "reason")

_USUAL: Final = "intended"
"""The profile of an entry that names none."""

_HEAD: Final = """\
# Findings that are known: cdmtrace check --baseline with this file suppresses them.
# Each needs a reason; a file that lacks one is refused. What each is:
# cdmtrace explain RECORDING ID
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """A finding that is known.

    reason: why it may stay; empty as long as nobody has said. rule: its id, empty if
    the file does not say. profile: under which it is found: an id is another one under
    another. cause, process: for whoever reads the file.
    """

    fingerprint: str
    reason: str
    rule: str = ""
    cause: str = ""
    process: str = ""
    profile: str = _USUAL

    def __str__(self) -> str:
        what = " ".join(filter(None, (self.rule, self.cause, self.process)))
        return f"{self.fingerprint} ({what})" if what else self.fingerprint


@dataclass(frozen=True, kw_only=True, slots=True)
class Baseline:
    """What a file says. file: its path, empty if none was given.

    entries: by fingerprint.
    """

    file: str = ""
    entries: Mapping[str, Entry] = field(default_factory=dict)

    def suppresses(self, finding: Finding) -> bool:
        """Return whether a finding is known, and sets no exit status."""
        return finding.fingerprint in self.entries


NONE: Final = Baseline()
"""Nothing is known."""


def parse(told: Mapping[str, Any], file: str) -> Baseline:
    """Return what a file of TOML says. file: its path.

    Raises UsageTrouble for what it may not say, and for an entry without a reason.
    """
    tomlfile.only(told, {"findings"}, file)
    tables = told.get("findings", {})
    if not isinstance(tables, dict):
        raise UsageTrouble(f"{file}: findings: is no table", hint=EXAMPLE)
    entries = {key: _entry(key, table, file) for key, table in tables.items()}
    without = [str(one) for one in entries.values() if not one.reason.strip()]
    if without:
        more = f", nor have {len(without) - 1} more" if len(without) > 1 else ""
        raise UsageTrouble(
            f"{file}: {without[0]} has no reason{more}",
            hint='reason = "..." says why this finding may stay',
        )
    return Baseline(file=file, entries=entries)


def _entry(key: str, table: Any, file: str) -> Entry:
    where = f"{file}: findings.{key}"
    if not re.fullmatch("[0-9a-f]{16}", key):
        raise UsageTrouble(
            f"{where}: is no id of a finding",
            hint="16 hexadecimal digits, as check prints them",
        )
    if not isinstance(table, dict):
        raise UsageTrouble(f"{where}: is no table", hint=EXAMPLE)
    tomlfile.only(table, _KEYS, where)
    for name, value in table.items():
        if not isinstance(value, str):
            raise UsageTrouble(f"{where}.{name}: is no text", hint=f'{name} = "..."')
    rule = table.get("rule", "")
    found = find(rule)
    if rule and found is None and not OWN_ID.fullmatch(rule):
        raise UsageTrouble(
            f"{where}.rule: {rule}: no such rule",
            hint="cdmtrace explain lists all rules",
        )
    return Entry(
        fingerprint=key,
        reason=table.get("reason", ""),
        rule=found.id if found else rule,
        cause=table.get("cause", ""),
        process=table.get("process", ""),
        profile=table.get("profile", _USUAL),
    )


def stale(baseline: Baseline, results: Iterable[Result]) -> list[Entry]:
    """Return the entries that nothing was found of, though it could have been.

    An entry whose rule could be judged in none of these recordings says nothing, nor
    does one of another profile; one that names no rule is taken to be of one that
    could.
    """
    several = list(results)
    return unmet(
        baseline,
        found={one.fingerprint for result in several for one in result.findings},
        profiles={result.profile.name for result in several},
        judged={
            one.rule.id
            for result in several
            for one in result.rules
            if not_judged(one) is None
        },
    )


def unmet(
    baseline: Baseline,
    *,
    found: Collection[str],
    profiles: Collection[str],
    judged: Collection[str],
) -> list[Entry]:
    """Return the same of what was found, judged by which profiles, and which rules
    could be judged.
    """
    return [
        entry
        for entry in baseline.entries.values()
        if entry.fingerprint not in found
        and entry.profile in profiles
        and (not entry.rule or entry.rule in judged)
    ]


def drawn_up(results: Iterable[Result], reason: str, before: Baseline) -> Baseline:
    """Return a baseline of what was found.

    before: what was known: its reasons are kept, and its entries, but for those that
    are stale. reason: of all that is new, empty to have it filled in.
    """
    several = list(results)
    gone = {entry.fingerprint for entry in stale(before, several)}
    entries = {key: one for key, one in before.entries.items() if key not in gone}
    for result, finding in ((one, f) for one in several for f in one.findings):
        entries.setdefault(
            finding.fingerprint,
            Entry(
                fingerprint=finding.fingerprint,
                reason=reason,
                rule=finding.rule.id,
                cause=finding.cause,
                process=finding.mm.comm,
                profile=result.profile.name,
            ),
        )
    return Baseline(entries=entries)


def text(baseline: Baseline) -> str:
    """Return a baseline as a file says it, by rules and fingerprints."""
    entries = sorted(
        baseline.entries.values(), key=lambda one: (one.rule, one.fingerprint)
    )
    return "\n".join([_HEAD, *map(_table, entries)])


def _table(entry: Entry) -> str:
    lines = [f"[findings.{entry.fingerprint}]"]
    if entry.rule:
        # One of one's own has its name in a file that need not be at hand.
        known = BY_ID.get(entry.rule)
        remark = f"  # {known.name}" if known else ""
        lines.append(f"rule = {_quoted(entry.rule)}{remark}")
    if entry.cause:
        lines.append(f"cause = {_quoted(entry.cause)}")
    if entry.process:
        lines.append(f"process = {_quoted(entry.process)}")
    if entry.profile != _USUAL:
        lines.append(f"profile = {_quoted(entry.profile)}")
    return "\n".join([*lines, f"reason = {_quoted(entry.reason)}", ""])


def _quoted(words: str) -> str:
    """Return a basic string of TOML.

    JSON's are the same, but for two things: they may have DEL in them as it is, and
    half a surrogate pair: a byte of the command line that is no text.
    """
    whole = words.encode("utf-8", "replace").decode("utf-8")
    return json.dumps(whole, ensure_ascii=False).replace("\x7f", "\\u007f")
