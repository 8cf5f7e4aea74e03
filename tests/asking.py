"""What comes of ``cdmtrace query``."""

from __future__ import annotations

import json
import lzma
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from cdmtrace.cli import main

GOLDEN = Path(__file__).parent / "golden"
RFC = GOLDEN / "cdm-6.1-rfc.arrows"
NONE = GOLDEN / "cdm-6.1-none.arrows"


def unpacked(name: str, directory: Path) -> Path:
    """Return one of the recordings of tests/golden/rules, unpacked there."""
    path = directory / f"{name}.arrows"
    path.write_bytes(lzma.decompress((GOLDEN / f"rules/{path.name}.xz").read_bytes()))
    return path


class Asking:
    """Runs ``query`` and holds what it prints."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self.capsys = capsys
        self.err = ""

    def __call__(self, *words: str | Path, status: int = 0) -> str:
        """Return what comes to stdout."""
        assert main(["query", *map(str, words)]) == status
        printed = self.capsys.readouterr()
        self.err = printed.err
        return printed.out

    def rows(self, *words: str | Path) -> list[dict[str, Any]]:
        """Return an answer, by column."""
        found: list[dict[str, Any]] = json.loads(self("--format", "json", *words))
        return found

    def column(self, *words: str | Path) -> list[Any]:
        """Return an answer of one column."""
        return [value for row in self.rows(*words) for value in row.values()]


def tuples(rows: Iterable[dict[str, Any]], *names: str) -> list[tuple[Any, ...]]:
    """Return some columns of rows."""
    return [tuple(row[name] for name in names) for row in rows]
