"""The defects scenario, recorded: each rule finds what its step has done, and where.

That each step comes out as it says, the program judges itself, by what user space can
see. Each of its lines names a rule, a place and whether the kernel has done there what
the rule forbids. The recording is held against them: a finding of that rule in that
place, or none.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import pytest
from labrun import lab_record

from cdmtrace.analysis import check, load
from cdmtrace.analysis.replay import Finding, Result, Verdict
from cdmtrace.analysis.rules import BY_ID
from cdmtrace.lab import quirks, scenarios
from cdmtrace.lab.paths import Layout

pytestmark = pytest.mark.timeout(3600)

PAGE = 4096
STEPS = {
    quirks.NONE: "",
    quirks.RFC: "",
    "mergeable-honoured": "mergeable",
    "numa-scanned": "scanned",
    "fault-tag,slow-rmw": "two-faults",
    "unlocked-clear,slow-rmw": "lost-flag",
    "workqueue-tag": "late-tag",
    "mprotect-drop": "protect",
    "fork-drop": "fork",
    "split-drop": "split",
}
"""Quirks -> the step that is run under them, all if none is named."""
NAMES = tuple(STEPS)
LINE = re.compile(r"# defect step=(\S+) rule=(\S+) (.*)")

TOLD_BEFORE = {"stale-fork": ("CDM016", "CDM001")}
"""Step -> its rule, and the one that has told of the same tag in the parent."""
PERHAPS = {("late-tag", "CDM003")}
"""Written by a work item, of which no row tells: seen where a fault's row is around it
by chance, which a recording cannot count on."""
ONE_IS_ENOUGH = {"ksm", "two-faults"}
"""Steps that do the same in several places. Of two VMAs with the same pages, KSM puts
those of the one into the other; and two threads need not meet each time."""
VACUOUS = {
    "CDM013": "no fault tags",
    "CDM015": "no fault tags",
}
"""Rules whose premise a right kernel does not make true here, and why."""


@dataclass(frozen=True)
class Place:
    """A line of the program: what a rule is to find, or not to find, and where."""

    step: str
    rule: str
    pid: int
    start: int
    end: int
    shown: bool

    def met_by(self, finding: Finding, rule: str) -> bool:
        """Whether a finding of a rule is about this place."""
        return (
            finding.rule.id == rule
            and finding.start < self.end
            and self.start < finding.end
        )


@dataclass(frozen=True)
class Run:
    """The program under one set of quirks: status, TAP, and the processes it names."""

    status: int
    tap: tuple[str, ...]

    @property
    def places(self) -> list[Place]:
        """What its lines say."""
        found = []
        for match in filter(None, map(LINE.fullmatch, self.tap)):
            words = dict(word.split("=", 1) for word in match[3].split())
            start = int(words["addr"], 16)
            found.append(
                Place(
                    step=match[1],
                    rule=match[2],
                    pid=int(words["pid"]),
                    start=start,
                    end=start + int(words["span"]) * PAGE,
                    shown=words["shown"] == "yes",
                )
            )
        return found


@dataclass(frozen=True)
class Recording:
    """One recording for each set of quirks, all of one boot."""

    runs: dict[str, Run]
    results: dict[str, Result]


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Recording:
    """The program under each set of quirks, one after the other."""
    program = scenarios.compile_scenario(
        scenarios.find_scenario("defects"), Layout.default()
    )
    recordings = {
        name: (
            *("--", str(program), "--quirks"),
            quirks.as_argument(quirks.resolve(name)),
            *(("--step", step) if step else ()),
        )
        for name, step in STEPS.items()
    }
    run, statuses = lab_record(tmp_path_factory.mktemp("defects"), recordings)
    return Recording(
        runs={
            name: Run(
                status=statuses[name],
                tap=tuple((run / f"{name}.stdout").read_text().splitlines()),
            )
            for name in NAMES
        },
        results={name: check(load(run / f"{name}.arrows")) for name in NAMES},
    )


@pytest.mark.parametrize("name", NAMES)
def test_every_step_comes_out(recording: Recording, name: str) -> None:
    run = recording.runs[name]
    assert [line for line in run.tap if re.match("not ok|.*# SKIP", line)] == []
    assert run.status == 0
    assert len(run.places) >= (1 if STEPS[name] else 20)


@pytest.mark.parametrize("name", NAMES)
def test_each_rule_finds_what_was_done_and_nothing_else(
    recording: Recording, name: str
) -> None:
    """In the places that the program names; elsewhere, other rules have their say."""
    run, findings = recording.runs[name], recording.results[name].findings
    wrong = []
    for place in run.places:
        if (place.step, place.rule) in PERHAPS:
            continue
        rule, stands_for = TOLD_BEFORE.get(place.step, (place.rule, place.rule))
        assert rule == place.rule
        places = [place]
        if place.step in ONE_IS_ENOUGH:
            places = [p for p in run.places if p.step == place.step]
        found = any(one.met_by(f, stands_for) for one in places for f in findings)
        if found is not place.shown:
            wrong.append(place)
    assert wrong == []


def test_without_quirks_there_is_nothing_to_find(recording: Recording) -> None:
    result = recording.results[quirks.NONE]
    assert [(f.rule.id, f.cause, hex(f.start)) for f in result.findings] == []
    vacuous = {r.rule.id for r in result.rules if r.verdict is Verdict.VACUOUS}
    assert vacuous == VACUOUS.keys()
    assert all(r.verdict is Verdict.CLEAN for r in result.rules if r.checked)


def test_every_rule_that_the_program_is_for_has_fired(recording: Recording) -> None:
    named = {place.rule for run in recording.runs.values() for place in run.places}
    fired = {f.rule.id for r in recording.results.values() for f in r.findings}
    assert named <= BY_ID.keys()
    assert named - fired == set()
