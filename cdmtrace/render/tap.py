"""``check --format tap``: TAP version 14, a subtest for each recording.

The kernel's own dialect is KTAP, and its reader, tools/testing/kunit/kunit_parser.py,
takes TAP 14 with subtests as well: it is what KUnit printed first. What reads TAP only
(prove, Jenkins, ``tap.py``) does not know KTAP's first line. So this is TAP 14, as far
as all of them agree: no directive but SKIP, since TODO is a failure to the kernel's
reader; and no ``#`` in a name, for not all know how it is escaped. That reader takes
what stands between two test points for what the second one has to say, so that the YAML
of a failure is shown only if the next one fails, too: a comment before it says why.

https://testanything.org/tap-version-14-specification.html
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from textwrap import indent
from typing import Any, Final

from cdmtrace.render.outcomes import Call, Case, Outcome, cases, line

_SUBTEST: Final = " " * 4
_YAML: Final = " " * 2


def render(call: Call) -> str:
    """Return it as a document of TAP."""
    lines = ["TAP version 14", f"1..{len(call.documents)}"]
    for number, document in enumerate(call.documents, 1):
        own = cases(document, call.left_open)
        name = _name(document["trace"]["path"])
        lines.append(f"# Subtest: {name}")
        lines += [f"{_SUBTEST}{one}" for one in _subtest(own)]
        lines.append(_point(number, name, ok=not any(case.bad for case in own)))
        lines += _yaml(_recording(document))
    return "".join(f"{one}\n" for one in lines)


def _subtest(own: Sequence[Case]) -> Iterator[str]:
    yield f"1..{len(own)}"
    for number, case in enumerate(own, 1):
        skip = case.why if case.outcome is Outcome.SKIPPED else ""
        if case.bad:
            yield f"# {case.name}: {line(case.why)}"
        yield _point(number, case.name, ok=not case.bad, skip=skip)
        if case.bad or case.told:
            yield from _yaml(_told(case))


def _point(number: int, name: str, *, ok: bool, skip: str = "") -> str:
    directive = f" # SKIP {_reason(skip)}" if skip else ""
    return f"{'ok' if ok else 'not ok'} {number} - {name}{directive}"


def _name(text: str) -> str:
    return line(text).replace("\\", "\\\\").replace("#", "?")


def _reason(text: str) -> str:
    return line(text).replace("\\", "\\\\").replace("#", "\\#")


def _recording(document: Mapping[str, Any]) -> list[tuple[str, object]]:
    trace = document["trace"]
    return [
        ("verdict", document["verdict"]),
        ("profile", document["profile"]),
        ("kernel", trace["kernel"]),
        ("events", trace["events"]),
        ("lost", trace["lost"]),
        ("findings", len(document["findings"])),
    ]


def _told(case: Case) -> list[tuple[str, object]]:
    told: list[tuple[str, object]] = [
        ("verdict", case.verdict),
        ("checked", case.checked),
    ]
    if case.why:
        told.append(("message", case.why))
    if case.findings:
        told.append(("ids", [one["fingerprint"] for one in case.findings]))
    if case.told:
        told.append(("told", case.told))
    return told


def _yaml(told: Iterable[tuple[str, object]]) -> Iterator[str]:
    """Yield a block of YAML. What has several lines is a literal, as it is read best;
    the rest is as in JSON, which YAML takes.
    """
    yield f"{_YAML}---"
    for key, value in told:
        if isinstance(value, str) and "\n" in value:
            yield f"{_YAML}{key}: |"
            yield from indent(value, _YAML * 2).splitlines()
        else:
            yield f"{_YAML}{key}: {json.dumps(_plain(value), ensure_ascii=False)}"
    yield f"{_YAML}..."


def _plain(value: object) -> object:
    return line(value) if isinstance(value, str) else value
