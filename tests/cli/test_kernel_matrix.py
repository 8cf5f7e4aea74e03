"""Kernels downwards, rules across: what is recorded, and what is made of it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest
import simstory
from simfile import save
from simkernel import SimKernel

from cdmtrace.analysis.rules import RULES as CHECKED
from cdmtrace.cli import main
from cdmtrace.errors import LabError
from cdmtrace.lab import kernelrows, matrixrun, modules, scenarios, specs
from cdmtrace.lab.expectations import ROWS, RULES, Expect, Row
from cdmtrace.lab.matrix import Found, Outcome, outcome

GOLDEN = Path(__file__).parent.parent / "golden"


# --- the table ------------------------------------------------------------------


def test_every_kernel_of_the_laboratory_has_rows_with_names_of_their_own() -> None:
    names = [row.name for kernel in specs.KERNELS for row in kernelrows.rows(kernel)]
    assert len(set(names)) == len(names)
    assert {"cdm-6.1-none", "cdm-6.1-rfc", "debian-6.12"} < {*names}
    assert set(kernelrows.STOCK) == set(specs.PACKAGED)


def test_the_table_and_the_rules_agree_on_which_are_about_the_tag() -> None:
    tagless = {rule.id for rule in CHECKED if rule.tagless and rule.id in RULES}
    assert tagless == kernelrows.TAGLESS


def test_what_is_about_the_tag_is_expected_of_no_stock_kernel() -> None:
    for row in kernelrows.STOCK.values():
        told = {rule: row.expects(rule) for rule in RULES}
        about_tag = {*RULES} - kernelrows.TAGLESS
        assert {told[rule] for rule in about_tag} == {Expect.UNCHECKED}
        assert told["CDM014"] is Expect.MUST
        assert told["CDM019"] is Expect.NOT


def test_a_kernel_that_is_built_here_differs_in_what_its_table_says_and_no_more() -> (
    None
):
    base = {row.name: row for row in ROWS}
    for kernel in specs.BUILT:
        for row in kernelrows.rows(kernel):
            name = row.name.removeprefix(f"{kernel}-")
            other = kernelrows.OTHERS.get((kernel, name), kernelrows.Other())
            told = {
                Expect.NOT: other.clear,
                Expect.MAY: other.may,
                Expect.VACUOUS: other.vacuous,
                Expect.UNCHECKED: other.unchecked,
            }
            for rule in RULES:
                here = [expect for expect, rules in told.items() if rule in rules]
                assert [row.expects(rule)] == (here or [base[name].expects(rule)])
                reasons = (row.must, row.may, row.vacuous, row.unchecked)
                assert sum(rule in one for one in reasons) <= (rule not in other.clear)
            changed = {*other.clear, *other.may, *other.vacuous, *other.unchecked}
            assert changed <= {*RULES}
            assert row.judged == base[name].judged - changed
    for kernel, name in kernelrows.OTHERS:
        assert kernel in specs.BUILT
        assert name in base


def test_modules_are_asked_for_only_where_they_can_be_built() -> None:
    known = scenarios.scenarios()
    for kernel, row in kernelrows.STOCK.items():
        needing = [one for one in row.scenarios if modules.needed_by(known[one])]
        assert needing == (
            ["flag_writer"] if kernel in ("debian-5.10", "debian-6.1") else []
        )


@pytest.mark.parametrize(
    ("verdict", "expected"),
    [
        ("unchecked", Outcome.UNCHECKED),
        ("inconclusive", Outcome.UNCHECKED),
        ("clean", Outcome.JUDGED),
        ("vacuous", Outcome.JUDGED),
        ("violated", Outcome.SURPLUS),
    ],
)
def test_what_cannot_be_judged(verdict: str, expected: Outcome) -> None:
    row = kernelrows.STOCK["debian-6.12"]
    assert outcome(row, "CDM001", Found(verdict=verdict)) is expected


# --- the command ----------------------------------------------------------------


@pytest.fixture
def recorded(tmp_path: Path) -> Path:
    """A directory for each kernel, as the laboratory leaves them."""
    directory = tmp_path / "kept"
    stock = SimKernel("stock")
    simstory.tell(stock)
    for name in ("debian-5.10", "debian-7", "cdm-6.1"):
        (directory / name).mkdir(parents=True)
    for name in ("none", "rfc"):
        trace = directory / "cdm-6.1" / f"cdm-6.1-{name}.arrows"
        shutil.copy(GOLDEN / f"cdm-6.1-{name}.arrows", trace)
    save(stock.trace(), directory / "debian-7" / "debian-7.arrows")
    save(stock.trace(), directory / "debian-5.10" / "debian-5.10.arrows")
    return directory


def test_what_a_stock_kernel_s_recording_shows(
    recorded: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The story has no write of flags: the rules about them have had no occasion."""
    words = ["lab", "matrix", "--kernels", "debian-7", "--from", str(recorded)]
    assert main([*words, "--format", "json"]) == 1
    (row,) = json.loads(capsys.readouterr().out)["rows"]
    outcomes = {cell["rule"]: cell["outcome"] for cell in row["cells"]}
    assert outcomes["CDM014"] == "found"
    assert outcomes["CDM001"] == "unchecked"
    assert outcomes["CDM003"] == "idle"
    assert outcomes["CDM004"] == "idle"
    assert main(words) == 1
    out = " ".join(capsys.readouterr().out.split())
    assert "debian-7: CDM001, CDM002, CDM005" in out
    assert "CDM020: this kernel has no VM_CDM (shadow mode)" in out


def test_kernels_that_are_built_have_two_rows_each(
    recorded: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The golden recordings are of the story alone, so much is missing."""
    words = ["lab", "matrix", "--kernels", "cdm-6.1", "--from", str(recorded)]
    assert main([*words, "--format", "json"]) == 1
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert [row["row"] for row in rows] == ["cdm-6.1-none", "cdm-6.1-rfc"]
    assert rows[1]["quirks"]


def test_a_kernel_of_which_nothing_is_there(
    recorded: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = "debian-5.10,debian-6.12"
    words = ["lab", "matrix", "--kernels", names, "--from", str(recorded)]
    assert main(words) == 2
    assert "not recorded: debian-6.12" in capsys.readouterr().out


def test_each_kernel_is_recorded_in_a_guest_of_its_own(
    recorded: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def record(
        rows: Sequence[Row], directory: Path, kernel: str, timeout: float | None
    ) -> None:
        booted.append((kernel, [row.name for row in rows]))
        assert timeout == 71
        if kernel == "cdm-6.1":
            raise LabError("the guest went away")
        shutil.copytree(recorded / kernel, directory, dirs_exist_ok=True)

    booted: list[tuple[str, list[str]]] = []
    monkeypatch.setattr("cdmtrace.cli.labmatrix._record_rows", record)
    kept = tmp_path / "new"
    names = "debian-5.10,cdm-6.1"
    words = ["lab", "matrix", "--kernels", names, "--keep", str(kept)]
    assert main([*words, "--timeout", "71"]) == 2
    assert booted == [
        ("cdm-6.1", ["cdm-6.1-none", "cdm-6.1-rfc"]),
        ("debian-5.10", ["debian-5.10"]),
    ]
    out, err = capsys.readouterr()
    assert "the guest went away" in err
    assert "1 row, " in out
    assert "not recorded: cdm-6.1-none, cdm-6.1-rfc" in out


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--kernels", "debian-4"), "no such kernel"),
        (("--kernels", ","), "names no kernel"),
        (("--kernels", "all", "--quirks", "rfc"), "and kernels of its own"),
        (("--kernels", "all", "--kernel", "cdm-6.1"), "and kernels of its own"),
        (("--kernels", "all", "--from", "a", "--keep", "b"), "--keep has no meaning"),
    ],
)
def test_what_makes_no_sense(
    words: tuple[str, ...], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["lab", "matrix", *words]) == 2
    assert told in capsys.readouterr().err


# --- the orders -----------------------------------------------------------------


def test_a_stock_kernel_is_told_which_node_is_meant(tmp_path: Path) -> None:
    (order,) = matrixrun.orders(
        kernelrows.rows("debian-6.12"), {"leaks": Path("/programs/leaks")}
    )
    assert (order["quirks"], order["cdm_nodes"]) == (None, "1")
    assert "/programs/leaks --quirks none --cdm-node 1 >" in order["command"][-1]
    orders = matrixrun.orders(
        kernelrows.rows("cdm-6.1")[1:], dict.fromkeys(scenarios.scenarios(), Path("x"))
    )
    assert orders[0]["cdm_nodes"] is None
    assert "--cdm-node" not in orders[0]["command"][-1]
