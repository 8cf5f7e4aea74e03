"""What ``cdmtrace info`` prints."""

from __future__ import annotations

import datetime
import shlex
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final

from tabulate import tabulate

from cdmtrace.format.schema import printable
from cdmtrace.render import filters
from cdmtrace.units import count, duration, seconds, size

if TYPE_CHECKING:
    from pathlib import Path

    from cdmtrace.format.reader import Loss, TraceInfo
    from cdmtrace.format.schema import Header

_SHOWN_LOSSES: Final = 20
_WIDE: Final = 120

WITHOUT_TAG: Final = (
    "told is what would have to be tagged; rules about the tag are not checked"
)
"""What a recording in shadow mode is good for."""


def info_json(info: TraceInfo, kinds: Mapping[str, int]) -> dict[str, Any]:
    """Return everything as plain data, schema ``cdmtrace.info/1``. Times in ns."""
    return {
        "schema": "cdmtrace.info/1",
        "path": str(info.path),
        "header": info.header.to_json(),
        "batches": info.batches,
        "events": info.events,
        "kinds": dict(kinds),
        "first_ts": info.first_ts,
        "last_ts": info.last_ts,
        "lost": info.lost,
        "losses": [
            {
                "probe": loss.probe,
                "reason": loss.reason,
                "count": loss.count,
                "since": loss.since,
                "until": loss.until,
                "batch": loss.batch,
            }
            for loss in info.losses
        ],
        "clean_end": info.clean_end,
        "end": info.end,
        "more": info.more,
        "torn": info.torn,
        "bytes": {"total": info.bytes_total, "intact": info.bytes_intact},
    }


def info_text(info: TraceInfo, kinds: Mapping[str, int]) -> str:
    """Return everything as text for people."""
    facts = [(name, printable(fact)) for name, fact in _facts(info)]
    parts = [tabulate(facts, tablefmt="plain", disable_numparse=True)]
    if kinds:
        parts.append(
            tabulate(
                [[printable(name), f"{number:,}"] for name, number in kinds.items()],
                headers=["kind", "events"],
                colalign=("left", "right"),
                disable_numparse=True,
            )
        )
    if info.losses:
        parts.append(_losses(info))
    parts.append(f"next: cdmtrace check {shlex.quote(str(info.path))}")
    return "\n\n".join(parts)


def rehearsal(header: Header, output: Path) -> str:
    """Return what a recording with this header would be of, and where it would go."""
    rows = [("would write", str(output)), *_made_of(header)]
    attached = [
        (probe.name, probe.kind, probe.symbol.replace("syscalls:", ""))
        for probe in header.probes
        if probe.symbol
    ]
    probes = tabulate(
        attached, headers=("probe", "kind", "would attach to"), disable_numparse=True
    )
    text = f"{tabulate(rows, tablefmt='plain', disable_numparse=True)}\n\n{probes}"
    return "\n".join(line.rstrip() for line in text.splitlines())


def _made_of(header: Header) -> Iterator[tuple[str, str]]:
    """Yield what is known of a recording before there is one."""
    if header.command:
        words = " ".join(shlex.join(header.command).split())
        yield "command", words if len(words) <= _WIDE else f"{words[:_WIDE]} …"
    nodes = ", ".join(map(str, header.cdm_nodes))
    yield "CDM nodes", f"{nodes} (from {header.cdm_nodes_from})"
    yield "VM_CDM", vm_cdm(header.vm_cdm_mask, header.vm_cdm_mask_from)
    if not header.vm_cdm_mask:
        yield "", WITHOUT_TAG
    if taken := header.extra.get("vm_cdm_taken_by"):
        yield "", f"CDM020: this kernel uses the bit as {taken}"
    if header.vm_flags:
        named = count(len(header.vm_flags), "bit named", "bits named")
        yield "vm_flags", f"{named} (from {header.vm_flags_from})"
    if only := filters.words(header.filters):
        yield "filters", only
    missing = [
        f"{probe.name} ({probe.why_not})" if probe.why_not else probe.name
        for probe in header.probes
        if probe.symbol is None
    ]
    probes = f"{len(header.probes) - len(missing)} attached"
    yield "probes", probes + (f"; missing: {', '.join(missing)}" if missing else "")
    yield "ring", size(header.ring_size)


def vm_cdm(mask: int, source: str) -> str:
    """Return which bit is VM_CDM and how that is known; source alone if none is."""
    return f"{mask:#x}, bit {mask.bit_length() - 1} (from {source})" if mask else source


def _facts(info: TraceInfo) -> Iterator[tuple[str, str]]:
    header = info.header
    yield "file", f"{info.path}, {size(info.bytes_total)}, format {header.format}"
    if header.part:
        yield "part", f"{header.part.number} of recording {header.part.recording}"
    yield "made by", header.tool
    yield (
        "kernel",
        f"{header.kernel_release} {header.machine} ({header.kernel_build})",
    )
    yield "started", _utc(header.started + header.utc_offset)
    yield from _made_of(header)
    yield "events", f"{info.events:,} in {count(info.batches, 'batch', 'batches')}"
    if info.first_ts is not None and info.last_ts is not None:
        span = duration(info.last_ts - info.first_ts)
        first = duration(info.first_ts - header.started)
        yield "time span", f"{span}, from {first} after the start"
    lost = sum(sum(reasons.values()) for reasons in info.lost.values())
    yield "lost", count(lost, "event") if lost else "nothing"
    yield "end", f"clean: {info.end}" if info.clean_end else "none: it was cut"
    if info.torn:
        yield "cut", info.torn
        yield "", f"the first {info.bytes_intact:,} bytes were used"


def _losses(info: TraceInfo) -> str:
    started = info.header.started

    def row(loss: Loss) -> list[str]:
        return [
            printable(loss.probe),
            printable(loss.reason),
            f"{loss.count:,}",
            seconds(loss.since - started),
            seconds(loss.until - started),
        ]

    table = tabulate(
        [row(loss) for loss in info.losses[:_SHOWN_LOSSES]],
        headers=["lost by", "because", "events", "since (s)", "until (s)"],
        colalign=("left", "left", "right", "right", "right"),
        disable_numparse=True,
    )
    more = len(info.losses) - _SHOWN_LOSSES
    return table if more <= 0 else f"{table}\n… and {more:,} more: --format json"


def _utc(ns: int) -> str:
    when = datetime.datetime.fromtimestamp(ns // 10**9, datetime.UTC)
    return f"{when:%Y-%m-%d %H:%M:%S} UTC"
