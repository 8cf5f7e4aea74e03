"""``check`` in all its formats."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any, Final

from cdmtrace.render import divergence, github, junit, sarif, tables, tap
from cdmtrace.render.markdown import fenced
from cdmtrace.render.outcomes import Call, line

FORMATS: Final = (*tables.FORMATS, "sarif", "junit", "tap", "github")
"""What --format takes."""

Row = dict[str, Any]


def render(call: Call, how: str) -> str:
    """Return what a call found in one of FORMATS. Raises KeyError for another one."""
    return _FORMS[how](call)


def _text(call: Call) -> str:
    return "\n".join(map(divergence.check, call.documents))


def _json(call: Call) -> str:
    """Return one document, for several recordings a list of them."""
    told = call.documents[0] if len(call.documents) == 1 else call.documents
    return json.dumps(told, indent=2) + "\n"


def _sarif(call: Call) -> str:
    return sarif.render(call) + "\n"


def _as_rows(how: str) -> Callable[[Call], str]:
    return lambda call: tables.render(_rows(call), how)


def _rows(call: Call) -> dict[str, list[Row]]:
    """Return findings, what came of each rule, and the recordings."""
    documents = call.documents
    return {
        "findings": [_finding(one, d) for d in documents for one in d["findings"]],
        "rules": [
            {"trace": _path(document), **rule}
            for document in documents
            for rule in document["rules"]
        ],
        "traces": [_trace(document) for document in documents],
    }


def _finding(one: Mapping[str, Any], document: Mapping[str, Any]) -> Row:
    keys = ("rule", "name", "severity", "cause", "pid", "comm", "mm")
    told = ("expected", "observed", "count", "fingerprint")
    return {
        "trace": _path(document),
        **{key: one[key] for key in keys},
        **one["vma"],
        **{key: one[key] for key in told},
        "suppressed": one["suppressed"] and line(one["suppressed"]["reason"]),
    }


def _trace(document: Mapping[str, Any]) -> Row:
    trace = document["trace"]
    return {
        "trace": _path(document),
        "kernel": trace["kernel"],
        "profile": document["profile"],
        "events": trace["events"],
        "lost": trace["lost"],
        "CDM nodes": ", ".join(map(str, trace["cdm_nodes"])) or "none",
        "verdict": document["verdict"],
        "findings": len(document["findings"]),
    }


def _path(document: Mapping[str, Any]) -> str:
    path: str = document["trace"]["path"]
    return path


def _markdown(call: Call) -> str:
    """Return it as Markdown: divergences are diffs, and have their colours."""
    return "\n".join(part for document in call.documents for part in _page(document))


def _page(document: Mapping[str, Any]) -> list[str]:
    shown = [one for one in document["findings"] if not one["suppressed"]]
    parts = [tables.render({"Recording": [_trace(document)]}, "markdown")]
    if shown:
        told = "\n\n".join(divergence.findings(document))
        parts.append(f"## Findings: {len(shown):,}\n\n{fenced(told, 'diff')}")
    listed = {"Rules": [_rule(one) for one in document["rules"]]}
    known = [one for one in document["findings"] if one["suppressed"]]
    if known:
        listed["Suppressed by the baseline"] = [_known(one) for one in known]
    parts.append(tables.render(listed, "markdown", limit=None))
    parts.append(f"{divergence.verdict(document)}\n")
    return parts


def _rule(one: Mapping[str, Any]) -> Row:
    keys = ("rule", "name", "verdict", "checked", "findings")
    return {**{key: one[key] for key in keys}, "why": one["why"] or ""}


def _known(one: Mapping[str, Any]) -> Row:
    return {
        "id": one["fingerprint"],
        "rule": f"{one['rule']} {one['name']}",
        "cause": one["cause"],
        "process": one["comm"] or "?",
        "reason": line(one["suppressed"]["reason"]),
    }


_FORMS: Final[Mapping[str, Callable[[Call], str]]] = {
    "table": _text,
    "json": _json,
    "ndjson": _as_rows("ndjson"),
    "csv": _as_rows("csv"),
    "markdown": _markdown,
    "sarif": _sarif,
    "junit": junit.render,
    "tap": tap.render,
    "github": github.render,
}
