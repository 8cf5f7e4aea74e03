"""Each quirk does what it says, and the scenarios see it: one boot for all of them.

No tracer is involved. The scenarios predict from the quirks that they are told of
what each step must show; so a kernel that does something else fails them, and so
does a scenario that is told something else.
"""

from __future__ import annotations

import random

import pytest
from labrun import lab_run

from cdmtrace.lab import quirks, scenarios
from cdmtrace.lab.paths import Layout

pytestmark = pytest.mark.timeout(3600)

SCENARIOS = ("story", "paths", "driver", "vmas", "unasked", "policies", "gates")
"""The quickest first."""
NAMES = tuple(quirk.name for quirk in quirks.QUIRKS)
RANDOM_SETS = 5
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
    """None, all, each alone with what it needs, and a few mixed ones."""
    mix = random.Random(23)
    mixed = [
        ",".join(name for name in NAMES if mix.random() < 0.5) or quirks.NONE
        for _ in range(RANDOM_SETS)
    ]
    return [quirks.resolve(text) for text in (quirks.NONE, quirks.RFC, *NAMES, *mixed)]


@pytest.fixture(scope="module")
def verdicts(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, ...], str]:
    """(kernel's quirks, told quirks, scenario) -> exit status and skips, as text."""
    programs = {
        name: scenarios.compile_scenario(
            scenarios.find_scenario(name), Layout.default()
        )
        for name in SCENARIOS
    }
    # Told the truth, all must hold; told nothing, one that sees the quirk is enough.
    told = [(on, on, "true") for on in some_sets()]
    told += [(quirks.resolve(name), (), '[ "$status" = 0 ]') for name in NAMES]
    lines = []
    for on, believed, go_on in told:
        kernel, text = quirks.as_argument(on), quirks.as_argument(believed)
        runs = " && ".join(
            f"run {program} {kernel} {text} {name} && {go_on}"
            for name, program in programs.items()
        )
        lines.append(f"echo {kernel} > {quirks.DEBUGFS_FILE}; {runs}")
    directory = tmp_path_factory.mktemp("quirks")
    script = directory / "all.sh"
    script.write_text("\n".join([RUN, *lines, "true\n"]))
    result = lab_run(directory, "--timeout", "1800", "--", "sh", str(script))
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


@pytest.mark.parametrize("scenario", SCENARIOS)
@pytest.mark.parametrize("on", some_sets(), ids=quirks.as_argument)
def test_the_kernel_does_what_its_quirks_say(
    verdicts: dict[tuple[str, ...], str], on: tuple[str, ...], scenario: str
) -> None:
    words = quirks.as_argument(on)
    assert verdicts[(words, words, scenario)] == "0 0"


@pytest.mark.parametrize("name", NAMES)
def test_a_quirk_that_nobody_told_of_is_seen(
    verdicts: dict[tuple[str, ...], str], name: str
) -> None:
    on = quirks.as_argument(quirks.resolve(name))
    told = [
        verdicts[key].split()[0]
        for key in ((on, quirks.NONE, scenario) for scenario in SCENARIOS)
        if key in verdicts
    ]
    # The last to run has seen it, and whoever ran before it is as sound.
    assert told == ["0"] * (len(told) - 1) + ["1"]
