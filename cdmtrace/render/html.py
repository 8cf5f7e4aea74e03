"""The page of ``report --html``: one file that asks no network for anything.

What a recording holds is untrusted: a task calls itself what it likes. The template
engine escapes all of it, and the page's Content-Security-Policy runs no script but
those whose hashes it names.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from cdmtrace.errors import CdmtraceError
from cdmtrace.render import divergence, filters, tables
from cdmtrace.units import count

Document = Mapping[str, Any]

PARTS: Final = Path(__file__).parent / "page"
"""The template, the style and the scripts."""

SCRIPTS: Final = ("lanes.js", "page.js")

WORST_FIRST: Final = ("violated", "inconclusive", "clean", "vacuous", "unchecked")

FEW: Final = 20
"""So many findings have their witnesses open."""

_DRAWN: Final = ("lanes", "activity", "losses", "migrations", "recording")
"""What of the document the scripts read."""

_OF_FINDING: Final = (
    *("rule", "name", "severity", "pid", "comm"),
    *("since", "until", "lane", "fingerprint"),
)


def plotly_js() -> str:
    """Return the source of plotly.js, which draws.

    Raises CdmtraceError where the packages of the extra ``html`` are not installed.
    """
    try:
        import jinja2  # noqa: F401
        from plotly.offline import get_plotlyjs
    except ImportError as error:
        raise CdmtraceError(
            f"--html needs the package {error.name}, which is not installed",
            hint="python3 -m pip install 'cdmtrace[html]'",
        ) from error
    return str(get_plotlyjs())


def page(document: Document, *, plotly: str) -> str:
    """Return the page as text. document: of analysis.page; plotly: see plotly_js()."""
    import jinja2
    from markupsafe import Markup

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(PARTS),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.policies["json.dumps_kwargs"] = {"separators": (",", ":")}
    scripts = [plotly, *((PARTS / name).read_text("utf-8") for name in SCRIPTS)]
    checked = document["check"]
    findings = [
        {**one, "text": divergence.finding(one, page=checked["trace"]["page_size"])}
        for one in document["findings"]
    ]
    return environment.get_template("page.html").render(
        policy=policy(scripts),
        style=Markup((PARTS / "page.css").read_text("utf-8")),
        scripts=[Markup(text) for text in scripts],
        data=_data(document),
        check=checked,
        summary=summary(document),
        findings=findings,
        total=len(findings) + document["left_out"]["findings"],
        few=FEW,
        verdicts=_verdicts(checked["rules"]),
        lanes=document["lanes"],
        tables={title: _table(rows) for title, rows in document["tables"].items()},
        processes=_processes(document),
        losses=document["losses"],
        left_out=left_out(document["left_out"]),
    )


def policy(scripts: Sequence[str]) -> str:
    """Return the Content-Security-Policy that lets these scripts run, and nothing else.

    Styles are free, for plotly.js writes some; they can load nothing.
    """
    hashes = " ".join(f"'sha256-{_sha256(text)}'" for text in scripts)
    return (
        f"default-src 'none'; script-src {hashes}; style-src 'unsafe-inline'; "
        "img-src data:; base-uri 'none'; form-action 'none'"
    )


def _sha256(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _data(document: Document) -> Document:
    """Return what the scripts read."""
    findings = [
        {**{key: one[key] for key in _OF_FINDING}, "vma": _range(one["vma"])}
        for one in document["findings"]
    ]
    return {**{key: document[key] for key in _DRAWN}, "findings": findings}


def _range(vma: Mapping[str, str]) -> str:
    return f"{vma['start'].removeprefix('0x')}-{vma['end'].removeprefix('0x')}"


def summary(document: Document) -> list[tuple[str, str]]:
    """Return the head of the page: what each line is, and the line."""
    checked, recording = document["check"], document["recording"]
    trace = checked["trace"]
    began = datetime.fromtimestamp(recording["started_utc"], UTC)
    nodes = ", ".join(map(str, trace["cdm_nodes"])) or "none"
    tag = f"VM_CDM {trace['vm_cdm_mask']}" if recording["tag"] else "no VM_CDM"
    lines = [
        ("kernel", f"Linux {trace['kernel']}, {recording['machine'] or '?'}"),
        ("recorded", f"{began:%Y-%m-%d %H:%M:%S} UTC, {recording['seconds']:.3f} s"),
        ("CDM", f"nodes {nodes}, {tag}, pages of {trace['page_size']} bytes"),
        ("events", f"{count(trace['events'], 'event')}, {trace['lost']:,} lost"),
        ("profile", checked["profile"]),
    ]
    if document["wrong"]:
        wrong = count(document["wrong"], "difference")
        lines.append(("audit", f"{wrong}: cdmtrace is wrong, trust nothing here"))
    if document["would_be"]:
        vmas = count(document["would_be"], "VMA")
        lines.append(("shadow", f"{vmas} would have to be tagged: cdmtrace report"))
    if only := filters.words(trace["filters"]):
        lines.append(("filters", only))
    if recording["absent"]:
        lines.append(("not attached", ", ".join(recording["absent"])))
    if trace["rows_before"]:
        lines.append(("before", f"{count(trace['rows_before'], 'row')} are missing"))
    if trace["cut"] or not trace["clean_end"]:
        lines.append(("cut", trace["cut"] or "the recording has no end"))
    return lines


def _verdicts(rules: Sequence[Document]) -> dict[str, list[Document]]:
    """Return the rules by verdict, the worst one first."""
    found: dict[str, list[Document]] = {}
    for one in rules:
        found.setdefault(one["verdict"], []).append(one)
    return {verdict: found[verdict] for verdict in WORST_FIRST if verdict in found}


def _processes(document: Document) -> list[tuple[str, str]]:
    """Return the processes by which can be filtered: pid as text, and name."""
    rows = [*document["lanes"], *document["findings"]]
    rows += [*document["tables"]["Processes"], *document["migrations"]]
    names = {
        str(row["pid"] or "?"): row["comm"] or "?"
        for row in reversed(rows)
        if row["pid"] != "others"
    }
    return sorted(names.items(), key=lambda one: (len(one[0]), one[0]))


def _table(rows: tables.Rows) -> Document:
    """Return the heads and the cells of a table, as text."""
    return {
        "heads": list(rows[0]) if rows else [],
        "rows": [
            {"pid": str(row.get("pid") or "?"), "cells": tables.cells(row)}
            for row in rows
        ],
        "by_process": bool(rows) and "pid" in rows[0],
    }


def left_out(numbers: Mapping[str, int]) -> list[str]:
    """Return what is not in the page, in words."""
    told = (
        ("lanes", "VMA", "worth less: cdmtrace timeline FILE lists them"),
        ("vmas", "VMA", "without a finding, a page of a CDM node or a change"),
        ("findings", "finding", "whose ids are above: cdmtrace check FILE has all"),
        ("processes", "process", "that have fewer pages: cdmtrace report FILE"),
        ("losses", "loss", "that are smaller: cdmtrace info FILE"),
        *(
            (title, "row", f"of {title}, that count less: cdmtrace report FILE")
            for title in ("Nodes", "Arrivals by cause", "Changes of vm_flags")
        ),
    )
    plurals = {"process": "processes", "loss": "losses"}
    return [
        f"{count(numbers[key], noun, plurals.get(noun))} {why}"
        for key, noun, why in told
        if numbers[key]
    ]
