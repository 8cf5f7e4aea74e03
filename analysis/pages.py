"""Which pages one mm maps, by address: a map that never changes.

It is cut like a page table: one leaf for each 2 MiB of addresses. Putting a page
in copies one leaf and the list of leaves, nothing else, so that every state of
the model can be kept and compared; each leaf counts what the model asks for, so
that "is there a page in this VMA?" looks at leaves and not at pages.
"""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Final

import msgspec
from msgspec.structs import replace

if TYPE_CHECKING:
    from cdmtrace.analysis.frames import Event

LEAF_SHIFT: Final = 21

INHERITED: Final = ("fork", "before", "unknown")
"""By what a page comes that did not come for its VMA."""

_HOW: Final = operator.attrgetter("how")
_SIZE: Final = operator.attrgetter("size")
_EXPLICIT: Final = operator.attrgetter("explicit")
_CAME: Final = operator.attrgetter("came")
_SEQ: Final = operator.attrgetter("event.seq")


class Page(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A page that is mapped at addr.

    how: by what it came ("fault", "move_pages", …; "fork", "before" and "unknown"
    did not come for this VMA, as far as one can know). explicit: a request put it
    there by name (move_pages, migrate_pages, a driver) and no later mbind() of the
    range has superseded it.
    event: the row that mapped it. part: it is one of a huge page that is being split
    into entries of its parts, and its own entry has not been told yet.
    """

    addr: int
    size: int
    node: int
    how: str
    explicit: bool
    event: Event
    part: bool = False

    @classmethod
    def of(cls, event: Event, how: str, *, explicit: bool = False) -> Page:
        """Return the page that a row says is at addr now."""
        return cls(
            addr=event.addr,
            size=event.size,
            node=event.node,
            how=how,
            explicit=explicit,
            event=event,
        )

    @property
    def came(self) -> bool:
        """Whether it came for this VMA, and not by inheritance."""
        return self.how not in INHERITED


class _Leaf(msgspec.Struct, frozen=True, gc=False):
    """The pages of one leaf; most: no page of it is, or was, larger, bytes."""

    pages: Mapping[int, Page]
    explicit: int
    came: int
    most: int

    @classmethod
    def of(cls, pages: dict[int, Page]) -> _Leaf:
        hows = Counter(map(_HOW, pages.values()))
        return cls(
            pages,
            sum(map(_EXPLICIT, pages.values())),
            len(pages) - sum(map(hows.__getitem__, INHERITED)),
            max(map(_SIZE, pages.values()), default=0),
        )

    def put(self, page: Page) -> _Leaf:
        return self._swap(self.pages.get(page.addr), page)

    def drop(self, page: Page) -> _Leaf:
        return self._swap(page, None)

    def grown(self, new: Mapping[int, Page]) -> _Leaf:
        """Return it with pages put in, as put() would one by one."""
        old = _Leaf.of({at: self.pages[at] for at in new if at in self.pages})
        more = _Leaf.of({**new})
        return _Leaf(
            {**self.pages, **new},
            self.explicit - old.explicit + more.explicit,
            self.came - old.came + more.came,
            max(self.most, more.most),
        )

    def shrunk(self, gone: Mapping[int, Page]) -> _Leaf:
        """Return it without pages that are there."""
        less = _Leaf.of({**gone})
        return _Leaf(
            {addr: page for addr, page in self.pages.items() if addr not in gone},
            self.explicit - less.explicit,
            self.came - less.came,
            self.most,
        )

    def _swap(self, old: Page | None, new: Page | None) -> _Leaf:
        pages = dict(self.pages)
        explicit, came, most = self.explicit, self.came, self.most
        if old is not None:
            del pages[old.addr]
            explicit, came = explicit - old.explicit, came - old.came
        if new is not None:
            pages[new.addr] = new
            explicit, came = explicit + new.explicit, came + new.came
            most = max(most, new.size)
        return _Leaf(pages, explicit, came, most)


def _by_leaf(pages: Iterable[Page]) -> dict[int, dict[int, Page]]:
    at = {page.addr: page for page in pages}
    if not at:
        return {}
    first, last = min(at) >> LEAF_SHIFT, max(at) >> LEAF_SHIFT
    if first == last:
        return {first: at}
    by_leaf: dict[int, dict[int, Page]] = {}
    for addr, page in at.items():
        by_leaf.setdefault(addr >> LEAF_SHIFT, {})[addr] = page
    return by_leaf


class PageMap(msgspec.Struct, frozen=True, gc=False):
    """Address -> Page, of one mm. Every method that changes it returns a new one."""

    leaves: Mapping[int, _Leaf] = msgspec.field(default_factory=dict)
    count: int = 0

    def get(self, addr: int) -> Page | None:
        """Return the page that is mapped at exactly this address."""
        leaf = self.leaves.get(addr >> LEAF_SHIFT)
        return leaf.pages.get(addr) if leaf else None

    def covering(self, addr: int) -> Page | None:
        """Return the page in which the address lies, a huge one included."""
        leaf = self.leaves.get(addr >> LEAF_SHIFT)
        if leaf is None:
            return None
        page = leaf.pages.get(addr)
        if page is not None:
            return page
        # Sizes are powers of two, and a page is aligned to its size.
        size = max(leaf.most, 1)
        while (start := addr & -size) != addr:
            page = leaf.pages.get(start)
            if page is not None and addr < start + page.size:
                return page
            size >>= 1
        return None

    def put(self, page: Page) -> PageMap:
        """Map a page; what was mapped at its address is no more."""
        key = page.addr >> LEAF_SHIFT
        leaf = self.leaves.get(key) or _Leaf({}, 0, 0, 0)
        grown = leaf.put(page)
        return PageMap(
            {**self.leaves, key: grown},
            self.count + len(grown.pages) - len(leaf.pages),
        )

    def drop(self, page: Page) -> PageMap:
        """Unmap a page that is there."""
        key = page.addr >> LEAF_SHIFT
        leaf = self.leaves[key].drop(page)
        leaves = {**self.leaves, key: leaf}
        if not leaf.pages:
            del leaves[key]
        return PageMap(leaves, self.count - 1)

    def put_each(self, new: Iterable[Page]) -> PageMap:
        """Map pages, as put() would one by one; each leaf is copied once."""
        leaves, count = dict(self.leaves), self.count
        for key, pages in _by_leaf(new).items():
            old = leaves.get(key) or _Leaf({}, 0, 0, 0)
            leaves[key] = old.grown(pages)
            count += len(leaves[key].pages) - len(old.pages)
        return PageMap(leaves, count)

    def drop_all(self, gone: Iterable[Page]) -> PageMap:
        """Unmap pages that are there, as drop() would one by one; copy leaves once."""
        leaves, count = dict(self.leaves), self.count
        for key, pages in _by_leaf(gone).items():
            leaves[key] = leaves[key].shrunk(pages)
            count -= len(pages)
            if not leaves[key].pages:
                del leaves[key]
        return PageMap(leaves, count)

    def free(self, addresses: Collection[int], unit: int) -> bool:
        """Return whether no page is mapped at any of these addresses. unit: bytes of a
        base page.
        """
        leaves = self._leaves_of(addresses)
        if all(leaf.most <= unit for leaf in leaves):
            return all(leaf.pages.keys().isdisjoint(addresses) for leaf in leaves)
        return not any(map(self.covering, addresses))

    def small(self, addresses: Collection[int], unit: int) -> dict[int, Page] | None:
        """Return what is mapped at these addresses, None unless each has a base page.

        unit: bytes of a base page.
        """
        there: dict[int, Page] = {}
        for leaf in self._leaves_of(addresses):
            there |= {at: leaf.pages[at] for at in leaf.pages.keys() & addresses}
        small = len(there) == len(addresses)
        return there if small and {*map(_SIZE, there.values())} == {unit} else None

    def _leaves_of(self, addresses: Collection[int]) -> list[_Leaf]:
        keys = {addr >> LEAF_SHIFT for addr in addresses}
        return [self.leaves[key] for key in keys if key in self.leaves]

    def put_all(self, new: Iterable[Page]) -> PageMap:
        """Map many pages; each leaf is copied once."""
        by_leaf = _by_leaf(new)
        if not by_leaf:
            return self
        leaves, count = dict(self.leaves), self.count
        for key, pages in by_leaf.items():
            old = leaves.get(key)
            leaves[key] = _Leaf.of({**(old.pages if old else {}), **pages})
            count += len(leaves[key].pages) - (len(old.pages) if old else 0)
        return PageMap(leaves, count)

    def cut(self, at: int, unit: int) -> PageMap:
        """Return it with no huge page across an address: no row tells of its split."""
        page = self.covering(at)
        return self.fragment(page, unit) if page and page.addr < at else self

    def fragment(self, page: Page, unit: int, *, part: bool = False) -> PageMap:
        """Replace a huge page by the base pages (unit bytes) that it is made of."""
        pages = self.drop(page)
        key = page.addr >> LEAF_SHIFT
        leaf = pages.leaves.get(key)
        there = leaf.pages if leaf else {}
        parts = {
            addr: replace(page, addr=addr, size=unit, part=part)
            for addr in range(page.addr, page.addr + page.size, unit)
        }
        whole = _Leaf.of({**parts, **there})
        return PageMap(
            {**pages.leaves, key: whole},
            pages.count + len(whole.pages) - len(there),
        )

    def drop_within(self, start: int, end: int) -> PageMap:
        """Unmap every page that begins in [start, end)."""
        leaves, count = dict(self.leaves), self.count
        for key in self._keys(start, end):
            old = leaves[key].pages
            rest = {a: page for a, page in old.items() if not start <= a < end}
            count -= len(old) - len(rest)
            if rest:
                leaves[key] = _Leaf.of(rest)
            else:
                del leaves[key]
        return PageMap(leaves, count)

    def within(self, start: int, end: int) -> Iterator[Page]:
        """Yield the pages that begin in [start, end), by address."""
        for key in self._keys(start, end):
            pages = self.leaves[key].pages
            for addr in sorted(pages):
                if start <= addr < end:
                    yield pages[addr]

    def all(self) -> Iterator[Page]:
        """Yield every page, by address."""
        for key in sorted(self.leaves):
            pages = self.leaves[key].pages
            for addr in sorted(pages):
                yield pages[addr]

    def on_nodes(self, start: int, end: int) -> Counter[int]:
        """Return node -> bytes that are mapped in [start, end).

        Of a huge page that is in several VMAs (mprotect() of a part of it splits the
        VMA and leaves the page whole), each has what lies in it.
        """
        found: Counter[int] = Counter()
        for key in self._keys(start, end):
            for page in self.leaves[key].pages.values():
                first, last = page.addr, page.addr + page.size
                # Most pages are in it whole, and that is found out fast.
                if start <= first and last <= end:
                    found[page.node] += page.size
                elif first < end and start < last:
                    found[page.node] += min(end, last) - max(start, first)
        return found

    def meeting(self, start: int, end: int) -> Iterator[tuple[Page, int]]:
        """Yield the pages of which something is in [start, end), and how many bytes."""
        for key in self._keys(start, end):
            for page in self.leaves[key].pages.values():
                inside = min(end, page.addr + page.size) - max(start, page.addr)
                if inside > 0:
                    yield page, inside

    def newest(self, start: int, end: int, *, came: bool) -> Page | None:
        """Return the page that was told of last, of those that begin in [start, end).

        came: of those that came for their VMA; else, that were asked for by name. Of
        several that one row tells of it is the first.
        """
        counts = _CAME if came else _EXPLICIT
        found: list[Page] = []
        for key in self._keys(start, end):
            leaf = self.leaves[key]
            if leaf.came if came else leaf.explicit:
                found += [
                    page
                    for page in leaf.pages.values()
                    if start <= page.addr < end and counts(page)
                ]
        last = max(map(_SEQ, found), default=0)
        return min(
            (page for page in found if page.event.seq == last),
            key=operator.attrgetter("addr"),
            default=None,
        )

    def differing(self, other: PageMap) -> list[tuple[int, int]]:
        """Return ranges of addresses outside of which both map the same.

        What it costs is a look at each leaf, and not at each page.
        """
        if self.leaves is other.leaves:
            return []
        keys = [key for key in self.leaves if key not in other.leaves]
        mine = self.leaves
        keys += [key for key, leaf in other.leaves.items() if mine.get(key) is not leaf]
        return [(key << LEAF_SHIFT, (key + 1) << LEAF_SHIFT) for key in keys]

    def any(self, start: int, end: int) -> bool:
        """Return whether a page, or a part of one, is in [start, end)."""
        return self._some(start, end, lambda leaf: len(leaf.pages), lambda _: True)

    def any_explicit(self, start: int, end: int) -> bool:
        """Return whether one that was asked for by name is in [start, end)."""
        return self._some(
            start, end, lambda leaf: leaf.explicit, lambda page: page.explicit
        )

    def any_came(self, start: int, end: int) -> bool:
        """Return whether one that came for its VMA is in [start, end)."""
        return self._some(start, end, lambda leaf: leaf.came, lambda page: page.came)

    def _keys(self, start: int, end: int) -> list[int]:
        first, last = start >> LEAF_SHIFT, (end - 1) >> LEAF_SHIFT
        if last - first < len(self.leaves):
            return [key for key in range(first, last + 1) if key in self.leaves]
        return sorted(key for key in self.leaves if first <= key <= last)

    def _some(
        self,
        start: int,
        end: int,
        count: Callable[[_Leaf], int],
        test: Callable[[Page], bool],
    ) -> bool:
        for key in self._keys(start, end):
            leaf = self.leaves[key]
            if not count(leaf):
                continue
            if start <= key << LEAF_SHIFT and (key + 1) << LEAF_SHIFT <= end:
                return True
            if any(
                page.addr < end and start < page.addr + page.size and test(page)
                for page in leaf.pages.values()
            ):
                return True
        return False


class Census:
    """on_nodes() of one map after another: a leaf that is the same is not counted anew.

    What it costs is a look at each leaf, and not at each page.
    """

    def __init__(self) -> None:
        self._known: dict[int, tuple[_Leaf, int, int, Counter[int]]] = {}

    def on_nodes(self, pages: PageMap, start: int, end: int) -> Counter[int]:
        """Return node -> bytes of [start, end), as PageMap.on_nodes() does."""
        found: Counter[int] = Counter()
        for key in pages._keys(start, end):
            leaf = pages.leaves[key]
            first = max(start, key << LEAF_SHIFT)
            last = min(end, (key + 1) << LEAF_SHIFT)
            known = self._known.get(key)
            if known is None or known[0] is not leaf or known[1:3] != (first, last):
                known = leaf, first, last, pages.on_nodes(first, last)
                self._known[key] = known
            for node, size in known[3].items():
                found[node] += size
        return found
