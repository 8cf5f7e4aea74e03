"""A picture of a recording as text."""

from __future__ import annotations

import io
from dataclasses import replace

import pytest
from rich.cells import cell_len
from rich.console import Console

from cdmtrace.render.live import (
    EMPTY,
    FindingLine,
    Frame,
    ProbeLine,
    RuleLine,
    VmaLine,
    render,
)

SECOND = 10**9
PROBES = [
    ProbeLine(probe="rmap_add", events=1234567, per_second=12310.4, lost=0),
    ProbeLine(probe="alloc", events=51234, per_second=812.0, lost=23),
    ProbeLine(probe="remove_migration_pte", events=43, per_second=4.5, lost=0),
    ProbeLine(probe="sys_mbind", events=7, per_second=0.0, lost=0),
]
VMA = VmaLine(
    pid=1062,
    comm="story",
    start=0x100040000000,
    end=0x100040017000,
    policy="BIND:1",
    flags="rd wr mr mw me ac cd",
    pages=23,
)
RULES = [
    RuleLine(rule="CDM002", name="missing-tag", severity="error", findings=1208),
    RuleLine(rule="CDM014", name="implicit-allocation", severity="error", findings=3),
    RuleLine(rule="CDM017", name="merge-blocked", severity="info", findings=1),
]
FOUND = FindingLine(
    since_start=83_123_456_789,
    rule="CDM002",
    name="missing-tag",
    severity="error",
    cause="migrate_pages",
    comm="story",
    pid=1062,
    start=0x100240000000,
    end=0x10024002F000,
    count=7,
)
FRAME = Frame(
    path="my.arrows",
    about="Linux 6.1.192, CDM node 1, VM_CDM bit 38",
    stage="recording",
    running=True,
    since_start=3723 * SECOND,
    events=1285851,
    size=172 << 20,
    per_second=13126.9,
    lost=23,
    behind=12345,
    history=[0, 50, 100, 400, 800],
    probes=PROBES,
    vmas=[VMA],
    vmas_in_all=1,
    rules=RULES,
    latest=[FOUND],
    open_rules=2,
)
TEXT = """\
cdmtrace  my.arrows                                        ● recording  01:02:03
Linux 6.1.192, CDM node 1, VM_CDM bit 38             1,285,851 events, 172.0 MiB
13,127 events/s ▁▁▂▅█   23 lost                          behind by 12,345 events
─ Probes ───────────────────────────────────────────────────────────────────────
probe                 events  per s lost   probe              events  per s lost
rmap_add           1,234,567 12,310    0   remove_migration_…     43    4.5    0
alloc                 51,234    812   23   sys_mbind               7      0    0
─ Tagged VMAs  1 ───────────────────────────────────────────────────────────────
 pid comm  VMA                       policy flags                         on CDM
1062 story 100040000000-100040017000 BIND:1 rd wr mr mw me ac cd              23
─ Findings so far  1,212   2 rules inconclusive ────────────────────────────────
  1,208  CDM002 missing-tag                  3  CDM014 implicit-allocation
      1  CDM017 merge-blocked
83.123457 CDM002 migrate_pages story/1062           100240000000-10024002f000 x7
"""


def text(frame: Frame, width: int = 80, height: int = 24, color: bool = False) -> str:
    console = Console(
        file=io.StringIO(),
        width=width,
        height=height,
        force_terminal=color,
        color_system="standard" if color else None,
        _environ={},
    )
    console.print(render(frame, width, height))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def stripped(shown: str) -> str:
    return "".join(f"{line.rstrip()}\n" for line in shown.splitlines())


def test_the_text_at_80_columns() -> None:
    assert stripped(text(FRAME)) == TEXT


MANY = replace(
    FRAME,
    probes=PROBES * 9,
    vmas=[replace(VMA, start=VMA.start + (n << 32)) for n in range(50)],
    vmas_in_all=1050,
    rules=[replace(RULES[0], rule=f"CDM{n:03}") for n in range(20)],
    latest=[replace(FOUND, since_start=n * SECOND) for n in range(50)],
)


@pytest.mark.parametrize("width", [20, 40, 79, 80, 104, 200])
@pytest.mark.parametrize("height", [10, 24, 60])
@pytest.mark.parametrize("frame", [EMPTY, FRAME, MANY])
def test_it_is_no_wider_and_no_higher_than_it_may_be(
    frame: Frame, width: int, height: int
) -> None:
    lines = text(frame, width, height).splitlines()
    assert len(lines) <= height
    assert max(map(cell_len, lines)) <= width


def test_every_part_gets_its_share_of_a_small_screen() -> None:
    shown = text(MANY)
    assert len(shown.splitlines()) == 24
    assert shown.count("rd wr mr mw me ac cd") >= 3
    assert shown.count("migrate_pages") >= 3
    assert "Tagged VMAs  1,050 " in shown
    assert "Findings so far  24,160 " in shown
    assert "more rules" in shown


def test_room_that_one_does_not_need_goes_to_others() -> None:
    shown = text(replace(MANY, vmas=[], vmas_in_all=0, probes=[]))
    assert shown.count("migrate_pages") >= 8
    assert "CDM pages" not in shown


def test_a_wide_screen_has_names_too() -> None:
    assert "CDM002 missing-tag migrate_pages" in text(FRAME, 120)


def test_who_names_himself_cannot_move_the_cursor() -> None:
    evil = "\x1b[2J\r\n\x07\u202e"
    shown = text(
        replace(
            FRAME,
            path=evil,
            stage=evil,
            vmas=[replace(VMA, comm=evil)],
            latest=[replace(FOUND, comm=evil)],
        )
    )
    assert set(shown) & set("\x1b\r\x07\u202e") == set()
    assert len(shown.splitlines()) == len(TEXT.splitlines())
    assert "?[2J????" in shown


def test_markup_is_text() -> None:
    assert "[red]x[/]" in text(replace(FRAME, vmas=[replace(VMA, comm="[red]x[/]")]))


def test_what_is_unknown_is_a_question_mark() -> None:
    vma = replace(VMA, pid=0, policy=None)
    lines = text(replace(FRAME, vmas=[vma])).splitlines()
    line = next(line for line in lines if "me ac cd" in line)
    assert line.split()[0] == "?"
    assert " ? " in line[2:]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"behind": 0}, "up to date"),
        ({"behind": 1}, "behind by 1 event"),
        ({"damage": "batch at byte 7: bad"}, "damaged: batch at byte 7: bad"),
        ({"running": False, "stage": "ended: time was up"}, "■ ended: time was up"),
    ],
)
def test_what_the_head_says(change: dict[str, object], words: str) -> None:
    assert words in text(replace(FRAME, **change))


def test_colours_are_an_addition() -> None:
    import re

    shown = text(FRAME, color=True)
    assert "\x1b[" in shown
    assert stripped(re.sub(r"\x1b\[[0-9;]*m", "", shown)) == TEXT
