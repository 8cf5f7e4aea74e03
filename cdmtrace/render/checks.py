"""What ``cdmtrace doctor`` prints: one line for each prerequisite."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cdmtrace.checks import Check

_NAME_WIDTH = 11


def check_lines(check: Check) -> str:
    """Return a check as text: its line, and what mends it below."""
    lines = f"{check.state:<4}  {check.name:<{_NAME_WIDTH}}  {check.text}"
    if check.remedy:
        lines += f"\n{'':{_NAME_WIDTH + 8}}-> {check.remedy}"
    return lines


def verdict_line(checks: Sequence[Check], *, able: bool) -> str:
    """Return the sentence that ends the list, with the command to type next."""
    failed = [check.name for check in checks if check.state == "fail"]
    if able:
        return "This machine can record: sudo cdmtrace record -- COMMAND"
    return f"This machine cannot record yet: {', '.join(failed)}"


def checks_json(checks: Sequence[Check], *, able: bool) -> str:
    """Return all checks as JSON, schema ``cdmtrace.doctor/1``."""
    document = {
        "schema": "cdmtrace.doctor/1",
        "can_record": able,
        "checks": [
            {
                "name": check.name,
                "state": str(check.state),
                "text": check.text,
                "remedy": check.remedy,
            }
            for check in checks
        ],
    }
    return json.dumps(document, indent=2)
