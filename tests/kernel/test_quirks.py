"""Each quirk does what it says, and the scenarios see it: one boot for all of them.

No tracer is involved. The scenarios predict from the quirks that they are told of
what each step must show; so a kernel that does something else fails them, and so
does a scenario that is told something else. Quirks that no scenario here can see are
left out by name.

Each quirk is in ``rfc`` and in one of the mixed sets, under which all scenarios run.
``make quirks`` runs them under each quirk alone, too, which takes twice the time and
says at once who is wrong about what.
"""

from __future__ import annotations

import os
import random

import pytest
from labrun import lab_run

from cdmtrace.lab import quirks, scenarios
from cdmtrace.lab.paths import Layout

pytestmark = pytest.mark.timeout(7200)

SCENARIOS = (
    *("story", "paths", "driver", "vmas", "unasked", "defects", "policies", "gates"),
)
"""The quickest first."""
ALONE = (
    *("numa-scanned", "mergeable-honoured", "unlocked-clear", "workqueue-tag"),
    *("mprotect-drop", "fork-drop", "split-drop"),
)
SHOW_ALONE = ("story", "defects")
"""Not in ``rfc``, and in no mixed set: these two know what each does alone.

The other scenarios have no prediction for them: mlock() splits VMAs, mprotect() and
mremap() are everywhere in ``vmas``, and nobody else waits for a work item.
"""
BESIDE = "slow-rmw"
"""Shows in what two tasks do at once, and beside another quirk only."""
RACES = ("unlocked-clear,slow-rmw", "fault-tag,slow-rmw")
"""Run by ``defects``, which has two tasks; only the first loses what can be seen."""
TRIES = 8
"""Times that a race is given to be lost."""
RARE = "first-node"
"""Fills the memory of a node in ``gates``, which takes as long as all else together:
once with the others, under rfc, and once to be seen."""
NAMES = tuple(
    quirk.name
    for quirk in quirks.QUIRKS
    # To show that one crashes ends the guest: test_lab.py does it.
    if quirk.name not in {*ALONE, BESIDE} and not quirk.crashes
)
RANDOM_SETS, SEED = 3, 62
"""As few as have each quirk in one of them, and not in another."""
EACH_ALONE = os.environ.get("CDMTRACE_EACH_QUIRK") == "1"
RUN = """\
run() {
	$1 --quirks $3 >tap
	status=$?
	echo "$2 $3 $4 $status $(grep -c '# SKIP' tap) $(grep -cE '^(not )?ok' tap)"
	grep -A1 '^not ok' tap
	true
}"""
"""Runs a program: prints quirks, told quirks, name, status, skips, and checks made."""


def some_sets() -> list[tuple[str, ...]]:
    """None, those of the RFC, a few mixed ones, and maybe each with what it needs."""
    mix = random.Random(SEED)
    mixed = [
        ",".join(name for name in NAMES if mix.random() < 0.5 and name != RARE)
        for _ in range(RANDOM_SETS)
    ]
    alone = NAMES if EACH_ALONE else ()
    return [quirks.resolve(text) for text in (quirks.NONE, quirks.RFC, *alone, *mixed)]


def all_but(name: str) -> tuple[str, ...]:
    """What a quirk needs, and not the quirk."""
    return quirks.resolve(quirks.BY_NAME[name].needs)


def told_runs() -> list[tuple[tuple[str, ...], str]]:
    """(quirks, scenario): what must hold when the scenario is told the quirks."""
    runs = [(on, scenario) for on in some_sets() for scenario in SCENARIOS]
    runs += [(quirks.resolve(name), one) for name in ALONE for one in SHOW_ALONE]
    return runs + [(quirks.resolve(names), "defects") for names in RACES]


@pytest.fixture(scope="module")
def verdicts(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, ...], str]:
    """(kernel's quirks, told quirks, scenario) -> exit status and skips, as text."""
    programs = {
        name: scenarios.compile_scenario(
            scenarios.find_scenario(name), Layout.default()
        )
        for name in SCENARIOS
    }
    # Told the truth, all must hold; not told of it, one that sees it is enough.
    until = '[ "$status" = 0 ]'
    alone = [(quirks.resolve(name), all_but(name)) for name in ALONE]
    races = [quirks.resolve(names) for names in RACES]
    told = [
        *((on, on, SCENARIOS, "true") for on in some_sets()),
        *((on, on, SHOW_ALONE, "true") for on, _ in alone),
        *((on, on, ("defects",), "true") for on in races),
        *((quirks.resolve(one), all_but(one), SCENARIOS, until) for one in NAMES),
        *((on, rest, SHOW_ALONE, until) for on, rest in alone),
        # A matter of microseconds where the guest's second cpu delays too little.
        (races[0], all_but("unlocked-clear"), ("defects",) * TRIES, until),
    ]
    lines = []
    for on, believed, by, go_on in told:
        kernel, text = quirks.as_argument(on), quirks.as_argument(believed)
        runs = " && ".join(
            f"run {programs[name]} {kernel} {text} {name} && {go_on}" for name in by
        )
        lines.append(f"echo {kernel} > {quirks.DEBUGFS_FILE}; {runs}")
    directory = tmp_path_factory.mktemp("quirks")
    script = directory / "all.sh"
    script.write_text("\n".join([RUN, *lines, "true\n"]))
    # Programs that fill a node do so again and again: the less there is, the better.
    result = lab_run(
        directory,
        *("--memory", "1G", "--cdm-memory", "256M"),
        *("--timeout", "6600", "--", "sh", str(script)),
    )
    assert result.returncode == 0, result.stdout + result.stderr
    found: dict[tuple[str, ...], str] = {}
    for line in result.stdout.splitlines():
        words = line.split()
        if len(words) == 6 and words[2] in SCENARIOS:
            last = (words[0], words[1], words[2])
            found[last] = " ".join(words[3:5])
            assert int(words[5]) > 50, line
        else:
            # What failed, for whoever reads the assertion
            found[last] += f"\n{line}"
    return found


@pytest.mark.parametrize("name", sorted({*NAMES} - {RARE}))
def test_a_quirk_is_in_a_mixed_set_and_not_in_another(name: str) -> None:
    mixed = [name in on for on in some_sets()[-RANDOM_SETS:]]
    # Half of all others need bind-only.
    assert any(mixed)
    assert name == "bind-only" or not all(mixed)


@pytest.mark.parametrize(
    ("on", "scenario"),
    told_runs(),
    ids=[f"{quirks.as_argument(on)}-{scenario}" for on, scenario in told_runs()],
)
def test_the_kernel_does_what_its_quirks_say(
    verdicts: dict[tuple[str, ...], str], on: tuple[str, ...], scenario: str
) -> None:
    words = quirks.as_argument(on)
    assert verdicts[(words, words, scenario)] == "0 0"


@pytest.mark.parametrize("name", [*NAMES, *ALONE])
def test_a_quirk_that_nobody_told_of_is_seen(
    verdicts: dict[tuple[str, ...], str], name: str
) -> None:
    on, told_of = (
        quirks.as_argument(one) for one in (quirks.resolve(name), all_but(name))
    )
    told = [
        verdicts[key].split()[0]
        for key in ((on, told_of, scenario) for scenario in SCENARIOS)
        if key in verdicts
    ]
    # The last to run has seen it, and whoever ran before it is as sound.
    assert told == ["0"] * (len(told) - 1) + ["1"]


def test_a_lost_flag_is_seen(verdicts: dict[tuple[str, ...], str]) -> None:
    on = quirks.as_argument(quirks.resolve(RACES[0]))
    without = quirks.as_argument(quirks.resolve("one-way"))
    seen = verdicts[(on, without, "defects")]
    assert seen.startswith("1 0\n")
    assert {line.split()[4] for line in seen.splitlines() if "not ok" in line} == {
        "lost-flag:"
    }
