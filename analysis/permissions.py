"""Which services may touch the pages of which node: what an owner has declared.

Written on the command line (``--allow 1:migration,ksm``) or in a file of TOML:

    [node.1]
    allow = ["mempolicy", "migration"]

Services are called as in the table, or by the flag of N_MEMORY_PRIVATE that stands for
one (``NP_OPS_MIGRATION``).
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from cdmtrace import tomlfile
from cdmtrace.errors import UsageTrouble

ALL: Final = "all"
_EVERY: Final = ("*", ALL)
_LAST_NODE: Final = 63
_HINT: Final = "such as --allow 1:migration,compaction, or --allow all:ksm"

BY_DEFAULT: Final = frozenset({"mempolicy"})
"""David Hildenbrand on N_MEMORY_PRIVATE, Mar 2026: "just some memory that you mbind(),
and you only want the mbind() user to make use of that memory"."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Permissions:
    """What is allowed.

    nodes: node -> its services, None for every node that is not named otherwise. What
    is more: added to the nodes that are named here, None: to all. A service called
    "all" is every one.
    """

    nodes: Mapping[int | None, frozenset[str]] = field(default_factory=dict)
    more: Mapping[int | None, frozenset[str]] = field(default_factory=dict)

    def of(self, node: int) -> frozenset[str]:
        """Return the names of what is allowed on a node; "all" may be one."""
        given = self.nodes.get(node, self.nodes.get(None, BY_DEFAULT))
        empty: frozenset[str] = frozenset()
        return given | self.more.get(node, empty) | self.more.get(None, empty)

    def allow(self, node: int, service: str) -> bool:
        """Return whether a service may touch pages of a node."""
        return not {service, ALL}.isdisjoint(self.of(node))

    @property
    def named(self) -> frozenset[int]:
        """The nodes that are named, each by its number."""
        return frozenset(n for n in (*self.nodes, *self.more) if n is not None)


DEFAULT: Final = Permissions()
"""No node is named: mempolicy alone."""


def read(
    allowed: Iterable[str],
    file: str | os.PathLike[str] | None,
    known: Mapping[str, str | None],
) -> Permissions:
    """Return what --allow and --permissions say; what --allow names comes on top.

    allowed: NODE:SERVICE[,SERVICE...] each. known: service -> its flag, None where it
    has none. Raises UsageTrouble for what nobody knows, and for an unreadable file.
    """
    more: dict[int | None, frozenset[str]] = {}
    for text in allowed:
        where, colon, services = text.partition(":")
        if not colon:
            raise UsageTrouble(
                f"--allow {text}: no colon between node and services", hint=_HINT
            )
        node = _node(where.strip(), f"--allow {text}")
        names = [name.strip() for name in services.split(",") if name.strip()]
        if not names:
            raise UsageTrouble(f"--allow {text}: names no service", hint=_HINT)
        found = frozenset(_service(n, f"--allow {text}", known) for n in names)
        more[node] = more.get(node, frozenset()) | found
    return Permissions(nodes=_read_file(file, known) if file else {}, more=more)


def require_nodes(permissions: Permissions, protected: Collection[int]) -> None:
    """Raise UsageTrouble where a node is named that no recording protects."""
    if unknown := sorted(permissions.named - {*protected}):
        nodes = ", ".join(map(str, sorted(protected))) or "none"
        raise UsageTrouble(
            f"node {unknown[0]} is allowed something, and is no CDM node of what is "
            "checked",
            hint=f"CDM nodes of the recording: {nodes}; record --cdm-nodes says which",
        )


def _node(text: str, where: str) -> int | None:
    if text in _EVERY:
        return None
    if text.isascii() and text.isdigit() and int(text[:4]) <= _LAST_NODE:
        return int(text)
    raise UsageTrouble(
        f"{where}: {text!r} is no node",
        hint=f"a number from 0 to {_LAST_NODE}, or {ALL}",
    )


def _service(name: str, where: str, known: Mapping[str, str | None]) -> str:
    if name in _EVERY:
        return ALL
    for service, flag in known.items():
        if name in (service, flag):
            return service
    close = difflib.get_close_matches(name.lower(), known, n=1)
    meant = f"; did you mean {close[0]}?" if close else ""
    raise UsageTrouble(
        f"{where}: no service is called {name!r}{meant}",
        hint=f"one of {', '.join(known)}, or {ALL}",
    )


def _read_file(
    file: str | os.PathLike[str], known: Mapping[str, str | None]
) -> Mapping[int | None, frozenset[str]]:
    where = os.fspath(file)
    told = tomlfile.read(
        Path(file),
        option="--permissions",
        example='[node.1] and allow = ["migration"]',
    )
    tomlfile.only(told, {"node"}, where)
    nodes = told.get("node", {})
    if not isinstance(nodes, dict):
        raise UsageTrouble(f"{where}: node: is no table", hint="[node.1], [node.all]")
    found: dict[int | None, frozenset[str]] = {}
    for key, table in nodes.items():
        at = f"{where}: node.{key}"
        node = _node(key, at)
        if not isinstance(table, dict):
            raise UsageTrouble(f"{at}: is no table", hint=f"[node.{key}]")
        tomlfile.only(table, {"allow"}, at)
        names = table.get("allow")
        if not isinstance(names, list) or not all(isinstance(n, str) for n in names):
            raise UsageTrouble(
                f"{at}.allow: is no list of services",
                hint='allow = ["mempolicy", "migration"]; an empty list allows none',
            )
        found[node] = frozenset(_service(n, f"{at}.allow", known) for n in names)
    return found
