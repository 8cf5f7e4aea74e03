"""A recording while it is made: what has the tag now, and what was found so far.

What is kept is what the address spaces that there are hold, the latest findings, and
what was lost: it grows with the intervals of losses, and not with the recording.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cdmtrace.analysis import names
from cdmtrace.analysis.book import LIVE
from cdmtrace.analysis.frames import Trace, begins_late, gap_of, terms_of
from cdmtrace.analysis.replay import Replay
from cdmtrace.analysis.result import Life, Result
from cdmtrace.analysis.rows import Decoder
from cdmtrace.analysis.state import Area

if TYPE_CHECKING:
    from cdmtrace.format.reader import TraceBatch
    from cdmtrace.format.schema import Header


@dataclass(frozen=True, kw_only=True, slots=True)
class Tagged:
    """A VMA that has the tag. pages: of CDM nodes, of the base size.

    flags: by name; the tag is the last. policy: its own, None where not known.
    """

    pid: int
    comm: str
    start: int
    end: int
    policy: str | None
    flags: tuple[str, ...]
    pages: int


class Live:
    """The model, fed batch by batch."""

    def __init__(self, header: Header, path: str, *, profile: str = "intended") -> None:
        """Begin with nothing.

        Raises KeyError for a profile that does not exist, and TraceFileError for a
        header that check would not take either.
        """
        self.terms = terms_of(header, path)
        self._decoder = Decoder(path, self.terms.page)
        late = begins_late(header)
        trace = Trace(
            path=path,
            terms=self.terms,
            events=(),
            count=0,
            stacks=self._decoder.stacks,
            before=late.gap if late else None,
            clean_end=False,
        )
        self._replay = Replay(trace, profile=profile, bounds=LIVE)
        self._tagged: dict[int, tuple[Life, list[Tagged]]] = {}
        self.events = 0

    def feed(self, batch: TraceBatch) -> Iterator[None]:
        """Feed a batch; it goes on by a row each time that the iterator is asked.

        Raises TraceFileError for rows that no kernel can have told.
        """
        for loss in batch.losses:
            self._replay.lose(gap_of(loss))
        for event in self._decoder.rows(batch.columns):
            self._replay.take(event)
            self.events += 1
            yield

    def result(self) -> Result:
        """Return what was found so far."""
        return self._replay.result()

    def tagged(self) -> list[Tagged]:
        """Return the VMAs that have the tag, those with the most CDM pages first."""
        before, self._tagged = self._tagged, {}
        found: list[Tagged] = []
        for life in self._replay.living():
            old = before.get(life.mm.id)
            if old is None or not _same(old[0], life):
                old = life, self._of(life)
            self._tagged[life.mm.id] = old
            found += old[1]
        return sorted(found, key=lambda vma: (-vma.pages, vma.pid, vma.start))

    def _of(self, life: Life) -> list[Tagged]:
        return [
            Tagged(
                pid=life.mm.pid,
                comm=life.mm.comm,
                start=area.start,
                end=area.end,
                policy=_policy(area),
                flags=names.flags(area.flags or 0, self.terms),
                pages=life.state.pages.on_nodes(area.start, area.end).total()
                // self.terms.page,
            )
            for area in life.state.areas
            if area.tagged(self.terms)
        ]


def _policy(area: Area) -> str | None:
    own = area.policy
    return None if own is None else names.policy(own.byte, own.nodes)


def _same(one: Life, other: Life) -> bool:
    """Return whether nothing has changed; a state never does, so one holds the same."""
    return one.state is other.state and one.mm == other.mm
