"""What ``cdmtrace lab list`` prints."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from cdmtrace.lab.quirks import Quirk
    from cdmtrace.lab.scenarios import Scenario


def lab_listing(
    *,
    kernels: Iterable[tuple[str, str, str]],
    quirks: Iterable[Quirk],
    scenarios: Iterable[Scenario],
    width: int,
) -> str:
    """Return kernels (name, state, summary), quirks and scenarios as text.

    ``width`` is that of the terminal, in columns.
    """
    sections = [
        _section(
            "kernels",
            [(name, f"{state}; {summary}") for name, state, summary in kernels],
            width,
        ),
        _section(
            "quirks (rfc: all but those that say so)",
            [(quirk.name, _quirk_text(quirk)) for quirk in quirks],
            width,
        ),
        _section("scenarios", [(one.name, one.summary) for one in scenarios], width),
    ]
    return "\n\n".join(sections)


def _quirk_text(quirk: Quirk) -> str:
    needs = f"; needs {', '.join(quirk.needs)}" if quirk.needs else ""
    apart = "" if quirk.in_rfc else "; not in rfc"
    return f"{quirk.summary} [{quirk.source}{needs}{apart}]"


def _section(title: str, rows: Sequence[tuple[str, str]], width: int) -> str:
    column = max((len(name) for name, _ in rows), default=0)
    lines = [title]
    for name, text in rows or [("", "none")]:
        lines += textwrap.wrap(
            text,
            width=max(40, min(width, 100)),
            initial_indent=f"  {name:<{column}}  ",
            subsequent_indent=" " * (column + 4),
        )
    return "\n".join(lines)
