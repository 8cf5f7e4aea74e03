"""What is asked of recordings by the options of every verb that judges them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cdmtrace import tomlfile
from cdmtrace.cli.options import SPECIFICATIONS
from cdmtrace.cli.progress import ticker
from cdmtrace.errors import UsageTrouble

if TYPE_CHECKING:
    from cdmtrace.analysis.baseline import Baseline
    from cdmtrace.analysis.book import Bounds
    from cdmtrace.analysis.permissions import Permissions
    from cdmtrace.analysis.replay import Result
    from cdmtrace.analysis.rules import Rule
    from cdmtrace.render.outcomes import Call


@dataclass(frozen=True, kw_only=True, slots=True)
class Asked:
    """What to judge by.

    rules: ids; None: all that the profile is about. own: rules from files.
    """

    rules: frozenset[str] | None
    profile: str
    permissions: Permissions
    own: tuple[Rule, ...] = ()


def typed(
    profile: str,
    allow: Iterable[str] = (),
    permissions: Path | None = None,
    rules_from: Iterable[Path] = (),
) -> tuple[str, ...]:
    """Return these options as they are typed, but for what counts by default."""
    words = [] if profile == SPECIFICATIONS[0] else ["--profile", profile]
    if permissions is not None:
        words += ["--permissions", str(permissions)]
    for one in allow:
        words += ["--allow", one]
    for path in rules_from:
        words += ["--rules-from", str(path)]
    return tuple(words)


def rule_ids(text: str, own: Iterable[Rule] = ()) -> frozenset[str]:
    """Return the ids of rules given by id or name, separated by commas.

    own: rules from files. Raises UsageTrouble for one that does not exist.
    """
    from cdmtrace.analysis.rules import RULES, find

    ids = set()
    for name in filter(None, (part.strip() for part in text.split(","))):
        rule = find(name, own)
        if rule is None:
            known = ", ".join(one.id for one in (*RULES, *own))
            raise UsageTrouble(
                f"--rules {name}: no such rule", hint=f"one of {known}, or its name"
            )
        ids.add(rule.id)
    if not ids:
        raise UsageTrouble("--rules names no rule", hint="such as --rules CDM001")
    return frozenset(ids)


def asked_for(
    rules: str | None,
    profile: str,
    allow: tuple[str, ...],
    permissions: Path | None,
    rules_from: tuple[Path, ...] = (),
) -> Asked:
    """Return what the options of ``judged_by`` ask for. The files of rules are run.

    Raises UsageTrouble for what there is not, and for what does not go together, and
    UnreadableFile for a file of rules that is none.
    """
    from cdmtrace.analysis import ownrules, services
    from cdmtrace.analysis.permissions import read

    own = ownrules.read(rules_from)
    chosen = None if rules is None else rule_ids(rules, own)
    if (allow or permissions) and profile != "np":
        given = "--allow" if allow else "--permissions"
        raise UsageTrouble(
            f"{given} is about services, of which --profile {profile} says nothing",
            hint=f"--profile np {given} ...",
        )
    flags = {one.name: one.flag for one in services.SERVICES}
    return Asked(
        rules=chosen,
        profile=profile,
        permissions=read(allow, permissions, flags),
        own=own,
    )


def known(file: Path | None) -> Baseline:
    """Return the baseline of a file; of none, nothing is known.

    Raises UsageTrouble for a file that is none.
    """
    from cdmtrace.analysis import baseline

    if file is None:
        return baseline.NONE
    told = tomlfile.read(file, option="--baseline", example=baseline.EXAMPLE)
    return baseline.parse(told, str(file))


def results(
    recordings: Iterable[Sequence[Path]], asked: Asked, bounds: Bounds | None = None
) -> list[Result]:
    """Return what comes of each recording. recordings: the parts of each. bounds: what
    is kept; None: what findings and verdicts need.

    Raises UnreadableFile for a file that is none, and UsageTrouble where a node is
    allowed something that is a CDM node of none of them.
    """
    from cdmtrace.analysis import frames, replay
    from cdmtrace.analysis.book import VERDICT
    from cdmtrace.analysis.permissions import require_nodes

    traces = [frames.load(*files, ticker=ticker()) for files in recordings]
    require_nodes(
        asked.permissions, {node for trace in traces for node in trace.terms.nodes}
    )
    return [
        replay.check(
            trace,
            profile=asked.profile,
            rules=asked.rules,
            permissions=asked.permissions,
            bounds=bounds or VERDICT,
            own=asked.own,
        )
        for trace in traces
    ]


def told(
    results: Sequence[Result],
    known: Baseline,
    *,
    named: bool,
    allow_inconclusive: bool,
) -> Call:
    """Return what a check of these has to tell, in any format.

    known: what is suppressed. named, allow_inconclusive: as for status.exit_status().
    """
    from cdmtrace.analysis import document, status
    from cdmtrace.render.outcomes import Call

    left_open = status.open_verdicts(named=named, allow_inconclusive=allow_inconclusive)
    return Call(
        documents=[document.check(result, known) for result in results],
        rules={
            one.rule.id: document.rule(one.rule)
            for result in results
            for one in result.rules
        },
        status=status.exit_status(
            results, named=named, allow_inconclusive=allow_inconclusive, known=known
        ),
        left_open=[verdict.value for verdict in left_open],
    )
