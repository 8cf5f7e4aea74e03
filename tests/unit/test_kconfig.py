from __future__ import annotations

import pytest

from cdmtrace.lab import kconfig
from cdmtrace.lab.specs import BUILT


def test_parse_takes_the_last_line_and_unset_options() -> None:
    text = '# words\n\nCONFIG_A=y\nCONFIG_B=m\n# CONFIG_A is not set\nCONFIG_S="x y"\n'
    assert kconfig.parse(text) == {
        "CONFIG_A": "n",
        "CONFIG_B": "m",
        "CONFIG_S": '"x y"',
    }


@pytest.mark.parametrize("line", ["KPROBES=y", "CONFIG_A =y", "CONFIG_A"])
def test_a_line_that_kconfig_would_pass_over_is_an_error(line: str) -> None:
    with pytest.raises(ValueError, match="line 2"):
        kconfig.parse(f"CONFIG_B=y\n{line}\n")


def test_a_vanished_and_a_changed_option_are_reported() -> None:
    wanted = kconfig.merge(["CONFIG_A=y\nCONFIG_B=y\nCONFIG_C=1\n", "CONFIG_C=2\n"])
    final = kconfig.parse("CONFIG_A=y\nCONFIG_C=1\n")
    assert [str(one) for one in kconfig.unhonoured(wanted, final)] == [
        "CONFIG_B=y, but the build has n",
        "CONFIG_C=2, but the build has 1",
    ]


def test_an_option_left_out_of_the_result_counts_as_not_set() -> None:
    assert kconfig.unhonoured(kconfig.parse("# CONFIG_X is not set"), {}) == []


def test_render_is_read_back() -> None:
    options = {"CONFIG_A": "y", "CONFIG_B": "n", "CONFIG_C": '"text"'}
    assert kconfig.parse(kconfig.render(options)) == options


@pytest.mark.parametrize("name", BUILT)
def test_the_fragments_that_are_shipped_parse(name: str) -> None:
    assert kconfig.merge(BUILT[name].fragment_texts())
