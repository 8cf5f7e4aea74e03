"""The text form of ``check``: divergences that read like a diff, and the rules."""

from __future__ import annotations

import shlex
import textwrap
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from tabulate import tabulate

from cdmtrace.render import filters
from cdmtrace.render.services import services
from cdmtrace.render.tables import cell
from cdmtrace.units import count, counted, seconds

WIDTH: Final = 79
"""Columns of a line: mail and kernel logs are read in 80."""


_HANG: Final = " " * 13

_STACKS: Final = {
    "all": "leans on those of arrivals: record --stacks all",
    "changes": "leans on those of changes of vm_flags: record --stacks changes, or all",
}


FEW: Final = 5
"""Findings of one id that are all shown."""

_TAGLESS: Final = "checked where the kernel has no VM_CDM, too (shadow mode)"


def check(document: Mapping[str, Any]) -> str:
    """Return a check document as text: findings first, then what was checked.

    What is suppressed is counted only.
    """
    parts = findings(document)
    parts.append(rules(document["rules"]))
    if document["shadow"]:
        parts.append(shadow(document["shadow"]))
    if document["services"]:
        parts.append(services(document["services"]))
    if document["audit"]:
        parts.append(audit(document["audit"]))
    parts.append(summary(document))
    return "\n\n".join(parts) + "\n"


def findings(document: Mapping[str, Any]) -> list[str]:
    """Return the divergences that are not suppressed.

    Of an id that has many the first is shown: from boot to boot, and for whoever reads
    it, they are one.
    """
    page = document["trace"]["page_size"]
    shown = [one for one in document["findings"] if not one["suppressed"]]
    many = Counter(one["fingerprint"] for one in shown)
    told, parts = set(), []
    for one in shown:
        id_ = one["fingerprint"]
        if many[id_] <= FEW:
            parts.append(finding(one, page=page))
        elif id_ not in told:
            told.add(id_)
            parts.append(finding(one, page=page, alike=many[id_]))
    return parts


def finding(one: Mapping[str, Any], *, page: int = 4096, alike: int = 1) -> str:
    """Return one divergence, under 80 columns.

    one: an element of findings. page: bytes of a page. alike: findings that have the
    same id, of which this is the first.
    """
    start, end = int(one["vma"]["start"], 16), int(one["vma"]["end"], 16)
    lines = [
        "=" * WIDTH,
        f"{one['rule']} {one['name']}: {one['severity']}, cause: {one['cause']}",
    ]
    if end:
        lines += [
            f"  process    {one['comm'] or '?'} (pid {one['pid']})",
            f"  mm         {one['mm']}",
            f"  VMA        {start:x}-{end:x} ({count((end - start) // page, 'page')})",
        ]
    else:
        lines.append("  about      the recording as a whole")
    if one["count"] > 1:
        lines.append(f"  times      {counted(one['count'])}, the first one is shown")
    lines += _wrapped("- required   ", one["expected"])
    lines += _wrapped("+ kernel     ", one["observed"])
    lines += witness(one["witness"])
    more = (
        f", of {counted(alike)} findings; the first one is shown" if alike > 1 else ""
    )
    lines.append(f"  id         {one['fingerprint']}{more}")
    lines += _wrapped("  breaks     ", one["breaks"])
    return "\n".join(lines)


def _wrapped(head: str, text: str) -> list[str]:
    return textwrap.wrap(
        head + text,
        WIDTH,
        subsequent_indent=_HANG,
        break_long_words=False,
        break_on_hyphens=False,
    )


def witness(steps: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the chain, one event a line: time, cpu, task, lock, flags, what."""
    rows = []
    for step in steps:
        flags = f"{step['before']} -> {step['after']}" if step["before"] else ""
        rows.append(
            (
                seconds(step["since_start"]),
                f"cpu{step['cpu']}",
                f"{step['comm'] or '?'}/{step['tid']}",
                step["lock"] or "",
                flags,
                step["what"],
            )
        )
    heads = ("time (s)", "cpu", "task", "lock", "flags", "")
    width = [
        max(len(row[column]) for row in (heads, *rows)) for column in range(len(heads))
    ]
    lines = []
    for row in (heads, *rows):
        cells = [
            text.rjust(width[column]) if column == 0 else text.ljust(width[column])
            for column, text in enumerate(row)
        ]
        line = "  " + "  ".join(cells).rstrip()
        lines.append(fitted(line))
    return lines


def fitted(line: str) -> str:
    """Return a line that is under 80 columns, of a longer one the beginning."""
    return line if len(line) <= WIDTH else line[: WIDTH - 2] + ".."


_COUNTS: Final = ("checked", "findings")


def rules(results: Sequence[Mapping[str, Any]]) -> str:
    """Return the table of rules; why one is not clean stands below it."""
    table = tabulate(
        [
            [cell(key, one[key]) for key in ("rule", "name", "verdict", *_COUNTS)]
            for one in results
        ],
        headers=("rule", "name", "verdict", *_COUNTS),
        tablefmt="simple",
        disable_numparse=True,
        colalign=("left", "left", "left", "right", "right"),
    )
    lines = [table]
    for ids, why in _reasons(results):
        lines += textwrap.wrap(f"{ids}: {why}", WIDTH, subsequent_indent="  ")
    return "\n".join(lines)


def _reasons(results: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """Return why rules are not clean; those unchecked for the same reason are one."""
    told: dict[str, list[str]] = {}
    for one in results:
        if one["why"]:
            alone = "" if one["verdict"] == "unchecked" else one["rule"]
            told.setdefault(f"{alone}\n{one['why']}", []).append(one["rule"])
    return [(", ".join(ids), key.split("\n", 1)[1]) for key, ids in told.items()]


WOULD_BE: Final = 20
"""VMAs that would have to be tagged that the text form shows."""


def shadow(found: Mapping[str, Any]) -> str:
    """Return the VMAs that would have to be tagged, those with the most pages first."""
    vmas = sorted(found["vmas"], key=lambda one: -sum(one["pages"].values()))
    lines = [f"VMAs that would have to be tagged: {len(vmas):,}"]
    if vmas:
        lines.append(
            tabulate(
                [_due(one) for one in vmas[:WOULD_BE]],
                headers=("pid", "VMA", "why", "pages", "since (s)", "until (s)"),
                tablefmt="simple",
                disable_numparse=True,
                colalign=("right", "left", "left", "left", "right", "right"),
            )
        )
    if len(vmas) > WOULD_BE:
        lines.append(f"and {len(vmas) - WOULD_BE:,} more: --format json")
    for clause, because in dict.fromkeys((v["clause"], v["because"]) for v in vmas):
        lines += textwrap.wrap(f"{clause}: {because}", WIDTH, subsequent_indent="  ")
    if found["why"]:
        lines += plain(f"not certain: {found['why']}")
    return "\n".join(lines)


def _due(one: Mapping[str, Any]) -> tuple[str, ...]:
    start, end = int(one["vma"]["start"], 16), int(one["vma"]["end"], 16)
    since, until = one["since"], one["until"]
    gone = "-" if one["holds"] else "gone"
    return (
        str(one["pid"] or "?"),
        f"{start:x}-{end:x}",
        one["clause"],
        " ".join(f"{node}={n}" for node, n in one["pages"].items()) or "none",
        "before" if since["before"] else seconds(since["since_start"]),
        seconds(until["since_start"]) if until else gone,
    )


SHOWN: Final = 5
"""Differences of an audit that the text form shows."""


def audit(result: Mapping[str, Any]) -> str:
    """Return what came of the comparison with numa_maps."""
    differences = result["differences"]
    left = [
        f"{result[key]:,} left out, {why}"
        for key, why in (
            ("moving", "their pages came or went just then"),
            (
                "unknown",
                "their events are lost or what they held at first is not known",
            ),
        )
        if result[key]
    ]
    told = (
        f"audit: the model held against numa_maps: {count(result['vmas'], 'VMA')} with "
        f"{count(result['pages'], 'page')}, in {count(result['looks'], 'look')} at an "
        "address space"
    )
    lines = plain("; ".join([told, *left]))
    if not differences:
        return "\n".join([*lines, "audit: no difference"])
    many = count(len(differences), "DIFFERENCE")
    lines += plain(
        f"audit: {many.upper()}. This is an error of cdmtrace, not of the kernel: "
        "trust nothing above, and report it with the trace."
    )
    for one in differences[:SHOWN]:
        start, end = int(one["vma"]["start"], 16), int(one["vma"]["end"], 16)
        lines.append(f"  pid {one['pid']}, {start:x}-{end:x}, row {one['seq']}")
        for mark, key in (("-", "kernel"), ("+", "model")):
            pages = " ".join(f"{node}={n}" for node, n in one[key].items()) or "none"
            lines.append(f"  {mark} {key:<8} {pages}")
    if len(differences) > SHOWN:
        lines.append(f"  and {len(differences) - SHOWN:,} more: --format json")
    return "\n".join(lines)


def summary(document: Mapping[str, Any]) -> str:
    """Return the last lines: the trace, what it lacks, and the verdict."""
    told = recording(document["trace"], document["profile"])
    if document["shadow"]:
        told.insert(
            1,
            "shadow mode: this kernel has no VM_CDM, and rules about it are unchecked",
        )
    if known := document["baseline"]:
        told.append(f"{known['file']}: {_suppressed(document)}")
    lines = [line for one in told for line in plain(one)]
    lines.append(verdict(document))
    return "\n".join(lines)


def _suppressed(document: Mapping[str, Any]) -> str:
    """Return what a baseline suppresses, in words."""
    rules = [one["rule"] for one in document["rules"] if one["suppressed"]]
    number = document["baseline"]["suppressed"]
    of = f" of {', '.join(rules)}" if rules else ""
    return f"suppresses {count(number, 'finding')}{of}"


def verdict(document: Mapping[str, Any]) -> str:
    """Return the verdict, and how many findings there are, and are suppressed."""
    number, known = len(document["findings"]), document["baseline"]
    told = [document["verdict"]]
    if number:
        told.append(count(number, "finding"))
    if known and known["suppressed"]:
        all_ = known["suppressed"] == number
        told.append(
            f"{'all' if all_ else counted(known['suppressed'])} of them suppressed"
        )
    return f"verdict: {', '.join(told)}"


def recording(trace: Mapping[str, Any], profile: str) -> list[str]:
    """Return what there is to say of a trace, and what it lacks: some sentences."""
    lost = f", {counted(trace['lost'])} lost" if trace["lost"] else ""
    more = len(trace["files"]) - 1
    parts = f" and {count(more, 'more part')}" if more else ""
    head = f"{trace['path']}{parts}: {count(trace['events'], 'event')}{lost}"
    told = [f"{head}, Linux {trace['kernel']}, profile {profile}"]
    if trace["rows_before"]:
        told.append(
            f"{trace['rows_before']:,} rows of this recording came before, and are "
            "missing: what was there then is not known"
        )
    if only := filters.words(trace["filters"]):
        told.append(f"recorded with filters: {only}")
    if trace["cut"]:
        told.append(f"the recording was cut: {trace['cut']}")
    elif not trace["clean_end"]:
        told.append("the recording was cut")
    return told


def explained(files: Iterable[str], options: Iterable[str], fingerprint: str) -> str:
    """Return the command that tells the findings of an id as arguments.

    options: by which they were found, as they are typed.
    """
    return shlex.join(["cdmtrace", "explain", *options, *files, fingerprint])


def plain(text: str) -> list[str]:
    """Return a sentence as lines under 80 columns."""
    return textwrap.wrap(text, WIDTH, break_long_words=False, break_on_hyphens=False)


def rule(one: Mapping[str, Any]) -> str:
    """Return what ``explain`` says of a rule."""
    lines = [f"{one['rule']} {one['name']}: {one['severity']}", ""]
    lines += plain(one["statement"])
    lines.append("")
    for head, texts in sections(one):
        lines += _section(head, texts)
    return "\n".join(lines) + "\n"


def sections(one: Mapping[str, Any]) -> list[tuple[str, list[str]]]:
    """Return what there is to say of a rule beside its statement: head and texts."""
    return [
        ("breaks", [one["breaks"]]),
        ("source", [one["source"]]),
        ("checked", [f"counts each {_article(one['premise'])}"]),
        ("events", [", ".join(one["events"])]),
        ("needs", [", ".join(one["needs"])]),
        ("leans on", [", ".join(one["leans"])]),
        ("stacks", [_STACKS[one["stacks"]]] if one["stacks"] else []),
        ("profiles", [", ".join(one["profiles"])]),
        ("shadow", [_TAGLESS] if one["tagless"] else []),
        ("threats", one["threats"]),
        ("limits", one["limits"]),
    ]


def _article(premise: str) -> str:
    return premise.removeprefix("a ").removeprefix("an ")


def _section(head: str, texts: Sequence[str]) -> list[str]:
    lines: list[str] = []
    for number, text in enumerate(texts):
        lead = f"{head if number == 0 else '':<11}"
        mark = "- " if len(texts) > 1 else ""
        lines += textwrap.wrap(
            f"{lead}{mark}{text}",
            WIDTH,
            subsequent_indent=" " * (11 + len(mark)),
            break_long_words=False,
            break_on_hyphens=False,
        )
    return lines


def catalogue(all_rules: Sequence[Mapping[str, Any]]) -> str:
    """Return the list of rules, one a line."""
    return (
        tabulate(
            [(one["rule"], one["name"], one["severity"]) for one in all_rules],
            headers=("rule", "name", "severity"),
            tablefmt="simple",
        )
        + "\n"
    )


def argument(one: Mapping[str, Any], about: Mapping[str, Any], page: int = 4096) -> str:
    """Return a finding told step by step: let these be the events, then, because.

    one: the finding. about: its rule, as a document.
    """
    lines = [finding(one, page=page), "", "The argument:"]
    for number, step in enumerate(one["witness"], 1):
        changed = ""
        if step["before"] != step["after"]:
            changed = f", vm_flags {step['before']} -> {step['after']}"
        lock = f", mmap lock: {step['lock']}" if step["lock"] else ""
        lines += _wrapped(
            f"  Let E{number:<2}     ",
            f"{step['what']} ({step['kind']}, row {step['seq']}){changed}{lock}.",
        )
        if step["stack"]:
            lines += _wrapped("    in       ", " < ".join(step["stack"]))
    lines += _wrapped("  Then       ", f"{one['observed']}.")
    lines += _wrapped("  Required   ", f"{one['expected']}.")
    lines += _wrapped("  For        ", about["statement"])
    return "\n".join(lines) + "\n"
