"""What a scenario prints: a line for each step, and what was found where one failed."""

import re
from collections.abc import Iterable


def failures(lines: Iterable[str]) -> list[str]:
    """Return each step that failed or was skipped, and the lines that say why."""
    wrong = []
    why = False
    for line in lines:
        if re.match("not ok|.*# SKIP", line):
            wrong.append(line)
            why = True
        elif why and line.startswith("#"):
            wrong[-1] += f"\n{line}"
        else:
            why = False
    return wrong
