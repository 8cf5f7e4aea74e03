"""Where interpreters that we start look for modules."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Final

_NAME: Final = "PYTHONSAFEPATH"


@contextlib.contextmanager
def safe_path() -> Iterator[None]:
    """Have interpreters that are started within the block not look for modules in the
    directory that somebody is in, as multiprocessing's do before they are told where
    this one looks (python -P).
    """
    before = os.environ.get(_NAME)
    os.environ[_NAME] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[_NAME]
        else:
            os.environ[_NAME] = before
