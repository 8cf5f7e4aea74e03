"""Each quirk does what it says, and the scenarios see it: one boot for all of them.

No tracer is involved. The scenarios predict from the quirks that they are told of
what each step must show; so a kernel that does something else fails them, and so
does a scenario that is told something else.
"""

from __future__ import annotations

import random
import shlex

import pytest
from labrun import lab_run

from cdmtrace.lab import quirks, scenarios
from cdmtrace.lab.paths import Layout

pytestmark = pytest.mark.timeout(3600)

SCENARIOS = ("story", "gates", "paths", "unasked", "driver", "vmas")
NAMES = tuple(quirk.name for quirk in quirks.QUIRKS)
RANDOM_SETS = 5


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
    told = [(chosen, chosen) for chosen in some_sets()]
    told += [(quirks.resolve(name), ()) for name in NAMES]
    lines = []
    for on, believed in told:
        lines.append(f"echo {quirks.as_argument(on)} > {quirks.DEBUGFS_FILE}")
        for name, program in programs.items():
            words = [str(program), "--quirks", quirks.as_argument(believed)]
            key = f"{quirks.as_argument(on)} {quirks.as_argument(believed)} {name}"
            count = '$(grep -c "# SKIP" tap) $(grep -cE "^(not )?ok" tap)'
            lines.append(
                f'{shlex.join(words)} > tap; echo "{key} $? {count}"; '
                "grep -A1 '^not ok' tap"
            )
    directory = tmp_path_factory.mktemp("quirks")
    script = directory / "all.sh"
    script.write_text("\n".join(lines) + "\n")
    result = lab_run(directory, "--timeout", "1800", "--", "sh", str(script))
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
    assert len(found) == len({*told}) * len(SCENARIOS), result.stdout + result.stderr
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
    status = {
        verdicts[(on, quirks.NONE, scenario)].split()[0] for scenario in SCENARIOS
    }
    assert "1" in status
    assert status <= {"0", "1"}
