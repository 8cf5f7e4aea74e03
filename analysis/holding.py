"""Which pages of CDM nodes the model holds to be mapped where, and how many."""

from __future__ import annotations

from cdmtrace.analysis.frames import Terms, Trace
from cdmtrace.analysis.replay import check
from cdmtrace.analysis.result import Mm
from cdmtrace.analysis.state import State

Ranges = dict[tuple[int, int], dict[int, int]]
"""[start, end) of a VMA -> node -> pages (of the base size) of that CDM node."""


def cdm_pages(trace: Trace, *, until: int | None = None) -> dict[Mm, Ranges]:
    """Return the pages of CDM nodes that the model holds to be mapped, by mm.

    At the end of the trace, or after the row of seq ``until``; of an mm that has
    ended, as they were just before it did. VMAs are those that the model saw last;
    to compare with /proc/PID/numa_maps, whose VMAs may have merged unseen since,
    use count_pages() on its ranges.
    """
    result = check(trace, rules=(), until=until)
    return {
        life.mm: ranges
        for life in result.lives
        if (ranges := pages_by_area(life.state, trace.terms))
    }


def pages_by_area(state: State, terms: Terms) -> Ranges:
    """Return the pages of one mm by VMA; one outside of all is its own range."""
    ranges: Ranges = {}
    for page in state.pages.within(0, 1 << 64):
        area = state.area(page.addr)
        where = (area.start, area.end) if area else (page.addr, page.addr + page.size)
        count = ranges.setdefault(where, {})
        count[page.node] = count.get(page.node, 0) + page.size // terms.page
    return ranges


def count_pages(state: State, terms: Terms, start: int, end: int) -> dict[int, int]:
    """Return node -> pages (of the base size) of CDM nodes mapped in [start, end)."""
    held = state.pages.on_nodes(start, end)
    return {node: size // terms.page for node, size in held.items()}
