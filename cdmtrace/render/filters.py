"""What a recording leaves out because it was asked to, in words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def words(filters: Mapping[str, Any]) -> str:
    """Return the filters of a trace's header, "" where there are none."""
    return ", ".join(
        _word(name, value)
        for name, value in filters.items()
        if value is not False and (name, value) != ("children", True)
    ) + (", without children" if filters.get("children") is False else "")


def _word(name: str, value: Any) -> str:
    if value is True:
        return name
    if isinstance(value, list):
        return f"{name} {' '.join(map(str, value))}"
    return f"{name} {value}"
