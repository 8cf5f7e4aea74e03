"""Rules and invariants in full: what ``explain --all`` prints, docs/rules.md too."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any, Final

from cdmtrace.render import divergence, tables
from cdmtrace.units import count

Rows = Sequence[Mapping[str, Any]]

RULES, INVARIANTS = "rules", "invariants"

_RULES_HEAD: Final = """\
# Rules

`cdmtrace explain --all --format markdown` prints this page; `make docs` writes it.

A rule is a question that `check` puts to a recording. It has a premise: each time that
holds, the rule has been *checked* once, and then all is well or there is a finding. A
finding of severity error or warning makes `check` end with 1.

Without a probe that a rule *needs* its premise cannot be seen: it is unchecked.
Without one that it *leans on* an answer may be wrong: it is inconclusive, and keeps its
findings back. Without *stacks* that it leans on it is, too; what `--node` and `--addr`
leave out makes it inconclusive where that would decide. Events that were lost are
judged the same way, by the time and the address space in which they were lost. Where
the kernel has no VM_CDM (*shadow* mode), all rules but those that say so are unchecked.
*Threats* are what could make a finding wrong, and what becomes of that. *Limits* are
what the rule does not tell.

The quotations are the sentences that a finding breaks, from the review.
[review.md](review.md) goes the other way, from each sentence to what covers it.
"""

_OTHERS: Final = ("seen by", "not yet", "why not")
"""What there may be to say of an invariant beside its rules."""

_INVARIANTS_HEAD: Final = """\
## Invariants

What tagging has to keep to, in single sentences: some are from the review, others
follow from reading the patches against the kernel. One rule may cover many of them.
"Not yet" is what nothing here shows, though it could; "why not" is what this kernel
cannot show, or what is no defect. A rule without a link is not in this version.
"""


def page(rules: Rows, invariants: Rows) -> str:
    """Return rules and invariants as a page of Markdown."""
    index = [
        {
            "rule": _link(one),
            "name": one["name"],
            "severity": one["severity"],
            "counts as checked": one["premise"],
            "profiles": ", ".join(one["profiles"]),
        }
        for one in rules
    ]
    links = {one["rule"]: _link(one) for one in rules}
    about = [
        {
            "id": one["invariant"],
            "what has to hold": f"**{one['name']}**: {one['statement']}",
            "who sees to it": "; ".join(_watchers(one, links)),
        }
        for one in invariants
    ]
    parts = [_RULES_HEAD, _github(index)]
    parts += [markdown(one) for one in rules]
    parts += [_INVARIANTS_HEAD, _told(invariants, links), _github(about)]
    return "\n".join(parts)


def markdown(one: Mapping[str, Any]) -> str:
    """Return one rule as a section of Markdown."""
    lines = [f"## {one['rule']} {one['name']}", ""]
    lines += [*_filled(f"{one['severity'].capitalize()}. {one['statement']}"), ""]
    for head, texts in divergence.sections(one):
        if head == "breaks":
            lines += [*_filled(texts[0], lead="> "), ""]
            continue
        names = head in ("events", "needs", "leans on")
        told = [_code(text) if names else text for text in texts if text]
        if len(told) > 1:
            lines.append(f"- **{head}**")
            lines += [line for text in told for line in _item(text, indent=2)]
        elif told:
            lines += _item(f"**{head}**: {told[0]}")
    return "\n".join(lines) + "\n"


def text(rules: Rows, invariants: Rows) -> str:
    """Return rules and invariants as text, under 80 columns."""
    between = "=" * divergence.WIDTH + "\n"
    lines = []
    for one in invariants:
        lines += [f"{one['invariant']} {one['name']}"]
        for told in (one["statement"], *_watchers(one, {})):
            lines += textwrap.wrap(
                told,
                divergence.WIDTH,
                initial_indent="    ",
                subsequent_indent="    ",
                break_long_words=False,
                break_on_hyphens=False,
            )
    told_rules = f"\n{between}".join(divergence.rule(one) for one in rules)
    return f"{told_rules}\n{between}" + "\n".join(lines) + "\n"


def render(rules: Rows, invariants: Rows, form: str) -> str:
    """Return rules and invariants in one of ``tables.FORMATS``."""
    if form == "table":
        return text(rules, invariants)
    if form == "markdown":
        return page(rules, invariants)
    return rows({RULES: rules, INVARIANTS: invariants}, form)


def rows(told: Mapping[str, Rows], form: str) -> str:
    """Return them as rows; a cell of JSON may be a list, one of another form not."""
    if form not in ("json", "ndjson"):
        told = {title: [_flat(row) for row in table] for title, table in told.items()}
    return tables.render(told, form)


def _flat(row: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: "; ".join(value) if isinstance(value, list) else value
        for key, value in row.items()
    }


def _link(one: Mapping[str, Any]) -> str:
    """Return a link to the section, as GitHub names it."""
    return f"[{one['rule']}](#{one['rule'].lower()}-{one['name']})"


def _watchers(one: Mapping[str, Any], links: Mapping[str, str]) -> list[str]:
    """Return who watches over an invariant, in words."""
    told = []
    if one["rules"]:
        told.append(", ".join(links.get(rule, rule) for rule in one["rules"]))
    told += [f"{head}: {one[head]}" for head in _OTHERS if one[head]]
    return told


def _told(invariants: Rows, links: Mapping[str, str]) -> str:
    """Return how many there are of each sort."""
    rest = [one for one in invariants if links.keys().isdisjoint(one["rules"])]
    seen = sum(bool(one["seen by"]) for one in rest)
    never = sum(not (one["rules"] or one["seen by"] or one["not yet"]) for one in rest)
    told = (
        f"Of {count(len(invariants), 'invariant')}, {len(invariants) - len(rest)} are "
        f"covered by rules of this version, at least in part. {seen} more are seen by "
        f"other means, {len(rest) - seen - never} by nothing yet, and {never} cannot "
        "or need not be seen here."
    )
    return "\n".join(_filled(told)) + "\n"


def _code(names: str) -> str:
    return ", ".join(f"`{name}`" for name in names.split(", "))


def _item(told: str, indent: int = 0) -> list[str]:
    return _filled(told, lead=" " * indent + "- ", hang=" " * (indent + 2))


def _filled(told: str, lead: str = "", hang: str | None = None) -> list[str]:
    return textwrap.wrap(
        told,
        88,
        initial_indent=lead,
        subsequent_indent=lead if hang is None else hang,
        break_long_words=False,
        break_on_hyphens=False,
    )


def _github(table: Rows) -> str:
    """Return a table; not filled up with blanks, for then each change is one line."""
    head = list(table[0])
    lines = [head, ["---"] * len(head)]
    lines += [[str(row[key]).replace("|", r"\|") for key in head] for row in table]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)
