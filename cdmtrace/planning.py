"""What to attach on one kernel: of each probe, what of it the kernel has.

Handlers read arguments by name, and the kernel's BTF tells where those are, for they
move from kernel to kernel. The first candidate is taken that the kernel has with every
argument that the handler reads.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from cdmtrace.errors import UsageTrouble
from cdmtrace.kernel import symbols
from cdmtrace.kernel.btf import TypeMissing
from cdmtrace.probes import (
    PROBES,
    WATCHPOINT,
    Attachment,
    Kind,
    LogicalProbe,
    following,
)


class Types(Protocol):
    """What is told of a kernel's functions and structs, see kernel.btf.Btf."""

    def arguments(self, function: str) -> Sequence[str] | None:
        """Return the names of a function's arguments, in order; None: not known."""

    def offset(self, struct: str, member: str) -> int:
        """Return where a member is, in bytes. Raises TypeMissing."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """What would be attached on one kernel.

    ``probe`` has no handler twice for the same function. ``symbols`` has, for each
    attachment, what it is attached to. ``missing`` names the first attachment for
    which the kernel has no candidate; such a probe is not attached at all, since half
    of a pair would say wrong things. ``places``: the macros that tell the handlers
    where the arguments are. ``unseen`` are copies of the function, made by the
    compiler, whose calls are not seen. ``unwanted``: it was asked to be left out.
    """

    probe: LogicalProbe
    symbols: tuple[str, ...]
    missing: str | None
    places: Mapping[str, int] = field(default_factory=dict)
    unseen: tuple[str, ...] = ()
    unwanted: bool = False

    @property
    def rests(self) -> frozenset[str]:
        """Names of the probes that it leans on: what they keep, it reads."""
        return frozenset(n for a in self.probe.attachments for n in a.rests)

    @property
    def why_not(self) -> str | None:
        """Why it is not attached; None if it is."""
        if self.unwanted:
            return "not asked for"
        return f"no {self.missing} on this kernel" if self.missing else None


def plan(
    functions: frozenset[str],
    tracepoints: frozenset[str],
    types: Types,
    probes: tuple[LogicalProbe, ...] = PROBES,
    *,
    present: frozenset[str] = frozenset(),
) -> tuple[Plan, ...]:
    """Return what would be attached on a kernel with these functions.

    functions: those that a probe can be attached to, names as in /proc/kallsyms.
    tracepoints: ``category:name``. present: functions that the kernel has besides.
    """
    copies = symbols.twins(functions)
    # Once: there are as many as a kernel has functions.
    there = functions | present
    plans = []
    for probe in probes:
        tried = (
            _attach(attachments, functions, tracepoints, types, there)
            for attachments in (probe.attachments, *probe.older)
        )
        best = min(tried, key=lambda one: len(one.missing))
        plans.append(
            Plan(
                probe=replace(probe, attachments=best.attachments),
                symbols=best.symbols,
                missing=best.missing[0] if best.missing else None,
                places=best.places,
                unseen=tuple(
                    twin
                    for name in dict.fromkeys(best.symbols)
                    for twin in copies.get(name, ())
                ),
            )
        )
    return tuple(plans)


@dataclass(frozen=True, slots=True)
class _Attached:
    """Attachments that go together, with a symbol each; or what is missing."""

    attachments: tuple[Attachment, ...]
    symbols: tuple[str, ...] = ()
    places: Mapping[str, int] = field(default_factory=dict)
    missing: tuple[str, ...] = ()


def _attach(
    attachments: tuple[Attachment, ...],
    functions: frozenset[str],
    tracepoints: frozenset[str],
    types: Types,
    there: frozenset[str],
) -> _Attached:
    # By what is attached to what: names that differ may be one on this kernel.
    chosen: dict[tuple[str, Kind, str], Attachment] = {}
    places: dict[str, int] = {}
    missing = []
    for attachment in attachments:
        known = tracepoints if attachment.kind is Kind.TRACEPOINT else functions
        found = _pick(attachment, known, types)
        if attachment.unless in there:
            found = f"{attachment.candidates[0]} that no call is missed by"
        if absent := _absent(attachment, types):
            found = absent
        if isinstance(found, str):
            missing.append(found)
            continue
        if any(places.get(macro, at) != at for macro, at in found.places.items()):
            missing.append(f"{found.name}() with the arguments of the others")
        places |= found.places
        key = attachment.handler, attachment.kind, found.name
        chosen.setdefault(key, attachment)
    if missing:
        return _Attached(attachments, missing=tuple(missing))
    names = tuple(name for _, _, name in chosen)
    return _Attached(tuple(chosen.values()), names, places)


@dataclass(frozen=True, slots=True)
class _Found:
    """What a handler can be attached to, and the macros for its arguments."""

    name: str
    places: Mapping[str, int]


def _absent(attachment: Attachment, types: Types) -> str | None:
    """Return the first member of a struct that its handler needs and that is not."""
    for need in attachment.needs:
        struct, _, member = need.partition(".")
        try:
            types.offset(struct, member)
        except TypeMissing:
            return f"{member} in struct {struct}"
    return None


def _pick(attachment: Attachment, known: frozenset[str], types: Types) -> _Found | str:
    """Return the first candidate that will do, or what is missing."""
    missing = None
    for name in attachment.candidates:
        if name in known:
            places = _places(attachment, name, types)
            if not isinstance(places, str):
                return _Found(name, places)
            missing = missing or places
    return missing or attachment.candidates[-1]


def _places(attachment: Attachment, name: str, types: Types) -> dict[str, int] | str:
    """Return the macros for its arguments, or what this function has not got."""
    if not attachment.reads:
        return {}
    # A part of a function has the arguments of the whole.
    told = types.arguments(name.partition(".")[0])
    if told is None:
        return f"type information of {name}()"
    places: dict[str, int] = {}
    for macro, names in attachment.macros.items():
        found = next((one for n in names if (one := _place(n, told, types))), None)
        if found is None:
            return f"argument {' or '.join(names)} of {name}()"
        place, inside = found
        places |= {f"ARG_{macro}": place, f"IN_{macro}": inside}
    return places


def _place(wanted: str, told: Sequence[str], types: Types) -> tuple[int, int] | None:
    """Return which argument it is, and which byte of a struct; both from 1 on.

    0: it is the argument itself. None: there is no such argument.
    """
    argument, _, inside = wanted.partition("->")
    if argument not in told:
        return None
    place = told.index(argument) + 1
    if not inside:
        return place, 0
    struct, _, member = inside.partition(".")
    try:
        return place, types.offset(struct, member) + 1
    except TypeMissing:
        return None


def macros(plans: Iterable[Plan]) -> dict[str, int]:
    """Return the macros for the arguments of all handlers that there are.

    ARG_: which one it is, from 1 on; 0 of handlers that are not attached. IN_: which
    byte, from 1 on, of the struct that it points to; 0: the argument itself is meant.
    """
    every = (*PROBES, WATCHPOINT, following(children=True))
    ends = [m for probe in every for a in probe.every_attachment for m in a.macros]
    found = {f"ARG_{end}": 0 for end in ends} | {f"IN_{end}": 0 for end in ends}
    for item in plans:
        found |= item.places
    return found


def choose(
    plans: tuple[Plan, ...], only: Iterable[str] = (), without: Iterable[str] = ()
) -> tuple[Plan, ...]:
    """Return the plans, those marked as unwanted that are not asked for.

    only: names of the probes to attach, besides those that are required; none: all.
    without: names of those to leave out. Raises UsageTrouble for a name that no probe
    has, and for one to leave out that is required.
    """
    names = {item.probe.name for item in plans}
    required = {item.probe.name for item in plans if item.probe.required}
    only, without = tuple(only), tuple(without)
    for option, given in (("--probe", only), ("--no-probe", without)):
        for name in given:
            if name not in names:
                close = difflib.get_close_matches(name, names, n=1)
                raise UsageTrouble(
                    f"{option} {name}: there is no such probe"
                    + (f"; did you mean {close[0]}?" if close else ""),
                    hint="cdmtrace probes",
                )
    for name in without:
        if name in required:
            raise UsageTrouble(
                f"--no-probe {name}: without it nothing can be recorded that is worth "
                "checking",
                hint="cdmtrace probes",
            )
    wanted = ({*only} | required if only else names) - {*without}
    for item in plans:
        for name in item.rests & {*without} if item.probe.name in wanted else ():
            raise UsageTrouble(
                f"--no-probe {name}: on this kernel {item.probe.name} cannot do "
                "without it",
                hint=f"--no-probe {name} --no-probe {item.probe.name}"
                if item.probe.name not in required
                else "cdmtrace probes",
            )
    wanted |= {name for one in plans if one.probe.name in wanted for name in one.rests}
    return tuple(
        item
        if item.probe.name in wanted
        else replace(item, symbols=(), unseen=(), unwanted=True)
        for item in plans
    )
