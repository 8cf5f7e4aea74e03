"""What is a URL and what a path. Without any import that takes time."""

from __future__ import annotations

import re


def is_url(text: str) -> bool:
    """Return whether a word of the command line is a URL, as fsspec has them."""
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]*://|[a-z0-9]+::.*://", text) is not None
