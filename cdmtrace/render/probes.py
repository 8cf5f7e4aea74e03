"""What ``cdmtrace probes`` prints: rows, for cdmtrace.render.tables to render."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from cdmtrace.planning import Plan
    from cdmtrace.render.tables import Tables

PROBES, RULES = "probes", "uncheckable rules"


def nested_tables(
    plans: tuple[Plan, ...],
    served_by: Callable[[str], tuple[str, ...]],
    uncheckable: Mapping[str, tuple[str, ...]],
) -> Tables:
    """Return the tables with lists in their cells, for JSON."""
    return {
        PROBES: [_row(item, served_by(item.probe.name)) for item in plans],
        RULES: [
            {"rule": rule, "missing": list(names)}
            for rule, names in sorted(uncheckable.items())
        ],
    }


def flat_tables(
    plans: tuple[Plan, ...],
    served_by: Callable[[str], tuple[str, ...]],
    uncheckable: Mapping[str, tuple[str, ...]],
) -> Tables:
    """Return the tables with text in their cells, for people and for CSV."""
    return {
        PROBES: [
            {
                "probe": item.probe.name,
                "symbol": ", ".join(
                    name.rpartition(":")[2] for name in dict.fromkeys(item.symbols)
                )
                or "-",
                "kind": ", ".join(item.probe.kinds),
                "state": _state_text(item),
                "rules": " ".join(served_by(item.probe.name)) or "-",
            }
            for item in plans
        ],
        RULES: [
            {"rule": rule, "missing": ", ".join(names)}
            for rule, names in sorted(uncheckable.items())
        ],
    }


def _row(item: Plan, rules: tuple[str, ...]) -> dict[str, Any]:
    return {
        "probe": item.probe.name,
        "summary": item.probe.summary,
        "attachments": [
            {
                "handler": attachment.handler,
                "kind": str(attachment.kind),
                "symbol": name,
            }
            for attachment, name in zip(
                item.probe.attachments, item.symbols, strict=not item.missing
            )
        ],
        "state": "missing" if item.missing else "partial" if item.unseen else "attach",
        "missing": item.missing,
        "unseen": list(item.unseen),
        "required": item.probe.required,
        "rules": list(rules),
    }


def _state_text(item: Plan) -> str:
    if item.missing:
        return f"missing: {item.missing}" + (
            " (required)" if item.probe.required else ""
        )
    if item.unseen:
        return f"would attach; copies not seen: {', '.join(item.unseen)}"
    return "would attach"
