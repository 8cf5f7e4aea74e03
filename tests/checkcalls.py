"""Calls of check on recordings of SimKernel, as they are told in every format."""

from __future__ import annotations

from collections.abc import Collection

import simstory
from comparisons import broken, judged, story, vacuous
from msgspec.structs import replace
from rulecases import CASES, run
from simkernel import SimKernel

from cdmtrace.analysis import check
from cdmtrace.analysis.baseline import NONE, Baseline, Entry
from cdmtrace.analysis.result import Result
from cdmtrace.analysis.rules.balancing import LYING_REASON
from cdmtrace.cli import judging
from cdmtrace.events import EventKind
from cdmtrace.render.outcomes import Call

EVIL = "x](y)#|<&`%\n::e"
"""What a task may call itself: fifteen bytes that mean something to some format."""

RUDE = "a|b\x1b[2J\x00\x7f\r\n::error::\ufffe\u2028]]>"
"""What a reason may be: it comes from a file."""


def told(
    *results: Result,
    known: Baseline = NONE,
    named: bool = False,
    allow_inconclusive: bool = False,
) -> Call:
    return judging.told(
        results, known, named=named, allow_inconclusive=allow_inconclusive
    )


def evil() -> Call:
    """A task and a file with names that mean something to some format."""
    kernel = SimKernel("one-way")
    CASES["CDM001"].breaks(kernel.process(EVIL))
    call = told(check(kernel.trace()))
    path = "x.1 # SKIP\nok 2 - y\\::a,b.arrows"
    call.documents[0]["trace"].update(path=path, files=[path])
    return call


def left_open() -> Result:
    """A story of which an event is lost."""
    kernel = SimKernel()
    simstory.tell(kernel)
    kernel.lose("vma_split", 0)
    return check(kernel.trace())


def info_left_open(rules: Collection[str] | None = None) -> Result:
    """A story that leaves open a rule of one's own, which is for information."""
    kernel = SimKernel()
    simstory.tell(kernel)
    trace = kernel.trace()
    terms = replace(trace.terms, probes={**trace.terms.probes, "numa_scan": None})
    own = replace(LYING_REASON, id="LAB001", leans=LYING_REASON.leans | {"numa_scan"})
    return check(replace(trace, terms=terms), rules=rules, own=(own,))


def audited(*, differs: bool = False, nothing: bool = False) -> Result:
    """An audit of one VMA: the model is right, is wrong, or has nothing to compare."""
    kernel = SimKernel()
    if not nothing:
        kernel.looked()
    task = kernel.process()
    vma = task.mmap(5)
    task.mbind(vma.start, 5)
    task.faults(vma)
    for _ in range(3 if nothing else 1):
        kernel.look(task)
    if differs:
        (lost,) = [
            event
            for event in kernel.events
            if event.kind == EventKind.MAP and event.addr == vma.page(2)
        ]
        kernel.events.remove(lost)
    return check(kernel.trace())


def suppressing(*results: Result, reason: str = "known") -> Baseline:
    """Return a baseline of all that was found."""
    ids = {one.fingerprint for result in results for one in result.findings}
    return Baseline(
        file="known.toml",
        entries={id_: Entry(fingerprint=id_, reason=reason) for id_ in ids},
    )


def calls() -> dict[str, Call]:
    """One for each thing that a format has to tell, and some with several."""
    rfc, clean = story("rfc"), story()
    inconclusive = left_open()
    unchecked = check(run(CASES["CDM001"].keeps, "stock").trace(), rules={"CDM001"})
    return {
        "clean": told(clean),
        "violated": told(rfc),
        "both": told(rfc, clean),
        "twice": told(rfc, rfc),
        "suppressed": told(rfc, known=suppressing(rfc)),
        "partly suppressed": told(rfc, known=suppressing(story("one-way"))),
        "suppressed rudely": told(rfc, known=suppressing(rfc, reason=RUDE)),
        "two tasks": told(judged(broken("CDM004"), "CDM004")),
        "inconclusive": told(inconclusive),
        "inconclusive, allowed": told(inconclusive, allow_inconclusive=True),
        "unchecked": told(unchecked),
        "unchecked, named": told(unchecked, named=True),
        "vacuous": told(judged(vacuous("CDM006"), "CDM006")),
        "info, open": told(info_left_open()),
        "info, open, named": told(info_left_open({"CDM001", "LAB001"}), named=True),
        "info, open, named, allowed": told(
            info_left_open({"LAB001"}), named=True, allow_inconclusive=True
        ),
        "info, named": told(judged(broken("CDM019"), "CDM019"), named=True),
        "info": told(judged(broken("CDM017"), "CDM017")),
        "evil": evil(),
        "audit": told(audited()),
        "audit of nothing": told(audited(nothing=True)),
        "audit of nothing, allowed": told(
            audited(nothing=True), allow_inconclusive=True
        ),
        "audit that differs": told(audited(differs=True)),
    }


STATUS = {
    "clean": 0,
    "violated": 1,
    "both": 1,
    "twice": 1,
    "suppressed": 0,
    "partly suppressed": 1,
    "suppressed rudely": 0,
    "two tasks": 1,
    "inconclusive": 3,
    "inconclusive, allowed": 0,
    "unchecked": 0,
    "unchecked, named": 3,
    "vacuous": 0,
    "info, open": 0,
    "info, open, named": 3,
    "info, open, named, allowed": 0,
    "info, named": 0,
    "info": 0,
    "evil": 1,
    "audit": 0,
    "audit of nothing": 3,
    "audit of nothing, allowed": 0,
    "audit that differs": 2,
}
"""With which each of them ends."""

VERDICTS = {
    "clean": ["clean"],
    "violated": ["violated"],
    "both": ["violated", "clean"],
    "inconclusive": ["inconclusive"],
    "unchecked": ["unchecked"],
    "vacuous": ["vacuous"],
    "info, open": ["clean"],
    "info, open, named": ["inconclusive"],
    "info, named": ["clean"],
}
"""Of the recordings of some of them, as every format that has one tells it."""
