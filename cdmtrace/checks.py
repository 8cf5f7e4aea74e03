"""What a check of this machine comes to."""

from __future__ import annotations

import enum
from dataclasses import dataclass


class State(enum.StrEnum):
    """What a check found."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


@dataclass(frozen=True, kw_only=True, slots=True)
class Check:
    """One prerequisite: a sentence about it, and the command that mends it."""

    name: str
    state: State
    text: str
    remedy: str | None = None
