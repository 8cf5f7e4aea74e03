"""What ``check`` and ``report`` print of many recordings."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from cdmtrace.render import divergence, tables
from cdmtrace.render.outcomes import line
from cdmtrace.units import count, counted
from cdmtrace.urls import is_url

Document = Mapping[str, Any]
Documents = Sequence[Document]
Row = dict[str, Any]

_NAMED: Final = 3
"""Recordings of a finding that are named to people."""

_NAME: Final = 30
"""Columns that the name of a recording has in a table."""

_VERDICTS: Final = ("violated", "inconclusive", "clean", "vacuous", "unchecked")


def check(document: Document, how: str) -> str:
    """Return a document of ``cdmtrace.fleet-check/1`` in one of ``tables.FORMATS``.

    Raises KeyError for another one.
    """
    if how == "table":
        return _text(document)
    return _rendered(document, how, _check_rows(document))


def report(document: Document, how: str) -> str:
    """Return a document of ``cdmtrace.fleet-report/1`` in the same."""
    rows = [_traffic(one, how) for one in document["recordings"]]
    rows.sort(key=lambda row: -row["pages came"])
    told = {"Recordings": rows, **document["tables"], **_failed(document)}
    return _rendered(document, how, told)


def next_command(document: Document, options: Sequence[str]) -> str | None:
    """Return the command that tells the first finding as an argument.

    options: by which all were judged, as they are typed. None: nothing was found, or
    no file of this machine has it whose name can be typed.
    """
    files = {one["name"]: one["trace"]["files"] for one in document["recordings"]}
    for finding in document["findings"]:
        for one in finding["recordings"]:
            several = files[one["name"]]
            typable = not is_url(one["name"]) and all(map(str.isprintable, several))
            if typable and not finding["suppressed"]:
                return divergence.explained(several, options, finding["fingerprint"])
    return None


def _rendered(document: Document, how: str, rows: tables.Tables) -> str:
    if how == "json":
        return json.dumps(document, indent=2) + "\n"
    return tables.render(rows, how)


# --- check --------------------------------------------------------------------


def _check_rows(document: Document) -> tables.Tables:
    return {
        "findings": [_finding(one) for one in document["findings"]],
        "found in": [
            {"fingerprint": one["fingerprint"], "trace": line(where["name"])}
            | {"findings": where["findings"]}
            for one in document["findings"]
            for where in one["recordings"]
        ],
        "rules": [_rule(one) for one in document["rules"]],
        "traces": [_trace(one) for one in document["recordings"]],
        **_failed(document),
    }


def _finding(one: Document) -> Row:
    keys = ("fingerprint", "rule", "name", "severity", "cause", "comm")
    return {
        **{key: one[key] for key in keys},
        "recordings": len(one["recordings"]),
        "findings": one["findings"],
        "suppressed": one["suppressed"] and line(one["suppressed"]["reason"]),
    }


def _rule(one: Document) -> Row:
    keys = ("rule", "name", "checked", "findings")
    return {**{key: one[key] for key in keys}, **one["recordings"]}


def _trace(one: Document) -> Row:
    trace = one["trace"]
    return {
        "trace": line(one["name"]),
        "kernel": trace["kernel"],
        "machine": one["machine"],
        "boot": one["boot_id"],
        "events": trace["events"],
        "lost": trace["lost"],
        "cut": trace["cut"],
        "verdict": one["verdict"],
        "status": one["status"],
        "findings": sum(rule["findings"] for rule in one["rules"]),
    }


def _failed(document: Document) -> dict[str, list[Row]]:
    """Return what could not be read, as a table; nothing if all could."""
    rows = [
        {"trace": line(one["name"]), "why": line(one["message"])}
        for one in document["failed"]
    ]
    return {"Not read": rows} if rows else {}


def _text(document: Document) -> str:
    """Return it as text, under 80 columns, the worst first."""
    parts = [_found(document), _rules(document), _recordings(document)]
    if document["failed"]:
        parts.append(_missing(document["failed"]))
    parts.append(_verdict(document))
    return "\n\n".join(part for part in parts if part) + "\n"


def _found(document: Document) -> str:
    findings = document["findings"]
    if not findings:
        return ""
    shown = findings[: tables.LIMIT]
    rows = [
        {
            "id": one["fingerprint"],
            "rule": f"{one['rule']} {one['name']}",
            "cause": one["cause"],
            "in": len(one["recordings"]),
            "findings": one["findings"],
        }
        for one in shown
    ]
    head, rule, *lines = tables.plain(rows).splitlines()
    told = [f"Findings: {counted(len(findings))}, and in how many recordings", head]
    told.append(rule)
    for one, row in zip(shown, lines, strict=True):
        told += [divergence.fitted(row), *_where(one)]
    return "\n".join([*told, *_more(findings)])


def _where(finding: Document) -> list[str]:
    """Return of whom and in which recordings it is, and why it may be."""
    names = [line(one["name"]) for one in finding["recordings"]]
    more = len(names) - _NAMED
    last = [f"and {counted(more)} more"] if more > 0 else []
    who = line(finding["comm"]) or "?"
    told = _wrapped(f"  {who}, in {', '.join([*names[:_NAMED], *last])}")
    if finding["suppressed"]:
        told += _wrapped(f"  suppressed: {line(finding['suppressed']['reason'])}")
    return told


def _rules(document: Document) -> str:
    """Return in how many recordings each rule came to what."""
    rows = [
        {
            "rule": one["rule"],
            "name": one["name"],
            **{verdict: one["recordings"][verdict] for verdict in _VERDICTS},
        }
        for one in document["rules"]
    ]
    return f"Recordings by the verdict of a rule\n{tables.plain(rows)}" if rows else ""


def _recordings(document: Document) -> str:
    """Return a line for each recording, and what it violates, the worst first."""
    ordered = sorted(
        document["recordings"],
        key=lambda one: (_VERDICTS.index(one["verdict"]), -_number(one), one["name"]),
    )
    if not ordered:
        return ""
    shown = ordered[: tables.LIMIT]
    rows = [
        {
            "verdict": one["verdict"],
            "findings": _number(one),
            "events": one["trace"]["events"],
            "lost": one["trace"]["lost"],
            "kernel": line(one["trace"]["kernel"]),
            "machine": line(one["machine"]),
        }
        for one in shown
    ]
    head, rule, *lines = tables.plain(rows).splitlines()
    told = [f"Recordings: {counted(len(ordered))}", head, rule]
    for one, row in zip(shown, lines, strict=True):
        told += [divergence.fitted(row), *_wrapped(f"  {line(one['name'])}")]
        told += _wrapped(_violated(one))
        if one["trace"]["cut"]:
            told += _wrapped(f"  cut: {line(one['trace']['cut'])}")
        if one["audit_differences"]:
            told.append("  its audit finds the model wrong: an error of cdmtrace")
    return "\n".join([*told, *_more(ordered)])


def _number(one: Document) -> int:
    return sum(rule["findings"] for rule in one["rules"])


def _violated(one: Document) -> str:
    """Return how many findings each rule has."""
    found = [
        f"{rule['rule']} {counted(rule['findings'])}"
        for rule in one["rules"]
        if rule["findings"]
    ]
    return f"  {', '.join(found)}" if found else ""


def _missing(failed: Documents) -> str:
    told = [f"Not read: {counted(len(failed))}"]
    for one in failed:
        told += _wrapped(f"  {line(one['message'])}")
        if one["hint"]:
            told += _wrapped(f"    hint: {line(one['hint'])}")
    return "\n".join(told)


def _more(rows: Sequence[object]) -> list[str]:
    hidden = len(rows) - tables.LIMIT
    return [f"{counted(hidden)} more, in --format csv"] if hidden > 0 else []


def _verdict(document: Document) -> str:
    found = [one["verdict"] for one in document["recordings"]]
    told = [
        f"{counted(found.count(verdict))} {verdict}"
        for verdict in _VERDICTS
        if verdict in found
    ]
    if document["failed"]:
        told.append(f"{counted(len(document['failed']))} not read")
    many = count(len(found) + len(document["failed"]), "recording")
    verdict = document["verdict"] if found else "none"
    lines = divergence.plain(f"{many}, profile {document['profile']}")
    return "\n".join([*lines, f"verdict: {verdict}: {', '.join(told)}"])


def _wrapped(text: str) -> list[str]:
    """Return a line as several that fit; a word that is longer is left whole."""
    if not text:
        return []
    return textwrap.wrap(
        text,
        divergence.WIDTH,
        subsequent_indent="    ",
        break_long_words=False,
        break_on_hyphens=False,
    )


# --- report -------------------------------------------------------------------


def _traffic(one: Document, how: str) -> Row:
    """Return what came and went in a recording as a whole."""
    trace, nodes = one["trace"], one["traffic"]["Nodes"]
    name = line(one["name"])
    if how == "table" and len(name) > _NAME:
        # Of a path, the end says more.
        name = f"..{name[2 - _NAME :]}"
    return {
        "events": trace["events"],
        "lost": trace["lost"],
        "pages came": _sum(nodes, "pages came"),
        "pages left": _sum(nodes, "pages left"),
        "mapped now": _sum(nodes, "mapped now"),
        "pages migrated": _sum(one["traffic"]["Migrations"], "pages"),
        "lacks": _lacks(one),
        "recording": name,
    }


def _sum(rows: Iterable[Document], key: str) -> int:
    return sum(row[key] for row in rows)


def _lacks(one: Document) -> str:
    """Return what a recording has not, for which its numbers are too low."""
    trace = one["trace"]
    lacks = []
    if trace["rows_before"]:
        lacks.append("beginning")
    if trace["cut"] or not trace["clean_end"]:
        lacks.append("end")
    if missing := len(one["not_attached"]):
        lacks.append(count(missing, "probe"))
    return ", ".join(lacks) or "-"
