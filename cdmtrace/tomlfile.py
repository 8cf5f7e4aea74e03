"""Files of TOML that people write, and what there may be in them."""

from __future__ import annotations

import tomllib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from cdmtrace.errors import UsageTrouble


def read(path: Path, *, option: str, example: str) -> dict[str, Any]:
    """Return what a file says.

    option: the one that named it; example: what such a file holds; both for errors.
    Raises UsageTrouble for a file that cannot be read, and for one that is not TOML.
    """
    try:
        with path.open("rb") as file:
            return tomllib.load(file)
    except OSError as error:
        raise UsageTrouble(
            f"{path}: cannot be read: {error.strerror}",
            hint=f"{option} names a file of TOML",
        ) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageTrouble(f"{path}: not TOML: {error}", hint=example) from error


def only(table: Mapping[str, Any], keys: Collection[str], where: str) -> None:
    """Raise UsageTrouble where a table has a key that is not among these."""
    for key in table:
        if key not in keys:
            raise UsageTrouble(
                f"{where}: {key}: no such key", hint=f"known: {', '.join(keys)}"
            )
