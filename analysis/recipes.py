"""Queries that are shipped: queries/NAME.sql, of which the first line says what for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final

_DIRECTORY: Final = Path(__file__).resolve().parent / "queries"


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """One query. about: what it answers, in a line."""

    name: str
    about: str
    sql: str


@cache
def recipes() -> Mapping[str, Recipe]:
    """Return name -> recipe, in the order of names."""
    return {path.stem: _read(path) for path in sorted(_DIRECTORY.glob("*.sql"))}


def _read(path: Path) -> Recipe:
    sql = path.read_text(encoding="utf-8")
    about = sql.splitlines()[0].removeprefix("--").strip()
    return Recipe(name=path.stem, about=about, sql=sql)
