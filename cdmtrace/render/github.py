"""``check --format github``: workflow commands, which GitHub shows as annotations.

Every line is a command, and what comes from a recording is inside of one, escaped: no
name of a task or a file is a command of its own. GitHub shows ten annotations of each
kind for a step; the others are in the log of the job only. So the findings of one id
are one annotation.

https://docs.github.com/actions/reference/workflow-commands-for-github-actions
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from cdmtrace.render import divergence
from cdmtrace.render.outcomes import Call, Case, Outcome, cases, clean, line

_LEVELS: Final = {"error": "error", "warning": "warning", "info": "notice"}


def render(call: Call) -> str:
    """Return it as commands, a line each: findings, what is open, then summaries."""
    lines = [
        one
        for document in call.documents
        for one in _recording(document, cases(document, call.left_open))
    ]
    return "".join(f"{one}\n" for one in lines)


def command(level: str, title: str, message: str) -> str:
    """Return one command. level: error, warning or notice."""
    head = _escaped(line(title)).replace(":", "%3A").replace(",", "%2C")
    return f"::{level} title={head}::{_escaped(clean(message))}"


def _escaped(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _recording(document: Mapping[str, Any], own: Sequence[Case]) -> Iterator[str]:
    page = document["trace"]["page_size"]
    for case in own:
        for finding, alike in _by_id(case.findings):
            yield command(
                _LEVELS[finding["severity"]],
                f"{case.name}, cause: {finding['cause']}",
                divergence.finding(finding, page=page, alike=alike),
            )
    for case in own:
        if case.outcome is Outcome.ERROR:
            yield command("error", case.name, case.told or case.why)
    path = document["trace"]["path"]
    yield command("notice", f"cdmtrace: {path}", _summary(document))


def _by_id(
    findings: Sequence[Mapping[str, Any]],
) -> list[tuple[Mapping[str, Any], int]]:
    """Return the first finding of each id, and how many there are of it."""
    ids = [one["fingerprint"] for one in findings]
    first = {one["fingerprint"]: one for one in reversed(findings)}
    return [(first[id_], ids.count(id_)) for id_ in dict.fromkeys(ids)]


def _summary(document: Mapping[str, Any]) -> str:
    return "\n\n".join(
        [divergence.rules(document["rules"]), divergence.summary(document)]
    )
