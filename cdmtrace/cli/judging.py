"""What is asked of recordings by the options of every verb that judges them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click

from cdmtrace import tomlfile
from cdmtrace.cli.options import SPECIFICATIONS, option, profile_option, typed
from cdmtrace.cli.progress import ticker
from cdmtrace.errors import UsageTrouble

if TYPE_CHECKING:
    from cdmtrace.analysis.asked import Asked
    from cdmtrace.analysis.baseline import Baseline
    from cdmtrace.analysis.book import Bounds
    from cdmtrace.analysis.frames import Trace
    from cdmtrace.analysis.result import Result
    from cdmtrace.analysis.rules import Rule
    from cdmtrace.render.outcomes import Call


_OF_SERVICES: Final = "np"

Sources = Sequence[tuple[Path, bytes]]


@dataclass(frozen=True, kw_only=True, slots=True)
class JudgedBy:
    """The options by which recordings are judged, as they were given.

    A verb that has some of them only leaves the others out.
    """

    rules_from: tuple[Path, ...] = ()
    rules: str | None = None
    profile: str = SPECIFICATIONS[0]
    allow: tuple[str, ...] = ()
    permissions: Path | None = None

    def typed(self) -> tuple[str, ...]:
        """Return them as they are typed, but for --rules and what counts by default."""
        words = []
        if self.profile != SPECIFICATIONS[0]:
            words += ["--profile", self.profile]
        if self.permissions is not None:
            words += ["--permissions", str(self.permissions)]
        for one in self.allow:
            words += ["--allow", one]
        for path in self.rules_from:
            words += ["--rules-from", str(path)]
        return tuple(words)

    def sources(self) -> Sources:
        """Return the files of rules, path and source each. Raises UnreadableFile.

        One may be a pipe: it is read once.
        """
        from cdmtrace.analysis import ownrules

        return tuple((path, ownrules.source(path)) for path in self.rules_from)

    def asked(self, sources: Sources | None = None) -> Asked:
        """Return what they ask for. The files of rules are run.

        sources: of sources(), where they are known. Raises UsageTrouble for what there
        is not, and for what does not go together, and UnreadableFile for a file of
        rules that is none.
        """
        from cdmtrace.analysis import ownrules, services
        from cdmtrace.analysis.asked import Asked
        from cdmtrace.analysis.permissions import read

        own = ownrules.run(self.sources() if sources is None else sources)
        chosen = None if self.rules is None else rule_ids(self.rules, own)
        if (self.allow or self.permissions) and self.profile != _OF_SERVICES:
            given = "--allow" if self.allow else "--permissions"
            raise UsageTrouble(
                f"{given} is about services, of which --profile {self.profile} says "
                "nothing",
                hint=f"--profile np {given} ...",
            )
        flags = {one.name: one.flag for one in services.SERVICES}
        return Asked(
            rules=chosen,
            profile=self.profile,
            permissions=read(self.allow, self.permissions, flags),
            own=own,
        )


rules_from_option = option(
    "--rules-from",
    multiple=True,
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Rules of your own, beside those that there are: a file of Python, which is "
    "run. May be repeated.",
)
"""For every verb that has findings."""

_OPTIONS: Final = (
    rules_from_option,
    option(
        "--rules",
        metavar="LIST",
        help="Check these only, by id or name, separated by commas.",
    ),
    profile_option(
        "What the tag must mean: as the review wants it, or as the patches have it. "
        "np: not the tag, but which services of the kernel touched pages of CDM nodes."
    ),
    option(
        "--allow",
        multiple=True,
        metavar="NODE:SERVICE[,SERVICE...]",
        help="Under --profile np: these services may touch pages of this node, beside "
        "what --permissions allows, or mempolicy. NODE or SERVICE may be all. May be "
        "repeated.",
    ),
    option(
        "--permissions",
        type=click.Path(path_type=Path),
        metavar="FILE",
        help="The same from a file of TOML, instead of mempolicy: [node.1] and "
        'allow = ["ksm"].',
    ),
)

_Returned = TypeVar("_Returned")


def judged_by(command: Callable[..., _Returned]) -> Callable[..., _Returned]:
    """Give a verb the options of :class:`JudgedBy`, all in its parameter ``by``."""
    names = [field.name for field in fields(JudgedBy)]

    @functools.wraps(command)
    def gathered(*positional: Any, **given: Any) -> _Returned:
        told = {name: given.pop(name) for name in names}
        if told["profile"] != _OF_SERVICES:
            # A variable that says what they may is not about this call.
            for name in ("allow", "permissions"):
                if not typed(name):
                    del told[name]
        by = JudgedBy(**told)
        return command(*positional, by=by, **given)

    for one in reversed(_OPTIONS):
        gathered = one(gathered)
    return gathered


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


def known(file: Path | None) -> Baseline:
    """Return the baseline of a file; of none, nothing is known.

    Raises UsageTrouble for a file that is none.
    """
    from cdmtrace.analysis import baseline

    if file is None:
        return baseline.NONE
    told = tomlfile.read(file, option="--baseline", example=baseline.EXAMPLE)
    return baseline.parse(told, str(file))


def question(asked: Asked, sources: Sources, known: Baseline) -> dict[str, Any]:
    """Return the same for a worker, which need not have the files: of
    fleet.work.Question.
    """
    return {
        "rules": asked.rules,
        "profile": asked.profile,
        "permissions": asked.permissions,
        "own": tuple((str(path), source) for path, source in sources),
        "known": known,
        "named": asked.rules is not None,
    }


def results(
    recordings: Iterable[Sequence[Path]],
    asked: Asked,
    bounds: Bounds | None = None,
    workers: int | None = 1,
) -> list[Result]:
    """Return what comes of each recording. recordings: the parts of each. bounds: what
    is kept; None: what findings and verdicts need, of which several processes may see
    to a share each. workers: how many; None: as many as are of use.

    Raises UnreadableFile for a file that is none, and UsageTrouble where a node is
    allowed something that is a CDM node of none of them.
    """
    from cdmtrace.analysis import frames
    from cdmtrace.analysis.permissions import require_nodes

    traces = [frames.load(*files, ticker=ticker()) for files in recordings]
    require_nodes(
        asked.permissions, {node for trace in traces for node in trace.terms.nodes}
    )
    if bounds is not None:
        return [asked.judge(trace, bounds) for trace in traces]
    return [_result(trace, asked, workers) for trace in traces]


def _result(trace: Trace, asked: Asked, workers: int | None) -> Result:
    """Return what comes of a recording, by as many processes as are of use."""
    from cdmtrace import parallel

    # Rules from files are known to this process alone.
    found = [] if asked.own else parallel.parted(trace, workers)
    if not found:
        return asked.judge(trace)
    return asked.result(trace, parallel.each(trace, found, asked.of_share))


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

    rules = {one.rule.id: one.rule for result in results for one in result.rules}
    left_open = status.left_open(
        rules.values(), named=named, allow_inconclusive=allow_inconclusive
    )
    return Call(
        documents=[document.check(one, known, named=named) for one in results],
        rules={id_: document.rule(rule) for id_, rule in rules.items()},
        status=status.exit_status(
            results, named=named, allow_inconclusive=allow_inconclusive, known=known
        ),
        left_open={
            id_: [verdict.value for verdict in verdicts]
            for id_, verdicts in left_open.items()
        },
    )
