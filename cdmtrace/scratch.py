"""A directory for what is needed for a while, and goes again."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

from cdmtrace.errors import CdmtraceError


@contextlib.contextmanager
def scratch(
    verb: str,
    who: str,
    base: str | None = None,
    hint: str = "TMPDIR=DIRECTORY names another one",
) -> Iterator[Path]:
    """Have a directory for the block.

    verb: is in its name. who: needs it, as an error says. base: where it is made; None:
    in TMPDIR. hint: how to have another one. Raises CdmtraceError where none can be
    made.
    """
    try:
        made = tempfile.TemporaryDirectory(prefix=f"cdmtrace-{verb}-", dir=base)
    except OSError as error:
        raise CdmtraceError(
            f"there is no place for what {who} needs: {error.strerror}", hint=hint
        ) from error
    with made as directory:
        yield Path(directory)
