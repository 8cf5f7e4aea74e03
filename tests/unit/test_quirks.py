from __future__ import annotations

import pytest

from cdmtrace.errors import LabError
from cdmtrace.lab import quirks


def test_rfc_is_every_quirk_and_none_is_no_quirk() -> None:
    assert quirks.resolve("rfc") == tuple(quirk.name for quirk in quirks.QUIRKS)
    assert quirks.resolve("none") == quirks.resolve("") == ()
    assert quirks.as_argument(()) == "none"


def test_what_a_quirk_needs_comes_with_it_through_several_steps() -> None:
    assert quirks.resolve("thp-untagged") == ("bind-only", "fault-tag", "thp-untagged")


def test_separators_order_and_repetition_do_not_matter() -> None:
    assert quirks.resolve("one-way,ksm-merge") == quirks.resolve(
        " ksm-merge  one-way, ksm-merge "
    )
    assert quirks.as_argument(quirks.resolve("whole-vma one-way")) == (
        "one-way,whole-vma"
    )


def test_unknown_name_suggests_close_ones() -> None:
    with pytest.raises(LabError, match=r"unknown quirk 'fault-tags'.*fault-tag"):
        quirks.resolve("fault-tags")
    with pytest.raises(LabError, match=r"unknown quirk 'zzz'$"):
        try:
            quirks.resolve("zzz")
        except LabError as error:
            raise LabError(error.message) from None


def test_none_beside_others_is_refused() -> None:
    with pytest.raises(LabError, match="cannot stand beside"):
        quirks.resolve("none,one-way")


def test_table_is_closed_and_says_where_the_series_has_each() -> None:
    for quirk in quirks.QUIRKS:
        assert set(quirk.needs) <= set(quirks.BY_NAME)
        assert "RFC V2" in quirk.source
        assert quirk.summary
