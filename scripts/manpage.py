#!/usr/bin/env python3
"""Print the man page: man/cdmtrace.1.in, with each verb's options put in.

    scripts/manpage.py > man/cdmtrace.1

A line ``@options VERB`` in the template becomes a list of the options of that verb, as
``cdmtrace VERB --help`` has them.
"""

from __future__ import annotations

import re
from pathlib import Path

import click

from cdmtrace.cli.main import cli

TEMPLATE = Path(__file__).resolve().parent.parent / "man/cdmtrace.1.in"


def escaped(text: str) -> str:
    """Return text as mdoc would have it: one sentence a line, no macro, no escape."""
    text = text.replace("\\", "\\e").replace("-", "\\-")
    text = re.sub(r"(?<=[.:]) (?=[A-Z\[])", "\n", text)
    return re.sub(r"(?m)^([.'])", r"\\&\1", text)


def command(words: str) -> click.Command:
    """Return the command of a verb, such as ``lab run``."""
    found: click.Command = cli
    for word in words.split():
        assert isinstance(found, click.Group)
        inner = found.get_command(click.Context(found), word)
        assert inner is not None, words
        found = inner
    return found


def options(words: str) -> list[str]:
    """Return the lines of the list of a verb's options."""
    one = command(words)
    lines = [".Bl -tag -width Ds"]
    for parameter in one.params:
        record = parameter.get_help_record(click.Context(one, info_name=words))
        if not isinstance(parameter, click.Option) or record is None:
            continue
        names, text = record
        lines.append(f".It Li {escaped(names)}")
        lines.append(escaped(" ".join(text.split())) or "See below.")
    return [*lines, ".El"]


def page(template: str) -> str:
    """Return the page."""
    lines = []
    for line in template.splitlines():
        name, _, words = line.partition(" ")
        lines += options(words) if name == "@options" else [line]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(page(TEMPLATE.read_text()), end="")
