from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from cdmtrace.errors import LabError
from cdmtrace.lab import scenarios
from cdmtrace.lab.paths import Layout

DOCS = Path(__file__).parents[2] / "docs"
SOURCE = """\
// SPDX-License-Identifier: GPL-2.0-only
/*
 * It says how many words it got.
 *
 * More of it.
 */
#include "own.h"
int main(int argc, char **argv) { (void)argv; return argc - 1 + OFFSET; }
"""


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    path = tmp_path / "scenarios"
    path.mkdir()
    (path / "words.c").write_text(SOURCE)
    (path / "own.h").write_text("#define OFFSET 10\n")
    return path


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Layout:
    """Return where those that are shipped are compiled, each once."""
    return Layout(root=tmp_path_factory.mktemp("lab"))


def test_the_summary_is_the_first_line_that_says_something(directory: Path) -> None:
    found = scenarios.scenarios(directory)
    assert list(found) == ["words"]
    assert found["words"].summary == "It says how many words it got."
    assert scenarios.summary_of("/* SPDX-License-Identifier: X */ int x;") == ""


def test_compiled_once_per_content(directory: Path, tmp_path: Path) -> None:
    layout = Layout(root=tmp_path / "lab")
    scenario = scenarios.find_scenario("words", directory)
    program = scenarios.compile_scenario(scenario, layout)
    assert subprocess.run([program, "a", "b"], check=False).returncode == 12
    time = program.stat().st_mtime_ns
    assert scenarios.compile_scenario(scenario, layout) == program
    assert program.stat().st_mtime_ns == time
    (directory / "own.h").write_text("#define OFFSET 20\n")
    other = scenarios.compile_scenario(scenario, layout)
    assert other != program
    assert subprocess.run([other], check=False).returncode == 20


def test_a_warning_is_an_error_and_leaves_no_program(
    directory: Path, tmp_path: Path
) -> None:
    (directory / "words.c").write_text("int main(void) { int unused; return 0; }\n")
    layout = Layout(root=tmp_path / "lab")
    with pytest.raises(LabError, match="does not compile") as caught:
        scenarios.compile_scenario(scenarios.find_scenario("words", directory), layout)
    assert "unused" in str(caught.value.details)
    assert list(layout.programs.iterdir()) == []


def test_an_unknown_scenario_suggests(directory: Path) -> None:
    with pytest.raises(LabError, match="did you mean words"):
        scenarios.find_scenario("word", directory)


def test_those_that_are_shipped_compile_and_say_what_they_do(lab: Layout) -> None:
    shipped = scenarios.scenarios()
    assert "story" in shipped
    for scenario in shipped.values():
        assert scenario.summary
        assert scenarios.compile_scenario(scenario, lab).is_file()


@pytest.mark.parametrize(
    ("scenario", "head"),
    [
        ("paths", "| step | arrives by |"),
        ("unasked", "| step | arrives by |"),
        ("policies", "| step | what changes |"),
        ("vmas", "| step | what changes |"),
        ("defects", "| step | rule |"),
        ("flag_writer", "| step | rule |"),
        ("vfio", "| step | what it does |"),
    ],
)
def test_the_table_of_a_scenario_has_every_step(
    scenario: str, head: str, lab: Layout
) -> None:
    program = scenarios.compile_scenario(scenarios.find_scenario(scenario), lab)
    listed = subprocess.run(
        [program, "--list"], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    text = (DOCS / "lab-kernel.md").read_text()
    text = text[text.index(f"\n`{scenario}` ") :]
    table = text[text.index(head) :].split("\n\n")[0].splitlines()
    told = {name for row in table for name in re.findall("`(.*?)`", row.split("|")[1])}
    assert told == {line.split()[0] for line in listed}
