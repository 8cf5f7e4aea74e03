"""The man page says what there is, and a man page reader can read it."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
from pathlib import Path
from types import ModuleType

import click
import pytest

from cdmtrace.cli.main import VERBS, cli

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "man/cdmtrace.1"


@pytest.fixture(scope="module")
def manpage() -> ModuleType:
    spec = importlib.util.spec_from_file_location(
        "manpage", ROOT / "scripts/manpage.py"
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def leaves(group: click.Group, before: tuple[str, ...] = ()) -> list[str]:
    """Return every verb, such as ``lab run``."""
    found = []
    for name in group.list_commands(click.Context(group)):
        one = group.get_command(click.Context(group), name)
        words = (*before, name)
        if isinstance(one, click.Group):
            found += leaves(one, words)
        elif one is not None and not one.hidden:
            found.append(" ".join(words))
    return found


def test_it_is_the_one_of_these_options(manpage: ModuleType) -> None:
    assert PAGE.read_text() == manpage.page(manpage.TEMPLATE.read_text()), "make docs"


def test_every_verb_and_its_options_are_in_it(manpage: ModuleType) -> None:
    template = manpage.TEMPLATE.read_text().splitlines()
    verbs = leaves(cli)
    assert {verb.split()[0] for verb in verbs} == set(VERBS)
    # An alias has the options of the verb it stands for, and lab list has none to tell.
    assert [v for v in verbs if f"@options {v}" not in template] == ["diff", "lab list"]


def test_a_line_that_begins_with_a_dot_is_text(manpage: ModuleType) -> None:
    assert manpage.escaped(".x\n'y\\-") == "\\&.x\n\\&'y\\e\\-"


@pytest.mark.skipif(not shutil.which("mandoc"), reason="no mandoc: make deps")
def test_a_reader_of_man_pages_finds_no_fault() -> None:
    words = ["mandoc", "-T", "lint", "-W", "warning", str(PAGE)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert (done.stdout + done.stderr, done.returncode) == ("", 0)


@pytest.mark.skipif(not shutil.which("mandoc"), reason="no mandoc: make deps")
def test_it_fits_a_terminal() -> None:
    words = ["mandoc", "-T", "ascii", "-O", "width=80", str(PAGE)]
    text = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    plain = subprocess.run(
        ["col", "-bx"], input=text, capture_output=True, text=True, check=True
    ).stdout
    assert "OVERHEAD" in plain
    assert "SECURITY" in plain
    assert max(map(len, plain.splitlines())) <= 80
