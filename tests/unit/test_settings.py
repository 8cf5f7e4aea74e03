"""What a program that is compiled once is told, and where."""

from __future__ import annotations

import re

import numpy as np
import pytest
from bpfnumbers import WHOLE

from cdmtrace.filters import Filters
from cdmtrace.kernel import layout
from cdmtrace.loader import settings


def test_each_has_the_place_that_the_compiler_is_told() -> None:
    data = np.frombuffer(settings.values(WHOLE | {"KEY0": 71}), np.uint64)
    lines = re.findall(r"#define (\w+) settings\[(\d+)\]", settings.header())
    places = {name: int(at) for name, at in lines}
    assert f"#define SETTINGS {len(data)}\n" in settings.header()
    assert data[places.pop("KEY0")] == 71
    assert data[places.pop("WATCHED_TGID")] == 0
    assert {name: int(data[at]) for name, at in places.items()} == {
        name: WHOLE[name] for name in places
    }


def test_what_record_tells_bcc_has_a_place() -> None:
    for name in (*Filters().numbers(), *layout.NAMES):
        assert name in settings.SETTINGS


def test_a_number_that_has_no_place() -> None:
    with pytest.raises(ValueError, match="NO_SUCH"):
        settings.values(WHOLE | {"NO_SUCH": 1})


def test_a_number_that_is_missing() -> None:
    for name in ("CDM_MASK", "KEY0", "PG_HEAD", "RECORDER"):
        with pytest.raises(KeyError, match=name):
            settings.values({n: v for n, v in WHOLE.items() if n != name})


def test_members_too_far_apart_to_be_read_at_once() -> None:
    settings.values(WHOLE | {"VMA_HEAD_WORDS": settings.ROOM["VMA_HEAD_WORDS"]})
    with pytest.raises(settings.NoRoom, match=r"VMA_HEAD_WORDS is 13, .* for 12") as no:
        settings.values(WHOLE | {"VMA_HEAD_WORDS": 13})
    assert no.value.hint == "--loader bcc"
