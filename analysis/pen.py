"""Tracks, written down as a recording is replayed."""

from __future__ import annotations

from collections.abc import Mapping

from cdmtrace.tracks import Count, Edge, Item, Key, Mark, Track, Value


class Pen:
    """Writes items down. No track goes back in time.

    Rows come in the order of the ring, which counts; the clocks of two cpus may differ.
    """

    def __init__(self) -> None:
        self._items: list[Item] = []
        self._last: dict[Key, int] = {}
        self._known: set[Key] = set()

    def track(self, track: Track) -> Key:
        """Have a track, unless it is there already; return its key."""
        if track.key not in self._known:
            self._known.add(track.key)
            self._items.append(track)
        return track.key

    def mark(
        self,
        track: Key,
        ts: int,
        edge: Edge,
        name: str = "",
        args: Mapping[str, Value | None] | None = None,
        flows: tuple[Key, ...] = (),
        ends: tuple[Key, ...] = (),
    ) -> None:
        """Have a mark on a track, with those arguments that say anything."""
        given = {k: v for k, v in (args or {}).items() if v is not None and v != ""}
        at = self._at(track, ts)
        self._items.append(
            Mark(
                track=track,
                ts=at,
                edge=edge,
                name=name,
                args=given,
                flows=flows,
                ends=ends,
            )
        )

    def count(self, track: Key, ts: int, value: int) -> None:
        """Have a track count so many from now on."""
        at = self._at(track, ts)
        self._items.append(Count(track=track, ts=at, value=value))

    def drain(self) -> list[Item]:
        """Return what was written since the last time."""
        items, self._items = self._items, []
        return items

    def _at(self, track: Key, ts: int) -> int:
        self._last[track] = max(ts, self._last.get(track, ts))
        return self._last[track]
