"""The lines of the paths scenario: what a recording of it will be held against.

That each step moves what it says, the program judges itself (test_quirks runs it
under every quirk). Here its books are held against numa_maps, which it copies at the
end; no tracer is involved.
"""

from __future__ import annotations

import re
import shlex
from collections import Counter
from dataclasses import dataclass

import pytest
from labrun import lab_run

from cdmtrace.lab import quirks, scenarios
from cdmtrace.lab.paths import Layout

pytestmark = pytest.mark.timeout(3600)

GIB = 1 << 30
CDM_NODE = 1
COUNTED = re.compile(
    r"# counted step=(?P<step>\S+) event=(?P<event>arrive|depart) way=(?P<way>\S+)"
    r" pid=(?P<pid>\d+) addr=0x(?P<addr>[0-9a-f]+) span=(?P<span>\d+)"
    r" pages=(?P<pages>\d+) node=(?P<node>\d+)"
)
ONLY_UNDER_RFC = {
    ("arrive", "ksm"),
    ("depart", "ksm"),
    ("arrive", "migrate_pages"),
}
"""Movements that no kernel without these defects makes."""


@dataclass(frozen=True)
class Run:
    """One run of the program: its exit status, TAP, and numa_maps at its end."""

    status: int
    tap: tuple[str, ...]
    numa_maps: tuple[str, ...]

    @property
    def lines(self) -> list[dict[str, str]]:
        """The lines of movements, taken apart."""
        found = []
        for line in self.tap:
            if line.startswith("# counted "):
                match = COUNTED.fullmatch(line)
                assert match, line
                found.append(match.groupdict())
        return found


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Run]:
    """The program under no quirk and under all of them, in one boot."""
    program = scenarios.compile_scenario(
        scenarios.find_scenario("paths"), Layout.default()
    )
    directory = tmp_path_factory.mktemp("paths")
    names = (quirks.NONE, quirks.RFC)
    script = []
    for name in names:
        words = [str(program), "--quirks", quirks.as_argument(quirks.resolve(name))]
        script += [
            f"echo {name} > {quirks.DEBUGFS_FILE}",
            f"{shlex.join(words)} --numa-maps {name}.maps > {name}.tap",
            f"echo $? > {name}.status",
        ]
    result = lab_run(directory, "--", "sh", "-c", "; ".join(script))
    assert result.returncode == 0, result.stdout + result.stderr
    return {
        name: Run(
            status=int((directory / "run" / f"{name}.status").read_text()),
            tap=tuple((directory / "run" / f"{name}.tap").read_text().splitlines()),
            numa_maps=tuple(
                (directory / "run" / f"{name}.maps").read_text().splitlines()
            ),
        )
        for name in names
    }


@pytest.mark.parametrize("name", [quirks.NONE, quirks.RFC])
def test_every_step_comes_out(runs: dict[str, Run], name: str) -> None:
    wrong = [line for line in runs[name].tap if re.match("not ok|.*# SKIP", line)]
    assert wrong == []
    assert runs[name].status == 0


@pytest.mark.parametrize("name", [quirks.NONE, quirks.RFC])
def test_the_books_balance(runs: dict[str, Run], name: str) -> None:
    lines = runs[name].lines
    left: Counter[tuple[str, int]] = Counter()
    for line in lines:
        assert int(line["node"]) == CDM_NODE
        assert 0 < int(line["pages"]) <= int(line["span"])
        sign = 1 if line["event"] == "arrive" else -1
        gib = int(line["addr"], 16) // GIB
        left[line["pid"], gib] += sign * int(line["pages"])
    # The children are gone with all that they had.
    main = lines[0]["pid"]
    assert {pid for (pid, _), pages in left.items() if pages} == {main}
    assert len({pid for pid, _ in left}) > 3

    there: Counter[int] = Counter()
    for text in runs[name].numa_maps:
        gib = int(text.split()[0], 16) // GIB
        there[gib] += sum(int(n) for n in re.findall(rf"\bN{CDM_NODE}=(\d+)", text))
    assert {gib: pages for gib, pages in there.items() if pages} == {
        gib: pages for (pid, gib), pages in left.items() if pid == main and pages
    }


def test_no_path_is_missing(runs: dict[str, Run]) -> None:
    none, rfc = (
        {(line["event"], line["way"]) for line in runs[name].lines}
        for name in (quirks.NONE, quirks.RFC)
    )
    assert rfc - none == ONLY_UNDER_RFC
    assert none < rfc
    assert {way for event, way in rfc if event == "arrive"} == {
        *("fault", "zero-page", "mlock", "populate", "remote", "interleave", "fork"),
        *("cow", "file-cow", "userfaultfd", "swap-in", "swapoff", "mremap", "mbind"),
        *("move_pages", "migrate_pages", "thp", "collapse", "khugepaged", "ksm"),
    }
    assert {way for event, way in rfc if event == "depart"} == {
        *("cow", "exit", "exec", "truncate", "pageout", "dontneed", "munmap"),
        *("map-fixed", "mremap", "mbind", "move_pages", "migrate_pages"),
        *("shrink", "collapse", "khugepaged", "ksm"),
    }
