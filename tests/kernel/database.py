"""A database at work, for ordinary.sh: SQLite with a log, which it maps and shares.

Usage: database.py FILE
"""

from __future__ import annotations

import sqlite3
import sys

ROWS = 2003


def main(path: str) -> None:
    """Write rows, index them, change half of them, and count what is there."""
    base = sqlite3.connect(path)
    base.execute("PRAGMA journal_mode=WAL")
    base.execute("PRAGMA mmap_size=16777216")
    base.execute("CREATE TABLE pages (frame INTEGER PRIMARY KEY, node INTEGER)")
    for start in range(0, ROWS, 100):
        rows = [(frame, frame % 2) for frame in range(start, min(start + 100, ROWS))]
        with base:
            base.executemany("INSERT INTO pages VALUES (?, ?)", rows)
    with base:
        base.execute("CREATE INDEX by_node ON pages (node)")
        base.execute("UPDATE pages SET node = 2 WHERE node = 1")
    (count,) = base.execute("SELECT count(*) FROM pages WHERE node = 2").fetchone()
    assert count == ROWS // 2, count


if __name__ == "__main__":
    main(sys.argv[1])
