"""The findings of one rule while a recording is replayed.

``check`` knows all losses beforehand, and so at once whether a finding stands. Who
follows a file that grows does not: a loss is told when the counters are read next, and
an entry without a return at the end only. Until then a finding is *pending*; a loss
that is told later and touches what it rests on takes it back, as if it had been known.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import msgspec
from msgspec.structs import replace

from cdmtrace.analysis.frames import ROWS, Gap

if TYPE_CHECKING:
    from cdmtrace.analysis.result import Finding


class Bounds(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """How much a replay keeps of what is over; as it is here, all that check needs.

    pending: findings of a rule that a later loss may take back, the latest ones.
    findings: of a rule that are kept, the latest ones; others are counted. ended:
    the last state of each mm is told, also of those that have ended. names: whose each
    was. Without these two nothing is told of address spaces at all.
    audit: the kernel's counts are compared, for which all rows must be known
    beforehand, and what would have to be tagged where there is no tag is noted.
    """

    pending: int = 0
    findings: int | None = None
    ended: bool = True
    names: bool = True
    audit: bool = True


CHECK = Bounds()
"""Everything is known when the first row comes, and everything is kept."""

VERDICT = Bounds(ended=False, names=False)
"""The same for who asks for findings and verdicts only: an address space is forgotten
when it has ended, of which a long recording has many."""

REPORT = Bounds(ended=False)
"""The same for who has seen each address space when it ended."""

NAMES = Bounds(ended=False, audit=False)
"""For who follows the replay, and wants to know whose the address spaces were."""

LIVE = Bounds(pending=200, findings=200, ended=False, names=False, audit=False)
"""What is kept does not grow with the length of the recording."""


class Ground(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """What an answer rests on: [first, last] in ns, [start, end) of an mm.

    kin, moved: those of the mm when it was judged (see replay). rows: only rows of
    every kind that are missing shake it, and no loss of one probe.
    """

    first: int
    last: int
    start: int
    end: int
    kin: frozenset[int]
    moved: bool
    rows: bool = False

    def touched(self, gap: Gap) -> bool:
        """Return whether what is missing may belong to it."""
        if self.rows and gap.probe != ROWS:
            return False
        if gap.until < self.first or gap.since > self.last:
            return False
        if gap.mm and gap.mm not in self.kin:
            return False
        return self.moved or (gap.start < self.end and self.start < gap.end)


@dataclass(slots=True)
class Gaps:
    """What is missing. One that goes on where the last of its kind ended is that one:
    events that are lost all the time are told of ten times a second.
    """

    all: list[Gap] = field(default_factory=list)
    _last: dict[tuple[str, str, int, int, int], int] = field(default_factory=dict)

    def add(self, new: Gap) -> None:
        """Note a gap."""
        kind = new.probe, new.reason, new.mm, new.start, new.end
        at = self._last.get(kind)
        if at is not None:
            old = self.all[at]
            if new.since <= old.until and old.since <= new.until:
                self.all[at] = replace(
                    old,
                    count=old.count + new.count,
                    since=min(old.since, new.since),
                    until=max(old.until, new.until),
                )
                return
        self._last[kind] = len(self.all)
        self.all.append(new)


@dataclass(slots=True)
class Book:
    """The findings of one rule.

    once: one for a VMA and a cause, and not one for each event. withheld: how many
    losses have taken back. _places: where those of each address space are.
    """

    once: bool
    bounds: Bounds
    withheld: int = 0
    _findings: list[Finding] = field(default_factory=list)
    _counted: int = 0
    _pending: deque[tuple[Finding, Ground | None]] = field(default_factory=deque)
    _shown: list[Finding] | None = None
    _places: dict[tuple[int, int], list[int]] = field(default_factory=dict)

    def add(self, finding: Finding, ground: Ground | None) -> None:
        """Enter a finding. ground: what it rests on; None: no loss can shake it."""
        self._shown = None
        if not self.bounds.pending:
            self._settle(finding)
            return
        self._pending.append((finding, ground))
        while len(self._pending) > self.bounds.pending:
            self._settle(self._pending.popleft()[0])

    def lose(self, gap: Gap) -> None:
        """Take back what is pending and touched by a loss."""
        stands = deque(
            (finding, ground)
            for finding, ground in self._pending
            if ground is None or not ground.touched(gap)
        )
        if len(stands) < len(self._pending):
            self.withheld += len(self._pending) - len(stands)
            self._pending = stands
            self._shown = None

    @property
    def findings(self) -> list[Finding]:
        """Those that are kept, in the order in which they were found first."""
        if not self._pending:
            return self._findings
        if self._shown is None:
            self._shown = self._findings.copy()
            for finding, _ in self._pending:
                _enter(self._shown, finding, self.once)
        return self._shown

    @property
    def count(self) -> int:
        """How many there are, those that were only counted among them."""
        return self._counted + len(self.findings)

    def _settle(self, finding: Finding) -> None:
        most = self.bounds.findings
        if most is not None:
            _enter(self._findings, finding, self.once)
            if len(self._findings) > most:
                del self._findings[0]
                self._counted += 1
            return
        # Of all there may be many, and of those of one address space there are few.
        places = self._places.setdefault((finding.mm.id, finding.mm.generation), [])
        if not (self.once and _counted_in(self._findings, finding, places)):
            places.append(len(self._findings))
            self._findings.append(finding)


def _enter(findings: list[Finding], new: Finding, once: bool) -> None:
    """Add a finding, or count it in with the one that it is part of."""
    if not (once and _counted_in(findings, new, range(len(findings)))):
        findings.append(new)


def _counted_in(findings: list[Finding], new: Finding, places: Iterable[int]) -> bool:
    """Count it in with the one that it is part of, if one of those at places is."""
    for at in places:
        known = findings[at]
        if (
            known.mm.id == new.mm.id
            and known.mm.generation == new.mm.generation
            and known.cause == new.cause
            and known.expected == new.expected
            and known.start < new.end
            and new.start < known.end
        ):
            findings[at] = replace(
                known,
                count=known.count + 1,
                start=min(known.start, new.start),
                end=max(known.end, new.end),
            )
            return True
    return False
