"""What else there is of a recording than its rows, as tables: for SQL and notebooks.

Every table has its types whether there is anything in it or not. Times are ns of
CLOCK_MONOTONIC, as in the rows; pages are base pages.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Final

import pyarrow as pa

from cdmtrace.analysis import names
from cdmtrace.analysis.frames import Gap, Terms
from cdmtrace.analysis.holding import count_pages
from cdmtrace.analysis.result import Mm, Result

Row = dict[str, Any]

_TEXT: Final = pa.string()
_TIME: Final = pa.uint64()
_SPACE: Final[dict[str, pa.DataType]] = {
    "pid": pa.uint32(),
    "comm": _TEXT,
    "mm": _TEXT,
    "start": pa.uint64(),
    "end": pa.uint64(),
}
"""Whose it is, and where: pid and comm are null where they are not known."""

SCHEMAS: Final[Mapping[str, pa.Schema]] = {
    name: pa.schema(columns.items())
    for name, columns in {
        "recording": {
            "path": _TEXT,
            "kernel": _TEXT,
            "page_size": pa.uint32(),
            "cdm_nodes": pa.list_(pa.int16()),
            "vm_cdm_mask": pa.uint64(),
            "started": _TIME,
            "utc_offset": pa.int64(),
        },
        "losses": {
            "probe": _TEXT,
            "reason": _TEXT,
            "count": pa.uint64(),
            "since": _TIME,
            "until": _TIME,
            "mm": _TEXT,
            "start": pa.uint64(),
            "end": pa.uint64(),
        },
        "rules": {
            "rule": _TEXT,
            "name": _TEXT,
            "severity": _TEXT,
            "verdict": _TEXT,
            "checked": pa.uint64(),
            "findings": pa.uint64(),
            "why": _TEXT,
        },
        "findings": {
            "finding": pa.uint32(),
            "rule": _TEXT,
            "name": _TEXT,
            "severity": _TEXT,
            "cause": _TEXT,
            **_SPACE,
            "expected": _TEXT,
            "observed": _TEXT,
            "breaks": _TEXT,
            "fingerprint": _TEXT,
            "count": pa.uint64(),
            "seq": pa.uint64(),
        },
        "witnesses": {
            "finding": pa.uint32(),
            "step": pa.uint32(),
            "seq": pa.uint64(),
            "what": _TEXT,
        },
        "vmas": {
            **_SPACE,
            "tagged": pa.bool_(),
            "flags": _TEXT,
            "policy": _TEXT,
            "pages": pa.uint64(),
            "ended": pa.bool_(),
        },
    }.items()
}
"""Table -> its columns. README.md says what is in which."""


def recording(path: str, terms: Terms) -> pa.Table:
    """Return the one row that says what a recording is about."""
    row = {
        # A name of a file need not be text.
        "path": path.encode(errors="backslashreplace").decode(),
        "kernel": terms.kernel,
        "page_size": terms.page,
        "cdm_nodes": list(terms.nodes),
        "vm_cdm_mask": terms.tag,
        "started": terms.started,
        "utc_offset": terms.utc_offset,
    }
    return _table("recording", [row])


def losses(gaps: Iterable[Gap]) -> pa.Table:
    """Return a row for each loss. until, mm, start, end are null for no bound."""
    return _table("losses", map(_loss, gaps))


def _loss(gap: Gap) -> Row:
    anywhere = (gap.start, gap.end) == (0, 1 << 64)
    return {
        "probe": gap.probe,
        "reason": gap.reason,
        "count": gap.count,
        "since": gap.since,
        "until": _bound(gap.until),
        "mm": f"{gap.mm:016x}" if gap.mm else None,
        "start": None if anywhere else gap.start,
        "end": None if anywhere else _bound(gap.end),
    }


def _bound(number: int) -> int | None:
    """Return it, None for the end of all times and addresses, which has 65 bits."""
    return number if number < 1 << 64 else None


def _rules(result: Result) -> Iterator[Row]:
    for one in result.rules:
        yield {
            "rule": one.rule.id,
            "name": one.rule.name,
            "severity": one.rule.severity.value,
            "verdict": one.verdict.value,
            "checked": one.checked,
            "findings": one.findings,
            "why": one.why,
        }


def _findings(result: Result) -> Iterator[Row]:
    for number, one in enumerate(result.findings, 1):
        yield {
            "finding": number,
            "rule": one.rule.id,
            "name": one.rule.name,
            "severity": one.rule.severity.value,
            "cause": one.cause,
            **_space(one.mm, one.start, one.end),
            "expected": one.expected,
            "observed": one.observed,
            "breaks": one.breaks,
            "fingerprint": one.fingerprint,
            "count": one.count,
            "seq": one.seq,
        }


def _witnesses(result: Result) -> Iterator[Row]:
    for number, one in enumerate(result.findings, 1):
        for at, step in enumerate(one.witness, 1):
            yield {"finding": number, "step": at, "seq": step.seq, "what": step.what}


def _vmas(result: Result) -> Iterator[Row]:
    terms = result.trace.terms
    for life in result.lives:
        for area in life.state.areas:
            held = count_pages(life.state, terms, area.start, area.end)
            flags = None if area.flags is None else names.flags(area.flags, terms)
            policy = area.policy
            yield {
                **_space(life.mm, area.start, area.end),
                "tagged": area.tagged(terms),
                "flags": None if flags is None else " ".join(flags),
                "policy": policy and names.policy(policy.byte, policy.nodes),
                "pages": sum(held.values()),
                "ended": life.state.ended,
            }


def _space(mm: Mm, start: int, end: int) -> Row:
    # A finding about the recording as a whole is about no address space.
    known = mm.label if mm.id else None
    return {
        "pid": mm.pid or None,
        "comm": mm.comm or None,
        "mm": known,
        "start": start if end else None,
        "end": _bound(end) if end else None,
    }


JUDGED: Final[Mapping[str, Callable[[Result], Iterator[Row]]]] = {
    "rules": _rules,
    "findings": _findings,
    "witnesses": _witnesses,
    "vmas": _vmas,
}
"""The tables that come of a replay -> their rows."""


def judged(name: str, result: Result) -> pa.Table:
    """Return one of the tables of JUDGED. Raises KeyError for another one."""
    return _table(name, JUDGED[name](result))


def _table(name: str, rows: Iterable[Row]) -> pa.Table:
    return pa.Table.from_pylist(list(rows), SCHEMAS[name])
