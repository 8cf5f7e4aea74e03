"""Lines in which a scenario says what a recording of it must show, and where."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from cdmtrace.analysis.result import Finding

PAGE = 4096
LINE = re.compile(r"# defect step=(\S+) rule=(\S+) (.*)")
SHOWN = {"yes": True, "no": False, "chance": None}


@dataclass(frozen=True)
class Place:
    """A line of the program: what a rule is to find, or not to find, and where.

    shown: None where the program cannot know, as it is chance.
    """

    step: str
    rule: str
    pid: int
    start: int
    end: int
    shown: bool | None

    def met_by(self, finding: Finding, rule: str | None = None) -> bool:
        """Whether a finding of the rule, or of another one, is about this place."""
        return (
            finding.rule.id == (rule or self.rule)
            and finding.start < self.end
            and self.start < finding.end
        )


def places(lines: Iterable[str]) -> list[Place]:
    """Return what the lines of a scenario say."""
    found = []
    for line in lines:
        if match := LINE.fullmatch(line):
            words = dict(word.split("=", 1) for word in match[3].split())
            start = int(words["addr"], 16)
            found.append(
                Place(
                    step=match[1],
                    rule=match[2],
                    pid=int(words["pid"]),
                    start=start,
                    end=start + int(words["span"]) * PAGE,
                    shown=SHOWN[words["shown"]],
                )
            )
    return found
