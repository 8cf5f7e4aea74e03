"""Numbers, times and heads are the same everywhere that people read them.

Held against what each verb prints of real recordings, and of one that is made up.
"""

from __future__ import annotations

import contextlib
import io
import lzma
import re
import shlex
from pathlib import Path

import pytest

from cdmtrace import units
from cdmtrace.cli import main
from cdmtrace.render import tables

GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.mark.parametrize(
    ("many", "text"),
    [(0, "0 rows"), (1, "1 row"), (999, "999 rows"), (1536, "1,536 rows")],
)
def test_a_count_has_its_noun_and_separators(many: int, text: str) -> None:
    assert units.count(many, "row") == text


@pytest.mark.parametrize(
    ("many", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1 << 10, "1.0 KiB"),
        (3 << 30, "3.0 GiB"),
        (5 << 40, "5.0 TiB"),
        (1 << 60, "1,048,576.0 TiB"),
    ],
)
def test_a_size_is_in_the_largest_unit_that_it_fills(many: int, text: str) -> None:
    assert units.size(many) == text


def test_times_can_be_typed_and_all_have_six_decimals() -> None:
    assert units.seconds(2_310_117_024_400) == "2310.117024"
    assert units.duration(2_310_117_024_400) == "2310.117024 s"


ROWS = [
    {
        "pid": 123456,
        "node": 1,
        "from": 0,
        "to": 1,
        "pages": 1536,
        "bytes": 1536 * 4096,
        "node 1": 1234,
        "since": "1234.500000",
        "until": "-",
        "known": True,
    }
]


@pytest.mark.parametrize("form", ["table", "markdown"])
def test_people_get_separators_for_what_is_counted(form: str) -> None:
    text = tables.render({"Some": ROWS}, form)
    for cell in ("123456", "1,536", "6.0 MiB", "1,234", "1234.500000", "True"):
        assert re.search(rf"(?<![\w,.]){re.escape(cell)}(?![\w,])", text), cell
    heads = " ".join(text.split())
    for head in ("(s)", "node", "from", "to"):
        assert head in heads
    if form == "markdown":
        for head in ("since (s)", "until (s)", "from node", "to node"):
            assert f" {head} " in text


@pytest.mark.parametrize("form", ["json", "ndjson", "csv"])
def test_programs_get_plain_numbers_and_the_keys(form: str) -> None:
    text = tables.render({"Some": ROWS}, form)
    assert "1536" in text
    assert "1,536" not in text
    assert "since (s)" not in text
    assert str(1536 * 4096) in text


# --- what verbs print -----------------------------------------------------------


@pytest.fixture(scope="module")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return a recording with a huge VMA, and one with thousands of events."""
    folder = tmp_path_factory.mktemp("units")
    path = folder / "services.arrows"
    packed = GOLDEN / "rules/services.arrows.xz"
    path.write_bytes(lzma.decompress(packed.read_bytes()))
    return {"rfc": GOLDEN / "cdm-6.1-rfc.arrows", "services": path}


VERBS = {
    "check": "check {}",
    "np": "check --profile np {}",
    "report": "report {}",
    "timeline": "timeline {}",
    "info": "info {}",
}


@pytest.fixture(scope="module", params=["rfc", "services"])
def printed(
    request: pytest.FixtureRequest, recordings: dict[str, Path]
) -> dict[str, str]:
    """Return what each verb prints of a recording."""
    found = {}
    for name, words in VERBS.items():
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            line = words.format(shlex.quote(str(recordings[request.param])))
            main(shlex.split(line))
        found[name] = out.getvalue()
    return found


NUMBER = re.compile(r"(?<![\w.,:/=-])(\d{4,})(?![\w.,:/-])")
"""A number of four digits or more that is alone in its cell."""

NO_COUNT = re.compile(
    r"cdmtrace timeline .*|cdmtrace check .*|command .*|started .*|kernel .*|file .*"
)
"""Commands and dates."""


def test_every_count_has_separators(printed: dict[str, str]) -> None:
    many = 0
    for name, text in printed.items():
        for line in text.splitlines():
            assert not NUMBER.search(NO_COUNT.sub("", line)), (name, line)
        many += len(re.findall(r"(?<![\w,.])\d{1,3}(?:,\d{3})+(?![\w,.])", text))
    assert many > 5


TIME = re.compile(r"(?<![\w.:/-])\d+\.\d+(?![\w.-])(?! [KMGT]?i?B)")
"""A number with a fraction that is no size, and no part of a name or a release."""


def test_every_column_of_times_says_seconds_and_has_six_decimals(
    printed: dict[str, str],
) -> None:
    timed = 0
    for name, text in printed.items():
        for paragraph in text.split("\n\n"):
            times = TIME.findall(paragraph)
            if not times or name == "info":
                continue
            assert "(s)" in paragraph, (name, paragraph)
            for time in times:
                assert re.fullmatch(r"\d+\.\d{6}", time), (name, time)
            timed += len(times)
    assert timed > 20
