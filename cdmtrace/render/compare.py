"""What ``compare`` prints: what is new in full, what is gone in a line."""

from __future__ import annotations

import itertools
import json
import shlex
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final

from cdmtrace.render import divergence, tables
from cdmtrace.render.markdown import fenced
from cdmtrace.units import count, counted

Document = Mapping[str, Any]
Changes = Sequence[Mapping[str, Any]]
Row = Mapping[str, Any]

NEW: Final = {
    "new": "New in B",
    "not judged in A": "In B, and not judged in A",
}
"""Status -> heading of what is printed in full."""

OLD: Final = {
    "gone": "Gone in B",
    "not judged in B": "In A, and not judged in B",
    "unchanged": "In both",
}
"""Status -> heading of what is a line each."""

_SIDES: Final = ("A", "B")


def render(document: Document, how: str) -> str:
    """Return a compare document in one of ``tables.FORMATS``.

    Raises KeyError for another one.
    """
    return _FORMS[how](document)


def text(document: Document) -> str:
    """Return it as text, under 80 columns."""
    parts = []
    for head, changes in _sections(document, NEW):
        parts += [_headed(head, changes), *_shown(document, changes)]
    for head, changes in _sections(document, OLD):
        lines = [_headed(head, changes), *_short(changes), *_reasons(changes)]
        parts.append("\n".join(lines))
    if changed := _changed(document):
        lines = ["Rules of another verdict", tables.plain(changed), *_whys(document)]
        parts.append("\n".join(lines))
    for side in _SIDES:
        parts.append("\n".join(_trace(document, side)))
        audit = document[side.lower()]["audit"]
        if audit and audit["differences"]:
            parts.append(divergence.audit(audit))
    if document["unlike"]:
        parts.append("\n".join(_unlike(document)))
    parts.append("\n".join(_verdict(document)))
    return "\n\n".join(parts) + "\n"


def next_command(document: Document, options: Sequence[str]) -> str:
    """Return what may be asked next, and the command that answers it.

    options: by which both were judged, as they are typed.
    """
    for statuses, which, side in (
        (NEW, "the first one that is new", "b"),
        (("gone", "not judged in B"), "the first one that is gone", "a"),
        (("unchanged",), "the first one that is in both", "b"),
    ):
        for change in document["findings"]:
            if change["status"] in statuses:
                files = document[side]["trace"]["files"]
                id_ = change["finding"]["fingerprint"]
                told = divergence.explained(files, options, id_)
                return f"{which} as an argument: {told}"
    files = document["b"]["trace"]["files"]
    return f"what happened in B: {shlex.join(['cdmtrace', 'report', *files])}"


def _sections(
    document: Document, heads: Mapping[str, str]
) -> Iterable[tuple[str, Changes]]:
    """Yield heading and findings of each status that has some."""
    for status, head in heads.items():
        if found := [c for c in document["findings"] if c["status"] == status]:
            yield head, found


def _headed(head: str, changes: Changes) -> str:
    return f"{head}: {len(changes):,}"


def _shown(document: Document, changes: Changes) -> list[str]:
    """Return findings of B as check prints them, and why A could not judge them."""
    page = document["b"]["trace"]["page_size"]
    reasons = _reasons(changes)
    return [
        *(["\n".join(reasons)] if reasons else []),
        *(
            divergence.finding(change["finding"], page=page, alike=change["b"])
            for change in changes
        ),
    ]


def _short(changes: Changes) -> list[str]:
    rows = [
        {
            "id": change["finding"]["fingerprint"],
            "rule": f"{change['finding']['rule']} {change['finding']['name']}",
            "A": change["a"],
            "B": change["b"],
            "cause": change["finding"]["cause"],
            "process": change["finding"]["comm"] or "?",
        }
        for change in changes
    ]
    return [divergence.fitted(line) for line in tables.plain(rows).splitlines()]


def _reasons(changes: Changes) -> list[str]:
    """Return why rules could not be judged, each rule once."""
    told = {
        (c["finding"]["rule"], c["status"].removeprefix("not judged in "), c["why"])
        for c in changes
        if c["why"]
    }
    return [line for one in sorted(told) for line in _why(*one)]


def _why(rule: str, side: str, why: str) -> list[str]:
    return textwrap.wrap(
        f"{rule} in {side}: {why}",
        divergence.WIDTH,
        subsequent_indent="  ",
        break_long_words=False,
        break_on_hyphens=False,
    )


def _changed(document: Document) -> list[Row]:
    return [row for row in _rules(document) if row["verdict A"] != row["verdict B"]]


def _whys(document: Document) -> list[str]:
    """Return why the verdicts that are another one are not clean."""
    return [
        line
        for one, side in itertools.product(document["rules"], _SIDES)
        if one["changed"] and one[side.lower()]["why"]
        for line in _why(one["rule"], side, one[side.lower()]["why"])
    ]


def _trace(document: Document, side: str) -> list[str]:
    told = document[side.lower()]
    trace = told["trace"]
    lost = "" if trace["lost"] else "nothing lost, "
    found = count(told["findings"], "finding")
    sentences = divergence.recording(trace, document["profile"])
    sentences.insert(
        1,
        f"{lost}CDM nodes: {_nodes(trace)}, VM_CDM: {trace['vm_cdm_mask']}, "
        f"verdict: {told['verdict']}, {found}",
    )
    lines: list[str] = []
    for sentence in sentences:
        lines += textwrap.wrap(
            sentence,
            divergence.WIDTH,
            initial_indent="   " if lines else f"{side}  ",
            subsequent_indent="     ",
            break_long_words=False,
            break_on_hyphens=False,
        )
    return lines


def _nodes(trace: Row) -> str:
    return ", ".join(map(str, trace["cdm_nodes"])) or "none"


def _unlike(document: Document) -> list[str]:
    lines = divergence.plain(
        "not alike: what is new or gone may be so for that, and not for the kernel"
    )
    for one in document["unlike"]:
        lines += textwrap.wrap(
            f"  {one['what']}: {one['a']} in A, {one['b']} in B",
            divergence.WIDTH,
            subsequent_indent="    ",
            break_long_words=False,
            break_on_hyphens=False,
        )
    return lines


def _verdict(document: Document) -> list[str]:
    """Return what B could not judge any more, and the verdict in a line."""
    blind = [one["rule"] for one in document["rules"] if one["blinder"]]
    lines = []
    if blind:
        lines = divergence.plain(
            f"A could judge {count(len(blind), 'rule')} that B could not: "
            f"{', '.join(blind)}"
        )
    found = [change["status"] for change in document["findings"]]
    told = [
        f"{counted(found.count(status))} {status}"
        for status in (*NEW, *OLD)
        if found.count(status)
    ]
    words = "as expected" if document["as_expected"] else "not as expected"
    many = ", ".join(told) or "no finding in either"
    return [*lines, f"verdict: {words}: {many}"]


# --- rows for programs, and Markdown ------------------------------------------


def _findings(document: Document) -> list[Row]:
    keys = ("rule", "name", "severity", "cause", "comm", "fingerprint")
    return [
        {
            "status": change["status"],
            **{key: change["finding"][key] for key in keys},
            "A": change["a"],
            "B": change["b"],
            "why": change["why"],
        }
        for change in document["findings"]
    ]


def _rules(document: Document) -> list[Row]:
    return [
        {
            "rule": one["rule"],
            "name": one["name"],
            "verdict A": one["a"]["verdict"],
            "checked A": one["a"]["checked"],
            "verdict B": one["b"]["verdict"],
            "checked B": one["b"]["checked"],
        }
        for one in document["rules"]
    ]


def _traces(document: Document) -> list[Row]:
    return [
        {
            "trace": side,
            "path": one["trace"]["path"],
            "kernel": one["trace"]["kernel"],
            "profile": document["profile"],
            "events": one["trace"]["events"],
            "lost": one["trace"]["lost"],
            "CDM nodes": _nodes(one["trace"]),
            "verdict": one["verdict"],
            "findings": one["findings"],
        }
        for side, one in zip(_SIDES, (document["a"], document["b"]), strict=True)
    ]


def _rows(document: Document) -> tables.Tables:
    return {
        "findings": _findings(document),
        "rules": _rules(document),
        "traces": _traces(document),
        "unlike": document["unlike"],
    }


def _markdown(document: Document) -> str:
    """Return it as Markdown: divergences are diffs, and have their colours."""
    parts = []
    for head, changes in _sections(document, NEW):
        shown = "\n\n".join(_shown(document, changes))
        parts.append(f"## {_headed(head, changes)}\n\n{fenced(shown, 'diff')}")
    listed: dict[str, Sequence[Row]] = {
        _headed(head, changes): [
            {key: value for key, value in row.items() if _told(key, value)}
            for row in _findings({"findings": changes})
        ]
        for head, changes in _sections(document, OLD)
    }
    if changed := _changed(document):
        listed["Rules of another verdict"] = changed
    listed["Recordings"] = _traces(document)
    if document["unlike"]:
        listed["Not alike"] = document["unlike"]
    parts.append(tables.render(listed, "markdown"))
    parts.append("  \n".join(_verdict(document)) + "\n")
    return "\n".join(parts)


def _told(key: str, value: object) -> bool:
    """Return whether a heading does not say it already. Of one status, all rows have a
    reason, or none has.
    """
    return key != "status" and (key != "why" or value is not None)


def _json(document: Document) -> str:
    return json.dumps(document, indent=2) + "\n"


def _as_rows(how: str) -> Callable[[Document], str]:
    return lambda document: tables.render(_rows(document), how)


_FORMS: Final[Mapping[str, Callable[[Document], str]]] = {
    "table": text,
    "json": _json,
    "ndjson": _as_rows("ndjson"),
    "csv": _as_rows("csv"),
    "markdown": _markdown,
}
